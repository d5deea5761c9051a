"""The refitted head against scikit-learn, and when it is used."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cimrl_jax.counterfactual import refit

N = 600


def make(seed=0, share=0.05, n=N):
    """(features, label, what a reference reads): the first feature says the label with noise, the second what is read, without."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2
    read = np.where(rng.random(n) < share, 1 - label, label)
    features = rng.normal(size=(n, 6))
    features[:, 0] += 3.0 * label
    features[:, 1] = 4.0 * read + 0.3 * rng.normal(size=n)
    return jnp.asarray(features, jnp.float32), jnp.asarray(label), read


def inferred(*reads):
    return jnp.stack([0.02 + 0.96 * jnp.eye(2)[np.asarray(read)] for read in reads], axis=1)


def head(*, cause, shortcut):
    kernel = np.zeros((6, 2), np.float32)
    kernel[0], kernel[1] = [-cause, cause], [-shortcut, shortcut]
    return jnp.asarray(kernel), -jnp.asarray(kernel).T @ jnp.array([1.5, 2.0, 0, 0, 0, 0])


def group_accuracies(kernel, bias, features, label, read):
    right = np.asarray(jnp.argmax(features @ kernel + bias, -1) == label)
    return np.array([right[(np.asarray(label) == y) & (read == c)].mean() for y in (0, 1) for c in (0, 1)])


def test_every_inferred_group_weighs_alike_and_who_is_sure_decides():
    _, label, read = make()
    weight = np.asarray(refit.balance(label, inferred(read)))
    masses = [weight[(np.asarray(label) == y) & (read == c)].sum() for y in (0, 1) for c in (0, 1)]
    np.testing.assert_allclose(masses, N / 4, rtol=1e-5)
    unsure = jnp.broadcast_to(jnp.array([0.55, 0.45]), (N, 2))
    both = jnp.stack([inferred(read)[:, 0], unsure], axis=1)
    np.testing.assert_allclose(refit.balance(label, both), weight, rtol=1e-5)
    np.testing.assert_allclose(refit.balance(label, inferred(np.zeros(N, int))), 1.0, rtol=1e-5)  # all read alike: by class


@pytest.mark.parametrize("classes", [2, 4])
def test_the_minimum_is_that_of_scikit_learn(classes):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 5)).astype(np.float32)
    label, weight = np.argmax(x[:, :classes] + 0.5 * rng.normal(size=(300, classes)), 1), rng.uniform(0.2, 3, 300)
    pull = 0.03
    found = refit.solve(jnp.asarray(x), jnp.asarray(label), jnp.asarray(weight, jnp.float32), jnp.zeros((5, classes)), jnp.float32(pull))
    own = LogisticRegression(C=1 / (pull * weight.sum()), fit_intercept=False, tol=1e-8, max_iter=5000)
    if classes == 2:  # scikit-learn has one regression for two classes: w1 - w0, whose penalty is |w1 - w0|^2 / 2 of both
        own.set_params(C=2 / (pull * weight.sum()))
    own.fit(x, label, sample_weight=weight)
    expected = own.coef_.T if classes > 2 else own.coef_[0]
    np.testing.assert_allclose(found - found.mean(1, keepdims=True) if classes > 2 else found[:, 1] - found[:, 0], expected, atol=2e-3)


def test_the_pull_holds_the_old_head():
    features, label, _ = make()
    old = jnp.asarray(np.random.default_rng(2).normal(size=(6, 2)), jnp.float32)
    far, near = (refit.solve(features, label, jnp.ones(N), old, jnp.float32(pull)) for pull in (0.001, 100.0))
    assert jnp.abs(far - old).max() > 1 and jnp.abs(near - old).max() < 0.02


def test_a_head_that_follows_the_shortcut_is_replaced():
    features, label, read = make()
    kernel, bias = head(cause=0.2, shortcut=1.0)
    before = group_accuracies(kernel, bias, features, label, read)
    found = refit.refit(jax.random.key(0), features, label, refit.balance(label, inferred(read)), kernel, bias)
    assert bool(found.used) and float(found.gain) > max(0.2, float(found.error))
    fresh, own, cue = make(seed=7)
    assert before.min() < 0.2 and group_accuracies(found.kernel, found.bias, fresh, own, cue).min() > 0.8


def test_a_head_that_does_not_follow_it_stays():
    features, label, _ = make(n=4000, share=0.5)  # where the shortcut says nothing
    best = refit.solve(jnp.concatenate([features, jnp.ones((4000, 1))], 1), label, jnp.ones(4000), jnp.zeros((7, 2)), jnp.float32(1e-3))
    features, label, read = make(seed=1)
    found = refit.refit(jax.random.key(0), features, label, refit.balance(label, inferred(read)), best[:-1], best[-1])
    assert not bool(found.used) and float(found.gain) < max(float(found.error), refit.LEAST)
    np.testing.assert_allclose(found.kernel, best[:-1], atol=1e-5)
    np.testing.assert_allclose(found.bias, best[-1], atol=1e-4)


@pytest.mark.parametrize("case", ["one class", "no conflict", "constant feature", "few rows"])
def test_scarce_data_gives_a_finite_head(case):
    features, label, read = make(n=4 if case == "few rows" else 60)
    label = jnp.zeros_like(label) if case == "one class" else label
    read = np.asarray(label) if case == "no conflict" else read
    features = features.at[:, 3].set(7.0) if case == "constant feature" else features
    found = refit.refit(jax.random.key(0), features, label, refit.balance(label, inferred(read)), *head(cause=0.5, shortcut=0.5))
    assert all(np.isfinite(np.asarray(x)).all() for x in found)
