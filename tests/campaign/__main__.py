"""python -m campaign: random trials of every kind, one report. Started again, it goes on with what is missing."""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

COUNTS = {"kills": 300, "configs": 2000, "files": 500, "disk": 60, "at_once": 60}
PATIENCE = 1800  # seconds for a trial: three kills with three starts on a busy machine
MEMORY = 16 * 2**30  # bytes of addresses for a trial: what a fuzzed config asks for shall not fill the machine


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="campaign", description=__doc__, allow_abbrev=False)
    parser.add_argument("--kind", nargs="+", choices=COUNTS, default=list(COUNTS), help="which kinds of trials")
    parser.add_argument("--count", nargs="+", default=[], metavar="KIND=N", help="how many of a kind; by default "
                        + ", ".join(f"{kind}={count}" for kind, count in COUNTS.items()))
    parser.add_argument("--only", nargs="+", metavar="KIND:NUMBER", help="these trials, though they were made")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="begin no trial after so many")
    parser.add_argument("--out", type=Path, default=Path("Results/campaign"),
                        help="the folder of trials.jsonl, report.md and what failed trials left")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # after cleaning up
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    known = read_records(out / "trials.jsonl", options.seed)
    counts = COUNTS | {kind: int(count) for kind, count in (text.split("=") for text in options.count)}
    asked = [(kind, int(number)) for kind, number in (trial.split(":") for trial in options.only or ())] or [
        (kind, number) for kind in options.kind for number in range(counts[kind]) if (kind, number) not in known]
    if asked:
        make_trials(asked, options, out, known)
    text = report(known, options.seed)
    (out / "report.md").write_text(text)
    print(text, end="")
    return int(any(record["outcome"] == "failed" for record in known.values()))


def make_trials(asked: list[tuple[str, int]], options: argparse.Namespace, out: Path, known: dict) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    from campaign import damage, processes  # after what torch is to find in the environment
    from campaign.bench import make_bench
    works = {kind: getattr(module, kind) for module in (damage, processes) for kind in COUNTS if hasattr(module, kind)}
    end = time.monotonic() + 60 * (options.minutes or 1e9)
    with tempfile.TemporaryDirectory(prefix="campaign") as folder:
        bench = in_a_process(make_bench, Path(folder))
        for place, (kind, number) in enumerate(asked, 1):
            if time.monotonic() > end:
                break
            own = Path(folder) / f"{kind}-{number}"
            record = in_a_process(attempt, works[kind], bench, options.seed, kind, number, own)
            known[kind, number] = record
            with open(out / "trials.jsonl", "a") as file:
                file.write(json.dumps(record, ensure_ascii=True) + "\n")
            if record["outcome"] == "failed":
                shutil.rmtree(out / own.name, ignore_errors=True)
                shutil.copytree(own, out / own.name, symlinks=True)
                print(f"{place} of {len(asked)}: {kind}:{number} failed: {record['what']}: {record['why']}", flush=True)
            elif place % 25 == 0:
                print(f"{place} of {len(asked)}", flush=True)
            shutil.rmtree(own, ignore_errors=True)


def in_a_process(work, *values):
    """What a function returns in a process of its own, which may die, hang or ask for more memory than there is."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        sender.send(work(*values))

    process = context.Process(target=child)
    process.start()
    sender.close()
    result, in_time = None, False
    try:
        in_time = receiver.poll(PATIENCE)
        result = receiver.recv() if in_time else None
    except EOFError:
        pass
    finally:
        if result is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.join()
    if result is not None:
        return result
    if work is not attempt:
        sys.exit("the undisturbed project could not be made")
    _, _, seed, kind, number, _ = values
    why = f"the process ended with {process.exitcode}" if in_time else f"it did not end in {PATIENCE} s"
    return record_of(seed, kind, number, "", "failed", why, PATIENCE)


def attempt(work, bench, seed: int, kind: str, number: int, folder: Path) -> dict:
    """One trial, which is determined by its seed, kind and number."""
    import torch

    from campaign.bench import CODE, Failed, Skipped, Trial, snapshot
    torch.set_num_threads(1)
    trial = Trial(bench, random.Random(f"{seed} {kind} {number}"), folder)
    folder.mkdir()
    start, outcome, why = time.monotonic(), "survived", ""
    before = snapshot(bench.project), sorted(os.listdir(CODE)), sorted(os.listdir(folder.parent))
    try:
        work(trial)
        if (snapshot(bench.project), sorted(os.listdir(CODE)), sorted(os.listdir(folder.parent))) != before:
            raise Failed("something was written outside of the trial's folder")
    except Skipped as error:
        outcome, why = "skipped", str(error)
    except Failed as error:
        outcome, why = "failed", str(error)
    except Exception:  # of the campaign itself
        outcome, why = "failed", traceback.format_exc()
    return record_of(seed, kind, number, trial.what, outcome, why, time.monotonic() - start, trial.told)


def record_of(seed: int, kind: str, number: int, what: str, outcome: str, why: str, seconds: float,
              told: str = "") -> dict:
    return {"seed": seed, "kind": kind, "number": number, "outcome": outcome, "what": what, "told": told,
            "why": why, "seconds": round(seconds, 2)}


def read_records(file: Path, seed: int) -> dict[tuple[str, int], dict]:
    """The trials that were made, the last of each; a line that a kill cut is none."""
    known = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["seed"] == seed:
            known[record["kind"], record["number"]] = record
    return known


def report(known: dict[tuple[str, int], dict], seed: int) -> str:
    counts = Counter((record["kind"], record["outcome"]) for record in known.values())
    lines = [f"# Campaign, seed {seed}", "", "| kind | wanted | tried | survived | failed | skipped |",
             "|---|---|---|---|---|---|"]
    for kind, wanted in COUNTS.items():
        own = [counts[kind, outcome] for outcome in ("survived", "failed", "skipped")]
        lines.append(f"| {kind} | {wanted} | {sum(own)} | {own[0]} | {own[1]} | {own[2]} |")
    lines += ["", "Not tried: another number in place of a number in a cell of a run's tables."]
    for record in known.values():
        if record["outcome"] == "failed":
            name = f"{record['kind']}:{record['number']}"
            lines += ["", f"## {name}", "", record["what"], "", "```", record["why"], "```", "",
                      f"`make campaign SEED={seed} ONLY={name}`"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
