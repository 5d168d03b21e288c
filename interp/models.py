"""Models: build, load, re-initialise, save; the device; where each architecture keeps its sublayers."""

import functools
import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from interp.config import PROJECT_ROOT, BadInput, project_path, require_file, shown
from interp.runs import place, temporary_beside

logging.disable_progress_bar()  # loading a few tensors needs none, and it would break ours


@dataclass(frozen=True)
class Architecture:
    """Where a model family keeps its layers and sublayers, and which linear maps carry masks.

    maps: for each operation the names of the sublayer's linear maps, first to last. Attention's are
        query, key, value (in one map or three) and output; an MLP's gate, where it has one, up and down.
    norm: the last normalisation, between the blocks and the output embedding.
    position_table: learned position embeddings, added to the token's.
    rotary: what turns queries and keys by their positions instead.
    interleaved: one map holds query, key and value of the first head, then of the second, and so on,
        rather than all queries, all keys, all values.
    stored_as: weights that have another name in a saved model than in an open one.
    """

    layers: str
    norm: str
    sublayers: dict[str, str]
    maps: dict[str, tuple[str, ...]]
    activation: str = "act"
    position_table: str | None = None
    rotary: str | None = None
    interleaved: bool = False
    stored_as: dict[str, str] = field(default_factory=dict)


LLAMA = Architecture(
    layers="model.layers",
    norm="model.norm",
    sublayers={"attn": "self_attn", "mlp": "mlp"},
    maps={"attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")},
    activation="act_fn",
    rotary="model.rotary_emb",
)
ARCHITECTURES = {
    "gpt2": Architecture(
        layers="transformer.h",
        norm="transformer.ln_f",
        sublayers={"attn": "attn", "mlp": "mlp"},
        maps={"attn": ("c_attn", "c_proj"), "mlp": ("c_fc", "c_proj")},
        position_table="transformer.wpe",
    ),
    "gpt_neox": Architecture(
        layers="gpt_neox.layers",
        norm="gpt_neox.final_layer_norm",
        sublayers={"attn": "attention", "mlp": "mlp"},
        maps={"attn": ("query_key_value", "dense"), "mlp": ("dense_h_to_4h", "dense_4h_to_h")},
        rotary="gpt_neox.rotary_emb",
        interleaved=True,
        stored_as={"lm_head.weight": "embed_out.weight"},
    ),
    "llama": LLAMA,
    "mistral": LLAMA,  # sentences longer than its sliding window are refused (tasks.context_of)
    "qwen2": LLAMA,
}


@dataclass(frozen=True)
class LinearMap:
    """One linear map of a sublayer, x -> x @ weight + bias."""

    weight: Tensor  # (fan_in, neurons)
    bias: Tensor    # (neurons,)


@dataclass(frozen=True)
class Heads:
    """How an attention splits into heads, several queries sharing a key and a value in some models."""

    queries: int
    keys: int
    width: int
    interleaved: bool
    rotary: nn.Module | None


@dataclass(frozen=True)
class Sublayer:
    """The attention or MLP of one layer; `heads` are an attention's, `activation` an MLP's."""

    operation: str
    layer: int
    module: nn.Module
    maps: dict[str, LinearMap]
    heads: Heads | None = None
    activation: nn.Module | None = None


def choose_device(name: str) -> torch.device:
    """`auto` is cuda where present, else cpu; mps is taken only when asked for.

    Raises:
        BadInput: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise BadInput(f"device: '{name}' is not to be had on this machine.") from None
    return device


def build_gpt2(*, vocab_size: int, n_positions: int, n_layer: int, n_head: int, n_embd: int,
               n_inner: int, seed: int) -> GPT2LMHeadModel:
    """A freshly initialised ReLU GPT-2 without dropout, its embeddings tied."""
    seed_everything(seed)
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=vocab_size, n_positions=n_positions, n_layer=n_layer, n_head=n_head,
        n_embd=n_embd, n_inner=n_inner, activation_function="relu",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None))


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)


def read_model_config(key: str, path: str):
    """A model's configuration; of the weights no more than that they are whole and its own.

    Args:
        path: a folder, a GGUF file, or a name on the Hugging Face hub, which is fetched once.

    Raises:
        BadInput: no such model to be had, not one of a known architecture, or a broken weight file.
    """
    folder, gguf = locate_model(key, path)
    if not gguf and not (folder / "config.json").is_file():
        raise BadInput(f"{key}: {shown(folder)} is not a model folder: it holds no config.json.")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, **gguf)
    except Exception as error:  # whatever a hand-edited configuration raises, the user sees its folder named
        raise BadInput(f"{key}: {shown(project_path(path))} cannot be read as a model: {first_line(error)}") from None
    if config.model_type not in ARCHITECTURES:
        raise BadInput(f"{key}: {shown(folder)} is a '{config.model_type}' model; "
                       f"known are {', '.join(ARCHITECTURES)}.")
    if not gguf:  # such a file's tensors have other names; load_model sees whether any is missing
        check_weights(key, folder, config)
    return config


def locate_model(key: str, path: str) -> tuple[Path, dict[str, str]]:
    """The folder of a model, and for a GGUF file in it the argument that makes transformers read it.

    Raises:
        BadInput: there is no such model here, and none can be fetched.
    """
    if path.endswith(".gguf"):
        file = require_file(key, path)
        if importlib.util.find_spec("gguf") is None:
            raise BadInput(f"{key}: reading {shown(file)} takes the package gguf; 'pip install gguf' installs it.")
        return file.parent, {"gguf_file": file.name}
    full = project_path(path)
    if full.exists() or not is_hub_name(path):
        return require_file(key, path), {}
    try:
        return fetch_from_hub(path), {}
    except RepositoryNotFoundError:
        raise BadInput(f"{key}: '{path}' is no folder here, and the Hugging Face hub has no such model, "
                       "or not for everyone; give the folder or the name of one that is there.") from None
    except Exception as error:  # no network, no space, a server's error: the user is told the same
        raise BadInput(f"{key}: '{path}' is no folder here and cannot be fetched from the Hugging Face hub "
                       f"({type(error).__name__}, no network?); download it where there is one and give its "
                       "folder.") from None


def model_files(key: str, path: str) -> list[Path]:
    """The files that decide what a model computes and how it reads; path and errors as locate_model."""
    folder, gguf = locate_model(key, path)
    patterns = [*gguf.values()] or ["config.json", "model*.safetensors", "pytorch_model*.bin", "tokenizer*", "vocab*",
                                    "merges.txt"]
    return sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file())


def is_hub_name(path: str) -> bool:
    """Whether a path that does not exist may be a name on the hub ('gpt2', 'EleutherAI/pythia-70m').

    What would lie in a folder that is here, Models/ for one, is a file that is missing.
    """
    return (re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) is not None
            and not ("/" in path and (PROJECT_ROOT / path).parent.exists()))


@functools.cache
def fetch_from_hub(name: str) -> Path:
    """The folder of a hub model in Hugging Face's cache, fetched where it is not yet there.

    Weights are fetched in one format only: safetensors, else torch's own.
    """
    def fetch(*patterns: str) -> Path:
        return Path(snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=["*/*"]))

    folder = fetch("*.json", "*.txt", "tokenizer.model", "model*.safetensors")
    return folder if any(folder.glob("model*.safetensors")) else fetch("*.json", "*.txt", "pytorch_model*.bin")


def check_weights(key: str, folder: Path, config) -> None:
    """Refuse weight files that are broken or are not this configuration's: missing weights would be random.

    Raises:
        BadInput: as said.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # likewise
        raise BadInput(f"{key}: the config.json in {shown(folder)} makes no model: {first_line(error)}.") from None
    files = list(folder.glob("model*.safetensors"))
    if not files and any(folder.glob("pytorch_model*.bin")):
        return  # torch's format has no header to look at; load_model sees whether any weight is missing
    if not files:
        raise BadInput(f"{key}: {shown(folder)} holds no weights (model.safetensors).")
    stored = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                stored |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}
        except SafetensorError as error:
            raise BadInput(f"{key}: {shown(file)} is broken: {first_line(error)}.") from None
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    prefix = f"{model.base_model_prefix}."
    for name, parameter in model.named_parameters():
        names = name, name.removeprefix(prefix), architecture_of(config).stored_as.get(name)
        shape = next((stored[known] for known in names if known in stored), None)
        if shape is None and name not in tied:
            raise BadInput(f"{key}: the weights in {shown(folder)} lack {name}.")
        if shape is not None and list(shape) != list(parameter.shape):
            raise BadInput(f"{key}: {name} in {shown(folder)} has shape {list(shape)}, its config.json wants "
                           f"{list(parameter.shape)}.")


def load_model(key: str, path: str, device: torch.device) -> PreTrainedModel:
    """A saved model, frozen, in eval mode and float32, on the device; path and errors as read_model_config."""
    read_model_config(key, path)
    folder, gguf = locate_model(key, path)
    where = shown(folder / gguf["gguf_file"] if gguf else folder)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True, **gguf)
    except Exception as error:  # a damaged file fails in as many ways as there are formats
        raise BadInput(f"{key}: {where} cannot be loaded: {first_line(error)}") from None
    if report["missing_keys"]:
        raise BadInput(f"{key}: the weights in {where} lack {min(report['missing_keys'])}.")
    return model.to(device).eval().requires_grad_(False)


def load_tokenizer(key: str, path: str) -> PreTrainedTokenizerBase:
    """A saved model's own tokenizer; path as for read_model_config.

    Raises:
        BadInput: no such model to be had, or no tokenizer with it.
    """
    folder, gguf = locate_model(key, path)
    if not gguf and not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*")):
        raise BadInput(f"{key}: {shown(project_path(path))} has no tokenizer (tokenizer.json).")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, **gguf)
    except Exception as error:  # what is missing shows in many ways
        raise BadInput(f"{key}: {shown(project_path(path))} has no tokenizer that can be read: "
                       f"{first_line(error)}") from None


def reinitialize(model: PreTrainedModel, seed: int, *, everything: bool = False, embeddings: bool = False,
                 layer: int = -1) -> None:
    """Give parts of a model the weights of a freshly initialised one: controls for a probe.

    Args:
        everything: all weights.
        embeddings: whatever stands outside of the layers' blocks and is an embedding: of tokens, of
            positions, and the output's, which in many models is the tokens' own.
        layer: one layer's block; -1 for none.
    """
    if not (everything or embeddings or layer >= 0):
        return
    seed_everything(seed)
    fresh = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32).to(model.device).state_dict()
    block = f"{architecture_of(model.config).layers}.{layer}."
    tables = tuple(f"{name}." for name, module in model.named_modules()
                   if isinstance(module, nn.Embedding) or module is model.get_output_embeddings())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if everything or (embeddings and name.startswith(tables)) or name.startswith(block):
                parameter.copy_(fresh[name])


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Save in Hugging Face layout, in one step; a different model standing there is set aside."""
    temporary = temporary_beside(folder)
    model.save_pretrained(temporary)
    place(temporary, folder)


def architecture_of(config) -> Architecture:
    return ARCHITECTURES[config.model_type]


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    return model.get_submodule(architecture_of(model.config).layers)


def find_sublayer(model: PreTrainedModel, layer: int, operation: str) -> Sublayer:
    """The attention ('attn') or MLP ('mlp') of a layer, with the linear maps that carry masks."""
    architecture = architecture_of(model.config)
    module = blocks_of(model)[layer].get_submodule(architecture.sublayers[operation])
    maps = {name: linear_map(module.get_submodule(name)) for name in architecture.maps[operation]}
    if operation == "attn":
        return Sublayer(operation, layer, module, maps, heads=heads_of(model))
    return Sublayer(operation, layer, module, maps, activation=module.get_submodule(architecture.activation))


def heads_of(model: PreTrainedModel) -> Heads:
    architecture, config = architecture_of(model.config), model.config
    queries = config.num_attention_heads
    return Heads(queries, keys=getattr(config, "num_key_value_heads", None) or queries,
                 width=getattr(config, "head_dim", None) or config.hidden_size // queries,
                 interleaved=architecture.interleaved,
                 rotary=model.get_submodule(architecture.rotary) if architecture.rotary else None)


def linear_map(module: nn.Module) -> LinearMap:
    """GPT-2's Conv1D keeps (fan_in, neurons), nn.Linear its transpose; both are the module's own storage."""
    weight = module.weight.T if isinstance(module, nn.Linear) else module.weight
    bias = module.bias if module.bias is not None else weight.new_zeros(weight.shape[1])
    return LinearMap(weight, bias)
