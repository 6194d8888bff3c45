"""Folders of images: which of them are classes, which are parts of the data, and their pixels in memory."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from xpnet.cli.argument_types import UsageError
from xpnet.cli.readings import Known, Reading, alike_names, class_indices, normalized, quoted_list
from xpnet.data import DataError, ImageFolder
from xpnet.data.dataset import NumpyArray
from xpnet.data.image_files import ENDINGS, beside_folders, describe_left_out, folders_within, image_files
from xpnet.data.inputs import InputRecord
from xpnet.data.splits import TEST, TRAIN, VALIDATION, hashes, row_hashes
from xpnet.runtime.machine import memory
from xpnet.runtime.messages import counted, quoted, were

_ROLES = {
    "train": TRAIN, "training": TRAIN, "test": TEST, "testing": TEST, "val": VALIDATION, "valid": VALIDATION,
    "validation": VALIDATION, "validate": VALIDATION, "dev": VALIDATION, "eval": TEST, "evaluation": TEST,
}  # fmt: skip
_FILLERS = frozenset(
    {"set", "data", "dataset", "images", "image", "imgs", "img", "split", "part", "folder", "seg", "my", "the"}
)


def role(name: str) -> int | None:
    """Return the part of the data that a folder's name means, such as TEST for test, test1, Test_Set and seg_test."""
    words = re.findall("[a-z]+", name.lower())
    joined = [word.removesuffix("set") if word.removesuffix("set") in _ROLES else word for word in words]
    found = {_ROLES[word] for word in joined if word in _ROLES}
    if len(found) != 1 or any(word not in _ROLES and word not in _FILLERS for word in joined):
        return None
    return found.pop()


def _possible_role(name: str) -> int | None:
    """Return the part that a folder's name may mean beside others of the same classes: alphabet_train, MyPhotosTest, x_val."""
    words = [word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)]
    found = {r for word in words if (r := role(word)) is not None}
    return found.pop() if len(found) == 1 else None


def read_folder(folder: Path, size: Sequence[int] | None = None, skip_bad: bool = False, known: Known | None = None) -> Reading:
    """Read images from CLASS/NAME.png, or from train/CLASS/NAME.png, val/ and test/ likewise, into memory.

    Args:
        folder: the folder.
        size: (H, W) to resize to; None: all images have one size, or that of `known`.
        skip_bad: leave out images that cannot be read, with a warning for each.
        known: how the inputs of a model or run were read, which these must fit.

    Raises:
        DataError: no images, or none of some class; images of several sizes without `size`; an image that cannot be read,
            unless `skip_bad`; folders that are neither classes nor parts.
        UsageError: a size that is not (H, W), or not that of `known`.
    """
    if size is not None and len(size) != 2:
        raise UsageError(f"--size {','.join(map(str, size))}: expected H,W, such as 64,64")
    parts, notes = _parts(folder, known is not None)
    if known is not None and len(known.inputs.shape) != 3:
        raise UsageError(f"{folder}: {known.place} takes {known.inputs.describe()}, not images")
    if known is not None and (why := known.inputs.without_white()):
        raise UsageError(f"{folder}: {known.place} {why}; give a .npz file with such values")
    places = list(dict.fromkeys([folder, *(place for _, place in parts)]))
    beside = {place: beside_folders(place) for place in places}
    loose = [str(Path(place, name).relative_to(folder)) for place in places for name in beside[place][0]]
    if loose:
        notes.append(f"left out {len(loose):,} image{'s' * (len(loose) > 1)} beside the folders, such as {quoted(loose[0])}")
    left_out = Counter[str]()
    if all(place != folder for _, place in parts):  # those of the places are counted with their images
        left_out += folders_within(folder)[1] + beside[folder][1]
    found: list[tuple[int | None, ImageFolder]] = []
    names: tuple[str, ...] = ()
    for part, place in parts:
        images = ImageFolder(place)
        if not found:
            names = images.class_names
        train = parts[0][1] if parts[0][0] == TRAIN and found else None
        empty = _check_classes(images, place, names, train, whole=(not found or part == TRAIN) and known is None)
        if empty and known is not None:  # where a model is trained, classes that are not tested are told later
            notes.append(f"class folders without images: {quoted_list(empty, 5)}")
        left_out += images.left_out
        found.append((part, images))
    if known is not None and not known.class_names:
        known = replace(known, class_names=names)
    if phrase := describe_left_out(left_out):
        notes.append(phrase)
    if size is not None:
        _check_memory(size, sum(len(images.paths) for _, images in found))
    reader = _Reader(size, skip_bad, known)
    for part, images in found:
        reader.add(folder, part, images)
    return reader.finish(folder, names, [part for part, _ in found], notes)


def _check_memory(size: Sequence[int], count: int) -> None:
    """Raise a UsageError if images of a size would not fit into the memory of this machine: before the first one is read."""
    needed = size[0] * size[1] * 3 * count * 4  # float32, in colour
    there = memory()
    if there is not None and needed > there:
        raise UsageError(
            f"--size {size[0]},{size[1]}: {counted(count, 'image')} of this size need {needed / 1e9:,.1f} GB, and this machine "
            f"has {there / 1e9:,.1f} GB; give a smaller size"
        )


def _roles(inside: Sequence[Path]) -> dict[Path, int]:
    """Return which folders are parts: by name, and where the name says more as well, by classes that others have, too."""
    found = {p: r for p in inside if (r := role(p.name)) is not None}
    possible = {p: r for p in inside if p not in found and (r := _possible_role(p.name)) is not None}
    names = {p: {q.name for q in _class_folders(p)} for p in (*found, *possible)} if possible else {}
    for p, part in possible.items():
        if any(names[p] & names[q] and other != part for q, other in (found | possible).items()):
            found[p] = part
    return {p: found[p] for p in inside if p in found}


def _parts(folder: Path, known: bool) -> tuple[list[tuple[int | None, Path]], list[str]]:
    """Return the folders of classes with the part that each is, None for all, and what should be said about them.

    Where the classes are `known`, a training part need not be there.
    """
    inside, _ = folders_within(folder)
    roles = _roles(inside)
    classes = {p: _class_folders(p) for p in roles}
    named = [p for p in roles if classes[p]]  # parts hold folders of classes
    if not named:
        flat = [p.name for p in roles if image_files(p)[0]]
        if flat and (len({roles[p] for p in roles if p.name in flat}) > 1 or len(roles) == len(inside)):
            raise DataError(
                f"{folder}: {', '.join(flat)} hold images without class folders; expected {flat[0]}/CLASS/NAME.png: sort "
                f"them into a folder for each class"
            )
        if len(inside) == 1 and len(_class_folders(inside[0])) > 1:  # the folder within the folder, as archives leave it
            parts, notes = _parts(inside[0], known)
            return parts, [f"the images are those in {inside[0].name}/", *notes]
        if deep := _deep(inside):
            raise DataError(f"{folder}: the classes lie deeper than CLASS/NAME.png: did you mean {deep}?")
        if not inside and (found := image_files(folder)[0]):
            raise DataError(
                f"{folder}: holds {counted(len(found), 'image')} and no folders of classes; expected "
                f"CLASS/NAME{found[0].suffix}: sort them into a folder for each class"
            )
        return [(None, folder)], _folders_in_classes(folder, inside)
    notes = []
    others = [p.name for p in inside if p not in named]
    if others:
        plural = "s" * (len(others) > 1)
        notes.append(
            f"left out {len(others)} folder{plural} beside {named[0].name}/ without classes in them: {quoted_list(others, 5)}"
        )
    by_part: dict[int, list[Path]] = {}
    for p in named:
        by_part.setdefault(roles[p], []).append(p)
    for p in named:
        several = by_part[roles[p]]
        if len(several) > 1:
            raise DataError(
                f"{folder}: {several[0].name}/ and {several[1].name}/ are the same part of the data; expected one of them"
            )
    if TRAIN not in by_part and known:
        return [(TEST, _unwrapped(by_part.get(TEST, named)[0]))], notes
    if TRAIN not in by_part:
        raise DataError(
            f"{folder}: holds {', '.join(p.name for p in named)}, and no folder train; expected train/CLASS/NAME.png"
        )
    train, *rest = (by_part[part][0] for part in (TRAIN, VALIDATION, TEST) if part in by_part)
    if not rest:
        notes.append(f"the images are those in {train.name}/; there is no test folder with classes")
        return [(None, _unwrapped(train))], notes
    if len(rest) == 1:
        if TEST not in by_part:
            notes.append(f"{rest[0].name}/ is the test part: there is no test folder with classes")
        return [(TRAIN, _unwrapped(train)), (TEST, _unwrapped(rest[0]))], notes
    return [(part, _unwrapped(p)) for part, p in zip((TRAIN, VALIDATION, TEST), (train, *rest))], notes


def _folders_in_classes(folder: Path, classes: Sequence[Path]) -> list[str]:
    """Say which folders within the classes are not told apart.

    Raises:
        DataError: they are parts of the data.
    """
    inner = Counter(q.name for p in classes for q in _class_folders(p))
    parts = {r: name for name in inner if (r := role(name)) is not None}
    if TRAIN in parts and len(parts) > 1:
        names = " and ".join(f"{classes[0].name}/{name}/" for _, name in sorted(parts.items()))
        raise DataError(
            f"{folder}: the classes hold parts of the data, such as {names}; expected {parts[TRAIN]}/CLASS/NAME.png"
        )
    shared = [name for name, count in inner.items() if count > 1]
    if len(shared) < 2 and not (shared and parts):
        return []
    return [
        f"the classes are {quoted_list([p.name for p in classes], 5)}, each with its images in {quoted_list(shared, 5)}; if "
        f"these are the classes, give one of the folders, or name them train and test"
    ]


def _class_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder that hold images."""
    return [p for p in folders_within(folder)[0] if image_files(p)[0]]


def _deep(inside: Sequence[Path]) -> Path | None:
    """Return the folder of several classes or parts that lies below others which hold nothing but one folder; None: no such."""
    while len(inside) == 1 and not any(p.is_file() and p.suffix.lower() in ENDINGS for p in inside[0].iterdir()):
        folder, inside = inside[0], _class_folders(inside[0])
        if len(inside) > 1:
            return folder
    return None


def _unwrapped(folder: Path) -> Path:
    """Return the folder of the classes of a part: archives may hold train/train/CLASS."""
    inside = _class_folders(folder)
    return inside[0] if len(inside) == 1 and len(_class_folders(inside[0])) > 1 else folder


def _check_classes(images: ImageFolder, place: Path, names: tuple[str, ...], train: Path | None, whole: bool) -> list[str]:
    """Check the class folders of a part, beside the training part `train`, and return those that hold no images.

    Raises:
        DataError: there are classes that the training part has not; or where it must be `whole`, one without images.
    """
    unknown = [name for name in images.class_names if name not in names]
    if unknown:
        raise DataError(
            f"{place}: the class folders {quoted_list(unknown, 5)} are not in the training part: {quoted_list(names, 5)}"
            + (f"; for the training part alone, give {train}" if train is not None else "")
        )
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    empty = [name for name, count in zip(images.class_names, counts) if not count]
    if empty and whole:
        raise DataError(
            f"class folders beside that of {images.paths[0]} hold no images: {quoted_list(empty)}; add images, or remove "
            f"folders that are not a class"
        )
    return empty


class _Reader:
    """Collects the pixels of images that must have one size."""

    def __init__(self, size: Sequence[int] | None, skip_bad: bool, known: Known | None) -> None:
        self.skip_bad, self.known = skip_bad, known
        self.size = (size[0], size[1]) if size is not None else None
        if known is not None:
            H, W = known.inputs.shape[:2]
            if self.size is not None and self.size != (H, W):
                raise UsageError(f"--size {self.size[0]},{self.size[1]}: {known.place} takes {H},{W}")
            self.size = (H, W)
        self.channels = 3 if known is None else known.inputs.shape[2]
        if self.channels not in (1, 3, 4):
            raise UsageError(f"images have 1, 3 or 4 channels; {known.place if known else ''} takes {self.channels}")
        self.first: tuple[Path, tuple[int, ...]] | None = None
        self.grey = True
        self.transparent = self.frames = self.deep = self.colour = self.resized = 0
        self.total = 0
        self.pixels: list[NumpyArray] = []
        self.labels: list[str] = []
        self.parts: list[int] = []
        self.names: list[bytes] = []
        self.by_pixels = known is None or known.inputs.by_pixels
        self.files: list[NumpyArray] = []

    def add(self, folder: Path, part: int | None, images: ImageFolder) -> None:
        """Read all images of one part."""
        images.size, images.channels = self.size, 4 if self.channels == 4 else 3
        if self.known is not None:
            images.background = self.known.inputs.background
        for i, path in enumerate(images.paths):
            self.total += 1
            try:
                read = images.read(i)
            except DataError as error:
                if not self.skip_bad:
                    raise DataError(f"{error}; --skip-bad leaves such images out") from error
                warnings.warn(f"left out {error}", RuntimeWarning, stacklevel=3)
                continue
            values = read.values
            if self.first is None:
                self.first = path, values.shape
            elif values.shape != self.first[1]:
                H, W = self.first[1][:2]
                raise DataError(
                    f"{path} is {values.shape[0]} x {values.shape[1]} pixels, {self.first[0]} is {H} x {W}; give --size H,W to "
                    f"resize all images"
                )
            grey = is_grey(values)
            self.grey = self.grey and grey
            self.colour += not grey
            self.transparent += read.transparent
            self.frames += read.frames
            self.resized += read.size != values.shape[:2]
            self.deep += values.dtype != np.uint8
            self.pixels.append(values[..., :1].copy() if grey else values)
            self.labels.append(images.class_names[images.labels[i]])
            self.parts.append(TRAIN if part is None else part)
            self.names.append(normalized(path.relative_to(folder).as_posix()).encode("utf-8", "surrogateescape"))
            if not self.by_pixels:
                self.files.append(hashes([path.read_bytes()]))

    def finish(self, folder: Path, names: tuple[str, ...], parts: Sequence[int | None], notes: list[str]) -> Reading:
        """Return the reading of all images that were added."""
        if self.first is None:
            raise DataError(f"{folder}: none of its images can be read ({self.total:,})")
        if self.known is None:
            self.channels = 1 if self.grey else 3
        H, W = self.first[1][:2]
        x = np.empty((len(self.pixels), H, W, self.channels), np.float32)
        for row, values in zip(x, self.pixels):
            row[...] = to_grey(values) if self.channels == 1 and values.shape[2] == 3 else values
        x /= np.float32(255)
        class_names = names if self.known is None else self.known.class_names
        notes += alike_names(class_names) if self.known is None else []
        known = self.known or Known(InputRecord("images", x.shape[1:]), names, "the training part")
        in_colour = self.channels == 3 and self.colour == len(self.pixels)
        inputs = InputRecord("images", x.shape[1:], 255.0, whole=True, resized=self.size is not None, in_colour=in_colour)
        if self.known is not None:
            inputs = self.known.inputs
            notes += [note] if (note := inputs.far(x, str(folder), sure=True)) else []
        if self.transparent:
            notes.append(
                f"{counted(self.transparent, 'image')} with transparent pixels {were(self.transparent)} composited on "
                f"{inputs.background} (R, G, B)"
            )
        if self.frames:
            notes.append(f"of {counted(self.frames, 'file')} with several images the first one was read")
        if self.deep:
            notes.append(
                f"{counted(self.deep, 'image')} {'has' if self.deep == 1 else 'have'} more than 8 bits a pixel; white "
                f"is the largest value of their format"
            )
        if self.known is not None and not inputs.resized and self.resized:
            notes.append(
                f"{self.resized:,} of {counted(len(self.pixels), 'image')} {were(self.resized)} resized to {H} x {W}; "
                f"those of {self.known.place} had this size: train with --size {H},{W} on images of several sizes"
            )
        if self.known is not None and self.channels == 1 and self.colour:
            notes.append(
                f"{counted(self.colour, 'colour image')} {were(self.colour)} converted to grey, as {self.known.place} takes it"
            )
        elif self.known is not None and inputs.in_colour and (grey := len(self.pixels) - self.colour):
            notes.append(
                f"{counted(grey, 'image')} {'is' if grey == 1 else 'are'} grey; those of {self.known.place} were all in colour"
            )
        elif self.known is None and 0 < self.colour < len(self.pixels):
            notes.append(
                f"{self.colour:,} of {counted(len(self.pixels), 'image')} {'is' if self.colour == 1 else 'are'} in colour, "
                f"so all are read in colour"
            )
        given = np.array(self.parts, np.int8) if parts != [None] else None
        return Reading(
            str(folder), x, class_indices(self.labels, known, str(folder)), class_names, inputs,
            row_hashes(x) if self.by_pixels else np.concatenate(self.files), hashes(self.names), given, notes,
        )  # fmt: skip


def is_grey(values: NumpyArray) -> bool:
    """Return whether the channels of RGB pixels (H, W, 3) are one."""
    return values.shape[2] == 3 and bool((values[..., :1] == values).all())


def to_grey(values: NumpyArray) -> NumpyArray:
    """Return the luma of RGB pixels (H, W, 3), as pillow computes it (ITU-R 601-2)."""
    if values.dtype == np.uint8:
        wide = values.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
        return ((wide + 0x8000) >> 16)[..., None]
    return (values @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
