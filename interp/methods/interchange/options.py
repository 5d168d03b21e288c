"""The options of the compared methods, with their defaults; nothing here loads torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from interp.runs.config import Count, Positive, Real

Weight = Annotated[Real, Field(ge=0)]  # of sparsity, in the objective


class Options(BaseModel):
    """A method without options."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ProbeOptions(Options):
    lr: Positive = Field(0.1, description="learning rate of AdamW")
    num_epochs: Count = Field(100, description="epochs of probe training")
    batch_size: Count = Field(500, description="examples in a batch, at most")


class LeaceOptions(Options):
    precision: Literal["float32", "float64"] = Field("float64", description="of the fit")
    shrinkage: bool = Field(True, description=(
        "of the covariance, as concept-erasure has it by default; without it the interchange is lda's"))


class CircuitOptions(Options):
    lr: Positive = Field(0.001, description="learning rate of AdamW")
    num_epochs: Count = Field(90, description="epochs of mask training")
    l0_lambda: Weight = Field(1e-6, description="weight of the number of weights kept")


class SelectedCircuitOptions(Options):
    lr: Positive = Field(0.001, description="learning rate of AdamW")
    num_epochs: Count = Field(90, description="epochs of mask training")
    weight: Positive | None = Field(None, description=(
        "weight of the number of weights kept; by default chosen on the select pairs"))


class DASOptions(Options):
    epochs: Count = Field(120, description="epochs of search")
    batch_size: Count = Field(128, description="pairs in a batch")
    lr: Positive = Field(0.01, description="learning rate of the rotation")
    boundary_lr: Positive = Field(0.005, description="learning rate of the width")
    orthogonal_map: Literal["cayley", "matrix_exp", "householder"] = Field("cayley", description=(
        "how the rotation is kept orthogonal"))


class LearnedOptions(Options):
    epochs: Count = Field(60, description="epochs of training")
    batch_size: Count = Field(128, description="pairs in a batch")
    lr: Positive = Field(0.01, description="learning rate of Adam")


class NeuronMaskOptions(LearnedOptions):
    mask_init: Real = Field(0.0, description="what the mask parameters start at")
    max_temp: Positive = Field(200, description="the temperature grows from 1 to this")
    l0_lambda: Weight = Field(1e-6, description="weight of the number of weights kept")


OPTIONS: dict[str, type[Options]] = {  # methods that are not named have none
    "linear_probe": ProbeOptions, "mlp_probe": ProbeOptions, "leace": LeaceOptions, "circuit_update": CircuitOptions,
    "circuit_neurons": CircuitOptions, "circuit_complement": CircuitOptions, "circuit_selected": SelectedCircuitOptions,
    "das": DASOptions, "das_k": LearnedOptions, "neuron_mask": NeuronMaskOptions}
RANKED = ("random", "pca", "difference_in_means", "linear_probe", "lda", "das_k")  # which the config's key `rank` rules
