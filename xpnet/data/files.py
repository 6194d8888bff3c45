"""Finding the published files of a data set: in a folder of the user, in the cache, or by a download.

Settings from the environment:

* ``XPNET_DATA``: a folder to search before the cache.
* ``XPNET_CACHE``: where downloads are kept; otherwise the user's cache folder.
* ``XPNET_DATA_MIRROR``: an address that downloads come from instead of the authors': ``MIRROR/mnist/FILE``.
* ``XPNET_OFFLINE``: anything but "" and "0": never download.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xpnet.runtime.environment import setting

from .dataset import DataError


@dataclass(frozen=True)
class Remote:
    """One file to download: its name, its address, and the md5 sum of the file at that address."""

    name: str
    url: str
    md5: str


def cache_folder() -> Path:
    """Return the folder of downloads: $XPNET_CACHE, or `xpnet` in the user's cache folder."""
    if chosen := setting("XPNET_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "xpnet" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "xpnet"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xpnet"


def find_in(folder: Path, subfolders: Sequence[str], names: Sequence[str]) -> list[Path] | None:
    """Return the files called `names`, plain or .gz, in a subfolder or in `folder`; None unless all are there."""
    for place in [*(folder / sub for sub in subfolders), folder]:
        found = [_variant(place, name) for name in names]
        if all(found):
            return [path for path in found if path]
    return None


def _variant(folder: Path, name: str) -> Path | None:
    # Some tools unpack the files of MNIST under names with a dot: train-images.idx3-ubyte.
    dotted = name.replace("-idx", ".idx")
    for candidate in dict.fromkeys((name, f"{name}.gz", dotted, f"{dotted}.gz")):
        if (path := folder / candidate).is_file():
            return path
    return None


def locate(
    name: str, subfolders: Sequence[str], choices: Sequence[Sequence[str]], path: str | os.PathLike[str] | None
) -> list[Path] | None:
    """Return a data set's files in the user's folder, $XPNET_DATA or the cache; None if they have to be downloaded.

    Args:
        name: of the data set, for messages.
        subfolders: names of folders that may hold it.
        choices: alternative sets of file names; messages name the first.
        path: the user's folder; if given, the files have to be there.

    Raises:
        DataError: `path` or $XPNET_DATA is not a folder, or `path` does not hold the files.
    """
    if path is not None:
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise DataError(f"{name}: {folder} is not a folder. {_what(name, subfolders, choices)}")
        for names in choices:
            if (found := find_in(folder, subfolders, names)) is not None:
                return found
        raise DataError(f"{name}: the files are not in {folder}. {_what(name, subfolders, choices)}")
    for folder in _folders():
        for names in choices:
            if (found := find_in(folder, subfolders, names)) is not None:
                return found
    return None


def _folders() -> list[Path]:
    """Return the folders to search where the user gave none."""
    chosen = setting("XPNET_DATA")
    if chosen and not Path(chosen).expanduser().is_dir():
        raise DataError(f"the environment variable XPNET_DATA is {chosen!r}, which is no folder: change it, or unset it")
    return [*([Path(chosen).expanduser()] if chosen else []), cache_folder()]


def _what(name: str, subfolders: Sequence[str], choices: Sequence[Sequence[str]]) -> str:
    plain = ", ".join(choices[0])
    archive = f"; or the archive {choices[1][0]}" if len(choices) > 1 else " (each as it is or as .gz)"
    return (
        f"Expected these files{archive}: {plain}. Put them in a folder FOLDER or FOLDER/{subfolders[0]}, and give it as "
        f'xpnet.data.load("{name}", path="FOLDER"), on the command line as --data FOLDER, or in the environment '
        f"variable XPNET_DATA."
    )


def download(name: str, subfolders: Sequence[str], choices: Sequence[Sequence[str]], remotes: Sequence[Remote]) -> list[Path]:
    """Download `remotes` into the cache, unless they are there already, and return their paths.

    Raises:
        DataError: downloads are off, pooch is missing, or a download failed. The message names the files and the folder
            they belong in.
    """
    wanted = _what(name, subfolders, choices)
    absent = f"{name}: not found in {' or '.join(map(str, _folders()))}"
    if setting("XPNET_OFFLINE"):
        raise DataError(f"{absent}, and XPNET_OFFLINE forbids the download. {wanted}")
    try:
        import pooch
    except ImportError:
        raise DataError(f"{absent}, and a download needs pooch (pip install pooch). {wanted}") from None
    mirror = (setting("XPNET_DATA_MIRROR") or "").rstrip("/")
    folder = cache_folder() / subfolders[0]
    pooch.get_logger().setLevel("WARNING")
    paths = []
    for remote in remotes:
        url = f"{mirror}/{subfolders[0]}/{remote.name}" if mirror else remote.url
        bar = _Bar(remote.name) if sys.stderr.isatty() else False
        downloader = pooch.HTTPDownloader(progressbar=bar, timeout=60)
        try:
            # A mirror may have compressed a file anew; its content is checked when it is read.
            known = None if mirror and not remote.name.endswith(".tar.gz") else f"md5:{remote.md5}"
            path = pooch.retrieve(url, known_hash=known, fname=remote.name, path=folder, downloader=downloader)
        except Exception as error:  # requests, urllib3 and pooch raise their own
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DataError(f"{name}: {url} could not be downloaded ({reason}). {wanted}") from error
        paths.append(Path(path))
    return paths


class _Bar:
    """A progress bar of rich with the interface that pooch expects: `total`, `update`, `reset`, `close`."""

    def __init__(self, label: str):
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task = self._progress.add_task(label, total=None)
        self._progress.start()

    @property
    def total(self) -> float | None:
        return self._progress.tasks[0].total

    @total.setter
    def total(self, size: float) -> None:
        self._progress.update(self._task, total=size)

    def update(self, size: float) -> None:
        self._progress.advance(self._task, size)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        self._progress.stop()
