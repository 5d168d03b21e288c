"""Time two ways of the same step in turn, and say how they compare.

Each way runs in a process of its own for its peak memory; times are medians, alternating, in one process.
"""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

Step = Callable[[], object]


def compare(title: str, build: Callable[[str], Step], fast: str, plain: str, rounds: int,
            sizes: tuple[int, int] = (1, 1), unit: str = "step", in_a_row: int = 1) -> None:
    """Print both times of a step, their ratio, and the peak memory of a process that does only one of them.

    build(name) returns the step called that; it must be importable, for the fresh processes.
    sizes: how many units (examples, say) a fast and a plain step do; times are for one.
    in_a_row: steps taken before the other way's turn, as in real use, where short steps find their data in cache.
    """
    units = dict(zip((fast, plain), sizes))
    steps = {name: build(name) for name in (fast, plain)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for name in steps:
        steps[name]()  # warm up
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(in_a_row):
                step()
            seconds[name].append((time.perf_counter() - start) / units[name] / in_a_row)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(peak_memory, (build, name)) for name in steps}
    print(title)
    for name in steps:
        print(f"  {name:<32} {1000 * statistics.median(seconds[name]):9.3f} ms per {unit}, "
              f"peak memory {memory[name]:7.0f} MiB")
    ratios = [slow / quick for quick, slow in zip(seconds[fast], seconds[plain])]
    print(f"  ratio, median of {rounds} pairs          {statistics.median(ratios):9.2f} "
          f"({min(ratios):.2f} to {max(ratios):.2f})")


def peak_memory(build: Callable[[str], Step], name: str) -> float:
    """MiB, of a process that builds one step and takes it three times."""
    step = build(name)
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
