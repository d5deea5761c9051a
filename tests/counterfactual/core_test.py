"""Core masks against a plain sorted reference by property test, and what the two counterfactuals hold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cimrl_jax.counterfactual import core, scores
from cimrl_jax.types import Slots, SlotSpec

SPEC = SlotSpec(kind="slots", count=6, width=2, element=2)
KEEP = jax.jit(lambda scores, mask, p, most: core.keep(scores, mask, p=p, most=most))


def sorted_reference(scores, mask, p, most):
    """The positions in falling order, kept one by one."""
    valid = [j for j in range(len(scores)) if mask[j]]
    total = sum(scores[j] for j in valid)
    order = sorted((j for j in valid if scores[j] > 0), key=lambda j: -scores[j])
    kept, before = set(), 0.0
    for j in order:
        if before / total >= p or len(kept) >= max(int(most * len(valid)), 1):
            break
        kept.add(j)
        before += scores[j]
    return kept


@settings(max_examples=60, deadline=None)
@given(
    scores=st.permutations(range(10)).map(lambda x: x[:6]),
    mask=st.lists(st.booleans(), min_size=6, max_size=6),
    p=st.floats(0.05, 0.95),
    most=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_the_core_is_that_of_a_sorted_list(scores, mask, p, most):
    scores = np.asarray([scores], np.float32) ** 2  # all different
    total = float(scores[0, np.asarray(mask)].sum())
    sums = np.cumsum(np.sort(scores[0, np.asarray(mask)])[::-1])
    if total > 0 and np.abs(sums / total - p).min() < 1e-4:
        return  # rounding would decide
    found = np.asarray(KEEP(jnp.asarray(scores), jnp.asarray([mask]), p, most))[0]
    assert set(np.flatnonzero(found)) == sorted_reference(scores[0], mask, p, most)


def test_equal_scores_stay_together_and_no_score_keeps_nothing():
    found = KEEP(jnp.asarray([[1.0, 1, 1, 0], [0, 0, 0, 0], [3, 3, 1, 1]]), jnp.ones((3, 4), bool), 0.3, 0.5)
    np.testing.assert_array_equal(found, [[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]])


def test_the_two_counterfactuals_divide_the_slots_between_them():
    values = jnp.arange(24.0).reshape(2, 6, 2)
    slots = Slots(values, jnp.arange(6) < jnp.asarray([[6], [4]]))
    kept, blank = jnp.asarray([[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0]], bool), jnp.asarray([-1.0, -2.0])
    context, alone = core.context_alone(slots, kept, blank), core.core_alone(slots, kept, slots.mask, blank)
    for found, gone in ((context, kept), (alone, slots.mask & ~kept)):
        expected = np.where(np.asarray(gone)[..., None], np.asarray(blank), np.asarray(values))
        np.testing.assert_array_equal(found.values, expected)
        np.testing.assert_array_equal(found.mask, slots.mask)
    np.testing.assert_allclose(core.covered(kept, slots.mask), [2 / 6, 1 / 4])


@pytest.mark.parametrize(
    "spec, expected",
    [
        (SPEC, [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]),
        (SlotSpec(kind="slots", count=6, width=2, element=2, lead=1, raw="image"), [[0, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0]]),
        (SlotSpec(kind="slots", count=6, width=2, element=2, lead=1, raw="text"), [[0, 1, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0]]),
    ],
)
def test_neither_padding_nor_markers_are_core(spec, expected):
    slots = Slots(jnp.zeros((2, 6, 2)), jnp.arange(6) < jnp.asarray([[6], [3]]))
    np.testing.assert_array_equal(core.eligible(slots, spec), np.asarray(expected, bool))


def test_a_spoilt_core_is_as_large_and_lies_elsewhere():
    kept, mask = jnp.asarray([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 0]], bool), jnp.arange(6) < jnp.asarray([[6], [5], [4]])
    for seed in range(5):
        found = np.asarray(core.spoil(jax.random.key(seed), kept, mask))
        np.testing.assert_array_equal(found.sum(1), [2, 1, 3])
        assert not (found & ~np.asarray(mask)).any()
        assert not (found[:2] & np.asarray(kept)[:2]).any()
        assert found[2, 3]  # the only one outside comes first


def test_slots_are_blanked_at_the_rate_asked_for_and_only_where_they_may():
    slots, mask = Slots(jnp.ones((50, 6, 2)), jnp.ones((50, 6), bool)), jnp.arange(6)[None, :] > jnp.zeros((50, 1))
    found = np.asarray(core.blanked(jax.random.key(0), slots, mask, 0.3, jnp.zeros(2)).values)
    assert (found[:, 0] == 1).all() and 0.2 < (found[:, 1:] == 0).mean() < 0.4


@pytest.mark.parametrize("mapped", [False, True])
def test_whoever_has_a_score_has_a_core_however_it_is_compiled(mapped):
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(rng.normal(size=(5, 400, 6)), jnp.float32) for _ in range(4)]

    def one(a, b, c, d, p, most):  # scores that the compiler may work out twice, and round otherwise the second time
        mask = jnp.ones(a.shape, bool)
        found = scores.beyond(jax.nn.relu(jnp.tanh(a) * b - jnp.exp(c) * d), jnp.abs(c * a - b * d), mask)
        return found, core.keep(found, mask, p=p, most=most)

    limits = [jnp.full((5,) if mapped else (), value, jnp.float32) for value in (0.65, 0.5)]
    found, kept = jax.jit(jax.vmap(one) if mapped else one)(*drawn, *limits)
    np.testing.assert_array_equal(np.asarray(kept).any(-1), (np.asarray(found) > 0).any(-1))
