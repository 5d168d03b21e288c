"""What an open model, its batches and its examples promise whatever the family; families are in test_families.py."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from interp.models import open_model
from interp.models.batches import NODES, batches_of, trees_of
from interp.models.examples import Answer, Examples, distinct, from_rows, rows_of
from interp.models.family import family_of
from interp.models.open_model import OpenModel, Site, alike, in_batches
from interp.models.opening import CannotOpen
from interp.models.opening import open_model as opened
from interp.models.sublayers import find_sublayer, masked
from interp.models.suffix import forward_from
from interp.runs.config import BadInput
from language_model import D_MODEL, LOCATIONS, PLAIN, VOCABULARY, random_examples, random_model, sites_of


def test_a_tree_holds_each_prefix_once_and_a_node_sees_its_ancestors_and_itself():
    tokens, last = from_rows([[5, 6, 7], [5, 6, 8], [5, 6], [9], [5, 6, 7], [4, 6, 7]])
    examples = Examples(tokens, last, last, {}, Answer(last))
    [tree] = trees_of(examples)
    assert tree.tokens.shape == (1, 8) and sorted(tree.rows.tolist()) == list(range(6))
    for row, path in zip(tree.rows.tolist(), tree.place.tolist()):
        path, prefix = path[:examples.lengths[row]], rows_of(examples)[row]
        assert tree.tokens[0, path].tolist() == prefix
        assert tree.inputs["position_ids"][0, path].tolist() == list(range(len(prefix)))
        assert (tree.inputs["attention_mask"][0, 0, path[-1]] == 0).nonzero().flatten().tolist() == sorted(path)
    assert len(batches_of(random_examples(), True)[0].tokens) == 1 < len(batches_of(random_examples(), False)[0].tokens)
    unlike = Examples(torch.arange(80).view(10, 8), *[torch.full((10,), 7)] * 2, {}, Answer(last))
    assert len(batches_of(unlike, True)[0].tokens) == 10  # where sharing saves nothing


def test_a_model_is_opened_with_the_optimized_ways_that_are_exact_and_says_which_are_not(capsys):
    """A window shorter than what a tree packs together (GPT-Neo); positions in the masks, no MLP alone (BLOOM)."""
    for model, words in ((random_model("gpt_neo"), []),
                         (random_model("gpt_neo", window_size=9), ["share what they begin with"]),
                         (random_model("bloom"), ["from resid_mid", "share what they begin with"])):
        assert opened(model, random_examples()).shares is not bool(words)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == len(words) and all(word in line for word, line in zip(words, lines))


def test_a_model_whose_hooks_give_something_else_is_not_opened():
    with pytest.raises(CannotOpen, match="layer 0 of a 'bloom' model gives more than what enters"):
        opened(random_model("bloom", apply_residual_connection_post_layernorm=True), random_examples())
    model = random_model("gpt2")
    model.lm_head.register_forward_pre_hook(lambda module, arguments: (2 * arguments[0],))
    with pytest.raises(CannotOpen, match="a 'gpt2' model gives other logits with its hooks than without"):
        opened(model, random_examples())


def test_rows_whose_answers_depend_on_longer_ones_are_refused_and_of_one_kind_opened():
    """Rotary factors that change where the longest row of a batch has more than five tokens."""
    longrope = {"rope_type": "longrope", "rope_theta": 1e4, "long_factor": [3.0, 4.0, 5.0, 6.0], "factor": 8.0,
                "short_factor": [1.0] * 4, "original_max_position_embeddings": 5}
    model = random_model("phi3", original_max_position_embeddings=5, rope_parameters=longrope)
    examples = random_examples()
    short, long = (examples[rows.nonzero().flatten()] for rows in (examples.lengths <= 5, examples.lengths > 5))
    assert opened(model, short).suffix == opened(model, long).suffix != frozenset()
    for splits in ([examples], [short, long]):
        with pytest.raises(CannotOpen, match="a 'phi3' model gives a row another answer beside longer rows"):
            opened(model, *splits)


@pytest.mark.parametrize("kind, shape, words", [
    ("jetmoe", {"num_key_value_heads": 2, "kv_channels": 8}, "input_linear"),
    ("glm4_moe", {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
                  "n_routed_experts": 4, "moe_intermediate_size": 16, "num_key_value_heads": 4}, "experts.gate_up"),
])
def test_masks_that_do_not_cover_an_mlp_of_experts_are_refused(kind, shape, words):
    config = AutoConfig.for_model(kind, **PLAIN | {"num_local_experts": 4, "num_experts_per_tok": 2} | shape)
    model = opened(AutoModelForCausalLM.from_config(config).eval().requires_grad_(False), random_examples())
    with pytest.raises(BadInput, match=f"the mlp of layer 1 in a '{kind}' model has weights, such as .*{words}"):
        find_sublayer(model, 1, "mlp")
    assert find_sublayer(model, 1, "mlp", partial=True).maps


def test_a_row_longer_than_a_tree_is_opened():
    tokens, last = from_rows([[1, 2, 3], [4] * (NODES + 8)])
    model = opened(random_model("gpt2", n_positions=NODES + 8), Examples(tokens, last, last, {}, Answer(last)))
    assert model.shares and model.suffix == {"resid_pre", "resid_mid", "resid_post"}


def test_a_single_wrong_row_is_not_averaged_away(generator):
    wanted, wrong = torch.randn(50, 8, generator=generator), torch.arange(50).unsqueeze(1) == 7
    for dtype in open_model.TOLERANCE:
        assert not alike(wanted + 0.1 * wrong, wanted, dtype)
    assert not alike(wanted[:1], wanted) and not alike(wanted * torch.nan, wanted)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "granite", "gemma2"])
def test_patching_an_activation_with_itself_changes_nothing_with_another_something(kind):
    examples = random_examples(early=True)
    model = opened(random_model(kind), examples)
    clean, sites = model.final_states(examples), sites_of(model, *LOCATIONS)
    read, forward = model.activations(examples, sites), forward_from(model, examples, sites)
    for site, values in read.items():  # never by the suffix forward, which has the answering token only
        assert values.shape == (len(examples), D_MODEL)
        torch.testing.assert_close(in_batches(forward[site], values), clean, rtol=1e-5, atol=1e-5)
        assert (in_batches(forward[site], values.flip(0)) - clean).abs().max() > 0.01


def test_no_block_is_run_that_nothing_needs_and_rows_of_the_same_tokens_once():
    examples, ran, tokens = random_examples(), [], []
    model = opened(random_model("llama", num_hidden_layers=3), examples, budget=100)
    model.shares = False
    for layer, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    model.blocks[0].register_forward_pre_hook(lambda module, arguments: tokens.append(len(arguments[0])))
    for sites, layers in (([Site(1, "attn_out")], {0, 1}), ([Site(1, "resid_pre"), Site(0, "mlp_out")], {0})):
        ran.clear(), tokens.clear()
        read_rows, which = distinct(examples, ["probed"])
        read = model.activations(read_rows, sites)
        assert set(ran) == layers and sum(tokens) == len(examples.inputs().unique()) < len(examples)
        assert all(values[which].equal(model.activations(examples, [site])[site]) for site, values in read.items())
    assert [model.portion(30, 20), model.portion(30, 2), model.portion(1000, 20)] == [3, 2, 1]  # kept of a pass


def test_masks_are_the_model_with_zeroed_weights_to_the_last_bit_and_gone_after_an_error():
    model, tokens = random_model("gpt2"), torch.arange(30).view(5, 6)
    sublayer = find_sublayer(OpenModel(model, family_of(model.config)), 1, "mlp")
    before, masks = model(tokens).logits, sublayer.full_masks()
    with masked(sublayer, masks):
        assert torch.equal(model(tokens).logits, before)
    masks["c_fc"][::2] = 0
    with pytest.raises(RuntimeError), masked(sublayer, masks):
        ablated = model(tokens).logits
        raise RuntimeError
    assert torch.equal(model(tokens).logits, before)
    sublayer.maps["c_fc"].weight[:, ::2] = 0
    assert torch.equal(model(tokens).logits, ablated) and not torch.equal(ablated, before)


def test_a_model_that_cannot_tell_two_answers_apart_is_not_right():
    model = random_model("gpt2")
    found, states, same = OpenModel(model, family_of(model.config)), torch.randn(2, D_MODEL), torch.tensor([4, 5])
    assert not found.is_right(states, Answer(same, same)).any()
    assert found.top_tokens(states, 10 ** 6).shape == (2, VOCABULARY)
