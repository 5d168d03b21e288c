"""The report: one page of whatever lies in a folder, valid, safe, and loading nothing."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from analysis.report import ROWS_AT_MOST
from conftest import execute, modified, write_yaml

VOID = {"meta", "link", "img", "input", "br", "hr"}
HOSTILE = "</pre><script>alert('x')</script><img src=http://x.test/a.png onerror=alert(1)>"
PNG = (900, 500)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CONFIG = {"model_seed_list": [0, 1], "operation_list": ["attn", "mlp"], "lr": 0.125}


class Page(HTMLParser):
    """A page's tags, checked for balance; the words of each run, and the images, tables and folded texts in it."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.tags, self.run = [], [], ""
        self.words, self.inside = {"": ""}, {"": []}  # by run; before the first one, the index
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "h3":
            self.run = dict(attributes)["id"]
            self.words[self.run], self.inside[self.run] = "", []
        self.inside[self.run].append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words[self.run] += f" {' '.join(data.split())}" if data.strip() else ""

    def all(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag == name]


def check(html: str) -> Page:
    """What must be true of every report: it is valid, and no link and no resource is outside of it."""
    page = Page(html)
    assert page.all("html") == [{"lang": "en"}] and len(page.all("h1")) == 1
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(link["href"].startswith("#") and link["href"][1:] in ids for link in page.all("a"))
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in page.all("img"))
    assert page.all("script") == [{}] and [link["href"] for link in page.all("link")] == ["data:,"]
    assert not re.search(r"url\(|@import|fetch\(", html)
    assert "default-src 'none'" in page.all("meta")[2]["content"]
    assert not any(name.startswith("on") or name in {"srcset", "action"} for _, own in page.tags for name in own)
    return page


@pytest.fixture
def report(tmp_path, analyse):
    """The page of a folder, checked, and what was said."""
    def make(results: Path, *arguments) -> tuple[Page, str]:
        said = analyse("report", "--results", results, "--out", tmp_path / "page" / "report.html", *arguments).stdout
        return check((tmp_path / "page" / "report.html").read_text()), said
    return make


def write_run(folder: Path, table: pd.DataFrame, config: dict | None = None, **record) -> Path:
    folder.mkdir(parents=True)
    table.to_csv(folder / "results.csv", index=False)
    if config is not None:
        write_yaml(folder / "config.yaml", config)
    (folder / "run.json").write_text(json.dumps({"status": "done"} | record))
    return folder


def circuits(seeds=(0, 1), **columns) -> pd.DataFrame:
    return pd.DataFrame([{"model_seed": seed, "operation": operation, "knn_test_acc": 0.9 + seed / 50, "lr": 0.125,
                          "vanilla_acc_test": 1.0, "ablated_acc_test": None, "seconds": 77.5} | columns
                         for seed in seeds for operation in ("attn", "mlp")])


def write_results(folder: Path) -> Path:
    """A complete run and figures of its own and its experiment's, a run short of one setting, one of the reader's."""
    run = write_run(folder / "Disambiguation/circuit_probing/a2", circuits(), CONFIG, versions={"torch": "2.13.0"})
    for file in (run / "figures/own.png", folder / "Disambiguation/figures/nearest_neighbors.png"):
        file.parent.mkdir()
        Image.effect_noise(PNG, 60).save(file)
    pd.DataFrame({"word": ["strongest"]}).to_csv(folder / "Disambiguation/figures/sublayers.csv", index=False)
    write_run(folder / "Grokking/circuit_probing/a2", circuits()[:3], CONFIG, status="running")
    write_run(folder / "mine", pd.DataFrame({"what": ["something"]}))
    write_run(folder / "mine.old-1", pd.DataFrame({"what": ["outdated"]}))
    return folder


def test_every_run_has_its_table_figures_config_and_record(tmp_path, report):
    page, said = report(write_results(tmp_path / "r"))
    run, figure = "Disambiguation/circuit_probing/a2", "Disambiguation/figures/nearest_neighbors.png"
    assert [*page.words] == ["", "Disambiguation", run, "Grokking/circuit_probing/a2", "mine"]
    words = page.words[run]
    assert "model_seed operation knn_test_acc vanilla_acc_test ablated_acc_test 0 attn 0.9 1 0 mlp 0.9 1 1" in words
    assert "77.5" not in words and "NaN" not in words.replace("nan", "NaN")  # no headline; a cell without a value
    assert "lr: 0.125" in words and '"torch": "2.13.0"' in words and page.inside[run].count("pre") == 2
    assert f"{run}/figures/own.png" in words and page.inside[run].count("img") == 1
    assert figure in page.words["Disambiguation"] and "word strongest" in page.words["Disambiguation"]
    for image in page.all("img"):
        with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as picture:
            assert picture.size == PNG
    assert "something" in page.words["mine"] and "outdated" not in str(page.words)
    assert {link["href"] for link in page.all("a")} == {f"#{run}", "#Grokking/circuit_probing/a2", "#mine"}  # the index
    assert "3 runs, 1 of them unfinished, 0 files" in said
    alone, _ = report(tmp_path / "r" / run)
    assert alone.inside["."].count("img") == 1 and "lr: 0.125" in alone.words["."]


def test_a_run_short_of_one_setting_is_not_finished(tmp_path, report):
    results = write_results(tmp_path / "r")
    page, _ = report(results)
    run, short = "Grokking/circuit_probing/a2", "unfinished, 3 of 4 settings"
    assert short in page.words[run] and f"{run} : {short}" in page.words[""]
    assert str(page.words).count("unfinished") == 2
    circuits().to_csv(results / run / "results.csv", index=False)
    assert "unfinished" not in str(report(results)[0].words)


def test_ours_beside_the_published(tmp_path, report):
    results, published = write_results(tmp_path / "r"), tmp_path / "secret_place" / "values.csv"
    published.parent.mkdir()
    published.write_text("experiment,task,method,variable,component,metric,value,checkpoint\n"
                         "Disambiguation,,circuit_probing,a2,attn,vanilla_acc_test,0.99,\n"
                         "Disambiguation,,circuit_probing,a2,mlp,knn_test_acc,0.5,\n"
                         "Disambiguation,,circuit_probing,b9,mlp,ablated_acc_test,0.5,\n"
                         "Grokking,,circuit_probing,a2,mlp,knn_test_acc,0.2,200\n")  # ours is of no checkpoint
    page, _ = report(results, "--published", published)
    words = page.words["Disambiguation/circuit_probing/a2"]
    assert "attn vanilla_acc_test 1 0.99 0.01" in words and "mlp knn_test_acc 0.91 0.5 0.41 more than 0.05" in words
    assert words.count("more than 0.05") == 1 and str(page.words).count("published values") == 1
    assert "secret_place" not in str(page.words) and "Could not be read" not in page.words[""]


def test_strange_names_and_contents_are_text(tmp_path, report):
    results, name = write_results(tmp_path / "r"), HOSTILE.replace("/", "|")
    run = write_run(results / name / name, circuits(**{HOSTILE: HOSTILE}), {HOSTILE: HOSTILE, "x_list": 3}, x=HOSTILE)
    write_run(results / "mine too", pd.DataFrame({HOSTILE: [HOSTILE, "a"]}))
    Image.new("RGB", PNG).save(run / f"{name}.png")
    page, _ = report(results)
    assert f"{name}/{name}" in page.words and str(page.words).count("alert(") > 8 and len(page.all("img")) == 3


def test_files_that_cannot_be_read_are_named(tmp_path, report):
    results = write_results(tmp_path / "r")
    for name, file, contents in (("broken", "results.csv", b"\xff\xfe\x00\n\""), ("empty", "results.csv", b""),
                                 ("config", "config.yaml", b"a: ["), ("list", "config.yaml", b"- a"),
                                 ("column", "config.yaml", b"x_list: [1, 2]"), ("record", "run.json", b"\xff")):
        run = write_run(results / name, circuits(), CONFIG)
        (run / file).write_bytes(contents)
    (results / "Disambiguation/figures/ablation.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (results / "Disambiguation/figures/there_and_used.png").mkdir()
    (results / "Disambiguation/figures/void.csv").symlink_to("/dev/zero")
    (results / "mine/all").symlink_to("/")  # is not followed
    page, said = report(results)
    for name in ("broken:", "empty:", "config:", "list:", "column:", "record:", "figures/ablation.png:",
                 "figures/there_and_used.png:", "figures/void.csv:"):
        assert name in page.words[""].partition("Could not be read (9):")[2], name
    assert "9 files that could not be read" in said and page.words[""].count("no results.csv that can be read") == 6
    assert len(page.all("img")) == 2 and "0.92" in page.words["Disambiguation/circuit_probing/a2"]  # what can be read


@pytest.mark.parametrize("arguments, word", [(("--results", "nowhere"), "nowhere"), (("--out", "."), "folder"),
                                             (("--out", "file/page.html"), "file"),
                                             (("--published", "nowhere.csv"), "nowhere.csv"),
                                             (("--published", "file"), "file")])
def test_a_wrong_folder_ends_in_one_sentence(arguments, word, tmp_path, analyse):
    (tmp_path / "file").write_text("")
    key, name = arguments
    options = {"--results": tmp_path, "--out": tmp_path / "report.html"} | {key: tmp_path / name}
    analyse("report", *[word for pair in options.items() for word in pair], refusal=word)
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_the_curves_of_other_results_lie_beside_them(tmp_path, analyse):
    curves = tmp_path / "Train_Algorithmic_Models/Grokking/curves.csv"
    analyse("summarize_grokking", "--results", tmp_path / "Grokking", refusal=str(curves))


def test_a_long_table_is_shown_in_part(tmp_path, report):
    write_run(tmp_path / "r/long", pd.DataFrame({"row": range(ROWS_AT_MOST + 7)}))
    page, _ = report(tmp_path / "r")
    assert f"{ROWS_AT_MOST + 7} rows, the first {ROWS_AT_MOST} are shown" in page.words["long"]
    assert page.inside["long"].count("tr") == ROWS_AT_MOST + 1


def test_real_runs_are_finished_and_stay_as_they_are(tiny, tmp_path, report):
    results = tmp_path / "r"
    for script, values in tiny.values.items():
        folders = {key: str(tmp_path / script.name / key) for key in ("data_dir", "model_dir") if key in values}
        execute(script, values | folders, results / script.name)
    before = modified(results)
    page, said = report(results)
    assert "6 runs, 0 of them unfinished, 0 files that could not be read" in said
    assert all({"table", "pre"} <= set(page.inside[name]) for name in page.words if name)
    assert modified(results) == before


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_shows_it_and_loads_nothing_else(tmp_path, report):
    """A copy of the page with a script that writes down what the browser made of it."""
    report(write_results(tmp_path / "r"))
    told = ("<script>addEventListener('load', () => { document.querySelector('th').click();"
            "const loaded = performance.getEntriesByType('resource').map(entry => entry.name);"
            "document.title = JSON.stringify([loaded.filter(name => !name.startsWith('data:')),"
            "[...document.images].map(image => image.naturalWidth)]) })</script></body>")
    page = tmp_path / "page/report.html"
    page.write_text(page.read_text().replace("</body>", told))
    finished = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
         f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()], capture_output=True, text=True, timeout=120,
        env=os.environ | {"HOME": str(tmp_path)})
    assert finished.returncode == 0 and "CONSOLE" not in finished.stderr, finished.stderr
    assert f"<title>[[],[{PNG[0]},{PNG[0]}]]</title>" in finished.stdout
