"""Whether a run is the paper's own question, so that its figures may stand beside the published ones."""

import hashlib
from pathlib import Path

import train_algorithmic_models
from interp.models.loading import model_files
from interp.runs.config import BadInput, ModelSweep, load_config, project_path, shown
from interp.runs.store import CONFIG, RunDirectory, changed_keys

SAVED = {"save_models", "model_dir"}  # keys that say what else is kept of a run


def why_not_the_papers(run: Path, papers: Path, schema: type[ModelSweep], training: Path) -> str | None:
    """Why a run directory is not of the paper's settings and model; nothing where it is.

    papers, training: the configs of the paper's run, of `schema`, and of its model's training. The model is to be the
    one that a training by that config wrote, unchanged since the run; the data follow from the training's config.
    """
    config, trained_by = load_config(papers, schema), load_config(training, train_algorithmic_models.Config)
    trained = project_path(trained_by.results_dir)
    try:
        for folder, wanted, file, ignored in ((run, config, papers, SAVED), (trained, trained_by, training, set())):
            if not (folder / CONFIG).exists():
                return f"there is no {shown(folder / CONFIG)}"
            if changed := set(changed_keys(folder, wanted)) - ignored:
                return f"{shown(folder)} has another {', '.join(sorted(changed))} than {shown(file)}"
        now = {shown(file): hashlib.sha256(file.read_bytes()).hexdigest()
               for file in model_files("model_path", config.model_path)}
        read = RunDirectory(run).record()["inputs"]
    except BadInput as error:
        return str(error).rstrip(".")
    if any(read.get(file) != now[file] for file in now):
        return f"{config.model_path} is no longer the model that the run read"
    return None
