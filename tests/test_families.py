"""Twenty families of models, tiny and random, through one open model: against TransformerLens, the plain ways and HF.

The oracle of masks is the model itself, run whole with its weights multiplied by them.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import PreTrainedTokenizerFast

import amnesic_probing
import circuit_probing
import probing
from conftest import rows_of, sentence_jobs, sentence_values, write_yaml
from interp.experiment import main
from interp.methods.masks import load_circuit
from interp.models.examples import Answer, Examples, from_rows
from interp.models.forest import plant
from interp.models.kept import answer_from, capture
from interp.models.opened import ATTN_OUT, MLP_OUT, RESID_MID, RESID_POST, RESID_PRE, Site, hooked, tensor_of
from interp.models.opening import open_model
from interp.models.replay import LLAMA, Attention, ReplayedAttention, all_updates, replay
from interp.models.sublayers import Masks, Sublayer, find_sublayer, masked, random_masks
from interp.models.tail import tail
from language_model import (
    FAMILIES,
    LAYERS,
    PARALLEL,
    VARIANTS,
    VOCABULARY,
    random_model,
    rows_that_begin_alike,
)

LOCATIONS = (RESID_PRE, ATTN_OUT, RESID_MID, MLP_OUT, RESID_POST)
SUBLAYERS = [(layer, operation) for layer in range(LAYERS) for operation in ("attn", "mlp")]
WRITTEN_OUT = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2")  # families whose attention is known
SMALL = {"opened.NODES_AT_ONCE": 40, "opened.LOGITS_AT_ONCE": 7}
WRONG_BY = {torch.float32: 2e-5, torch.bfloat16: 0.3}  # the largest difference that rounding makes, as a share


def assert_alike(found: Tensor, wanted: Tensor, tolerance: float = 2e-5) -> None:
    """Equal but for rounding, measured by how much there is to tell apart."""
    assert found.shape == wanted.shape and wanted.std() > 1e-3
    assert (found - wanted).abs().max() < tolerance * wanted.std()


@pytest.fixture(scope="module", params=[*FAMILIES, *VARIANTS])
def family(request):
    """A model opened for rows of several lengths in a forest of several chunks, of which passes take a few at a time.

    early: the same rows, probed somewhere else than where they are answered.
    """
    with pytest.MonkeyPatch.context() as patched:
        for name, value in SMALL.items():
            patched.setattr(f"interp.models.{name}", value)
        rows, drawing = rows_that_begin_alike(), torch.Generator().manual_seed(1)
        tokens, last = from_rows(rows)
        answer = Answer(*torch.randint(VOCABULARY, (2, len(rows)), generator=drawing))
        examples = Examples(tokens, last, last, {}, answer)
        early = Examples(tokens, (last.float() * torch.rand(len(rows), generator=drawing)).round().long(), last, {},
                         answer)
        for own in (examples, early):
            own.__dict__["forest"] = plant(rows, chunk_size=20)  # as where there are thousands of rows
        yield SimpleNamespace(kind=request.param, opened=open_model(random_model(request.param), examples),
                              examples=examples, early=early)


def masked_weights(model: nn.Module, sublayer: Sublayer, masks: Masks) -> dict[str, Tensor]:
    """The weights of a sublayer's maps multiplied by masks, by their names in the model."""
    names = {module: name for name, module in model.named_modules()}
    return {f"{names[linear]}.weight": (linear.weight.T * masks[name]).T if isinstance(linear, nn.Linear)
            else linear.weight * masks[name] for name, linear in sublayer.maps.items()}


def plain(opened, sublayer: Sublayer, masks: Masks, examples: Examples) -> tuple[Tensor, Tensor]:
    """The sublayer's updates where rows are probed and the logits where they are answered, of the whole model."""
    found = []
    with hooked(sublayer.out.register_forward_hook(
            lambda module, arguments, output: found.append(tensor_of(output) * sublayer.scale))):
        logits = torch.func.functional_call(opened.model, masked_weights(opened.model, sublayer, masks),
                                            (examples.tokens,), {"use_cache": False}).logits
    rows = torch.arange(len(examples))
    return found[0].view(*examples.tokens.shape, -1)[rows, examples.probed], logits[rows, examples.answering]


# -------------------------------------------------------------------------------- one family

def test_sites_hold_what_transformer_lens_holds_there(family):
    model = random_model(family.kind)  # a second one, as the bridge takes a model apart
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    locations = [location for location in LOCATIONS if not (family.opened.family.parallel and location == RESID_MID)]
    sites = [Site(layer, location) for layer in range(LAYERS) for location in locations]
    with torch.no_grad():
        _, cache = bridge.run_with_cache(family.early.tokens, names_filter=[str(site) for site in sites])
    for site, own in zip(sites, family.opened.read(family.early, sites)):
        theirs = cache[str(site)].reshape(*family.early.tokens.shape, -1)
        assert_alike(own, theirs[torch.arange(len(own)), family.early.probed])


def test_fast_ways_are_taken_but_where_they_are_known_to_be_wrong(family):
    kind, opened = family.kind.split(",")[0], family.opened
    assert opened.family.parallel == (family.kind in PARALLEL)
    assert opened.shares == (kind != "bloom")                               # whose positions are in its masks
    assert opened.direct == (kind not in ("gemma2", "cohere", "granite"))   # which do more to their logits
    if kind != "bloom":
        mid = not opened.family.parallel and kind != "opt"                  # whose MLP is no module
        assert opened.tails == {RESID_POST} | ({RESID_MID} if mid else set())
    ways = [type(replayed(family, *place)).__name__ for place in SUBLAYERS[:2]]
    assert ways == {"bloom": ["ReplayedModel"] * 2, "phi3": ["ReplayedModule"] * 2}.get(
        kind, ["ReplayedAttention" if kind in WRITTEN_OUT else "ReplayedModule", "ReplayedMLP"])


def replayed(family, layer: int, operation: str):
    sublayer = find_sublayer(family.opened, layer, operation)
    inputs = capture(family.opened, family.early, [sublayer]).inputs[layer, operation]
    return replay(family.opened, sublayer, family.early, inputs)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_tails_are_the_patched_model_in_values_and_gradients(family, layer):
    rows = torch.tensor([4, 0, 17, 17, 30])
    for location in family.opened.tails:
        site = Site(layer, location)
        moved = family.opened.read(family.examples, [site])[0].flip(0)[rows].requires_grad_(True)
        found, wanted = (way(moved, rows) for way in (
            tail(family.opened, family.examples, site), family.opened.patched(family.examples, site)))
        assert_alike(found, wanted)
        assert_alike(*(torch.autograd.grad(states.pow(3).sum(), moved)[0] for states in (found, wanted)),
                     tolerance=1e-4)


@pytest.mark.parametrize("layer, operation", SUBLAYERS)
def test_replays_are_the_model_with_masked_weights_in_values_and_gradients(family, layer, operation):
    opened, sublayer = family.opened, find_sublayer(family.opened, layer, operation)
    way, everything = replayed(family, layer, operation), sublayer.full_masks()
    assert len(way) == len(family.early)
    untouched = plain(opened, sublayer, everything, family.early)[0]
    assert_alike(all_updates(way, everything), untouched)
    soft = random_masks(sublayer, seed=3)
    for masks in (soft, {name: (mask > 0.5).float() for name, mask in soft.items()}):
        wanted = plain(opened, sublayer, masks, family.early)[0]
        assert (wanted - untouched).abs().max() > 0.1 * untouched.std()  # the masks do something
        assert_alike(all_updates(way, masks, batch_size=7), wanted)
    masks = {name: mask.requires_grad_(True) for name, mask in soft.items()}
    rows = torch.tensor([3, 3, 30, *range(20)])
    assert_alike(*(torch.cat(torch.autograd.grad(updates.pow(3).sum(), list(masks.values()))) for updates in (
        way.update(masks, rows), plain(opened, sublayer, masks, family.early)[0][rows])), tolerance=1e-4)


@pytest.mark.parametrize("layer, operation", SUBLAYERS)
def test_answers_under_masks_are_those_of_the_model_with_zeroed_weights(family, layer, operation):
    """Rows that share what they begin with, from the bottom and from the masked layer, and what is told of answers."""
    opened, examples = family.opened, family.examples
    sublayer = find_sublayer(opened, layer, operation)
    masks = {name: (mask > 0.5).float() for name, mask in random_masks(sublayer, seed=5).items()}
    logits = plain(opened, sublayer, masks, examples)[1]
    with masked(sublayer, masks):
        for states in (opened.answer(examples), answer_from(opened, capture(opened, examples, [], [layer]), layer)):
            assert_alike(opened.logits(states), logits)
    rows, right, wrong = torch.arange(len(examples)), examples.answer.right, examples.answer.wrong
    assert_alike(opened.logit(states, right), logits[rows, right])
    assert torch.equal(opened.is_right(states, examples.answer), logits[rows, right] > logits[rows, wrong])
    assert_alike(opened.loss(states, examples.answer), F.softplus(logits[rows, wrong] - logits[rows, right]))
    likeliest = Answer(torch.where(rows % 2 == 0, logits.argmax(-1), right))
    assert torch.equal(opened.is_right(states, likeliest), logits.argmax(-1) == likeliest.right)
    assert_alike(opened.loss(states, likeliest), F.cross_entropy(logits, likeliest.right, reduction="none"))
    assert_alike(logits.gather(1, opened.top_tokens(states, 5)), logits.topk(5).values)
    assert_alike(opened.answer(examples), answer_from(opened, capture(opened, examples, [], [1]), 1))  # whole again


# -------------------------------------------------------------------------- what is written wrong

@pytest.mark.parametrize("dtype", WRONG_BY)
@pytest.mark.parametrize("kind, wrong, keys", [
    ("qwen3", LLAMA, 2),                                                     # which norms its queries and keys
    ("llama", Attention(("k_proj", "q_proj", "v_proj"), LLAMA.rotary), 4),   # of shapes that fit
    ("llama", Attention(("k_proj", "q_proj", "v_proj"), LLAMA.rotary), 2),   # and that do not
    ("llama", Attention(LLAMA.maps), 4),
    ("gpt_neox", Attention(("query_key_value",), "gpt_neox.rotary_emb"), 4),
])
def test_a_family_that_is_written_down_wrongly_is_found_out(kind, wrong, keys, dtype, monkeypatch, capsys):
    monkeypatch.setattr("interp.models.replay.ALGEBRA", {kind: wrong})
    tokens, last = from_rows(rows_that_begin_alike())
    examples = Examples(tokens, last, last, {}, Answer(last))
    model = random_model(kind, **{"num_key_value_heads": keys} if kind != "gpt_neox" else {}).to(dtype)
    opened = open_model(model, examples)
    sublayer = find_sublayer(opened, 1, "attn")
    masks = random_masks(sublayer, seed=7)
    way = replay(opened, sublayer, examples, capture(opened, examples, [sublayer]).inputs[1, "attn"])
    assert not isinstance(way, ReplayedAttention)
    [said] = capsys.readouterr().out.strip().splitlines()
    assert said.startswith(f"{kind}: ") and said.endswith("so that this fast way is not used.")
    wanted = plain(opened, sublayer, {name: mask.to(dtype) for name, mask in masks.items()}, examples)[0].float()
    assert_alike(all_updates(way, masks), wanted, WRONG_BY[dtype])


# --------------------------------------------------------------------------- the command lines

def test_sharing_is_tried_though_the_rows_at_hand_share_nothing():
    """GPT-Neo's local attention counts how far apart two nodes are packed; rows to come may share what these do not."""
    drawing = torch.Generator().manual_seed(0)
    alone = from_rows(torch.randint(3, VOCABULARY, (30, 6), generator=drawing).tolist())
    shared = from_rows([[5, 6, 7, 8, first, second] for first in range(20, 26) for second in range(10, 40)])
    train, test = (Examples(tokens, last, last, {}, Answer(last)) for tokens, last in (alone, shared))
    assert train.forest is train.rows_apart and test.forest is not test.rows_apart
    opened = open_model(random_model("gpt_neo", window_size=32), train)
    found = opened.answer(test)
    opened.shares = False
    assert_alike(found, opened.answer(test))


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_method_runs_on_every_family(kind, sentences, tmp_path, monkeypatch):
    if kind == "qwen2":  # transformers reads whatever tokenizer a Qwen2 has as byte pairs
        monkeypatch.setattr("interp.models.loading.AutoTokenizer", PreTrainedTokenizerFast)
    rows = {}
    places = 1 + (kind not in PARALLEL)
    for script, values in sentence_jobs(sentences, kind, tmp_path, middle=places == 2).items():
        assert main(script.SCRIPT, ["--config", str(write_yaml(tmp_path / "c.yaml", values))]) == 0
        rows[script] = rows_of(tmp_path / script.__name__ / "results.csv")
        assert len(rows[script]) == (2 if script is circuit_probing else places)

    model, tokens = random_model(kind), sentences.tokenizer(sentences.gen["sentence"].tolist(), return_tensors="pt")
    right, wrong = (torch.tensor(sentences.tokenizer.convert_tokens_to_ids(sentences.gen[column].tolist()))
                    for column in ("right", "wrong"))

    def accuracy(weights: dict[str, Tensor]) -> float:
        """The plain way: the whole model's logits after whole sentences."""
        logits = torch.func.functional_call(model, weights, (tokens["input_ids"],)).logits[:, -1]
        return (logits.gather(1, right.unsqueeze(1)) > logits.gather(1, wrong.unsqueeze(1))).double().mean().item()

    for script, own in rows.items():
        for row in own:
            assert float(row["gen_vanilla_acc" if script is amnesic_probing else "vanilla_acc_gen"]) == accuracy({})
    opened = open_model(model, Examples(tokens["input_ids"], *[torch.full((6,), 4)] * 2, {}, Answer(right, wrong)))
    for row in rows[circuit_probing]:
        [file] = (tmp_path / "circuits").glob(f"*_{row['operation']}_*")
        ablated = masked_weights(model, find_sublayer(opened, 0, row["operation"]), load_circuit(file)[0].ablation())
        assert float(row["ablated_acc_gen"]) == accuracy(ablated)


@pytest.mark.parametrize("kind", PARALLEL)
def test_a_parallel_block_has_nothing_between_its_sublayers(kind, sentences, tmp_path, capsys):
    values = sentence_values(sentences, kind, tmp_path / "results") | {
        "residual_location_list": ["resid_post", "resid_mid"], "lr_list": [0.1], "num_epochs": 3,
        "batch_size_list": [9]}
    assert main(probing.SCRIPT, ["--config", str(write_yaml(tmp_path / "c.yaml", values))]) == 2
    said = capsys.readouterr().err
    assert f"has no resid_mid: attention and MLP of a '{kind}' model read the same residual stream." in said
    assert not (tmp_path / "results").exists()
