"""Empirical risk minimisation is plain training: optax on the mean cross entropy, nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cimrl_jax.data.pipeline import Order
from tests import tiny


def test_training_equals_a_plain_optax_loop(tmp_path):
    own, steps = tiny.source(), 12
    program = tiny.program(tiny.method("erm"), own, steps=steps, seeds=(3,))
    trained = tiny.train(program, tmp_path)

    model = program.model
    peak, rise = 0.05, 1  # the warm-up is a tenth of 12 steps, rounded

    rates = [peak] + [peak * 0.5 * (1 + np.cos(np.pi * (k - rise) / (steps - rise))) for k in range(1, steps)]
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(lambda k: jnp.asarray(rates, jnp.float32)[k], weight_decay=1e-3, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    )

    @jax.jit
    def step(params, state, batch):
        def loss(params):
            logits = model.decide(params, model.encode(params, model.embed(params, batch.inputs, batch.present))).logits
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch.label).mean()

        gradient = jax.grad(loss)(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = model.init(jax.random.fold_in(jax.random.key(3), 0))
    state = tx.init(params)
    for rows in Order(len(own), 4, 3).rows(0, steps):
        params, state = step(params, state, tiny.batch(own, rows))
    final = jax.tree.map(lambda x: x[0], trained.final.params["model"])
    tiny.assert_close(final, params, rtol=1e-4, atol=1e-5)


def test_it_has_neither_parameters_nor_numbers_of_its_own():
    record = tiny.method("erm")
    own = tiny.source()
    assert record.init(jax.random.key(0), tiny.spec(own)) == ({}, {})
    assert record.hyper == {} and not record.needs_groups and record.stages[0].draw is None
