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


def test_rows_are_repeated_only_when_asked_for_and_evenly():
    have, want = (np.array([0, 0, 0, 1]),), (np.array([0] * 7 + [1]),)
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="it needs 7 examples of label, attribute = 0, but there are only 3"):
        resampling.matching(have, want, rng, where="it")
    rows = resampling.matching(have, want, rng, where="it", repeat=True)
    assert sorted(np.bincount(rows)) == [1, 2, 2, 3]
    with pytest.raises(UserError, match="there are only 0"):
        resampling.matching(have, (np.array([2]),), rng, where="it", repeat=True)
