"""CelebA on a miniature of its files, as the authors and as Kaggle distribute it: attributes, groups, captions, splits and refusals."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shutil
from typing import Any

import numpy as np
import pytest

from cimrl_jax.data.datasets import celeba
from cimrl_jax.data.datasets.celeba import Options
from cimrl_jax.data.source import Dataset, group_counts
from cimrl_jax.errors import UserError
from tests.data import layouts

pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    layouts.celeba(path := tmp_path_factory.mktemp("celeba"))
    return path


@pytest.fixture
def copy(folder, tmp_path) -> pathlib.Path:
    return shutil.copytree(folder, tmp_path / "copy")


def _build(folder: pathlib.Path, **changes: Any) -> Dataset:
    return celeba.build(dataclasses.replace(Options(size=8), **changes), path=folder)


def _texts(dataset: Dataset, name: str) -> list[str]:
    vocabulary, ids = np.array(dataset.features["text"].vocabulary), dataset.split(name).load(np.arange(len(dataset.split(name))))["inputs"]["text"]
    return [" ".join(vocabulary[row[row > 0]]) for row in ids]


def _as_kaggle(path: pathlib.Path) -> None:
    _, head, *rows = (path / "list_attr_celeba.txt").read_text().splitlines()
    (path / "list_attr_celeba.csv").write_text("\n".join([f"image_id,{','.join(head.split())}", *(",".join(row.split()) for row in rows)]))
    parts = (path / "list_eval_partition.txt").read_text().splitlines()
    (path / "list_eval_partition.csv").write_text("\n".join(["image_id,partition", *(",".join(row.split()) for row in parts)]))
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
        (path / name).unlink()
    (path / "img_align_celeba").rename(path / "pictures")
    (path / "img_align_celeba").mkdir()
    (path / "pictures").rename(path / "img_align_celeba" / "img_align_celeba")


def _as_authors(path: pathlib.Path) -> None:
    for name, within in (("list_attr_celeba.txt", "Anno"), ("list_eval_partition.txt", "Eval"), ("img_align_celeba", "Img")):
        (path / within).mkdir()
        (path / name).rename(path / within / name)


def test_groups_are_target_and_attribute(folder):
    dataset = _build(folder)
    assert dataset.class_names == ("not blond hair", "blond hair") and dataset.attribute_names == ("woman", "man")
    assert dataset.group_names[3] == "label=blond hair, attribute=man"
    number = np.arange(60)
    group = 2 * (number % 2) + np.where(number % 2, number % 20 < 2, number % 4 == 0)
    for name, rows in (("train", group[:40]), ("validation", group[40:50]), ("test", group[50:])):
        assert dataset.split(name).group.tolist() == rows.tolist()
    assert "train has 2 rows of 'label=blond hair, attribute=man' of 1387 as published" in dataset.notes


@pytest.mark.parametrize(("target", "attribute"), [("Eyeglasses", "Male"), ("Male", "Wavy_Hair"), ("Wavy_Hair", "Eyeglasses")])
def test_any_attribute_may_be_either(folder, target, attribute):
    dataset = _build(folder, target=target, attribute=attribute)
    number = np.arange(60)
    known = {"Eyeglasses": number % 3 == 0, "Male": np.where(number % 2, number % 20 < 2, number % 4 == 0), "Wavy_Hair": number % 5 == 0}
    group = 2 * known[target] + known[attribute]
    assert dataset.split("train").group.tolist() == group[:40].tolist()
    assert dataset.class_names == {"Male": ("woman", "man")}.get(target, (f"not {(word := target.lower().replace('_', ' '))}", word))
    assert "train has 40 rows of 162770 as published" in dataset.notes


@pytest.mark.parametrize("change", [_as_kaggle, _as_authors])
def test_other_layouts_give_the_same(folder, copy, change):
    change(copy)
    first, second = _build(folder), _build(copy)
    assert first.features == second.features and set(first.splits) == set(second.splits)
    for name, source in first.splits.items():
        rows = np.arange(len(source))
        assert (source.group == second.split(name).group).all()
        for modality, values in source.load(rows)["inputs"].items():
            assert (second.split(name).load(rows)["inputs"][modality] == values).all()


def test_balanced_and_randomised_rows(folder):
    dataset = _build(folder, text="none")
    assert set(dataset.features) == {"image"}
    assert group_counts(dataset.split("train"), 4) == (10, 10, 18, 2)
    assert group_counts(dataset.split("train_randomised"), 4) == (20, 20, 20, 20)
    assert group_counts(dataset.split("test"), 4) == (3, 2, 5, 0) and "test_balanced" not in dataset.splits  # no blond man there
    eyes = _build(folder, target="Eyeglasses", attribute="Blond_Hair", text="none")
    assert group_counts(eyes.split("test"), 4) == (4, 3, 1, 2) and group_counts(eyes.split("test_balanced"), 4) == (3, 3, 1, 1)


def test_captions_are_those_of_the_mapped_picture(folder):
    dataset = _build(folder)
    texts, source = _texts(dataset, "train"), dataset.split("train")
    present = source.load(np.arange(40))["present"]
    assert present["text"].tolist() == [number % 3 == 0 for number in range(40)] and present["image"].all()
    for number, text in enumerate(texts):
        man = source.group[number] % 2
        expected = f"this {'man' if man else 'woman'} has {'blonde' if number % 2 else 'black'} hair . {'he' if man else 'she'} smiles once ."
        assert text == (expected if number % 3 == 0 else "")
    assert "text is absent in 40 of 60 rows" in dataset.notes


def test_which_caption_may_be_drawn(folder):
    texts = {seed: _texts(_build(folder, caption="random", data_seed=seed), "train") for seed in (0, 1)}
    assert texts[0] == _texts(_build(folder, caption="random"), "train") != texts[1]
    assert {text.split()[-2] for text in texts[0] if text} == {"once", "twice", "again"}


def test_pictures_without_caption_can_be_left_out(folder):
    dataset = _build(folder, rows="captioned")
    assert len(dataset.split("train")) == 14 and all(_texts(dataset, "train"))
    assert "40 pictures without a caption left out" in dataset.notes and "train has 14 rows of 24183 as published" in dataset.notes


def test_a_caption_that_is_not_there_is_no_picture_without_one(copy):
    (copy / "celeba-caption" / "1.txt").unlink()
    dataset = _build(copy, rows="captioned", on_bad_row="skip")
    assert len(dataset.split("train")) == 13 and len(dataset.skipped) == 1 and "40 pictures without a caption left out" in dataset.notes


@pytest.mark.parametrize(
    ("changes", "cause", "shortcut"),
    [
        ({}, {"blonde", "hair"}, {"he", "she", "man", "woman"}),
        ({"mask_target": True}, set(), {"he", "she", "man", "woman"}),
        ({"target": "Male", "attribute": "Blond_Hair"}, {"he", "she", "man", "woman"}, {"blonde", "hair"}),
        ({"attribute": "Wavy_Hair"}, {"blonde"}, set()),
    ],
)
def test_words_that_name_target_and_attribute(folder, changes, cause, shortcut):
    dataset = _build(folder, **changes)
    source, vocabulary = dataset.split("train"), np.array(dataset.features["text"].vocabulary)
    ids, regions = source.load(np.arange(40))["inputs"]["text"], source.regions
    assert regions is not None
    assert set(vocabulary[ids[regions["cause"]["text"][np.arange(40)]]]) == cause
    assert set(vocabulary[ids[regions["shortcut"]["text"][np.arange(40)]]]) == shortcut
    assert ("hair" in vocabulary) == (not changes.get("mask_target"))


@pytest.mark.parametrize(("word", "of_gender"), [("she", True), ("women", True), ("man's", True), ("mane", False), ("human", False), ("the", False)])
def test_words_of_gender_are_whole_words(word, of_gender):
    assert celeba.words_of(Options())["shortcut"](word) is of_gender


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "Blond_hair"}, "target is 'Blond_hair', .*list_attr_celeba.txt has no such attribute; did you mean 'Blond_Hair'"),
        ({"attribute": "Gender"}, "attribute is 'Gender', .*; known: Blond_Hair, Eyeglasses, Male, Wavy_Hair"),
        ({"attribute": "Blond_Hair"}, "target and attribute are both Blond_Hair"),
        ({"target": "image_id"}, "target is 'image_id'"),
        ({"text": "none", "rows": "captioned"}, "rows is captioned, but no captions are read; .*--data.rows all"),
    ],
)
def test_bad_options_are_refused(folder, changes, message):
    with pytest.raises(UserError, match=message):
        _build(folder, **changes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list_attr_celeba.txt", None, r"there is neither .*list_attr_celeba\.txt nor \.csv; get it from"),
        ("list_attr_celeba.txt", "60\n", r"list_attr_celeba\.txt, line 2: expected the names of columns"),
        ("list_attr_celeba.txt", "3\nBlond_Hair Male\n000001.jpg 1 1\n", "line 1: says 3 pictures, but 1 lines follow"),
        ("list_eval_partition.txt", None, r"there is neither .*list_eval_partition\.txt nor \.csv"),
        ("list_eval_partition.txt", "", r"list_eval_partition\.txt has no row; expected image_id, partition"),
        ("img_align_celeba", None, "has no folder img_align_celeba"),
        ("celeba-caption", None, "text is captions, but .* has no folder celeba-caption; .*--data.text none"),
        ("CelebA-HQ-to-CelebA-mapping.txt", None, r"cannot read .*CelebA-HQ-to-CelebA-mapping\.txt"),
        ("CelebA-HQ-to-CelebA-mapping.txt", "idx orig_idx\n0 0\n", "has no column 'orig_file'"),
        ("CelebA-HQ-to-CelebA-mapping.txt", "idx orig_idx orig_file\n../1 0 000001.jpg\n", "idx of '000001.jpg' is '../1', expected a number"),
    ],
)
def test_bad_files_are_named(copy, name, content, message):
    shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    if content is not None:
        (copy / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        _build(copy, text="captions")
    assert str(caught.value).startswith("data set 'celeba': ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "old", "new", "line", "kind"),
    [
        ("list_attr_celeba.txt", "000004.jpg  1", "000004.jpg  2", 6, "unknown label: Blond_Hair is '2', expected 1 or -1"),
        ("list_attr_celeba.txt", "000004.jpg  1  1 -1 -1", "000004.jpg  1", 6, "unknown label: Male is ''"),
        ("list_attr_celeba.txt", "000004.jpg", "000003.jpg", 6, "duplicate id: '000003.jpg' is that of list_attr_celeba.txt, line 5 too"),
        ("list_attr_celeba.txt", "000004.jpg", "../04.jpg", 6, "unknown split: list_eval_partition.txt has 'nothing' for ../04.jpg"),
        ("list_eval_partition.txt", "000004.jpg 0", "000004.jpg 3", 6, "unknown split: list_eval_partition.txt has '3' for 000004.jpg"),
        ("img_align_celeba/000004.jpg", "", None, 6, "missing file: there is no "),
        ("celeba-caption/1.txt", "", None, 6, "missing file: there is no "),
        ("celeba-caption/1.txt", "", "\n", 6, "empty text: "),
    ],
)
def test_bad_rows_are_named_or_left_out(copy, name, old, new, line, kind):
    if old:
        content = (copy / name).read_text()
        assert re.sub(" +", " ", old) in re.sub(" +", " ", content)
        content = re.sub(re.escape(old).replace(r"\ ", " ").replace(" ", " +"), new, content, count=1)
    else:
        content = new
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(kind)) as caught:
        _build(copy)
    assert str(caught.value).startswith(f"data set 'celeba': list_attr_celeba.txt, line {line}: ")
    dataset = _build(copy, on_bad_row="skip")
    assert any(kind in line for line in dataset.skipped) and len({line.split(": ")[0] for line in dataset.skipped}) == 1
    assert sum(len(dataset.split(name)) for name in ("train", "validation", "test")) == 59


def test_without_a_path_it_says_what_to_set():
    with pytest.raises(UserError, match="set data.path"):
        celeba.build(Options())


def test_the_published_groups_sum_to_the_published_splits():
    assert {name: sum(counts) for name, counts in celeba.COUNTS.items()} == celeba.TOTALS
    assert sum(celeba.TOTALS.values()) == 202_599 and sum(celeba.CAPTIONED.values()) == 30_000
