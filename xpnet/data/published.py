"""Data sets read from their published files: MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import cifar, files, idx
from .dataset import DataError, Dataset, NumpyArray

MNIST_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclass(frozen=True)
class MnistLike:
    """A data set in four IDX files: images and labels of the training part, then of the test part."""

    name: str
    subfolders: tuple[str, ...]
    url: str
    packed_md5: tuple[str, ...]  # of the .gz files at url
    md5: tuple[str, ...]  # of the decompressed files
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    licence: str

    def load(self, path: str | os.PathLike[str] | None) -> Dataset:
        """Read, or download and read, the four files; see :func:`xpnet.data.load`."""
        choices = (MNIST_FILES,)
        paths = files.locate(self.name, self.subfolders, choices, path)
        if paths is not None:
            arrays = self._read(paths)
        else:
            names = [f"{name}.gz" for name in MNIST_FILES]
            remotes = [files.Remote(n, self.url + n, md5) for n, md5 in zip(names, self.packed_md5, strict=True)]
            paths = files.download(self.name, self.subfolders, choices, remotes)
            try:
                arrays = self._read(paths)
            except DataError:
                # The download is not the published file: do not keep it.
                for file in paths:
                    file.unlink(missing_ok=True)
                raise
        return Dataset(
            name=self.name,
            train=self._pair(arrays[0], arrays[1], paths[:2]),
            test=self._pair(arrays[2], arrays[3], paths[2:]),
            class_names=self.class_names,
            mean=self.mean,
            std=self.std,
            source=self.source,
            licence=self.licence,
            scale=255.0,
        )

    def _read(self, paths: Sequence[Path]) -> list[NumpyArray]:
        arrays = []
        for file, md5 in zip(paths, self.md5, strict=True):
            try:
                arrays.append(idx.read(file, md5=md5))
            except idx.ChecksumError as error:
                others = {m: f"{s.name}'s {n}" for s in MNIST_LIKE for m, n in zip(s.md5, MNIST_FILES, strict=True)}
                hint = others.get(error.found)
                raise DataError(
                    f"{error}. " + (f"It is {hint}." if hint else "Read files of your own with xpnet.data.idx.read.")
                ) from None
        return arrays

    def _pair(self, images: NumpyArray, labels: NumpyArray, paths: Sequence[Path]) -> tuple[NumpyArray, NumpyArray]:
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or labels.max(initial=0) >= len(self.class_names):
            raise DataError(
                f"{paths[0]} and {paths[1]} do not belong together: images of shape {images.shape}, labels of "
                f"shape {labels.shape} up to {labels.max(initial=0)}; expected (N, H, W), (N,) and at most "
                f"{len(self.class_names) - 1}"
            )
        return _unit(images)[..., None], labels.astype(np.int64)


def _unit(images: NumpyArray) -> NumpyArray:
    """Convert uint8 0..255 to float32 0..1."""
    return np.divide(images, np.float32(255), dtype=np.float32)


@dataclass(frozen=True)
class Cifar:
    """CIFAR-10 or CIFAR-100 in its binary version."""

    name: str
    subfolders: tuple[str, ...]
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    records: int  # in each training file
    test_records: int
    archive: files.Remote
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str

    def load(self, path: str | os.PathLike[str] | None) -> Dataset:
        """Read, or download and read, the files; see :func:`xpnet.data.load`."""
        names = self.train_files + self.test_files
        choices = (names, (self.archive.name,))
        paths = files.locate(self.name, self.subfolders, choices, path)
        if paths is None:
            paths = self._unpack(files.download(self.name, self.subfolders, choices, [self.archive])[0], names)
        if len(paths) == 1:
            found = cifar.read_archive(paths[0], names, self.archive.md5)
            contents = [(f"{paths[0]}: {name}", found[name]) for name in names]
        else:
            contents = [(str(file), _bytes(file)) for file in paths]
        split = len(self.train_files)
        return Dataset(
            name=self.name,
            train=self._pair(contents[:split], self.records),
            test=self._pair(contents[split:], self.test_records),
            class_names=self.class_names,
            mean=self.mean,
            std=self.std,
            source=self.source,
            licence="none stated by the authors, who ask that the report above be cited",
            scale=255.0,
        )

    def _pair(self, contents: Sequence[tuple[str, bytes]], records: int) -> tuple[NumpyArray, NumpyArray]:
        parts = [cifar.decode(c, name, classes=len(self.class_names), records=records) for name, c in contents]
        return _unit(np.concatenate([x for x, _ in parts])), np.concatenate([y for _, y in parts])

    def _unpack(self, archive: Path, names: tuple[str, ...]) -> list[Path]:
        """Unpack a downloaded archive beside it and delete it: later loads are faster."""
        for name, content in cifar.read_archive(archive, names, None).items():
            temporary = archive.with_name(f".{name}.{os.getpid()}.tmp")
            try:
                temporary.write_bytes(content)
                temporary.replace(archive.with_name(name))
            except OSError as error:
                raise DataError(f"{archive.parent}: cannot be written: {error.strerror or error}") from error
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()
        paths = [archive.with_name(name) for name in names]
        archive.unlink()
        return paths


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


MNIST_LIKE = (
    MnistLike(
        name="mnist",
        subfolders=("mnist", "MNIST", "MNIST/raw"),
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        packed_md5=(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        md5=(
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        class_names=tuple("0123456789"),
        mean=(0.1307,),
        std=(0.3081,),
        source="Y. LeCun, C. Cortes, C. J. C. Burges (1998), http://yann.lecun.com/exdb/mnist/",
        licence="CC BY-SA 3.0, https://creativecommons.org/licenses/by-sa/3.0/",
    ),
    MnistLike(
        name="fashion-mnist",
        subfolders=("fashion-mnist", "fashion_mnist", "FashionMNIST/raw"),
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        packed_md5=(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        md5=(
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
        class_names=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        mean=(0.2860,),
        std=(0.3530,),
        source="H. Xiao, K. Rasul, R. Vollgraf (2017), https://github.com/zalandoresearch/fashion-mnist",
        licence="MIT, Copyright 2017 Zalando SE",
    ),
)

_KRIZHEVSKY = (
    "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009), https://www.cs.toronto.edu/~kriz/cifar.html"
)

# fmt: off
_CIFAR100_NAMES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
    "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair",
    "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin",
    "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp",
    "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
    "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
    "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
    "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television",
    "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)
# fmt: on

# The deviations are those of all pixels of a channel. The triple often quoted for CIFAR-10, (0.2023, 0.1994, 0.2010), is
# the mean of the deviations of single images, which does not standardise the data.
CIFARS = (
    Cifar(
        name="cifar10",
        subfolders=("cifar10", "cifar-10-batches-bin", "cifar-10"),
        train_files=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test_files=("test_batch.bin",),
        records=10_000,
        test_records=10_000,
        archive=files.Remote(
            "cifar-10-binary.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "c32a1d4ab5d03f1284b67883e8d87530",
        ),
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        source=_KRIZHEVSKY,
    ),
    Cifar(
        name="cifar100",
        subfolders=("cifar100", "cifar-100-binary", "cifar-100"),
        train_files=("train.bin",),
        test_files=("test.bin",),
        records=50_000,
        test_records=10_000,
        archive=files.Remote(
            "cifar-100-binary.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            "03b5dce01913d631647c71ecec9e9cb8",
        ),
        class_names=_CIFAR100_NAMES,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        source=_KRIZHEVSKY,
    ),
)
