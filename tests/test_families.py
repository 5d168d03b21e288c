"""Twenty families of models, tiny and random: hooks against TransformerLens, optimized ways against the reference.

The oracle of masks is the model itself, run whole with its weights multiplied by them.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import PreTrainedTokenizerFast

import amnesic_probing
import circuit_probing
import language_model as toys
import probing
from conftest import rows_of, sentence_jobs, write_yaml
from interp.experiment import main
from interp.methods.masks import load_circuit
from interp.models.attention import LLAMA, Attention
from interp.models.examples import Answer, Examples
from interp.models.open_model import Site, hooked, in_batches, tensor_of
from interp.models.opening import open_model
from interp.models.positions import EVERYWHERE
from interp.models.replay import ReplayedAttention, all_updates
from interp.models.sublayers import Masks, Sublayer, find_sublayer, masked, random_masks
from interp.models.suffix import final_states_from, forward_from
from language_model import assert_alike

SMALL = {"batches.TOKENS_AT_ONCE": 40, "batches.NODES": 24, "open_model.ROWS_AT_ONCE": 7}  # for several batches
WRONG_BY = {torch.float32: 2e-5, torch.bfloat16: 0.3}  # the largest difference that rounding makes, as a share

ANY, NO_MID = {"resid_pre", "resid_mid", "resid_post"}, {"resid_pre", "resid_post"}
WAYS = dict.fromkeys(toys.KINDS, ("Block", "MLP", ANY, True)) | {
    # how attention and MLP are replayed; from where the suffix forward starts; whether logits are `direct`
    **dict.fromkeys(("gpt2", "gpt2, scaled by layer", "llama", "llama, biases", "mistral", "qwen2"),
                    ("Attention", "MLP", ANY, True)),
    **dict.fromkeys(("gpt_neox", "phi", "falcon"), ("Block", "MLP", NO_MID, True)),
    **dict.fromkeys(("gemma2", "granite"), ("Block", "MLP", ANY, False)),
    "cohere": ("Block", "MLP", NO_MID, False),
    "opt": ("Block", "Block", NO_MID, True),    # its block calls the MLP's maps itself
    "bloom": ("Block", "Block", NO_MID, True),   # its modules take the residual stream, and add to it
}
NOT_SHARED = ("bloom", *(kind for kind in toys.VARIANTS if "short" in kind))  # positions or windows in their masks


@pytest.fixture(scope="module", params=toys.KINDS)
def family(request):
    """An open model, with examples that are probed where they are answered and the same probed elsewhere."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in SMALL.items():
            patched.setattr(f"interp.models.{name}", value)
        examples = toys.random_examples()
        yield SimpleNamespace(kind=request.param, model=open_model(toys.random_model(request.param), examples),
                              examples=examples, early=toys.random_examples(early=True))


def masked_weights(model: nn.Module, sublayer: Sublayer, masks: Masks) -> dict[str, Tensor]:
    """The weights of a sublayer's maps multiplied by masks, by their names in the model."""
    names = {module: name for name, module in model.named_modules()}
    return {f"{names[linear]}.weight": (linear.weight.T * masks[name]).T if isinstance(linear, nn.Linear)
            else linear.weight * masks[name] for name, linear in sublayer.maps.items()}


def run_whole(model, sublayer: Sublayer, masks: Masks, examples: Examples) -> tuple[Tensor, Tensor]:
    """The sublayer's updates where rows are probed, and the logits where they are answered."""
    found = []
    with hooked(sublayer.out.register_forward_hook(
            lambda module, arguments, output: found.append(tensor_of(output) * sublayer.scale))):
        logits = torch.func.functional_call(model.model, masked_weights(model.model, sublayer, masks),
                                            (examples.tokens,), {"use_cache": False}).logits
    rows = torch.arange(len(examples))
    return found[0].view(*examples.tokens.shape, -1)[rows, examples.probed], logits[rows, examples.answering]


# -------------------------------------------------------------------------------- one family

def test_sites_hold_what_transformer_lens_holds_there_and_patching_does_what_it_does_there(family):
    hf, examples, rows = toys.random_model(family.kind), family.early, torch.arange(len(family.early))
    bridge = build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config)  # it takes the model apart
    sites = toys.sites_of(family.model, *toys.LOCATIONS)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(examples.tokens, names_filter=list(map(str, sites)))
    cache = {site: cache[str(site)].reshape(*examples.tokens.shape, -1) for site in sites}
    seen = torch.arange(examples.tokens.shape[1]) <= examples.answering.unsqueeze(1)
    for site in sites:
        everywhere = replace(site, position=EVERYWHERE)
        assert_alike(family.model.activations(examples, [everywhere])[everywhere][seen], cache[site][seen])
    read = family.model.activations(examples, sites)
    for site, values in read.items():
        assert_alike(values, cache[site][rows, examples.probed])
        new, place = values.flip(0), site
        if site.location == "resid_mid":  # the bridge patches only what the MLP reads there
            new, place = new - read[Site(site.layer, "resid_pre")], Site(site.layer, "attn_out")

        def put(old: Tensor, hook, new=new) -> Tensor:
            return old.reshape(*examples.tokens.shape, -1).index_put((rows, examples.probed), new).view_as(old)

        with torch.no_grad():
            logits = bridge.run_with_hooks(examples.tokens, fwd_hooks=[(str(place), put)])[rows, examples.answering]
        assert_alike(family.model.logits(in_batches(family.model.patched(examples, site), values.flip(0))), logits)


def test_each_family_goes_the_ways_that_are_exact_for_it(family):
    assert family.model.family.parallel == (family.kind in toys.PARALLEL)
    assert family.model.shares == (family.kind not in NOT_SHARED)
    ways = [type(toys.replayed(family.model, family.early, *place)).__name__.removeprefix("Replayed")
            for place in toys.SUBLAYERS]
    assert ways[:2] == ways[2:]
    assert (*ways[:2], family.model.suffix, family.model.direct) == WAYS[family.kind]


@pytest.mark.parametrize("position", ["last", "first", "mark", -2])
def test_the_suffix_forward_is_the_patched_model_in_values_and_gradients(family, position):
    model, examples = family.model, replace(family.early, positions={"mark": family.early.probed - 1})
    sites = [replace(site, position=position) for site in toys.sites_of(model, *toys.LOCATIONS)]
    read, rows = model.activations(examples, sites), examples.rows_with(position)
    some = torch.tensor([4, 0, 7, 7, len(rows) - 1])
    for site, forward in forward_from(model, examples, sites).items():
        moved = read[site][rows].flip(0)[some].requires_grad_()
        found, wanted = forward(moved, some), model.patched(examples, site)(moved, some)
        assert_alike(found, wanted)
        gradients = [torch.autograd.grad(values.pow(3).sum(), moved)[0] for values in (found, wanted)]
        if position == "last" or site.layer < toys.LAYERS - 1:  # above the last attention earlier tokens change nothing
            assert_alike(*gradients, tolerance=1e-4)
        assert_alike(in_batches(forward, read[site][rows]), model.final_states(examples)[rows])  # nothing is changed


@pytest.mark.parametrize("layer, operation", toys.SUBLAYERS)
def test_replays_are_the_model_with_masked_weights_in_values_and_gradients(family, layer, operation):
    model, examples, sublayer = family.model, family.early, find_sublayer(family.model, layer, operation)
    way, full = toys.replayed(model, examples, layer, operation), sublayer.full_masks()
    untouched = run_whole(model, sublayer, full, examples)[0]
    assert_alike(all_updates(way, full, len(examples)), untouched)
    soft = random_masks(sublayer, seed=3)
    for masks in (soft, {name: (mask > 0.5).float() for name, mask in soft.items()}):
        wanted = run_whole(model, sublayer, masks, examples)[0]
        assert (wanted - untouched).abs().max() > 0.1 * untouched.std()  # the masks do something
        assert_alike(all_updates(way, masks, len(examples), batch_size=7), wanted)
    masks = {name: mask.requires_grad_() for name, mask in soft.items()}
    rows = torch.tensor([3, 3, 30, *range(20)])
    assert_alike(*(torch.cat(torch.autograd.grad(updates.pow(3).sum(), list(masks.values()))) for updates in (
        way.update(masks, rows), run_whole(model, sublayer, masks, examples)[0][rows])), tolerance=1e-4)


@pytest.mark.parametrize("layer, operation", toys.SUBLAYERS)
def test_answers_under_masks_are_those_of_the_model_with_zeroed_weights(family, layer, operation):
    """From the bottom and from the masked layer, and in every form that answers are given in."""
    model, examples, sublayer = family.model, family.examples, find_sublayer(family.model, layer, operation)
    masks = {name: (mask > 0.5).float() for name, mask in random_masks(sublayer, seed=5).items()}
    below, logits = Site(layer, "resid_pre", EVERYWHERE), run_whole(model, sublayer, masks, examples)[1]
    entering = model.activations(examples, [below])[below]
    with masked(sublayer, masks):
        for states in (model.final_states(examples), final_states_from(model, examples, layer, entering)):
            assert_alike(model.logits(states), logits)
    rows, right, wrong = torch.arange(len(examples)), examples.answer.right, examples.answer.wrong
    assert_alike(model.logit(states, right), logits[rows, right])
    assert torch.equal(model.is_right(states, examples.answer), logits[rows, right] > logits[rows, wrong])
    assert_alike(model.loss(states, examples.answer), F.softplus(logits[rows, wrong] - logits[rows, right]))
    likeliest = Answer(torch.where(rows % 2 == 0, logits.argmax(-1), right))
    assert torch.equal(model.is_right(states, likeliest), logits.argmax(-1) == likeliest.right)
    assert_alike(model.loss(states, likeliest), F.cross_entropy(logits, likeliest.right, reduction="none"))
    assert_alike(logits.gather(1, model.top_tokens(states, 5)), logits.topk(5).values)
    assert_alike(final_states_from(model, examples, layer, entering), model.final_states(examples))  # whole again


def test_rows_do_not_depend_on_what_they_are_batched_with(family):
    lengths = family.examples.lengths
    row, order = int((lengths == 4).nonzero()[0]), lengths.argsort()
    for examples in (family.examples, family.early):
        wanted = toys.everything(family.model, examples)
        for others in ([], order[:3].tolist(), order[-3:].tolist()):  # alone, with shorter ones, with longer ones
            some = torch.tensor([*others, row])
            few = examples[some]
            few = replace(few, tokens=few.tokens[:, :int(few.lengths.max())].clone())
            few.tokens[torch.arange(few.tokens.shape[1]) >= few.lengths.unsqueeze(1)] = 7  # padding is not 0
            for name, values in toys.everything(family.model, few).items():
                assert (values - wanted[name][some]).abs().max() < 1e-4 * wanted[name].std(), name


# -------------------------------------------------------------------------- what is written wrong

@pytest.mark.parametrize("dtype", WRONG_BY)
@pytest.mark.parametrize("kind, wrong, keys", [
    ("qwen3", LLAMA, 2),                                                     # which norms its queries and keys
    ("llama", Attention(("k_proj", "q_proj", "v_proj"), LLAMA.rotary), 4),   # of shapes that fit
    ("llama", Attention(("k_proj", "q_proj", "v_proj"), LLAMA.rotary), 2),   # and that do not
    ("llama", Attention(LLAMA.maps), 4),
])
def test_a_family_that_is_written_down_wrongly_is_found_out(kind, wrong, keys, dtype, monkeypatch, capsys):
    examples = toys.random_examples()
    model = open_model(toys.random_model(kind, num_key_value_heads=keys).to(dtype), examples)
    sublayer = find_sublayer(model, 1, "attn")
    masks = random_masks(sublayer, seed=7)
    monkeypatch.setattr("interp.models.attention.FAMILIES", {kind: wrong})
    way = toys.replayed(model, examples, 1, "attn")
    assert not isinstance(way, ReplayedAttention)
    wanted = run_whole(model, sublayer, {name: mask.to(dtype) for name, mask in masks.items()}, examples)[0].float()
    assert_alike(all_updates(way, masks, len(examples)), wanted, WRONG_BY[dtype])


# --------------------------------------------------------------------------- the command lines

@pytest.mark.parametrize("kind", toys.FAMILIES)
def test_every_method_runs_on_every_family(kind, sentences, tmp_path, monkeypatch, capsys):
    if kind == "qwen2":  # transformers reads whatever tokenizer a Qwen2 has as byte pairs
        monkeypatch.setattr("interp.models.loading.AutoTokenizer", PreTrainedTokenizerFast)
    rows, parallel = {}, kind in toys.PARALLEL

    def run(script, values: dict) -> int:
        return main(script.SCRIPT, ["--config", str(write_yaml(tmp_path / "c.yaml", values))])

    for script, values in sentence_jobs(sentences, kind, tmp_path, middle=not parallel).items():
        assert run(script, values) == 0
        rows[script] = rows_of(tmp_path / script.__name__ / "results.csv")
        assert len(rows[script]) == (2 if script is circuit_probing or not parallel else 1)
    if parallel:
        assert run(probing, sentence_jobs(sentences, kind, tmp_path / "none")[probing]) == 2
        said = capsys.readouterr().err
        assert "has no resid_mid: attention and MLP of" in said and "; take resid_post instead" in said

    tokens = sentences.tokenizer(sentences.gen["sentence"].tolist(), return_tensors="pt")["input_ids"]
    model = toys.random_model(kind)
    right, wrong = (torch.tensor(sentences.tokenizer.convert_tokens_to_ids(sentences.gen[column].tolist()))
                    for column in ("right", "wrong"))

    def accuracy(weights: dict[str, Tensor]) -> float:
        """By the whole model's logits after whole sentences."""
        logits = torch.func.functional_call(model, weights, (tokens,)).logits[:, -1]
        return (logits.gather(1, right.unsqueeze(1)) > logits.gather(1, wrong.unsqueeze(1))).double().mean().item()

    for script, of_script in rows.items():
        column = "gen_vanilla_acc" if script is amnesic_probing else "vanilla_acc_gen"
        assert {float(row[column]) for row in of_script} == {accuracy({})}
    opened = open_model(model, Examples(tokens, *[torch.full((6,), 4)] * 2, {}, Answer(right, wrong)))
    for row in rows[circuit_probing]:
        [file] = (tmp_path / "circuits").glob(f"*_{row['operation']}_*")
        ablated = masked_weights(model, find_sublayer(opened, 0, row["operation"]), load_circuit(file)[0].ablation())
        assert float(row["ablated_acc_gen"]) == accuracy(ablated)
