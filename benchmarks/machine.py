"""What the machine of a measurement is, and what it could do at best."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("ddice", "torch", "numpy", "onnxruntime", "triton")
MATMUL = 1024  # side of the square matrices whose product gives the rate of multiply-adds
MIB = 2**20


def processor() -> str:
    """The name of the processor, as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine())


def description(device: str) -> dict[str, str]:
    """Processor, device, threads and versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {"device": device, "machine": name, "threads": str(torch.get_num_threads()), "python": platform.python_version(), **versions}


def synchronized(call: Callable[[], object], device: str) -> Callable[[], None]:
    """`call`, and nothing of it left running on the device."""

    def run() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def median_seconds(call: Callable[[], object], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


@cache
def flops_per_second(device: str) -> float:
    """The rate of a large float32 matrix product."""
    a, b = (torch.randn(MATMUL, MATMUL, device=device) for _ in range(2))
    return 2 * MATMUL**3 / median_seconds(synchronized(lambda: a @ b, device), 9)


@cache
def bytes_per_second(device: str, size: int) -> float:
    """The rate at which `size` bytes are read again and again, from whatever cache holds them."""
    x = torch.randn(size // 4, device=device)
    return size / median_seconds(synchronized(lambda: torch.dot(x, x), device), 21)


def peak_memory(call: Callable[[], object], device: str) -> float | None:
    """MiB that a call takes at its peak beyond what was there before; None where the system does not tell."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        synchronized(call, device)()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        reset.write_text("5")  # the high-water mark of resident memory starts again from now
    except OSError:
        return None

    def kilobytes(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    before_kb = kilobytes("VmRSS")
    call()
    return (kilobytes("VmHWM") - before_kb) / 1024
