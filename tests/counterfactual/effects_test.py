"""Fusions, effects and the constant's gradient against the papers' equations in NumPy."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cimrl_jax.counterfactual import effects

NAMES, C, ROWS, CLASSES = ("a", "b", "c"), 0.4, 5, 3
RNG = np.random.default_rng(0)
FUSED = RNG.normal(size=(ROWS, CLASSES)).astype(np.float32)
LOGITS = {m: RNG.normal(size=(ROWS, CLASSES)).astype(np.float32) for m in NAMES}
THERE = {"a": np.ones(ROWS, bool), "b": np.arange(ROWS) % 2 > 0, "c": np.zeros(ROWS, bool)}
PATHS = {m: effects.Path(jnp.asarray(LOGITS[m]), jnp.asarray(THERE[m])) for m in NAMES}
SUBSETS = [subset for size in range(4) for subset in itertools.combinations(NAMES, size)]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def fuse_by_hand(fusion, parts):
    if fusion == "sum":
        return np.log(sigmoid(sum(parts)))
    if fusion == "hm":
        p = np.prod([sigmoid(z) for z in parts], axis=0)
        return np.log(p) - np.log1p(p)
    return sum(np.log(scipy.special.softmax(z, axis=1)) for z in parts)


def y(fusion, treated, mediated, c=C):
    own = [np.where(THERE[m][:, None] & (m in treated), LOGITS[m].astype(np.float64), c) for m in NAMES]
    return fuse_by_hand(fusion, [FUSED.astype(np.float64) if mediated else np.full(FUSED.shape, c), *own])


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
@pytest.mark.parametrize("fusion", ["sum", "hm", "poe"])
def test_the_effects_of_every_subset_are_the_equations(fusion, subset):
    found = effects.effects(fusion, jnp.asarray(FUSED), PATHS, jnp.float32(C), subset)
    none = y(fusion, (), False)
    np.testing.assert_allclose(found.total, y(fusion, NAMES, True) - none, atol=1e-5)
    np.testing.assert_allclose(found.direct, y(fusion, subset, False) - none, atol=1e-5)
    np.testing.assert_allclose(found.indirect, y(fusion, NAMES, True) - y(fusion, subset, False), atol=1e-5)


@pytest.mark.parametrize("fusion", ["sum", "hm", "poe"])
def test_named_effects_say_each_subset_once(fusion):
    told = effects.named(fusion, jnp.asarray(FUSED), PATHS, jnp.float32(C), [("b",), ("a", "b")])
    assert list(told) == ["TE", "NDE b", "TIE b", "NDE a+b", "TIE a+b"]
    for name in ("b", "a+b"):
        np.testing.assert_allclose(told["TE"], told[f"NDE {name}"] + told[f"TIE {name}"], atol=1e-5)


def test_without_direct_paths_the_indirect_effect_of_experts_is_the_fused_paths_own():
    found = effects.effects("poe", jnp.asarray(FUSED), PATHS, jnp.float32(C), NAMES).indirect
    expected = scipy.special.log_softmax(FUSED, axis=1) + np.log(CLASSES)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("fusion", ["sum", "hm"])
def test_the_constants_gradient_is_that_of_its_cross_entropy(fusion):
    def ours(c):
        given = effects.outcome(fusion, jnp.asarray(FUSED), PATHS, c, NAMES)  # its gradient is stopped
        return jnp.mean(effects.constant_loss(given, effects.outcome(fusion, jnp.asarray(FUSED), PATHS, c, NAMES, mediated=False)))

    def by_hand(c):
        p = scipy.special.softmax(y(fusion, NAMES, True), axis=1)
        return np.mean(-(p * scipy.special.log_softmax(y(fusion, NAMES, False, c), axis=1)).sum(1))

    assert float(ours(jnp.float32(C))) == pytest.approx(by_hand(C), abs=1e-5)
    assert float(jax.grad(ours)(jnp.float32(C))) == pytest.approx((by_hand(C + 1e-4) - by_hand(C - 1e-4)) / 2e-4, abs=1e-4)
    assert abs(by_hand(C + 1e-4) - by_hand(C - 1e-4)) / 2e-4 > 1e-3
