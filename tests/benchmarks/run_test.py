"""The table of what was measured, and the runner's way with scripts that fail."""

from __future__ import annotations

import json

import pytest

from benchmarks import run

ENVIRONMENT = {"backend": "cpu", "device_kind": "cpu", "cpu_count": 2, "python": "3.11", "jax": "0.10", "flax": "0.12"}


def test_a_row_says_whether_the_target_is_met_or_why_it_is_not_known():
    target = run.Target("a/b", "what", "<= 2", (0, 2))
    assert "| 1.5 | 1 to 2 | <= 2 | yes |" in run.row(target, {"ratio": 1.5, "ratio_quartiles": [1.0, 2.0]})
    assert "| **no** |" in run.row(target, {"ratio": 2.5})
    assert "not measured: no GPU" in run.row(target, {"unmeasured": "no GPU"})
    assert "| not measured |" in run.row(target, None) and "yes" not in run.row(target, None)
    assert "| 3 |" in run.row(target._replace(value="deep.er", met=None), {"deep": {"er": 3}})


def test_what_two_files_say_of_one_name_stands_together(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"name": "x", "ratio": 1.0, "environment": ENVIRONMENT}) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"name": "x", "count": 2}) + "\n" + json.dumps({"name": "y"}) + "\n")
    assert run.read(tmp_path) == {"x": {"name": "x", "ratio": 1.0, "count": 2, "environment": ENVIRONMENT}, "y": {"name": "y"}}


def test_every_target_is_in_the_table_and_the_device_below_it():
    text = run.table({"sweep/grid": {"name": "sweep/grid", "compiles": 1, "environment": ENVIRONMENT}})
    assert all(target.what in text for target in run.TARGETS) and "cpu, 2 cores; Python 3.11, jax 0.10, flax 0.12: sweep." in text


def test_the_table_stands_between_its_marks(tmp_path):
    file = tmp_path / "README.md"
    file.write_text(f"before\n{run.MARKS[0]}\nold\n{run.MARKS[1]}\nafter\n")
    for text in ("new", "newer"):
        run.write(text, file)
        assert file.read_text() == f"before\n{run.MARKS[0]}\n\n{text}\n\n{run.MARKS[1]}\nafter\n"
    file.write_text("no marks")
    with pytest.raises(ValueError, match="put them where the table should stand"):
        run.write("text", file)


def test_a_script_that_fails_keeps_its_old_records_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "results").mkdir()
    script, kept = tmp_path / "benchmarks/own.py", tmp_path / "results/own.jsonl"
    kept.write_text("old\n")
    monkeypatch.setitem(run.SCRIPTS, "own", run.Script())
    script.write_text("print('new')\nraise SystemExit('error: broken')\n")
    assert run.run("own", tmp_path / "results", quick=False) == "error: broken" and kept.read_text() == "old\n"
    script.write_text("print('new')\n")
    assert run.run("own", tmp_path / "results", quick=False) == "" and kept.read_text() == "new\n"


def test_every_script_is_there_and_an_unknown_one_is_refused(capsys):
    assert all((run.ROOT / f"benchmarks/{own.file or name}.py").is_file() for name, own in run.SCRIPTS.items())
    assert run.main(["--only", "nothing"]) == 2 and "there is no benchmark 'nothing'" in capsys.readouterr().err
