"""Synthetic slots: exact counts, true regions, and causes that are as far apart as the mode says."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from cimrl_jax.data.datasets import synthetic
from cimrl_jax.data.datasets.synthetic import Options
from cimrl_jax.data.source import ArraySource, Dataset, group_counts
from cimrl_jax.errors import UserError
from cimrl_jax.options import make_options

SMALL = Options(train=1200, validation=100, test=400)
SHAPES = list(itertools.product(("additive", "xor"), ("each", "first", "cross")))


@functools.cache
def _build(**changes) -> Dataset:
    return synthetic.build(dataclasses.replace(SMALL, **changes))


def _split(dataset: Dataset, name: str) -> ArraySource:
    source = dataset.splits[name]
    assert isinstance(source, ArraySource)
    return source


def _planted(source: ArraySource, kind: str, name: str) -> np.ndarray:
    """The contents of the planted slots [n, width]."""
    assert source.regions is not None
    return source.inputs[name][source.regions[kind][name]]


@pytest.mark.parametrize(("mode", "where"), SHAPES)
def test_correlations_are_exact(mode, where):
    dataset = _build(mode=mode, shortcut_in=where, correlation=0.9, test_correlation=0.8)
    for name, share in {"train": 0.9, "train_randomised": 0.5, "validation": 0.9, "test": 0.8, "test_balanced": 0.5, "test_flipped": 0.2}.items():
        counts = np.array(group_counts(_split(dataset, name), 4)).reshape(2, 2)
        assert (counts.sum(1) == len(dataset.splits[name]) / 2).all()
        assert (np.diag(counts) == counts.sum(1) * share).all(), name


@pytest.mark.parametrize(("mode", "where"), SHAPES)
def test_changing_the_attribute_changes_only_the_shortcut_slots(mode, where):
    dataset = _build(mode=mode, shortcut_in=where)
    source = _split(dataset, "test")
    assert source.regions is not None
    for other in ("test_flipped", "test_balanced"):
        for name in dataset.features:
            changed = (source.inputs[name] != _split(dataset, other).inputs[name]).any(-1)
            assert not (changed & ~source.regions["shortcut"][name]).any()
    carriers = {"each": ["m0", "m1"], "first": ["m0"], "cross": ["m0", "m1"]}[where]
    for name in dataset.features:
        assert (source.regions["cause"][name].sum(1) == 1).all()
        assert (source.regions["shortcut"][name].sum(1) == (name in carriers)).all()
        assert not (source.regions["cause"][name] & source.regions["shortcut"][name]).any()
        assert set(np.where(source.regions["cause"][name])[1]) == set(range(SMALL.slots)), "the cause never stands in some slot"


def _accuracy(train: list[np.ndarray], target: np.ndarray, test: list[np.ndarray], truth: np.ndarray) -> float:
    model = RandomForestClassifier(100, random_state=0)
    return float(model.fit(np.hstack(train), target).score(np.hstack(test), truth))


@pytest.mark.parametrize("kind", ["cause", "shortcut"])
def test_what_is_crossed_is_told_by_both_modalities_and_by_neither_alone(kind):
    dataset = _build(mode="xor", shortcut_in="cross")
    train, test = _split(dataset, "train_randomised"), _split(dataset, "test_balanced")
    targets = [source.label if kind == "cause" else source.group % 2 for source in (train, test)]
    for names, low, high in ((["m0"], 0.4, 0.6), (["m1"], 0.4, 0.6), (["m0", "m1"], 0.9, 1.0)):
        columns = [[_planted(source, kind, name) for name in names] for source in (train, test)]
        assert low <= _accuracy(columns[0], targets[0], columns[1], targets[1]) <= high, names


def test_additive_causes_are_as_accurate_as_asked_and_the_shortcut_is_easier():
    dataset = _build(cause_accuracy=0.8, noise=0.1)
    train, test = _split(dataset, "train_randomised"), _split(dataset, "test_balanced")
    for name in dataset.features:
        cause = LogisticRegression().fit(_planted(train, "cause", name), train.label)
        assert cause.score(_planted(test, "cause", name), test.label) == pytest.approx(0.8, abs=0.005)
        shortcut = LogisticRegression().fit(_planted(train, "shortcut", name), train.group % 2)
        assert shortcut.score(_planted(test, "shortcut", name), test.group % 2) == 1.0


def test_distractors_say_nothing():
    dataset = _build(noise=0.0, shortcut_in="first")
    source = _split(dataset, "train")
    assert source.regions is not None
    for name in dataset.features:
        cause, shortcut = (source.regions[kind][name] for kind in ("cause", "shortcut"))
        rest = source.inputs[name][~cause & ~shortcut]
        direction = source.inputs[name][cause]
        assert np.abs(rest @ direction.T[:, :20]).max() < 1e-5
        assert np.linalg.norm(rest, axis=-1) == pytest.approx(1, abs=1e-5)


def test_each_modality_can_be_randomised_alone_only_where_each_has_the_whole_shortcut():
    dataset = _build(noise=0.0)
    for name in ("m0", "m1"):
        source = _split(dataset, f"test_{name}_only")
        for other in ("m0", "m1"):
            planted = _planted(source, "shortcut", other)
            sign = planted @ planted[0] > 0
            agrees = (sign == source.label).mean()
            assert agrees == 0.5 if other == name else agrees in (0.0, 1.0)
    assert "test_m0_only" not in _build(shortcut_in="first").splits and "test_m0_only" not in _build(shortcut_in="cross").splits


@pytest.mark.parametrize("modalities", [1, 3])
def test_any_number_of_modalities(modalities):
    dataset = _build(modalities=modalities)
    assert list(dataset.features) == [f"m{number}" for number in range(modalities)]
    assert all(set(_split(dataset, name).inputs) == set(dataset.features) for name in dataset.splits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": 1, "mode": "xor"}, "need two modalities"),
        ({"modalities": 1, "shortcut_in": "cross"}, "need two modalities"),
        ({"modalities": 0}, "modalities"),
        ({"mode": "xnor"}, "xor"),
        ({"slots": 1}, "slots"),
        ({"width": 2}, "width"),
        ({"cause_accuracy": -0.5}, "cause_accuracy"),
    ],
)
def test_bad_options_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        synthetic.build(make_options(Options, changes, "data"))


def test_options_made_by_hand_are_checked_too():
    with pytest.raises(UserError, match="data.slots: got 1"):
        synthetic.build(Options(slots=1))


def test_a_path_is_refused(tmp_path):
    with pytest.raises(UserError, match="reads no files"):
        synthetic.build(Options(), path=tmp_path)
