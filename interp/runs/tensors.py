"""Tensors saved with what they are about, and the state of an interrupted computation."""

import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from interp.runs.config import BadInput, require_file, shown
from interp.runs.files import write


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Save tensors as safetensors in one step; `about`, whatever JSON can hold, goes into the file."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write(path, save(tensors, {"about": json.dumps(about)}), replaces=False)


def load_tensors(what: str, path: str | Path, wanted: set[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What save_tensors saved; raises BadInput where it is not there, or no `what` ("circuit", ...) of this project.

    wanted: the names of tensors, or of what they are about, that every `what` has.
    """
    file = require_file(what, str(path))
    with suppress(SafetensorError, KeyError, TypeError, OSError, json.JSONDecodeError):
        with safe_open(file, framework="pt") as stored:
            about = json.loads(stored.metadata()["about"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
            if wanted <= {*tensors, *about}:
                return tensors, about
    raise BadInput(f"{shown(file)} is not a saved {what}.")


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
