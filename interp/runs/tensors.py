"""Tensors saved with what they are about, and the state of an interrupted computation."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from interp.runs.config import BadInput, require_file, shown
from interp.runs.files import write

T = TypeVar("T")


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Save tensors as safetensors in one step; `about`, whatever JSON can hold, goes into the file."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write(path, save(tensors, {"about": json.dumps(about)}), replaces=False)


def load_tensors(what: str, path: str | Path, build: Callable[[dict[str, torch.Tensor], dict[str, Any]], T]
                 ) -> tuple[T, dict[str, Any]]:
    """What save_tensors saved; raises BadInput where it is not there, or no `what` ("circuit", ...) of this project.

    build: from the tensors and what they are about, of which it takes what it needs; by `require` it refuses others.
    """
    file, reason = require_file(what, str(path)), ""
    try:
        with safe_open(file, framework="pt") as stored:
            about = dict(json.loads(stored.metadata()["about"]))
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
        for name, tensor in tensors.items():
            require(tensor.is_floating_point() and bool(tensor.isfinite().all()), f"'{name}' holds what is no number")
        return build(tensors, about), about
    except (SafetensorError, LookupError, TypeError, AttributeError, OSError, RecursionError, ValueError) as error:
        reason = f": {error}" if isinstance(error, ValueError) else ""  # the others: foreign metadata
    raise BadInput(f"{shown(file)} is not a saved {what}{reason}.")


def require(fits: bool, reason: str) -> None:
    if not fits:
        raise ValueError(reason)


def sizes_of(tensors: dict[str, torch.Tensor], shapes: dict[str, str]) -> dict[str, int]:
    """The sizes that letters stand for in the shapes of tensors, such as "d k"; raises ValueError for other tensors."""
    require(tensors.keys() == shapes.keys(), f"it should hold {', '.join(shapes)}")
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        fits = len(shape.split()) == tensors[name].dim() and all(
            sizes.setdefault(letter, size) == size for letter, size in zip(shape.split(), tensors[name].shape))
        require(fits, f"the shape {[*tensors[name].shape]} of '{name}' does not fit the others")
    return sizes


def save_state(file: Path, **state: Any) -> None:
    """Save what an interrupted computation needs to go on, in one step."""
    content = io.BytesIO()  # written to a file, torch would tell of a full disk in a RuntimeError
    torch.save(state, content)
    write(file, content.getbuffer())


def load_state(file: Path) -> dict[str, Any] | None:
    """What save_state saved, None where nothing was; raises BadInput where the file is damaged."""
    if not file.exists():
        return None
    try:
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception:  # torch.load raises anything on a damaged file
        raise damaged(file) from None


def damaged(file: Path) -> BadInput:
    return BadInput(f"{shown(file)} is damaged; move it away, and the training starts from the beginning.")
