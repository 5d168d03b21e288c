"""The report's figures: PNG files as they are found, and what they show in words."""

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pandas as pd
from PIL import Image, UnidentifiedImageError

from analysis.comparison_figures import SITES
from analysis.report_runs import Problems, Run, shown_name, walk
from interp.runs.config import BadInput

PIXELS_AT_MOST = 2200  # a figure's width
TOLD = {  # what the docstrings say in passing only
    "probe_accuracy_mlp": "circuit, linear and MLP probe, after the MLP",
    "checkpoints": "interchange accuracy over the checkpoints of a training",
    "detection": "how well interchange accuracy tells sites that carry a variable from those that do not (AUROC)",
    "layers": "every method by layer: is the variable read (above), used (below)? IID solid, generalization dashed"}


TOLD_BY_FOLDER = {  # of figures that are named after what is compared in them
    "overlap": "the neurons that two circuits have in common, beside what chance would give",
    "across_models": "circuits of language models by relative depth; published ones of GPT-2 dashed and hollow"}


@dataclass(frozen=True)
class Figure:
    name: str  # its file, relative to the results
    data: str  # a data URI
    width: int
    height: int
    stem: str
    drawn: float  # when, in seconds


def find_figures(results: Path, problems: Problems) -> list[Figure]:
    """All PNG files below a folder, but those that --overwrite set aside."""
    files = [folder / name for folder, folders, names in walk(results, problems)
             for name in (*names, *folders) if name.endswith(".png") and not name.startswith(".")]
    found = [problems.attempt(name, read_figure, file, name)
             for name, file in sorted((shown_name(file, results), file) for file in files)]
    return [figure for figure in found if figure]


def read_figure(file: Path, name: str) -> Figure:
    """A PNG as a data URI, in 256 colours: a third of the size, and hardly to be told from the file."""
    try:
        with Image.open(file) as stored:
            image = stored.convert("RGB")
    except (UnidentifiedImageError, SyntaxError, Image.DecompressionBombError):  # what PIL says of damaged PNGs
        raise BadInput("this is no image, or a damaged one.") from None
    if image.width > PIXELS_AT_MOST:
        image.thumbnail((PIXELS_AT_MOST, image.height))
    text = io.BytesIO()
    image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(text, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(text.getvalue()).decode()}"
    return Figure(name, uri, image.width, image.height, file.stem, file.stat().st_mtime)


def is_outdated(figure: Figure, runs: list[Run]) -> bool:
    """Whether a run that a figure is of has got rows since it was drawn.

    FOLDER/figures holds figures of the runs in FOLDER, FOLDER/figures/NAME those of the runs with NAME in their path,
    figures/across_models/EXPERIMENT those of an experiment's runs.
    """
    folder, figures, rest = f"/{figure.name}".rpartition("/")[0].partition("/figures")
    names = {name for name in rest.split("/") if not re.fullmatch(r"layer_\d+", name)} - {"", "across_models"}
    if rest.startswith("/across_models"):
        names.add(figure.stem)
    of = [run for run in runs if figures and f"/{run.name}/".startswith(f"{folder}/")
          and names <= set(run.name.split("/"))]
    return any(run.changed > figure.drawn + 1 for run in of)


def meanings(scripts: tuple[ModuleType, ...]) -> dict[str, str]:
    """What each figure shows, by its name, as the docstrings of the scripts that draw them say."""
    found = {}
    for script in scripts:
        for names, text in re.findall(r"^(\S[\w/.]*(?:, [._]\w+)?) {2,}(\S.*(?:\n {8,}\S.*)*)",
                                      script.__doc__ or "", re.M):
            first, *endings = names.rpartition("/")[2].split(", ")
            for name in (first, *(first.rpartition("_")[0] + ending for ending in endings)):
                found[name.partition(".")[0]] = re.sub(r"\s+", " ", text)
    return found


def in_words(figure: Figure, known: dict[str, str], run: Run | None) -> str:
    """What a figure is of, as far as its name and its run tell; a sentence."""
    if figure.stem == "curves" and run is not None:
        rows = run.table if run.table is not None else pd.DataFrame()
        ends = ", ".join(f"{split} accuracy {rows[column].mean():.3f}" for split, column in (
            ("train", "train_acc"), ("test", "test_acc"))
            if column in rows and pd.api.types.is_numeric_dtype(rows[column]))
        models = f"mean of {len(rows)} models" if len(rows) > 1 else "one model"
        return f"Loss and accuracy over the epochs of the training{f'; at the end {ends} ({models})' if ends else ''}."
    place = Path(figure.name).parent.name
    if place in TOLD_BY_FOLDER:
        return f"{figure.stem[0].upper()}{figure.stem[1:]}: {TOLD_BY_FOLDER[place]}.".replace("_", " ")
    variable, _, site = figure.stem.rpartition("_resid_")
    after = SITES.get(f"resid_{site}")
    heat_map = f"layers and methods, interchange accuracy, log odds and isolate: {variable}, {after}"
    title = TOLD.get(figure.stem) or known.get(figure.stem) or (heat_map if after else figure.stem).replace("_", " ")
    text = title[0].upper() + title[1:] + (f" ({place.replace('_', ' ')})" if place not in ("figures", "") else "")
    return text if text.endswith("?") else f"{text}."
