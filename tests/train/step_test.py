"""Many steps in one call are the same steps one by one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.train import step as fused
from tests import tiny


@pytest.fixture(scope="module")
def case():
    program = tiny.program(tiny.method("erm"), seeds=(0, 1, 2), augment=True)
    step = fused.make_step(program.model, program.method.stages[0], program.stage_optimizer(0), augment=True)
    return program, step, program.feed()(0, 3), tiny.members(program)


def test_a_chunk_equals_its_steps_one_by_one_and_averages_their_metrics(case):
    _, step, (columns, rows), states = case
    chunk = jax.jit(fused.make_chunk(step, fused.resident))
    after, averages = chunk(states, (columns, rows), jnp.int32(3))
    alone = jax.jit(step)
    for member in range(3):
        state, seen = jax.tree.map(lambda x, i=member: x[i], states), []
        for k in range(3):
            state, metrics = alone(state, jax.tree.map(lambda x, k=k, i=member: x[rows[k, i]], columns))
            seen.append(metrics)
        tiny.assert_close(jax.tree.map(lambda x, i=member: x[i], after.params), state.params, rtol=1e-5, atol=1e-6)
        assert int(after.step[member]) == 3
        for name, value in averages.items():
            np.testing.assert_allclose(value[member], np.mean([float(m[name]) for m in seen]), rtol=1e-4)


def test_a_shorter_chunk_runs_the_same_program_and_ignores_what_fills_it_up(case):
    _, step, (columns, rows), states = case
    traces = []
    whole = fused.make_chunk(step, fused.resident)
    chunk = jax.jit(lambda *arguments: traces.append(len(traces)) or whole(*arguments))
    two, _ = chunk(states, (columns, rows), jnp.int32(2))
    filled, _ = chunk(states, (columns, rows.at[2].set(0)), jnp.int32(2))
    tiny.assert_equal(two, filled)
    three, _ = chunk(states, (columns, rows), jnp.int32(3))
    last, _ = chunk(two, (columns, rows[jnp.array([2, 0, 0])]), jnp.int32(1))
    tiny.assert_equal(three, last)
    assert len(traces) == 1


@pytest.mark.parametrize("together", [1, 2, 3])
def test_members_one_after_the_other_equal_members_at_once(case, together):
    _, step, data, states = case
    at_once, averages = jax.jit(fused.make_chunk(step, fused.resident))(states, data, jnp.int32(3))
    after, others = jax.jit(fused.make_chunk(step, fused.resident, together=together))(states, data, jnp.int32(3))
    tiny.assert_close(after, at_once, rtol=1e-5, atol=1e-6)
    tiny.assert_close(others, averages, rtol=1e-5, atol=1e-6)


def test_a_second_network_is_paced_as_the_model_is():
    source = tiny.source()
    program = tiny.program(tiny.method("lff"), source)
    state = jax.tree.map(lambda x: x[0], tiny.members(program))
    shares = jax.tree.map(lambda x: np.float32(0.5), state.params["model"])
    changes = []
    for model in (program.model, program.model._replace(rates=shares)):
        step = fused.make_step(model, program.method.stages[0], program.stage_optimizer(0), augment=False)
        after, _ = step(state, tiny.batch(source))
        changes.append(jax.tree.map(jnp.subtract, after.params, state.params))
    whole, half = changes
    assert any(x.any() for x in tiny.arrays(whole["method"]["biased"]))
    tiny.assert_close(half, jax.tree.map(lambda x: x / 2, whole), rtol=1e-3, atol=1e-7)


def test_every_step_and_member_has_random_numbers_of_its_own(case):
    program, _, _, states = case
    seen = []

    def loss(state, hyper, model, params, batch, key):
        seen.append(jax.random.key_data(key))
        return jnp.zeros(()), (state, {})

    step = fused.make_step(program.model, program.method.stages[0]._replace(loss=loss), program.stage_optimizer(0), augment=False)
    for member in (0, 1):
        state = jax.tree.map(lambda x, i=member: x[i], states)
        for _ in range(2):
            state, _ = step(state, tiny.batch(program.source))
    assert len({tuple(np.asarray(key)) for key in seen}) == 4
