"""Time and peak memory of a sweep over 1, 5 and 23 checkpoints of Grokking, each in a process of its own.

    python benchmarks/sweep.py [--counts 1 5 23]

Needs the trained checkpoints (configs/Train_Algorithmic_Models/Grokking/a2_b.yaml). Circuits are searched for a tenth
of the epochs, which leaves what a sweep is about, loading, caching and measuring, the larger part.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

from interp.runs.config import CONFIGS, PROJECT_ROOT, read_yaml

SWEEPS = {  # script and config: what is set besides
    ("circuit_probing.py", "Grokking/circuit_probing/a2.yaml"): ["num_epochs=9", "save_models=false"],
    ("probing.py", "Grokking/linear_probing/a2.yaml"): [],
}


def run_sweep(script: str, config: str, settings: list[str], checkpoints: list[int]) -> tuple[float, float]:
    """Seconds of a sweep's process, and its peak memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(PROJECT_ROOT / script), "--config", str(CONFIGS / config), "--set", *settings,
                   f"checkpoint_list={checkpoints}", f"results_dir={folder}/run"]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)  # this child's own peak, not that of all children
        if status:
            sys.exit(f"{script} failed")
        return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 5, 23])
    counts = parser.parse_args().counts
    print("| sweep | checkpoints | seconds | seconds for each one more | peak MiB |\n|---|---|---|---|---|")
    for (script, config), settings in SWEEPS.items():
        checkpoints, first = read_yaml(CONFIGS / config)["checkpoint_list"], None
        for count in counts:
            seconds, memory = run_sweep(script, config, settings, checkpoints[:count])
            first = first or (count, seconds)
            beyond = f"{(seconds - first[1]) / (count - first[0]):.1f}" if count > first[0] else ""
            print(f"| {config.removesuffix('.yaml')} | {count} | {seconds:.1f} | {beyond} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
