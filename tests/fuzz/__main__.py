"""``python -m tests.fuzz``: the fuzzer by hand."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.run import fuzz


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers with this in their name")
    parser.add_argument("--keep", type=Path, help="a folder for the files that are at fault")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = fuzz(Path(folder), args.files, args.seed, args.only)
    for name, count in sorted(result.counts.items()):
        print(f"{count:7,}  {name}")
    print(f"memory grew by {result.growth >> 20} MB, the slowest file took {result.slowest:.2f} s")
    for number, (where, fault, content) in enumerate(result.faults):
        print(f"\nFAULT {where}: {fault}")
        if args.keep is not None:
            args.keep.mkdir(parents=True, exist_ok=True)
            (args.keep / f"fault{number}").write_bytes(content)
    print(f"{sum(result.counts.values()):,} files, {len(result.faults)} faults")
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(_main())
