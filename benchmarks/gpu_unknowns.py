"""Measure on a CUDA device what the cost model of notes.md takes for granted; prints one line for
each number.

python benchmarks/gpu_unknowns.py
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.decisions import ACTIONS, OBSERVATIONS, make_policy
from benchmarks.machine import MIB, description
from benchmarks.plain_eager import PlainEager

STATES, CANDIDATES = 1, 32
NODES = 1000  # of the graph that gives the cost of one
READ = 4 * MIB  # bytes of the array that is read from the second-level cache
REPEATS = 64  # readings of it in one kernel


def milliseconds(call: Callable[[], object], rounds: int = 30) -> float:
    """The median of the device's own clock, after three calls that do not count."""
    found = []
    for index in range(rounds + 3):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        if index >= 3:
            found.append(start.elapsed_time(stop))
    return statistics.median(found)


def baseline() -> float:
    """One decision of the plain sampler, with its transfers, in ms."""
    plain = PlainEager(make_policy("published", "2S-15", CANDIDATES, "cuda"))
    observations, noise = (
        torch.randn(STATES, OBSERVATIONS),
        torch.randn(STATES, CANDIDATES, ACTIONS),
    )
    return milliseconds(lambda: plain(observations, noise).cpu())


def node() -> float:
    """One tiny kernel among many in a graph, each waiting for the one before, in microseconds."""
    x = torch.zeros(CANDIDATES, device="cuda")
    x.add_(1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(NODES):
            x.add_(1)
    return 1e3 * milliseconds(graph.replay) / NODES


def launch() -> float:
    """The same kernel launched one by one, in microseconds."""
    x = torch.zeros(CANDIDATES, device="cuda")

    def call() -> None:
        for _ in range(NODES):
            x.add_(1)

    return 1e3 * milliseconds(call) / NODES


SOURCE = """
extern "C" __global__ void read(const float4* data, float* out, int count, int repeats) {
    // Every block reads the whole array, beginning at a place of its own; count is a power of two.
    float sum = 0;
    int first = (count / gridDim.x) * blockIdx.x;
    for (int r = 0; r < repeats; ++r)
        for (int i = threadIdx.x; i < count; i += blockDim.x) {
            float4 v = __ldcg(&data[(i + first) & (count - 1)]);
            sum += v.x + v.y + v.z + v.w;
        }
    if (sum == 12345.f) out[0] = sum;
}
"""


CLUSTER = """
extern "C" __global__ void __cluster_dims__(SIZE, 1, 1) meet(float* out, int repeats, int exchange) {
    // Blocks of a cluster wait for each other again and again; with exchange each hands 4 KiB to the next one's shared memory in between.
    __shared__ float box[1024];
    unsigned rank, there, here = (unsigned)__cvta_generic_to_shared(&box[threadIdx.x]);
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"((rank + 1) % SIZE));
    float value = threadIdx.x;
    box[threadIdx.x] = value;
    for (int r = 0; r < repeats; ++r) {
        if (exchange) asm volatile("st.shared::cluster.f32 [%0], %1;" :: "r"(there), "f"(value) : "memory");
        asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
        asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
        if (exchange) {
            value = box[threadIdx.x] + 1;
            asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
            asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
        }
    }
    if (value == -1.f) out[0] = value;
}
"""
CLUSTERS = (8, 16)  # blocks; more than 8 are an exception that a kernel asks for
MEETINGS = 1000
LARGE_CLUSTER_ALLOWED = 13  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED


def cluster(size: int, exchange: bool) -> float:
    """One barrier of a cluster of so many blocks of 1024 threads, in microseconds; with
    exchange: two, and 4 KiB from block to block between them.
    """
    kernel = torch.cuda._compile_kernel(CLUSTER.replace("SIZE", str(size)), "meet")
    if size > 8 and ctypes.CDLL("libcuda.so.1").cuFuncSetAttribute(
        kernel.func, LARGE_CLUSTER_ALLOWED, 1
    ):
        return float("nan")
    out = torch.zeros(1, device="cuda")
    return (
        1e3
        * milliseconds(lambda: kernel((size, 1, 1), (1024, 1, 1), [out, MEETINGS, int(exchange)]))
        / MEETINGS
    )


def cache_bandwidth(blocks: int) -> float:
    """GB/s that each of so many multiprocessors pulls out of the second-level cache."""
    kernel = torch.cuda._compile_kernel(SOURCE, "read")
    data, out = torch.ones(READ // 4, device="cuda"), torch.zeros(1, device="cuda")
    arguments = [data, out, READ // 16, REPEATS]
    took = milliseconds(lambda: kernel((blocks, 1, 1), (1024, 1, 1), arguments))
    return READ * REPEATS / took / 1e6


def numbers() -> Iterator[tuple[str, float, str]]:
    """Name, number, unit."""
    # PyTorch asks for one before it compiles a kernel; these include nothing.
    os.environ.setdefault("CUDA_HOME", sys.prefix)
    count = torch.cuda.get_device_properties(0).multi_processor_count
    yield f"plain sampler, {STATES} state x {CANDIDATES} candidates", baseline(), "ms"
    yield "one node of a graph", node(), "us"
    yield "one launch of a kernel", launch(), "us"
    if hasattr(torch.cuda, "_compile_kernel"):  # of recent releases of PyTorch
        yield "second-level cache to 1 multiprocessor", cache_bandwidth(1), "GB/s"
        yield (
            f"second-level cache to each of {count} multiprocessors at once",
            cache_bandwidth(count),
            "GB/s",
        )
        for size in CLUSTERS:
            yield f"barrier of {size} blocks", cluster(size, False), "us"
            yield f"exchange between {size} blocks, two barriers", cluster(size, True), "us"


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    if not torch.cuda.is_available():
        print(
            "error: needs a CUDA device, and PyTorch finds none: it takes an NVIDIA GPU and "
            "the CUDA build of PyTorch",
            file=sys.stderr,
        )
        return 1
    print(", ".join(f"{name} {value}" for name, value in description("cuda").items()))
    for name, number, unit in numbers():
        print(f"{name}: {number:.3g} {unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
