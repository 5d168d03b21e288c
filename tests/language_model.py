"""A small GPT-2 that has learned agreement, with a word-level tokenizer; tiny random models of many families."""

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, PreTrainedModel, PreTrainedTokenizerFast

from interp.methods.optimize import optimize
from interp.models.examples import Answer, Examples, from_rows
from interp.models.open_model import OpenModel, Site
from interp.models.positions import EVERYWHERE
from interp.models.replay import Replay, all_updates, replay
from interp.models.sublayers import find_sublayer, masked, random_masks
from interp.models.suffix import final_states_from, forward_from
from interp.tasks.grammar import make_table

UNKNOWN, END = "[UNK]", "<|endoftext|>"
VOCABULARY, LAYERS, D_MODEL = 60, 2, 32
OF_TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDE = OF_TOKENS | {"hidden_size": D_MODEL, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
PLAIN = WIDE | {"intermediate_size": 48, "max_position_embeddings": 40}
SHARED_KEYS = PLAIN | {"num_key_value_heads": 2, "head_dim": 8}  # two queries to a key
TWO_KINDS = SHARED_KEYS | {"layer_types": ["sliding_attention", "full_attention"]}
GPT2 = OF_TOKENS | {"n_embd": D_MODEL, "n_layer": LAYERS, "n_head": 4, "n_positions": 40}
GPT_NEO = OF_TOKENS | {"hidden_size": D_MODEL, "num_layers": LAYERS, "num_heads": 4, "intermediate_size": 48,
                       "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 400}
FAMILIES = {
    "gpt2": GPT2, "gpt_neo": GPT_NEO, "gpt_neox": PLAIN, "llama": SHARED_KEYS | {"tie_word_embeddings": True},
    "mistral": SHARED_KEYS | {"head_dim": 12}, "qwen2": SHARED_KEYS, "qwen3": SHARED_KEYS, "gemma2": TWO_KINDS,
    "gemma3_text": TWO_KINDS, "olmo": SHARED_KEYS, "olmo2": SHARED_KEYS, "phi": PLAIN, "phi3": SHARED_KEYS,
    "smollm3": SHARED_KEYS | {"no_rope_layers": [1, 0]},
    "opt": PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": D_MODEL}, "bloom": WIDE, "falcon": WIDE,
    "cohere": SHARED_KEYS, "granite": SHARED_KEYS | {"residual_multiplier": 0.4, "logits_scaling": 3.0},
    "stablelm": SHARED_KEYS,
}
VARIANTS = {  # other shapes of the same families, by which ways that know a family could be misled
    "gpt2, scaled by layer": GPT2 | {"scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"},
    "gpt_neox, one after the other": PLAIN | {"use_parallel_residual": False, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "llama, biases": SHARED_KEYS | {"attention_bias": True, "mlp_bias": True},
    "falcon, one after the other": WIDE | {"parallel_attn": False},
    "mistral, short window": SHARED_KEYS | {"sliding_window": 4},  # shorter than most rows
    "gemma3_text, short window": TWO_KINDS | {"sliding_window": 4},
    "llama4_text, short chunks": SHARED_KEYS | {"attention_chunk_size": 4, "num_local_experts": 2, "moe_layers": [],
                                               "num_experts_per_tok": 1, "intermediate_size_mlp": 48},
}
KINDS = [*FAMILIES, *VARIANTS]
PARALLEL = ("gpt_neox", "phi", "falcon", "cohere")  # attention and MLP read the same residual stream
LOCATIONS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
SUBLAYERS = [(layer, operation) for layer in range(LAYERS) for operation in ("attn", "mlp")]


def random_model(kind: str, **changes) -> PreTrainedModel:
    """A model none of whose parts is zero, or so small that a mistake in it would not be seen."""
    values = (FAMILIES | VARIANTS)[kind] | changes
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind.split(",")[0], **values))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1) / 2, std=0.3, generator=generator)
    return model.eval().requires_grad_(False)


def random_examples(early: bool = False) -> Examples:
    """Rows of several lengths from 1, many of which begin alike, and one of which is there twice.

    early: they are probed somewhere else than where they are answered, at their last token.
    """
    drawing = torch.Generator().manual_seed(0)
    rows = [[int(torch.randint(2 if place < 4 else VOCABULARY, (1,), generator=drawing)) for place in range(length)]
            for length in torch.randint(1, 9, (30,), generator=drawing).tolist()]
    tokens, last = from_rows(rows + rows[:1])
    answers = torch.randint(VOCABULARY, (2, len(last)), generator=drawing)
    probed = (last * torch.rand(len(last), generator=drawing)).round().long() if early else last
    return Examples(tokens, probed, last, {}, Answer(*answers))


def sites_of(model: OpenModel, *locations: str) -> list[Site]:
    return [Site(layer, location) for layer in range(LAYERS) for location in locations
            if not (location == "resid_mid" and model.family.parallel)]


def replayed(model: OpenModel, examples: Examples, layer: int, operation: str) -> Replay:
    """A sublayer on examples, by the way that a run would take."""
    below = Site(layer, "resid_pre", EVERYWHERE)
    return replay(model, find_sublayer(model, layer, operation), examples, model.activations(examples, [below])[below])


def everything(model: OpenModel, examples: Examples) -> dict[str, Tensor]:
    """What each verb of an open model and each replay gives of each row, by name: (rows, ...)."""
    rows, sites = torch.arange(len(examples)), sites_of(model, "resid_mid", "resid_post")
    found, states = model.activations(examples, sites), model.final_states(examples)
    found |= {"states": states, "logits": model.logits(states), "logit": model.logit(states, examples.answer.right)}
    for site, forward in forward_from(model, examples, sites).items():
        moved = found[site].roll(1, dims=1).requires_grad_()
        found[f"from {site}"] = forward(moved, rows)
        [found[f"gradient {site}"]] = torch.autograd.grad(found[f"from {site}"].pow(3).sum(), moved)
    for layer, operation in SUBLAYERS:
        sublayer, below = find_sublayer(model, layer, operation), Site(layer, "resid_pre", EVERYWHERE)
        masks, entering = random_masks(sublayer, seed=3), model.activations(examples, [below])[below]
        found[f"updates {layer} {operation}"] = all_updates(
            replayed(model, examples, layer, operation), masks, len(examples))
        with masked(sublayer, masks):
            found[f"masked {layer} {operation}"] = final_states_from(model, examples, layer, entering)
    return {str(name): values.detach() for name, values in found.items()}


def assert_alike(found: Tensor, wanted: Tensor, tolerance: float = 2e-5) -> None:
    """Equal but for rounding, measured by how much there is to tell apart."""
    assert found.shape == wanted.shape and wanted.std() > 1e-3
    assert (found - wanted).abs().max() < tolerance * wanted.std()


def word_level_tokenizer(sentences: list[str]) -> PreTrainedTokenizerFast:
    """One token a word: ' is' and 'is' are the same."""
    words = sorted({word for sentence in sentences for word in sentence.split()})
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate([END, UNKNOWN, *words])}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN, bos_token=END, eos_token=END,
                                   pad_token=END)


def save_random_model(folder: Path, kind: str, sentences: list[str]) -> Path:
    """Save a random model that knows the words of some sentences, with its tokenizer."""
    random_model(kind).save_pretrained(folder)
    word_level_tokenizer(sentences).save_pretrained(folder)
    return folder


@cache
def completed_sentences() -> list[str]:
    """Sentences that end in the word to learn (is, are, a pronoun of either gender), and the same with an echo.

    The echo, the first noun once more in place of the answer, makes attention fetch more than a number:
    otherwise all its updates at that position tell the number, and no circuit tells it better.
    """
    tables = [make_table(name, 4000, 0, mark=False)
              for name in ("SV_Agr", "SV_Agr_gen", "Reflexive_An", "Reflexive_An_gen")]
    completed = [f"{row.sentence} {row.right}" for table in tables for row in table.itertuples()]
    return completed + [" ".join([*words, words[1]]) for *words, _ in map(str.split, completed)]


def make_language_model(folder: Path, sentences: list[str], steps: int = 180, width: int = 64, lr: float = 2e-3,
                        warmup: int = 50) -> None:
    """Train a two-layer GPT-2 to say the last word of sentences; save it with its tokenizer."""
    tokenizer = word_level_tokenizer(sentences)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(
        vocab_size=len(tokenizer), n_positions=24, n_layer=2, n_head=4, n_embd=width, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id))
    tokens = tokenizer(sentences)["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=warmup)
    optimize(optimizer, lambda step, batch: language_loss(model, batch),
             lambda: [[tokens[i] for i in torch.randint(len(tokens), (64,)).tolist()]], steps,
             name="language model", advice=lambda: "lr", after_step=warmup.step)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def language_loss(model: PreTrainedModel, batch: list[list[int]]) -> Tensor:
    """Cross-entropy of every next word, and of the last one again, which is the one in question."""
    tokens, last = from_rows(batch)
    logits, rows = model(tokens[:, :-1], use_cache=False).logits, torch.arange(len(batch))
    targets = tokens.masked_fill(torch.arange(tokens.shape[1]) > last.unsqueeze(1), -100)[:, 1:]  # ignored
    return F.cross_entropy(logits.transpose(1, 2), targets) + F.cross_entropy(
        logits[rows, last - 1], targets[rows, last - 1])
