"""python -m campaign: random trials of every kind; what fails is printed with the command that repeats it."""

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

COUNTS = {"kills": 60, "configs": 300, "files": 100}
PATIENCE = 1800  # seconds for a trial: three kills with three starts on a busy machine
MEMORY = 16 * 2**30  # bytes of addresses for a trial: what a fuzzed config asks for shall not fill the machine


def main() -> int:
    parser = argparse.ArgumentParser(prog="campaign", description=__doc__, allow_abbrev=False)
    parser.add_argument("--kind", nargs="+", choices=COUNTS, default=list(COUNTS), help="which kinds of trials")
    parser.add_argument("--count", nargs="+", default=[], metavar="KIND=N", help="how many of a kind; by default "
                        + ", ".join(f"{kind}={count}" for kind, count in COUNTS.items()))
    parser.add_argument("--only", nargs="+", metavar="KIND:NUMBER", help="these trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("Results/campaign"), help="where trials.jsonl is written")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    from campaign.bench import make_bench  # after what torch is to find in the environment
    counts = COUNTS | {kind: int(count) for kind, count in (text.split("=") for text in options.count)}
    trials = [(kind, int(number)) for kind, number in (trial.split(":") for trial in options.only or ())] or [
        (kind, number) for kind in options.kind for number in range(counts[kind])]
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="campaign") as folder:
        bench = in_a_process(make_bench, Path(folder))
        for kind, number in trials:
            record = in_a_process(attempt, bench, options.seed, kind, number, Path(folder) / "trial")
            with open(options.out / "trials.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")
            if record["why"]:
                failed += 1
                print(f"{kind}:{number} failed: {record['what']}: {record['why']}\n"
                      f"    make campaign SEED={options.seed} ONLY={kind}:{number}", flush=True)
            shutil.rmtree(Path(folder) / "trial", ignore_errors=True)
    print(f"{len(trials)} trials, {failed} failed.")
    return int(failed > 0)


def in_a_process(work, *values):
    """What a function returns in a process of its own, which may ask for more memory than there is, or hang."""
    limit = resource.RLIMIT_AS, (MEMORY, MEMORY)
    with multiprocessing.get_context("fork").Pool(1, resource.setrlimit, limit) as pool:
        return pool.apply_async(work, values).get(PATIENCE)


def attempt(bench, seed: int, kind: str, number: int, folder: Path) -> dict:
    """One trial: what was done, how the last run ended, and why it failed, if it did."""
    import torch

    from campaign import trials
    from campaign.bench import CODE, Trial
    from conftest import modified
    torch.set_num_threads(1)
    trial = Trial(bench, random.Random(f"{seed} {kind} {number}"), folder)
    start, why = time.monotonic(), ""
    before = modified(bench.project), sorted(os.listdir(CODE))
    try:
        getattr(trials, kind)(trial)
        assert (modified(bench.project), sorted(os.listdir(CODE))) == before, "something was written elsewhere"
    except AssertionError as error:
        why = str(error)
    return {"seed": seed, "kind": kind, "number": number, "what": trial.what, "ended": trial.ended, "why": why,
            "seconds": round(time.monotonic() - start, 2)}


if __name__ == "__main__":
    sys.exit(main())
