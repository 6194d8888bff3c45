"""Facts about the machine for results, without names of hosts or users; and CPU time."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from typing import Any

from benchmarks.peers import ROOT


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Describe processor, cores, memory and system."""
    found: dict[str, Any] = {"cores": cores(), "system": platform.system(), "architecture": platform.machine()}
    try:
        with open("/proc/cpuinfo") as file:
            text = file.read()
        model = re.search(r"^model name\s*:\s*(.*)$", text, re.M)
        flags = re.search(r"^flags\s*:\s*(.*)$", text, re.M)
        with open("/proc/meminfo") as file:
            memory = int(file.readline().split()[1])
    except (OSError, ValueError):
        found["processor"] = platform.processor()
        return found
    names = flags.group(1).split() if flags else []
    vectors = next((name for name in ("avx512f", "avx2", "avx", "sse2") if name in names), "none")
    found.update(processor=model.group(1) if model else "", vectors=vectors, memory_gib=round(memory / 2**20))
    return found


def commit() -> str:
    """Return the commit of the working tree, with "+" if xpnet/ or kernels/ differ from it; "" outside a repository."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", "xpnet", "kernels"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


_TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def busy_seconds() -> float:
    """Return the CPU time that the whole machine has used; 0 if the system does not report it."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _idle, _wait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + softirq + steal) / _TICK


def seconds_of(process: int) -> float:
    """Return the CPU time that a process has used; 0 if it has ended or the system does not report it."""
    try:
        with open(f"/proc/{process}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICK
