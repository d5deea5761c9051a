"""Rows are chosen with the counts that were asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cimrl_jax.data import resampling
from cimrl_jax.errors import UserError

SOME = settings(max_examples=25, deadline=None)


@SOME
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 99))
def test_any_cut_of_an_interleaved_order_is_stratified(kinds, each, seed):
    kind = np.repeat(np.arange(kinds), each)
    order = resampling.interleave(kind, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(kind)))
    for cut in range(len(kind) + 1):
        counts = np.bincount(kind[order[:cut]], minlength=kinds)
        assert counts.max() - counts.min() <= 1


def test_unequal_kinds_are_spread_evenly():
    kind = np.array([0] * 90 + [1] * 10)
    order = resampling.interleave(kind, np.random.default_rng(0))
    assert [kind[part].sum() for part in np.split(order, 10)] == [1] * 10


@SOME
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=40), st.integers(0, 99))
def test_what_is_matched_is_what_was_wanted(pairs, seed):
    rng = np.random.default_rng(seed)
    have = np.array(pairs)
    want = have[rng.permutation(len(have))[: max(len(have) // 2, 1)]]
    rows = resampling.matching((have[:, 0], have[:, 1]), (want[:, 0], want[:, 1]), rng, where="it")
    assert (have[rows] == want).all() and len(set(rows)) == len(rows)


@pytest.mark.parametrize("counts", [[[7, 1], [2, 8]], [[3, 3], [3, 3]], [[50, 1, 1], [1, 30, 2]], [[5, 4], [1, 1], [2, 9]]])
def test_randomised_rows_say_nothing_and_leave_none_out(counts):
    label, attribute = (
        np.concatenate([np.full(n, (klass, value)[axis]) for klass, own in enumerate(counts) for value, n in enumerate(own)]) for axis in (0, 1)
    )
    values = len(counts[0])
    rows = resampling.randomised(label, attribute, values, np.random.default_rng(0), where="it")
    found = np.bincount(values * label[rows] + attribute[rows]).reshape(-1, values)
    copies, left = divmod(len(rows), len(label))
    assert left == 0 and (found.sum(1) == copies * np.bincount(label)).all() and np.ptp(found, axis=1).max() <= 1
    used = np.bincount(rows, minlength=len(label))
    assert used.min() >= 1 and all(np.ptp(used[(label == klass) & (attribute == value)]) <= 1 for klass in set(label) for value in range(values))
    assert (copies - 1) * len(label) < (values * np.max(counts, 1) / np.sum(counts, 1)).max() * len(label)  # no more than needed


def test_rows_are_repeated_only_when_asked_for_and_evenly():
    have, want = (np.array([0, 0, 0, 1]),), (np.array([0] * 7 + [1]),)
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="it needs 7 examples of label, attribute = 0, but there are only 3"):
        resampling.matching(have, want, rng, where="it")
    rows = resampling.matching(have, want, rng, where="it", repeat=True)
    assert sorted(np.bincount(rows)) == [1, 2, 2, 3]
    with pytest.raises(UserError, match="there are only 0"):
        resampling.matching(have, (np.array([2]),), rng, where="it", repeat=True)
