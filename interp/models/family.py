"""Where a model family keeps its blocks, sublayers and norms: TransformerLens's map of names.

Of TransformerBridge only the map is used. The bridge itself replaces a model's modules, after which a block
cannot be called with a cache, a joint map shows split copies, and a second model has to be loaded; hooks on the
model's modules at the same places read and patch the same numbers (tests/test_families.py compares them).
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.generalized_components.block import ParallelBlockBridge
from transformer_lens.model_bridge.sources import build_bridge_config_from_hf
from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

ATTENTION, MLP = "attn", "mlp"
ALIASES = {ATTENTION: "hook_attn_out", MLP: "hook_mlp_out"}
LinearMap = nn.Linear | Conv1D  # GPT-2's Conv1D keeps the transpose of nn.Linear's weight
SWITCHES = ("use_parallel_residual", "parallel_attn")  # by which a family's blocks are parallel or not


@dataclass(frozen=True)
class Component:
    """A sublayer's places, as paths inside its block.

    module: what the block calls; None where it calls the maps itself.
    maps: the linear maps, where there is no module that holds them.
    out: whose output is the update, which the residual stream gets; a norm after the module in some families.
    norm: through which the sublayer reads the residual stream; None without a norm.
    scale: by which the block multiplies the update as it adds it (Granite).
    """

    module: str | None
    maps: tuple[str, ...]
    out: str
    norm: str | None
    scale: float = 1.0


@dataclass(frozen=True)
class Family:
    """blocks, norm: paths of the blocks and of the last norm. parallel: attention and MLP read the same stream."""

    blocks: str
    norm: str
    components: dict[str, Component]
    parallel: bool


def family_of(config: PretrainedConfig) -> Family:
    """The places of a model of this configuration.

    Raises:
        ValueError: TransformerLens does not know the family, or it is none of blocks with attention and MLP.
    """
    if config.model_type == "opt" and not (
            config.do_layer_norm_before and config.word_embed_proj_dim == config.hidden_size):  # as OPT 350M is
        raise ValueError("its blocks do more to the residual stream than add to it")
    if not config.architectures:  # a configuration that was never saved
        config = type(config).from_dict(config.to_dict() | {
            "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)]})
    known = build_bridge_config_from_hf(config, determine_architecture_from_hf_config(config), "", torch.float32)
    places = ArchitectureAdapterFactory.select_architecture_adapter(known).get_component_mapping()
    blocks, norm = places.get("blocks"), places.get("ln_final")
    if (blocks is None or blocks.name is None or norm is None or norm.name is None
            or not {ATTENTION, MLP} <= set(blocks.submodules)):
        raise ValueError(f"a '{config.model_type}' model is not made of blocks with an attention and an MLP each")
    switched_off = any(getattr(config, switch, None) is False for switch in SWITCHES)
    parallel = isinstance(blocks, ParallelBlockBridge) and not switched_off
    return Family(blocks.name, norm.name,
                  {operation: component_of(blocks, operation, config) for operation in ALIASES}, parallel)


def component_of(blocks, operation: str, config: PretrainedConfig) -> Component:
    sublayer = blocks.submodules[operation]
    alias = blocks.hook_aliases.get(ALIASES[operation])
    if isinstance(alias, list):
        raise ValueError(f"blocks of a '{config.model_type}' model have several kinds of {operation}")
    *path, _ = (alias or f"{operation}.hook_out").split(".")  # ln1_post.hook_out: the output of ln1_post
    component, names = blocks, []
    for step in path:
        component = component.submodules[step]
        names.append(component.name)
    norm = blocks.submodules.get("ln1" if operation == ATTENTION else "ln2")
    if norm is None and isinstance(blocks, ParallelBlockBridge):  # which may share one
        norm = blocks.submodules.get("ln1")
    maps = () if sublayer.name else tuple(part.name for part in sublayer.submodules.values())
    scale = 1.0 if alias else float(getattr(config, "residual_multiplier", 1.0))
    return Component(sublayer.name, maps, ".".join(filter(None, names)), norm.name if norm else None, scale)
