"""The laws of scanned blocks; that they compute what was published is with the encoders' tests."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from cimrl_jax.errors import UserError
from cimrl_jax.nn.backbone import Blocks, Shape, merge, tensors
from cimrl_jax.nn.tuning import Tuning

PRE = Shape(width=4, depth=3, heads=2, hidden=5, layer_scale=True)
POST = Shape(width=4, depth=3, heads=2, hidden=6, norm="post", activation="swiglu", qkv_bias=False)
WHOLE = (range(3),)
STILL = Tuning()
LORA = Tuning(lora_rank=2, lora_alpha=3.0, lora_targets=("query", "narrow"))
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
MASK = jnp.array([[True, True, True], [True, True, False]])


@functools.cache
def compiled(shape, tuning, runs, **options) -> Any:
    def total(params, x, mask):
        y: Any = Blocks(shape, tuning, runs, **options).apply({"params": params}, x, mask)
        return jnp.sin(jnp.where(mask[..., None], y, 0)).sum(), y

    return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))


def run(shape, params, x=X, mask=MASK, tuning=STILL, runs=WHOLE, **options) -> Any:
    """Values, and gradients with respect to parameters and inputs."""
    return compiled(shape, tuning, runs, **options)(params, x, mask)


@functools.cache
def draw(shape, tuning=STILL, runs=WHOLE) -> Any:
    """Parameters, all of them random; LoRA's as training starts."""
    blocks = Blocks(shape, tuning, runs)
    params: Any = jax.jit(lambda key: blocks.init(key, X, MASK)["params"])(jax.random.key(0))
    rng = np.random.default_rng(1)
    moved = {path: leaf + (path[-1] != "lora_b") * rng.normal(size=leaf.shape) * 0.2 for path, leaf in sorted(flatten_dict(params).items())}
    return unflatten_dict({path: jnp.asarray(leaf, jnp.float32) for path, leaf in moved.items()})


def same(one, other, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), one, other)


def test_segments_one_after_the_other_are_one_scan():
    shape, params = PRE, draw(PRE)
    runs = (range(0, 1), range(1, 3))
    cut = {f"segment_{i}": jax.tree.map(lambda leaf, run=run: leaf[run.start : run.stop], params["segment_0"]) for i, run in enumerate(runs)}
    (_, whole), (by_params, by_input) = run(shape, params)
    (_, parts), (by_parts, by_input_too) = run(shape, cut, runs=runs)
    same(whole, parts)
    same(by_input, by_input_too)
    same(by_params["segment_0"], jax.tree.map(lambda *leaves: jnp.concatenate(leaves), by_parts["segment_0"], by_parts["segment_1"]))


def test_rematerialised_blocks_compute_the_same():
    same(run(POST, draw(POST)), run(POST, draw(POST), tuning=Tuning(remat=True)))


def test_every_block_has_its_own_random_start():
    params = jax.jit(lambda key: Blocks(PRE, LORA, WHOLE).init(key, X, MASK)["params"])(jax.random.key(0))["segment_0"]
    for name, leaf in (("query", "kernel"), ("query", "lora_a"), ("widen", "kernel")):
        assert np.abs(params[name][leaf][0] - params[name][leaf][1]).max() > 1e-3


def test_low_rank_additions_are_nothing_at_first_and_then_what_they_merge_into():
    params = draw(PRE, LORA)
    plain = merge(params, LORA)
    assert {path[1] for path in flatten_dict(params) if path[-1] == "lora_a"} == {"query", "narrow"}
    assert not any(path[-1].startswith("lora_") for path in flatten_dict(plain))
    (_, start), (gradient, _) = run(PRE, params, tuning=LORA)
    np.testing.assert_array_equal(start, run(PRE, plain)[0][1])
    # Where lora_b is zero, lora_a cannot move and lora_b must.
    assert not np.any(gradient["segment_0"]["query"]["lora_a"]) and np.all(np.any(gradient["segment_0"]["query"]["lora_b"], axis=(1, 2)))
    moved = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf + 0.3 if "lora_b" in str(path[-1]) else leaf, params)
    merged, own = merge(moved, LORA)["segment_0"], moved["segment_0"]
    np.testing.assert_allclose(merged["query"]["kernel"] - own["query"]["kernel"], 1.5 * own["query"]["lora_a"] @ own["query"]["lora_b"], atol=1e-6)
    changed = {path[0] for path, leaf in flatten_dict(merged).items() if np.any(leaf != flatten_dict(plain["segment_0"])[path])}
    assert changed == {"query", "narrow"}
    (_, after), _ = run(PRE, moved, tuning=LORA)
    same(after, run(PRE, merge(moved, LORA))[0][1], atol=1e-5)
    assert np.abs(after - start).max() > 1e-2


@pytest.mark.parametrize("shape", [PRE, POST])
def test_a_masked_token_has_no_influence_even_as_nan(shape):
    mask = jnp.array([[True, True, False], [False, False, False]])
    (_, y), (by_params, by_input) = run(shape, draw(shape), mask=mask)
    spoiled = X.at[0, 2].set(jnp.nan).at[1].set(jnp.inf)
    (_, again), gradients = run(shape, draw(shape), x=spoiled, mask=mask)
    np.testing.assert_array_equal(y[0, :2], again[0, :2])
    same((by_params, by_input), gradients)
    assert np.isfinite(y).all() and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(by_params))
    assert not by_input[0, 2].any() and not by_input[1].any() and by_input[0, 1].any()
    alone: Any = jax.jit(Blocks(shape, STILL, WHOLE).apply)({"params": draw(shape)}, X[0, :2], mask[0, :2])
    same(alone, y[0, :2])


def test_second_derivatives_are_those_of_finite_differences():
    blocks, params = Blocks(POST, LORA, WHOLE), draw(POST, LORA)

    def squared(step):
        moved = jax.tree.map(lambda leaf: leaf + step, params)
        gradient = jax.grad(lambda x: jnp.sin(blocks.apply({"params": moved}, x, MASK)).sum())(X)  # type: ignore[arg-type]
        return (gradient**2).sum()

    (value, slope), plain = jax.jit(jax.value_and_grad(squared))(0.0), jax.jit(squared)
    near = [plain(step) for step in (-1e-3, 1e-3)]
    assert np.isfinite(slope) and abs(slope) > 0.1 * value
    np.testing.assert_allclose((near[1] - near[0]) / 2e-3, slope, rtol=0.02)


def test_dropout_is_drawn_anew_in_every_block_and_only_in_training():
    shape = Shape(width=4, depth=2, heads=1, hidden=4)
    params, blocks = draw(shape, runs=(range(2),)), Blocks(shape, STILL, (range(2),), dropout=0.5)
    quiet: Any = jax.jit(blocks.apply)({"params": params}, X, MASK)
    train = jax.jit(lambda key: blocks.apply({"params": params}, X, MASK, deterministic=False, rngs={"dropout": key}))
    loud: Any = [train(jax.random.key(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(loud[0], loud[1])
    assert np.abs(loud[0] - loud[2]).max() > 1e-3 and np.abs(loud[0] - quiet).max() > 1e-3


def test_bfloat16_blocks_are_close_and_their_parameters_float32():
    blocks = Blocks(PRE, STILL, WHOLE, dtype=jnp.bfloat16)
    half: Any = jax.jit(blocks.apply)({"params": draw(PRE)}, X, MASK)
    np.testing.assert_allclose(half.astype(jnp.float32), run(PRE, draw(PRE))[0][1], atol=0.1)
    held = jax.eval_shape(lambda: blocks.init(jax.random.key(0), X, MASK))
    assert half.dtype == jnp.bfloat16 and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(held))


def test_tensors_are_named_block_by_block():
    names = {"query": "layer.{i}.q", "mlp_norm": "layer.{i}.norm", "mlp_scale": "layer.{i}.lambda"}
    found = {tensor.path: (tensor.names, tensor.form) for tensor in tensors(PRE, (range(0, 2), range(2, 3)), names)}
    assert found["segment_0", "query", "kernel"] == (("layer.0.q.weight", "layer.1.q.weight"), "transposed")
    assert found["segment_1", "query", "bias"] == (("layer.2.q.bias",), "same")
    assert found["segment_0", "mlp_norm", "scale"] == (("layer.0.norm.weight", "layer.1.norm.weight"), "same")
    assert found["segment_1", "mlp_scale"] == (("layer.2.lambda",), "same")
    assert len(found) == 10 and len(tensors(POST, WHOLE, names)) == 4  # without biases of the query


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match="3 attention heads do not divide a width of 4"):
        Shape(width=4, depth=1, heads=3, hidden=4)


@pytest.mark.parametrize("count", [3, 4])
def test_the_fused_kernel_is_given_what_it_takes(count, monkeypatch):
    """It runs on GPUs alone: here its rules are checked, and the answer is that of plain attention."""
    plain = jax.nn.dot_product_attention

    def fused(query, key, value, *, mask, implementation):
        assert implementation == "cudnn" and query.dtype == jnp.bfloat16 and query.shape == key.shape == value.shape
        assert query.shape[1] % 2 == 0 and query.shape[3] % 8 == 0 and mask.shape == (2, 1, query.shape[1], key.shape[1])
        return plain(query, key, value, mask=mask)

    shape, runs = Shape(width=16, depth=1, heads=2, hidden=4), (range(1),)
    x, mask = jnp.asarray(np.random.default_rng(0).normal(size=(2, count, 16)), jnp.float32), jnp.ones((2, count), bool).at[1, 1:].set(False)
    ours = Blocks(shape, STILL, runs, dtype=jnp.bfloat16)
    params: Any = jax.jit(ours.init)(jax.random.key(0), x, mask)
    expected = ours.apply(params, x, mask)
    monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found: Any = Blocks(shape, Tuning(attention="cudnn"), runs, dtype=jnp.bfloat16).apply(params, x, mask)
    np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(expected, np.float32))


def test_the_fused_kernel_is_refused_where_it_cannot_run(monkeypatch):
    with pytest.raises(UserError, match="attention=cudnn is for GPUs, in bfloat16"):
        run(PRE, draw(PRE), tuning=Tuning(attention="cudnn"))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match="heads of a width that 8 divides, not 2"):
        run(PRE, draw(PRE), tuning=Tuning(attention="cudnn"), dtype=jnp.bfloat16)
