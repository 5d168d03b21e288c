"""The methods that are compared: adding one is a function in a module of this folder and an entry here.

Nothing here loads torch before a method is fitted or loaded: --help and refused configs should not wait for it.
"""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from interp.runs.config import Count, Positive, Real, Text

if TYPE_CHECKING:
    from torch import Tensor

    from interp.methods.interchange.base import Interchange, SiteUnderStudy

Weight = Annotated[Real, Field(ge=0)]


class Options(BaseModel):
    """A method without options."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class RandomOptions(Options):
    rank: Count | None = Field(None, description="how many directions, instead of the config's `rank`")


class ProbeOptions(Options):
    lr: Positive = Field(0.1, description="learning rate of AdamW")
    num_epochs: Count = Field(100, description="epochs of training")
    batch_size: Count = Field(500, description="examples in a batch, at most")


class LeaceOptions(Options):
    precision: Literal["float32", "float64"] = Field("float64", description="of the fit")
    shrinkage: bool = Field(True, description="of the covariance; without it the interchange is lda's")


class MaskTraining(Options):
    lr: Positive = Field(0.001, description="learning rate of AdamW")
    num_epochs: Count = Field(90, description="epochs of mask training")


class CircuitOptions(MaskTraining):
    l0_lambda: Weight = Field(1e-6, description="weight of the number of weights kept")


class SelectedCircuitOptions(MaskTraining):
    weight: Positive | None = Field(None, description="l0_lambda; by default chosen on the select pairs")


class LearnedOptions(Options):
    epochs: Count = Field(60, description="epochs of training")
    batch_size: Count = Field(128, description="pairs in a batch")
    lr: Positive = Field(0.01, description="learning rate of Adam")


class DASOptions(LearnedOptions):
    epochs: Count = Field(120, description="epochs of training")
    boundary_lr: Positive = Field(0.005, description="learning rate of the width")
    orthogonal_map: Literal["cayley", "matrix_exp", "householder"] = Field("cayley", description="of the rotation")


class NeuronMaskOptions(LearnedOptions):
    mask_init: Real = Field(0.0, description="what the mask parameters start at")
    max_temp: Positive = Field(200, description="the temperature grows from 1 to this")
    l0_lambda: Weight = Field(1e-6, description="weight of the number of weights kept")


class SavedOptions(Options):
    file: Text = Field(description="the interchange that somebody else found: .npy .safetensors .pt .bin or .json")
    tensor: Text | None = Field(None, description="the name of the matrix in the file, where it holds several")


class Compared(NamedTuple):
    """A compared method: a function of its name in a module of this folder.

    supervision: what it learns from. kind: the class of what it gives, in the same module. ranked: whether the config's
    rank rule is one of its options. form: how it changes activations: an orthogonal or oblique exchange of directions,
    an exchange of what neurons add, or it sets the variable without a source's activations.
    """

    module: str
    supervision: Literal["nothing", "activations", "variable", "answers"]
    options: type[Options] = Options
    kind: str = "Subspace"
    ranked: bool = False
    form: Literal["orthogonal", "oblique", "neurons", "set", "as saved"] = "orthogonal"


INTERCHANGES: dict[str, Compared] = {
    "none": Compared("linear", "nothing"),
    "full": Compared("linear", "nothing"),
    "random": Compared("linear", "nothing", RandomOptions, ranked=True),
    "pca": Compared("linear", "activations", ranked=True),
    "difference_in_means": Compared("linear", "variable", ranked=True),
    "lda": Compared("linear", "variable", ranked=True, form="oblique"),
    "lda_weights": Compared("linear", "variable", ranked=True),
    "leace": Compared("linear", "variable", LeaceOptions, form="oblique"),
    "linear_probe": Compared("linear", "variable", ProbeOptions, ranked=True),
    "mlp_probe": Compared("linear", "variable", ProbeOptions, "Embedding", form="set"),
    "circuit_update": Compared("circuit", "variable", CircuitOptions, "UpdateInterchange", form="neurons"),
    "circuit_neurons": Compared("circuit", "variable", CircuitOptions, "NeuronInterchange", form="neurons"),
    "circuit_complement": Compared("circuit", "variable", CircuitOptions, "UpdateInterchange", form="neurons"),
    "circuit_selected": Compared("circuit", "variable", SelectedCircuitOptions, "UpdateInterchange", form="neurons"),
    "neuron_mask": Compared("circuit", "answers", NeuronMaskOptions, "UpdateInterchange", form="neurons"),
    "das": Compared("learned", "answers", DASOptions, "Alignment"),
    "das_k": Compared("learned", "answers", LearnedOptions, ranked=True),
    "das_oblique": Compared("learned", "answers", LearnedOptions, ranked=True, form="oblique"),
    "saved": Compared("saved", "nothing", SavedOptions, form="as saved"),  # of the kind that its file holds
}

SHAPES = {"Subspace": {"right": "d k", "left": "k d"},  # of saved tensors, by kind
          "Embedding": {"0.weight": "h d", "0.bias": "h", "2.weight": "c h", "2.bias": "c"}}


def fit(name: str, site: "SiteUnderStudy", seed: int, *, rank: str | int = "selected", **options: Any) -> "Interchange":
    """A method fitted, under its name. rank: of ranked methods; options: as INTERCHANGES has them."""
    method = INTERCHANGES[name]
    given = method.options(**options).model_dump() | ({"rank": rank} if method.ranked else {})
    return replace(getattr(module_of(method), name)(site, seed, **given), name=name)


def load_interchange(path: str | Path) -> tuple["Interchange", dict[str, Any]]:
    """A saved interchange, and what it is about; raises BadInput where there is none."""
    from interp.runs.tensors import load_tensors
    return load_tensors("interchange", path, interchange_of)


def interchange_of(tensors: dict[str, "Tensor"], about: dict[str, Any]) -> "Interchange":
    """An interchange from what is saved of it; raises ValueError where its parts do not fit each other."""
    from interp.methods.das import alignment_of
    from interp.methods.masks import circuit_of
    from interp.runs.tensors import require, sizes_of
    name = about.pop("interchange")
    method, rank = INTERCHANGES[name], None
    further: dict[str, Any] = {key: about.pop(key) for key in ("rank", "fan_in") if key in about}
    if name == "saved":
        kind = "UpdateInterchange" if "fan_in" in further else "Alignment" if "width" in tensors else "Subspace"
        method = method._replace(kind=kind)
    if method.kind in SHAPES:
        rank = sizes_of(tensors, SHAPES[method.kind]).get("k")
    elif method.kind == "Alignment":
        rank = alignment_of(tensors, about).rank
    else:
        circuit_of(tensors, {**further})
    require(further["rank"] == rank, f"its rank is {further['rank']}, not {rank}")
    return getattr(module_of(method), method.kind)(name=name, tensors=tensors, **further)


def module_of(method: Compared) -> ModuleType:
    return import_module(f"interp.methods.interchange.{method.module}")
