"""The dense layer is the plain matrix product at every order of differentiation, alone and under vmap."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.nn.dense import Affine, Dense, outer, product, shift, stretch


def draw(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), ours, theirs)


def scalar(dot):
    return lambda x, w: jnp.sin(dot(jnp.tanh(dot(x, w)), w.T)).sum()


def second(dot):
    """A loss of both first derivatives: what a penalty on input gradients differentiates."""

    def penalty(x, w):
        gx, gw = jax.grad(scalar(dot), (0, 1))(x, w)
        return (gx**2).sum() + jnp.cos(gw).sum()

    return jax.grad(penalty, (0, 1))


def third(dot):
    return jax.grad(lambda x, w: sum((g**2).sum() for g in second(dot)(x, w)), (0, 1))


@pytest.mark.parametrize("order", [lambda dot: jax.grad(scalar(dot), (0, 1)), second, third])
def test_derivatives_are_those_of_the_plain_product(order):
    x, w = draw((5, 4)), draw((4, 3), 1)
    close(order(product)(x, w), order(jnp.dot)(x, w))


@pytest.mark.parametrize("x, g", [((7, 5), (7, 3)), ((7, 3), (7, 5))])
def test_the_weight_gradient_is_the_sum_of_outer_products_whichever_factor_is_wider(x, g):
    close(outer(draw(x), draw(g, 1)), draw(x).T @ draw(g, 1))


@pytest.mark.parametrize("ours, theirs", [(shift, jnp.add), (stretch, jnp.multiply)])
@pytest.mark.parametrize("axes", [None, (0, None), (0, 0)])
def test_shift_and_stretch_are_sum_and_product_with_a_row_up_to_second_derivatives(ours, theirs, axes):
    x, row = draw((2, 5, 4) if axes else (5, 4)), draw((2, 4) if axes == (0, 0) else (4,), 1)

    def penalty(op):
        def first(x, row):
            return jax.grad(lambda x, row: jnp.sin(op(op(x, row) ** 2, row)).sum(), (0, 1))(x, row)

        own = jax.grad(lambda x, row: sum((g**2).sum() for g in first(x, row)), (0, 1))
        return jax.vmap(own, axes)(x, row) if axes else own(x, row)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), penalty(ours), penalty(theirs))


@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)])
def test_second_derivatives_under_vmap(axes):
    x, w = draw((2, 5, 4) if axes[0] == 0 else (5, 4)), draw((2, 4, 3) if axes[1] == 0 else (4, 3), 1)
    close(jax.vmap(second(product), axes)(x, w), jax.vmap(second(jnp.dot), axes)(x, w))


@pytest.mark.parametrize("lead", [(), (5,), (2, 5), (2, 3, 5)])
def test_layer_equals_flax_and_so_do_its_gradients(lead):
    x = draw((*lead, 4))
    ours, theirs = Dense(3), nn.Dense(3)
    params = {"params": {"kernel": draw((4, 3), 1), "bias": draw((3,), 2)}}
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)) == jax.tree.map(jnp.shape, theirs.init(jax.random.key(0), x))
    close(ours.apply(params, x), theirs.apply(params, x))

    def gradients(layer):
        return jax.grad(lambda p, x: jnp.sin(layer.apply(p, x)).sum(), (0, 1))(params, x)

    close(gradients(ours), gradients(theirs))


def test_affine_equals_flaxs_norm_without_its_normalisation():
    x, params = draw((2, 5, 4)), {"params": {"scale": draw((4,), 1), "bias": draw((4,), 2)}}
    normal = nn.LayerNorm(use_scale=False, use_bias=False).apply({}, x)
    close(Affine().apply(params, normal), nn.LayerNorm().apply(params, x))


def test_per_example_gradients_by_vmap():
    x, w = draw((6, 4)), draw((4, 3), 1)

    def each(dot):
        return jax.vmap(jax.grad(lambda w, x: jnp.sin(dot(x[None], w)).sum()), (None, 0))(w, x)

    close(each(product), each(jnp.dot))


def test_compute_type_is_separate_from_the_parameters_type():
    layer = Dense(3, jnp.bfloat16)
    params = layer.init(jax.random.key(0), draw((2, 4)))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert layer.apply(params, draw((2, 4))).dtype == jnp.bfloat16  # type: ignore[union-attr]
    assert "bias" not in Dense(3, use_bias=False).init(jax.random.key(0), draw((2, 4)))["params"]
