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

    build: of the tensors and what they are about, from which it takes what it needs; by `require` it refuses others.
    """
    file, reason = require_file(what, str(path)), ""
    try:
        with safe_open(file, framework="pt") as stored:
            about = json.loads(stored.metadata()["about"])
            require(isinstance(about, dict), "its metadata is no dictionary")
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
        for name, tensor in tensors.items():
            require(tensor.is_floating_point() and bool(tensor.isfinite().all()), f"'{name}' holds what is no number")
        return build(tensors, about), about
    except Unfit as error:
        reason = f": {error}"
    except (SafetensorError, LookupError, TypeError, AttributeError, OSError, ValueError, RecursionError):
        pass  # the last six: foreign metadata
    raise BadInput(f"{shown(file)} is not a saved {what}{reason}.")


class Unfit(Exception):
    """Tensors that do not fit each other or what they are about."""


def require(fits: bool, reason: str) -> None:
    if not fits:
        raise Unfit(reason)


def require_shape(tensors: dict[str, torch.Tensor], **shapes: tuple[int, ...]) -> None:
    """Raises Unfit unless the tensors are these, of these shapes."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    require(found == shapes, f"it holds tensors of the shapes {found}, not {shapes}")


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
