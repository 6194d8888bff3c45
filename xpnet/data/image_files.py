"""Which files of a folder are images."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

ENDINGS = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm",
    ".pnm",
)  # fmt: skip

_SYSTEM = frozenset(
    {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini"}
)

RUNS = "folder of runs"
_RUN = {"run.json": (b'"xpnet-run-',), "config.toml": (b"dataset = ", b"learning_rate = ", b"started_in = ")}
"""The files that the folder of a run is known by, and what is in them."""


def is_hidden(name: str) -> bool:
    """Return whether a file or folder belongs to a system or an editor: .ipynb_checkpoints, __MACOSX, ._photo.jpg."""
    return name.startswith(".") or name.lower() in _SYSTEM


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder is that of a run: it holds the record of one, or the settings that one begins with."""
    for name, marks in _RUN.items():
        path = os.path.join(folder, name)
        if not os.path.isfile(path):  # a pipe would be waited for
            continue
        try:
            with open(path, "rb") as file:
                head = file.read(1 << 16)
        except OSError:
            continue
        if all(mark in head for mark in marks):
            return True
    return False


def folders_within(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Return the folders in a folder, sorted by name, that may hold data.

    Returns:
        the folders, and how many others were left out because they are runs, or hold runs and no images beside them.
    """
    with os.scandir(folder) as entries:
        inside = sorted(folder / entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))
    runs = [path for path in inside if _holds(path) == (False, True)]
    return [path for path in inside if path not in runs], Counter(f"{RUNS} ({path.name})" for path in runs)


def holds_images(folder: Path) -> bool:
    """Return whether a folder holds an image, at any depth; it ends at the first one."""
    return folder.is_dir() and _holds(folder)[0]


def _holds(folder: Path, depth: int = 8) -> tuple[bool, bool]:
    """Return whether a folder holds images, and whether it is a run or holds one; it ends at the first image."""
    if is_run(folder):
        return False, True
    runs = False
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if not is_hidden(entry.name)]
    except OSError:
        return True, False
    if any(Path(entry.name).suffix.lower() in ENDINGS and entry.is_file() for entry in entries):
        return True, False
    for entry in entries:
        if depth and entry.is_dir():
            images, more = _holds(folder / entry.name, depth - 1)
            if images:
                return True, False
            runs = runs or more
    return False, runs


def image_files(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Find the images in a folder at any depth, also behind symbolic links, but not in the folders of runs in it.

    Returns:
        the images, sorted by path, and how many other files were left out, by the reason.
    """
    found: list[Path] = []
    left_out: Counter[str] = Counter()
    _walk(folder, tuple(map(str, Path(os.path.realpath(folder)).parents)), found, left_out)
    return sorted(found), left_out


def _walk(folder: Path, above: tuple[str, ...], found: list[Path], left_out: Counter[str]) -> None:
    real = os.path.realpath(folder)
    if real in above:
        left_out["a link to a folder above it"] += 1
        return
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        path = folder / entry.name
        if reason := _why_not(entry):
            left_out[reason] += 1
        elif entry.is_dir() and is_run(path):
            left_out[f"{RUNS} ({entry.name})"] += 1
        elif entry.is_dir():
            _walk(path, (*above, real), found, left_out)
        else:
            found.append(path)


def _why_not(entry: os.DirEntry[str]) -> str:
    """Return why an entry of a folder is neither an image nor a folder that may hold some, or "" where it is."""
    if is_hidden(entry.name):
        return f"hidden ({'._*' if entry.name.startswith('._') else entry.name})"
    if entry.is_dir():
        return ""
    if not entry.is_file():
        return "broken link" if entry.is_symlink() else "not a file"
    ending = Path(entry.name).suffix.lower()
    return "" if ending in ENDINGS else f"no image ({ending[:20] or 'no ending'})"


def beside_folders(folder: Path) -> tuple[list[str], Counter[str]]:
    """Find what stands beside the folders in a folder.

    Returns:
        the names of the images, sorted, and how many other entries were left out, by the reason.
    """
    images: list[str] = []
    left_out: Counter[str] = Counter()
    for entry in os.scandir(folder):
        if reason := _why_not(entry):
            left_out[reason] += 1
        elif not entry.is_dir():
            images.append(entry.name)
    return sorted(images), left_out


def describe_left_out(left_out: Counter[str]) -> str:
    """Return one phrase such as "left out 5 files: 3 no image (.txt), 2 hidden (._*)"; "" for none."""
    if not left_out:
        return ""
    shown = left_out.most_common(8)
    more = sum(left_out.values()) - sum(count for _, count in shown)
    parts = [f"{count:,} {reason}" for reason, count in shown] + ([f"{more:,} others"] if more else [])
    total = sum(left_out.values())
    return f"left out {total:,} file{'s' * (total != 1)}: {', '.join(parts)}"
