"""Changing priors in easy-VQA: counts, forms, regions and the reader's refusals, on hand-made files everywhere and on the wheel's where it is."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from cimrl_jax.data import tokenise
from cimrl_jax.data.datasets import easy_vqa
from cimrl_jax.data.datasets.easy_vqa import COLOURS, SHAPES, YES_NO, Options
from cimrl_jax.data.source import ArraySource, Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.options import make_options
from cimrl_jax.types import Expected

Image = pytest.importorskip("PIL.Image")
SMALL = Options(train=120, validation=32, test=64, size=16, correlation=0.75, validation_pictures=0.3)
WORDINGS = ("is there a {}?", "is a {} present?", "does the image contain a {}?", "is there a {} in the image?")
DENIED = ("is there not a {}?", "is no {} present?", "does the image not contain a {}?", "is there not a {} in the image?")
RGB = {
    "black": (0, 0, 0), "blue": (0, 0, 255), "brown": (165, 42, 42), "gray": (128, 128, 128),
    "green": (0, 255, 0), "red": (255, 0, 0), "teal": (0, 128, 128), "yellow": (255, 255, 0),
}  # fmt: skip
wheel = pytest.mark.skipif(importlib.util.find_spec("easy_vqa") is None, reason="the wheel easy-vqa is not installed: pip install 'cimrl_jax[vqa]'")


def _asked(shape: str, colour: str, colours: tuple[str, ...]) -> list[tuple[str, str]]:
    """What is asked about one picture, with the answers."""
    things = [(word, word == shape) for word in SHAPES] + [(f"{word} shape", word == colour) for word in colours]
    found = [(wording.format(thing), YES_NO[true ^ (wording in DENIED)]) for wording in WORDINGS + DENIED for thing, true in things]
    found += [(wording.format(word), colour) for word in (shape, "shape") for wording in ("what color is the {}?", "what is the color of the {}?")]
    return found + [("what shape is present?", shape), ("what shape is in the image?", shape), (f"what is the {colour} shape?", shape)]


def _write(path: pathlib.Path, sizes: dict[str, int], colours: tuple[str, ...]) -> pathlib.Path:
    """Pictures of every shape in every colour; `sizes` is the number of pictures."""
    for official, n in sizes.items():
        (path / official / "images").mkdir(parents=True)
        questions = []
        for number in range(n):
            colour, shape = colours[number // 3 % len(colours)], SHAPES[number % 3]
            pixels = np.full((64, 64, 3), (240, 230, 250), np.uint8)
            pixels[16:32, 8:24] = RGB[colour]
            Image.fromarray(pixels).save(path / official / "images" / f"{number}.png")
            near = (colour, colours[(number // 3 + 1) % len(colours)])
            questions += [(question, answer, number) for question, answer in _asked(shape, colour, near)]
        (path / official / "questions.json").write_text(json.dumps(questions))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return _write(tmp_path_factory.mktemp("two_colours"), {"train": 60, "test": 30}, ("red", "blue"))


@pytest.fixture(scope="module")
def colourful(tmp_path_factory) -> pathlib.Path:
    return _write(tmp_path_factory.mktemp("all_colours"), {"train": 192, "test": 96}, COLOURS)


def _build(folder: pathlib.Path | None, **changes: Any) -> Dataset:
    return easy_vqa.build(dataclasses.replace(SMALL, **changes), path=folder)


def _split(dataset: Dataset, name: str) -> ArraySource:
    source = dataset.split(name)
    assert isinstance(source, ArraySource)
    return source


def _texts(dataset: Dataset, name: str) -> list[list[str]]:
    vocabulary = np.array(dataset.features["text"].vocabulary)
    return [[str(word) for word in vocabulary[row[row > 0]]] for row in _split(dataset, name).inputs["text"]]


def _attribute(dataset: Dataset, name: str) -> np.ndarray:
    names = [dataset.group_names[group].split("attribute=")[1] for group in _split(dataset, name).group]
    return np.array([dataset.class_names.index(value) for value in names])


@pytest.mark.parametrize("form", ["wording", "word"])
@pytest.mark.parametrize("denied", [False, True])
def test_answers_agree_with_the_favoured_ones_as_often_as_asked(folder, form, denied):
    dataset = _build(folder, form=form, denied=denied)
    shares = {"train": 0.75, "validation": 0.75, "test": 0.75, "test_flipped": 0.25, "test_balanced": 0.5, "train_randomised": 0.5}
    for name, share in shares.items():
        source, attribute = _split(dataset, name), _attribute(dataset, name)
        assert (source.label == 0).sum() == (source.label == 1).sum()
        for label in (0, 1):
            own = source.label == label
            assert (attribute == label)[own].sum() == round(share * own.sum()), name
        for label, value in itertools.product((0, 1), (0, 1)):
            texts = [text for text, y, a in zip(_texts(dataset, name), source.label, attribute, strict=True) if (y, a) == (label, value)]
            assert any("not" in text or "no" in text for text in texts) == denied
            if denied:
                assert abs(sum("not" in text or "no" in text for text in texts) - len(texts) / 2) <= 2
            if form == "wording":
                assert abs(sum(not set(SHAPES) & set(text) for text in texts) - len(texts) / 2) <= 2


def test_sizes_are_those_asked_for_and_pairs_of_splits_are_alike(folder):
    counts = {name: np.bincount(source.label).tolist() for name, source in _build(folder).splits.items()}
    assert counts["train"] == counts["train_randomised"] == [60, 60] and counts["validation"] == [16, 16]
    assert counts["test"] == counts["test_balanced"] == counts["test_flipped"] == [32, 32]
    more = {name: len(source) for name, source in _build(folder, train=10**6).splits.items()}
    assert 120 < more["train"] == more["train_randomised"] < 60 * 20


def test_the_form_tells_the_attribute_and_nothing_else_does(folder):
    for form, of in (("wording", lambda text: " ".join(w for w in text if w not in {*SHAPES, *COLOURS, "a", "shape"})), ("word", lambda text: text)):
        dataset = _build(folder, form=form, correlation=0.6)
        told: dict[Any, set[int]] = {}
        for name in dataset.splits:
            for text, value in zip(_texts(dataset, name), _attribute(dataset, name).tolist(), strict=True):
                key = of(text) if form == "wording" else next(w for w in text if w in SHAPES + COLOURS)
                told.setdefault(key, set()).add(value)
        assert all(len(values) == 1 for values in told.values())
        assert len(told) == (4 if form == "wording" else 5) and {min(values) for values in told.values()} == {0, 1}


@pytest.mark.parametrize("task", ["yes_no", "answer"])
def test_answers_are_true(colourful, task):
    dataset = _build(colourful, task=task, denied=True, correlation=0.5, validation_pictures=0.4, train=10**6)
    for name in ("train", "test_flipped"):
        source = _split(dataset, name)
        seen = [next(colour for colour, value in RGB.items() if tuple(pixel) == value) for pixel in source.inputs["image"][:, 5, 3].tolist()]
        asked = 0
        for text, label, colour in zip(_texts(dataset, name), source.label, seen, strict=True):
            answer, named = dataset.class_names[label], set(text) & set(COLOURS)
            if answer in YES_NO and named:
                assert (answer == "yes") == (named == {colour}) ^ bool({"no", "not"} & set(text))
            elif answer in COLOURS:
                assert answer == colour and "color" in text
                asked += 1
            elif answer in SHAPES:
                assert named <= {colour}
        assert (asked > 0) == (task == "answer")


def test_all_answers_are_classes_and_the_answers_of_their_kind_the_attributes(colourful):
    dataset = _build(colourful, task="answer", validation_pictures=0.4, correlation=0.5)
    assert dataset.class_names == sum(easy_vqa.KINDS, ()) and len(dataset.group_names) == 4 + 9 + 64
    for name, share in {"train": 0.5, "train_randomised": None}.items():
        source, attribute = _split(dataset, name), _attribute(dataset, name)
        for label, answer in enumerate(dataset.class_names):
            own, kind = source.label == label, next(kind for kind in easy_vqa.KINDS if answer in kind)
            assert own.any() and (attribute[own] == label).sum() == round((share or 1 / len(kind)) * own.sum())
            assert {dataset.class_names[value] for value in attribute[own]} <= set(kind)


def test_an_answer_that_cannot_be_drawn_is_named(folder):
    with pytest.raises(UserError, match="too few questions with the answer 'black' for train"):
        _build(folder, task="answer")


def test_no_question_is_asked_twice_and_no_picture_is_on_both_sides(folder):
    rows = json.loads((folder / "train" / "questions.json").read_text())
    questions = easy_vqa.read_questions(folder / "train" / "questions.json", SMALL, YES_NO)
    assert len(questions.label) == sum(answer in YES_NO and " no" not in question for question, answer, _ in rows)
    held_out = easy_vqa._held_out(questions.picture, SMALL)
    assert not set(questions.picture[held_out]) & set(questions.picture[~held_out])
    assert len(set(questions.picture[held_out])) == 18  # 0.3 of 60


def test_regions_are_the_shape_and_the_words(folder):
    dataset = _build(folder, denied=True)
    for name in dataset.splits:
        source = _split(dataset, name)
        assert source.regions is not None
        shape = np.zeros((16, 16), bool)
        shape[4:8, 2:6] = True
        assert (source.regions["cause"]["image"] == shape).all()
        vocabulary = np.array(dataset.features["text"].vocabulary)
        words = vocabulary[source.inputs["text"]]
        cause, shortcut = source.regions["cause"]["text"], source.regions["shortcut"]["text"]
        assert not (cause & shortcut).any()
        assert set(words[cause]) == {*SHAPES, "red", "blue", "no", "not"}
        assert set(words[shortcut]) <= {"is", "there", "present", "does", "the", "image", "contain", "in", "?"}
        assert set(words[~cause & ~shortcut]) <= {"a", "shape", "<pad>"}


def test_the_word_is_both_where_it_is_the_form(folder):
    source = _split(_build(folder, form="word"), "train")
    assert source.regions is not None
    assert (source.regions["cause"]["text"] == source.regions["shortcut"]["text"]).all()
    assert (source.regions["cause"]["text"].sum(1) == 1).all()


def test_another_seed_draws_other_rows(folder):
    first, second = _split(_build(folder), "train"), _split(_build(folder, data_seed=1), "train")
    assert (first.inputs["text"] != second.inputs["text"]).any(1).mean() > 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "maybe"}, "task.*yes_no"),
        ({"form": "words"}, "form.*wording"),
        ({"size": 65}, "size.*at most 64"),
        ({"validation_pictures": 0.0}, "validation_pictures.*above 0"),
    ],
)
def test_bad_options_are_refused(folder, changes, message):
    with pytest.raises(UserError, match=message):
        easy_vqa.build(make_options(Options, dataclasses.asdict(SMALL) | changes, "data"), path=folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train/questions.json", None, "cannot read .*questions.json"),
        ("train/questions.json", "{", "no list of"),
        ("train/questions.json", '[["is there a circle?", "yes"]]', "no list of"),
        ("train/questions.json", '[[1, "yes", 0]]', "no list of"),
        ("train/questions.json", '[["is there a circle?", "perhaps", 0]]', "has the answer 'perhaps'"),
        ("train/questions.json", '[["what shape is present?", "circle", 0]]', "no question with one of the answers no, yes"),
        ("train/images/7.png", None, r"cannot read the picture .*7\.png"),
    ],
)
def test_bad_files_are_named(folder, tmp_path, name, content, message):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    if content is not None:
        (tmp_path / "copy" / name).write_text(content)
    with pytest.raises(UserError, match=message):
        _build(tmp_path / "copy", train=10**6)


def test_a_missing_wheel_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'cimrl_jax\[vqa\]'"):
        easy_vqa.build(Options())


@wheel
def test_the_wheel_has_the_published_counts():
    for official, all_answers, yes_no in (("train", 38575, 28407), ("test", 9673, 7136)):
        path = easy_vqa.locate() / official / "questions.json"
        for classes, n in ((YES_NO, yes_no), (sum(easy_vqa.KINDS, ()), all_answers)):
            assert len(easy_vqa.read_questions(path, Options(denied=True), classes).label) == n


@wheel
def test_the_defaults_give_the_sizes_they_name():
    dataset = easy_vqa.build(Options(size=8))
    sizes = {name: np.bincount(source.label).tolist() for name, source in dataset.splits.items()}
    assert sizes["train"] == sizes["train_randomised"] == [1200, 1200] and sizes["validation"] == [120, 120]
    assert sizes["test"] == sizes["test_flipped"] == sizes["test_balanced"] == [300, 300]


def test_pictures_and_questions_are_made_as_pretrained_encoders_expect_them(folder, tmp_path):
    pytest.importorskip("transformers", reason="checkpoints' tokenisers are read by transformers: pip install 'cimrl_jax[text]'")
    checkpoint = pytest.importorskip("tests.tokenisers").bytes_of(tmp_path)
    image = Expected(size=(24, 24), channels=3, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    dataset = easy_vqa.build(SMALL, path=folder, expected={"image": image, "text": Expected(tokeniser=str(checkpoint), length=30)})
    assert dataset.features["image"].shape == (24, 24, 3) and dataset.features["image"].mean == image.mean
    plain, reader = _build(folder), tokenise.of(dataset.features["text"])
    words = np.array(plain.features["text"].vocabulary)
    for name in ("train", "test"):
        one, other = _split(plain, name), _split(dataset, name)
        assert one.regions is not None and other.regions is not None and (one.group == other.group).all()
        cut = (other.inputs["text"] != 0).all(1)  # may have lost its end
        for kind in ("cause", "shortcut"):
            masks = other.regions[kind]["text"]
            told = [words[ids[mask]].tolist() for ids, mask in zip(one.inputs["text"], one.regions[kind]["text"], strict=True)]
            found = [reader.decode(np.where(mask, ids, 0)) for ids, mask in zip(other.inputs["text"], masks, strict=True)]
            assert all(a == " ".join(b).replace(" ?", "?") or a == " ".join(b) for a, b, lost in zip(found, told, cut, strict=True) if not lost)
        assert not cut.all()
