"""X-rays and notes: which rows count, folds by patient, leaks, lungs; on a hand-made folder everywhere and on the real one where it is."""

from __future__ import annotations

import csv
import dataclasses
import os
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from cimrl_jax.data import tokenise
from cimrl_jax.data.datasets import covid_cxr
from cimrl_jax.data.datasets.covid_cxr import Options
from cimrl_jax.data.source import ArraySource, Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.options import make_options
from cimrl_jax.types import Expected

Image = pytest.importorskip("PIL.Image")
REAL = pathlib.Path(os.environ.get("CIMRL_DATA", pathlib.Path(__file__).parents[3] / "shared" / "data")) / "covid_cxr"
real = pytest.mark.skipif(not REAL.exists(), reason=f"no real files at {REAL}; set CIMRL_DATA to a folder that holds covid_cxr/")
KINDS = (("COVID-19", "PA"), ("COVID-19, ARDS", "AP Supine"), ("Pneumonia", "PA"), ("Streptococcus", "AP"))
EXTRA = (
    # patient, finding, view, modality, filename, notes: what is left out
    ("90", "todo", "PA", "X-ray", "todo.png", ""),
    ("91", "COVID-19", "L", "X-ray", "side.png", ""),
    ("92", "COVID-19", "", "X-ray", "unknown.png", ""),
    ("93", "COVID-19", "PA", "CT", "slice.png", ""),
    ("94", "COVID-19", "PA", "X-ray", "absent.png", ""),
)


def _write(path: pathlib.Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Twenty patients with two pictures each, whose grey is 50 + patient; every other one has notes."""
    path = tmp_path_factory.mktemp("covid_cxr")
    (path / "images").mkdir()
    rows = []
    for number in range(40):
        patient = number // 2
        finding, view = KINDS[patient % 4]
        notes = f"fever and cough, {finding} was found by RT-PCR" if patient % 2 == number % 2 else " "
        rows.append((str(patient), finding, view, "X-ray", f"{number}.png", notes))
    for row in (*rows, *EXTRA):
        if row[4] != "absent.png":
            Image.fromarray(np.full((20, 40), 50 + int(row[0]), np.uint8)).save(path / "images" / row[4])
    _write(path / "metadata.csv", [dict(zip(covid_cxr.COLUMNS, row, strict=True)) | {"doi": "x"} for row in (*rows, *EXTRA)])
    return path


def _build(folder: pathlib.Path, **changes: Any) -> Dataset:
    return covid_cxr.build(dataclasses.replace(Options(size=16), **changes), path=folder)


def _split(dataset: Dataset, name: str) -> ArraySource:
    source = dataset.split(name)
    assert isinstance(source, ArraySource)
    return source


def _patients(dataset: Dataset, name: str) -> list[int]:
    return (_split(dataset, name).inputs["image"][:, 0, 0, 0].astype(int) - 50).tolist()


def test_labels_views_and_what_is_left_out(folder):
    dataset = _build(folder)
    for name in dataset.splits:
        source = _split(dataset, name)
        expected = [[2, 3, 0, 1][patient % 4] for patient in _patients(dataset, name)]
        assert source.group.tolist() == expected and (source.group // 2 == source.label).all()
    assert dataset.group_names == tuple(f"label={y}, attribute={a}" for y in ("other", "COVID-19") for a in ("PA", "AP"))
    for reason in ("1 rows left out: no finding", "2 rows left out: not from the front", "1 rows left out: no X-ray", "1 rows left out: no picture"):
        assert reason in dataset.notes
    assert sum(len(_split(dataset, name)) for name in ("train", "validation", "test")) == 40


def test_folds_part_the_patients_and_every_patient_is_tested_once(folder):
    tested = []
    for fold in range(5):
        dataset = _build(folder, fold=fold)
        parts = {name: set(_patients(dataset, name)) for name in ("train", "validation", "test")}
        assert len(set.union(*parts.values())) == sum(map(len, parts.values())) == 20
        assert sorted(patient % 4 for patient in parts["test"]) == [0, 1, 2, 3]  # one of each kind
        assert parts["validation"] == set(_patients(_build(folder, fold=(fold + 1) % 5), "test"))
        assert set(_patients(dataset, "train_randomised")) == parts["train"]
        tested += sorted(parts["test"])
    assert sorted(tested) == list(range(20))
    assert _patients(_build(folder), "test") != _patients(_build(folder, data_seed=1), "test")


def test_in_the_randomised_rows_the_view_says_nothing(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    rows = covid_cxr.records(folder / "metadata.csv", covid_cxr.COLUMNS)
    kept = [row for row in rows if row["finding"] != "Streptococcus" or row["patientid"] in ("3", "7", "11", "15")][::-1]
    kept = [row for row in kept if not (row["finding"] == "COVID-19" and row["filename"][:-4] in ("8", "16", "24"))]
    _write(tmp_path / "copy" / "metadata.csv", kept)
    dataset = _build(tmp_path / "copy")
    first, again = _split(dataset, "train"), _split(dataset, "train_randomised")
    assert len(again) > len(first) and again.label.mean() == first.label.mean()
    pictures = [{row.tobytes() for row in own.inputs["image"]} for own in (first, again)]
    assert pictures[0] == pictures[1]  # none is left out
    counts = np.bincount(again.group, minlength=4).reshape(2, 2)
    assert np.abs(counts[:, 0] - counts[:, 1]).max() <= 1
    assert len(set(np.bincount(first.group, minlength=4).tolist())) > 1


def test_notes_are_absent_where_there_are_none(folder):
    source = _split(_build(folder), "train")
    empty = (source.inputs["text"] == 0).all(1)
    assert (source.present["text"] == ~empty).all() and 0 < empty.mean() < 1
    assert source.present["image"].all()
    dropped = _build(folder, without_notes="drop")
    assert all(_split(dropped, name).present["text"].all() for name in dropped.splits)
    assert "20 rows left out: no notes" in dropped.notes


@pytest.mark.parametrize("mask_leaks", ["no", "mask", "remove"])
def test_words_that_name_the_finding(folder, mask_leaks):
    dataset = _build(folder, mask_leaks=mask_leaks)
    source, vocabulary = _split(dataset, "train"), np.array(dataset.features["text"].vocabulary)
    words = vocabulary[source.inputs["text"]]
    assert source.regions is not None
    leaks = source.regions["shortcut"]["text"]
    names = {"covid-19", "streptococcus", "ards", "rt-pcr"}
    assert set(words[leaks]) == {"no": names, "mask": {covid_cxr.MASK}, "remove": set()}[mask_leaks]
    assert not set(words[~leaks]) & {*names, covid_cxr.MASK}
    assert {"fever", "cough", "pneumonia", "found"} <= set(words[~leaks])


def test_lungs_are_where_the_boxes_say_in_the_cropped_picture(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    rows = [row for row in covid_cxr.records(folder / "metadata.csv", covid_cxr.COLUMNS) if row["patientid"] < "5"]
    box = {"rl_x": ".25", "rl_y": "0", "rl_w": ".25", "rl_h": "1", "ll_x": ".5", "ll_y": ".5", "ll_w": ".5", "ll_h": ".5"}
    none = dict.fromkeys(box, "")
    index = [{"source_filename": r["filename"], "file": f"images/{r['filename']}"} | (none if r["patientid"] == "0" else box) for r in rows]
    _write(tmp_path / "copy" / "index.csv", index)
    dataset = covid_cxr.build(Options(size=16, folds=3), path=tmp_path / "copy")
    # The picture is 40x20: its middle half is what is left of it, so that the first box becomes the left half.
    lungs = np.zeros((16, 16), bool)
    lungs[:, :8] = True
    lungs[8:, 8:] = True
    seen = set()
    for name in ("train", "validation", "test"):
        source = _split(dataset, name)
        assert source.regions is not None
        for mask, patient in zip(source.regions["cause"]["image"], _patients(dataset, name), strict=True):
            assert (mask == (lungs if patient else np.zeros_like(lungs))).all()
            seen.add(patient)
    assert len(seen) == len({row["patientid"] for row in rows if row["patientid"] < "5"}) > 5


def test_pictures_come_in_grey_or_three_times_grey(folder):
    grey, thrice = (_build(folder, channels=channels) for channels in (1, 3))
    assert grey.features["image"].shape == (16, 16, 1) and thrice.features["image"].shape == (16, 16, 3)
    assert (_split(thrice, "train").inputs["image"] == _split(grey, "train").inputs["image"]).all()
    pixels = _split(grey, "train").inputs["image"] / 255
    assert grey.features["image"].mean == pytest.approx((pixels.mean(),)) and grey.features["image"].std == pytest.approx((pixels.std(),))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 2}, "folds.*at least 3"),
        ({"fold": 5}, "fold is 5, but there are 5 folds; choose one of 0 to 4"),
        ({"channels": 2}, "channels.*1"),
        ({"folds": 30}, "has no example of one class with fold 0 of 30"),
    ],
)
def test_bad_options_are_refused(folder, changes, message):
    with pytest.raises(UserError, match=message):
        covid_cxr.build(make_options(Options, dataclasses.asdict(Options()) | changes, "data"), path=folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", None, r"cannot read .*metadata\.csv"),
        ("metadata.csv", "patientid,finding\n1,COVID-19\n", r"metadata\.csv has no column 'view'"),
        ("metadata.csv", ",".join(covid_cxr.COLUMNS) + "\n1,todo,PA,X-ray,0.png,\n", "none of the 1 rows of .* can be used .*no finding"),
        ("images/3.png", "no picture", r"cannot read the picture .*3\.png"),
        ("index.csv", "file,source_filename,rl_x,rl_y,rl_w,rl_h\nimages/0.png,0.png,a,0,1,1\n", r"index\.csv, row of 0\.png: a lung's box"),
    ],
)
def test_bad_files_are_named(folder, tmp_path, name, content, message):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / "copy" / name).write_text(content)
    with pytest.raises(UserError, match=message):
        _build(tmp_path / "copy")


def test_without_a_path_it_says_what_to_set():
    with pytest.raises(UserError, match="set data.path"):
        covid_cxr.build(Options())


@real
def test_the_packed_pictures_have_the_counted_groups():
    index = {row["source_filename"]: row for row in covid_cxr.records(REAL / "index.csv", ("source_filename", "file", "label_covid", "view_ap"))}
    rows, _ = covid_cxr.read(REAL, Options())
    assert len(rows) == 268 and all(len(row.boxes) == 2 for row in rows)
    by_file = {row["file"]: (row["label_covid"], row["view_ap"]) for row in index.values()}
    assert all(by_file[f"images/{row.picture.name}"] == (str(row.label), str(row.view)) for row in rows)
    total = np.zeros(4, int)
    for fold in range(5):
        dataset = covid_cxr.build(Options(fold=fold, size=16), path=REAL)
        total += np.bincount(_split(dataset, "test").group, minlength=4)
        regions = _split(dataset, "train").regions
        assert regions is not None and 0.2 < regions["cause"]["image"].mean() < 0.9
    assert total.tolist() == [65, 9, 103, 91]  # other/PA, other/AP, covid/PA, covid/AP


def test_pictures_and_notes_are_made_as_pretrained_encoders_expect_them(folder, tmp_path):
    pytest.importorskip("transformers", reason="checkpoints' tokenisers are read by transformers: pip install 'cimrl_jax[text]'")
    checkpoint = pytest.importorskip("tests.tokenisers").bytes_of(tmp_path)
    expected = {
        "image": Expected(size=(12, 20), channels=3, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        "text": Expected(tokeniser=str(checkpoint), length=70),
    }
    dataset = covid_cxr.build(Options(size=16, mask_leaks="no"), path=folder, expected=expected)
    plain = _split(_build(folder, mask_leaks="no"), "train")
    source, image = _split(dataset, "train"), dataset.features["image"]
    assert image.shape == (12, 20, 3) and image.mean == (0.1, 0.2, 0.3) and image.std == (0.4, 0.5, 0.6)
    assert source.inputs["image"].shape[1:] == (12, 20, 3) and (source.inputs["image"][..., :1] == source.inputs["image"]).all()
    assert (source.present["text"] == plain.present["text"]).all() and dataset.features["text"].shape[0] <= 70
    assert source.regions is not None and plain.regions is not None and source.regions["cause"]["image"].shape[1:] == (12, 20)
    reader, words = tokenise.of(dataset.features["text"]), np.array(_build(folder, mask_leaks="no").features["text"].vocabulary)
    leaks = [
        set(reader.decode(np.where(mask, ids, 0)).split())
        for mask, ids in zip(source.regions["shortcut"]["text"], source.inputs["text"], strict=True)
    ]
    told = [set(words[ids[mask]]) for mask, ids in zip(plain.regions["shortcut"]["text"], plain.inputs["text"], strict=True)]
    assert leaks == told and set().union(*told) == {"covid-19", "streptococcus", "ards", "rt-pcr"}
