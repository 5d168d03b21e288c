"""The prefix forest, and what an open model's verbs promise whichever way they go; families are in test_families.py."""

import pytest
import torch

from interp.models.examples import Answer, Examples, from_rows
from interp.models.family import family_of
from interp.models.forest import plant, unshared
from interp.models.kept import bytes_kept, capture
from interp.models.opened import ATTN_OUT, MLP_OUT, RESID_MID, RESID_POST, RESID_PRE, OpenModel, Site, run_all
from interp.models.opening import CannotOpen, open_model
from interp.models.replay import all_updates, replay
from interp.models.sublayers import find_sublayer, masked, random_masks
from interp.models.tail import run_on_from
from language_model import D_MODEL, LAYERS, VOCABULARY, random_model, rows_that_begin_alike

EVERYWHERE = (RESID_PRE, ATTN_OUT, RESID_MID, MLP_OUT, RESID_POST)


def examples_of(rows: list[list[int]], probed=None, fill: int = 0) -> Examples:
    """Rows that are answered after their last token, and probed there or where `probed` says."""
    tokens, last = from_rows(rows)
    tokens[torch.arange(tokens.shape[1]) > last.unsqueeze(1)] = fill
    return Examples(tokens, last if probed is None else probed, last, {}, Answer(torch.zeros_like(last)))


def plain(opened: OpenModel, examples: Examples) -> torch.Tensor:
    """The model's own logits after each row by itself."""
    return torch.cat([opened.model(torch.tensor([row[:end + 1]]), use_cache=False).logits[:, -1]
                      for row, end in zip(examples.tokens.tolist(), examples.answering.tolist())])


# ------------------------------------------------------------------------------------ forest

def test_forest_holds_each_row_once_and_shares_what_begins_alike():
    rows = [[5, 6, 7], [5, 6, 8], [5, 6], [9], [5, 6, 7], [4, 6, 7]]
    forest = plant(rows, chunk_size=384)
    assert forest.tokens.shape == (1, 8) and len(forest) == 6 and forest.nodes == 8
    assert forest.compression == pytest.approx(15 / 8)
    tokens, positions = forest.tokens.flatten(), forest.positions.flatten()
    ends = forest.nodes_at(forest.lengths - 1)
    for row, prefix in enumerate(rows):
        path = forest.path[row, :forest.lengths[row]]
        assert tokens[path].tolist() == prefix and positions[path].tolist() == list(range(len(prefix)))
        assert path[-1] == ends[row] == forest.path[row, -1]
        seen = (forest.mask[0, 0, path[-1]] == 0).nonzero().flatten()
        assert seen.tolist() == sorted(path.tolist())
    assert ends[0] == ends[4]


def test_chunks_share_nothing_and_grow_for_a_long_row():
    rows = rows_that_begin_alike()
    forest = plant(rows, chunk_size=20)
    ends = forest.nodes_at(forest.lengths - 1)
    assert forest.tokens.shape[0] > 2 and forest.tokens.shape[1] <= 20
    length = forest.tokens.shape[1]
    assert (forest.path // length == (ends // length).unsqueeze(1)).all()
    found = torch.cat([forest.rows_in(chunks, ends)[0] for chunks in forest.batches(nodes=40)])
    assert found.sort().values.tolist() == list(range(len(rows)))
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
    assert examples_of(chosen).forest.compression > 3
    few = examples_of(chosen[:20])  # which share little: it is not worth a mask for each row
    assert few.forest is few.rows_apart
    assert torch.equal(few.forest.tokens, unshared(few.tokens, few.lengths).tokens)


# ----------------------------------------------------------------------------------- opening

def test_a_model_is_opened_with_whatever_of_its_fast_ways_is_right_and_says_what_is_not(capsys):
    """A window shorter than what the forest packs together (GPT-Neo), and no positions to give (BLOOM)."""
    examples = examples_of([[5, 6, 7, 8, 9, last] for last in range(10, 50)])
    assert examples.forest is not examples.rows_apart
    for model, shares in ((random_model("gpt_neo"), True), (random_model("gpt_neo", window_size=8), False),
                          (random_model("bloom"), False)):
        opened = open_model(model, examples)
        said = "rows that share what they begin with" in capsys.readouterr().out
        assert opened.shares is shares and said is not shares
        with torch.no_grad():
            torch.testing.assert_close(opened.logits(opened.answer(examples)), plain(opened, examples), rtol=1e-4,
                                       atol=1e-4)


def test_a_block_that_does_more_than_add_its_updates_is_not_opened():
    with pytest.raises(CannotOpen, match="layer 0 of a 'bloom' model gives more than what enters"):
        open_model(random_model("bloom", apply_residual_connection_post_layernorm=True), examples_of([[3, 4], [5, 6]]))


# ------------------------------------------------------------------------------------- verbs

@pytest.mark.parametrize("kind", ["gpt2", "opt", "granite", "gemma2"])
def test_patching_an_activation_with_itself_changes_nothing_with_another_something(kind, monkeypatch):
    monkeypatch.setattr("interp.models.opened.ROWS_AT_ONCE", 7)
    rows = rows_that_begin_alike()
    earlier = torch.tensor([(len(row) - 1) // 2 for row in rows])
    examples = examples_of(rows, earlier)
    opened = open_model(random_model(kind), examples)
    clean = opened.answer(examples)
    for site in (Site(layer, location) for layer in range(LAYERS) for location in EVERYWHERE):
        [activations] = opened.read(examples, [site])
        assert activations.shape == (len(rows), D_MODEL)
        run_on = run_on_from(opened, examples, site)  # never by the tail, which has the last token only
        torch.testing.assert_close(run_all(run_on, activations), clean, rtol=1e-5, atol=1e-5)
        assert (run_all(run_on, activations.flip(0)) - clean).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text", "bloom"])  # by algebra, as a module, by the model itself
@pytest.mark.parametrize("operation", ["attn", "mlp"])
def test_positions_after_the_probed_one_do_not_matter(kind, operation):
    rows, updates = rows_that_begin_alike(), []
    for fill in (1, 7):
        for more in ([], [fill, fill]):  # what fills rows up, and tokens of the rows themselves
            examples = examples_of([row + more for row in rows], torch.tensor([len(row) - 1 for row in rows]), fill)
            opened = open_model(random_model(kind), examples)
            sublayer = find_sublayer(opened, 1, operation)
            inputs = capture(opened, examples, [sublayer]).inputs[1, operation]
            updates.append(all_updates(replay(opened, sublayer, examples, inputs), random_masks(sublayer)))
    for own in updates[1:]:
        torch.testing.assert_close(own, updates[0], rtol=1e-5, atol=1e-5)


def test_only_what_is_asked_for_is_kept_and_it_takes_the_bytes_foretold():
    examples, ran = examples_of(rows_that_begin_alike()), []
    assert examples.forest is not examples.rows_apart
    opened = open_model(random_model("llama", num_hidden_layers=3), examples)
    for layer, block in enumerate(opened.blocks):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    sublayers = [find_sublayer(opened, layer, operation) for layer in (0, 1) for operation in ("attn", "mlp")]
    inputs = capture(opened, examples, sublayers).inputs
    assert set(ran) == {0, 1}  # no block above is run
    nodes = examples.forest.nodes
    assert {place: tuple(kept.shape) for place, kept in inputs.items()} == {
        (layer, operation): (count, D_MODEL) for layer in (0, 1)
        for operation, count in (("attn", nodes), ("mlp", len(examples)))}
    entering = capture(opened, examples, sublayers, layers=(0, 1)).entering
    kept = sum(tensor.numel() * tensor.element_size() for tensor in (*inputs.values(), *entering.values()))
    assert kept == 2 * bytes_kept(opened, examples, ("attn", "mlp"), entering=True)


def test_masks_are_the_model_with_zeroed_weights_to_the_last_bit_and_gone_after_an_error():
    model, tokens = random_model("gpt2"), torch.arange(30).view(5, 6)
    sublayer = find_sublayer(OpenModel(model, family_of(model.config)), 1, "mlp")
    before = model(tokens).logits
    masks = sublayer.full_masks()
    masks["c_fc"][::2] = 0
    with pytest.raises(RuntimeError), masked(sublayer, masks):
        ablated = model(tokens).logits
        raise RuntimeError
    torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=0)
    sublayer.maps["c_fc"].weight[:, ::2] = 0
    torch.testing.assert_close(model(tokens).logits, ablated, rtol=0, atol=0)


def test_a_model_that_cannot_tell_two_answers_apart_is_not_right():
    model = random_model("gpt2")
    opened, states, same = OpenModel(model, family_of(model.config)), torch.randn(2, D_MODEL), torch.tensor([4, 5])
    assert not opened.is_right(states, Answer(same, same)).any()
    assert opened.top_tokens(states, 10 ** 6).shape == (2, VOCABULARY)
