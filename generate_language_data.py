"""Write the sentences of Experiment 4: agreement, reflexives, syntactic number.

    python generate_language_data.py --config configs/Language/sentences.yaml

A file holds every sentence of its patterns, or, where its name ends in _gen, some drawn from patterns
that nothing is trained on. Writes data_dir/FILE.csv and results.csv, a row for each file.
"""

from typing import Annotated

from pydantic import Field

from interp.runs.command_line import answer_early
from interp.runs.config import NonEmpty, ScriptConfig, Seed, Text, Whole
from interp.tasks.keys import SENTENCE_FILES, SentenceFile


class Config(ScriptConfig):
    file_list: NonEmpty[SentenceFile] = Field(list(SENTENCE_FILES), description="the files to write")
    gen_size: Annotated[Whole, Field(ge=2, multiple_of=2)] = Field(5000, description=(
        "rows of the _gen files; even, as a reflexive sentence has two genders"))
    data_seed: Seed = Field(0, description="of what is drawn")
    data_dir: Text = Field(description="where the files are written")


if __name__ == "__main__":  # before what follows loads torch, which takes seconds
    answer_early("generate_language_data", Config)

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from interp.experiment import Outcome, Script, main
from interp.runs.config import project_path
from interp.runs.files import check_data_files, write_missing
from interp.runs.settings import Setting
from interp.runs.store import RunDirectory
from interp.tasks.grammar import csv_text, make_table


def prepare(config: Config, settings: list[Setting], device: torch.device) -> dict[Path, pd.DataFrame]:
    """Make the tables in memory; refuse to replace a file that holds other data."""
    tables = {path_of(config, setting): make_table(setting.file, config.gen_size, config.data_seed)
              for setting in settings}
    check_data_files({file: csv_text(table) for file, table in tables.items()})
    return tables


def path_of(config: Config, setting: Setting) -> Path:
    return project_path(config.data_dir) / f"{setting.file}.csv"


def run(config: Config, settings: list[Setting], tables: dict[Path, pd.DataFrame]) -> Iterator[tuple[Setting, Outcome]]:
    """Write the files, and say what is in them."""
    for setting in settings:
        file = path_of(config, setting)
        table = tables[file]
        write_missing({file: csv_text(table)})
        yield setting, Outcome({
            "rows": len(table),
            "plural_share": table["labels"].mean(),
            "object_plural_share": table["object labels"].mean() if "object labels" in table else None,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        })


def finish(config: Config, tables: dict[Path, pd.DataFrame], run: RunDirectory) -> None:
    """Restore files that somebody deleted."""
    write_missing({file: csv_text(table) for file, table in tables.items()})


SCRIPT = Script("generate_language_data", Config, prepare, run, finish=finish)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
