"""On what a number was made: processor, cores, threads, and versions of packages. Nothing here
names a user or a host.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")
MEMORY_INFO, OWN_MEMORY = Path("/proc/meminfo"), Path("/proc/self/status")
# of the control group that a container runs in: its limit, and what it uses
GROUP_LIMIT, GROUP_USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def processor() -> str:
    """The name of the processor, with its family and model where the system gives them: one name
    may stand for several generations.
    """
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    pairs = [line.partition(":") for line in lines]
    # reversed, so that the first processor is kept
    fields = {key.strip(): value.strip() for key, _, value in reversed(pairs)}
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    if "cpu family" not in fields:
        return fields["model name"]
    return f"{fields['model name']}, family {fields['cpu family']} model {fields['model']}"


def cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_available() -> int | None:
    """Bytes that new processes may take without swapping; None where the system does not say."""
    free = _kilobytes(MEMORY_INFO, "MemAvailable")
    try:
        of_group = int(GROUP_LIMIT.read_text()) - int(GROUP_USED.read_text())
    except (OSError, ValueError):  # no control group, or "max": no limit
        return free
    return of_group if free is None else min(free, of_group)


def peak_memory() -> int | None:
    """The most bytes that this process held so far; None where the system does not say."""
    return _kilobytes(OWN_MEMORY, "VmHWM")


def _kilobytes(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(found[0]) if found else None


def device_name(device: torch.device | str) -> str:
    """The name of what computes."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
