"""Tables of strangers: every form gives the same data set, splits and groups are as asked for, and whatever is damaged is named, never worse."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import pathlib
import shlex
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.config import ModelConfig
from cimrl_jax.data import columns, resampling
from cimrl_jax.data import tables as reader
from cimrl_jax.data.datasets import table
from cimrl_jax.data.source import Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.main import main
from cimrl_jax.nn import model
from cimrl_jax.nn.transformer import Sizes
from cimrl_jax.options import make_options
from cimrl_jax.types import Feature
from tests.data import layouts, tables

pytest.importorskip("pyarrow", reason="Parquet needs pyarrow, which the extra `data` installs")
pytest.importorskip("PIL", reason="pictures need Pillow, which the extra `data` installs")

ROOT = pathlib.Path(__file__).parents[2]
REAL = pathlib.Path(os.environ.get("CIMRL_DATA", ROOT.parent / "shared" / "data")) / "waterbirds" / "metadata.csv"
real = pytest.mark.skipif(not REAL.exists(), reason=f"no real file at {REAL}; set CIMRL_DATA to a folder that holds waterbirds/metadata.csv")
SMALL = {"size": 8, "recording": {"seconds": 0.1, "rate": 1000, "bands": 4, "window": 50, "hop": 10}}
TEXTS = {"text_columns": ("caption",), "label_column": "y"}
EVERY_FORM = (*tables.FORMS, "csv.gz", "tsv.gz", "jsonl.gz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Pictures and recordings, sound and damaged."""
    path = tables.media(tmp_path_factory.mktemp("table"))
    whole, wav = (path / "pictures" / "0.png").read_bytes(), (path / "sounds" / "0.wav").read_bytes()
    (path / "pictures" / "empty.png").write_bytes(b"")
    (path / "pictures" / "text.png").write_text("no picture")
    (path / "pictures" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (path / "pictures" / "noise.png").write_bytes(np.random.default_rng(0).bytes(200))
    (path / "pictures" / "head.png").write_bytes(whole[:8])
    (path / "pictures" / "sound.png").write_bytes(wav)
    (path / "pictures" / "loop.png").symlink_to("loop.png")
    (path / "pictures" / "dangling.png").symlink_to("nowhere.png")
    os.mkfifo(path / "pictures" / "pipe.png")
    (path / "sounds" / "empty.wav").write_bytes(b"")
    (path / "sounds" / "text.wav").write_text("no recording")
    (path / "sounds" / "cut.wav").write_bytes(wav[:30])
    (path / "sounds" / "silent.wav").write_bytes(wav[:40] + bytes(4))
    (path / "sounds" / "picture.wav").write_bytes(whole)
    return path


def build(path: pathlib.Path, **options: Any) -> Dataset:
    return table.build(make_options(table.Options, SMALL | options, "data"), path=path)


def read(path: pathlib.Path, **options: Any):
    return table.read(make_options(table.Options, SMALL | options, "data"), path)


def refused(function: Callable[..., Any], path: pathlib.Path, **options: Any) -> str:
    """The one line that it ends with."""
    with pytest.raises(UserError) as caught:
        function(path, **options)
    message = str(caught.value)
    assert message.startswith(("data set 'table': ", "cannot read ", "data.")) and "\n" not in message
    return message


def written(folder: pathlib.Path, rows: list[tables.Row], form: str = "csv") -> pathlib.Path:
    return tables.write(folder / f"t.{form}", rows)


# What a table gives.


def everything(dataset: Dataset) -> dict[str, Any]:
    found: dict[str, Any] = {"features": dataset.features, "names": (dataset.class_names, dataset.group_names, dataset.attribute_names)}
    for name, source in dataset.splits.items():
        records = source.load(np.arange(len(source)))
        found[name] = {**records["inputs"], "present": records["present"], "label": source.label, "group": source.group}
        assert source.regions is not None
        found[f"{name} regions"] = np.asarray(source.regions["cause"]["photo"][np.arange(len(source))])
    return found


def test_every_form_gives_the_same_data_set(folder, tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = [row | {"age": None} if i == 3 else row | {"photo": None} if i == 5 else row for i, row in enumerate(tables.rows())]
    paths = [written(folder, rows, form) for form in EVERY_FORM]
    frame = pandas.DataFrame(rows)
    frame.to_parquet(folder / "pandas.parquet")
    frame.to_json(folder / "pandas.jsonl", orient="records", lines=True)
    frame.assign(box=frame["box"].map(json.dumps)).to_csv(folder / "pandas.csv", index=False)
    paths += [folder / f"pandas.{form}" for form in ("csv", "jsonl", "parquet")]
    (folder / "bom.csv").write_bytes(b"\xef\xbb\xbf" + tables.content(rows, "csv"))
    (folder / "wide.csv").write_bytes(tables.content(rows, "csv").decode().encode("utf-16"))
    found = [everything(build(path, **tables.COLUMNS)) for path in [*paths, folder / "bom.csv"]]
    found.append(everything(build(folder / "wide.csv", **tables.COLUMNS, encoding="utf-16")))
    for other in found[1:]:
        np.testing.assert_equal(other, found[0])
    assert np.isnan(found[0]["train"]["numbers"]).sum() == 1 and not found[0]["train"]["photo"][5].any()
    assert found[0]["train"]["label"].tolist() == [0, 1] * 4 and set(found[0]) >= {"train_randomised", "test_balanced"}


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8).map(str.strip)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5), st.sampled_from(EVERY_FORM))
def test_any_text_is_read_as_it_was_written(tmp_path_factory, cells, form):
    rows = [{"a": a, "b,\t;": b, "c": "x"} for a, b in cells]
    path = written(tmp_path_factory.mktemp("any"), rows, form)
    found = reader.read(path, {"a": "data.a", "b,\t;": "data.b"}, where="data set 'table'")
    assert found.columns == ("a", "b,\t;", "c") and len(found.origins) == len(cells)
    assert (found.cells["a"], found.cells["b,\t;"]) == ([a for a, _ in cells], [b for _, b in cells]) and found.problems == {}


def test_a_row_is_named_by_the_line_that_it_begins_on(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'\n caption ,y\r\n"two\r\nlines",a\r\n\r\nb\r\n"c",b\r\n,,\r\nd,a')
    found = reader.read(tmp_path / "t.csv", {"caption": "x", "y": "x"}, where="t")
    assert list(found.origins) == ["t.csv, line 3", "t.csv, line 6", "t.csv, line 7", "t.csv, line 9"]
    assert list(found.problems) == [1] and found.cells["caption"] == ["two\r\nlines", None, "c", "d"]


def test_boxes_are_where_they_were_said_to_be(folder):
    source = build(written(folder, tables.rows()), **tables.COLUMNS).splits["train"]
    assert source.regions is not None
    masks = np.asarray(source.regions["cause"]["photo"][np.arange(8)])
    expected = np.zeros((8, 8), bool)
    expected[2:6, :4] = True
    assert all((mask == (expected if i % 3 else False)).all() for i, mask in enumerate(masks))


def test_what_a_row_lacks_is_absent_unless_that_is_forbidden(folder):
    rows = tables.rows()
    rows[0] |= {"photo": "", "age": "", "dose": "n/a"}
    rows[1] |= {"caption": "  ", "sound": None, "age": None}
    path = written(folder, rows)
    records = build(path, **tables.COLUMNS).splits["train"].load(np.array([0, 1, 2]))
    lacking = {name: (~present).tolist() for name, present in records["present"].items()}
    no, yes = False, True
    assert lacking == {"photo": [yes, no, no], "caption": [no, yes, no], "sound": [no, yes, no], "numbers": [yes, no, no]}
    message = refused(build, path, **tables.COLUMNS, absent=False)
    assert "t.csv, line 2: empty cell: column 'photo'" in message and "1 more bad row" in message
    assert len(build(path, **tables.COLUMNS, absent=False, on_bad_row="skip").splits["train"]) == 6


# Splits.


@pytest.mark.parametrize("words", ["train,validation,test", "Training,dev,TESTING", " train,valid,test ", "0,1,2", "0.0,1.0,2.0"])
def test_a_column_says_the_splits(tmp_path, words):
    words = words.split(",")
    rows = [row | {"split": words[i // 8]} for i, row in enumerate(tables.rows())]
    for form in ("csv", "jsonl"):
        found = read(written(tmp_path, rows, form), **TEXTS, split_column="split").splits
        assert {name: own.tolist() for name, own in found.items()} == {
            name: list(range(8 * i, 8 * i + 8)) for i, name in enumerate(("train", "validation", "test"))
        }


@pytest.mark.parametrize("lacking", ["validation", "test"])
def test_what_the_column_does_not_say_is_drawn_from_the_training_rows(tmp_path, lacking):
    other = {"validation": "test", "test": "validation"}[lacking]
    rows = [row | {"split": "train" if i < 20 else other} for i, row in enumerate(tables.rows(40))]
    found = read(written(tmp_path, rows), **TEXTS, split_column="split", **{lacking: 0.2})
    assert found.splits[other].tolist() == list(range(20, 40)) and len(found.splits[lacking]) == 4 and len(found.splits["train"]) == 16
    assert f"{lacking} drawn from train" in found.notes
    assert np.bincount(found.label[found.splits[lacking]]).tolist() == [2, 2]


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(st.lists(st.integers(0, 3), min_size=1, max_size=120), st.floats(0.05, 0.4), st.floats(0.05, 0.4), st.integers(0, 9))
@hypothesis.example([0, 1, 2, 3, 0] * 80, 0.2, 0.1, 0)
def test_rows_are_dealt_alike_in_every_stratum(strata, test, validation, seed):
    stratum = np.array(strata)
    dealt = resampling.deal(np.arange(len(stratum)), stratum, (test, validation), np.random.default_rng(seed))
    for value in range(4):
        own = dealt[stratum == value]
        for part, share in enumerate((test, validation, 1 - test - validation)):
            assert abs((own == part).sum() - share * len(own)) <= 2
    for part, share in enumerate((test, validation)):
        assert abs((dealt == part).sum() - share * len(stratum)) <= 1


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(st.lists(st.integers(0, 25), min_size=1, max_size=120), st.integers(0, 9))
def test_all_rows_of_a_unit_are_dealt_to_one_split(units, seed):
    unit = np.unique(np.array(units), return_inverse=True)[1]
    dealt = resampling.deal(unit, unit % 2, (0.25, 0.25), np.random.default_rng(seed))
    assert all(len(set(dealt[unit == own].tolist())) == 1 for own in unit.tolist())
    largest = np.bincount(unit).max()
    assert abs((dealt == 0).sum() - len(unit) / 4) <= largest


def test_nobody_is_in_two_splits(tmp_path):
    rows = tables.rows(60)
    found = read(written(tmp_path, rows), **TEXTS, split_by="patient")
    where = {name: {rows[row]["patient"] for row in own.tolist()} for name, own in found.splits.items()}
    assert not where["train"] & where["test"] and not where["train"] & where["validation"] and not where["test"] & where["validation"]
    assert "by patient" in found.notes and sum(map(len, found.splits.values())) == 60
    again, other = (read(tmp_path / "t.csv", **TEXTS, split_by="patient", data_seed=seed).splits for seed in (0, 1))
    assert again["test"].tolist() == found.splits["test"].tolist() != other["test"].tolist()


def test_a_patient_whom_the_column_puts_in_two_splits_is_not_trained_on(tmp_path):
    path = written(tmp_path, tables.rows())  # patient p2 has rows 6 and 7 in train and row 8 in validation, p5 15 in validation, 16 and 17 in test
    message = refused(build, path, **TEXTS, split_column="split", split_by="patient")
    assert "t.csv, line 8: in two splits: patient 'p2' is in train here and in validation elsewhere" in message
    found = build(path, **TEXTS, split_column="split", split_by="patient", on_bad_row="skip")
    assert [len(found.splits[name]) for name in ("train", "validation", "test")] == [6, 7, 8] and len(found.skipped) == 3


# Labels and groups.


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("b", "a", "C"), ("C", "a", "b")),
        ((10, 9, -1), ("-1", "9", "10")),
        (("10.0", "9.0", "1.0"), ("1", "9", "10")),
        ((True, False), ("False", "True")),
        (("ja, \"so\"", "né\n"), ("ja, \"so\"", "né")),
        (("007", "07"), ("007", "07")),
    ],
)  # fmt: skip
def test_classes_are_the_labels_in_order(tmp_path, labels, expected):
    rows = [row | {"y": labels[i % len(labels)]} for i, row in enumerate(tables.rows(60))]
    for form in tables.FORMS:
        found = read(written(tmp_path, rows, form), **TEXTS)
        assert sorted(found.class_names) == sorted(expected) and (form == "parquet" or found.class_names == expected)
        assert all(found.class_names[label] == str(row["y"]).strip().removesuffix(".0") for label, row in zip(found.label, rows, strict=True))


@pytest.mark.parametrize(
    ("label", "part"),
    [
        (lambda i: i / 7, "holds numbers such as 0.14"),
        (lambda i: i, "has 1200 different values in 1200 rows; expected at most 1000 classes"),
        (lambda i: "only", "says 'only' in every row; expected at least 2 classes"),
        (lambda i: "", "1200 of 1200 rows cannot be used, the first: t.csv, line 2: unknown"),
    ],
)
def test_a_label_that_is_no_class_is_refused(tmp_path, label, part):
    rows = [{"caption": "x", "y": label(i)} for i in range(1200)]
    assert part in refused(build, written(tmp_path, rows), **TEXTS, on_bad_row="skip")


def test_attributes_are_crossed_and_what_is_empty_is_unknown(tmp_path):
    rows = [row | {"sex": ("m", "f", "")[i % 3], "year": 9 + i % 2} for i, row in enumerate(tables.rows(48))]
    found = read(written(tmp_path, rows), **TEXTS, attribute_columns=("sex", "year"))
    assert found.attribute_names == ("f, 9", "f, 10", "m, 9", "m, 10") and len(found.group_names) == 8
    assert found.group is not None
    for group, row in zip(found.group.tolist(), rows, strict=True):
        expected = f"label={row['y']}, attribute={row['sex']}, {row['year']}"
        assert group == -1 if not row["sex"] else found.group_names[group] == expected


def test_a_column_of_groups_has_one_label_a_group(tmp_path):
    rows = [row | {"group": f"{row['y']}/{row['place']}"} for row in tables.rows(40)]
    found = read(written(tmp_path, rows), **TEXTS, group_column="group")
    assert found.group is not None and found.attribute_names == ()
    assert [found.group_names[group] for group in found.group.tolist()] == [row["group"] for row in rows]
    assert set(found.splits) == {"train", "validation", "test"}
    message = refused(build, tmp_path / "t.csv", **TEXTS, group_column="place")
    assert "group 'water' of column 'place' has the labels 'fish' (t.csv, line 3) and 'bird' (t.csv, line 8); expected one" in message


@real
def test_the_table_that_waterbirds_comes_with_has_the_published_groups():
    found = read(REAL, text_columns="place_filename", label_column="y", attribute_columns="place", split_column="split", id_column="img_id")
    assert found.group is not None and found.group_names[1] == "label=0, attribute=1"
    counts = {name: np.bincount(found.group[rows]).tolist() for name, rows in found.splits.items()}
    published = {"train": [3498, 184, 56, 1057], "validation": [467, 466, 133, 133], "test": [2255, 2255, 642, 642]}  # Sagawa et al. 2020
    assert {name: counts[name] for name in published} == published and "test_balanced" not in counts


@pytest.mark.parametrize("classes", [2, 5])
def test_balanced_splits_make_the_attribute_say_nothing(tmp_path, classes):
    rng = np.random.default_rng(0)
    rows = [{"caption": "x", "y": i % classes, "place": int(rng.random() < (0.8 if i % classes % 2 else 0.3))} for i in range(400)]
    found = read(written(tmp_path, rows), **TEXTS, attribute_columns=("place",))
    assert found.group is not None
    counts = {name: np.bincount(found.group[own], minlength=2 * classes).reshape(classes, 2) for name, own in found.splits.items()}
    for name in ("train_randomised", "test_balanced"):
        assert np.ptp(counts[name], 1).max() <= (name == "train_randomised") and counts[name].min() > 0
    assert (counts["train_randomised"].sum(1) == 2 * counts["train"].sum(1)).all()
    assert set(found.splits["train_randomised"]) == set(found.splits["train"]) and set(found.splits["test_balanced"]) <= set(found.splits["test"])
    assert np.ptp(counts["train"], 1).min() > 1
    whole = read(written(tmp_path, [row | {"place": row["y"]} for row in rows]), **TEXTS, attribute_columns=("place",))
    assert set(whole.splits) == {"train", "validation", "test"}


# Names.


def test_a_modality_is_called_as_its_column_if_a_config_can_say_so(tmp_path):
    columns = ("caption", "image URL", "dim", "shared", "1st", "numbers", "bild-übersicht", "a b", "a.b")
    rows = [dict.fromkeys(columns, "some words") | {"y": i % 2, "n": 1.5} for i in range(30)]
    found = read(written(tmp_path, rows), text_columns=columns, number_columns=("n",), label_column="y")
    names = ["caption", "image_URL", "column_dim", "column_shared", "column_1st", "numbers_", "bild_übersicht", "a_b", "a_b_", "numbers"]
    assert list(found.columns) == names
    assert "column 'image URL' is the modality image_URL" in found.notes and "'caption'" not in found.notes


def test_the_names_that_are_taken_are_those_of_the_model():
    assert set(columns.TAKEN[0]) == {field.name for field in dataclasses.fields(ModelConfig)}
    assert set(columns.TAKEN[1]) == set(model.RESERVED)


def test_files_lie_in_the_tables_folder_or_in_the_root_that_was_said(folder, tmp_path):
    rows = [row | {"photo": f"../{folder.name}/{row['photo']}"} for row in tables.rows()]
    only = {"image_columns": ("photo",), "label_column": "y"}
    inner = folder / "inner"
    inner.mkdir(exist_ok=True)
    path = written(inner, [row | {"photo": f"../{row['photo']}"} for row in tables.rows()])
    message = refused(build, path, **only)
    assert f"t.csv, line 2: file elsewhere: column 'photo': '../pictures/0.png' is not inside {inner}; set data.root" in message
    absolute = written(tmp_path, [row | {"photo": str(folder / row["photo"])} for row in tables.rows()])
    assert "file elsewhere" in refused(build, absolute, **only)
    named = written(inner, tables.rows())
    for path, root in ((absolute, "/"), (named, str(folder)), (written(folder, rows), "")):
        assert build(path, **only, root=root).features["photo"].shape == (8, 8, 3)


# What is refused.


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, ["name the columns that are inputs", "'photo', 'caption'", "--data.image-columns photo --data.text-columns caption",
              "--data.audio-columns sound --data.number-columns age --data.label-column y"]),
        ({"text_columns": ("capton",)}, ["no column 'capton', which data.text_columns names; did you mean 'caption'?"]),
        ({"text_columns": ("caption",), "label_column": "zzz"}, ["no column 'zzz', which data.label_column names; known: age, box"]),
        ({"text_columns": ("caption", "y")}, ["column 'y' is the label and an input too"]),
        ({"text_columns": ("caption",), "image_columns": ("caption",)}, ["column 'caption' is named as input twice"]),
        ({**TEXTS, "attribute_columns": ("place",), "group_column": "place"}, ["both say the groups"]),
        ({**TEXTS, "cause_boxes": "box"}, ["data.image_columns names none"]),
        ({**TEXTS, "validation": 0.5, "test": 0.5}, ["leaves nothing to train on"]),
        ({**TEXTS, "root": "nowhere/at/all"}, ["data.root is 'nowhere/at/all', which is no folder"]),
        ({**TEXTS, "encoding": "utf-99"}, ["names no encoding"]),
        ({**TEXTS, "encoding": "base64"}, ["names no encoding"]),
        ({**TEXTS, "separator": ";;"}, ["data.separator is ';;'; expected one character"]),
        ({**TEXTS, "separator": '"'}, ["expected one character"]),
        ({**TEXTS, "separator": ";"}, ["no column 'caption'", "is ',' what separates its cells?"]),
        ({**TEXTS, "split_column": "place"}, ["unknown split", "got 'land'"]),
        ({**TEXTS, "validation": 0.01}, ["drawing 0.01 of 24 rows leaves validation without a row"]),
        ({**TEXTS, "attribute_columns": ("plaec",)}, ["no column 'plaec', which data.attribute_columns names; did you mean 'place'?"]),
    ],
)  # fmt: skip
def test_a_wrong_option_says_how_to_mend_it(folder, options, parts):
    message = refused(build, written(folder, tables.rows()), **{"label_column": "y", **options})
    assert all(part in message for part in parts), message


def test_without_a_path_it_says_what_it_reads():
    with pytest.raises(UserError, match="set data.path to a .csv"):
        table.build(table.Options())


# Damage. What must come of it: "row" (that row is named, or skipped), "file" (one line), "fine" (nothing is wrong).

BAD = 9
"""The row that is damaged, one of validation."""
LIGHT = {key: value for key, value in tables.COLUMNS.items() if key not in ("image_columns", "audio_columns", "cause_boxes")}
ROW_DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    **{f"label {value!r}": ({"y": value}, "row") for value in ("", None, "unseen", " ", "bird\0", "b\udce9", [1], {"a": 1}, 7)},
    **{f"split {value!r}": ({"split": value}, "row") for value in ("", None, "eval", "3", "tr ain", -1, "\udce9", ["train"])},
    **{f"id {value!r}": ({"id": value}, "row") for value in ("", None, "r0", " r1 ", "a\0")},
    **{
        f"picture {value!r}": ({"photo": value}, "row")
        for value in (
            *("../0.png", "../pictures/0.png", "pictures/../../x.png", "/etc/hostname", "http://a.org/0.png", "file:///0.png", "pictures", "."),
            *("pictures/none.png", "pictures/empty.png", "pictures/text.png", "pictures/cut.png", "pictures/noise.png", "pictures/head.png"),
            *("pictures/sound.png", "pictures/loop.png", "pictures/dangling.png", "pictures/pipe.png", "pictures/0.png/x", "~/0.png"),
            *("pictures\\0.png", "0.png", "pictures/0.PNG", "x" * 300, "p" * 5000, "a\0b.png", "\udce9.png", "\ud800", 12, 1.5, ["pictures/0.png"]),
        )
    },
    **{
        f"recording {value!r}": ({"sound": value}, "row")
        for value in (*(f"sounds/{name}.wav" for name in ("none", "empty", "text", "cut", "silent", "picture")), "../0.wav", "sounds", "/dev/zero", 5)
    },
    **{f"text {value!r}": ({"caption": value}, "row") for value in ("a\0b", "caf\udce9", "\ud800")},
    **{
        f"number {value!r}": ({"age": value}, "row")
        for value in ("old", "1,5", "inf", "-Infinity", "1e400", "1e39", "1_0", "0x10", "12 years", "1.2.3", "٣ years", "+-1", [1], {"a": 1})
    },
    **{
        f"box {value!r}": ({"box": value}, "row")
        for value in (
            *("[[0,0,1]]", "{", "[[0,0,2,2]]", "[[0.5,0,0.9,1]]", "5", "[[0,0,0,0]]", '[["a",0,1,1]]', "[[NaN,0,1,1]]", "[0,0,1,1]", "null"),
            *("[" * 9999, "left", "[[1e999,0,1,1]]", '{"left": 0}', "[[0,0,1,1],[]]", "[[0,0,1,-1]]"),
        )
    },
    "nothing there": (dict.fromkeys(("photo", "caption", "sound", "age", "dose"), ""), "row"),
    "no text": ({"caption": ""}, "fine"),
    "blank text": ({"caption": "  \n "}, "fine"),
    "a long text": ({"caption": "word " * 40000}, "fine"),
    "strange letters": ({"caption": "\u202e👩‍👩‍👧 ẞ ı \x07\x1b[31m"}, "fine"),
    "no box": ({"box": None}, "fine"),
    "unknown number": ({"age": "?"}, "fine"),
    "unknown attribute": ({"place": ""}, "fine"),
    "number with blanks": ({"age": " 1.5e1 "}, "fine"),
}  # fmt: skip
"""name -> (what the row's cells are instead, what comes of it); of every form."""


def lines(change: Callable[[list[bytes]], Any]) -> Callable[[bytes], bytes]:
    """Damage to a text form's lines, which it changes in place."""

    def damage(content: bytes) -> bytes:
        own = content.splitlines(keepends=True)
        change(own)
        return b"".join(own)

    return damage


def at(place: int, function: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Damage to one line, counted from the row `BAD` (csv and tsv: one more for the names)."""
    return lines(lambda own: own.__setitem__(place, function(own[place])))


SEPARATED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "one cell": (at(BAD + 1, lambda line: b"r9\r\n"), "row"),
    "a cell too few": (at(BAD + 1, lambda line: line[: line.rfind(b"valid")] + b"\r\n"), "row"),
    "a cell too many": (at(BAD + 1, lambda line: line.rstrip() + line[2:3] + b"more\r\n"), "row"),
    "empty cells too many": (at(BAD + 1, lambda line: line.rstrip() + line[2:3] * 3 + b"\r\n"), "fine"),
    "all cells empty": (at(BAD + 1, lambda line: line[2:3] * 10 + b"\r\n" + line), "fine"),
    "a quote that ends early": (at(BAD + 1, lambda line: line.replace(b"a ", b'"a" ', 1)), "row"),
    "a quote that never ends": (at(BAD + 1, lambda line: b'"' + line.replace(b'"', b"")), "row or file"),
    "a quote in the last line that never ends": (at(-1, lambda line: b'"' + line.replace(b'"', b"")), "file"),
    "a quote in the names": (at(0, lambda line: b'"' + line), "file"),
    "a byte of latin-1": (at(BAD + 1, lambda line: line.replace(b"a ", b"\xe9 ", 1)), "row"),
    "a byte of latin-1 where nothing is read": (at(BAD + 1, lambda line: line.replace(b"p3", b"\xe9")), "fine"),
    "a NUL": (at(BAD + 1, lambda line: line.replace(b"a ", b"\0 ", 1)), "row"),
    "only NULs": (at(BAD + 1, lambda line: b"\0" * len(line) + b"\r\n"), "row"),
    "old Mac's line ends": (lambda content: content.replace(b"\r\n", b"\r"), "fine"),
    "Unix's line ends": (lambda content: content.replace(b"\r\n", b"\n"), "fine"),
    "mixed line ends and blank lines": (lambda content: content.replace(b"\r\n", b"\n\r\n", 4), "fine"),
    "names twice": (at(0, lambda line: line.replace(b"patient", b"caption")), "file"),
    "unused names twice": (lines(lambda own: own.__setitem__(slice(None), [line.rstrip() + own[0][2:3] * 3 + b"\r\n" for line in own])), "fine"),
    "a name in capitals": (at(0, lambda line: line.replace(b"caption", b"Caption")), "file"),
    "a name of latin-1": (at(0, lambda line: line.replace(b"patient", b"\xe9")), "file"),
    "no names": (lines(lambda own: own.pop(0)), "file"),
    "only names": (lines(lambda own: own.__delitem__(slice(1, None))), "file"),
    "other separators": (lambda content: content.replace(b",", b";").replace(b"\t", b";"), "file"),
    "one endless cell": (lambda content: content + b'"' + b"x" * (reader.CELL + 10), "file"),
    "a page of the web": (lambda content: b"<!DOCTYPE html>\n<html><body>404, \"not found\"</body></html>\n", "file"),
    "cut in a row": (lambda content: content[:-30], "row or file"),
}  # fmt: skip
OBJECTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "half a line": (at(BAD, lambda line: line[: len(line) // 2] + b"\n"), "row"),
    **{
        f"a line {value.decode()[:20]!r}": (at(BAD, lambda line, value=value: value + b"\n"), "row")
        for value in (
            *(b"[1]", b"12", b'"text"', b"null", b"NaN", b"{}", b"{'a': 1}", b"{,}", b'{"a"}', b"\\"),
            *(b"[" * 99999, b'{"a":' * 99999, b"1" * 9999),
        )
    },
    "two objects in a line": (at(BAD, lambda line: line.strip() * 2 + b"\n"), "row"),
    "a trailing comma": (at(BAD, lambda line: line.replace(b"}", b",}")), "row"),
    "a name twice": (at(BAD, lambda line: line.replace(b'"patient"', b'"y"')), "row"),
    "NaN": (at(BAD, lambda line: line.replace(b"24.5", b"NaN")), "fine"),
    "Infinity": (at(BAD, lambda line: line.replace(b"24.5", b"-Infinity")), "row"),
    "an endless number": (at(BAD, lambda line: line.replace(b"24.5", b"9" * 4000)), "row"),
    "a number too long": (at(BAD, lambda line: line.replace(b"24.5", b"9" * 9000)), "row"),
    "true": (at(BAD, lambda line: line.replace(b"24.5", b"true")), "fine"),
    "a byte of latin-1": (at(BAD, lambda line: line.replace(b"a ", b"\xe9 ", 1)), "row"),
    "a NUL": (at(BAD, lambda line: line.replace(b"a ", b"\0 ", 1)), "row"),
    "half a surrogate pair": (at(BAD, lambda line: line.replace(b"a ", b"\\ud800 ", 1)), "row"),
    "a mark within": (at(BAD, lambda line: b"\xef\xbb\xbf" + line), "row"),
    "blank lines": (lambda content: content.replace(b"\n", b"\n \r\n"), "fine"),
    "one array": (lambda content: b"[" + content.strip().replace(b"\n", b",\n") + b"]", "file"),
    "one array in a line": (lambda content: b"[" + content.strip().replace(b"\n", b",") + b"]", "file"),
    "objects over many lines": (lambda content: content.replace(b", ", b",\n").replace(b"{", b"{\n"), "file"),
    "other names": (lambda content: content.replace(b'"caption"', b'"Caption"'), "file"),
    "cut in a row": (lambda content: content[:-30], "row or file"),
}  # fmt: skip


def _parquet(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    """Damage to a Parquet file's table."""

    def damage(content: bytes) -> bytes:
        import pyarrow.parquet

        file = io.BytesIO()
        pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(io.BytesIO(content))), file)
        return file.getvalue()

    return damage


def _cast(column: str, make: Callable[[Any, list[Any]], Any]) -> Callable[[bytes], bytes]:
    import pyarrow

    def change(own: Any) -> Any:
        return own.set_column(own.schema.names.index(column), column, make(pyarrow, own.column(column).to_pylist()))

    return _parquet(change)


def _as_text(pa: Any, own: list[bytes]) -> Any:
    return pa.Array.from_buffers(pa.string(), len(own), pa.array(own).buffers())


PARQUET: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    **{f"cut at {share}": (lambda content, share=share: content[: int(share * len(content))], "file") for share in (0.01, 0.1, 0.5, 0.9, 0.999)},
    "without its head": (lambda content: content[9:], "file"),
    "its ends alone": (lambda content: b"PAR1PAR1", "file"),
    "a wrong length at its end": (lambda content: content[:-8] + b"\xff\xff\xff\x7fPAR1", "file"),
    "a negative length at its end": (lambda content: content[:-8] + b"\xff\xff\xff\xffPAR1", "file"),
    "zeros within": (lambda content: content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :], "row or file"),
    "no rows": (_parquet(lambda own: own.slice(0, 0)), "file"),
    "no columns": (_parquet(lambda own: own.select([])), "file"),
    "names twice": (_parquet(lambda own: own.rename_columns(["caption" if name == "patient" else name for name in own.column_names])), "file"),
    "other names": (_parquet(lambda own: own.rename_columns([name.upper() for name in own.column_names])), "file"),
    "pictures as bytes": (_cast("photo", lambda pa, own: pa.array([b"\x89PNG"] * len(own))), "file"),
    "pictures as structs": (_cast("photo", lambda pa, own: pa.array([{"bytes": b"\x89PNG", "path": path} for path in own])), "file"),
    "texts as lists": (_cast("caption", lambda pa, own: pa.array([text.split() for text in own])), "file"),
    "labels as maps": (_cast("y", lambda pa, own: pa.array([[("a", 1)]] * len(own), pa.map_(pa.string(), pa.int32()))), "file"),
    "a column of nothing": (_cast("caption", lambda pa, own: pa.nulls(len(own))), "fine"),
    "labels of nothing": (_cast("y", lambda pa, own: pa.nulls(len(own))), "file"),
    "labels in a dictionary": (_cast("y", lambda pa, own: pa.array(own).dictionary_encode()), "fine"),
    "texts in a large dictionary": (_cast("caption", lambda pa, own: pa.array(own, pa.large_string()).dictionary_encode()), "fine"),
    "numbers as decimals": (_cast("age", lambda pa, own: pa.array(own).cast(pa.decimal128(9, 3))), "fine"),
    "numbers as texts": (_cast("age", lambda pa, own: pa.array(map(str, own))), "fine"),
    "numbers as halves": (_cast("age", lambda pa, own: pa.array(np.array(own, np.float16))), "fine"),
    "numbers that are days": (_cast("age", lambda pa, own: pa.array([0] * len(own), pa.date32())), "all rows"),
    "labels that are times": (_cast("y", lambda pa, own: pa.array([i % 2 for i in range(len(own))], pa.timestamp("ns"))), "fine"),
    "labels that are truths": (_cast("y", lambda pa, own: pa.array([i % 2 > 0 for i in range(len(own))])), "fine"),
    "splits that are numbers with gaps": (_cast("split", lambda pa, own: pa.array([i // 8 if i != BAD else None for i in range(len(own))])), "row"),
    "boxes as texts": (_cast("box", lambda pa, own: pa.array(map(json.dumps, own))), "fine"),
    "boxes as structs": (_cast("box", lambda pa, own: pa.array([{"left": 1.0}] * len(own))), "all rows"),
    "texts that are no UTF-8": (_cast("caption", lambda pa, own: _as_text(pa, [b"\xff\xfe"] * len(own))), "file"),
}  # fmt: skip
FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "file"),
    "blank": (lambda content: b" \r\n\r\n \n", "file"),
    "zeros": (lambda content: bytes(5000), "file"),
    "noise": (lambda content: np.random.default_rng(1).bytes(5000), "file"),
    "UTF-16": (lambda content: "\ufeffid,y\r\n".encode("utf-16-le") * 9, "file"),
    "UTF-16 without a mark": (lambda content: "id,photo,caption\r\n".encode("utf-16-le") * 9, "file"),
    "a picture": (lambda content: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x08" * 20, "file"),
    "a workbook": (lambda content: b"PK\x03\x04" + bytes(500), "file"),
    "only a mark": (lambda content: b"\xef\xbb\xbf", "file"),
    "gzip cut short": (lambda content: gzip.compress(content)[:-100], "file"),
    "gzip cut to its head": (lambda content: gzip.compress(content)[:10], "file"),
    "gzip with a wrong sum": (lambda content: gzip.compress(content)[:-8] + bytes(8), "file"),
    "gzip with zeros within": (lambda content: (lambda own: own[:60] + bytes(200) + own[260:])(gzip.compress(content)), "file"),
    "gzip twice": (lambda content: gzip.compress(gzip.compress(content)), "file"),
}  # fmt: skip
"""name -> (what becomes of the file's bytes, what comes of it); of every form."""
CASES = [
    *((form, name, damage, expected) for form in tables.FORMS for name, (damage, expected) in FILES.items()),
    *((form, name, damage, expected) for form in ("csv", "tsv") for name, (damage, expected) in SEPARATED.items()),
    *(("jsonl", name, damage, expected) for name, (damage, expected) in OBJECTS.items()),
    *(("parquet", name, damage, expected) for name, (damage, expected) in PARQUET.items()),
]
"""(form, name, damage, what comes of it)"""


def expect(path: pathlib.Path, expected: str, columns: dict[str, Any]) -> None:
    refusal = ""
    try:
        assert build(path, **columns).skipped == ()
    except UserError as error:
        refusal = str(error)
    assert "\n" not in refusal and bool(refusal) == (expected != "fine"), refusal
    try:
        found = build(path, **columns, on_bad_row="skip")
    except UserError as error:
        assert expected in ("file", "row or file", "all rows") and "\n" not in str(error), str(error)
        return
    lost = 24 - sum(len(found.splits[name]) for name in ("train", "validation", "test"))
    assert (len(found.skipped), lost) == (0, 0) if expected == "fine" else len(found.skipped) > 0, found.skipped
    if expected == "row":
        assert tables.origin(path, BAD) in refusal and lost == 1 and len(found.skipped) == 1, (refusal, found.skipped)
        assert found.skipped[0].startswith(tables.origin(path, BAD)) and "\n" not in found.skipped[0]
    else:
        assert expected in ("fine", "row or file"), found.skipped


def test_there_are_hundreds_of_kinds_of_damage():
    assert len(ROW_DAMAGE) + len(FILES) + len(SEPARATED) + len(OBJECTS) + len(PARQUET) > 200
    assert len(tables.FORMS) * len(ROW_DAMAGE) + len(CASES) > 500


@pytest.mark.parametrize(("form", "name", "damage", "expected"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_damaged_file_is_one_line_or_some_rows(folder, form, name, damage, expected):
    path = folder / f"damaged.{form}"
    path.write_bytes(damage(tables.content(tables.rows(), form)))
    expect(path, expected, {**tables.COLUMNS, "audio_columns": ()} if form == "parquet" else LIGHT)


@pytest.mark.parametrize("form", tables.FORMS)
def test_a_damaged_cell_is_that_row_alone(folder, form):
    rows, names = tables.rows(), [*ROW_DAMAGE]
    surrogate = [name for name in names if any(isinstance(cell, str) and reader.SURROGATES.search(cell) for cell in ROW_DAMAGE[name][0].values())]
    # Parquet has one type a column and no half surrogate pairs: there cells are texts.
    names = [name for name in names if form != "parquet" or name not in surrogate]
    damaged = [rows[BAD] | {"id": f"d{i}"} | ROW_DAMAGE[name][0] for i, name in enumerate(names)]
    path = written(folder, [*rows, *damaged], form)
    bad = {tables.origin(path, 24 + i): name for i, name in enumerate(names) if ROW_DAMAGE[name][1] == "row"}
    found = build(path, **tables.COLUMNS, on_bad_row="skip")
    named = {line.split(": ")[0]: line for line in found.skipped}
    assert {bad.get(origin, origin) for origin in named} == set(bad.values())
    assert all("\n" not in line and len(line) < 9000 for line in found.skipped)
    assert len(found.splits["validation"]) == 8 + len(names) - len(bad)
    assert next(iter(bad)) in refused(build, path, **tables.COLUMNS)


@pytest.mark.parametrize("name", ["label 'unseen'", "picture 'pictures/cut.png'", "picture '../0.png'", "recording 'sounds/text.wav'", "box '5'"])
def test_one_damaged_cell_ends_the_run_and_names_its_row(folder, name):
    rows = tables.rows()
    rows[BAD] |= ROW_DAMAGE[name][0]
    expect(written(folder, rows), "row", tables.COLUMNS)


CHANGES = st.sampled_from(("set", "delete", "insert", "repeat", "cut"))


@hypothesis.settings(max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(
    st.sampled_from(EVERY_FORM), st.lists(st.tuples(CHANGES, st.floats(0, 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4)
)
def test_bytes_that_changed_on_the_way_never_end_in_more_than_a_line(folder, form, changes):
    content = bytearray(written(folder, tables.rows(), form).read_bytes())
    for change, place, value in changes:
        at = int(place * len(content))
        match change:
            case "set":
                content[at : at + len(value)] = value
            case "delete":
                del content[at : at + 8 * len(value)]
            case "insert":
                content[at:at] = value
            case "repeat":
                content[at:at] = content[at : at + 50]
            case "cut":
                del content[at:]
    path = folder / f"changed.{form}"
    path.write_bytes(content)
    for on_bad_row in ("fail", "skip"):
        try:
            found = build(path, **LIGHT, on_bad_row=on_bad_row)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert on_bad_row == "skip" or found.skipped == ()


# From end to end.


@pytest.mark.parametrize("size", [8, 28, 32, 64, 96, 224])
def test_a_picture_of_any_size_has_an_encoder_that_need_not_be_named(size):
    feature = Feature("image", (size, size, 3), "uint8")
    spec = model.build_encoder("photo", feature, {}, Sizes(8, 2, 2.0, 0.0, jnp.float32)).slot_spec()
    side = size // (spec.grid or (0, 0))[0]
    assert spec.count * side * side == size * size and spec.count <= 64 and side >= 7


@pytest.mark.parametrize(("frames", "bands"), [(200, 64), (300, 40), (150, 80), (61, 13), (5, 3)])
def test_a_recording_of_any_length_has_an_encoder_that_need_not_be_named(frames, bands):
    feature = Feature("spectrogram", (frames, bands), "float32")
    spec = model.build_encoder("sound", feature, {}, Sizes(8, 2, 2.0, 0.0, jnp.float32)).slot_spec()
    assert spec.count * spec.width == frames * bands and spec.width >= min(64, frames * bands)


TINY = shlex.split("""
--methods erm,group_dro --seeds 2 --data.image-columns photo --data.text-columns caption --data.audio-columns sound
--data.number-columns age,dose --data.label-column y --data.attribute-columns place --data.split-column split --data.size 16 --data.recording.seconds
0.16 --data.recording.bands 12 --model.dim 8 --model.heads 2 --model.fusion-layers 1 --model.causal-layers 0 --model.photo.depth 0
--model.caption.depth 0 --model.sound.depth 0 --model.numbers.depth 0 --train.steps 4 --train.batch-size 4 --train.chunk 2 --train.eval-every 2
--train.compile-cache no --evaluate.bootstrap 20 --evaluate.batch-size 24 --evaluate.ceiling no --report.examples 0
""")


@pytest.mark.slow
def test_a_strangers_table_trains_by_one_command_without_naming_an_encoder(folder, tmp_path, monkeypatch):
    rows = tables.rows()
    rows[3] |= {"photo": "", "age": ""}
    monkeypatch.chdir(written(folder, rows).parent)
    assert main(["--config", str(ROOT / "configs" / "table.py"), *TINY, "--data.path", "t.csv", "--workdir", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(run["method"], run["seed"]) for run in results["runs"]] == [("erm", 0), ("erm", 1), ("group_dro", 0), ("group_dro", 1)]
    for run in results["runs"]:
        assert set(run["splits"]) == {"validation", "test", "test_balanced"} and len(run["splits"]["test"]["groups"]) == 4
    assert (tmp_path / "report.html").stat().st_size > 1000


def test_a_mistake_is_one_line_on_the_command_line(folder, capfd, monkeypatch):
    monkeypatch.chdir(written(folder, tables.rows()).parent)
    arguments = ["--config", str(ROOT / "configs" / "table.py"), "--data.path", "t.csv", "--data.text-columns"]
    for column, part in (("capton", "did you mean 'caption'?"), ("y", "no column 'label'")):
        assert main([*arguments, column]) == 2
        error = capfd.readouterr().err
        assert error.startswith("error: data set 'table'") and part in error and error.count("\n") == 1


def test_rows_of_one_picture_are_in_one_split(tmp_path):
    for number in range(20):
        layouts.picture(tmp_path / f"{number}.png", number)
    lines = [f"{row % 20}.png,question {row},{'ab'[row % 20 % 2]}" for row in range(80)]
    (tmp_path / "t.csv").write_text("photo,q,y\n" + "\n".join(lines) + "\n")
    options = table.Options(image_columns=("photo",), text_columns=("q",), label_column="y", size=8)
    rows = table.read(options, tmp_path / "t.csv").splits
    found = [{int(row) % 20 for row in rows[name]} for name in ("train", "validation", "test")]
    assert sum(map(len, found)) == len(set.union(*found)) == 20


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text_columns": ("q", "g"), "group_column": "g"}, "column 'g' is the group or the split and an input too"),
        ({"text_columns": ("q", "s"), "split_column": "s"}, "column 's' is the group or the split and an input too"),
        ({"attribute_columns": ("y",)}, "column 'y' is the label and an attribute too"),
        ({"label_column": ""}, "a column is named by an empty text"),
        ({"text_columns": ("q", "")}, "a column is named by an empty text"),
    ],
)
def test_columns_that_would_tell_the_label_are_refused(tmp_path, given, message):
    (tmp_path / "t.csv").write_text("q,y,g,s\n" + "".join(f"text {row},{'ab'[row % 2]},{row % 2},train\n" for row in range(30)))
    options = table.Options(**({"text_columns": ("q",), "label_column": "y"} | given))
    with pytest.raises(UserError, match=message):
        table.read(options, tmp_path / "t.csv")


def test_a_json_array_over_many_lines_is_told_as_such(tmp_path):
    (tmp_path / "t.jsonl").write_text('[\n {"q": "a", "y": "r"},\n {"q": "b", "y": "s"}\n]\n')
    with pytest.raises(UserError, match="is one JSON array; expected an object a line"):
        table.read(table.Options(text_columns=("q",), label_column="y"), tmp_path / "t.jsonl")
