"""Experts against a loop over them, the router's choice, and its losses against their definitions on hand-made gates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cimrl_jax.counterfactual import experts

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "names, expected",
    [
        ("a", [(), ("a",)]),
        ("ba", [(), ("a",), ("b",), ("a", "b")]),
        ("abc", [(), ("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]),
        ("abcd", [(), ("a",), ("b",), ("c",), ("d",), ("a", "b", "c", "d")]),
    ],
)
def test_every_set_has_an_expert_as_long_as_there_are_few(names, expected):
    assert list(experts.subsets(names)) == expected
    assert experts.name(expected[0]) == "none" and experts.name(expected[-1]) == "+".join(sorted(names))


def test_experts_are_low_rank_residuals_of_one_code():
    params = experts.init(jax.random.key(0), 3, dim=6, num_classes=2, rank=2)
    code = RNG.normal(size=(4, 6)).astype(np.float32)
    start = np.asarray(experts.apply(params, jnp.asarray(code)))
    np.testing.assert_allclose(start, np.einsum("bd,edc->bec", code, params["kernel"]), atol=1e-5)  # U is zero
    own = {name: np.asarray(x) + 0.3 * RNG.normal(size=x.shape).astype(np.float32) for name, x in params.items()}
    found = np.asarray(experts.apply(jax.tree.map(jnp.asarray, own), jnp.asarray(code)))
    for e in range(3):
        inner = code @ own["down"][e]
        gelu = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        expected = (code + gelu @ own["up"][e]) @ own["kernel"][e] + own["bias"][e]
        np.testing.assert_allclose(found[:, e], expected, atol=1e-4)


@pytest.mark.parametrize("top", [1, 2, 4])
def test_the_router_mixes_the_best_and_no_others(top):
    params = experts.init_router(jax.random.key(0), 4, width=5, hidden=3)
    features, prior = jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32), jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
    found = experts.route(params, features, prior, top=top, key=None, noise=1.0)
    logits = np.asarray(found.logits)
    for row, weights in zip(logits, np.asarray(found.weights), strict=True):
        best = np.argsort(-row)[:top]
        expected = np.zeros(4)
        expected[best] = scipy.special.softmax(row[best])
        np.testing.assert_allclose(weights, expected, atol=1e-5)
    np.testing.assert_allclose(found.probabilities, scipy.special.softmax(logits, axis=1), atol=1e-5)
    noisy = experts.route(params, features, prior, top=top, key=jax.random.key(1), noise=1.0)
    np.testing.assert_allclose(noisy.logits, logits, atol=1e-6)  # noise moves the choice alone
    assert top == 4 or not np.array_equal(np.asarray(noisy.weights) > 0, np.asarray(found.weights) > 0)


@pytest.mark.parametrize(
    "weights, probabilities, rows, expected",
    [
        ([[1, 0], [0, 1]], [[0.5, 0.5], [0.5, 0.5]], [1, 1], 1.0),  # even: 1
        ([[1, 0], [1, 0]], [[1, 0], [1, 0]], [1, 1], 2.0),  # all on one: E
        ([[0.9, 0.1, 0], [0, 0.2, 0.8]], [[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]], [1, 1], 3 * (0.25 * 0.35 + 0.5 * 0.25 + 0.25 * 0.4)),
        ([[1, 0], [0, 1]], [[0.8, 0.2], [0.3, 0.7]], [1, 0], 2 * 0.8),  # the second row weighs nothing
    ],
)
def test_load_balance_is_its_definition(weights, probabilities, rows, expected):
    gates = experts.Gates(*(jnp.asarray(x, jnp.float32) for x in (weights, probabilities, probabilities)))
    assert float(experts.load_balance(gates, jnp.asarray(rows, jnp.float32))) == pytest.approx(expected, abs=1e-6)
    logits = np.asarray(probabilities)
    partition = scipy.special.logsumexp(logits, axis=1) ** 2
    assert float(experts.z_loss(gates, jnp.asarray(rows, jnp.float32))) == pytest.approx(np.average(partition, weights=rows), abs=1e-6)


def test_the_mixture_is_of_probabilities_and_stays_finite():
    logits = RNG.normal(size=(5, 3, 4)).astype(np.float32)
    weights = np.asarray([[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5], [0, 0, 1], [0, 1, 0]], np.float32)
    expected = np.log((weights[..., None] * scipy.special.softmax(logits, axis=-1)).sum(1))
    np.testing.assert_allclose(experts.mixture(jnp.asarray(weights), jnp.asarray(logits)), expected, atol=1e-5)
    gradient = jax.grad(lambda w: jnp.sum(experts.mixture(w, jnp.asarray(logits))[:, 0]))(jnp.asarray(weights))
    assert np.isfinite(gradient).all()
