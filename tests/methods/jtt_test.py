"""Just train twice: the error set and its copies by hand, the second training against one that was written out."""

from __future__ import annotations

import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.methods import base
from cimrl_jax.train import loop
from cimrl_jax.types import Population, Stage
from tests import tiny

LOGITS = np.array([[2, 1, 0], [0, 1, 2], [0, 3, 1], [1, 0, 0], [0, 0, 5]], np.float32)
LABEL = np.array([0, 1, 1, 2, 2])
ERRORS = [False, True, False, True, False]


def told(logits):
    return tiny.told(logits, LABEL)


def second() -> Any:
    return tiny.method("jtt").stages[1]


def draw(errors, upweight):
    return second().draw(Population(0, LABEL, np.full(5, -1), {"errors": np.array(errors)}, {"upweight": upweight}))


def test_the_error_set_is_what_the_first_model_gets_wrong_and_the_second_begins_afresh():
    stage, fresh = second(), {"model": {"new": jnp.ones(2)}, "method": {}}
    old = {"model": {"old": jnp.ones(2)}, "method": {}}
    state, params = stage.enter({"errors": jnp.zeros(5, bool)}, {}, tiny.shallow(3), old, fresh, told(LOGITS))
    assert state["errors"].tolist() == ERRORS
    assert params is fresh and stage.reads == "train"


@pytest.mark.parametrize(("upweight", "copies"), [(0.0, 1), (1.0, 2), (3.4, 4), (50.0, 51)])
def test_an_error_is_drawn_once_and_upweight_further_times(upweight, copies):
    drawn = draw(ERRORS, upweight)
    assert np.bincount(drawn.rows, minlength=5).tolist() == [1, copies, 1, copies, 1]
    assert drawn.weights is None
    np.testing.assert_array_equal(draw([False] * 5, upweight).rows, np.arange(5))  # no errors: every row once


def test_killed_in_the_second_stage_and_resumed_equals_straight(tmp_path):
    program = tiny.program(tiny.method("jtt", first=0.3, upweight=4.0), steps=12)
    when = {"checkpoint_every": 7}
    straight = tiny.train(program, tmp_path, when=when)
    checkpoints = tmp_path / "checkpoints" / program.name
    shutil.rmtree(checkpoints / "12")
    assert program.boundaries() == [4, 12] and loop.restore(program, (tiny.RULE,), checkpoints)[0] == 7
    resumed = tiny.train(program, tmp_path, when=when)
    tiny.assert_equal(resumed._replace(clock={}), straight._replace(clock={}))
    errors = np.asarray(straight.final.method["errors"])
    assert errors.any() and not errors.all()
    assert '"error_share": 0.' in (tmp_path / "metrics.jsonl").read_text()


def test_without_errors_the_second_stage_is_erm_from_fresh_weights(tmp_path):
    record = tiny.method("jtt", first=0.5)
    first, last = record.stages

    def faultless(state, hyper, model, params, fresh, said):
        return second().enter(state, hyper, model, params, fresh, said.replace(logits=jax.nn.one_hot(said.label, 2)))

    plain = Stage(0.5, base.erm_loss, enter=lambda state, hyper, model, params, fresh, said: (state, fresh))
    right = tiny.train(tiny.program(record._replace(stages=(first, last._replace(enter=faultless)))), tmp_path / "right")
    erm = tiny.train(tiny.program(record._replace(stages=(first, plain))), tmp_path / "erm")
    tiny.assert_equal(right.final, erm.final)
    usual = tiny.train(tiny.program(record), tmp_path / "usual")
    assert any((x != y).any() for x, y in zip(tiny.arrays(usual.final.params), tiny.arrays(erm.final.params), strict=True))
