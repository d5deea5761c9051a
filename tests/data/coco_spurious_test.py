"""COCO on hand-made files of its form: classes by category, boxes, captions, balanced splits, what is damaged; and a shortcut planted in it."""

from __future__ import annotations

import json
import pathlib
import shutil
import tracemalloc
from typing import Any

import numpy as np
import pytest

from cimrl_jax.data.datasets import coco_spurious
from cimrl_jax.data.datasets.coco_spurious import Options
from cimrl_jax.data.source import Dataset
from cimrl_jax.errors import UserError
from tests.data import layouts

pytest.importorskip("PIL")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    layouts.coco_spurious(path := tmp_path_factory.mktemp("coco"))
    return path


@pytest.fixture
def copy(folder, tmp_path) -> pathlib.Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def _build(folder: pathlib.Path, **changes: Any) -> Dataset:
    given: dict[str, Any] = {"size": 20}
    return coco_spurious.build(Options(**(given | changes)), path=folder)


def _kinds(listing: Any, split: str) -> list[tuple[int, str]]:
    """Of each row the place in the eight kinds of `layouts.coco_spurious`, and its class."""
    rows = listing.splits[split]
    numbers = [int(listing.ids[row].split("/")[1]) for row in rows]
    return sorted(
        {((number - (901 if split == "test" else 1)) % 8, listing.class_names[listing.label[row]]) for number, row in zip(numbers, rows, strict=True)}
    )


def _whole(folder: pathlib.Path, **changes: Any) -> Any:
    given: dict[str, Any] = {"balance": False}
    return coco_spurious.read(Options(**(given | changes)), folder)


def test_several_categories_are_classes_of_pictures_with_one_of_them(folder):
    listing = _whole(folder)
    assert listing.class_names == ("cat", "dog")
    for split in ("train", "test"):
        assert _kinds(listing, split) == [(0, "cat"), (1, "dog"), (5, "dog"), (6, "cat"), (7, "dog")]
    for reason in ("none of the categories", "several of the categories", "too little of the category"):
        assert f"6 pictures left out: {reason}" in listing.notes
    assert _kinds(_whole(folder, least_area=0.0), "test")[2] == (4, "cat")
    assert _kinds(_whole(folder, category=("cat", "dog", "person"), least_area=0.0), "test") == [
        (0, "cat"), (1, "dog"), (3, "person"), (4, "cat"), (5, "dog"), (7, "dog"),
    ]  # fmt: skip


def test_one_category_is_there_or_not(folder):
    listing = _whole(folder, category=("dog",))
    assert listing.class_names == ("no dog", "dog")
    assert _kinds(listing, "test") == [(0, "no dog"), (1, "dog"), (2, "dog"), (3, "no dog"), (4, "no dog"), (5, "dog"), (6, "no dog"), (7, "dog")]


def test_classes_are_dealt_and_balanced_alike(folder):
    whole, even = _whole(folder), coco_spurious.read(Options(), folder)
    count = {name: np.bincount(whole.label[rows]).tolist() for name, rows in whole.splits.items()}
    assert count == {"train": [9, 13], "validation": [1, 2], "test": [2, 3]}
    for name, rows in even.splits.items():
        assert np.bincount(even.label[rows]).tolist() == [min(count[name])] * 2 and set(rows) <= set(whole.splits[name])
    assert not set(whole.splits["train"]) & set(whole.splits["validation"])
    assert coco_spurious.read(Options(data_seed=1), folder).splits["train"].tolist() != even.splits["train"].tolist()
    assert "6 pictures left out: to balance the classes" in even.notes


def test_the_cause_are_the_boxes_of_the_category(folder):
    dataset = _build(folder, category=("cat", "person"), balance=False, least_area=0.0)
    for source in dataset.splits.values():
        regions = source.regions
        assert regions is not None and set(regions) == {"cause"} and set(regions["cause"]) == {"image", "text"}
        for label, mask in zip(source.label, regions["cause"]["image"][np.arange(len(source))], strict=True):
            # 24 x 20 is cropped to 20 x 20: what began at 6 begins at 4.
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert (rows[0], columns[0]) == (5, 4) and mask.sum() == len(rows) * len(columns)
            assert len(rows) in ((14,) if label else (1, 10, 11))
    absent = _build(folder, category=("dog",)).split("test")
    assert absent.regions is not None
    assert (absent.regions["cause"]["image"][np.arange(len(absent))].any((1, 2)) == (absent.label == 1)).all()


def test_the_first_caption_or_one_that_is_drawn(folder, copy):
    texts: Any = _whole(folder).columns["text"]
    assert set(text.split(" said ")[1] for text in texts.texts) == {"4 times"}  # that of the lowest id
    drawn: Any = _whole(folder, caption="drawn").columns["text"]
    again: Any = _whole(folder, caption="drawn", data_seed=1).columns["text"]
    assert len({text.split(" said ")[1] for text in drawn.texts}) > 2 and drawn.texts != again.texts
    assert [text.split(" said ")[0] for text in drawn.texts] == [text.split(" said ")[0] for text in texts.texts]
    path = copy / "annotations" / "captions_val2017.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"annotations": [own for own in content["annotations"] if own["image_id"] != 901]}))
    dataset = _build(copy, balance=False)
    assert (~dataset.split("test").load(np.arange(5))["present"]["text"]).sum() == 1 and "text is absent in 1 of" in dataset.notes


def test_outlines_are_not_kept(copy):
    path = copy / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    for own in content["annotations"]:
        own["segmentation"] = [[float(i) for i in range(2000)]]
    path.write_text(json.dumps(content))
    size = path.stat().st_size
    tracemalloc.start()
    try:
        coco_spurious.read(Options(), copy)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.2 * size  # its bytes and its text; the numbers of all outlines would be three times as much


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category": ()}, "data.category is empty"),
        ({"category": ("cat", "cat")}, "data.category is cat, cat; .*several that differ"),
        ({"category": ("cats",)}, "no category 'cats'; did you mean 'cat'"),
        ({"category": ("person", "dog"), "least_area": 0.45}, "train has no picture of class 'person'"),
    ],
)
def test_bad_options_are_refused(folder, changes, message):
    with pytest.raises(UserError, match=message):
        _build(folder, **changes)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("instances_train2017", None, r"cannot read .*instances_train2017\.json .*annotations_trainval2017\.zip"),
        ("captions_val2017", None, r"cannot read .*captions_val2017\.json"),
        ("instances_val2017", "[]", r"instances_val2017\.json is damaged .*the lists images, annotations, categories"),
        ("captions_train2017", '{"annotations": [', "is damaged"),
        ("instances_train2017", lambda own: own["images"][3].pop("file_name"), "entry 4 of 'images': 'file_name' is missing or of another type"),
        ("instances_train2017", lambda own: own["images"][3].update(width=0), "picture 4 is 0 x 20 pixels"),
        (
            "instances_train2017",
            lambda own: own["annotations"][0].update(bbox=[1, 2, 3]),
            r"a box of picture 1 is \[1, 2, 3\], expected four numbers",
        ),
        ("captions_train2017", lambda own: own["annotations"].insert(1, "said"), "entry 2 of 'annotations'"),
        (
            "instances_val2017",
            lambda own: own["images"][0].update(file_name="../../a.jpg"),
            r"val2017\.json, picture 901: file outside: '\.\./\.\./a\.jpg'",
        ),
    ],
)
def test_damaged_files_are_named(copy, name, edit, message):
    path = copy / "annotations" / f"{name}.json"
    if edit is None:
        path.unlink()
    elif isinstance(edit, str):
        path.write_text(edit)
    else:
        edit(content := json.loads(path.read_text()))
        path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        _build(copy)
    assert "\n" not in str(error.value) and str(error.value).startswith(coco_spurious.WHERE)


def test_more_pictures_than_published_are_refused(folder, monkeypatch):
    monkeypatch.setitem(coco_spurious.PUBLISHED, "val2017", 7)
    with pytest.raises(UserError, match="has 8 pictures, but only 7 were published"):
        _build(folder)


def test_missing_pictures_are_named_or_left_out(copy):
    (copy / "val2017" / "000000000902.jpg").unlink()
    with pytest.raises(UserError, match=r"instances_val2017\.json, picture 902: missing file"):
        _build(copy, balance=False)
    dataset = _build(copy, balance=False, on_bad_row="skip")
    assert len(dataset.split("test")) == 4 and len(dataset.skipped) == 1


def test_without_a_path_it_says_what_to_set():
    with pytest.raises(UserError, match="set data.path"):
        coco_spurious.build(Options())


def test_its_config_plants_a_shortcut_in_picture_and_caption(folder):
    config = pytest.importorskip("cimrl_jax.config").load(
        pathlib.Path(__file__).parents[2] / "configs" / "coco_spurious.py", {"data.path": str(folder)}
    )
    planted = pytest.importorskip("cimrl_jax.data.planted")
    options = planted.make_options(planted.PlantOptions, config.data.plant, "data.plant")
    dataset = planted.plant(_build(folder, size=32), options, seed=0)
    assert {"train_randomised", "test_balanced", "test_flipped"} <= set(dataset.splits)
    assert len(dataset.group_names) == 4 and all((source.group >= 0).all() for source in dataset.splits.values())
    regions = dataset.split("train").regions
    assert regions is not None and set(regions) == {"cause", "shortcut"} and set(regions["shortcut"]) == {"image", "text"}


def test_captions_say_the_category_unless_it_is_masked(copy):
    for path in (copy / "annotations").glob("captions_*.json"):
        content = json.loads(path.read_text())
        for number, own in enumerate(content["annotations"]):
            own["caption"] = f"{('A cat', 'Two dogs')[number % 2]} by the sea"
        path.write_text(json.dumps(content))
    names = {form for name in ("cat", "dog") for form in (name, f"{name}s")}

    def words(dataset: Dataset) -> set[str]:
        return names & set(dataset.features["text"].vocabulary)

    plain = _build(copy)
    assert words(plain) and not words(_build(copy, mask_category=True))
    regions, ids = plain.splits["train"].regions, plain.splits["train"].load(np.arange(len(plain.splits["train"])))["inputs"]["text"]
    assert regions is not None
    vocabulary = np.array(plain.features["text"].vocabulary)
    np.testing.assert_array_equal(regions["cause"]["text"][np.arange(len(ids))], np.isin(vocabulary[ids], sorted(names)))
