"""The start-up cases, run in a fresh interpreter: ``python -m benchmarks.startup NAME KIND CASE ARRAYS CLOCK``.

Prints the seconds that importing the library takes (KIND "import"), or those of building the network and its first training
step after that ("first_step").
"""

from __future__ import annotations

import importlib
import json
import sys
import time

from benchmarks.libraries import LIBRARIES


def main() -> None:
    library = LIBRARIES[sys.argv[1]]
    now = time.process_time if sys.argv[5] == "cpu" else time.perf_counter
    start = now()
    importlib.import_module(library.imports)
    seconds = now() - start
    if sys.argv[2] == "first_step":
        import numpy as np

        from benchmarks.cases import Case

        module = library.load()
        case = Case.from_dict({**json.loads(sys.argv[3]), "kind": "step"})
        with np.load(sys.argv[4], allow_pickle=False) as loaded:
            arrays = dict(loaded)
        start = now()
        job = module.prepare(case, arrays, "cpu", "float32", library.settings)
        job.once()
        job.synchronize()
        seconds = now() - start
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
