"""Kills a training process at random moments, also while it writes, until it has finished, and compares every bit.

python tests/training/kill.py [KILLS]
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.training import runs

CHILD = """
import sys
sys.path[:0] = {paths!r}
import runs
from pathlib import Path
run = runs.trainer(Path({folder!r}), every_steps=1)
print("ready", flush=True)
runs.fit(run, resume="auto")
"""


def check(folder: Path, kills: int, seed: int = 0) -> int:
    """Run until `kills` processes were killed, then to the end; returns the count, and raises where a bit differs."""
    rng = random.Random(seed)
    whole = runs.trainer(None)
    runs.fit(whole)
    wanted = runs.fingerprint(whole)
    killed = 0
    code = CHILD.format(paths=[str(Path(runs.__file__).parent), str(Path(__file__).parents[2])], folder=str(folder))
    while killed < kills:
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.25))
        if child.poll() is None:
            child.kill()
            killed += 1
        elif child.returncode != 0:
            raise RuntimeError(child.stderr.read().decode() if child.stderr else "the run failed")
        else:  # it had finished: begin again, so that every kill falls into a run
            for path in folder.glob("*.ckpt"):
                path.unlink()
        child.communicate()
    last = runs.trainer(folder, every_steps=1)
    runs.fit(last, resume="auto")
    if runs.fingerprint(last) != wanted:
        raise RuntimeError(f"after {killed} kills the run ended with other weights or another history")
    return killed


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        count = check(Path(name), int(sys.argv[1]) if len(sys.argv) > 1 else 50)
        print(f"{count} kills, and the run ended with the same bits")
