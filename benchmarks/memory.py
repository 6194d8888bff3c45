"""The peak memory of a block of code."""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Self


class Peak:
    """Measure the peak memory of the enclosed block.

    Attributes:
        bytes: the peak inside the block minus what was in use at its beginning; None if the system does not report it.
        how: what was measured.
    """

    def __init__(self, device: str, module: str) -> None:
        self.device, self.module = device, module
        self.bytes: int | None = None
        self.how = ""
        self._before = 0

    def __enter__(self) -> Self:
        if self.device == "cuda":
            self._enter_cuda()
        elif os.path.exists("/proc/self/clear_refs"):
            # This resets the peak of resident memory; no sampling is needed.
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
            self._before = _status("VmRSS")
            self.how = "peak of resident memory"
        return self

    def __exit__(self, *exception: object) -> None:
        if self.device == "cuda":
            self._exit_cuda()
        elif self.how:
            self.bytes = _status("VmHWM") - self._before

    def _enter_cuda(self) -> None:
        if self.module == "pytorch":
            import torch

            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            self.how = "peak of PyTorch's allocator"
        elif self.module == "ours":
            import cupy

            self._pool = cupy.get_default_memory_pool()
            self._before = self._pool.used_bytes()
            self._sampler = _Sampler(self._pool)
            self.how = "highest of the memory pool's samples"

    def _exit_cuda(self) -> None:
        if self.module == "pytorch":
            import torch

            self.bytes = torch.cuda.max_memory_allocated() - self._before
        elif self.module == "ours":
            self.bytes = self._sampler.stop() - self._before


class _Sampler:
    """A thread that samples CuPy's pool, which keeps no peak, as often as it can."""

    def __init__(self, pool: Any) -> None:
        self.pool, self.highest, self.running = pool, pool.used_bytes(), True
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while self.running:
            self.highest = max(self.highest, self.pool.used_bytes())
            time.sleep(2e-5)

    def stop(self) -> int:
        self.running = False
        self.thread.join()
        return self.highest


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no line {name}")
