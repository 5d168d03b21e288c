"""Whether a run is the paper's own question, so that its figures may stand beside the published ones."""

from pathlib import Path

import train_algorithmic_models
from interp.models.loading import model_files
from interp.runs.config import BadInput, ModelSweep, load_config, project_path, shown
from interp.runs.directory import changed_keys
from interp.runs.parts import stored_config
from interp.runs.record import RECORD, as_written, digests, read_record

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
            stored = stored_config(folder)
            if not stored.exists():
                return f"there is no {shown(stored)}"
            if changed := set(changed_keys(stored, wanted)) - ignored:
                return f"{shown(folder)} has another {', '.join(sorted(changed))} than {shown(file)}"
        now = digests({config.model_path: model_files("model_path", config.model_path)})
    except BadInput as error:
        return str(error).rstrip(".")
    read = read_record(stored_config(run).with_name(RECORD)).get("inputs", {})
    if not as_written(trained, [project_path(config.model_path)]) or read.get(config.model_path) != now[
            config.model_path]:
        return f"{config.model_path} is not, or no longer, the model that {shown(trained)} trained"
    return None
