"""Image files that are something else than their name says, or announce more than they hold."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

from xpnet.data import DataError, read_image
from xpnet.data.image_safety import FORMATS

pytest.importorskip("PIL")

_WATCH = """
import sys
started = []
programs = ("subprocess.Popen", "os.posix_spawn", "os.system", "os.exec")
sys.addaudithook(lambda event, _: started.append(event) if event in programs else None)
from xpnet.data import DataError, read_image
try:
    read_image(sys.argv[1])
    print("read")
except DataError as error:
    print(error)
print(started)
"""


def test_a_file_of_a_format_that_starts_a_program_is_not_opened(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) = \n")
    done = subprocess.run([sys.executable, "-c", _WATCH, str(path)], capture_output=True, text=True, check=True)
    said, started = done.stdout.splitlines()
    assert started == "[]"
    assert "x.png: not a readable image" in said
    assert ", ".join(FORMATS) in said


@pytest.mark.parametrize("kind", ["ICO", "TGA", "PCX", "SGI"])
def test_other_formats_of_pillow_are_refused(tmp_path, kind):
    from PIL import Image

    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "x.png", kind)
    with pytest.raises(DataError, match="none of PNG"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "WEBP"])
def test_known_formats_are_read_whatever_the_name(tmp_path, kind):
    from PIL import Image

    Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(tmp_path / "x.jpg", kind)
    assert abs(int(read_image(tmp_path / "x.jpg").mean()) - 200) <= 2


def test_a_header_that_announces_a_huge_picture_is_refused_before_it_is_decoded(tmp_path):
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 9_000, 9_000, 8, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match="9,000 x 9,000 pixels"):
        read_image(tmp_path / "x.png")
