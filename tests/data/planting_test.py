"""Planted counts are exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cimrl_jax.data import planting


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=5),
    correlation=st.none() | st.floats(0, 1),
    extra=st.integers(0, 3),
    seed=st.integers(0, 100),
)
def test_attributes_agree_with_the_label_exactly_as_often_as_asked(sizes, correlation, extra, seed):
    label = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    values = len(sizes) + extra
    chosen = planting.attributes(label, values, correlation, planting.generator(seed, "x"))
    for klass, size in enumerate(sizes):
        counts = np.bincount(chosen[label == klass], minlength=values)
        assert counts.sum() == size
        assert abs(counts[klass] - size * (1 / values if correlation is None else correlation)) <= 0.5 + 1e-9
        others = np.delete(counts, klass)
        assert others.max() - others.min() <= 1
    assert (chosen == planting.attributes(label, values, correlation, planting.generator(seed, "x"))).all()


def test_which_examples_agree_is_drawn():
    label = np.repeat([0, 1], 50)
    first, second = (planting.attributes(label, 2, 0.5, planting.generator(0, name)) for name in "ab")
    assert (first != second).any()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_flags_are_exact_in_every_class(share):
    label = np.repeat([0, 1, 2], [10, 20, 40])
    chosen = planting.flags(label, share, planting.generator(3, "flags"))
    assert [chosen[label == klass].sum() for klass in range(3)] == [round(share * size) for size in (10, 20, 40)]


def test_group_names_follow_the_group_arithmetic():
    names = planting.group_names(("no", "yes"), ("red", "green", "blue"))
    assert names[1 * 3 + 2] == "label=yes, attribute=blue" and len(names) == 6
