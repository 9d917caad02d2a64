"""What the machine of a measurement is, and what it could do at best."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from ddice.core.machine import device_name, versions
from ddice.policies.engines.products import Products

PACKAGES = ("ddice", "torch", "numpy", "onnxruntime", "triton")
MATMUL = {
    "cpu": 1024,
    "cuda": 8192,
}  # side of the square matrices whose product gives the rate of multiply-adds
READS = {"cpu": 1, "cuda": 100}  # of the same bytes, for each time that the device is waited for
MIB = 2**20


def description(device: str) -> dict[str, str]:
    """Processor, device, threads and versions."""
    return {
        "device": device,
        "machine": device_name(device),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **versions(PACKAGES),
    }


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
def flops_per_second(device: str, dtype: str = "float32") -> float:
    """The rate of a large matrix product in "float32", "tf32" or "float16", by the fastest
    kernel of PyTorch.
    """
    side = MATMUL[device]
    a, b = (
        torch.randn(
            side, side, device=device, dtype=torch.float16 if dtype == "float16" else torch.float32
        )
        for _ in range(2)
    )
    product, before = Products().make(b, side), torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    try:
        return 2 * side**3 / median_seconds(synchronized(lambda: product(a, None), device), 9)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@cache
def bytes_per_second(device: str, size: int) -> float:
    """The rate at which `size` bytes are read again and again, from whatever cache holds them."""
    x, reads = torch.randn(size // 4, device=device), READS[device]

    def read() -> None:
        for _ in range(reads):
            x.sum()

    return reads * size / median_seconds(synchronized(read, device), 21)


def peak_memory(call: Callable[[], object], device: str) -> float | None:
    """MiB that a call takes at its peak beyond what was there before; None where the system does
    not tell.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()  # recordings keep memory that nothing is allocated in
        synchronized(call, device)()
        return (torch.cuda.max_memory_reserved() - before) / MIB
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        reset.write_text("5")  # the high-water mark of resident memory starts again from now
    except OSError:
        return None

    def kilobytes(field: str) -> int:
        return next(
            int(line.split()[1])
            for line in status.read_text().splitlines()
            if line.startswith(field)
        )

    before_kb = kilobytes("VmRSS")
    call()
    return (kilobytes("VmHWM") - before_kb) / 1024
