"""The folder of a run: made and locked before training, with room for the model, so that nothing is lost at the end."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from xpnet.cli import train_settings
from xpnet.cli.argument_types import UsageError
from xpnet.cli.places import FILES, PAGES
from xpnet.data.image_files import folders_within, holds_images, image_files, is_hidden, is_run
from xpnet.io import archive, lock
from xpnet.report import read_record
from xpnet.runtime.files import place_to_write
from xpnet.runtime.messages import quoted
from xpnet.training.checkpoint_folder import CHECKPOINTS

_BLOCK = 1 << 20
_MORE = 1 << 16
"""Bytes of a model file beside its arrays: architecture, names of classes, metadata."""


def open_folder(args: argparse.Namespace, name: str, dataset: str, held: contextlib.ExitStack) -> Path:
    """Make the folder of the results, lock it until `held` ends, and check that it can be written.

    Args:
        args: of the command: --out and --resume.
        name: of a new folder.
        dataset: as given. A finished run on the same data is replaced, which is said.
        held: see above.

    Raises:
        UsageError: it is a file, or holds a run that has not finished, or one on other data.
        OSError: it cannot be written, another process trains into it, or what has the name of a file of a run is none.
    """
    if args.resume is not None:
        if args.out is not None and Path(args.out) != Path(args.resume):
            raise UsageError(f"--out {args.out}: a run is resumed in its own folder, {args.resume}; omit --out")
        _lock(Path(args.resume), held)
        _check_files(Path(args.resume))
        return Path(args.resume)
    folder = Path("runs") / name if args.out is None else Path(args.out)
    try:
        if args.out is None:
            folder = _next_free(folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
        _lock(folder, held)
        _check_files(folder)
        _clear_finished(folder, dataset)
        trial = folder / ".writable"
        archive.write_atomically(trial, lambda file: file.write(b""))
        trial.unlink()
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"--out {folder}: is a file; expected a folder") from None
    return folder


def check_place(out: str | None, data: str, published: bool = False) -> None:
    """Check, before the data are read, that the results of a run do not fall among them, nor among other images.

    Raises:
        UsageError: the folder --out is that of the data, or one in it that holds images; or a file of the run is the data; or
            the folder holds nothing but class folders of images.
    """
    if out is None:
        return
    _check_other_data(out, data)
    if published:
        return
    folder, place = Path(os.path.realpath(out)), Path(os.path.realpath(data))
    if place.is_file():
        if place.parent == folder and place.name in (*FILES, *PAGES):
            raise UsageError(f"--out {out}: the run would write a file {place.name}, over the data: choose another folder")
        return
    among = place in folder.parents and folder.is_dir() and not is_run(folder) and bool(image_files(folder)[0])
    if folder == place or among:
        raise UsageError(
            f"--out {out}: {'is the folder of the data' if folder == place else 'holds images of the data'}; choose another "
            f"for the results, such as --out {shlex.quote(os.path.join('runs', place.name))}"
        )


def _check_other_data(out: str, data: str) -> None:
    """Raise a UsageError where a folder is one of images CLASS/NAME.png, which files of a run would stand among."""
    folder = Path(out)
    if not folder.is_dir() or is_run(folder) or os.path.realpath(out) == os.path.realpath(data):
        return
    classes = folders_within(folder)[0]
    files = [entry.name for entry in folder.iterdir() if not entry.is_dir() and not is_hidden(entry.name)]
    if len(classes) > 1 and not files and all(map(holds_images, classes)):
        raise UsageError(
            f"--out {out}: holds folders of images, {classes[0].name} and {classes[1].name}, as data do; choose another folder "
            f"for the results, such as --out {shlex.quote(os.path.join('runs', Path(data).stem or 'data'))}"
        )


def _next_free(folder: Path) -> Path:
    """Make the folder, or the first of those with a number behind the name that does not exist."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    number, found = 1, folder
    while True:
        try:
            found.mkdir()
            return found
        except FileExistsError:
            number += 1
            found = folder.with_name(f"{folder.name}-{number}")


def _lock(folder: Path, held: contextlib.ExitStack) -> None:
    lock.acquire(folder)
    held.callback(lock.release, folder)


def _check_files(folder: Path) -> None:
    """Raise an OSError where something that is no regular file has the name of a file that the run will write."""
    for name in (*FILES, *PAGES):
        place_to_write(folder / name)


def _clear_finished(folder: Path, dataset: str) -> None:
    """Delete the checkpoints of a finished run in the folder: the new run overwrites it and must not resume from them.

    Raises:
        UsageError: the run in the folder has not finished, or is one on other data.
    """
    if not (folder / train_settings.CONFIG).exists():
        return
    try:
        finished = read_record(folder)["state"] == "finished"
    except FileNotFoundError:
        finished = False
    if not finished:
        raise UsageError(
            f"--out {folder}: the run in this folder has not finished; resume it: xpnet train --resume "
            f"{shlex.quote(str(folder))}, or choose another folder"
        )
    before = train_settings.read_file(folder / train_settings.CONFIG)
    if not train_settings.is_same_path("dataset", before, dataset):
        raise UsageError(
            f"--out {folder}: holds the model of a run on {quoted(before.get('dataset'))}, which this one would replace: "
            f"choose another folder with --out, or go on with that run: --resume {shlex.quote(str(folder))}"
        )
    print(f"{folder} holds a finished run on the same data, which is replaced")
    for checkpoint in (folder / CHECKPOINTS).glob("*.ckpt*"):
        checkpoint.unlink()


class Room:
    """Room on the disk for a file that is written when training has ended: a placeholder of its size in the same folder.

    Args:
        path: of the file.
        size: of its arrays, in bytes.
        held: removes the placeholder at its end.

    Raises:
        UsageError: there is no room.
    """

    def __init__(self, path: Path, size: int, held: contextlib.ExitStack) -> None:
        self.path = path
        place = place_to_write(path)  # behind a link, there may be another disk
        self._placeholder = place.with_name(f".{place.name}.room")
        held.callback(self._placeholder.unlink, missing_ok=True)
        size += _MORE
        try:
            with self._placeholder.open("wb", buffering=0) as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    for start in range(0, size, _BLOCK):
                        file.write(bytes(min(_BLOCK, size - start)))
        except OSError as error:
            raise UsageError(
                f"{path}: the model needs {size / 1e6:.1f} MB, for which there is no room ({error.strerror}). Training has not "
                f"begun: make room, or give a new run another folder with --out"
            ) from error

    def fill(self, write: Callable[[], None], again: str) -> None:
        """Write the file into its room.

        Raises:
            UsageError: it cannot be written; the message says how to write it later: `again`.
        """
        self._placeholder.unlink(missing_ok=True)
        try:
            write()
        except OSError as error:
            raise UsageError(
                f"{self.path}: the trained model could not be written ({error.strerror or error}). Its last checkpoint is "
                f"kept: make room, then {again}, which goes on from the checkpoint and writes the model"
            ) from error
