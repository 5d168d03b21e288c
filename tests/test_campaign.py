"""A share of the campaign, and that a campaign finds the faults that it looks for."""

import dataclasses
import json
import os
import random
import subprocess
import sys

import pytest

from campaign import bench, trials
from conftest import SENTENCES
from interp.runs.config import PROJECT_ROOT

SHARE = {"configs": 60, "files": 30, "kills": 2}


def test_a_share_of_the_campaign(tmp_path):
    environment = os.environ | {"PYTHONPATH": f"{PROJECT_ROOT}:{PROJECT_ROOT / 'tests'}"}
    command = [sys.executable, "-m", "campaign", "--seed", "17", "--out", tmp_path, "--count",
               *(f"{kind}={count}" for kind, count in SHARE.items())]
    ended = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-10000:] + ended.stderr[-3000:]
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert {kind: kinds.count(kind) for kind in kinds} == SHARE


def ends_in_a_traceback(*_):
    raise ZeroDivisionError


def says_two_things(config, settings, device):
    print("first", file=sys.stderr)
    raise OSError


def loses_a_row(config, tables, run):
    lines = (run.path / "results.csv").read_text().splitlines(keepends=True)
    (run.path / "results.csv").write_text("".join(lines[:-1]))


@pytest.mark.parametrize("kind, planted, found", [
    ("files", {}, None),
    ("configs", {}, None),
    ("files", {"finish": loses_a_row}, "other than undisturbed: sentences/run/results.csv"),
    ("configs", {"prepare": ends_in_a_traceback}, "ZeroDivisionError"),
    ("configs", {"prepare": says_two_things}, "not in one sentence"),
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
    failures = []
    for number in range(12):
        try:
            getattr(trials, kind)(bench.Trial(undisturbed, random.Random(number), tmp_path / f"{kind}-{number}"))
        except AssertionError as error:
            failures.append(str(error))
    assert any(found in failure for failure in failures) if found else not failures, failures
