"""Attention against a transcription in numpy, and the laws of masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cimrl_jax.nn.transformer import Block, Sizes, attend, pool

SIZES = Sizes(dim=8, heads=2, mlp_ratio=2.0, dropout=0.0)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_attention_is_softmax_over_the_allowed_keys_only():
    q, k, v = draw(2, 3, 2, 4), draw(2, 5, 2, 4, seed=1), draw(2, 5, 2, 4, seed=2)
    mask = np.array([[1, 1, 0, 1, 0], [0, 0, 1, 0, 0]], bool)
    expected = np.zeros(q.shape)
    for i in range(2):
        for h in range(2):
            keys, values = np.asarray(k)[i, mask[i], h], np.asarray(v)[i, mask[i], h]
            e = np.exp(np.asarray(q)[i, :, h] @ keys.T / np.sqrt(4))
            expected[i, :, h] = e / e.sum(-1, keepdims=True) @ values
    np.testing.assert_allclose(attend(q, k, v, jnp.asarray(mask)), expected, atol=1e-5)


def test_attention_to_nothing_is_zero_with_zero_gradients():
    q, k, v = draw(1, 3, 2, 4), draw(1, 5, 2, 4, seed=1), draw(1, 5, 2, 4, seed=2)
    nothing = jnp.zeros((1, 5), bool)
    assert not attend(q, k, v, nothing).any()
    for gradient in jax.grad(lambda q, k, v: jnp.exp(attend(q, k, v, nothing)).sum(), (0, 1, 2))(q, k, v):
        assert not np.asarray(gradient).any()


def test_a_key_of_large_score_that_is_masked_changes_nothing():
    q, k, v = draw(1, 3, 2, 4), draw(1, 5, 2, 4, seed=1), draw(1, 5, 2, 4, seed=2)
    mask = jnp.array([[True, True, True, True, False]])
    np.testing.assert_array_equal(attend(q, k, v, mask), attend(q, k.at[:, 4].set(1e4), v.at[:, 4].set(1e4), mask))


def test_pool_is_the_mean_of_the_valid_tokens():
    x = draw(2, 3, 4)
    pooled = pool(x, jnp.array([[True, False, True], [False, False, False]]))
    np.testing.assert_allclose(pooled[0], (x[0, 0] + x[0, 2]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(pooled[1], 0)


def test_a_block_is_equivariant_to_the_order_of_tokens():
    x, mask = draw(2, 5, 8), jnp.array([[True] * 5, [True, False, True, True, False]])
    block = Block(SIZES)
    params = block.init(jax.random.key(0), x, mask, deterministic=True)
    order = np.array([3, 1, 4, 0, 2])
    straight = block.apply(params, x, mask, deterministic=True)
    shuffled = block.apply(params, x[:, order], mask[:, order], deterministic=True)
    np.testing.assert_allclose(shuffled, straight[:, order], atol=1e-5)  # type: ignore[index]
    assert np.abs(straight - x).max() > 0.1  # type: ignore[operator]


def test_a_block_with_another_source_reads_it_where_allowed():
    x, other = draw(2, 3, 8), draw(2, 4, 8, seed=1)
    mask, other_mask = jnp.ones((2, 3), bool), jnp.array([[True] * 4, [False] * 4])
    block = Block(SIZES)
    params = block.init(jax.random.key(0), x, mask, deterministic=True, other=other, other_mask=other_mask)

    def run(other):
        return block.apply(params, x, mask, deterministic=True, other=other, other_mask=other_mask)

    moved = np.abs(run(other) - run(-other)).max((1, 2))  # type: ignore[operator]
    assert moved[0] > 1e-3 and moved[1] == 0
