"""Waterbirds: the published counts where the official metadata is, and on a miniature the groups, texts, captions, boxes, splits and refusals."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import shutil
from typing import Any

import numpy as np
import pytest

from cimrl_jax.data import listing
from cimrl_jax.data.datasets import waterbirds
from cimrl_jax.data.datasets.waterbirds import Options
from cimrl_jax.data.source import Dataset, group_counts
from cimrl_jax.errors import UserError
from tests.data import layouts

Image = pytest.importorskip("PIL.Image")
REAL = pathlib.Path(os.environ.get("CIMRL_DATA", pathlib.Path(__file__).parents[3] / "shared" / "data")) / "waterbirds"
real = pytest.mark.skipif(not REAL.exists(), reason=f"no real files at {REAL}; set CIMRL_DATA to a folder that holds waterbirds/")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("waterbirds")
    layouts.waterbirds(path)
    for row in _rows(path):
        file = path / "text_c10" / row[1].replace(".jpg", ".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"bird {row[0]} has caption {number} .\n" for number in range(10)))
    return path


@pytest.fixture
def copy(folder, tmp_path) -> pathlib.Path:
    return shutil.copytree(folder, tmp_path / "copy")


def _rows(path: pathlib.Path) -> list[list[str]]:
    return [line.split(",") for line in (path / "metadata.csv").read_text().splitlines()[1:]]


def _build(folder: pathlib.Path, **changes: Any) -> Dataset:
    return waterbirds.build(dataclasses.replace(Options(size=16), **changes), path=folder)


def _texts(dataset: Dataset, name: str) -> list[str]:
    vocabulary, ids = np.array(dataset.features["text"].vocabulary), dataset.split(name).load(np.arange(len(dataset.split(name))))["inputs"]["text"]
    return [" ".join(vocabulary[row[row > 0]]) for row in ids]


def _write_boxes(path: pathlib.Path, box: str) -> None:
    rows = _rows(path)
    (path / "images.txt").write_text("".join(f"{row[0]} {row[1]}\n" for row in rows))
    (path / "bounding_boxes.txt").write_text("".join(f"{row[0]} {box}\n" for row in rows))


def test_splits_labels_and_groups_are_those_of_the_metadata(folder):
    dataset = _build(folder)
    assert dataset.group_names == tuple(f"label={y}, attribute={a}" for y in ("landbird", "waterbird") for a in ("land", "water"))
    for number, name in enumerate(("train", "validation", "test")):
        expected = [2 * int(y) + int(place) for _, _, y, split, place, _ in _rows(folder) if int(split) == number]
        assert dataset.split(name).group.tolist() == expected
        assert dataset.split(name).label.tolist() == [group // 2 for group in expected]
    assert not dataset.skipped and "train has 28 rows of 'label=landbird, attribute=land' of 3498 as published" in dataset.notes


def test_pictures_are_those_that_the_rows_name(folder):
    dataset = _build(folder, size=20)
    names = [row[1] for row in _rows(folder) if row[3] == "2"]
    pixels = dataset.split("test").load(np.array([0, 5]))["inputs"]["image"]
    for found, name in zip(pixels, (names[0], names[5]), strict=True):
        expected = np.asarray(Image.open(folder / name))[:, 2:-2]  # 24 x 20, cropped to the square
        assert np.abs(found.astype(int) - expected).max() <= 2


def test_in_randomised_training_rows_the_background_says_nothing(folder):
    dataset = _build(folder)
    first, again = (dataset.split(name) for name in ("train", "train_randomised"))
    assert group_counts(first, 4) == (28, 4, 4, 28) and group_counts(again, 4) == (32, 32, 32, 32)
    pictures = [{row.tobytes() for row in own.load(np.arange(len(own)))["inputs"]["image"]} for own in (first, again)]
    assert pictures[0] == pictures[1]  # none is left out
    assert "test_balanced" not in dataset.splits  # the test is balanced
    assert group_counts(dataset.split("test"), 4) == (4, 4, 4, 4)


def test_a_test_that_tells_is_balanced_and_skipped_rows_are_in_nothing(copy):
    gone = [row for row in _rows(copy) if row[3] == "2" and row[2] == "1" and row[4] == "0"][:3]
    gone += [row for row in _rows(copy) if row[3] == "0" and row[2] == "0" and row[4] == "1"][:2]
    for row in gone:
        (copy / row[1]).unlink()
    dataset = _build(copy, on_bad_row="skip")
    assert group_counts(dataset.split("test"), 4) == (4, 4, 1, 4) and group_counts(dataset.split("test_balanced"), 4) == (4, 4, 1, 1)
    assert group_counts(dataset.split("train"), 4) == (28, 2, 4, 28)
    assert np.ptp(np.array(group_counts(dataset.split("train_randomised"), 4)).reshape(2, 2), axis=1).max() <= 1
    assert len(dataset.skipped) == 5 and all(any(row[1] in line for line in dataset.skipped) for row in gone)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({}, r"(black footed|laysan) albatross on water : (ocean|lake)|.* on land : (bamboo )?forest"),
        ({"place_in_text": False}, r"black footed albatross|laysan albatross|indigo bunting|house sparrow"),
        ({"text": "none"}, r"on water : (ocean|lake)|on land : (bamboo )?forest"),
        ({"text": "cub", "place_in_text": False}, r"bird (\d+|<unk>) has caption 0 \."),
        ({"text": "cub"}, r"bird (\d+|<unk>) has caption 0 \. on (water : (ocean|lake)|land : (bamboo )?forest)"),
        ({"text": "cub", "caption": "random"}, r"bird (\d+|<unk>) has caption \d \. on .*"),
    ],
)
def test_texts_say_what_was_asked_for(folder, changes, pattern):
    dataset = _build(folder, **changes)
    source = dataset.split("train")
    texts = _texts(dataset, "train")
    own = [text for text, group in zip(texts, source.group, strict=True) if group in (0, 3) and re.fullmatch(pattern, text)]
    assert len(own) == 56 and (changes or any(text.startswith("black footed albatross on water") for text in texts))
    if changes.get("caption") == "random":
        assert len({re.sub(r".*caption (\S+).*", r"\1", text) for text in texts}) > 5
        assert texts == _texts(_build(folder, **changes), "train") != _texts(_build(folder, **changes, data_seed=1), "train")


def test_without_species_and_background_there_is_no_text(folder):
    dataset = _build(folder, text="none", place_in_text=False)
    assert set(dataset.features) == {"image"} and dataset.split("train").regions is None


def test_regions_are_the_species_and_the_background(folder):
    dataset = _build(folder)
    source, vocabulary = dataset.split("train"), np.array(dataset.features["text"].vocabulary)
    ids, regions = source.load(np.arange(64))["inputs"]["text"], source.regions
    assert regions is not None and "image" not in regions["cause"]
    cause, shortcut = (set(vocabulary[ids[regions[name]["text"][np.arange(64)]]]) for name in ("cause", "shortcut"))
    assert cause == {"black", "footed", "laysan", "albatross", "indigo", "bunting", "house", "sparrow"}
    assert shortcut == {"land", "water", "bamboo", "forest", "ocean", "lake"}


def test_the_birds_box_is_the_cause_in_the_picture(copy):
    _write_boxes(copy, "8.0 5.0 8.0 10.0")
    regions = _build(copy, size=20).split("train").regions
    assert regions is not None
    expected = np.zeros((20, 20), bool)
    expected[5:15, 6:14] = True  # two pixels are cropped off at the left
    assert all((mask == expected).all() for mask in regions["cause"]["image"][np.arange(64)])


@pytest.mark.parametrize(
    ("box", "message"),
    [("2.0 0.0 90.0 10.0", r"metadata\.csv, line 2: box outside of the picture: .*24 x 20"), ("2.0 x 1 1", r"bounding_boxes\.txt, line 1: expected")],
)
def test_boxes_that_cannot_be_are_named(copy, box, message):
    _write_boxes(copy, box)
    with pytest.raises(UserError, match=message):
        _build(copy)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", None, r"cannot read .*metadata\.csv .*group_DRO"),
        ("metadata.csv", b"\xff\xfe\x00", r"cannot read .*metadata\.csv \(no UTF-8 at byte 0\)"),
        ("metadata.csv", b"", r"metadata\.csv has no column 'img_filename'"),
        ("metadata.csv", b"img_id,img_filename,y,place,place_filename\n1,a.jpg,0,0,/f/forest/1.jpg\n", "no column 'split'; expected img_filename, y"),
        ("metadata.csv", b"img_id,img_filename,y,split,place,place_filename\n", r"metadata\.csv has no row"),
        ("text_c10", None, "has no captions/ or text_c10/.*--data.text species"),
    ],
)
def test_bad_files_are_named(copy, name, content, message):
    shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        _build(copy, text="cub")
    assert str(caught.value).startswith("data set 'waterbirds': ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (",1,0,1,", ",2,0,1,", "unknown label: y is '2', expected 0 or 1"),
        (",1,0,1,", ",1,7,1,", "unknown split: split is '7', expected 0, 1 or 2"),
        (",1,0,1,", ",1,0,,", "unknown place: place is '', expected 0 or 1"),
        ("001.Black", "../001.Black", "outside of the folder: img_filename is '../001"),
        ("/o/ocean/", "ocean", "unknown place: place_filename is 'ocean"),
        ("_0005.jpg", "_0001.jpg", "duplicate id"),
        ("_0001.jpg", "_9999.jpg", "missing file: there is no "),
    ],
)
def test_bad_rows_are_named_or_left_out(copy, old, new, kind):
    content = (copy / "metadata.csv").read_text()
    assert old in content
    (copy / "metadata.csv").write_text(content.replace(old, new, 1))
    with pytest.raises(UserError, match=re.escape(kind)) as caught:
        _build(copy)
    assert re.match(r"data set 'waterbirds': metadata\.csv, line \d+: ", str(caught.value))
    dataset = _build(copy, on_bad_row="skip")
    assert len(dataset.skipped) == 1 and kind in dataset.skipped[0]
    assert sum(len(dataset.split(name)) for name in ("train", "validation", "test")) == 95


@pytest.mark.parametrize(("content", "kind"), [(None, "missing file"), (b"\n \n", "empty text"), (b"\xff", "undecodable text")])
def test_captions_that_cannot_be_had_are_named(copy, content, kind):
    file = copy / "text_c10" / _rows(copy)[3][1].replace(".jpg", ".txt")
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=rf"line 5: {kind}: .*{file.name}"):
        _build(copy, text="cub")
    assert len(_build(copy, text="cub", on_bad_row="skip").skipped) == 1


def test_more_rows_than_were_published_are_refused(copy):
    lines = (copy / "metadata.csv").read_text().splitlines()
    more = [f"{number},014.Indigo_Bunting/{number}.jpg,0,1,0,/f/forest/1.jpg" for number in range(1000, 1470)]
    (copy / "metadata.csv").write_text("\n".join(lines + more))
    with pytest.raises(UserError, match="validation has 474 rows of 'label=landbird, attribute=land' of 467 as published"):
        _build(copy)


def test_without_a_path_it_says_what_to_set():
    with pytest.raises(UserError, match="set data.path"):
        waterbirds.build(Options())


@real
def test_the_official_groups_are_the_published_ones():
    found = waterbirds.read(Options(), REAL)
    assert found.group is not None and not found.faults
    counts = {name: tuple(np.bincount(found.group[rows], minlength=4).tolist()) for name, rows in found.splits.items()}
    assert {name: counts[name] for name in waterbirds.COUNTS} == waterbirds.COUNTS
    assert set(counts) == {*waterbirds.COUNTS, "train_randomised"} and counts["train_randomised"] == (3682, 3682, 1113, 1113)
    species: dict[str, set[int]] = {}
    for name, label in zip(found.ids, found.label.tolist(), strict=True):
        species.setdefault(waterbirds.species(name), set()).add(label)
    assert len(species) == 200 and sum(own == {1} for own in species.values()) == 46 and sum(own == {0} for own in species.values()) == 154


@real
def test_of_a_part_of_the_pictures_the_others_are_listed():
    options = Options(size=16, on_bad_row="skip")
    dataset = waterbirds.build(options, path=REAL)
    assert {name: group_counts(source, 4) for name, source in dataset.splits.items()} == {
        "train": (0, 0, 3, 47), "validation": (0, 0, 5, 5), "test": (0, 0, 34, 26),
    }  # fmt: skip
    assert len(dataset.skipped) == 11_788 - 120 and all("missing file" in line for line in dataset.skipped)
    assert not listing.examine(dataclasses.replace(waterbirds.read(options, REAL), splits={"train": np.arange(60)}), deep=True)
    with pytest.raises(UserError, match=r"metadata\.csv, line 122: missing file: .*003\.Sooty_Albatross.*11667 more bad rows.*skip"):
        waterbirds.build(Options(size=16), path=REAL)
