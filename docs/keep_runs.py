"""Keep the tables of complete runs in docs/tables, from which make_tables.py writes the tables of the pages.

    python docs/keep_runs.py RUN [RUN ...] [--results Results]
    python docs/keep_runs.py --unpack DIR

RUN, a run directory below Results such as SV_Agreement/smollm2, is added or replaced: its results.csv in EXPERIMENT.csv
with the column `run`, its config and record in EXPERIMENT.json, and a table that a page needs in EXPERIMENT_TABLE.csv.
--unpack writes all kept runs as run directories, which the scripts of analysis/ can read.
"""

import argparse
import json
import re
from math import prod
from pathlib import Path

import pandas as pd
import yaml

from interp.runs.config import PROJECT_ROOT, BadInput, read_yaml
from interp.runs.files import write_text

TABLES = Path(__file__).with_name("tables")
EXPERIMENTS = {"Disambiguation": "experiment_1", "Shared_Nodes": "experiment_2", "Grokking": "experiment_3",
               "SV_Agreement": "experiment_4", "Reflexives": "experiment_4", "Syntactic_Number": "experiment_4",
               "Comparison": "comparison", "Positions": "positions"}  # by the first folder of a run
OTHER_TABLES = {"experiment_1": ["curves"], "experiment_3": ["curves"], "experiment_4": ["ablations"]}


def read(file: Path) -> pd.DataFrame:
    """A table with its cells as text, so that no digit changes."""
    return pd.read_csv(file, dtype=str, keep_default_na=False)


def experiment_of(run: str) -> str:
    folder = re.split("[/-]", run.removeprefix("Train_Algorithmic_Models/"))[0]
    if folder not in EXPERIMENTS:
        raise BadInput(f"{run}: runs of {', '.join(EXPERIMENTS)} are kept, not of {folder}.")
    return EXPERIMENTS[folder]


def file_of(experiment: str, table: str) -> Path:
    return TABLES / (f"{experiment}.csv" if table == "results" else f"{experiment}_{table}.csv")


def keep(results: Path, run: str) -> None:
    """Add a run to the tables of its experiment, or replace it there.

    Raises:
        BadInput: it is not complete, or of no experiment.
    """
    experiment, config = experiment_of(run), read_yaml(results / run / "config.yaml")
    lists = {key.removesuffix("_list"): values for key, values in config.items()
             if key.endswith("_list") and values and key != "rank_rule_list"}  # which not all methods have
    settings = prod(map(len, lists.values()))
    if (rows := len(read(results / run / "results.csv").drop_duplicates([*lists]))) != settings:
        raise BadInput(f"{run}: this run is not complete; it has {rows} of {settings} settings.")
    for name in ["results", *OTHER_TABLES.get(experiment, [])]:
        if (file := results / run / f"{name}.csv").exists():
            kept, table = file_of(experiment, name), read(file)
            table.insert(0, "run", run)
            if kept.exists():
                others = read(kept)
                table = pd.concat([others[others["run"] != run], table]).sort_values("run", kind="stable").fillna("")
            write_text(kept, table.to_csv(index=False))
    kept = TABLES / f"{experiment}.json"
    records = json.loads(kept.read_text()) if kept.exists() else {}
    records[run] = json.loads((results / run / "run.json").read_text()) | {"config": config}  # in place of its digest
    lines = [f"{json.dumps(name)}: {json.dumps(record)}" for name, record in sorted(records.items())]  # a run a line
    write_text(kept, "{\n" + ",\n".join(lines) + "\n}\n")


def unpack(folder: Path) -> None:
    """Write the kept runs as run directories; columns that no row of a run fills are left out."""
    for experiment in sorted(set(EXPERIMENTS.values())):
        for run, record in json.loads((TABLES / f"{experiment}.json").read_text()).items():
            write_text(folder / run / "config.yaml", yaml.safe_dump(record.pop("config"), sort_keys=False))
            write_text(folder / run / "run.json", json.dumps(record, indent=1))
        for name in ["results", *OTHER_TABLES.get(experiment, [])]:
            for run, rows in read(file_of(experiment, name)).groupby("run"):
                filled = rows.loc[:, (rows != "").any() | (experiment == "comparison")]  # whose columns are all alike
                write_text(folder / run / f"{name}.csv", filled.drop(columns="run").to_csv(index=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run directories, relative to the folder of results")
    parser.add_argument("--results", type=Path, default=PROJECT_ROOT / "Results", help="the folder of results")
    parser.add_argument("--unpack", type=Path, metavar="DIR", help="write the kept runs as run directories there")
    options = parser.parse_args()
    try:
        for run in options.runs:
            keep(options.results, run.rstrip("/"))
    except BadInput as error:
        parser.error(str(error))
    if options.unpack:
        unpack(options.unpack)


if __name__ == "__main__":
    main()
