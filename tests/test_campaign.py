"""A share of the campaign, and that a campaign finds the faults that it looks for."""

import csv
import dataclasses
import json
import os
import subprocess
import sys

import pytest

from campaign import bench, damage
from campaign.__main__ import attempt, in_a_process, report
from campaign.processes import interrupts_us
from conftest import SENTENCES
from interp.runs.config import PROJECT_ROOT

SHARE = {"configs": 100, "files": 40, "kills": 2, "at_once": 1}


def test_a_share_of_the_campaign(tmp_path):
    environment = os.environ | {"PYTHONPATH": f"{PROJECT_ROOT}:{PROJECT_ROOT / 'tests'}"}
    command = [sys.executable, "-m", "campaign", "--seed", "17", "--out", tmp_path, "--kind", *SHARE, "--count",
               *(f"{kind}={count}" for kind, count in SHARE.items())]
    ended = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-10000:] + ended.stderr[-3000:]
    records = (tmp_path / "trials.jsonl").read_text()
    assert sorted(json.loads(line)["kind"] for line in records.splitlines()) == sorted(
        kind for kind, count in SHARE.items() for _ in range(count))
    again = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True)
    assert again.stdout == (tmp_path / "report.md").read_text() in ended.stdout  # what was made is not made again
    assert (tmp_path / "trials.jsonl").read_text() == records


@pytest.mark.parametrize("frames, ours", [
    ([], False), ([("circuit_probing.py", 0)], False), ([("circuit_probing.py", "first")], False),
    ([("circuit_probing.py", "first"), ("interp/runs/interruption.py", 9)], False),
    ([("circuit_probing.py", "next")], True), ([("circuit_probing.py", "first"), ("interp/runs/config.py", 9)], True),
    ([("circuit_probing.py", "next"), ("interp/runs/interruption.py", 9)], True)])
def test_only_an_interruption_before_the_first_import_is_pythons_own(frames, ours):
    text = (PROJECT_ROOT / "circuit_probing.py").read_text().splitlines()
    first = 1 + next(number for number, line in enumerate(text) if line.startswith("import interp.runs.interruption"))
    lines = {"first": first, "next": first + 3}
    errors = "".join(f'  File "{PROJECT_ROOT / file}", line {lines.get(line, line)}, in <module>\n'
                     for file, line in frames)
    assert interrupts_us(f"{errors}KeyboardInterrupt\n", PROJECT_ROOT, PROJECT_ROOT / "circuit_probing.py") == ours


def ends_in_a_traceback(*_):
    raise ZeroDivisionError


def loses_a_row(config, prepared, run):
    with open(run.path / "results.csv", newline="") as file:
        rows = list(csv.reader(file))
    with open(run.path / "results.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows[:-1])


def writes_elsewhere(config, prepared, run):
    (run.path.parents[3] / "stray").write_text("here")


@pytest.mark.parametrize("kind, planted, found", [
    ("files", {}, None),
    ("configs", {}, None),
    ("files", {"finish": loses_a_row}, "other than undisturbed: sentences/run/results.csv"),
    ("files", {"run_setting": ends_in_a_traceback}, "ZeroDivisionError"),
    ("files", {"finish": writes_elsewhere}, "outside of the trial's folder"),
    ("configs", {"prepare": ends_in_a_traceback}, "ZeroDivisionError"),
])
def test_planted_faults_are_found(kind, planted, found, tmp_path, monkeypatch):
    job = bench.JOBS["sentences"]
    for name in bench.JOBS.keys() - {"sentences"}:
        monkeypatch.delitem(bench.JOBS, name)
    undisturbed = bench.Bench(tmp_path / "bench")
    undisturbed.project.mkdir()
    assert bench.run(undisturbed.project, "sentences", job.values).status == 0
    undisturbed.saved["sentences"] = bench.saved(undisturbed.project, "sentences")
    monkeypatch.setitem(bench.JOBS, "sentences", job._replace(script=dataclasses.replace(SENTENCES, **planted)))
    known = {}
    for number in range(12):
        known[kind, number] = in_a_process(attempt, getattr(damage, kind), undisturbed, 0, kind, number,
                                           tmp_path / f"{kind}-{number}")
        (tmp_path / "stray").unlink(missing_ok=True)
    failed = [record for record in known.values() if record["outcome"] == "failed"]
    assert any(found in record["why"] for record in failed) if found else not failed, failed
    assert all(f"make campaign SEED=0 ONLY={kind}:{record['number']}" in report(known, 0) for record in failed)
