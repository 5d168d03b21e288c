"""Runs of a toy script: what is written, what a killed run loses, what processes do to each other, what is refused."""

import errno
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import rows_of, write_yaml
from interp.experiment import Outcome, Script, main
from interp.runs import config as configs
from interp.runs import progress
from interp.runs.config import PROJECT_ROOT, BadInput, Count, DataFile, NonEmpty, Real, ScriptConfig, Text, project_path
from interp.runs.files import place, write_text, writing
from interp.runs.settings import expand_settings, fill_in, setting_name
from interp.runs.store import RunDirectory

FIRST = "settings/word_a_method_x.json"
FORK = multiprocessing.get_context("fork")


class Config(ScriptConfig):
    word_list: NonEmpty[Text] = ["a", "b", "c"]
    method_list: NonEmpty[Text] = ["x", "y"]
    number: Real = 1.0
    pause: Real = 0.0
    model_dir: Text
    data_path: DataFile | None = None
    layers_at_once: Count | None = None
    title: str = ""


def run(config, settings, prepared):
    """The last setting first; each is noted in a file when it has been computed."""
    for setting in reversed(settings):
        time.sleep(config.pause)
        for file in artifacts(config, setting):
            with writing(file) as temporary:
                temporary.write_text(f"{setting} {config.number}")
                place(temporary, file)
        with open(project_path(config.model_dir) / "log", "a") as log:
            log.write(f"{setting_name(setting)}\n")
        yield setting, Outcome({"third": np.float64(1) / 3, "number": torch.tensor(config.number), "none": None}, {
            "letters": [{"letter": letter, "upper": letter.isupper()} for letter in setting.word + "Z"]})


def artifacts(config, setting):
    return [project_path(config.model_dir) / f"{setting_name(setting)}.txt"]


def finish(config, prepared, directory):
    assert prepared in config.word_list  # also where a shard has no settings
    write_text(directory.path / "figure.txt", f"{len(directory.table('results'))} settings")


TOY = Script("toy", Config, lambda config, settings, device: settings[0].word, run, artifacts, finish)


@pytest.fixture
def toy(tmp_path):
    """A function that runs the toy in a folder of the test's, with other keys or options."""
    def toy(folder: str, *options: str, **keys) -> int:
        values = {"results_dir": str(tmp_path / folder), "model_dir": str(tmp_path / f"{folder}_models")} | keys
        return main(TOY, ["--config", str(write_yaml(tmp_path / f"{random.random()}.yaml", values)), *options])
    return toy


def at_once(toy, *calls: tuple[list, dict]) -> list[int]:
    """Exit statuses of calls in processes that start together."""
    barrier = FORK.Barrier(len(calls))

    def call(options, keys):
        barrier.wait()
        sys.exit(toy(*options, **keys))

    processes = [FORK.Process(target=call, args=own) for own in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return sorted(process.exitcode for process in processes)


def result(folder: Path) -> dict:
    """Tables, seconds aside, and what is saved, of a run."""
    tables = {file.name: rows_of(file) for file in folder.glob("*.csv")}
    saved = {file.name: file.read_text() for file in folder.with_name(f"{folder.name}_models").glob("*.txt")}
    return tables | saved | {"figure": (folder / "figure.txt").read_text()}


def snapshot(folder: Path) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".yaml"}


def sessions(folder: Path) -> list[dict]:
    return json.loads((folder / "run.json").read_text())["sessions"]


def sentence(capsys) -> str:
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_tables_are_in_the_configs_order_and_exact(toy, tmp_path):
    assert toy("run") == 0
    lines = (tmp_path / "run/results.csv").read_text().splitlines()
    assert lines[0] == "word,method,third,number,none,seconds" and lines[1].startswith("a,x,0.3333333333333333,1.0,,0.")
    assert [line[:3] for line in lines[1:]] == ["a,x", "a,y", "b,x", "b,y", "c,x", "c,y"]
    assert RunDirectory(tmp_path / "run").table("results")["third"].tolist() == [1 / 3] * 6
    assert (tmp_path / "run/letters.csv").read_text().startswith(
        "word,method,letter,upper\na,x,a,False\na,x,Z,True\na,y,a,False\n")
    assert (tmp_path / "run/figure.txt").read_text() == "6 settings"
    assert {path.name for path in (tmp_path / "run").iterdir() if path.name[0] != "."} == {
        "config.yaml", "run.json", "settings", "results.csv", "letters.csv", "figure.txt"}
    [session] = sessions(tmp_path / "run")
    assert session["status"] == "done" and session["packages"]["torch"] == torch.__version__


def test_what_is_done_is_not_computed_again_and_edited_tables_are_left_alone(toy, tmp_path, capsys):
    assert toy("run") == 0
    (tmp_path / "run/results.csv").write_text("mine\n")
    before = snapshot(tmp_path)
    assert toy("run", layers_at_once=3, device="cpu") == 0 and snapshot(tmp_path) == before | {
        tmp_path / "run/figure.txt": b"0 settings"}
    (tmp_path / "run_models/word_b_method_x.txt").unlink()
    capsys.readouterr()
    assert toy("run", "--check") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'run'}: 1 of 6 settings to compute.\n  word b, method x\n"
    assert toy("run") == 0
    assert (tmp_path / "run_models/log").read_text().splitlines()[6:] == ["word_b_method_x"]
    assert len(rows_of(tmp_path / "run/results.csv")) == 6


def test_names_that_no_file_can_have(toy, tmp_path):
    words = ["a/b", "a_b", "../a", "é", "w" * 300, "w" * 301, "a b"]
    assert toy("run", word_list=words) == toy("run", word_list=words) == 0
    assert [row["word"] for row in rows_of(tmp_path / "run/results.csv")] == [word for word in words for _ in "xy"]
    assert len((tmp_path / "run_models/log").read_text().splitlines()) == 14


def test_kills_at_any_time_lose_nothing(toy, tmp_path):
    """Of a setting in work, what was computed; of a finished one nothing, in tables or in model_dir."""
    keys, kills, drawing = {"word_list": list("abcdefghij"), "pause": 0.05}, 0, random.Random(0)
    assert toy("whole", **keys) == 0
    while True:
        process = FORK.Process(target=toy, args=("killed",), kwargs=keys)
        process.start()
        process.join(drawing.uniform(0, 0.3 + 0.1 * kills))  # longer each time, so that it ends on a slow machine
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    assert kills > 1 and process.exitcode == 0
    assert result(tmp_path / "killed") == result(tmp_path / "whole")
    assert len((tmp_path / "killed_models/log").read_text().splitlines()) <= 20 + kills
    assert sessions(tmp_path / "killed")[-1]["status"] == "done"


def test_tables_lost_to_a_kill_are_collated_at_the_next_start(toy, tmp_path):
    assert toy("run") == 0
    whole, last = result(tmp_path / "run"), tmp_path / "run" / FIRST
    text = last.read_text()
    last.unlink()
    (tmp_path / "run/results.csv").write_text("".join((tmp_path / "run/results.csv").read_text().splitlines(True)[:6]))
    time.sleep(0.01)
    last.write_text(text)
    assert toy("run") == 0
    assert result(tmp_path / "run") == whole and len((tmp_path / "run_models/log").read_text().splitlines()) == 6


def test_shards_are_one_run(toy, tmp_path, capsys):
    assert toy("whole") == 0
    assert toy("one", "--shard", "2/4") == 0
    assert [(row["word"], row["method"]) for row in rows_of(tmp_path / "one/results.csv")] == [("b", "x"), ("b", "y")]
    assert not (tmp_path / "one/figure.txt").exists()
    for shard in ("4/4", "4/4", "1/4", "3/4", "4/4"):  # the fourth has no settings
        assert toy("one", "--shard", shard) == 0
    assert at_once(toy, *((["many", "--shard", f"{shard}/3"], {"pause": 0.01}) for shard in (1, 2, 3))) == [0, 0, 0]
    assert result(tmp_path / "one") == result(tmp_path / "many") == result(tmp_path / "whole")
    assert [session["status"] for session in sessions(tmp_path / "many")] == ["done"] * 3
    for wrong in ("3/2", "0/2", "1", "a/b"):
        with pytest.raises(SystemExit):
            toy("one", "--shard", wrong)
    capsys.readouterr()
    assert toy("one", "--shard", "1/2", number=2.0) == 2 and "with another number" in sentence(capsys)


def test_processes_on_one_config_do_no_harm(toy, tmp_path, capfd):
    assert toy("whole") == 0
    capfd.readouterr()
    for number in range(5):
        ends = at_once(toy, *[([f"four_{number}"], {"pause": 0.002})] * 4)
        assert 0 in ends and set(ends) <= {0, 2}
        said = capfd.readouterr().err  # of processes that may write into each other's lines
        assert said.count("toy: ") == said.count("another process is at work in") == ends.count(2)
        assert at_once(toy, *(([f"mixed_{number}", *options], {"pause": 0.002}) for options in (
            [], ["--shard", "1/2"], ["--shard", "2/2"], ["--shard", "3/3"]))) == [0] * 4
        for name in ("four", "mixed"):
            assert result(tmp_path / f"{name}_{number}") == result(tmp_path / "whole")
            assert not [file for file in tmp_path.rglob("*") if file.suffix == ".tmp" or ".old-" in file.name]


def test_two_runs_never_replace_each_others_models(toy, tmp_path, capfd):
    both = {"model_dir": str(tmp_path / "both")}
    for round in range(5):
        shutil.rmtree(tmp_path / "both", ignore_errors=True)
        ends = at_once(toy, *(([f"run_{round}_{number}"], both | {"number": float(number), "pause": 0.002})
                              for number in range(3)))
        assert ends == [0, 2, 2]
        [winner] = [folder for folder in tmp_path.glob(f"run_{round}_?") if (folder / "figure.txt").exists()]
        assert {file.read_text()[-3:] for file in (tmp_path / "both").glob("*.txt")} == {f"{winner.name[-1]}.0"}


def test_overwriting_moves_aside_and_is_refused_while_somebody_is_at_work(toy, tmp_path, capfd):
    assert toy("run", "--overwrite") == 0
    old = result(tmp_path / "run")
    assert toy("run", "--overwrite", number=2.0) == 0
    shutil.copytree(tmp_path / "run_models", tmp_path / "run.old-1_models")
    for file in (tmp_path / "run.old-1_models").glob("*.txt"):
        file.with_name(f"{file.name}.old-1").rename(file)
    assert result(tmp_path / "run.old-1") == old != result(tmp_path / "run")
    before = snapshot(tmp_path / "run")
    assert 0 in at_once(toy, *[(["run", "--overwrite"], {"number": 3.0})] * 3)
    assert {path.name: text for path, text in snapshot(tmp_path / "run.old-2").items()} == {
        path.name: text for path, text in before.items()}

    process = FORK.Process(target=toy, args=("busy", "--shard", "1/2"), kwargs={"pause": 100.0})
    process.start()
    while not (tmp_path / "busy/run.json").exists():
        time.sleep(0.01)
    capfd.readouterr()
    assert toy("busy", "--overwrite") == 2 and "another process is at work in" in capfd.readouterr().err
    process.kill()
    process.join()
    assert toy("busy", "--overwrite") == 0


@pytest.mark.parametrize("file, damage, words", [
    *((FIRST, damage, "word_a_method_x.json is damaged; move it away") for damage in (
        lambda text: text[:40], lambda text: "[1]", lambda text: "[" * 100000, lambda text: "\0\xff",
        lambda text: text.replace("seconds", "second"))),
    (FIRST, lambda text: text.replace('"a"', '"b"', 1), "is of another setting"),
    ("run.json", lambda text: text[:-40], "run.json is damaged"),
    ("config.yaml", lambda text: "just words", "config.yaml is not a config"),
    ("config.yaml", lambda text: text + "number: 2.0\n", "config.yaml is not valid YAML: the key 'number'"),
    ("config.yaml", lambda text: text.replace("number: 1.0", "number: 2.0"), "holds a run with another number"),
])
def test_a_damaged_run_is_named_and_left_alone(file, damage, words, toy, tmp_path, capsys):
    assert toy("run") == 0
    (tmp_path / "run/settings/word_c_method_x.json").unlink()
    path = tmp_path / "run" / file
    path.write_text(damage(path.read_text()), encoding="latin-1")
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert toy("run") == 2 and words in sentence(capsys)
    assert snapshot(tmp_path) == before
    if file.startswith("settings"):
        path.rename(tmp_path / "away")
        assert toy("run") == 0 and len(rows_of(tmp_path / "run/results.csv")) == 6


def test_what_belongs_to_others_is_refused_before_anything_is_computed(toy, tmp_path, capsys, monkeypatch):
    (tmp_path / "data.csv").write_text("1")
    keys = {"data_path": str(tmp_path / "data.csv")}
    assert toy("run", **keys) == toy("other") == 0
    no_runs = ["foreign", "configured", "dotted", "earlier"]
    for folder in (*no_runs, "home"):
        (tmp_path / folder).mkdir()
    for file in ("earlier/config.yaml", "earlier/results.csv", "foreign/thesis.txt", "file", "configured/config.yaml",
                 "configured/thesis.txt", "dotted/.bashrc"):
        (tmp_path / file).write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "data.csv").write_text("2")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for folder, others, words in [
            ("run", keys, f"holds a run of another {tmp_path / 'data.csv'}"),
            ("run", {"word_list": ["a"]} | keys, "holds a run with another word_list"),
            *((folder, {}, "is not empty and holds no run") for folder in no_runs),
            *((folder, {"results_dir": str(folder)}, "holds your home or this project")
              for folder in ("~", tmp_path, "/", PROJECT_ROOT, ".")),
            ("new", {"results_dir": "/proc/run"}, "results_dir: /proc is a file, or a folder that cannot be"),
            ("new", {"model_dir": str(tmp_path / "other_models")}, "word_a_method_x.txt is there already"),
            ("file/x", {}, f"results_dir: {tmp_path / 'file'} is a file"),
            ("new", {"model_dir": str(tmp_path / "link/x")}, f"model_dir: {tmp_path / 'link'} is a file, or"),
            ("new", {"data_path": str(tmp_path / "no.csv")}, f"data_path: there is no {tmp_path / 'no.csv'}."),
            ("new", {"data_path": "data/Disambiguation/no.csv"}, "; configs/Train_Algorithmic_Models/Disambiguation/")]:
        before = snapshot(tmp_path)
        for options in (["--check"], []):
            capsys.readouterr()
            assert toy(folder, *options, **others) == 2 and words in sentence(capsys), folder
            assert snapshot(tmp_path) == before
    for folder in no_runs:
        assert toy(folder, "--overwrite") == 2
    assert toy("run", "--overwrite", **keys) == 0


def test_a_run_is_extended_by_more_values_of_its_lists(toy, tmp_path, capsys):
    words = ["c", "a", "d", "b"]
    assert toy("run") == 0 and toy("whole", word_list=words) == 0
    capsys.readouterr()
    assert toy("run", "--check", word_list=words) == 0 and "2 of 8 settings" in capsys.readouterr().out
    assert at_once(toy, *((["run", "--shard", f"{shard}/2"], {"word_list": words}) for shard in (1, 2))) == [0, 0]
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    assert len((tmp_path / "run_models/log").read_text().splitlines()) == 8
    assert configs.read_yaml(tmp_path / "run/config.yaml")["word_list"] == words
    assert toy("run", word_list=sorted(words)) == 0  # nothing to compute, another order
    assert [row["word"] for row in rows_of(tmp_path / "run/results.csv")] == list("aabbccdd")
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert toy("run") == 2 and "holds a run with another word_list" in sentence(capsys)
    assert toy("run", word_list=[*words, "e"], number=2.0) == 2 and "with another number" in sentence(capsys)
    assert snapshot(tmp_path) == before
    process = FORK.Process(target=toy, args=("busy", "--shard", "1/2"), kwargs={"pause": 100.0})
    process.start()
    while not (tmp_path / "busy/run.json").exists():
        time.sleep(0.01)
    assert toy("busy", word_list=words, pause=100.0) == 2 and "another process is at work" in sentence(capsys)
    process.kill()
    process.join()


def test_a_run_goes_on_when_its_script_has_got_a_new_key(toy, tmp_path, capsys):
    assert toy("run") == 0
    file = tmp_path / "run/config.yaml"
    file.write_text(file.read_text().replace("number: 1.0\n", ""))  # as of an earlier version
    assert toy("run") == 0 and toy("run", number=2.0) == 2


@pytest.mark.parametrize("full", ["config.yaml", "run.json", "word_b_method_x.json", "word_b_method_x.txt",
                                  "letters.csv", "results.csv", "figure.txt"])
def test_a_full_disk_ends_in_a_sentence_and_loses_nothing(full, toy, tmp_path, monkeypatch, capsys):
    replace, rename = Path.replace, Path.rename

    def when_full(move):
        def moved(self, target):
            if target.name == full and not (full == "run.json" and not target.exists()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return move(self, target)
        return moved

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", when_full(replace))
        patched.setattr(Path, "rename", when_full(rename))
        assert toy("run") == 2
        said = sentence(capsys)
        assert said.startswith(f"toy: {tmp_path}") and said.endswith(f"{full}: No space left on device.")
    assert not list(tmp_path.rglob("*.tmp"))
    assert toy("run") == toy("whole") == 0 and result(tmp_path / "run") == result(tmp_path / "whole")
    assert sessions(tmp_path / "run")[-1]["status"] == "done"


@pytest.mark.parametrize("text, words", [
    ("wrod_list: [a]", "did you mean 'word_list'"), ("number: yes", "'number': Input should be a valid number"),
    ("word_list: []", "'word_list': List should have at least 1 item"), ("word_list: [a, '']", "'word_list.1'"),
    ("number: .nan", "'number': Input should be"), ("word_list: [a, a]", "word_list: a value stands twice"),
    ("number: 1\nnumber: 2", "the key 'number' stands twice"), ("number: [1", "is not valid YAML"),
    ("number: 2024-13-45", "is not valid YAML"), ("1: 2", "is not a config"), ("words", "is not a config"),
    ("base: c.yaml", "is based on itself"), ("base: nowhere.yaml", "nowhere.yaml: No such file"),
    ("model_dir: ~nosuchuser/x", "the path '~nosuchuser/x' cannot be used"), ('model_dir: "\\0"', "cannot be used"),
    ("model_dir: " + "x" * 300, "cannot be used: File name too long"), ("device: abacus", "device"),
    ("number: 1:20:30", "'number': Input should be a valid number"), ("layers_at_once: 010", "should be a valid int"),
    ("base: /dev/zero", "/dev/zero is not a config: it is no file"), ("x: 1\n" * 60000, "or has more than 256 KiB"),
    ("".join(f"k{key}: 1\n" for key in range(20000)), "'k0': Extra inputs are not permitted"),
    (f"word_list: {[*range(400)]}\nmethod_list: {[*range(400)]}".replace("0,", "a,"), "should be a valid string"),
    (f"word_list: {[f'w{n}' for n in range(400)]}\nmethod_list: {[f'm{n}' for n in range(400)]}", "160000 settings")])
def test_configs_are_refused_in_a_sentence(text, words, tmp_path, capsys):
    rest = "" if text in ("1: 2", "words") else f"results_dir: {tmp_path / 'run'}\n"
    (tmp_path / "c.yaml").write_text(f"{rest}{text}\n")
    options = ["--set", "model_dir=x"] if "model_dir" not in text else []
    assert main(TOY, ["--config", str(tmp_path / "c.yaml"), *options]) == 2 and words in sentence(capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["c.yaml"]


def test_nothing_of_a_file_that_is_no_config_is_printed(tmp_path, capsys):
    for text in ("secret: [1", "password: secret\npassword: secret", "a: *secret", "secret\n%", "secret: 2024-13-45",
                 "root:secret:1:::\nbin:*:1::"):
        (tmp_path / "shadow").write_text(text)
        (tmp_path / "c.yaml").write_text("base: shadow\n")
        assert main(TOY, ["--config", str(tmp_path / "c.yaml")]) == 2
        said = sentence(capsys)
        assert "shadow is not" in said and "secret" not in said and "password" not in said and "2024" not in said


@pytest.mark.parametrize("text", ["a #2", "a: b", '"a"', "'a'", "1_2", "007", "1e5", "1:20:30", " a ", "yes", "~"])
def test_text_on_the_command_line_is_taken_as_it_stands(text, toy, tmp_path):
    """And is the same when the run goes on from its config.yaml."""
    folder = tmp_path / text
    for options in ([], ["layers_at_once=3"]):
        assert toy("x", "--set", f"results_dir={folder}", f"model_dir={folder}/m", "number=1_0.5", "method_list=[x, z]",
                   f"title={text}", "data_path=null", *options, word_list=[text]) == 0
    config = configs.load_config(folder / "config.yaml", Config)
    assert (config.title, config.number, config.method_list, config.data_path) == (text, 10.5, ["x", "z"], None)
    assert len((folder / "m/log").read_text().splitlines()) == 2


@pytest.mark.parametrize("deleted", ["", "config.yaml", "settings"])
def test_a_run_that_is_deleted_while_it_computes_fails(deleted, toy, tmp_path, monkeypatch, capsys):
    def deleting(config, settings, prepared):
        for number, done in enumerate(run(config, settings, prepared)):
            if number == 1:
                path = tmp_path / "run" / deleted
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield done

    with monkeypatch.context() as patched:
        patched.setitem(globals(), "TOY", replace(TOY, run=deleting))
        assert toy("run") == 1 and "were deleted or replaced while the run computed" in sentence(capsys)
    assert (tmp_path / "run").exists() == bool(deleted)
    assert toy("run", "--check") == (0 if deleted == "settings" else 2)


def test_models_may_lie_in_the_folder_of_results(toy, tmp_path, capsys):
    """With --overwrite they move with the run; they alone do not make the folder another's."""
    inside = {"model_dir": str(tmp_path / "run/deep/models")}
    assert toy("run", **inside) == toy("run", **inside) == 0
    assert toy("run", "--overwrite", number=2.0, **inside) == 0
    assert (tmp_path / f"run.old-1/deep/models/{FIRST[9:-5]}.txt").read_text().endswith("1.0")
    for file in (tmp_path / "run").iterdir():
        if file.name != "deep":
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    assert toy("run", **inside) == 2 and "is there already, from another run" in sentence(capsys)
    assert toy("run", "--overwrite", **inside) == 0


def test_a_path_asks_for_values_only():
    for path in ("m_{model_seed:999999999}", "m_{model_seed!r}", "m_{model_seed.real}", "m_{", "m_{0}", "{word}"):
        with pytest.raises(BadInput, match="asks for more than"):
            fill_in("model_path", path, SimpleNamespace(_asdict=lambda: {"model_seed": 1, "word": "a"}))


def test_configs_inherit_and_are_overridden(tmp_path, capsys):
    write_yaml(tmp_path / "base/b.yaml", {"base": "../a.yaml", "number": 2, "word_list": ["b"]})
    (tmp_path / "a.yaml").write_text("number: 1\nmodel_dir: a\nresults_dir: r\n")
    file = write_yaml(tmp_path / "c.yaml", {"base": "base/b.yaml", "word_list": ["c"]})
    config = configs.load_config(file, Config, ["number=1e-5", "method_list=[z]"])
    assert (config.number, config.model_dir, config.word_list, config.method_list) == (1e-5, "a", ["c"], ["z"])
    assert [path.name for path, _ in configs.read_chain(file)] == ["c.yaml", "b.yaml", "a.yaml"]
    assert len(expand_settings(config)) == 1
    assert main(TOY, ["--config", str(file), "--set", "number"]) == 2 and "--set takes key=value" in sentence(capsys)
    assert main(TOY, ["--config", str(file), "none.yaml"]) == 2 and "none.yaml" in sentence(capsys)


def test_a_log_gets_a_line_at_times_and_nothing_of_what_is_quickly_done(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    bar = progress.Progress(range(3), desc="layer 3 attn", unit="epoch")
    for number in bar:
        bar.set_postfix_str(f"loss {number}", refresh=False)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" after")[0] for line in lines] == [f"layer 3 attn: {done} of 3 epochs" for done in (1, 2, 3)]
    assert lines[-1].endswith("loss 2") and all(re.search(r" after [\d:]+, [\d:]+ left", line) for line in lines)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 30)
    assert list(progress.Progress(range(3), desc="quick", unit="setting", leave=True)) == [0, 1, 2]
    assert not capsys.readouterr().err
