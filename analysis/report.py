"""One page of all results that there are: figures, tables, runs, and what is missing.

    python analysis/report.py [--results DIR] [--out report.html] [--published results.csv]

Reads whatever lies in DIR (Results) and writes one HTML file (DIR/report.html) that needs nothing else: no network, no
other file. A file that cannot be read is named in the page; what is missing, with the command that makes it. With
--published, a CSV as compare_with_published.py takes it, ours stand beside the published values. Nothing in DIR but the
page is written, and nothing is deleted.
"""

import argparse
import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from analysis import (
    summarize_across_models,
    summarize_agreement,
    summarize_comparison,
    summarize_disambiguation,
    summarize_grokking,
    summarize_layers,
    summarize_model_overlap,
    summarize_shared_nodes,
)
from analysis.compare_with_published import TOLERANCE, read_published
from analysis.method_figures import RESULTS, TRAINING, run, shipped_configs
from analysis.report_figures import Figure, find_figures, in_words, is_outdated, meanings
from analysis.report_published import beside_published
from analysis.report_runs import Problems, Run, account, as_table, find_runs
from analysis.report_summaries import (
    CIRCUITS,
    Section,
    is_of_method,
    summarize_board,
    summarize_language,
    summarize_methods,
    summarize_nothing,
)
from interp.methods.table import METHODS
from interp.runs.config import CONFIGS, PROJECT_ROOT, BadInput, project_path, shown
from interp.runs.files import write_text
from interp.runs.store import CONFIG, FREE_KEYS

TEMPLATE = "report.html.jinja"
GLOSSARY = PROJECT_ROOT / "docs" / "glossary.md"
TRAINING_SCRIPT = "train_algorithmic_models.py"
HUB = ("save_models", "medium", "small")  # in the names of configs of GPT-2, which is on the hub: optional


SECTIONS = (
    Section("quickstart", "Quickstart", (
        "In a model that is trained for two minutes on a² - b² mod 113: which neurons compute a² and -b², and does the "
        "model need them?"), ("Quickstart",), "make quickstart", summarize_methods, (summarize_disambiguation,),
        {"": summarize_disambiguation.VARIABLES}),
    Section("experiment-1", "Experiment 1: which algorithm did the model learn?", (
        "A model answers a² - b² mod 113. It can add a² and -b², or multiply a+b and a-b. Five methods look for each "
        "of the four variables: is it there, and does the model use it?"),
        ("Disambiguation", "Train_Algorithmic_Models/Disambiguation", "Train_Algorithmic_Models/Disambiguation-seeds"),
        "make experiment1", summarize_methods, (summarize_disambiguation,), {"": summarize_disambiguation.VARIABLES}, (
            "Most values that differ are of what the MLP does with the variables, which changes within a few hundred "
            "epochs of one training; docs/README.md, 'Why a value of Experiment 1 may differ', has the evidence.")),
    Section("experiment-2", "Experiment 2: are variables shared between tasks?", (
        "One model answers a mod 29 + b mod 31 (task 1) and a mod 29 + b mod 23 (task 2). Is a mod 29, which both "
        "tasks share, computed by the same neurons for both? Each task's own variable is free, the other task's is a "
        "control. Two figures tell: how many neurons circuits have in common, and which task needs a circuit's first "
        "map."), ("Shared_Nodes", "Train_Algorithmic_Models/Shared_Nodes"), "make experiment2",
        summarize_methods, (summarize_shared_nodes, summarize_model_overlap), summarize_shared_nodes.TASKS, (
            "Figures that differ are of kinds that move as much between checkpoints of one training: "
            "docs/reproducing.md.")),
    Section("experiment-3", "Experiment 3: does a circuit form before the model groks?", (
        "A model of a² + b mod 113 first knows its training examples by heart, and answers new ones much later. Does "
        "the circuit for a² form before that? b², which the task does not need, is the control (it needs b, which b² "
        "tells up to its sign)."),
        ("Grokking", "Train_Algorithmic_Models/Grokking"), "make experiment3", summarize_methods, (summarize_grokking,),
        {"": summarize_grokking.VARIABLES}, (
            "When exactly a model groks depends on rounding, so that values at one epoch differ while the order "
            "of events does not; and what is left of the variables after the MLP comes and goes in both trainings: "
            "docs/reproducing.md counts what differs.")),
    Section("experiment-4", "Experiment 4: language models", (
        "Where does a language model compute the number of a subject (agreement), of a reflexive's antecedent, of an "
        "object (syntactic number), and does its answer depend on it?"),
        ("SV_Agreement", "Reflexives", "Syntactic_Number", "Language", "figures/across_models"), "make experiment4",
        summarize_language, (summarize_agreement, summarize_layers, summarize_across_models)),
    Section("comparison", "The comparison of methods", (
        "All methods are asked one question: exchange what the method takes for the variable between two inputs. Does "
        "the model's answer change as the variable's exchange changes it, and does nothing else?"),
        ("Comparison",), "make comparison comparison-language", summarize_board, (summarize_comparison,)),
)
OWN = Section("own-runs", "Own runs", "Everything else in the folder: runs that no config of the project writes.", (),
              "", summarize_nothing)


class Shipped(NamedTuple):
    """A config of the project: the script that it is for, its file and its keys."""

    script: str
    file: str
    values: dict[str, Any]

    @property
    def command(self) -> str:
        return f"python {self.script} --config {self.file}"

    def is_of(self, run: Run) -> bool:
        """Whether a run has these values, as far as its own config tells; where it does not, it may."""
        ignored = {*FREE_KEYS, "model_dir", "save_models"}
        return all(run.config[key] == value for key, value in self.values.items()
                   if key in run.config and key not in ignored)


# ------------------------------------------------------------------------------ what is missing

def configs_by_results() -> dict[str, Shipped]:
    """Each shipped config, by its folder of results, relative to Results/.

    The paper's configs of single checkpoints are left out: the sweeps compute the same.
    """
    found: dict[str, Shipped] = {}
    for file, values in shipped_configs():
        folder = project_path(str(values.get("results_dir", "")))
        single = file.is_relative_to(CONFIGS / "Grokking") and len(file.relative_to(CONFIGS).parts) > 3
        if folder.is_relative_to(RESULTS) and not single:
            found.setdefault(folder.relative_to(RESULTS).as_posix(),
                             Shipped(script_of(file, values), shown(file), values))
    return found


def script_of(file: Path, values: dict[str, Any]) -> str:
    """The script that a shipped config is for."""
    method = next((METHODS[name].script for name in file.parts if name in METHODS), None)
    if method:
        return method
    if TRAINING in file.parts or {"data_dir", "num_epochs"} <= set(values):
        return TRAINING_SCRIPT
    return next((script for name, script in {"Comparison": "compare_methods.py",
                                             "Language": "generate_language_data.py"}.items() if name in file.parts),
                "circuit_probing.py")


Missing = tuple[list[str], str]  # what is not there, and the command that makes it


def missing_runs(section: Section, runs: list[Run], configs: dict[str, Shipped]) -> list[Missing]:
    """What runs of a section are not there, those of one script and folder together."""
    there, groups = {run.name for run in runs}, dict[tuple[str, Path], list[tuple[str, str]]]()
    for name, (script, file, _) in configs.items():
        if section.holds(name) and name not in there and not set(re.split(r"[/.-]", file)) & set(HUB):
            groups.setdefault((script, Path(file).parent), []).append((name, file))
    trained_first = sorted(groups.items(), key=lambda own: own[0][0] != TRAINING_SCRIPT)
    return [([name for name, _ in group], f"python {script} --config {' '.join(file for _, file in group)}")
            for (script, _), group in trained_first]


def missing_figures(section: Section, results: Path, runs: list[Run], figures: list[Figure]) -> list[Missing]:
    """Experiments, and runs of language models, that have tables and no figures."""
    def draw(script: str, folder: str, options: str = "") -> Missing:
        at = shown(results / folder)
        return [f"figures of {folder}"], f"python analysis/{script}.py{options} --results {shlex.quote(at)}"

    drawn = {str(Path(figure.name).parent) for figure in figures}
    done = [run.name for run in runs if run.table is not None and len(run.table)]
    if section.id == "own-runs":
        return []
    if section.id != "experiment-4":
        folder, script = section.folders[0], section.scripts[0].__name__.rpartition(".")[2]
        own = {name.split("/")[1] for name in done if name.startswith(f"{folder}/") and name != f"{folder}/training"}
        own = own if section.id == "comparison" else {
            task for task in section.parts if any(is_of_method(name, folder, task) for name in done)}
        undrawn = [name for name in own if not any(
            f"{path}/".startswith(f"{'/'.join(filter(None, (folder, 'figures', name)))}/") for path in drawn)]
        return [draw(script, folder)] if undrawn else []
    found, models = [], set()
    for experiment, _, rest in (name.partition("/") for name in done):
        method, _, model = rest.partition("/")
        if experiment in CIRCUITS and not model and f"{experiment}/{method}/figures" not in drawn:
            found.append(draw(CIRCUITS[experiment][0].__name__.rpartition(".")[2], f"{experiment}/{method}"))
        if experiment == "SV_Agreement" and method in METHODS and f"{experiment}/figures/{model}" not in drawn:
            models.add(model)
    return found + [draw("summarize_layers", "SV_Agreement", f" --model {shlex.quote(model)}")
                    for model in sorted(models)]


# ------------------------------------------------------------------------------------ the page

def fill_section(section: Section, results: Path, runs: list[Run], figures: list[Figure],
                 configs: dict[str, Shipped], published: pd.DataFrame | None, problems: Problems) -> dict:
    """What the template shows of a section."""
    tables, words = section.summarize(section, results, runs, problems)
    known, by_name = meanings(section.scripts), {run.name: run for run in runs}
    shown_figures = []
    for figure in figures:
        caption = in_words(figure, known, by_name.get(str(Path(figure.name).parent)))
        numbers = problems.attempt(figure.name, words, figure) or ""
        shown_figures.append({"figure": figure, "caption": caption, "numbers": numbers,
                              "outdated": is_outdated(figure, runs)})
    missing = missing_runs(section, runs, configs) + missing_figures(section, results, runs, figures)
    beside = beside_published(results, runs, published, problems) if published is not None and runs else []
    return {
        "section": section, "tables": tables, "figures": shown_figures, "published": beside,
        "unpublished": [] if published is None or beside or not runs else sorted(
            set(published.loc[published["experiment"].isin(section.folders), "task"])),
        "runs": [{"run": run, "command": command_of(run, configs, results), "account": account(run),
                  "config": config_text(run),
                  "table": None if run.table is None else as_table(run.table, f"results.csv of {run.name}")}
                 for run in runs],
        "missing": missing, "lacking": sum(len(what) for what, _ in missing)}


def command_of(run: Run, configs: dict[str, Shipped], results: Path) -> str:
    """The command that made a run, or goes on with it; nothing where no shipped config writes it, with its values."""
    shipped = configs.get(run.name)
    if shipped is None or not shipped.is_of(run):
        return ""
    elsewhere = run.unfinished and results != RESULTS
    return shipped.command + (f" --set results_dir={shlex.quote(shown(results / run.name))}" if elsewhere else "")


def config_text(run: Run) -> str:
    return yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, width=100) if run.config else ""


def glossary() -> list[tuple[str, str]]:
    """Words and meanings of the project's glossary."""
    text = GLOSSARY.read_text(encoding="utf-8") if GLOSSARY.exists() else ""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", text, re.MULTILINE)
    return [(word, meaning.replace("`", "")) for word, meaning in rows if word != "word"]


def build(results: Path, published: pd.DataFrame | None) -> tuple[str, dict[str, Any]]:
    """The page's HTML, and what it was made of."""
    problems = Problems()
    runs, figures, configs = find_runs(results, problems), find_figures(results, problems), configs_by_results()
    parts = []
    for section in (*SECTIONS, OWN):
        def own(name: str, section: Section = section) -> bool:
            taken = any(other.holds(name) for other in SECTIONS)
            return not taken if section is OWN else section.holds(name)
        parts.append(fill_section(section, results, [run for run in runs if own(run.name)],
                                  [figure for figure in figures if own(figure.name)], configs, published, problems))
    values = {"parts": parts, "problems": problems, "runs": runs, "figures": figures, "words": glossary(),
              "unfinished": [run for run in runs if run.unfinished], "results": shown(results), "tolerance": TOLERANCE,
              "elsewhere": results != RESULTS, "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
                           trim_blocks=True, lstrip_blocks=True).get_template(TEMPLATE)
    return template.render(values), values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to read")
    parser.add_argument("--out", type=Path, help="the HTML file to write; default: RESULTS/report.html")
    parser.add_argument("--published", type=Path, help="a CSV of published values, to stand beside ours")
    options = parser.parse_args()
    results = options.results.absolute()
    if not results.is_dir():
        raise BadInput(f"--results {options.results}: there is no such folder.")
    if (results / CONFIG).exists() or (results / "results.csv").exists():
        raise BadInput(f"--results {options.results}: this is a run itself; give the folder that it is in.")
    out = (options.out or results / "report.html").absolute()
    if out.is_dir():
        raise BadInput(f"--out {options.out}: this is a folder; give the name of a file.")
    published = None if options.published is None else read_published(options.published)
    page, values = build(results, published)
    write_text(out, page)
    print(f"{shown(out)}: {len(values['runs'])} runs, {len(values['unfinished'])} of them unfinished, "
          f"{len(values['figures'])} figures, {len(values['problems'])} files that could not be read, "
          f"{len(page.encode()) / 1e6:.1f} MB.")


if __name__ == "__main__":
    run("report", main)
