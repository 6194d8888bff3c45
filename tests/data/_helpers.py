"""Data that worker processes can load: they import this module by its name."""

import os
import signal
import time

import numpy as np


class Squares:
    """A sequence of examples that computes each: (i, i * i)."""

    def __init__(self, n=23):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return np.full((2, 2, 1), i, np.float32), i * i


class Dies(Squares):
    """Kills its process at example 7."""

    def __getitem__(self, i):
        if i == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


class Fails(Squares):
    """Raises at example 7."""

    def __getitem__(self, i):
        if i == 7:
            raise ZeroDivisionError("example 7")
        return super().__getitem__(i)


class Slow(Squares):
    """Takes time, and notes which were asked for."""

    def __init__(self, n):
        super().__init__(n)
        self.asked = []

    def __getitem__(self, i):
        time.sleep(0.002)
        self.asked.append(i)
        return super().__getitem__(i)


def negated(batch):
    x, y = batch
    return -x, y
