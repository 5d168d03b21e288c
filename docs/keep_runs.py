"""Keep the tables and records of complete runs in docs/runs, so that the values in these pages can be looked up.

    python docs/keep_runs.py [--results Results] [RUN ...]

RUN: folders below Results, such as SV_Agreement/smollm2 or Grokking, with all runs in them; default: all. Of each,
config.yaml, run.json, results.csv and its other tables are copied; large tables, which it names, models, circuits,
figures and single answers are not. If a run is not complete, or another than the one that is kept under its name,
nothing is copied.
"""

import argparse
from pathlib import Path

from analysis.method_figures import RESULTS, run
from analysis.report_runs import Problems, Run, find_runs
from interp.runs.config import BadInput, read_yaml, shown
from interp.runs.files import write_text
from interp.runs.store import CONFIG, RECORD

KEPT = Path(__file__).with_name("runs")
BYTES_AT_MOST = 500_000  # of a table beside results.csv; larger ones hold single pairs or sentences


def chosen(results: Path, names: list[str]) -> list[Run]:
    """The runs in some folders.

    Raises:
        BadInput: there is none, or one cannot be kept.
    """
    problems = Problems()
    runs = [own for own in find_runs(results, problems)
            if not names or any(f"{own.name}/".startswith(f"{name.rstrip('/')}/") for name in names)]
    if of_these := [problem for problem in problems if any(problem.startswith(own.name) for own in runs)]:
        raise BadInput(of_these[0])
    if not runs:
        raise BadInput(f"{shown(results)}: there is no run{' in ' * bool(names)}{', '.join(names)}.")
    for own in runs:
        config, kept = results / own.name / CONFIG, KEPT / own.name / CONFIG
        if own.unfinished or own.status != "done":
            raise BadInput(f"{own.name}: this run is not complete ({own.unfinished or own.status}).")
        if not config.exists():
            raise BadInput(f"{own.name}: this run has no {CONFIG}.")
        if kept.exists() and read_yaml(kept) != read_yaml(config):
            raise BadInput(f"{own.name}: {shown(kept.parent)} is of another config; move it away first.")
    return runs


def keep(results: Path, name: str) -> int:
    """Copy a run's text; returns how many files that were, and says which tables were too large."""
    source, own = results / name, (CONFIG, RECORD, "results.csv")
    others = sorted(file for file in source.glob("*.csv") if file.name not in own)
    large = [file for file in others if file.stat().st_size > BYTES_AT_MOST]
    for file in large:
        print(f"left out, more than {BYTES_AT_MOST / 1e6} MB: {shown(file)}")
    copied = [*(source / file for file in own), *(file for file in others if file not in large)]
    for file in copied:
        write_text(KEPT / name / file.name, file.read_text(encoding="utf-8"))
    return len(copied)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="RUN", help="folders below the results; default: all")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of results")
    options = parser.parse_args()
    results = options.results.absolute()
    if not results.is_dir():
        raise BadInput(f"--results {options.results}: there is no such folder.")
    runs = chosen(results, options.names)
    files = sum(keep(results, own.name) for own in runs)
    print(f"{shown(KEPT)}: {len(runs)} runs, {files} files.")


if __name__ == "__main__":
    run("keep_runs", main)
