"""What a fresh interpreter does in the start-up cases: ``python -m benchmarks.start NAME import|first_step [CASE ARRAYS]``.

Prints the seconds: of importing the library; or, after that, of building the network and its first training step.
"""

from __future__ import annotations

import importlib
import json
import sys
import time

from benchmarks.libraries import LIBRARIES


def main() -> None:
    library = LIBRARIES[sys.argv[1]]
    start = time.perf_counter()
    importlib.import_module(library.imports)
    seconds = time.perf_counter() - start
    if sys.argv[2] == "first_step":
        import numpy as np

        from benchmarks.cases import Case

        module = library.load()
        case = Case.from_dict({**json.loads(sys.argv[3]), "kind": "step"})
        with np.load(sys.argv[4], allow_pickle=False) as loaded:
            arrays = dict(loaded)
        start = time.perf_counter()
        job = module.prepare(case, arrays, "cpu", "float32", library.settings)
        job.once()
        job.synchronize()
        seconds = time.perf_counter() - start
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
