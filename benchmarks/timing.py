"""Time several ways of the same step in turn, and say how they compare with the reference.

Each way runs in a process of its own for its peak memory; times are medians, alternating, in one process.
"""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Step = Callable[[], object]


def compare(title: str, build: Callable[[str], Step], ways: Sequence[str], rounds: int,
            units: Mapping[str, int] | None = None, unit: str = "step", in_a_row: int = 1) -> None:
    """Print the time of a step each way, how often it goes into the reference's, and the peak memory.

    build(way) returns the step; it must be importable, for the fresh processes.
    ways: the reference is the last.
    units: how many units (examples, say) a step of a way does, if not one; times are for one.
    in_a_row: steps taken before the other way's turn, as in real use, where short steps find their data in cache.
    """
    steps, each = {way: build(way) for way in ways}, {way: in_a_row * (units or {}).get(way, 1) for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for step in steps.values():
        step()  # warm up
    for _ in range(rounds):
        for way, step in steps.items():
            start = time.perf_counter()
            for _ in range(in_a_row):
                step()
            seconds[way].append((time.perf_counter() - start) / each[way])
    print(title)
    for way in ways:
        ratios = [reference / optimized for optimized, reference in zip(seconds[way], seconds[ways[-1]])]
        print(f"  {way:<36} {1000 * statistics.median(seconds[way]):9.3f} ms per {unit}, peak memory "
              f"{alone(peak_memory, build, way):6.0f} MiB" + (
                  f", {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
                  if way != ways[-1] else ""), flush=True)


def alone(function, *arguments):
    """Called in a process of its own, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(function, arguments)


def peak_memory(build: Callable[[str], Step], way: str) -> float:
    """MiB, of a process that builds one step and takes it three times."""
    step = build(way)
    for _ in range(3):
        step()
    return own_peak_memory()


def own_peak_memory() -> float:
    """MiB that this process had at most."""
    try:  # Linux: the process's own peak; getrusage would count its parent's as well
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def largest_difference(build: Callable[[str], Step], ways: Sequence[str], steps: int) -> str:
    """Of the losses of the first steps, relative to those of the reference, the last way."""
    built = [build(way) for way in ways]
    losses = [[step() for step in built] for _ in range(steps)]
    most = max(abs(other / reference - 1) for *others, reference in losses for other in others)
    return f"  largest difference of the losses of the first {steps} steps, relative: {most:.1e}"
