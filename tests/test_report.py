"""The report: one page of whatever lies in a folder, valid, safe, and loading nothing."""

import json
import os
import re
import runpy
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from analysis.report import SECTIONS, configs_by_results
from analysis.report_runs import ROWS_AT_MOST, as_table, number
from conftest import CIRCUITS, COMPARISON, METHODS, comparison_values, write_yaml
from interp.experiment import main
from interp.runs.config import PROJECT_ROOT, BadInput

VOID = {"meta", "link", "img", "input", "br", "hr"}
HOSTILE = "<script>alert('x')</script><img src=http://x.test/a.png onerror=alert(1)>"
PNG = (900, 500)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """A page's tags, checked for balance."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag == name]


def check(html: str) -> Page:
    """What must be true of every report."""
    page = Page(html)
    assert page.all("html") == [{"lang": "en"}] and len(page.all("h1")) == 1
    for image in page.all("img"):
        assert image["src"].startswith("data:image/png;base64,") and len(image["alt"]) > 10
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link["href"].startswith("#") and link["href"][1:] in ids
    assert not page.all("script") and [link["href"] for link in page.all("link")] == ["data:,"]
    assert not re.search(r"url\(|@import", html)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))
    assert all(heading.get("scope") in ("row", "col") for heading in page.all("th"))
    return page


@pytest.fixture
def report(tmp_path, analyse):
    """The page of a folder, checked, and what was said on stderr."""
    def make(results: Path, *arguments) -> tuple[Page, str]:
        finished = analyse("report", "--results", results, "--out", tmp_path / "page" / "report.html", *arguments)
        assert finished.returncode == 0, finished.stderr
        return check((tmp_path / "page" / "report.html").read_text()), finished.stderr
    return make


def write_run(folder: Path, table: pd.DataFrame | None = None, config: dict | None = None, **record) -> Path:
    folder.mkdir(parents=True)
    if table is not None:
        table.to_csv(folder / "results.csv", index=False)
    if config is not None:
        write_yaml(folder / "config.yaml", config)
    (folder / "run.json").write_text(json.dumps({"status": "done", "start": "2026-01-01T10:00:00+00:00", **record}))
    return folder


def circuits(seeds=(0,), **columns) -> pd.DataFrame:
    return pd.DataFrame([{"model_seed": seed, "operation": operation, "knn_test_acc": 0.9 + seed / 50,
                          "full_model_knn_test_acc": 0.6, "vanilla_acc_test": 1.0, "ablated_acc_test": 0.1,
                          "seconds": 1.0} | columns for seed in seeds for operation in ("attn", "mlp")])


def write_results(folder: Path) -> Path:
    """A bit of everything: an experiment with a figure, an unfinished sweep, a run of the reader's own."""
    write_run(folder / "Disambiguation/circuit_probing/a2", circuits(seeds=(0, 1)),
              {"model_seed_list": [0, 1], "operation_list": ["attn", "mlp"]},
              end="2026-01-01T10:05:00+00:00", code_version="abc123", packages={"torch": "2.13.0"}, device="cpu",
              device_name="x86_64", threads=1)
    (folder / "Disambiguation/figures").mkdir()
    Image.effect_noise(PNG, 60).save(folder / "Disambiguation/figures/nearest_neighbors.png")
    write_run(folder / "Grokking/circuit_probing/a2", circuits(checkpoint=100),
              {"operation_list": ["attn", "mlp"], "checkpoint_list": [100, 200]}, status="running")
    write_run(folder / "mine", pd.DataFrame({"what": [1]}))
    return folder


def test_a_page_of_what_is_there_and_what_is_not(tmp_path, report):
    page, _ = report(write_results(tmp_path / "r"))
    text = re.sub(r"\s+", " ", page.text)
    assert "0.91 (n = 2)" in text  # the mean over two seeds says so
    assert "model seeds 0, 1" in text and "abc123" in text and "torch 2.13.0" in text and "5 minutes" in text
    assert "Grokking/circuit_probing/a2: running since 2026-01-01 10:00 UTC, or killed; 2 of 4 settings" in text
    assert "mine: done, 1 row" in text
    [image] = page.all("img")
    assert "circuit 0.9" in image["alt"] and "full sublayer 0.60" in image["alt"] and image["width"] == str(PNG[0])
    assert "make experiment4" in text and "make quickstart" in text


def test_complete_runs_are_kept_as_text(tmp_path, monkeypatch, capsys):
    module = runpy.run_path(str(PROJECT_ROOT / "docs/keep_runs.py"))
    monkeypatch.setitem(module["keep"].__globals__, "KEPT", tmp_path / "kept")
    results, config = tmp_path / "r", {"operation_list": ["attn", "mlp"], "lr": 0.1}
    run = write_run(results / "Grokking/circuit_probing/a2", circuits(), config)
    (run / "qualitative").mkdir()
    (run / "qualitative/answers.csv").write_text("sentence")
    (run / "pairs.csv").write_text("x" * (module["BYTES_AT_MOST"] + 1))
    write_run(results / "Grokking/DAS/a2", circuits(), config, status="running")

    def keep(*names: str) -> int:
        monkeypatch.setattr("sys.argv", ["keep_runs", *names, "--results", str(results)])
        try:
            module["main"]()
        except BadInput as error:
            print(error)
            return 2
        return 0

    assert keep() == 2 and "Grokking/DAS/a2: this run is not complete" in capsys.readouterr().out
    assert not (tmp_path / "kept").exists()  # nothing of the others either
    assert keep("Grokking/circuit_probing") == 0 and keep("Grokking/circuit_probing/") == 0
    kept = tmp_path / "kept/Grokking/circuit_probing/a2"
    assert {path.name for path in kept.iterdir()} == {"config.yaml", "run.json", "results.csv"}
    assert all((kept / path.name).read_bytes() == (run / path.name).read_bytes() for path in kept.iterdir())
    assert "left out, more than 0.5 MB: " in (said := capsys.readouterr().out) and "pairs.csv" in said
    write_run(results / "Grokking/another", circuits(), config)  # comes before the one that is refused
    write_yaml(run / "config.yaml", config | {"lr": 0.2})
    assert keep("Grokking/another", "Grokking/circuit_probing") == 2
    assert "is of another config" in capsys.readouterr().out and not (tmp_path / "kept/Grokking/another").exists()
    (run / "config.yaml").rename(run / "moved.yaml")
    assert keep("Grokking/circuit_probing/a2") == 2 and "has no config.yaml of its own" in capsys.readouterr().out
    (run / "moved.yaml").rename(run / "config.yaml")
    assert keep("Grokking/circuit_probing/a2") == 2 and "is of another config" in capsys.readouterr().out
    assert keep("Grokking/circuit") == 2 and "there is no run in Grokking/circuit" in capsys.readouterr().out


def test_commands_for_what_is_missing_exist(tmp_path, report):
    page, _ = report(write_results(tmp_path / "r"))
    targets = re.findall(r"^([\w-]+(?: [\w-]+)*):", (PROJECT_ROOT / "Makefile").read_text(), re.M)
    targets = {target for line in targets for target in line.split()}
    commands = [line for line in page.text.splitlines() if re.search(r"(make|python) ", line)]
    made = {target for line in commands for target in re.findall(r"\bmake ([a-z0-9-]+)\b", line)} - {"them", "it"}
    assert {word for section in SECTIONS for word in section.command.removeprefix("make ").split()} <= targets
    assert made <= targets
    configs = {path for line in commands for path in re.findall(r"configs/\S+\.yaml", line)}
    assert "configs/Disambiguation/circuit_probing/minus_b2.yaml" in configs
    assert "configs/Disambiguation/circuit_probing/a2.yaml" not in "".join(
        line for line in commands if "minus_b2" in line)
    for path in configs | {path for line in commands for path in re.findall(r"python (\S+\.py)", line)}:
        assert (PROJECT_ROOT / path).exists(), path


def test_every_config_has_its_script():
    for script, file, values in configs_by_results().values():
        read = (PROJECT_ROOT / script).read_text() + (PROJECT_ROOT / "interp/tasks/question.py").read_text()
        own = set(values) - {"results_dir", "model_dir", "save_models", "device"}
        known = [key for key in own if re.search(rf"\b{key}\b", read)]
        assert len(known) > len(own) / 2, (script, file, own - set(known))


def test_hostile_contents_are_text(tmp_path, report):
    results = write_results(tmp_path / "r")
    write_run(results / "Disambiguation/circuit_probing/<b>x", circuits(figtitle=HOSTILE, other=range(2)),
              {"figtitle": HOSTILE, "x_list": 3}, code_version=HOSTILE, packages=HOSTILE, earlier=HOSTILE)
    write_run(results / f"mine {HOSTILE}".replace("/", "|"), pd.DataFrame({HOSTILE: [HOSTILE, "a"]}), status=HOSTILE)
    page, _ = report(results)
    assert page.text.count("alert(") > 4 and not page.all("b")


def test_damaged_files_are_named(tmp_path, report):
    results = write_results(tmp_path / "r")
    broken = write_run(results / "Disambiguation/circuit_probing/minus_b2", None, {"lr_list": [1]})
    (broken / "results.csv").write_bytes(b"\xff\xfe\x00\n\"")
    (broken / "run.json").write_text("{")
    write_run(results / "Disambiguation/linear_probing/a2", pd.DataFrame({"lr": ["x"]}), {"lr_list": [1]})
    words = write_run(results / "Disambiguation/nonlinear_probing/a2", None, {"lr_list": [1]})
    (words / "results.csv").write_text("lr,residual_location,test_acc\n1,resid_mid,high\n")
    (write_run(results / "Disambiguation/DAS/a2") / "config.yaml").write_text("a: [")
    write_run(results / "Comparison/Disambiguation", circuits(), {})
    write_run(results / "SV_Agreement/amnesic/tiny", circuits(), {})
    write_run(results / "SV_Agreement/tiny", circuits(target_layer=1), {"task": "agreement"})
    write_run(results / "Reflexives/tiny", pd.DataFrame(), None)
    (results / "Disambiguation/figures/ablation.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (results / "Disambiguation/figures/there_and_used.png").mkdir()
    page, said = report(results)
    for name in ("circuit_probing/minus_b2/results.csv", "circuit_probing/minus_b2/run.json", "DAS/a2/config.yaml",
                 "nonlinear_probing/a2/results.csv", "Comparison/Disambiguation", "SV_Agreement/tiny",
                 "SV_Agreement, tiny", "Reflexives/tiny/results.csv", "figures/ablation.png", "figures/there_and_used"):
        assert name in page.text and name in said, name
    assert len(page.all("img")) == 1 and "0.91 (n = 2)" in page.text  # what can be read is there


def test_ours_beside_the_published(tmp_path, report):
    results = write_results(tmp_path / "r")
    published = tmp_path / "secret_place" / "values.csv"
    published.parent.mkdir()
    published.write_text("experiment,task,method,variable,component,metric,value,checkpoint\n"
                         "Disambiguation,,circuit_probing,a2,attn,vanilla_acc_test,0.99,\n"
                         "Disambiguation,,circuit_probing,a2,mlp,ablated_acc_test,0.5,\n"
                         "Disambiguation,,circuit_probing,b9,mlp,ablated_acc_test,0.5,\n"
                         "Grokking,,circuit_probing,a2,mlp,knn_test_acc,0.9,100\n"
                         "Grokking,,circuit_probing,a2,mlp,knn_test_acc,0.2,200\n")
    page, said = report(results, "--published", published)
    assert "circuit probing: 1 of 2 beyond 0.05" in page.text and "circuit probing: 0 of 1 beyond 0.05" in page.text
    assert "-0.400" in page.text and "+0.010" in page.text
    assert "secret_place" not in page.text and "missing" not in said
    published.write_text("experiment\nx\n")
    assert "task" in fail(report, results, "--published", published)


def fail(report, *arguments) -> str:
    with pytest.raises(AssertionError) as failed:
        report(*arguments)
    return str(failed.value)


@pytest.mark.parametrize("arguments, word", [(("--results", "nowhere"), "nowhere"), (("--out", "."), "folder"),
                                             (("--out", "file/page.html"), "file"),
                                             (("--published", "nowhere.csv"), "nowhere.csv")])
def test_a_wrong_folder_ends_in_one_sentence(arguments, word, tmp_path, analyse):
    (tmp_path / "file").write_text("")
    key, name = arguments
    options = {"--results": tmp_path, "--out": tmp_path / "report.html"} | {key: tmp_path / name}
    finished = analyse("report", *[word for pair in options.items() for word in pair])
    assert finished.returncode == 2 and word in finished.stderr and len(finished.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_an_empty_folder_gives_a_page(tmp_path, report):
    (tmp_path / "r").mkdir()
    page, _ = report(tmp_path / "r")
    assert page.text.count("Nothing is here yet") == len(SECTIONS) + 1 and not page.all("img")


def test_real_runs_of_the_methods_and_the_comparison(tiny, tmp_path, report, analyse):
    results = tmp_path / "r"
    for script, name, values in ((CIRCUITS, "Disambiguation/circuit_probing/a2", tiny.circuits | {
                                     "save_models": False}),
                                 (METHODS["probing"], "Disambiguation/linear_probing/a2", tiny.methods["probing"]),
                                 (COMPARISON, "Comparison/Disambiguation", comparison_values(tiny.folder) | {
                                     "carried": {"var_0": ["resid_mid"], "var_1": []}})):
        config = write_yaml(tmp_path / "c.yaml", values | {"results_dir": str(results / name)})
        assert main(script, ["--config", str(config)]) == 0
    assert analyse("summarize_disambiguation", "--results", results / "Disambiguation").returncode == 0
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    page, said = report(results)
    assert "could not be read" not in page.text.lower() and "Unfinished runs" not in page.text
    assert "Leaderboard" in page.text and "linear probe" in page.text
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == before


def test_a_figure_older_than_its_tables_says_so(tmp_path, report):
    results, old = write_results(tmp_path / "r"), "Its tables have changed since it was drawn"
    figure, table = results / "Disambiguation/figures/nearest_neighbors.png", "circuit_probing/a2/results.csv"
    assert old not in report(results)[0].text
    os.utime(figure, (1, 1))
    assert old in report(results)[0].text
    os.utime(results / "Disambiguation" / table, (1, 1))  # what another experiment has since got is no matter
    assert old not in report(results)[0].text


def test_layers_are_not_averaged_and_means_say_over_how_many(tmp_path, report):
    folder = tmp_path / "r/Disambiguation"
    layers = [circuits(seeds=(0, 1)).assign(target_layer=layer, ablated_acc_test=share)
              for layer, share in ((0, 0.25), (1, 0.75))]
    write_run(folder / "circuit_probing/a2", pd.concat(layers))
    for name in ("figures/layer_0/ablation", "figures/layer_1/ablation", "figures/ablation"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", PNG).save(folder / f"{name}.png")
    os.utime(folder / "figures/layer_0/ablation.png", (1, 1))
    page, _ = report(tmp_path / "r")
    whole, first, second = (image["alt"] for image in page.all("img"))
    assert "ablated 0.25" in first and "ablated 0.75" in second and "ablated 0." not in whole
    assert "Means of 2 models" in first and page.text.count("Its tables have changed") == 1
    assert not re.search(r"0\.50 \(n = ", page.text)


def test_no_run_is_passed_over(tmp_path, report):
    """Neither behind a link, nor because its name is much like that of a part, nor because it is in no language."""
    results = write_results(tmp_path / "r")
    write_run(tmp_path / "scratch/linear_probing/a2", pd.DataFrame({"what": [1]}))
    (results / "Shared_Nodes").symlink_to(tmp_path / "scratch")
    (results / "loop").symlink_to(results)
    write_run(results / "Mine/part_of_speech", pd.DataFrame({"what": [1]}))
    write_run(results / os.fsdecode(b"\xfcbung"), pd.DataFrame({"what": [1]}))
    page, said = report(results)
    for name in ("Shared_Nodes/linear_probing/a2", "Mine/part_of_speech", "\ufffdbung"):
        assert f"{name}: done, 1 row" in page.text, name
    assert "loop: a link makes it the same as a folder that is read already" in said
    assert "this is a run itself" in fail(report, results / "mine")


def test_a_run_in_parts_tells_of_each(tmp_path, report):
    run = tmp_path / "r/mine"
    for part, status in ((1, "done"), (2, "failed")):
        write_run(run / f"part_{part}_of_2", pd.DataFrame({"lr": [part]}), {"lr_list": [1, 2]}, status=status,
                  device_name=f"machine{part}", threads=part)
    page, _ = report(tmp_path / "r")
    text = re.sub(r"\s+", " ", page.text)
    assert "unfinished, part 2/2 failed" in text and "machine1" in text and "machine2" in text


def test_a_command_is_of_the_same_config(tmp_path, report):
    """That of a shipped config which would compute something else is not said to have made a run."""
    command = "python circuit_probing.py --config configs/Disambiguation/circuit_probing/a2.yaml"
    run = write_run(tmp_path / "r/Disambiguation/circuit_probing/a2", circuits(), {"task": "disambiguation"})
    assert command in report(tmp_path / "r")[0].text
    write_yaml(run / "config.yaml", {"task": "disambiguation", "num_epochs": 3})
    assert command not in report(tmp_path / "r")[0].text


def test_the_leaderboard_is_of_the_runs_there_are(tiny, tmp_path, report, analyse):
    """A leaderboard.csv that was written before a run came, or by another version, is not taken."""
    results = tmp_path / "r"
    values = comparison_values(tiny.folder) | {"carried": {"var_0": ["resid_mid"], "var_1": []}, "save_models": False,
                                               "method_list": ["none", "full", "lda"]}
    config = write_yaml(tmp_path / "c.yaml", values | {"results_dir": str(results / "Comparison/first")})
    assert main(COMPARISON, ["--config", str(config)]) == 0
    assert analyse("summarize_comparison", "--results", results / "Comparison").returncode == 0
    board = results / "Comparison/figures/leaderboard.csv"
    table = pd.read_csv(results / "Comparison/first/results.csv")
    assert "0.12 [" not in report(results)[0].text
    table.assign(iia=0.125).to_csv(results / "Comparison/first/results.csv", index=False)
    os.utime(results / "Comparison/first/results.csv", (1, 1))
    assert "0.12 [" in report(results)[0].text
    pd.read_csv(board).drop(columns="sees").to_csv(board, index=False)
    assert "0.12 [" in report(results)[0].text
    write_run(results / "Comparison/second", table)
    assert "summarize_comparison.py" in report(results)[0].text  # draws what is not drawn yet


def test_numbers_and_long_tables():
    assert [number(value) for value in (1.0, 0.12345, 0.000012, None, float("nan"), float("inf"), 12, "a", True)] == [
        "1", "0.123", "1.2e-05", "", "", "inf", "12", "a", "True"]
    table = as_table(pd.DataFrame({"row": range(ROWS_AT_MOST + 7), "same": 1}), "numbers")
    assert table.columns == ["row"] and table.common == "the same in all rows: same 1" and table.left_out == 7
    assert as_table(pd.DataFrame({"a": [1], "b": [2.5]}), "one").rows == [["a", "1"], ["b", "2.500"]]


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_shows_it_and_loads_nothing_else(tmp_path, report):
    """A copy of the page with a script that writes down what the browser made of it, asked for in two widths."""
    report(write_results(tmp_path / "r"))
    told = ("<script>addEventListener('load', () => document.documentElement.setAttribute('data-told', JSON.stringify({"
            "loaded: performance.getEntriesByType('resource').map(entry => entry.name.slice(0, 40)),"
            "widths: [...document.images].map(image => image.naturalWidth),"
            "wide: document.documentElement.scrollWidth - innerWidth})))</script></body>")
    html = (tmp_path / "page/report.html").read_text()
    html = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", html)  # which forbids the script
    (tmp_path / "page/asked.html").write_text(html.replace("</body>", told))
    for width in (500, 1400):
        for page in ("report.html", "asked.html"):
            finished = subprocess.run(
                [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
                 f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
                 (tmp_path / "page" / page).as_uri()], capture_output=True, text=True, timeout=120,
                env=os.environ | {"HOME": str(tmp_path)})
            assert finished.returncode == 0 and "CONSOLE" not in finished.stderr, finished.stderr
        [found] = re.findall(r'data-told="([^"]*)"', finished.stdout)
        found = json.loads(found.replace("&quot;", '"'))
        assert found["widths"] == [PNG[0]] and found["wide"] <= 0
        assert all(name.startswith("data:") for name in found["loaded"])
