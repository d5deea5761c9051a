"""The optimiser is optax's AdamW with a schedule that traced numbers scale."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cimrl_jax.train.optimizer import make_optimizer
from tests import tiny

STEPS = 20


def make(schedule: Any = "cosine", warmup=0.25, clip_norm=0.0):
    return make_optimizer(steps=STEPS, warmup=warmup, schedule=schedule, clip_norm=clip_norm)


def numbers(learning_rate=1.0, weight_decay=0.0):
    return {"learning_rate": jnp.float32(learning_rate), "weight_decay": jnp.float32(weight_decay)}


def rates(schedule, warmup=0.25):
    """The learning rate of each step: Adam's update on a constant gradient is the rate itself."""
    tx, params = make(schedule, warmup)(numbers()), {"model": jnp.ones(1)}
    update, state, found = jax.jit(tx.update), tx.init(params), []
    for _ in range(STEPS + 2):
        change, state = update({"model": jnp.full(1, 0.5)}, state, params)
        found.append(-float(change["model"][0]))
    return np.array(found)


def test_it_is_adamw_where_nothing_is_clipped():
    rng = np.random.default_rng(0)
    params = {"model": {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}, "method": {"kernel": rng.normal(size=(2, 2))}}
    params = jax.tree.map(jnp.asarray, jax.tree.map(np.float32, params))
    ours = make("constant", warmup=0.0, clip_norm=1e6)(numbers(0.1, 0.3))
    theirs = optax.adamw(0.1, weight_decay=0.3, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree))  # vectors do not decay

    def run(tx):
        @jax.jit
        def step(params, state, gradient):
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        own, state, draws = params, tx.init(params), np.random.default_rng(1)
        for _ in range(10):
            own, state = step(own, state, jax.tree.map(lambda x: jnp.asarray(draws.normal(size=x.shape), jnp.float32), params))
        return own

    tiny.assert_close(run(ours), run(theirs), rtol=1e-5, atol=1e-6)


def test_vectors_that_a_segment_has_in_one_array_do_not_decay_either():
    block = {"kernel": jnp.ones((2, 3, 3)), "bias": jnp.ones((2, 3))}
    params: Any = {"model": {"backbone": {"segment_0": {"query": block}}, "other": jnp.ones((2, 3))}}
    tx = make("constant", warmup=0.0)(numbers(0.1, 0.3))
    updates: Any = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)[0]
    moved = updates["model"]["backbone"]["segment_0"]["query"]
    assert not moved["bias"].any() and (moved["kernel"] < 0).all() and (updates["model"]["other"] < 0).all()


def test_sgd_is_what_pytorch_calls_sgd():
    rng = np.random.default_rng(0)
    weight, gradients = rng.normal(size=(2, 3)), rng.normal(size=(6, 2, 3))
    tx = make_optimizer(steps=6, warmup=0.0, schedule="constant", clip_norm=0.0, kind="sgd", momentum=0.8)(numbers(0.1, 0.05))
    own: Any = {"model": jnp.asarray(weight, jnp.float32)}
    state, buffer = tx.init(own), None
    for gradient in gradients:
        updates, state = tx.update({"model": jnp.asarray(gradient, jnp.float32)}, state, own)
        own = optax.apply_updates(own, updates)
        decayed = gradient + 0.05 * weight  # torch.optim.SGD: weight decay first, then the buffer, which starts as the first gradient
        buffer = decayed if buffer is None else 0.8 * buffer + decayed
        weight = weight - 0.1 * buffer
    np.testing.assert_allclose(own["model"], weight, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "falls"),
    [("cosine", lambda done: 0.5 * (1 + np.cos(np.pi * done))), ("linear", lambda done: 1 - done), ("constant", np.ones_like)],
)
def test_the_rate_rises_in_a_line_and_falls_to_0_at_the_last_step(schedule, falls):
    found = rates(schedule)
    np.testing.assert_allclose(found[:5], np.arange(1, 6) / 5, rtol=1e-3)
    np.testing.assert_allclose(found[5 : STEPS + 1], falls(np.arange(16) / 15), atol=1e-3)
    assert found[STEPS + 1] == pytest.approx(found[STEPS], abs=1e-6)  # a step too many changes nothing more


def test_without_warm_up_the_first_step_is_a_whole_one():
    assert rates("linear", warmup=0.0)[0] == pytest.approx(1.0, rel=1e-3)


def test_model_and_method_are_clipped_apart():
    # One step of Adam forgets the gradient's size, so the first moment tells what came through the clip.
    tx = make(clip_norm=1.0)(numbers())
    params = {"model": jnp.zeros(4), "method": jnp.zeros(4)}
    gradient = {"model": jnp.full(4, 0.2), "method": jnp.full(4, 100.0)}
    _, state = tx.update(gradient, tx.init(params), params)
    moment = {part: np.asarray(value) / 0.1 for part, value in optax.tree_utils.tree_get(state, "mu").items()}
    np.testing.assert_allclose(moment["model"], 0.2, rtol=1e-5)
    np.testing.assert_allclose(moment["method"], 0.5, rtol=1e-5)  # norm 1 over four numbers


def test_rate_and_decay_may_differ_between_vmapped_members():
    params, gradient = {"model": jnp.ones((2, 2))}, {"model": jnp.full((2, 2), 0.5)}

    def one(learning_rate, weight_decay):
        tx = make("constant", warmup=0.0)({"learning_rate": learning_rate, "weight_decay": weight_decay})
        updates: Any = tx.update(gradient, tx.init(params), params)[0]
        return updates["model"][0, 0]

    found = jax.vmap(one)(jnp.array([0.1, 0.2, 0.1]), jnp.array([0.0, 0.0, 1.0]))
    np.testing.assert_allclose(found, [-0.1, -0.2, -0.2], rtol=1e-5)
