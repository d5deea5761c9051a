"""The scores by which a counterfactual counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.metrics
from scipy.spatial.distance import jensenshannon

from cimrl_jax.counterfactual import quality


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_flip_is_the_probability_of_the_aim_without_gradient():
    logits, aim = 2 * draw(6, 3), np.array([0, 1, 2, 0, 1, 2])
    expected = scipy.special.softmax(logits, axis=1)[np.arange(6), aim]
    np.testing.assert_allclose(quality.flip(jnp.asarray(logits), jnp.asarray(aim)), expected, rtol=1e-5)
    gradient = jax.grad(lambda x: quality.flip(x, jnp.asarray(aim)).sum())(jnp.asarray(logits))
    assert not np.asarray(gradient).any()


def test_local_wants_some_slots_but_not_most_of_the_valid_ones():
    mask = jnp.array([[True] * 4, [True] * 4, [True] * 4, [True, True, False, False], [False] * 4])
    chosen = jnp.array([[0.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(quality.local(chosen, mask, most=0.5), [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(quality.local(chosen, mask, most=1.0), [0, 1, 1, 1, 0])


def test_turned_equals_scipy():
    before, after = (scipy.special.softmax(2 * draw(6, 4, seed=i).astype(np.float64), axis=1) for i in (3, 4))
    expected = [jensenshannon(a, b, base=2) ** 2 for a, b in zip(before, after, strict=True)]
    np.testing.assert_allclose(quality.turned(jnp.asarray(before, jnp.float32), jnp.log(after).astype(jnp.float32)), expected, atol=1e-5)
    assert float(quality.turned(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 30.0]]))[0]) > 0.999


def test_contrast_equals_scipy_and_only_a_moderate_core_is_usable():
    full, context, core = (2 * draw(6, 4, seed=i) for i in range(3))
    share = np.array([0.04, 0.05, 0.3, 0.5, 0.51, 1.0], np.float32)
    p, without, only = (scipy.special.softmax(x.astype(np.float64), axis=1) for x in (full, context, core))
    scores = [np.sqrt(jensenshannon(a, b, base=2) ** 2 * (1 - jensenshannon(a, c, base=2) ** 2)) for a, b, c in zip(p, without, only, strict=True)]
    ours = quality.contrast(*(jnp.asarray(x) for x in (full, context, core, share)), most=0.5)
    np.testing.assert_allclose(ours, np.where([False, True, True, True, False, False], scores, 0), atol=1e-5)


def test_contrast_is_best_when_the_context_tells_nothing_and_the_core_everything():
    certain, even = jnp.array([[30.0, 0.0]]), jnp.array([[0.0, 30.0]])
    share = jnp.array([0.3])
    assert quality.contrast(certain, even, certain, share, most=0.5) > 0.999
    assert quality.contrast(certain, certain, certain, share, most=0.5) < 1e-3
    assert quality.contrast(certain, even, even, share, most=0.5) < 1e-3


def test_told_apart_is_the_auroc_of_rows_that_weigh():
    score, good = np.round(draw(40), 1), np.arange(40) % 3 > 0
    weight = (np.arange(40) < 30).astype(np.float32)
    expected = sklearn.metrics.roc_auc_score(good[:30], score[:30])
    assert float(quality.told_apart(jnp.asarray(score), jnp.asarray(good), jnp.asarray(weight))) == pytest.approx(expected, abs=1e-6)
