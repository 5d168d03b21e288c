"""One page of all results that there are: every run's headline table, figures, config and record.

    python analysis/report.py [--results DIR] [--out report.html] [--published results.csv]

Reads whatever lies in DIR (Results) and writes one HTML file (DIR/report.html) that needs no network and no other file.
A file that cannot be read is named in the page. --published takes the CSV of compare_with_published.py.
"""

import base64
import io
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from analysis.compare_with_published import is_apart, put_beside, read_published
from analysis.tables import RESULTS, count_settings, find_runs, parse, read_config, read_csv, run, swept
from interp.methods.table import PLACES
from interp.runs.config import BadInput, shown
from interp.runs.files import write_text

ROWS_AT_MOST = 500  # of one table; the file has the rest
HEADLINES = "(acc|label|iia|isolate|disentangle)$|_acc_"  # in the names of columns that tell the outcome


@dataclass
class Group:
    """A run, or what lies in an experiment's folder beside its runs. name: relative to the results."""

    name: str
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)  # by caption
    figures: dict[str, str] = field(default_factory=dict)  # data URIs, by file
    folded: dict[str, str] = field(default_factory=dict)  # the text of config and record
    unfinished: str = ""  # why a run is not finished


def read_run(results: Path, folder: Path, published: pd.DataFrame | None, problems: list[str]) -> Group:
    """A run directory; what of it cannot be read is added to the problems."""
    group = Group(folder.relative_to(results).as_posix(), unfinished="no results.csv that can be read")
    try:
        group.folded = {name: (folder / name).read_text(encoding="utf-8") for name in ("config.yaml", "run.json")
                        if (folder / name).is_file()}
        config, table = read_config(folder), read_csv(folder / "results.csv")
        group.tables["results.csv"] = headlines(table, [*swept(config)])
        done, wanted = count_settings(config, table)
        group.unfinished = f"{done} of {wanted} settings" if done < wanted else ""
        merged = pd.DataFrame() if published is None else put_beside(published[published["run"] == group.name], table)
        if len(merged):
            apart = is_apart(merged).map({True: "more than 0.05", False: ""})
            group.tables["ours beside the published values"] = merged.assign(apart=apart)[
                ["component", "checkpoint", "metric", "ours", "published", "difference", "apart"]]
    except (BadInput, OSError, ValueError, TypeError, LookupError) as error:  # all but the first two: foreign contents
        problems.append(f"{group.name}: {error}")
    return group


def headlines(table: pd.DataFrame, settings: list[str]) -> pd.DataFrame:
    """The settings that vary and the columns that tell the outcome; all columns where there are none of these."""
    found = [column for column in table if re.search(HEADLINES, column)]
    chosen = [name for name in table if name in PLACES or (name in settings and table[name].nunique() > 1)]
    return table[[*chosen, *found]] if found else table


def add_files(results: Path, groups: dict[str, Group], problems: list[str]) -> None:
    """Figures, and tables in a folder `figures`, go to the run, or else the experiment, in whose folder they lie."""
    for file in sorted([*results.rglob("*.png"), *results.rglob("figures/*.csv")]):
        name = file.relative_to(results).as_posix()
        above = [folder.relative_to(results).as_posix() for folder in file.parents if folder.is_relative_to(results)]
        owner = next((folder for folder in above if folder in groups), name.partition("/")[0])
        try:
            if ".old-" not in name and file.suffix == ".csv":
                groups.setdefault(owner, Group(owner)).tables[name] = read_csv(file)
            elif ".old-" not in name:
                groups.setdefault(owner, Group(owner)).figures[name] = data_uri(file)
        except (BadInput, OSError, SyntaxError) as error:  # PIL raises the last two where a file is no PNG
            problems.append(f"{name}: {error}")


def data_uri(file: Path) -> str:
    """A PNG in 256 colours: a third of the size, and hardly to be told from the file."""
    content = io.BytesIO()
    with Image.open(file) as image:
        image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def main() -> None:
    options = parse(__doc__, RESULTS, {
        "--published": {"type": Path, "help": "a CSV of published values, to stand beside ours"}}, out="report.html")
    results, out, problems = options.results, options.out, list[str]()
    if not results.is_dir() or out.is_dir():
        raise BadInput(f"--results {results}: there is no such folder, or --out is a folder.")
    published = read_published(options.published) if options.published else None
    runs = [read_run(results, folder, published, problems) for folder in find_runs(results)]
    groups = {group.name: group for group in runs}
    add_files(results, groups, problems)
    experiments: dict[str, list[Group]] = {}
    for name in sorted(groups):
        experiments.setdefault(name.partition("/")[0], []).append(groups[name])
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    page = environment.get_template("report.html.jinja").render(
        experiments=experiments, runs=runs, problems=problems, results=shown(results), most=ROWS_AT_MOST,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    write_text(out, page)
    print(f"{shown(out)}: {len(runs)} runs, {sum(bool(group.unfinished) for group in runs)} of them unfinished, "
          f"{len(problems)} files that could not be read, {len(page.encode()) / 1e6:.1f} MB.")


if __name__ == "__main__":
    run("report", main)
