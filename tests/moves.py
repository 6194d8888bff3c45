"""Count the moves between files that a reader makes who follows a program: ``python -m tests.moves [--list]``.

A move is a call of a function of xpnet in another file than the call before it. The trips are those of ARCHITECTURE.md:
one Conv2D on NumPy with the tape, through ``model(x)``, and one batch through ``Trainer.fit``. Both run twice before they are
counted, so that what is made once (parameters, plans, imports) is there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import xpnet as xn

ROOT = os.fspath(Path(xn.__file__).parent) + os.sep


def trip(program: Callable[[], Any]) -> list[tuple[str, list[str]]]:
    """The files that `program` enters, in order, each with the functions that it calls there before the next move."""
    found: list[tuple[str, list[str]]] = []

    def follow(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOT):
            file = code.co_filename.removeprefix(ROOT)
            if not found or found[-1][0] != file:
                found.append((file, []))
            found[-1][1].append(code.co_name)

    before = sys.getprofile()
    sys.setprofile(follow)
    try:
        program()
    finally:
        sys.setprofile(before)
    return found


def trips() -> dict[str, list[tuple[str, list[str]]]]:
    """The two trips, by what is run."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 16, 16, 3), dtype=np.float32), rng.integers(0, 10, 4)
    model = xn.Sequential([xn.Conv2D(8, 3, padding="same", activation="relu")], input_shape=(16, 16, 3))
    network = xn.Sequential([xn.Conv2D(8, 3, activation="relu"), xn.Flatten(), xn.Dense(10)], input_shape=(16, 16, 3))
    trainer = xn.Trainer(network, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))

    def fit() -> None:
        trainer.fit((x, y), epochs=1, batch_size=4, verbose=False)

    found = {}
    programs: dict[str, Callable[[], Any]] = {"model(x)": lambda: model(x), "trainer.fit": fit}
    for name, program in programs.items():
        program()
        program()
        found[name] = trip(program)
    return found


def main() -> None:
    """Print the number of moves and of files of each trip, and with --list every move."""
    for name, moves in trips().items():
        print(f"{name}: {len(moves)} moves between {len({file for file, _ in moves})} files")
        if "--list" in sys.argv[1:]:
            for file, functions in moves:
                print(f"    {file}: {', '.join(functions)}")


if __name__ == "__main__":
    main()
