"""Models: build, find, check, load, re-initialize, save; the device they are on."""

import functools
import importlib.util
import json
import os
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from huggingface_hub import snapshot_download
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map
from transformers.utils import logging

from interp.models.family import LinearMap, family_of
from interp.runs.config import FLOAT32, PROJECT_ROOT, BadInput, project_path, require_file, shown
from interp.runs.files import place, writing

logging.disable_progress_bar()  # loading a few tensors needs none, and it would break ours

NO_DROPOUT = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
SIZES = {  # the most that a model has of each; more would be built for hours, or not at all
    "vocab_size": 10**8, "hidden_size": 10**6, "num_hidden_layers": 1000, "num_attention_heads": 10**5,
    "num_key_value_heads": 10**5}
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
SPREAD: str | dict[str, str] = "auto"  # the device map


def choose_device(name: str) -> torch.device:
    """`auto` is cuda where present, else cpu; raises BadInput where a device is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise BadInput(f"device: '{name}' is not available on this machine.") from None
    if device.type == "cuda":  # the same command gives the same table; float32 is float32
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cuda.matmul.allow_tf32 = False
    return device


def build_gpt2(seed: int, **shape: int) -> GPT2LMHeadModel:
    """A freshly initialized ReLU GPT-2 without dropout, its embeddings tied. shape: as GPT2Config has it."""
    torch.manual_seed(seed)
    values: dict[str, Any] = {**shape, **NO_DROPOUT}
    return GPT2LMHeadModel(GPT2Config(**values, activation_function="relu", bos_token_id=None, eos_token_id=None))


def read_model_config(key: str, path: str) -> PretrainedConfig:
    """The configuration of a model's text decoder; its weights are only checked to be complete and to belong to it.

    Args:
        path: a folder, a GGUF file, or a name on the Hugging Face hub, which is fetched once.

    Raises:
        BadInput: the model cannot be found or fetched, TransformerLens does not know it, or a weight file is broken.
    """
    folder, gguf = locate_model(key, path)
    config = read_config(key, folder, gguf).get_text_config(decoder=True)
    try:
        family_of(config)
    except Exception as error:  # TransformerLens says in many ways that it does not know a model
        raise BadInput(f"{key}: {shown(folder)} is a '{config.model_type}' model, which cannot be opened: "
                       f"{textwrap.shorten(first_line(error), 120)}; docs/add_a_model_family.md shows how to describe "
                       "one.") from None
    if not gguf:  # which has to be read to tell
        read_model(key, folder, gguf, device_map="meta")
    return config


def read_config(key: str, folder: Path, gguf: dict[str, str]) -> PretrainedConfig:
    """The configuration in a folder, that of a model with more than text included; raises BadInput."""
    where = shown(folder / gguf.get("gguf_file", ""))
    try:
        labels = 0 if gguf else json.loads((folder / "config.json").read_bytes()).get("num_labels", 0)
        if labels > 10**6:  # each of which gets a name
            raise ValueError(f"its config.json has num_labels {labels}")
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **gguf)
        for size, most in SIZES.items():
            value = getattr(config.get_text_config(decoder=True), size, None)
            if isinstance(value, int) and not 1 <= value <= most:
                raise ValueError(f"its config.json has {config.attribute_map.get(size, size)} {value}")
    except Exception as error:  # whatever a hand-edited configuration raises, the user sees its folder named
        why = "it takes code from the folder, which is not run" if "trust_remote_code" in str(error) else first_line(
            error)
        raise BadInput(f"{key}: {where} cannot be read as a model: {why}") from None
    name = (config.architectures or [""])[0]
    if name.endswith("ForMaskedLM"):
        raise BadInput(f"{key}: {where} is a {name}, which fills gaps and does not continue a text.")
    if loader_of(config) is None:
        raise BadInput(f"{key}: {where} is a '{config.model_type}' model, which has no text decoder.")
    config.return_dict, config._attn_implementation = True, None  # neither changes a number; flash attention may lack
    return config


def loader_of(config: PretrainedConfig) -> Any:
    """The class that loads a model: of text alone, or with a decoder for text beside an encoder of images."""
    loaders: list[Any] = [AutoModelForCausalLM, AutoModelForImageTextToText]
    if config.get_text_config(decoder=True) is not config:
        loaders.reverse()
    return next((loader for loader in loaders if type(config) in loader._model_mapping), None)


def locate_model(key: str, path: str) -> tuple[Path, dict[str, str]]:
    """The folder of a model, and for a GGUF file in it the argument that makes transformers read it.

    Raises BadInput where there is no such model here and none can be fetched.
    """
    if path.endswith(".gguf"):
        file = require_file(key, path)
        if importlib.util.find_spec("gguf") is None:
            raise BadInput(f"{key}: reading {shown(file)} takes the package gguf; 'pip install gguf' installs it.")
        return file.parent, {"gguf_file": file.name}
    if project_path(path).exists() or not is_hub_name(path):
        return require_file(key, path), {}
    try:
        return fetch_from_hub(path), {}
    except Exception as error:  # no such model, no network, no space, a server's error: one message for all
        raise BadInput(f"{key}: '{path}' is no folder here and cannot be fetched from the Hugging Face hub "
                       f"({type(error).__name__}); download it elsewhere and give its folder.") from None


def model_files(key: str, path: str) -> list[Path]:
    """The files that decide what a model computes and how it reads; path and errors as locate_model."""
    folder, gguf = locate_model(key, path)
    patterns = [*gguf.values()] or ["config.json", *WEIGHTS, "tokenizer*", "vocab*", "merges.txt"]
    return sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file())


def is_hub_name(path: str) -> bool:
    """Whether a path may be a name on the hub ('EleutherAI/pythia-70m'), not a file that a folder here lacks."""
    return (re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) is not None
            and not ("/" in path and (PROJECT_ROOT / path).parent.exists()))


@functools.cache
def fetch_from_hub(name: str) -> Path:
    """The folder of a hub model in Hugging Face's cache, fetched on first use."""
    return Path(snapshot_download(name, ignore_patterns=["*/*"], allow_patterns=[
        "*.json", "*.txt", "tokenizer.model", "model*.safetensors"]))


def read_model(key: str, folder: Path, gguf: dict[str, str], **options) -> PreTrainedModel:
    """A saved model's text decoder, every weight of which is in the files.

    Raises:
        BadInput: files are broken, of another model, or hold something that the model has no place for.
    """
    where, config = shown(folder / gguf.get("gguf_file", "")), read_config(key, folder, gguf)
    for pattern in ("*adapter*", "*lora*", "*/adapter_config.json") if not gguf else ():
        for file in folder.glob(pattern):
            raise BadInput(f"{key}: {where} holds an adapter, {file.name}, beside the model; merge it into the "
                           "weights, or move it away.")
    try:
        loaded: Any = loader_of(config).from_pretrained(
            folder, config=config, local_files_only=True, trust_remote_code=False, output_loading_info=True,
            ignore_mismatched_sizes=True, **gguf, **options)
    except Exception as error:  # a damaged file fails in as many ways as there are formats
        raise BadInput(f"{key}: the weights in {where} are missing or damaged, or do not fit its config.json: "
                       f"{first_line(error)}") from None
    model, report = loaded
    tied = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters()).keys()
    for name in (name for name in model.state_dict() if name in report["missing_keys"] and name not in tied):
        raise BadInput(f"{key}: the weights in {where} lack {name}.")
    for name, stored, wanted in report["mismatched_keys"]:
        raise BadInput(f"{key}: {name} in {where} has shape {list(stored)}, its config.json wants {list(wanted)}.")
    for name in sorted(report["unexpected_keys"]):
        raise BadInput(f"{key}: the weights in {where} hold {name}, which a '{config.model_type}' model has no place "
                       "for.")
    if gguf:
        refuse_ignored(key, folder / gguf["gguf_file"], model)
    return text_decoder(model)


def refuse_ignored(key: str, file: Path, model: PreTrainedModel) -> None:
    """Refuse a GGUF file that says something of the model that transformers does not read; raises BadInput."""
    reader = importlib.import_module("gguf").GGUFReader(file)  # an extra
    family = str(reader.fields["general.architecture"].contents())
    processor = TENSOR_PROCESSORS.get(family, TensorProcessor)(config=model.config.to_dict())
    known = get_gguf_hf_weights_map(model, processor)
    ignored = [tensor.name for tensor in reader.tensors if tensor.name not in known]
    read = dict[str, Any](GGUF_CONFIG_MAPPING).get(model.config.model_type.removesuffix("_text"), {})
    head = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    neutral = {"attention.key_length": head, "attention.value_length": head, "rope.dimension_count": head,
               "rope.scaling.type": "none", "rope.scaling.factor": 1.0, "rope.scaling.attn_factor": 1.0,
               "attention.causal": True, "vocab_size": model.config.vocab_size}
    for name, field in reader.fields.items():
        item = name.removeprefix(f"{family}.")
        if item != name and read.get(item) is None and neutral.get(item) != (value := field.contents()):
            ignored.append(f"{name} {value}")
    if ignored:
        raise BadInput(f"{key}: {shown(file)} holds {ignored[0]}, which transformers does not read from a GGUF file; "
                       "take the model's own folder.")


def text_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a model that continues a text; of a model of text alone all of it."""
    config = model.config.get_text_config(decoder=True)
    decoder: Any = model if config is model.config else model.get_decoder()
    if decoder.get_output_embeddings() is not None:
        return decoder
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(config)
    setattr(text, text.base_model_prefix, decoder)
    text.set_output_embeddings(model.get_output_embeddings())
    return text


def load_model(key: str, path: str, device: torch.device, dtype: str = FLOAT32, spread: bool = False
               ) -> PreTrainedModel:
    """A saved model, frozen, in eval mode, of a type, on the device; path and errors as read_model_config.

    spread: where one device does not hold the weights, they go to all there are, then to the CPU's memory, and what
        that does not hold stays in its files and is read whenever it is needed (accelerate's device map).
    """
    read_model_config(key, path)
    model = read_model(key, *locate_model(key, path), dtype=getattr(torch, dtype),
                       device_map=SPREAD if spread else None)
    for inside, module in model.named_modules():
        with align_module_device(module):
            for name, parameter in module.named_parameters(inside, recurse=False):
                if not torch.isfinite(parameter).all():
                    raise BadInput(f"{key}: {name} of {shown(project_path(path))} holds values that are no finite "
                                   f"numbers{'' if dtype == FLOAT32 else f' in {dtype}'}.")
    if not spread:
        model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides that it is a method
    return model.eval().requires_grad_(False)


def load_tokenizer(key: str, path: str) -> PreTrainedTokenizerBase:
    """A saved model's tokenizer; path as for read_model_config. Raises BadInput where there is none."""
    folder, gguf = locate_model(key, path)
    try:
        if not gguf and not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*")):
            raise FileNotFoundError("there is no tokenizer.json")
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **gguf)
    except Exception as error:  # what is missing shows in many ways
        raise BadInput(f"{key}: {shown(project_path(path))} has no tokenizer that can be read: "
                       f"{first_line(error)}") from None


def reinitialize(model: PreTrainedModel, seed: int, *, body: bool = False, embeddings: bool = False,
                 layer: int = -1) -> None:
    """Give parts of a model the weights of a freshly initialized one: controls for a probe.

    body: all weights but the embeddings. embeddings: of tokens, of positions, and the output's. layer: one layer's
    block; -1 for none.
    """
    if not (body or embeddings or layer >= 0):
        return
    torch.manual_seed(seed)
    fresh = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype).to(model.device).state_dict()
    block = f"{family_of(model.config).blocks}.{layer}."
    tables = tuple(f"{name}." for name, module in model.named_modules()
                   if isinstance(module, nn.Embedding) or module is model.get_output_embeddings())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (embeddings if name.startswith(tables) else body) or name.startswith(block):
                parameter.copy_(fresh[name])


@torch.no_grad()
def shuffle_weights(maps: Iterable[LinearMap], seed: int) -> None:
    """Shuffle the weights of some linear maps: their sizes stay, but nothing learned is left."""
    drawing = torch.Generator().manual_seed(seed)
    for linear in maps:
        order = torch.randperm(linear.weight.numel(), generator=drawing).to(linear.weight.device)
        linear.weight.copy_(linear.weight.flatten()[order].view_as(linear.weight))


def first_line(error: Exception) -> str:
    if "weights_only" in str(error):  # torch's advice is to run whatever code the file holds
        return "the file holds more than weights, and code in it is not run"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Save in Hugging Face layout, in one step; a different model standing there is set aside."""
    model.generation_config = GenerationConfig.from_model_config(model.config)  # not what a transferred model came with
    with writing(folder) as temporary:
        model.save_pretrained(temporary)
        place(temporary, folder)
