"""Write the sentences of Experiment 4 (agreement, reflexives, syntactic number), or those of templates.

    python generate_language_data.py --config configs/Language/sentences.yaml
    python generate_language_data.py --config configs/Language/tasks.yaml

A file holds every sentence of its patterns, or, where its name ends in _gen, some drawn from patterns
that nothing is trained on; a file of templates holds pairs that differ in one variable. Sentences have their parts
marked. Writes data_dir/FILE.csv and results.csv, a row for each file.
"""

from typing import Annotated

from pydantic import Field, model_validator

from interp.runs.command_line import answer_early
from interp.runs.config import BadInput, Count, DataFile, NonEmpty, ScriptConfig, Seed, Text, suggestion, there_are
from interp.tasks.keys import SENTENCE_FILES
from interp.tasks.marks import unmarked
from interp.tasks.templates import Task, make_rows, read_templates


class Config(ScriptConfig):
    file_list: NonEmpty[Text] = Field(list(SENTENCE_FILES), description=(
        "the files to write; with `templates` the tasks, all of them if left out"))
    templates: DataFile | None = Field(None, description=(
        "templates of sentences, in YAML or JSON, to write files of in place of Experiment 4's"))
    num_rows: Count = Field(2000, description="rows of each task of templates, fewer where the words give no more")
    mark: bool = Field(True, description="mark the parts of sentences, as in `the {subject:author}`")
    gen_size: Annotated[Count, Field(ge=2, multiple_of=2)] = Field(5000, description=(
        "rows of the _gen files; even, as a reflexive sentence has two genders"))
    data_seed: Seed = Field(0, description="of what is drawn")
    data_dir: Text = Field(description="where the files are written")

    @model_validator(mode="before")
    @classmethod
    def all_tasks(cls, values):
        templates = values.get("templates")
        return ({"file_list": list(read_templates(templates))} if templates and isinstance(templates, str) else {}
                ) | dict(values)

    @model_validator(mode="after")
    def known_files(self):
        known = read_templates(self.templates) if self.templates else SENTENCE_FILES
        for name in self.file_list:
            if name not in known:
                raise ValueError(f"file_list: {self.templates or 'Experiment 4'} has no '{name}'"
                                 f"{suggestion(name, known)}{there_are(known)}")
        without_effect = "gen_size" if self.templates else "num_rows"
        if getattr(self, without_effect) != type(self).model_fields[without_effect].default:
            raise ValueError(f"the key '{without_effect}' has no effect {'with' if self.templates else 'without'} "
                             "templates; leave it out")
        return self


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
    tasks = read_templates(config.templates) if config.templates else {}
    tables = {path_of(config, setting): table_of(config, setting.file, tasks) for setting in settings}
    check_data_files({file: csv_text(table) for file, table in tables.items()})
    return tables


def table_of(config: Config, name: str, tasks: dict[str, Task]) -> pd.DataFrame:
    if not tasks:
        return make_table(name, config.gen_size, config.data_seed, config.mark)
    rows = make_rows(name, tasks[name], config.num_rows, config.data_seed)
    if not rows:
        raise BadInput(f"templates: {config.templates}, task {name} gives no two different sentences with different "
                       "answers.")
    table = pd.DataFrame(rows)
    table.attrs["answer_prefix"] = " " * tasks[name].result_prepend_space
    return table if config.mark else table.assign(**{column: table[column].map(unmarked)
                                                     for column in ("sentence", "source")})


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
            "n_values": table["labels"].nunique(),
            "answer_prefix": table.attrs.get("answer_prefix", " "),
            "plural_share": None if config.templates else table["labels"].mean(),
            "object_plural_share": table["object labels"].mean() if "object labels" in table else None,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        })


def finish(config: Config, tables: dict[Path, pd.DataFrame], run: RunDirectory) -> None:
    """Restore files that somebody deleted."""
    write_missing({file: csv_text(table) for file, table in tables.items()})


SCRIPT = Script("generate_language_data", Config, prepare, run, finish=finish)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
