"""MVSA on a miniature of its files: how annotations are merged, the splits that are dealt, and refusals."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
import shutil
from typing import Any

import numpy as np
import pytest

from cimrl_jax.data import listing
from cimrl_jax.data.datasets import mvsa
from cimrl_jax.data.datasets.mvsa import Options
from cimrl_jax.data.source import Dataset, class_counts, group_counts
from cimrl_jax.errors import UserError
from tests.data import layouts

pytest.importorskip("PIL.Image")
NEGATIVE, NEUTRAL, POSITIVE = range(3)
OFFICIAL = ("train", "validation", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    layouts.mvsa(path := tmp_path_factory.mktemp("mvsa"))
    return path


@pytest.fixture
def copy(folder, tmp_path) -> pathlib.Path:
    return shutil.copytree(folder, tmp_path / "copy")


def _build(folder: pathlib.Path, **changes: Any) -> Dataset:
    return mvsa.build(dataclasses.replace(Options(size=8), **changes), path=folder)


def _posts(dataset: Dataset, name: str) -> list[list[str]]:
    vocabulary, ids = np.array(dataset.features["text"].vocabulary), dataset.split(name).load(np.arange(len(dataset.split(name))))["inputs"]["text"]
    return [vocabulary[row[row > 0]].tolist() for row in ids]


def _pictures(dataset: Dataset, name: str) -> set[bytes]:
    return {row.tobytes() for row in dataset.split(name).load(np.arange(len(dataset.split(name))))["inputs"]["image"]}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([(POSITIVE, POSITIVE)], (POSITIVE, 0)),
        ([(NEUTRAL, NEUTRAL)], (NEUTRAL, 0)),
        ([(NEUTRAL, NEGATIVE)], (NEGATIVE, 1)),
        ([(POSITIVE, NEUTRAL)], (POSITIVE, 1)),
        ([(POSITIVE, NEGATIVE)], None),
        ([(POSITIVE, NEGATIVE), (POSITIVE, NEUTRAL), (NEGATIVE, NEUTRAL)], (POSITIVE, 1)),
        ([(POSITIVE, POSITIVE), (NEUTRAL, POSITIVE), (NEGATIVE, POSITIVE)], None),
        ([(POSITIVE, NEGATIVE), (POSITIVE, NEGATIVE), (POSITIVE, POSITIVE)], None),
    ],
)
def test_labels_are_merged_by_majority_and_polarity(said, expected):
    assert mvsa.merge(tuple(said)) == expected


def test_merging_does_not_depend_on_who_said_it_and_mirrors_with_the_labels():
    pairs = [(text, image) for text in range(3) for image in range(3)]
    for said in itertools.product(pairs, repeat=3):
        own = mvsa.merge(said)
        assert mvsa.merge(said[::-1]) == own == mvsa.merge(tuple((image, text) for text, image in said))
        mirrored = mvsa.merge(tuple((2 - text, 2 - image) for text, image in said))
        assert mirrored == (own and (2 - own[0], own[1]))
    assert all(mvsa.merge((pair,) * 3) == mvsa.merge((pair,)) for pair in pairs)


def test_labels_and_texts_are_those_of_the_post(folder):
    dataset = _build(folder)
    said = {0: ("negative,neutral", "negative,negative"), 1: ("neutral,neutral",), 2: ("positive,positive", "neutral,positive", "positive,neutral")}
    for name in OFFICIAL:
        for own, post in zip(dataset.split(name).label, _posts(dataset, name), strict=True):
            assert post[0] == "post" and post[2] == "is" and "".join(post[3:6]) in said[int(own)] and post[6] == "#fun"
    assert sum(len(dataset.split(name)) for name in OFFICIAL) == 55
    assert "55 of 60 posts stay, of the others the labels contradict one another (as published 4511 of 4869)" in dataset.notes
    assert dataset.group_names == ()


def test_posts_are_dealt_alike_in_label_and_none_twice(folder):
    seen = []
    for seed in (0, 1):
        dataset = _build(folder, data_seed=seed)
        counts = np.array([class_counts(dataset.split(name), 3) for name in OFFICIAL])
        assert counts.sum() == 55 and np.abs(counts.sum(1) - [44, 5.5, 5.5]).max() <= 1
        assert np.abs(counts - counts.sum(0) * counts.sum(1, keepdims=True) / 55).max() <= 1
        pixels = {name: _pictures(dataset, name) for name in OFFICIAL}
        assert len(set.union(*pixels.values())) == 55
        seen.append(pixels["test"])
    assert seen[0] != seen[1] and seen[0] == _pictures(_build(folder), "test")


def test_groups_say_whether_text_and_picture_agree(folder):
    dataset = _build(folder, groups="agreement")
    assert dataset.group_names[1] == "label=negative, attribute=one neutral" and dataset.group_attribute == (0, 1, 0, 0, 1)
    counts = np.sum([group_counts(dataset.split(name), 5) for name in OFFICIAL], axis=0)
    assert counts.tolist() == [10, 10, 10, 5, 20]
    for name in OFFICIAL:
        for group, post in zip(dataset.split(name).group, _posts(dataset, name), strict=True):
            assert (group in (1, 4)) == (post[3] != post[5])


def test_three_annotators_are_read(copy):
    lines = (copy / mvsa.FILE).read_text().splitlines()
    more = ["ID\ttext,image\ttext,image\ttext,image"]
    # The second annotator says the same, the third always the opposite of a majority.
    more += [f"{line}\t{line.split()[1]}\tnegative,negative" for line in lines[1:]]
    (copy / mvsa.FILE).write_text("\r\n".join(more))
    dataset = _build(copy)
    assert [class_counts(dataset.split(name), 3) for name in OFFICIAL] == [class_counts(_build(copy).split(name), 3) for name in OFFICIAL]
    assert sum(len(dataset.split(name)) for name in OFFICIAL) == 55 and "(as published 17024 of 19600)" in dataset.notes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot read .*labelResultAll\.txt"),
        ("", r"line 1: expected ID and one or three times text,image, got ''"),
        ("ID\ttext,image\ttext,image\n1\tneutral,neutral\tneutral,neutral\n", "line 1: expected ID and one or three times"),
        ("ID\timage,text\n1\tneutral,neutral\n", "line 1: expected ID and one or three times text,image"),
        ("ID\ttext,image\n\n", "has no post"),
        ("ID\ttext,image\n../1\tneutral,neutral\n", r"line 2: expected the number of a post, got '\.\./1'"),
    ],
)
def test_bad_files_are_named(copy, content, message):
    (copy / mvsa.FILE).unlink()
    if content is not None:
        (copy / mvsa.FILE).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        _build(copy)
    assert str(caught.value).startswith("data set 'mvsa': ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        (mvsa.FILE, ("7\tneutral,positive", "7\tneutral,happy"), "unknown label: expected 1 times text,picture, each one of negative"),
        (mvsa.FILE, ("7\tneutral,positive", "7\tneutral"), "unknown label"),
        (mvsa.FILE, ("7\tneutral,positive", "7"), "unknown label"),
        (mvsa.FILE, ("7\tneutral,positive", "6\tneutral,positive"), "duplicate id: '6' is that of labelResultAll.txt, line 7 too"),
        ("data/7.jpg", None, "missing file"),
        ("data/7.jpg", b"no picture", "undecodable picture"),
        ("data/7.txt", None, "missing file"),
        ("data/7.txt", b"\xff\xfe", "empty text"),
    ],
)
def test_bad_rows_are_named_or_left_out(copy, name, content, kind):
    if isinstance(content, tuple):
        assert content[0] in (copy / name).read_text()
        (copy / name).write_text((copy / name).read_text().replace(*content, 1))
    else:
        (copy / name).unlink()
        if content is not None:
            (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"data set 'mvsa': labelResultAll\.txt, line 8: {re.escape(kind)}"):
        _build(copy)
    dataset = _build(copy, on_bad_row="skip")
    assert len(dataset.skipped) == 1 and kind in dataset.skipped[0] and sum(len(dataset.split(name)) for name in OFFICIAL) == 54


def test_more_posts_than_were_published_are_refused(copy):
    more = "".join(f"{number}\tneutral,neutral\n" for number in range(100, 5000))
    (copy / mvsa.FILE).write_text((copy / mvsa.FILE).read_text() + more)
    with pytest.raises(UserError, match=r"labelResultAll\.txt has 4960 posts of 4869 as published"):
        _build(copy)


def test_without_a_path_it_says_what_to_set():
    with pytest.raises(UserError, match="set data.path"):
        mvsa.build(Options())


def test_posts_of_one_text_are_in_one_split(copy):
    for path in sorted((copy / "data").glob("*.txt")):
        path.write_text(f"the text of every fifth {int(path.stem) % 11}")
    found = mvsa.read(Options(), copy)
    column = found.columns["text"]
    assert isinstance(column, listing.Texts)
    texts = [{column.texts[row] for row in found.splits[name].tolist()} for name in OFFICIAL]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 11
