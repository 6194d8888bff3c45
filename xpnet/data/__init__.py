"""Data: named data sets, mini-batches from any source, preprocessing and augmentation."""

from xpnet.runtime.deprecation import renamed_names

from . import augment, cifar, idx, preprocessing
from .byte_images import ByteImages
from .catalogue import load, names
from .dataset import DataError, Dataset, WorkerError
from .images import ImageFolder, read_image
from .loader import Batches
from .preprocessing import one_hot
from .sampling import class_weights, example_weights, split
from .sources import SkipExample

__all__ = [
    "Batches", "ByteImages", "DataError", "Dataset", "ImageFolder", "SkipExample", "WorkerError", "augment", "cifar",
    "class_weights", "example_weights", "idx", "load", "names", "one_hot", "preprocessing", "read_image", "split",
]  # fmt: skip

__getattr__ = renamed_names(__name__, {"Bytes": "ByteImages"})
