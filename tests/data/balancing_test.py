"""Splits in which the attribute says nothing, against counts done by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cimrl_jax.data import balancing
from cimrl_jax.data.listing import Fault, Listing, Options, Texts
from cimrl_jax.data.planting import group_names

CLASSES, VALUES = ("a", "b", "c"), ("x", "y")


def _listing(train: list[int], test: list[int]) -> Listing:
    """Rows of each group, label-major, in train and test; one row of each group in validation."""
    group = np.concatenate([np.repeat(np.arange(6), counts) for counts in (train, [1] * 6, test)]).astype(np.int32)
    ends = np.cumsum([0, sum(train), 6, sum(test)])
    return Listing(
        name="made",
        columns={"text": Texts(["word"] * len(group))},
        label=group // 2,
        class_names=CLASSES,
        splits={name: np.arange(ends[part], ends[part + 1]) for part, name in enumerate(("train", "validation", "test"))},
        origins=[str(row) for row in range(len(group))],
        notes="made here",
        group=group,
        group_names=group_names(CLASSES, VALUES),
        attribute_names=VALUES,
    )


def _counts(listing: Listing, name: str) -> list[int]:
    assert listing.group is not None
    return np.bincount(listing.group[listing.splits[name]], minlength=6).tolist()


def test_both_splits_have_the_counts_that_they_promise():
    listing = balancing.add(_listing([7, 1, 2, 8, 3, 3], [5, 2, 1, 4, 3, 3]), Options())
    randomised = np.array(_counts(listing, "train_randomised")).reshape(3, 2)
    assert randomised.sum(1).tolist() == [16, 20, 12] and np.ptp(randomised, axis=1).max() <= 1  # twice as many, for 7 of 8 are of one attribute
    assert _counts(listing, "test_balanced") == [2, 2, 1, 1, 3, 3]
    assert len(set(listing.splits["test_balanced"].tolist())) == 12
    for name, base in (("train_randomised", "train"), ("test_balanced", "test")):
        assert set(listing.splits[name].tolist()) <= set(listing.splits[base].tolist())
    assert set(listing.splits["train_randomised"].tolist()) == set(listing.splits["train"].tolist())


def test_rows_are_drawn_again_as_rarely_as_can_be():
    rows = balancing.add(_listing([7, 2, 1, 1, 1, 1], [1] * 6), Options()).splits["train_randomised"]
    used = np.bincount(rows, minlength=9)
    assert used[:9].sum() == 18 and used.min() == 1
    assert np.ptp(used[:7]) <= 1 and np.ptp(used[7:9]) <= 1


def test_the_seed_draws_them():
    listing = _listing([7, 2, 9, 3, 6, 3], [5, 2, 1, 4, 3, 5])
    one, again, other = (balancing.add(listing, Options(data_seed=seed)).splits for seed in (0, 0, 1))
    for name in ("train_randomised", "test_balanced"):
        assert (one[name] == again[name]).all() and (one[name] != other[name]).any()


@pytest.mark.parametrize(
    ("train", "test", "names"),
    [
        ([1, 0, 1, 1, 1, 1], [2, 1, 1, 1, 1, 1], {"test_balanced"}),
        ([2, 1, 1, 1, 1, 1], [2, 0, 1, 1, 1, 1], {"train_randomised"}),
        ([2, 1, 1, 1, 1, 1], [2, 4, 1, 2, 3, 6], {"train_randomised"}),  # the test's attribute says nothing already
        ([2, 1, 1, 1, 0, 0], [2, 1, 1, 1, 0, 0], set()),
    ],
)
def test_a_split_that_cannot_be_or_is_there_already_is_not_made(train, test, names):
    assert set(balancing.add(_listing(train, test), Options()).splits) - {"train", "validation", "test"} == names


def test_without_groups_nothing_is_added():
    listing = dataclasses.replace(_listing([2] * 6, [2, 1] * 3), group=None, group_names=(), attribute_names=())
    assert balancing.add(listing, Options()) == listing


@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_rows_with_faults_and_of_unknown_group_are_not_drawn(policy):
    listing = _listing([4] * 6, [5, 4] * 3)
    assert listing.group is not None
    group, texts = listing.group.copy(), ["word"] * len(listing.group)
    group[0], texts[-1] = -1, ""
    listing = dataclasses.replace(listing, group=group, columns={"text": Texts(texts)}, faults=(Fault(1, "unknown label", "?"),))
    found = balancing.add(listing, Options(on_bad_row=policy)).splits
    assert not {0, 1} & set(found["train_randomised"].tolist())
    if policy == "skip":
        assert len(texts) - 1 not in found["test_balanced"] and len(found["test_balanced"]) == 4 * 4 + 2 * 3
