"""Each loss against its definition in NumPy, SciPy or scikit-learn, and the laws that a mean over padded rows must keep."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import log_loss
from sklearn.metrics.pairwise import cosine_similarity

from cimrl_jax import losses

FEW = settings(max_examples=25, deadline=None)
LOGITS = hnp.arrays(np.float32, (3, 4), elements=st.floats(-8, 8, width=32))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def j(x):
    return jnp.asarray(x)


def test_weighted_cross_entropy_equals_scikit_learn():
    logits, label = 3 * draw(40, 5), np.random.default_rng(1).integers(0, 5, 40)
    weight = np.random.default_rng(2).uniform(0, 2, 40).astype(np.float32)
    ours = losses.masked_mean(losses.cross_entropy(j(logits), j(label)), j(weight))
    theirs = log_loss(label, scipy.special.softmax(logits.astype(np.float64), axis=1), sample_weight=weight, labels=range(5))
    assert float(ours) == pytest.approx(theirs, rel=1e-5)


def test_cross_entropy_of_huge_logits_is_exact():
    logits = jnp.array([[1e4, 0.0], [0.0, 1e4]])
    np.testing.assert_allclose(losses.cross_entropy(logits, jnp.array([0, 0])), [0.0, 1e4])


def test_a_row_of_weight_0_changes_neither_the_mean_nor_its_gradient_even_if_it_is_not_finite():
    values, weight = jnp.array([1.0, jnp.nan, 3.0, jnp.inf]), jnp.array([1.0, 0.0, 3.0, 0.0])
    mean, gradient = jax.value_and_grad(losses.masked_mean)(values, weight)
    assert mean == 2.5
    np.testing.assert_allclose(gradient, [0.25, 0.0, 0.75, 0.0])


def test_the_mean_of_nothing_is_0():
    assert losses.masked_mean(jnp.array([1.0, jnp.nan]), jnp.zeros(2)) == 0


@FEW
@given(hnp.arrays(np.float32, 6, elements=st.floats(-100, 100, width=32)), hnp.arrays(np.bool_, 6))
def test_padding_equals_leaving_out(values, kept):
    kept[0] = True
    ours = losses.masked_mean(j(values), j(kept.astype(np.float32)))
    assert float(ours) == pytest.approx(values[kept].astype(np.float64).mean(), abs=1e-4)


def test_generalised_cross_entropy_lies_between_cross_entropy_and_the_mean_absolute_error():
    logits, label = j(2 * draw(10, 3)), j(np.arange(10) % 3)
    p = np.take_along_axis(scipy.special.softmax(np.asarray(logits), axis=1), np.asarray(label)[:, None], 1)[:, 0]
    np.testing.assert_allclose(losses.generalized_cross_entropy(logits, label, 1.0), 1 - p, atol=1e-6)
    np.testing.assert_allclose(losses.generalized_cross_entropy(logits, label, 0.7), (1 - p**0.7) / 0.7, atol=1e-6)
    np.testing.assert_allclose(losses.generalized_cross_entropy(logits, label, 1e-3), losses.cross_entropy(logits, label), rtol=5e-3)


@FEW
@given(LOGITS, LOGITS)
def test_kl_equals_scipy_and_is_never_negative(first, second):
    ours = np.asarray(losses.kl_divergence(j(first), j(second)))
    p, q = (scipy.special.softmax(x.astype(np.float64), axis=1) for x in (first, second))
    np.testing.assert_allclose(ours, scipy.stats.entropy(p, q, axis=1), atol=1e-5, rtol=1e-4)
    assert (ours >= -1e-6).all()
    np.testing.assert_allclose(losses.kl_divergence(j(first), j(first + 3)), 0, atol=1e-5)  # a shift of all logits is no change


@FEW
@given(LOGITS, LOGITS)
def test_jensen_shannon_equals_scipy_and_is_symmetric_between_0_and_1(first, second):
    p, q = (scipy.special.softmax(x, axis=1) for x in (first, second))
    ours = np.asarray(losses.jensen_shannon(j(p), j(q)))
    expected = [jensenshannon(a, b, base=2) ** 2 for a, b in zip(p.astype(np.float64), q.astype(np.float64), strict=True)]
    np.testing.assert_allclose(ours, np.nan_to_num(expected), atol=1e-5)
    np.testing.assert_allclose(ours, losses.jensen_shannon(j(q), j(p)), atol=1e-6)
    assert (ours >= -1e-6).all() and (ours <= 1 + 1e-6).all()


@FEW
@given(LOGITS)
def test_entropy_equals_scipy(logits):
    expected = scipy.stats.entropy(scipy.special.softmax(logits.astype(np.float64), axis=1), axis=1)
    np.testing.assert_allclose(losses.entropy(j(logits)), expected, atol=1e-5)


@FEW
@given(LOGITS, LOGITS)
def test_a_product_of_experts_multiplies_probabilities(first, second):
    product = scipy.special.softmax(first.astype(np.float64), axis=1) * scipy.special.softmax(second.astype(np.float64), axis=1)
    ours = scipy.special.softmax(np.asarray(losses.product_of_experts(j(first), j(second))), axis=1)
    np.testing.assert_allclose(ours, product / product.sum(1, keepdims=True), atol=1e-5)


def test_an_expert_that_knows_nothing_changes_no_product():
    logits = draw(4, 3)
    alone, beside = (scipy.special.softmax(losses.product_of_experts(j(logits), *more), axis=1) for more in ((), (jnp.full((4, 3), 7.0),)))
    np.testing.assert_allclose(beside, alone, rtol=1e-5)


def test_jensen_shannon_of_disjoint_rows_is_1():
    np.testing.assert_allclose(losses.jensen_shannon(jnp.eye(2), jnp.eye(2)[::-1]), 1.0, rtol=1e-6)


def info_nce_by_hand(anchor, positive, temperature, usable):
    """The definition of InfoNCE with negatives from the originals alone, row by row."""
    z, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (anchor.astype(np.float64), positive.astype(np.float64)))
    rows = []
    for i in range(len(z)):
        near = np.exp(z[i] @ other[i] / temperature)
        rest = sum(np.exp(z[i] @ z[j] / temperature) for j in range(len(z)) if j != i and usable[j])
        rows.append(-np.log(near / (near + rest)))
    return np.array(rows)


def test_info_nce_equals_the_equation_and_padding_is_no_negative():
    anchor, positive = draw(7, 4), draw(7, 4, seed=1)
    weight = np.array([1, 1, 0, 2, 1, 0, 1], np.float32)
    ours = losses.info_nce(j(anchor), j(positive), temperature=0.3, weight=j(weight))
    np.testing.assert_allclose(ours, info_nce_by_hand(anchor, positive, 0.3, weight > 0), rtol=1e-4)
    spoiled = anchor.copy()
    spoiled[[2, 5]] = 1e3 * draw(2, 4, seed=2)
    after = losses.info_nce(j(spoiled), j(positive), temperature=0.3, weight=j(weight))
    np.testing.assert_array_equal(np.asarray(after)[weight > 0], np.asarray(ours)[weight > 0])


def test_info_nce_of_a_single_row_is_0():
    assert losses.info_nce(j(draw(1, 4)), j(draw(1, 4, seed=1)), temperature=0.1, weight=jnp.ones(1)) == pytest.approx(0, abs=1e-6)


def test_cosines_equal_scikit_learn():
    a, b = draw(6, 5), draw(3, 5, seed=1)
    np.testing.assert_allclose(losses.cosines(j(a), j(b)), cosine_similarity(a, b), atol=1e-6)
    gradient = jax.grad(lambda x: losses.cosines(x, j(b)).sum())(jnp.zeros((6, 5)))
    assert np.isfinite(gradient).all()


def test_squared_cosine():
    a, b = draw(6, 5), draw(6, 5, seed=1)
    expected = (a * b).sum(1) ** 2 / ((a**2).sum(1) * (b**2).sum(1))
    np.testing.assert_allclose(losses.squared_cosine(j(a), j(b)), expected, rtol=1e-5)
    np.testing.assert_allclose(losses.squared_cosine(j(a), j(-3 * a)), 1.0, rtol=1e-5)
    gradient = jax.grad(lambda x: losses.squared_cosine(x, j(b)).sum())(jnp.zeros((6, 5)))
    assert np.isfinite(gradient).all()  # an absent modality's code is the zero vector


def test_cross_correlation_equals_numpy_and_ignores_padding():
    a, b, weight = draw(12, 3), draw(12, 4, seed=1), np.array([1] * 9 + [0] * 3, np.float32)
    expected = np.mean(np.corrcoef(a[:9], b[:9], rowvar=False)[:3, 3:] ** 2)
    assert float(losses.cross_correlation(j(a), j(b), j(weight))) == pytest.approx(expected, rel=1e-4)
    a[9:] = 50.0
    assert float(losses.cross_correlation(j(a), j(b), j(weight))) == pytest.approx(expected, rel=1e-4)


def test_relative_difficulty_is_a_share_and_has_no_gradient():
    biased, main = jnp.array([1.0, 3.0, 0.0, 0.0]), jnp.array([3.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(losses.relative_difficulty(biased, main), [0.25, 0.75, 0.0, 0.0])
    gradients = jax.grad(lambda a, b: losses.relative_difficulty(a, b).sum(), argnums=(0, 1))(biased, main)
    assert not any(np.asarray(g).any() for g in gradients)
