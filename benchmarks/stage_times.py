"""Time and peak memory of every stage that the graph of experiments has run, as a Markdown table.

    python benchmarks/stage_times.py

Reads Results/times, which Snakemake writes; a stage that was killed and went on counts from its last start.
"""

import csv
import sys

from interp.runs.config import PROJECT_ROOT

TIMES = PROJECT_ROOT / "Results" / "times"


def main() -> None:
    if not (files := sorted(TIMES.rglob("*.tsv"))):
        sys.exit(f"{TIMES} is empty: 'make paper' fills it.")
    print("| stage | minutes | peak MiB |\n|---|---|---|")
    seconds, memory = 0.0, 0.0
    for file in files:
        with open(file, newline="") as table:
            [row] = csv.DictReader(table, delimiter="\t")
        peak = float(row["max_rss"]) if row["max_rss"] not in ("-", "NA") else 0.0
        print(f"| {file.relative_to(TIMES).with_suffix('')} | {float(row['s']) / 60:.1f} | {peak:.0f} |")
        seconds, memory = seconds + float(row["s"]), max(memory, peak)
    print(f"| all, one after the other | {seconds / 60:.1f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
