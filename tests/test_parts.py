"""A sweep in parts is the same run as in one: its tables, files and figures; what does not fit is refused."""

import json
import shutil

import pandas as pd
import pytest

from analysis.method_figures import read_results_table
from analysis.report_runs import Problems, find_runs
from conftest import CIRCUITS, rows_of, write_yaml
from interp.experiment import main
from interp.runs.config import BadInput
from interp.runs.parts import has_table, tables_below


@pytest.fixture
def sweep(tiny, tmp_path):
    """A config of eight settings, and a function that runs it, or a part, or with other keys, in a folder."""
    values = tiny.circuits | {"lr_list": [0.01, 0.1], "mask_init_list": [0.0, 0.1], "gif": True, "gif_interval": 5}

    def run(folder: str, *options: str, **others) -> int:
        own = values | {"results_dir": str(tmp_path / folder), "model_dir": str(tmp_path / f"{folder}_circuits")}
        return main(CIRCUITS, ["--config", str(write_yaml(tmp_path / f"{folder}.yaml", own | others)), *options])

    return run


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def test_parts_are_one_run(sweep, tmp_path, capsys):
    assert sweep("whole") == 0
    for part in ("3/3", "1/3"):
        assert sweep("parts", "--part", part) == 0
    capsys.readouterr()
    assert sweep("parts") == 2
    assert "2/3 lacks 3 of 3 settings" in capsys.readouterr().err
    assert not (tmp_path / "parts" / "config.yaml").exists()

    # read together before they are joined, as far as they have come
    file = tmp_path / "parts" / "results.csv"
    begun = file.parent / "part_3_of_3" / "results.csv"
    whole = begun.read_text()
    begun.write_text("".join(whole.splitlines(keepends=True)[:2]))  # as if killed after its first setting
    assert len(read_results_table(file)) == 4
    assert "--part 2/3, 3/3 (has 1 of 2 settings)\n" in capsys.readouterr().err
    begun.write_text(whole)
    assert has_table(file) and file in tables_below(tmp_path, "p*")
    table = read_results_table(file)
    assert "--part 2/3\n" in capsys.readouterr().err and len(table) == 5
    reported = {run.name: run for run in find_runs(tmp_path, Problems())}
    assert set(reported) == {"whole", "parts"} and reported["parts"].unfinished.endswith("5 of 8 settings have rows")
    assert sweep("parts", "--part", "2/3") == 0
    assert sweep("parts", "--part", "2/3") == 0  # resumed: nothing is left
    pd.testing.assert_frame_equal(*(read_results_table(tmp_path / name / "results.csv").drop(columns="seconds")
                                    for name in ("parts", "whole")))

    capsys.readouterr()
    assert sweep("parts") == 0
    assert "8 settings" in capsys.readouterr().out
    for name in ("results.csv", "ablations.csv"):
        assert rows_of(tmp_path / "parts" / name) == rows_of(tmp_path / "whole" / name) != []
    assert files_of(tmp_path / "parts_circuits") == files_of(tmp_path / "whole_circuits") != {}
    gifs = [sorted(file.name for file in (tmp_path / name).glob("*.gif")) for name in ("parts", "whole")]
    assert gifs[0] == gifs[1] and len(gifs[0]) == 8
    record = json.loads((tmp_path / "parts" / "run.json").read_text())
    assert record["status"] == "done" and list(record["parts"]) == ["1/3", "2/3", "3/3"]
    before = (tmp_path / "parts" / "results.csv").read_bytes()
    assert sweep("parts") == 0 and (tmp_path / "parts" / "results.csv").read_bytes() == before

    # what the joined run lists as done is looked at as in any other
    lost = next((tmp_path / "parts_circuits").glob("*.safetensors"))
    lost.write_bytes(lost.read_bytes()[:40])
    assert sweep("parts") == 0 and files_of(tmp_path / "parts_circuits") == files_of(tmp_path / "whole_circuits")


def test_parts_that_do_not_fit(sweep, tmp_path, capsys):
    def told(*arguments, **others) -> str:
        capsys.readouterr()
        assert sweep(*arguments, **others) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    assert sweep("x", "--part", "1/2") == 0
    assert "in 2 parts, to which 1/4 does not belong" in told("x", "--part", "1/4")
    assert "another num_epochs" in told("x", "--part", "2/2", num_epochs=6)
    shutil.copytree(tmp_path / "x" / "part_1_of_2", tmp_path / "x" / "part_3_of_4")
    assert "parts of 2 and of 4" in told("x")
    with pytest.raises(BadInput, match="parts of 2 and of 4"):
        has_table(tmp_path / "x" / "results.csv")
    shutil.rmtree(tmp_path / "x" / "part_3_of_4")
    shutil.copytree(tmp_path / "x" / "part_1_of_2", tmp_path / "x" / "part_2_of_2")
    with pytest.raises(BadInput, match="does not belong to part 2/2"):
        read_results_table(tmp_path / "x" / "results.csv")
    written = (tmp_path / "x/part_2_of_2/results.csv").read_bytes()
    for options in ([], ["--part", "2/2"]):  # a row is never dropped without a word
        assert "holds settings that are not of part 2/2" in told("x", *options)
    assert (tmp_path / "x/part_2_of_2/results.csv").read_bytes() == written

    assert sweep("y") == 0
    assert "is not in parts" in told("y", "--part", "1/2")
    with pytest.raises(SystemExit) as ended:
        sweep("z", "--part", "3/2")
    assert ended.value.code == 2 and "'3/2' is not a part such as 3/8" in capsys.readouterr().err


def test_a_part_without_settings_and_a_run_begun_anew(sweep, tmp_path, capsys):
    assert sweep("x", "--part", "9/9") == 0
    assert "no settings fall to this part" in capsys.readouterr().out and not (tmp_path / "x").exists()
    for part in range(1, 9):
        assert sweep("x", "--part", f"{part}/9") == 0
    assert sweep("x", "--overwrite") == 0  # the parts are set aside
    assert (tmp_path / "x.old-1" / "part_1_of_9" / "results.csv").exists()
    assert len(rows_of(tmp_path / "x" / "results.csv")) == 8 and not (tmp_path / "x" / "part_1_of_9").exists()
