"""`prepare` from the command line: every row looked at, nothing half written, and training that cannot tell prepared from raw."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from cimrl_jax import experiment
from cimrl_jax.assembly import official
from cimrl_jax.config import load, to_dict
from cimrl_jax.data import manifest, prepared
from cimrl_jax.errors import UserError
from cimrl_jax.main import main
from tests import tiny
from tests.data import tables
from tests.data.prepared_test import assert_same, files

pytest.importorskip("PIL", reason="pip install 'cimrl_jax[data]'")
ROOT = pathlib.Path(__file__).parents[1]
COLUMNS = {**tables.COLUMNS, "image_columns": "photo", "size": 8, "recording": {"rate": 1000, "seconds": 0.05, "window": 20, "hop": 10, "bands": 4}}
SMALL = {key: value for key, value in tiny.STUDY.items() if key not in ("data", "model")}
MODEL = {"dim": 8, "heads": 2, "fusion_layers": 1, "causal_layers": 0}


@pytest.fixture
def table(tmp_path):
    """A config file of a table with all kinds of columns in a folder with a blank in its name."""
    folder = tables.media(tmp_path / "my data")
    tables.write(folder / "t.csv", tables.rows())
    return config(tmp_path, {"name": "table", "path": str(folder / "t.csv"), **COLUMNS})


def config(folder: pathlib.Path, data: dict[str, Any]) -> pathlib.Path:
    path = folder / "quick.py"
    path.write_text(f"config = { ({**SMALL, 'workdir': str(folder / 'run'), 'data': data, 'model': MODEL})!r}\n")
    return path


def prepare(file: pathlib.Path, *words: str) -> int:
    return main(["prepare", "--config", str(file), *words])


def results(workdir: pathlib.Path, config: Any) -> list[Any]:
    experiment.run(config, parts=("train", "evaluate"), workdir=str(workdir), quiet=True)
    runs = json.loads((workdir / "results.json").read_text())["runs"]
    return [{key: value for key, value in run.items() if key != "train"} for run in runs]


def test_a_table_is_prepared_shown_and_read_back(table, tmp_path, capsys):
    assert prepare(table) == 0
    told = capsys.readouterr().out
    folder = tmp_path / "my data" / "t.csv.prepared"
    assert f"train on it with:\n  python -m cimrl_jax.main --config {table} --data.path '{folder}'\n" in told
    assert re.search(r"^rows +8 +8 +8 +16 +4$", told, re.MULTILINE) and "no bad row" in told
    assert re.search(r"^group label=bird, attribute=land +3 +3 +3 +4 +1$", told, re.MULTILINE), told
    assert_same(prepared.read(folder), official(load(table)))
    assert prepare(table) == 0
    assert "prepared already, and whole" in capsys.readouterr().out


def test_training_gives_the_same_numbers_raw_or_prepared(table, tmp_path):
    small = {"data.audio_columns": "", "data.number_columns": "", "data.cause_boxes": "", "seeds": "3,"}
    folder = tmp_path / "out"
    assert prepare(table, "--to", str(folder), "--form", "records", *(word for key, value in small.items() for word in (f"--{key}={value}",))) == 0
    shallow = {"model.photo": {"encoder": "vit", "patch": 4, "depth": 0}, "model.caption": {"encoder": "text_transformer", "depth": 0}}
    more = {**small, **shallow, "report.examples": 0}
    raw, streamed = (load(table, {**more, **own}) for own in ({}, {"data.path": folder, "data.resident": "no"}))
    assert results(tmp_path / "raw", raw) == results(tmp_path / "streamed", streamed)


@pytest.mark.parametrize("form", ["map", "records"])
def test_a_data_set_that_brings_its_own_data_is_prepared_too(tmp_path, form):
    file, folder = config(tmp_path, {"name": "digits", "train": 30, "validation": 10, "test": 20}), tmp_path / "out"
    assert prepare(file, "--to", str(folder), "--form", form) == 0
    assert_same(official(load(file, {"data.path": str(folder)})), official(load(file)))


def test_bad_rows_are_shown_listed_and_refused_or_left_out(table, tmp_path, capsys):
    media, folder = tmp_path / "my data", tmp_path / "out"
    (media / "pictures" / "3.png").unlink()
    (media / "pictures" / "12.png").write_bytes(b"\x89PNG not a picture")
    (media / "pictures" / "23.png").write_bytes((media / "pictures" / "0.png").read_bytes())
    for words in (("--check",), ()):
        assert prepare(table, "--to", str(folder), *words) == 2
        out, err = capsys.readouterr()
        assert err == f"error: 3 bad rows (listed in {folder}/faults.jsonl); mend them or set --data.on-bad-row skip\n"
        assert list(files(folder)) == ["faults.jsonl"]
        assert "t.csv, line 5: missing file: there is no" in out
    listed = [json.loads(line) for line in (folder / "faults.jsonl").read_text().splitlines()]
    assert [(row["row"], row["kind"]) for row in listed] == [
        ("t.csv, line 2", "picture in two splits"),
        ("t.csv, line 5", "missing file"),
        ("t.csv, line 14", "undecodable picture"),
    ]
    assert "train" in listed[0]["splits"] and listed[2]["splits"] == ["validation"]
    assert prepare(table, "--to", str(folder), "--data.on-bad-row", "skip", "--check") == 0
    assert list(files(folder)) == ["faults.jsonl"]
    assert prepare(table, "--to", str(folder), "--data.on-bad-row", "skip") == 0
    found = prepared.read(folder)
    assert [line.split(":")[0] for line in found.skipped] == ["t.csv, line 2", "t.csv, line 5", "t.csv, line 14"]
    counts = {"train": 6, "validation": 7, "test": 8, "train_randomised": 13, "test_balanced": 4}
    assert {name: len(source) for name, source in found.splits.items()} == counts
    with pytest.raises(UserError, match="data.on_bad_row: is 'fail', but .*out was prepared with 'skip'"):
        load(table, {"data.path": str(folder), "data.on_bad_row": "fail"})
    # Mended: the list goes.
    tables.media(media)
    assert prepare(table, "--to", str(tmp_path / "out"), "--check") == 2  # of other options
    assert prepare(table, "--to", str(tmp_path / "other")) == 0 and "faults.jsonl" not in files(tmp_path / "other")


def test_a_config_takes_what_was_prepared_and_refuses_what_was_not(table, tmp_path, capsys):
    folder = str(tmp_path / "out")
    assert prepare(table, "--to", folder, "--data.size", "16", "--data.on-bad-row", "skip") == 0
    raw = load(table, {"data.size": 16, "data.on_bad_row": "skip"})
    alone = load({**SMALL, "data": {"path": folder}, "model": MODEL})
    assert alone.data.name == "table" and alone.data.options == raw.data.options
    assert load(to_dict(alone)) == alone
    # Nothing was left out: either way the same.
    assert load({"data": {"path": folder, "on_bad_row": "fail"}}).data.options["on_bad_row"] == "skip"
    assert load({"data": {"path": folder, "recording": {"rate": "1000"}}}).data.options == raw.data.options
    for changes, says in (
        ({"data.size": "8"}, f"command line: data.size: is 8, but {folder} was prepared with 16; leave it out, or prepare again into another folder"),
        ({"data.recording.rate": 2000}, "data.recording.rate: is 2000, but"),
        ({"data.text_columns": ""}, r"data.text_columns: is \[\], but .* was prepared with \['caption'\]"),
        ({"data.name": "digits"}, "data.name: is 'digits', but .* holds 'table', prepared; leave data.name out or change data.path"),
        ({"data.szie": 8}, "data.szie: unknown key; did you mean 'data.size'?"),
    ):
        with pytest.raises(UserError, match=says):
            load({"data": {"path": folder}}, changes)
    assert prepare(table, "--data.path", folder, "--data.size", "16", "--data.on-bad-row", "skip") == 2
    assert f"error: data.path: {folder} is prepared already" in capsys.readouterr().err
    known = json.loads((tmp_path / "out" / "dataset.json").read_text())
    known["made_of"]["data"]["options"]["gone"] = 1
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(known))
    with pytest.raises(UserError, match=r"was prepared by another version, with data.gone; prepare it anew"):
        load({"data": {"path": folder}})


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "nothing to prepare: expected prepare --config FILE"),
        (["train", "--config", "{file}"], "prepare stands alone; expected it without 'train'"),
        (["--config", "{file}", "--form", "zip"], "--form: got 'zip', expected map or records"),
        (["--config", "{file}", "--to"], "--to: expected a folder"),
        (["--config", "{file}", "--picture", "jpeg"], "pictures are kept as JPEG in records only; set --form records"),
        (["--config", "{file}", "--data.size", "x"], "command line: data.size: got 'x'"),
        (["--config", "{file}", "--to", "{file}"], "quick.py is a file; expected a folder, or nothing"),
        (["--config", "{file}", "--data.path", "/nowhere.csv"], "data set 'table'"),
    ],
)
def test_what_can_be_mended_is_one_line(table, capsys, words, says):
    before = files(table.parent)
    assert main(["prepare", *(word.format(file=table) for word in words)]) == 2
    line = capsys.readouterr().err
    assert says in line and line.count("\n") == 1 and line.startswith("error: ")
    assert files(table.parent) == before


def test_a_terminated_start_is_gone_on_from_and_says_so(tmp_path):
    file, folder = config(tmp_path, {"name": "digits", "train": 300, "validation": 10, "test": 20}), tmp_path / "out"
    slowly = (
        "import sys, time; from cimrl_jax.data import prepared, shards; from cimrl_jax.main import main; prepared.SHARD_BYTES = 50 * 28 * 28 * 3\n"
        "write = shards.Folder._write\n"
        "def slow(*a):\n    time.sleep(0.3 if 'slow' in sys.argv else 0)\n    return write(*a)\n"
        "shards.Folder._write = slow; sys.exit(main(sys.argv[2:]))"
    )
    words = [sys.executable, "-c", slowly, "slow", "prepare", "--config", str(file), "--to", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    until = time.monotonic() + 50
    while len(list(folder.glob("inputs.image/*.npy"))) < 2 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    process.terminate()
    process.wait(timeout=30)
    assert process.returncode != 0 and not (folder / "dataset.json").exists() and manifest.is_prepared(folder)
    done = subprocess.run([*words[:3], "quick", *words[4:]], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.search(r"going on where an earlier start was: (\d{2,}) of \d+ rows of inputs.image are there", done.stdout)
    assert_same(prepared.read(folder), official(load(file)))


def test_a_second_version_of_the_texts_is_prepared_with_them(table, tmp_path, monkeypatch, capsys):
    from cimrl_jax.data import back_translation

    def translate(texts, spec, *, cache, progress, **_):
        progress(len(texts), len(texts))
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text("")
        return [" ".join(reversed(text.split())) for text in texts]

    monkeypatch.setattr(back_translation, "translate", translate)
    folder, words = tmp_path / "out", ("--to", str(tmp_path / "out"), "--back-translate", "apertium:eng-spa")
    assert prepare(table, *words) == 0
    raw, found = official(load(table)), prepared.read(folder)
    length, feature = raw.features["caption"].shape[0], found.features["caption"]
    assert feature.views == 2 and feature.shape == (2 * length,) and found.features["photo"] == raw.features["photo"]
    ids, own = (dataset.splits["train"].load(np.arange(8))["inputs"]["caption"] for dataset in (found, raw))
    np.testing.assert_array_equal(ids[:, :length], own)
    assert (ids[:, length:] != own).any(1).all() and (folder / "translations.jsonl").exists()
    assert prepare(table, *words) == 0
    assert prepare(table, "--to", str(folder)) == 2
    assert "was prepared otherwise (back_translate is 'apertium:eng-spa' there, '' here)" in capsys.readouterr().err


def test_many_classes_are_counted_together(capsys):
    from cimrl_jax import prepare as command
    from cimrl_jax.report.progress import Progress

    label = np.arange(50) % 40
    labels = {"train": (label, np.full(50, -1)), "test": (label[:12], np.full(12, -1))}
    with Progress() as progress:
        command._tell("big", labels, [f"c{i}" for i in range(40)], ["g"], {}, {"train": {"rows": 50}, "test": {"rows": 13}}, progress)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["big", "train", "test"],
        ["rows", "50", "as", "published", "12", "of", "13"],
        ["classes", "40", "of", "40", "12", "of", "40"],
        ["group", "g", "0", "0"],
        ["group", "unknown", "50", "12"],
    ]
