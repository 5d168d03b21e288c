"""Write the configs of single checkpoints beside the sweeps: the files that the paper's users know.

    python configs/Grokking/create_configs.py

METHOD/VARIABLE.yaml sweeps all checkpoints in one process. METHOD/NAME/VARIABLE/CHECKPOINT.yaml is one of them
alone, with folders of its own.
"""

from pathlib import Path

import yaml

from interp.runs.config import read_yaml
from interp.runs.files import write_text

FOLDER = Path(__file__).resolve().parent
NAMES = {"circuit_probing": "circuit_probing", "DAS": "DAS", "linear_probing": "Probe", "nonlinear_probing": "Probe",
         "amnesic": "amnesic"}
VARIABLES = ("a2", "b2")


def single_configs() -> dict[Path, str]:
    """The text of every single-checkpoint config, by its file."""
    return {FOLDER / method / name / variable / f"{checkpoint}.yaml": single_config(sweep, checkpoint, variable)
            for method, name in NAMES.items() for variable in VARIABLES
            for sweep in [read_yaml(FOLDER / method / f"{variable}.yaml")]
            for checkpoint in sweep["checkpoint_list"]}


def single_config(sweep: dict, checkpoint: int, variable: str) -> str:
    """The differences of one checkpoint's config from the sweep's."""
    folders = {key: f"{sweep[key]}_{checkpoint}" for key in ("model_dir", "results_dir") if key in sweep}
    return (f"# One checkpoint of ../../{variable}.yaml; written by create_configs.py.\n"
            + yaml.safe_dump({"base": f"../../{variable}.yaml", "checkpoint_list": [checkpoint]} | folders,
                             sort_keys=False, default_flow_style=None))


if __name__ == "__main__":
    files = single_configs()
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    print(f"{len(files)} configs of single checkpoints.")
