"""Worker processes, seen from the comparison."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from typing import Any, Self

from benchmarks.libraries import LIBRARIES
from benchmarks.libraries.job import Unsupported
from benchmarks.peers import ROOT, interpreter

TIMEOUT = 900.0  # seconds for a request
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "XPNET_NUM_THREADS",
)


class WorkerError(RuntimeError):
    """A worker ended or failed; the message holds what it printed."""


def environment(name: str, threads: int, precision: str) -> dict[str, str]:
    """Return the environment variables of a library's worker."""
    variables = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    for variable in ("XPNET_REFERENCE", "XPNET_CONVOLUTION"):
        variables.pop(variable, None)
    variables["CUPY_TF32"] = "1" if precision == "tf32" else "0"
    variables["PYTHONPATH"] = str(ROOT)
    return {**variables, **LIBRARIES[name].variables}


def hold_to(threads: int) -> Any:
    """Return what a child process does first: restrict itself to as many cores as threads, whatever the library does."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    return None if threads >= len(cores) else lambda: os.sched_setaffinity(0, cores[:threads])


class Process:
    """One library's worker.

    Raises:
        Unsupported: the library is not installed, or refuses the device; the message says why.
    """

    def __init__(self, name: str, *, device: str = "cpu", precision: str = "float32", threads: int = 1) -> None:
        library = LIBRARIES[name]
        if device not in library.devices:
            raise Unsupported(f"it is not compared on {device}")
        python, reason = interpreter(library.environment)
        if python is None:
            raise Unsupported(reason)
        self.name, self.python = name, python
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", name],
            cwd=ROOT,
            env=environment(name, threads, precision),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=hold_to(threads),
            start_new_session=True,  # Ctrl-C is for the process that compares
        )
        self.printed: list[str] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            self.hello = self.ask(do="hello", device=device, precision=precision, threads=threads)
        except BaseException:
            self.close()
            raise

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.printed.append(line)
            del self.printed[:-50]

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its reply.

        Raises:
            Unsupported: the library does not offer it.
            WorkerError: it failed.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        timer = threading.Timer(TIMEOUT, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            self.process.wait(timeout=10)
            self._listener.join(timeout=1)
            raise WorkerError(f"{self.name}'s worker ended with status {self.process.returncode}:\n{''.join(self.printed)}")
        reply = json.loads(line)
        if not reply["ok"]:
            if "unsupported" in reply:
                raise Unsupported(reply["unsupported"])
            raise WorkerError(f"{self.name}: {reply['error']}")
        return reply

    def close(self) -> None:
        """End the worker."""
        if self.process.poll() is None and self.process.stdin is not None:
            try:
                self.process.stdin.write('{"do": "quit"}\n')
                self.process.stdin.close()
                self.process.wait(timeout=10)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self.process.kill()
                self.process.wait()
        self._listener.join(timeout=1)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None and not stream.closed:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
