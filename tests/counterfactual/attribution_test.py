"""Attribution is the per-example gradient, and nothing but it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cimrl_jax.counterfactual import attribution
from cimrl_jax.types import Slots

B, N, D, C = 5, 4, 3, 3


def make_slots(seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((B, N)) < 0.8
    return {m: Slots(jnp.asarray(rng.normal(size=(B, N, D)), jnp.float32), jnp.asarray(mask)) for m in ("a", "b")}


def weights(seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, D, C)), jnp.float32)


def linear(slots):
    """Logits that are linear in the valid slots: W_a and W_b applied to their sums."""
    a, b = (jnp.sum(jnp.where(slots[m].mask[..., None], slots[m].values, 0.0), axis=1) for m in "ab")
    return a @ weights()[0] + b @ weights()[1]


def curved(slots):
    """Logits in which both modalities and all slots of an example interact."""
    a, b = (jnp.tanh(slots[m].values) * slots[m].mask[..., None] for m in "ab")
    return jnp.einsum("bnd,bkd,dc->bc", a, b**2, weights()[0])


def test_the_gradient_of_a_linear_model_is_its_weights_and_equals_finite_differences():
    slots, target = make_slots(), jnp.array([0, 1, 2, 1, 0])
    logits, gradient = attribution.attribute(linear, slots, target)
    np.testing.assert_allclose(logits, linear(slots), rtol=1e-6)
    for m, w in zip("ab", np.asarray(weights()), strict=True):
        for i in range(B):
            others = [c for c in range(C) if c != target[i]]
            expected = w[:, target[i]] - w[:, others].mean(axis=1)
            np.testing.assert_allclose(gradient[m][i], np.asarray(slots[m].mask[i])[:, None] * expected, atol=1e-5)

    def margin(i, values):
        out = linear({**slots, "a": Slots(values, slots["a"].mask)})[i]
        return out[target[i]] - (out.sum() - out[target[i]]) / (C - 1)

    rng = np.random.default_rng(2)
    for i, n, d in zip(range(B), rng.integers(0, N, B), rng.integers(0, D, B), strict=True):
        step = jnp.zeros((B, N, D)).at[i, n, d].set(0.5)
        slope = margin(i, slots["a"].values + step) - margin(i, slots["a"].values - step)
        np.testing.assert_allclose(gradient["a"][i, n, d], slope, atol=1e-4)


def test_the_gradient_equals_vmap_of_the_single_examples_gradient():
    slots, target = make_slots(3), jnp.array([2, 0, 1, 1, 2])

    def margin(values, mask, t):
        out = curved({m: Slots(values[m][None], mask[m][None]) for m in values})[0]
        return out[t] - (out.sum() - out[t]) / (C - 1)

    values, mask = {m: s.values for m, s in slots.items()}, {m: s.mask for m, s in slots.items()}
    expected = jax.jit(jax.vmap(jax.grad(margin)))(values, mask, target)
    _, gradient = jax.jit(lambda s, t: attribution.attribute(curved, s, t))(slots, target)
    for m in slots:
        assert np.abs(expected[m]).max() > 0.1
        np.testing.assert_allclose(gradient[m], expected[m], rtol=1e-5, atol=1e-6)


def test_examples_do_not_interact():
    slots, target = make_slots(), jnp.zeros(B, int)
    _, before = attribution.attribute(curved, slots, target)
    moved = {m: Slots(s.values.at[0].add(1.0), s.mask) for m, s in slots.items()}
    _, after = attribution.attribute(curved, moved, target.at[0].set(1))
    for m in slots:
        np.testing.assert_array_equal(after[m][1:], before[m][1:])


def test_evidence_is_gradient_times_input_where_positive_and_valid():
    slots = make_slots()
    gradient = {m: jnp.asarray(np.random.default_rng(5).normal(size=(B, N, D)), jnp.float32) for m in slots}
    for m, found in attribution.evidence(gradient, slots).items():
        product = (np.asarray(gradient[m]) * np.asarray(slots[m].values)).sum(-1)
        np.testing.assert_allclose(found, np.where(slots[m].mask, np.maximum(product, 0), 0), atol=1e-6)


def test_choose_takes_what_comes_near_the_best_and_nothing_where_there_is_none():
    scores = jnp.array([[1.0, 0.4, 0.6, 9.0], [0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.1, 0.0, 0.0, 0.0]])
    mask = jnp.array([[True, True, True, False], [True] * 4, [True] * 4, [True] * 4])
    scores = jnp.where(mask, scores, 0.0)
    expected = [[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    np.testing.assert_array_equal(attribution.choose(scores, mask, threshold=0.5), expected)
    np.testing.assert_array_equal(attribution.choose(scores, mask, threshold=1.0)[0], [1, 0, 0, 0])
    np.testing.assert_array_equal(attribution.choose(7 * scores, mask, threshold=0.5), expected)  # only ratios count
