"""The prefix forest, the replayed sublayers and fast ablation, on tiny random models of every architecture.

The oracle is the model itself, run on single sentences with its weights multiplied by the masks.
"""

import shutil
import sys

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from interp.methods.circuits import soft_nearest_neighbor_loss
from interp.models.behavior import logit_differences, masked, preference_accuracy, top_tokens
from interp.models.blocks import final_states
from interp.models.forest import Forest, plant, unshared
from interp.models.loading import (
    ARCHITECTURES,
    blocks_of,
    find_sublayer,
    load_model,
    load_tokenizer,
    read_model_config,
    reinitialize,
)
from interp.models.masks import NeuronMasks, full_masks
from interp.models.sublayer import all_updates, bytes_kept, capture, capture_inputs, replay
from interp.runs.config import BadInput

CPU, VOCABULARY, LAYERS, D_MODEL = torch.device("cpu"), 60, 3, 32
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": D_MODEL, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 40, "bos_token_id": None, "eos_token_id": None}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": D_MODEL, "n_layer": LAYERS, "n_head": 4, "n_positions": 40,
        "bos_token_id": None, "eos_token_id": None}
SHARED_KEYS = SHAPE | {"num_key_value_heads": 2}
CONFIGS = {
    "gpt2": ("gpt2", GPT2),
    "gpt2, scaled by layer": ("gpt2", GPT2 | {"scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"}),
    "pythia": ("gpt_neox", SHAPE),
    "neox, one after the other": ("gpt_neox", SHAPE | {"use_parallel_residual": False, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
    "llama": ("llama", SHARED_KEYS | {"tie_word_embeddings": True}),
    "llama, biases": ("llama", SHARED_KEYS | {"attention_bias": True, "mlp_bias": True}),
    "mistral, wide heads": ("mistral", SHARED_KEYS | {"head_dim": 12}),
    "qwen2": ("qwen2", SHARED_KEYS),
}
PLACES = [(kind, operation) for kind in CONFIGS for operation in ("attn", "mlp")]


def build(kind: str):
    """A model none of whose parts is zero, or so small that a mistake in it would not be seen."""
    name, values = CONFIGS[kind]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **values)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1) / 2, std=0.3, generator=generator)
    return model


@pytest.fixture(scope="module")
def models():
    return {kind: build(kind) for kind in CONFIGS}


@pytest.fixture
def sentences(generator) -> list[list[int]]:
    """Rows of several lengths, many of which begin alike, and one of which is there twice."""
    rows = []
    for _ in range(30):
        length = int(torch.randint(2, 9, (1,), generator=generator))
        rows.append([int(torch.randint(2 if place < 4 else VOCABULARY, (1,), generator=generator))
                     for place in range(length)])
    return rows + rows[:1]


@pytest.fixture
def forest(sentences) -> Forest:
    return plant(sentences, chunk_size=20)


def padded(sentences, fill=0):
    """The plain way's input: (rows, longest), and where each row ends."""
    longest = max(map(len, sentences))
    return (torch.tensor([row + [fill] * (longest - len(row)) for row in sentences]),
            torch.tensor([len(row) - 1 for row in sentences]))


def plain_updates(model, sublayer, sentences):
    """Run the whole model on single sentences and look at what the sublayer puts out at their ends."""
    seen = []
    handle = sublayer.module.register_forward_hook(
        lambda module, arguments, output: seen.append(output[0] if isinstance(output, tuple) else output))
    tokens, last = padded(sentences)
    model(tokens, use_cache=False)
    handle.remove()
    return seen[0][torch.arange(len(tokens)), last]


def plain_logits(model, sentences):
    tokens, last = padded(sentences)
    return model(tokens, use_cache=False).logits[torch.arange(len(tokens)), last]


def test_forest_holds_each_row_once_and_shares_what_begins_alike():
    rows = [[5, 6, 7], [5, 6, 8], [5, 6], [9], [5, 6, 7], [4, 6, 7]]
    forest = plant(rows, chunk_size=384)
    assert forest.tokens.shape == (1, 8) and len(forest) == 6 and forest.nodes == 8
    assert forest.compression == pytest.approx(15 / 8)
    tokens, positions = forest.tokens.flatten(), forest.positions.flatten()
    for row, prefix in enumerate(rows):
        path = forest.path[row, :forest.lengths[row]]
        assert tokens[path].tolist() == prefix and positions[path].tolist() == list(range(len(prefix)))
        assert path[-1] == forest.probed[row] == forest.path[row, -1]
        seen = (forest.mask[0, 0, path[-1]] == 0).nonzero().flatten()
        assert seen.tolist() == sorted(path.tolist())
    assert forest.probed[0] == forest.probed[4]


def test_chunks_share_nothing_and_grow_for_a_long_row(sentences):
    forest = plant(sentences, chunk_size=20)
    assert forest.tokens.shape[0] > 2 and forest.tokens.shape[1] <= 20
    length = forest.tokens.shape[1]
    assert (forest.path // length == (forest.probed // length).unsqueeze(1)).all()
    rows = [forest.probed_in(chunks)[0] for chunks in forest.batches(nodes=40)]
    assert torch.cat(rows).sort().values.tolist() == list(range(len(sentences)))
    long = plant([list(range(50)), [1, 2]], chunk_size=20)
    assert long.tokens.shape == (2, 50) and (long.mask[0, 0, 49] == 0).all()  # the row sees all of itself
    assert (long.mask[1, 0, 30] == 0).sum() == 1                              # a pad sees only itself
    with pytest.raises(ValueError):
        plant([[1], []])


def test_forest_of_sentences_like_those_of_agreement_is_a_third_of_their_length(generator):
    """the NOUN PREP the NOUN, in the sizes of the real grammar."""
    rows = [[0, noun, *([preposition] * 2), 0, other]
            for noun in range(1, 39) for preposition in range(40, 47) for other in range(50, 70)]
    chosen = [rows[row] for row in torch.randperm(len(rows), generator=generator)[:2000]]
    assert plant(chosen).compression > 3


@pytest.mark.parametrize("kind", CONFIGS)
def test_forest_gives_the_hidden_states_of_single_sentences(kind, models, forest, sentences):
    model = models[kind]
    tokens, last = padded(sentences)
    caught = []
    handle = model.lm_head.register_forward_pre_hook(lambda module, arguments: caught.append(arguments[0]))
    model(tokens, use_cache=False)
    handle.remove()
    own = caught[0][torch.arange(len(tokens)), last]
    torch.testing.assert_close(final_states(model, forest, nodes=40), own, rtol=1e-4, atol=2e-5)
    entering = capture(model, forest, [], layers=[0, 2, LAYERS], nodes=40).entering
    for layer, stream in entering.items():
        torch.testing.assert_close(final_states(model, forest, layer, stream), own, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind, operation", PLACES)
def test_replay_equals_the_model_with_masked_weights(kind, operation, models, forest, sentences, generator):
    model = models[kind]
    sublayer = find_sublayer(model, 1, operation)
    replayed = replay(sublayer, capture(model, forest, [sublayer], nodes=40).inputs[0], forest)
    assert len(replayed) == len(sentences)
    own = plain_updates(model, sublayer, sentences)
    torch.testing.assert_close(all_updates(replayed, full_masks(sublayer)), own, rtol=1e-4, atol=1e-5)
    for kept in (lambda draw: draw, lambda draw: (draw > 0.4).float()):  # soft and hard
        masks = {name: kept(torch.rand(len(linear.bias), generator=generator))
                 for name, linear in sublayer.maps.items()}
        with masked(sublayer, masks):
            plain = plain_updates(model, sublayer, sentences)
        assert (plain - own).abs().max() > 0.1
        torch.testing.assert_close(all_updates(replayed, masks, batch_size=7), plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain_updates(model, sublayer, sentences), own, rtol=0, atol=0)  # unmasked again


@pytest.mark.parametrize("kind, operation", PLACES)
def test_gradients_of_soft_masks_equal_the_plain_ones(kind, operation, models, forest, sentences):
    model = models[kind]
    sublayer = find_sublayer(model, 2, operation)
    replayed = replay(sublayer, capture_inputs(model, forest, [sublayer])[0], forest)
    masks, labels = NeuronMasks(sublayer, init=0.1), torch.arange(len(sentences)) % 3
    parameters = list(masks.parameters())
    fast = torch.autograd.grad(soft_nearest_neighbor_loss(
        replayed.update(masks.soft(2.0), torch.arange(len(sentences))), labels), parameters)

    soft = masks.soft(2.0)
    prefix = next(name for name, module in model.named_modules() if module is sublayer.module)
    weights = {f"{prefix}.{name}.weight": (linear.weight * soft[name]).T
               if isinstance(sublayer.module.get_submodule(name), nn.Linear) else linear.weight * soft[name]
               for name, linear in sublayer.maps.items()}
    updates = plain_updates(lambda tokens, **keywords: torch.func.functional_call(model, weights, (tokens,), keywords),
                            sublayer, sentences)
    plain = torch.autograd.grad(soft_nearest_neighbor_loss(updates, labels), parameters)
    for quick, slow in zip(fast, plain):
        torch.testing.assert_close(quick, slow, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind, operation", PLACES)
def test_ablation_from_the_layer_upward_equals_zeroed_weights(kind, operation, models, forest, sentences, generator):
    right, wrong = torch.randint(VOCABULARY, (2, len(sentences)), generator=generator)
    for layer in (0, 1, LAYERS - 1):
        model = build(kind)  # afresh, as its weights are zeroed below
        entering = capture(model, forest, [], layers=[layer], nodes=40).entering[layer]
        sublayer = find_sublayer(model, layer, operation)
        masks = {name: (torch.rand(len(linear.bias), generator=generator) > 0.5).float()
                 for name, linear in sublayer.maps.items()}
        with masked(sublayer, masks):
            states = final_states(model, forest, layer, entering, nodes=40)
            differences = logit_differences(model, states, right, wrong)
            accuracy = preference_accuracy(model, states, right, wrong)
            top = top_tokens(model, states, 5, batch_size=7)
            assert top_tokens(model, states, 10 ** 6).shape[1] == VOCABULARY
        for name, mask in masks.items():
            module = sublayer.module.get_submodule(name)
            if isinstance(module, nn.Linear):
                module.weight[mask == 0] = 0
            else:
                module.weight[:, mask == 0] = 0
        logits, rows = plain_logits(model, sentences), torch.arange(len(sentences))
        torch.testing.assert_close(differences, logits[rows, right] - logits[rows, wrong], rtol=1e-4, atol=5e-5)
        assert accuracy == (logits[rows, right] > logits[rows, wrong]).double().mean().item()
        torch.testing.assert_close(logits.gather(1, top), logits.topk(5).values, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("kind, operation", PLACES)
def test_positions_after_the_probed_one_do_not_matter(kind, operation, models, sentences):
    model = models[kind]
    sublayer = find_sublayer(model, 1, operation)
    updates = []
    for fill in (1, 7):
        rows = unshared(*padded(sentences, fill))
        updates.append(all_updates(replay(sublayer, capture_inputs(model, rows, [sublayer])[0], rows),
                                   full_masks(sublayer)))
    torch.testing.assert_close(*updates, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(updates[0], plain_updates(model, sublayer, sentences), rtol=1e-4, atol=1e-5)


def test_only_what_is_asked_for_is_kept_and_it_takes_the_bytes_foretold(models, forest):
    model = models["llama"]
    ran = []
    handles = [block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
               for layer, block in enumerate(blocks_of(model))]
    places = [find_sublayer(model, layer, operation) for layer in (0, 1) for operation in ("attn", "mlp")]
    captured = capture(model, forest, places, layers=(0, 1))
    for handle in handles:
        handle.remove()
    assert set(ran) == {0, 1}  # no block above is run
    assert [tuple(kept.shape) for kept in captured.inputs] == 2 * [(forest.nodes, D_MODEL), (len(forest), D_MODEL)]
    kept = sum(tensor.numel() * tensor.element_size() for tensor in (*captured.inputs, *captured.entering.values()))
    assert kept == 2 * bytes_kept(model.config, forest, ("attn", "mlp"), entering=True)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("shards", [False, True])
def test_saved_model_comes_back(kind, shards, models, tmp_path):
    models[kind].save_pretrained(tmp_path / "model", **{"max_shard_size": "20KB"} if shards else {})
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1 if shards else True
    loaded = load_model("model_path", str(tmp_path / "model"), CPU)
    tokens = torch.arange(12).view(2, 6)
    torch.testing.assert_close(loaded(tokens).logits, models[kind](tokens).logits, rtol=0, atol=0)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    if shards:
        sorted((tmp_path / "model").glob("*.safetensors"))[0].unlink()
        with pytest.raises(BadInput, match="^model_path: the weights in .* lack"):
            read_model_config("model_path", str(tmp_path / "model"))


def test_half_precision_and_pickled_weights_are_loaded_and_missing_ones_refused(models, tmp_path):
    model = models["pythia"]
    build("pythia").half().save_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in load_model("m", str(tmp_path / "half"), CPU).parameters()} == {
        torch.float32}
    weights = model.state_dict()
    model.config.save_pretrained(tmp_path / "pickled")
    torch.save(weights, tmp_path / "pickled/pytorch_model.bin")
    loaded = load_model("m", str(tmp_path / "pickled"), CPU)
    torch.testing.assert_close(loaded.lm_head.weight, model.lm_head.weight, rtol=0, atol=0)
    del weights["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"]
    torch.save(weights, tmp_path / "pickled/pytorch_model.bin")
    with pytest.raises(BadInput, match=r"lack .*layers\.1\.mlp\.dense_4h_to_h\.weight"):
        load_model("m", str(tmp_path / "pickled"), CPU)
    (tmp_path / "pickled/pytorch_model.bin").write_bytes(b"half a file")
    with pytest.raises(BadInput, match="^m: .*pickled cannot be loaded"):
        load_model("m", str(tmp_path / "pickled"), CPU)


@pytest.mark.parametrize("kind", CONFIGS)
def test_each_family_is_given_new_weights_where_asked(kind, models):
    def changed(**parts):
        model = build(kind)
        reinitialize(model, seed=1, **parts)
        before = dict(models[kind].named_parameters())
        return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}

    names = {name for name, _ in models[kind].named_parameters()}
    layers = ARCHITECTURES[models[kind].config.model_type].layers
    assert changed() == set()
    assert changed(everything=True) == names
    assert changed(layer=2) == {name for name in names if name.startswith(f"{layers}.2.")}
    outside = {name for name in names if not name.startswith(layers) and "norm" not in name and "ln_f" not in name}
    assert changed(embeddings=True) == outside
    assert len(outside) == (1 if kind == "llama" else 2)  # tied and without positions: one table only


def test_tokenizer_of_a_folder(tmp_path):
    words = Tokenizer(WordLevel({"the": 0, "author": 1, "[UNK]": 2}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "model")
    assert load_tokenizer("model_path", str(tmp_path / "model")).decode([1]) == "author"
    (tmp_path / "nothing").mkdir()
    with pytest.raises(BadInput, match="^model_path: .*nothing has no tokenizer"):
        load_tokenizer("model_path", str(tmp_path / "nothing"))


@pytest.mark.parametrize("path, words", [
    ("gpt2-that-is-nowhere", "'gpt2-that-is-nowhere' is no folder here and cannot be fetched .* give its folder"),
    ("EleutherAI/pythia-none", "'EleutherAI/pythia-none' is no folder here and cannot be fetched"),
    ("Models/none", "there is no Models/none"),
    ("Models/Disambiguation/none", "there is no Models/Disambiguation/none; 'python train_algorithmic_models"),
    ("./gpt2", "there is no gpt2"),
    ("/nowhere/gpt2", "there is no /nowhere/gpt2"),
    ("Models/none.gguf", "there is no Models/none.gguf"),
])
def test_a_model_that_cannot_be_had_ends_in_a_sentence(path, words):
    for function in (read_model_config, load_tokenizer):
        with pytest.raises(BadInput, match=f"^model_path: {words}") as told:
            function("model_path", path)
        assert "\n" not in str(told.value) and str(told.value).endswith((".", "makes it."))


def test_a_gguf_file_without_the_package_that_reads_it(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(BadInput, match="^model_path: .*model.gguf takes the package gguf; 'pip install gguf'"):
        load_model("model_path", str(tmp_path / "model.gguf"), CPU)


def test_a_hub_model_in_the_cache_is_a_folder(models, tmp_path, monkeypatch):
    """What is fetched, in one format; the hub itself is played by a folder."""
    asked = []

    def snapshot_download(name, allow_patterns, ignore_patterns):
        asked.append(allow_patterns)
        if "pytorch_model*.bin" in allow_patterns:
            torch.save(models["qwen2"].state_dict(), tmp_path / "cache/pytorch_model.bin")
        return str(tmp_path / "cache")

    monkeypatch.setattr("interp.models.loading.snapshot_download", snapshot_download)
    models["qwen2"].save_pretrained(tmp_path / "cache")
    tokens = torch.arange(12).view(2, 6)
    assert torch.equal(load_model("m", "some/qwen-a", CPU)(tokens).logits, models["qwen2"](tokens).logits)
    assert len(asked) == 1  # once, however often it is asked for
    shutil.move(tmp_path / "cache/model.safetensors", tmp_path / "elsewhere")
    assert torch.equal(load_model("m", "some/qwen-b", CPU)(tokens).logits, models["qwen2"](tokens).logits)
    assert len(asked) == 3
