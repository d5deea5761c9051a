"""What if: a split's attribute has the shares that were asked for, its rows are rows of the split, and what cannot be is said in one line."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from cimrl_jax.data.resampled import ResampleOptions, resample
from cimrl_jax.data.source import ArraySource, Dataset, Source
from cimrl_jax.errors import UserError
from cimrl_jax.options import make_options
from cimrl_jax.types import Feature

CELLS = {"train": ((60, 20, 20), (5, 25, 10)), "validation": ((10, 10, 10), (10, 10, 10)), "test": ((12, 4, 4), (0, 6, 6))}
"""Rows by class and attribute."""


def source(cells: tuple[tuple[int, ...], ...], seed: int) -> ArraySource:
    rng = np.random.default_rng(seed)
    cell = rng.permutation(np.repeat(np.arange(6), np.ravel(cells)))
    label, group = (np.append(own, (0, 1)).astype(np.int32) for own in (cell // 3, cell))
    group[-2:] = -1  # two rows of unknown group
    n = len(label)
    inputs = {"a": np.arange(n, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)}
    regions: Any = {"cause": {"a": rng.random((n, 2)) < 0.5}}
    return ArraySource(inputs=inputs, label=label, group=group, regions=regions)


def dataset() -> Dataset:
    return Dataset(
        name="small",
        features={"a": Feature("slots", (2, 3), "float32")},
        class_names=("no", "yes"),
        group_names=tuple(f"{klass}{value}" for klass in ("no", "yes") for value in "xyz"),
        attribute_names=("x", "y", "z"),
        splits={name: source(cells, seed) for seed, (name, cells) in enumerate(CELLS.items())},
    )


def options(**changes: Any) -> ResampleOptions:
    return make_options(ResampleOptions, changes, "data.resample")


def counts(own: Source) -> np.ndarray:
    return np.bincount(own.group[own.group >= 0], minlength=6).reshape(2, 3)


WANTED = {
    "randomise": ((65 / 140, 45 / 140, 30 / 140),) * 2,
    "flip": ((5 / 40, 25 / 40, 10 / 40), (0.6, 0.2, 0.2)),
    "0.8": ((0.8, 0.1, 0.1), (0.1, 0.8, 0.1)),  # x is typical of no, y of yes
    "0": ((0, 0.5, 0.5), (0.5, 0, 0.5)),
}


@pytest.mark.parametrize("rows", ["leave_out", "draw_again"])
@pytest.mark.parametrize("attribute", WANTED)
def test_shares_are_as_asked_and_rows_are_the_splits_own(attribute, rows):
    own = dataset()
    found = resample(own, options(attribute=attribute, rows=rows), seed=0)
    assert isinstance(found.split("train"), Source)
    assert all(found.splits[name] is own.splits[name] for name in ("validation", "test"))
    before, after = own.split("train"), found.split("train")
    have, wanted = counts(after), np.array(WANTED[attribute])
    assert (abs(have - have.sum(1, keepdims=True) * wanted) <= 1).all()
    places = after.load(np.arange(len(after)))["inputs"]["a"][:, 0, 0].astype(int)
    assert (before.label[places] == after.label).all() and (before.group[places] == after.group).all()
    if rows == "leave_out":
        assert len(set(places.tolist())) == len(places) and (have <= counts(before)).all()
        assert ((have == counts(before)) & (wanted > 0)).any(1).all(), "no more is left out than must be"
    else:
        assert have.sum(1).tolist() == np.bincount(before.label).tolist()
    assert f"attribute resampled ({options(attribute=attribute).attribute}): train has" in found.notes


def test_nothing_asked_for_is_the_same_data_set():
    own = dataset()
    assert resample(own, ResampleOptions(), seed=0) is own


def test_rows_keep_their_keys():
    own = dataset()
    own = dataclasses.replace(own, keys={name: 100 + np.arange(len(own.split(name))) for name in ("train", "test")})
    found = resample(own, options(attribute="randomise"), seed=4)
    arrays = found.split("train").arrays
    assert arrays is not None and (found.keys["train"] == 100 + arrays["inputs"]["a"][:, 0, 0].astype(int)).all()
    assert (found.keys["test"] == own.keys["test"]).all()


def test_rows_are_drawn_by_the_seed_and_carry_everything_along():
    own = dataset()
    first, again, other = (resample(own, options(attribute="randomise"), seed=seed).split("train") for seed in (4, 4, 5))
    assert (first.load(np.arange(9))["inputs"]["a"] == again.load(np.arange(9))["inputs"]["a"]).all()
    assert len(first) == len(other) and (first.load(np.arange(9))["inputs"]["a"] != other.load(np.arange(9))["inputs"]["a"]).any()
    assert first.arrays is not None and first.regions is not None
    places = first.arrays["inputs"]["a"][:, 0, 0].astype(int)
    clean = own.split("train").regions
    mask = first.regions["cause"]["a"]
    assert clean is not None and (mask[np.arange(len(first))] == clean["cause"]["a"][places]).all() and mask.shape == (len(first), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attribute": "randomize"}, "data.resample.attribute: got 'randomize', expected one of own, randomise, flip or a number, at least 0 and at"),
        ({"attribute": 1.5}, "data.resample.attribute: got 1.5 (float), expected one of own, randomise, flip or a number"),
        ({"attribute": "flip", "splits": "trian"}, "data.resample.splits: data set 'small' has no split 'trian'; did you mean 'train'?"),
        (
            {"attribute": 0.5, "splits": "train,test"},
            "data.resample: test has no row of class 'yes' and attribute 'x', but 0.25 of that class",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(changes, message):
    with pytest.raises(UserError) as caught:
        resample(dataset(), options(**changes), seed=0)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_groups_without_attributes_are_refused():
    bare = dataclasses.replace(dataset(), attribute_names=(), group_attribute=())
    with pytest.raises(UserError, match="data set 'small' does not say which attribute each group has"):
        resample(bare, options(attribute="flip"), seed=0)
