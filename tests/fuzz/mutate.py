"""Mutations of files: of their bytes, and of what their format consists of."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import Any

from safetensors.numpy import load, save

from xpnet.io.archive import ARRAYS, DOCUMENT

NUMBERS = (0, 1, -1, 2, 7, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**45, 2**63 - 1, 2**63, 10**30)
VALUES: tuple[Any, ...] = (
    *NUMBERS, None, True, False, "", "x", "x" * 3000, "\x00", "\ud800", [], {}, [[]], [None], {"a": {}}, 0.5, -0.5, 1e308,
    1e-320, float("nan"), float("inf"), "<script>alert(1)</script>", "../../etc/passwd", 10**400, {"array": "model.x"},
    {"tuple": [1]},
)  # fmt: skip
TEXTS = (
    b"", b"\x00", b"nan", b"inf", b"1e999", b"-", b",", b";", b"\n", b'"', b"\xff\xfe", b"{", b"[" * 50, b"9" * 400, b"True",
    b"None", b"'", b"(", b"-1", b"1e-400", b"\xe2\x80\xae", b"#", b"=", b"." * 300,
)  # fmt: skip


def of_bytes(content: bytes, draw: random.Random) -> bytes:
    """Change bytes here and there: flip, overwrite, insert, delete, repeat, cut."""
    made = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at = draw.randrange(len(made) + 1)
        end = min(len(made), at + draw.choice((1, 2, 4, 8, 64, 1000)))
        kind = draw.randrange(8)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            made[at:end] = draw.randbytes(end - at)
        elif kind == 2:
            number = draw.choice(NUMBERS) & (2**64 - 1)
            size = draw.choice((1, 2, 4, 8))
            made[at : at + size] = (number & (256**size - 1)).to_bytes(size, draw.choice(("big", "little")))
        elif kind == 3:
            made[at:at] = draw.choice(TEXTS)
        elif kind == 4:
            del made[at:end]
        elif kind == 5:
            made[at:at] = made[at:end] * draw.choice((1, 2, 50))
        elif kind == 6:
            made[at:end] = draw.choice(TEXTS)
        elif draw.random() < 0.3:
            del made[at:]
    return bytes(made)


def of_words(content: bytes, draw: random.Random) -> bytes:
    """Change words and numbers of a text file: replace, drop, double or swap them."""
    words = re.findall(rb"[A-Za-z_]+|[0-9.eE+-]+|\s+|.", content, re.DOTALL)
    for _ in range(draw.choice((1, 1, 2, 5))):
        if not words:
            break
        at = draw.randrange(len(words))
        kind = draw.randrange(5)
        if kind == 0:
            words[at] = draw.choice(TEXTS)
        elif kind == 1:
            words[at] = str(draw.choice(NUMBERS)).encode()
        elif kind == 2:
            del words[at]
        elif kind == 3:
            words[at:at] = words[at : at + draw.choice((1, 3, 30))] * draw.choice((1, 20))
        else:
            other = draw.randrange(len(words))
            words[at], words[other] = words[other], words[at]
    return b"".join(words)


def of_document(document: Any, draw: random.Random) -> Any:
    """Change parts of a JSON document: their values, their names, their nesting."""
    made = json.loads(json.dumps(document))
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        places = list(_places(made))
        if not places:
            break
        home, key = draw.choice(places)
        kind = draw.randrange(8)
        if kind == 0:
            del home[key]
        elif kind == 1 and isinstance(home, dict):
            home[draw.choice(("x", "", "layer", "array", "args", "loss", "x" * 5000))] = home.pop(key)
        elif kind == 2:
            other_home, other = draw.choice(places)
            home[key] = json.loads(json.dumps(other_home[other]))
        elif kind == 3:
            for _ in range(draw.choice((1, 30, 200))):
                home[key] = [home[key]]
        elif kind == 4 and isinstance(home[key], (int, float)) and not isinstance(home[key], bool):
            home[key] = draw.choice((-home[key], home[key] + 1, home[key] * 1000, draw.choice(NUMBERS)))
        elif kind == 5 and isinstance(home[key], list):
            home[key] = home[key] * draw.choice((0, 2, 100))
        else:
            home[key] = copy.deepcopy(draw.choice(VALUES))
    return made


def _places(value: Any) -> Any:
    """Yield (home, key) of every part."""
    for key, part in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        yield value, key
        if isinstance(part, (dict, list)):
            yield from _places(part)


def of_json(content: bytes, draw: random.Random) -> bytes:
    """Change the document in a JSON file."""
    return json.dumps(of_document(json.loads(content), draw)).encode("utf-8", "surrogatepass")


def of_archive(content: bytes, draw: random.Random) -> bytes:
    """Change the document or the arrays in a file of xpnet.io.archive, with checksums that are right."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
        document, blob = archive.read(DOCUMENT), archive.read(ARRAYS)
    kind = draw.randrange(8)
    if kind < 5:
        document = of_json(document, draw)
    elif kind == 5:
        blob = of_safetensors(blob, draw)
    elif kind == 6:
        arrays = load(blob)
        names = sorted(arrays)
        a, b = draw.choice(names), draw.choice(names)
        arrays[a], arrays[b] = arrays[b], arrays[a]
        if draw.random() < 0.5:
            del arrays[a]
        blob = save(arrays)
    else:
        document = of_words(document, draw)
    made = BytesIO()
    with zipfile.ZipFile(made, "w", draw.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))) as archive:
        for name, part in ((DOCUMENT, document), (ARRAYS, blob)):
            archive.writestr(zipfile.ZipInfo(name), part)
    return made.getvalue()


def of_safetensors(content: bytes, draw: random.Random) -> bytes:
    """Change the header of a safetensors file, whose length is then right."""
    length = struct.unpack("<Q", content[:8])[0]
    header = draw.choice((of_json, of_words))(content[8 : 8 + length], draw)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def of_npy(content: bytes, draw: random.Random) -> bytes:
    """Change the header of a .npy file, whose length is then right."""
    length = struct.unpack("<H", content[8:10])[0]
    header = of_words(content[10 : 10 + length], draw)[:65535]
    return content[:8] + struct.pack("<H", len(header)) + header + content[10 + length :]


Mutation = Callable[[bytes, random.Random], bytes]
