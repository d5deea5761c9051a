"""A sweep's cost: what is counted, and what a process tells of itself."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import sweep
from cimrl_jax.errors import UserError
from cimrl_jax.train import step as fused
from tests import tiny


def test_the_whole_grid_of_weights_is_one_program_compiled_once(tmp_path):
    (record,) = sweep.grid(tmp_path, small=True)
    assert record["members"] == 8 and record["programs"] == 1 and record["compiles"] == 1 and record["traces"] == 1
    json.dumps(record)


def test_traces_and_compiles_are_counted():
    """A number that is closed over, as if it were not traced, costs a trace and a compile for each of its values."""
    own = tiny.program(tiny.method("erm"), seeds=(0,))
    states, data = tiny.members(own), tiny.feed(own)(0, 1)
    with sweep.counted() as counts:
        for rate in map(jnp.float32, (0.1, 0.2)):

            def optimizer(hyper, rate=rate):
                return own.stage_optimizer(0)({**hyper, "learning_rate": rate})

            step = fused.make_step(own.model, own.method.stages[0], optimizer, augment=False)

            def chunk(states, data, count, step=step):
                return fused.make_chunk(step, fused.resident)(states, data, count)

            jax.jit(chunk).lower(states, data, jnp.int32(1)).compile()
    assert counts["compiles"] == 2 and counts["traces"] == 2


def test_a_config_s_length_is_reckoned_from_the_time_of_a_step():
    ran = sweep.Ran(seconds=30.0, processor=40.0, resident=None, in_steps=10.0, step=0.5, compiling=5.0)
    assert sweep._at(ran, 20) == 30.0 and sweep._at(ran, 600) == 320.0


def test_a_process_that_fails_says_why(tmp_path):
    plan = sweep.SMALL._replace(config=str(tmp_path / "none.py"))
    with pytest.raises(UserError, match="none.py"):
        sweep.start(plan, tmp_path, tmp_path / "cache")


def test_the_grid_is_that_of_the_study():
    assert set(sweep.grids()) == {f"method.cimrl.{weight}" for weight in ("w_ci", "w_md", "w_if")}
