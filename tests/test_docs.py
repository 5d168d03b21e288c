"""The pages: their tables, links and commands, and their files and code, which are run on tiny models."""

import contextlib
import glob
import importlib
import io
import json
import math
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import keep_runs
import make_tables
import pandas as pd
import pytest
import torch
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES, ArchitectureAdapterFactory

from analysis.compare_with_published import put_beside, read_published
from analysis.tables import read_experiment
from conftest import CIRCUITS, COMPARISON, METHODS, SENTENCES, TRAINING, execute, rows_of, write_yaml
from interp import methods
from interp.experiment import main
from interp.methods.interchange.registry import INTERCHANGES, Compared
from interp.methods.table import METHODS as METHODS_OF_PAPER
from interp.methods.table import Method
from interp.models import attention
from interp.runs.config import PROJECT_ROOT, describe_keys, read_yaml
from interp.tasks.marks import read_marks, unmarked
from language_model import save_random_model

DOCS = PROJECT_ROOT / "docs"
PAGES = sorted({*PROJECT_ROOT.glob("*.md"), *DOCS.rglob("*.md"), *PROJECT_ROOT.glob("*/README.md")})


def text_of(page: str) -> str:
    return (DOCS / page).read_text()


def blocks_of(page: str, *languages: str) -> list[tuple[str, str]]:
    """The fenced blocks of some languages, each with its language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)
    return [(language, block) for language, block in found if language in languages]


def write_files(page: str, folder: Path, places: dict[str, str]) -> dict[str, Path]:
    """The files of a page (`NAME`: and a block), with paths that lie elsewhere here. Returns them by name."""
    found = re.findall(r"^`([^`\n]+)`:\n\n```\w+\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)
    for name, text in found:
        for place, target in places.items():
            text = text.replace(place, target)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return {name: folder / name for name, _ in found}


def run_file(script, config: Path, results: Path, *changes: str) -> list[dict]:
    """A script's command line on a page's config, some keys set otherwise; its results."""
    assert main(script, ["--config", str(config), "--set", *changes]) == 0
    return rows_of(results / "results.csv")


def test_keys_are_what_the_scripts_say():
    assert text_of("keys.md") == runpy.run_path(str(DOCS / "make_keys.py"))["page"](), "run python docs/make_keys.py"
    for name, method in INTERCHANGES.items():
        options = text_of("keys.md").partition("## Options of the compared")[2].partition(f"`{name}`")[2].split("\n\n")
        assert all(f"| `{option}` | {f'`{default}`' * (default != '')} | {meaning}" in options[1] and meaning
                   for option, default, meaning in describe_keys(method.options))


def test_tables_are_those_of_the_kept_runs():
    marked = [found[1] for file in make_tables.PAGES for found in make_tables.MARKED.finditer(file.read_text())]
    assert sorted(marked) == sorted(make_tables.MADE)
    for file, text in make_tables.pages().items():
        assert text == file.read_text(), "run python docs/make_tables.py"


def headings_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    texts = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT_ROOT)))
def test_what_a_page_points_to_is_there(page):
    for target in re.findall(r"\]\((?!http)([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in headings_of(file), target
    new = {"interp/methods/class_means.py", "interp/methods/interchange/ridge.py"}  # what a recipe makes
    for path in set(re.findall(r"`((?:interp|tests|benchmarks|analysis)/[\w/]+\.py)", page.read_text())) - new:
        assert (PROJECT_ROOT / path).exists(), path
    made = {*re.findall(r"^`([^`\n]+)`:$", page.read_text(), re.MULTILINE)}  # files that the page gives
    for block in re.findall(r"^```\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        block = re.sub(r"\\\n\s*", " ", block).replace("$c/", "configs/Disambiguation/").replace("$model", "smollm2")
        for script, rest in re.findall(r"^ *python ((?!SCRIPT)\S+\.py)([^#\n]*)", block, re.MULTILINE):
            assert script in made or (PROJECT_ROOT / script).exists(), script
            for path in (path for config in re.findall(r"\S+\.yaml", rest) for path in expand(config)):
                assert path in made or glob.glob(str(PROJECT_ROOT / path)), path


def expand(path: str) -> list[str]:
    """A path with the words of its braces."""
    if not (braces := re.search(r"\{(.*?)\}", path)):
        return [path]
    return [end for word in braces[1].split(",")
            for end in expand(path[:braces.start()] + word + path[braces.end():])]


@pytest.mark.parametrize("experiment", sorted({*keep_runs.EXPERIMENTS.values()}))
def test_the_kept_runs_are_complete(experiment):
    records = json.loads((keep_runs.TABLES / f"{experiment}.json").read_text())
    counts = keep_runs.read(keep_runs.TABLES / f"{experiment}.csv")["run"].value_counts()
    assert {*counts.index} == {*records} and {keep_runs.experiment_of(run) for run in records} == {experiment}
    for run, record in records.items():
        swept = [len(values) for key, values in record["config"].items() if key.endswith("_list") and values]
        assert counts[run] == math.prod(swept), run
        assert record["inputs"] or record["config"].get("data_dir"), run
        assert all({"commit", "packages", "device_name", "start"} <= {*session} for session in record["sessions"]), run


def test_runs_are_kept_replaced_and_unpacked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(keep_runs, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(keep_runs, "EXPERIMENTS", dict.fromkeys(["SV_Agreement", "Reflexives"], "mine"))

    def keep(run: str, text: str) -> None:
        keep_runs.write_text(tmp_path / "Results" / run / "results.csv", text)
        write_yaml(tmp_path / "Results" / run / "config.yaml", {"target_layer_list": [0, 1], "dtype": "float32"})
        keep_runs.write_text(tmp_path / "Results" / run / "run.json", '{"config": "", "inputs": {}, "sessions": []}')
        monkeypatch.setattr("sys.argv", ["keep_runs", run, "--results", str(tmp_path / "Results")])
        keep_runs.main()

    for run, text, sentence in (("SV_Agreement/DAS/m", "target_layer,acc\n0,0.10\n", "has 1 of 2 settings"),
                                ("Mine/m", "target_layer,acc\n0,0.10\n1,1e-07\n", "not of Mine")):
        with pytest.raises(SystemExit):
            keep(run, text)
        assert sentence in capsys.readouterr().err
    keep("SV_Agreement/DAS/m", "target_layer,acc\n0,0.10\n1,1e-07\n")
    keep("Reflexives/m", "target_layer,iia,word\n0,0.5,\n1,0.50,None\n")
    keep("SV_Agreement/DAS/m", "target_layer,acc\n0,0.20\n1,1e-07\n")
    assert (tmp_path / "tables/mine.csv").read_text().splitlines() == [
        "run,target_layer,acc,iia,word", "Reflexives/m,0,,0.5,", "Reflexives/m,1,,0.50,None",
        "SV_Agreement/DAS/m,0,0.20,,", "SV_Agreement/DAS/m,1,1e-07,,"]
    keep_runs.unpack(tmp_path / "unpacked")
    for run in ("SV_Agreement/DAS/m", "Reflexives/m"):
        before, after = tmp_path / "Results" / run, tmp_path / "unpacked" / run
        assert (after / "results.csv").read_text() == (before / "results.csv").read_text()
        assert read_yaml(after / "config.yaml") == read_yaml(before / "config.yaml")


@pytest.mark.parametrize("page", [
    "experiment_1_comparison", "experiment_2_comparison", "experiment_2_task_2", "experiment_3"])
def test_our_values_beside_the_published_are_those_of_the_kept_runs(page, tmp_path):
    experiment, method, names, rows = re.match(r"# (\w+)", text_of(f"tables/{page}.md"))[1], "", [], []
    for line in text_of(f"tables/{page}.md").splitlines():
        cells = [cell.strip().removesuffix(" **") for cell in line.strip("|").split("|")]
        if line.startswith("## "):
            *task, method = line.removeprefix("## ").split()
        elif line.startswith("| ") and "ours" in line:
            names = cells
        elif line.startswith("| ") and names:
            rows.append({"experiment": experiment, "task": " ".join(task), "method": method, "checkpoint": ""}
                        | dict(zip(names, cells)))
    stated = pd.DataFrame(rows).rename(columns={"published": "value"}).fillna("")
    stated.to_csv(tmp_path / "published.csv", index=False)
    keep_runs.unpack(tmp_path)
    found = pd.concat([put_beside(cells, pd.read_csv(tmp_path / run / "results.csv"))
                       for run, cells in read_published(tmp_path / "published.csv").groupby("run", sort=False)])
    assert len(found) == len(stated) > 200
    ours = stated.get("ours, float32", pd.Series("", stated.index)).where(lambda column: column != "", stated["ours"])
    assert [f"{value:.6g}" for value in found["ours"]] == ours.tolist()


@pytest.fixture
def tables_restored():
    """Adapters and algebra that a page adds are gone afterwards."""
    tables = (SUPPORTED_ARCHITECTURES, ArchitectureAdapterFactory._adapters, attention.FAMILIES)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before):
        table.clear()
        table.update(entries)


def test_a_family_is_added_as_its_page_says(tables_restored):
    names, printed = {}, ""
    for language, block in blocks_of("add_a_model_family.md", "python", "text"):
        if language == "text":
            assert printed == block
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block, "add_a_model_family.md", "exec"), names)
        printed = out.getvalue()


@pytest.fixture
def mean_difference(tmp_path, monkeypatch):
    """The script of the page on adding a method, and the page's files by name."""
    files = write_files("add_a_method.md", tmp_path, {})
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "interp/methods")])
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("mean_difference"), files
    for name in ("mean_difference", "interp.methods.class_means"):
        del sys.modules[name]


def test_a_method_is_added_as_its_page_says(mean_difference, tiny, tmp_path, monkeypatch):
    script, files = mean_difference
    results = tmp_path / "Results/mean_difference/a2"
    rows = run_file(script.SCRIPT, files["configs/Quickstart/mean_difference/a2.yaml"], results, *(
        f"{key}={tiny.circuits[key]}" for key in ("model_path", "train_data_path", "test_data_path")),
        f"results_dir={results}")
    assert [row["residual_location"] for row in rows] == ["resid_mid", "resid_post"]
    assert all(float(row["accuracy_lost"]) == float(row["vanilla_acc"]) - float(row["erased_acc"]) for row in rows)
    assert all(row["dimensions"] == "5" and 0 <= float(row["test_acc"]) <= 1 for row in rows)  # a² has six values

    [entry] = [block for _, block in blocks_of("add_a_method.md", "python") if "Method(" in block]
    added = eval(f"{{{entry}}}", {"Method": Method})["mean_difference"]
    monkeypatch.setitem(METHODS_OF_PAPER, "mean_difference", added)
    table = read_experiment(tmp_path / "Results", ["a2"], {})
    assert list(table["mean_difference:test_acc"]) == [float(row["test_acc"]) for row in rows]
    assert set(table["component"]) == {"attn", "mlp"}


def test_the_new_method_takes_sentences_too(mean_difference, tmp_path):
    script, files = mean_difference
    table = pd.DataFrame([{"sentence": f"{first} author{'s' * number} behind {second}{other}", "labels": number}
                          for number in (0, 1) for first in ("the", "a")
                          for second in ("", "the ", "a ") for other in ("guard", "guards")])
    table.to_csv(tmp_path / "agreement.csv", index=False)
    model = save_random_model(tmp_path / "model", "gpt2", [*table["sentence"], "The A is are"])
    rows = run_file(
        script.SCRIPT, files["configs/SV_Agreement/mean_difference/smollm2.yaml"], tmp_path / "results",
        f"model_path={model}", f"data_path={tmp_path / 'agreement.csv'}", "gen_path=null", "train_size=14",
        "test_size=8", "target_layer_list=[0, 1]", f"results_dir={tmp_path / 'results'}")
    assert len(rows) == 4 and all(row["dimensions"] == "1" and row["interchange_acc"] for row in rows)


def test_a_method_joins_the_comparison_as_its_page_says(tiny, tmp_path, monkeypatch):
    files = write_files("add_a_method.md", tmp_path, {})
    added = SimpleNamespace(**runpy.run_path(str(files["interp/methods/interchange/ridge.py"])))
    monkeypatch.setitem(sys.modules, "interp.methods.interchange.ridge", added)
    [entry] = [block for _, block in blocks_of("add_a_method.md", "python") if "Compared(" in block]
    monkeypatch.setitem(INTERCHANGES, "ridge", eval(f"{{{entry}}}", {"Compared": Compared})["ridge"])
    values = tiny.values[COMPARISON] | {"method_list": ["lda", "ridge"]}
    rows = [row for row in execute(COMPARISON, values, tmp_path / "run") if row["method"] == "ridge"]
    assert len(rows) == 2 and all(row["control_iia"] and row["random_iia_mean"] for row in rows)


def test_the_mathematics_of_the_new_method(mean_difference, generator):
    class_means = importlib.import_module("interp.methods.class_means")
    labels = torch.arange(60) % 3
    activations = torch.randn(60, 8, generator=generator) + 5 * torch.eye(8)[labels]
    found = class_means.fit_class_means(activations, labels)
    assert found.basis.shape == (8, 2) and torch.equal(found.nearest(activations), labels)
    assert torch.allclose(found.exchange(activations, activations), activations)
    assert (found.erase(activations) @ found.basis).std(0).max() < 1e-5


def test_a_task_is_added_as_its_page_says(tmp_path, analyse, capsys):
    """All methods work from a CSV and YAML files alone, here on a random model."""
    places = {"data/mine": str(tmp_path / "data/mine"), "Results/": f"{tmp_path}/Results/",
              "Models/SmolLM2-135M": str(tmp_path / "model"), "Models/mine/random": str(tmp_path / "model"),
              "templates: mine": f"templates: {tmp_path}/mine"}
    files = write_files("add_a_task.md", tmp_path, places)
    runpy.run_path(str(files["mine/make_pronouns.py"]))
    tables = [pd.read_csv(tmp_path / f"data/mine/pronouns{end}.csv") for end in ("", "_gen")]
    assert [len(table) for table in tables] == [100, 48] and all("{name:" in text for text in tables[1]["sentence"])
    runpy.run_path(str(files["mine/random_model.py"]))
    results, rows = tmp_path / "Results/mine", {}
    for name, script, folder in (
            ("circuit_probing", CIRCUITS, "smollm2"), ("linear_probing", METHODS["probing"], "linear_probing/smollm2"),
            ("amnesic", METHODS["amnesic_probing"], "amnesic/smollm2"), ("DAS", METHODS["DAS"], "DAS/smollm2"),
            ("pattern", METHODS["DAS"], "DAS/pattern")):
        config, layers = files[f"mine/{name}.yaml"], "target_layer_list=[0, 1]"
        capsys.readouterr()
        assert main(script, ["--config", str(config), "--set", layers, "--check"]) == 0
        printed = capsys.readouterr().out
        assert "'<|endoftext|>Sarah cannot sleep unless'\n  name: token 1, Sarah\n  last: token 4" in printed
        assert not (results / folder).exists()
        rows[name] = run_file(script, config, results / folder, layers)
    circuit, probe, erased, das, pattern = rows.values()
    shares = [row[name] for row in [*circuit, *probe, *das] for name in ("vanilla_acc_iid", "vanilla_acc_gen")]
    shares += [row[name] for row in erased for name in ("heldout_acc", "gen_heldout_acc", "random_heldout_acc_mean")]
    shares += [row[name] for row in probe for name in ("gen_acc", "counterfactual_predicts_cf_label")]
    shares += [row[name] for row in circuit for name in ("knn_gen_acc", "random_ablated_acc_gen_mean")]
    assert all(0 <= float(share) <= 1 for share in shares)
    assert das[-1]["full_interchange_acc"] and pattern[-1]["vanilla_acc_iid"] == das[-1]["vanilla_acc_iid"]

    assert len(run_file(COMPARISON, files["mine/comparison.yaml"], results / "comparison/pronouns", layers,
                        "only_right=false")) == 32
    analyse("summarize_positions", "--results", results)
    cells = pd.read_csv(results / "figures/positions.csv")
    found = {(row.run, row.method): row for row in pd.read_csv(results / "figures/best.csv").itertuples()}
    assert {*cells["position"]} == {"name", "last"} and {*cells["layer"]} == {0, 1}
    assert {run for run, _ in found} == {"smollm2", "pattern", "comparison/pronouns"}
    full = cells[(cells["run"] == "comparison/pronouns") & (cells["method"] == "full")]
    assert len(full) == 8 and found["comparison/pronouns", "full"].value == full["value"].max()
    assert (results / "figures/smollm2/methods_female_resid_mid.png").exists()
    analyse("summarize_layers", "--model", "smollm2", "--results", results, "--where", "position=last")
    assert len(pd.read_csv(results / "figures/smollm2/layers.csv")) == 4

    assert main(SENTENCES, ["--config", str(files["mine/generate.yaml"])]) == 0
    pairs = pd.read_csv(tmp_path / "data/mine/templates/reason.csv")
    spans = pairs[["sentence", "source"]].map(lambda text: read_marks(text)[1])
    assert len(pairs) == 40 and all({*marks} == {"name", "verb"} for column in spans for marks in spans[column])


def test_questions_of_ones_own_are_asked_as_their_page_says(tiny, tmp_path):
    """Another variable of the model; and a model of other arithmetic is trained and compared."""
    places = {"data/mine_a4": str(tmp_path / "data_a4"), "data/mine": str(tmp_path / "data"),
              "data/Disambiguation": str(tiny.folder / "data"), "../configs": str(PROJECT_ROOT / "configs"),
              "Models/mine": str(tmp_path / "models"), "Results/mine": str(tmp_path / "Results")}
    files, results = write_files("own_questions.md", tmp_path, places), tmp_path / "Results"
    runpy.run_path(str(files["mine/add_a4.py"]))
    assert len(run_file(CIRCUITS, files["mine/a4.yaml"], results / "circuit_probing/a4", "num_random_ablations=0",
                        f"model_path={tiny.circuits['model_path']}", "num_epochs=2", "batch_size_list=[20]")) == 2
    assert main(TRAINING, ["--config", str(files["mine/train.yaml"]), "--set", "mod=11", "n_embd=16", "n_inner=32",
                           "n_head=2", "num_epochs=20", "checkpoint_every=20", "save_checkpoints=[20]"]) == 0
    rows = run_file(COMPARISON, files["mine/compare.yaml"], results / "comparison/a4_b2", "method_list=[none,lda]",
                    "only_right=false", "n_fit=40", "n_select=10",
                    f"model_path={tmp_path}/models/a4_b2/model_LR_0.001_Seed_{{model_seed}}_20")
    assert [row["variable"] for row in rows].count("var_0") == 4 and len(rows) == 8  # two sites, two methods


def test_ones_own_sentences_are_mapped_as_their_page_says(tmp_path, analyse):
    """The page's two sentences and others like them, on a random model."""
    [shown] = re.findall(r"^```\n(sentence,.*?)^```", text_of("own_questions.md"), re.MULTILINE | re.DOTALL)
    table = pd.read_csv(io.StringIO(shown))
    more = [pd.read_csv(io.StringIO(shown.replace("near", word).replace("the {o", f"{other} {{o")))
            for word in ("near", "behind", "beside") for other in ("the", "a", "one", "this")]
    pd.concat(more).to_csv(tmp_path / "sentences.csv", index=False)
    words = [*pd.concat(more)["sentence"].map(unmarked), *table["right"]]
    places = {"data/mine": str(tmp_path), "Results/mine": str(tmp_path / "Results"),
              "Models/SmolLM2-135M": str(save_random_model(tmp_path / "model", "gpt2", words))}
    config = write_files("own_questions.md", tmp_path, places)["mine/map.yaml"]
    rows = run_file(COMPARISON, config, tmp_path / "Results/map", "target_layer_list=[0, 1]", "only_right=false",
                    "train_size=12", "test_size=12", "n_fit=8", "n_select=4")
    assert len(rows) == 12 and {row["position"] for row in rows} == {"subject", "object", "last"}
    analyse("summarize_positions", "--results", tmp_path / "Results/map")
    assert (tmp_path / "Results/map/figures/best.md").exists()


@pytest.mark.parametrize("page, script, operation, column", [
    ("circuit_probing.md", CIRCUITS, "operation_list", "ablated_acc_test"),
    ("das.md", METHODS["DAS"], "location_list", "interchange_intervention_acc")])
def test_what_was_saved_is_loaded_as_its_page_says(page, script, operation, column, tiny, tmp_path):
    [row] = execute(script, tiny.values[script] | {
        "save_models": True, "model_dir": str(tmp_path / "saved"), operation: ["attn"]}, tmp_path / "run")
    [saved] = (tmp_path / "saved").iterdir()
    [(_, block)] = blocks_of(page, "python")
    block = re.sub(r'"Models/[^"]*safetensors"', repr(str(saved)), block)
    block = block.replace("data/Disambiguation/", f"{tiny.folder}/data/")
    names: dict = {}
    exec(compile(block, page, "exec"), names)
    assert names["share"] == pytest.approx(float(row[column]))
