"""An interchange that somebody else found, read from a file: directions, a rotation, or neurons (docs/audit.md)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from interp.methods.das import SMALLEST_WIDTH, Alignment, alignment_of
from interp.methods.interchange.base import Interchange, SiteUnderStudy, Subspace
from interp.methods.interchange.circuit import UpdateInterchange
from interp.models.loading import first_line
from interp.runs.config import BadInput, require_file, shown, there_are
from interp.runs.tensors import require

READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": lambda file: torch.as_tensor(np.load(file, allow_pickle=False)), ".safetensors": load_file,
    ".json": lambda file: json.loads(file.read_text(), object_pairs_hook=tuple),  # the pairs of an object
    **dict.fromkeys((".pt", ".bin"), lambda file: torch.load(file, map_location="cpu", weights_only=True))}
ORIGINAL, BASE = (f"parametrizations.weight.{name}" for name in ("original", "0.base"))  # of torch's orthogonal layers
PYVENE = {f"rotate_layer.{ORIGINAL}", f"rotate_layer.{BASE}", "embed_dim", "interchange_dim"}
BOUNDLESS = PYVENE | {"intervention_boundaries", "temperature", "intervention_population"}


def saved(site: SiteUnderStudy, seed: int, file: str, tensor: str | None) -> Interchange:
    found, sublayer = read_saved(file, tensor, site.model.d_model), site.sublayer
    if isinstance(found, Interchange):
        return found
    scores = {name: -0.5 * mask for name, mask in sublayer.full_masks().items()}
    for name, neurons in found.items():
        if max(neurons) >= len(scores.get(name, ())):
            raise BadInput(f"method_options: {file}: layer {sublayer.layer}'s {sublayer.operation} has no '{name}' "
                           f"{max(neurons)}{there_are(f'{key} 0 to {len(scores[key]) - 1}' for key in scores)}.")
        scores[name][neurons] = 0.5
    return UpdateInterchange(None, scores, sublayer.fan_in())


def read_saved(file: str, tensor: str | None, d_model: int) -> Interchange | dict[str, list[int]]:
    """What a file holds, an interchange or neurons by linear map; raises BadInput. tensor: the name of its matrix."""
    path = require_file("method_options", file)
    try:
        require(path.suffix in READERS, f"its name should end in one of {' '.join(READERS)}")
        held = READERS[path.suffix](path)
        if path.suffix != ".json":
            return interchange_in(held, tensor, d_model)
        require(isinstance(held, tuple) and 0 < len(dict(held)) == len(held) and all(
            isinstance(some, list) and some and all(type(one) is int and one >= 0 for one in some) for _, some in held),
            'it should list neurons by linear map, each map once, as {"c_fc": [3, 5]} does')
        return dict(held)
    except Exception as error:  # torch.load raises anything on a damaged file
        raise BadInput(f"method_options: {shown(path)} is no interchange: {first_line(error).rstrip('.')}.") from None


def interchange_in(held: Tensor | dict, tensor: str | None, d: int) -> Subspace | Alignment:
    tensors = {key: part for key, part in (held if isinstance(held, dict) else {"right": held}).items()
               if isinstance(part, Tensor)}
    require(all(not part.is_complex() and bool(part.isfinite().all()) for part in tensors.values()),
            "it holds what is no real number")
    tensors = rotation_of(tensors) if tensors.keys() >= PYVENE else tensors
    names = [tensor] if tensor else [name for name in ("right", "rotation") if name in tensors] or [*tensors]
    require(len(names) == 1 and names[0] in tensors, f"the option 'tensor' should name its matrix{there_are(tensors)}")
    right, shape = tensors[names[0]].double(), [*tensors[names[0]].shape]
    require(len(shape) == 2 and shape[0] == d and 1 <= shape[1] <= d, f"'{names[0]}' is {shape}, not [{d}, k] with k "
            f"from 1 to {d}" + "; transpose it" * (shape[1:] == [d]))
    if names == ["rotation"] and "width" in tensors:
        return alignment_of({"rotation": right.float(), "width": tensors["width"].double()}, {})
    left = tensors["left"].double() if names == ["right"] and "left" in tensors else right.T
    require(left.shape == right.T.shape, f"'left' is {[*left.shape]}, not {[*right.T.shape]}")
    rounding = 1e-6 * left.norm(dim=1).max() * right.norm(dim=0).max()  # of an oblique one whose entries are large
    require(bool((left @ right - torch.eye(len(left))).abs().max() < 1e-3 + rounding), f"'left' @ '{names[0]}' is not 1"
            if "left" in tensors else f"the columns of '{names[0]}' are not orthonormal, and it has no inverse 'left'")
    return Subspace(len(left), {"right": right.float(), "left": left.float().contiguous()})


def rotation_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a rotation of pyvene's exchanges where no `subspaces` are chosen, which are not in its file."""
    require(tensors.keys() in (PYVENE, BOUNDLESS), f"no rotation of pyvene's that is read has {', '.join(tensors)}")
    (d, columns), k = tensors[f"rotate_layer.{ORIGINAL}"].shape, int(tensors["interchange_dim"])
    layer = orthogonal(nn.Linear(columns, d, bias=False))
    layer.load_state_dict({name: tensors[f"rotate_layer.{name}"] for name in (ORIGINAL, BASE)})
    rotation = torch.as_tensor(layer.weight).detach()
    if "temperature" not in tensors:
        return {"right": rotation[:, :k] if columns == d else rotation}  # one of low rank ignores interchange_dim
    require(bool(tensors["temperature"] < 1), "its temperature is not below 1, as at the end of a training")
    return {"rotation": rotation, "width": tensors["intervention_boundaries"].squeeze().clamp(SMALLEST_WIDTH, 1)}
