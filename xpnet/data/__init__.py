"""Data: the known data sets, mini-batches out of any source, preprocessing and augmentation."""

from . import cifar, idx
from .catalogue import load, names
from .dataset import DataError, Dataset

__all__ = ["DataError", "Dataset", "cifar", "idx", "load", "names"]
