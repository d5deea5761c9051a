"""Training as the host sees it: the stages, selection, and that stopping anywhere changes nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cimrl_jax.data.pipeline import Order
from cimrl_jax.errors import UserError
from cimrl_jax.methods import base
from cimrl_jax.train import loop
from cimrl_jax.train import step as fused
from cimrl_jax.types import Method, Rows, Stage
from tests import tiny


def two_stages(traces=None):
    """ERM, then again from fresh parameters with examples weighted by how often the first stage drew them: state that the second stage needs."""
    traces = [] if traces is None else traces
    erm = base.erm_loss

    def count(state, hyper, model, params, batch, key):
        traces.append("first")
        loss, (_, metrics) = erm({}, hyper, model, params, batch, key)
        return loss, (state | {"drawn": state["drawn"].at[batch.index].add(batch.weight)}, metrics)

    def weigh(state, hyper, model, params, batch, key):
        traces.append("second")
        batch = dataclasses.replace(batch, weight=batch.weight * (1 + state["drawn"][batch.index]))
        loss, (_, metrics) = erm({}, hyper, model, params, batch, key)
        return loss, (state, metrics)

    def enter(state, hyper, model, params, fresh, told):
        assert told is None
        return {"drawn": jnp.sqrt(state["drawn"]), "fresh": fresh["model"]["combined"]}, fresh

    stages = (Stage(1.0, count), Stage(1.0, weigh, enter))

    def init(key, spec):
        return {}, {"drawn": jnp.zeros(spec.num_examples), "fresh": jnp.zeros((15, 2))}

    return Method(init=init, stages=stages, hyper={}, explain=base.explain)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_stages_end_at_their_share_of_the_steps():
    method = tiny.method("erm")
    shares = [method.stages[0]._replace(share=share) for share in (1.0, 1.0, 2.0)]
    program = tiny.program(method._replace(stages=tuple(shares)), steps=12)
    assert program.boundaries() == [3, 6, 12]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder, traces = tmp_path_factory.mktemp("straight"), []
    trained = tiny.train(tiny.program(two_stages(traces)), folder, when={"eval_every": 4})
    return trained, folder, traces


def test_each_stage_is_traced_once_however_long_its_chunks(straight, tmp_path):
    _, _, traces = straight  # chunks of 3, 1, 1, then 1, 2, 1 and 1 steps
    short: list[str] = []
    tiny.train(tiny.program(two_stages(short), steps=2, chunk=3), tmp_path)  # one chunk a stage
    assert traces == short and {"first", "second"} == set(traces)


@pytest.mark.parametrize(("free", "given", "together"), [(None, 0, 6), (1e15, 0, 6), (0.0, 0, 1), (0.0, 4, 4)])
def test_as_many_members_at_a_time_as_fit_the_free_memory_and_the_same_comes_out(monkeypatch, free, given, together):
    program = tiny.program(tiny.method("erm"), seeds=tuple(range(6)), together=given)
    states, feed = tiny.members(program), tiny.feed(program)
    monkeypatch.setattr(loop, "_apart", lambda program: False)  # as on an accelerator
    expected, _ = loop.compile_chunk(program, 0, states, feed).run(jax.tree.map(jnp.copy, states), feed(0, 3), 3)
    monkeypatch.setattr(loop, "free_bytes", lambda devices: free)
    chunk = loop.compile_chunk(program, 0, states, feed)
    assert chunk.at_a_time == together
    after, _ = chunk.run(states, feed(0, 3), 3)
    tiny.assert_close(after.params, expected.params, rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere members are vmapped")
@pytest.mark.parametrize("resident", ["yes", "no"])
@pytest.mark.parametrize("name", ["erm", "lff"])  # without a state of the method's own, and with one
def test_on_the_cpu_each_member_is_on_its_own_and_the_same_comes_out(monkeypatch, name, resident):
    monkeypatch.setattr(loop, "cores", lambda: 2)
    program = tiny.program(tiny.method(name), seeds=(3, 1, 4, 1, 5), resident=resident)
    vmapped = dataclasses.replace(program, together=program.members)
    states, feed = tiny.members(program), tiny.feed(program)
    expected, others = loop.compile_chunk(vmapped, 0, states, feed).run(jax.tree.map(jnp.copy, states), feed(0, 3), 3)
    chunk = loop.compile_chunk(program, 0, states, feed)
    assert chunk.at_a_time == 2
    after, metrics = chunk.run(states, feed(0, 3), 3)
    tiny.assert_equal(jax.random.key_data(after.key), jax.random.key_data(expected.key))
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), after) == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), expected)
    tiny.assert_close((after.params, after.method, metrics), (expected.params, expected.method, others), rtol=1e-5, atol=1e-6)
    again, _ = chunk.run(after, feed(3, 2), 2)
    assert again.step.tolist() == [5] * 5


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere members are vmapped")
def test_a_member_that_fails_fails_the_chunk(monkeypatch):
    program = tiny.program(tiny.method("erm"), seeds=(0, 1, 2))
    states, feed = tiny.members(program), tiny.feed(program)
    chunk, whole = loop.compile_chunk(program, 0, states, feed), feed.member

    def member(data, i):
        if i == 1:
            raise MemoryError(f"of member {i}")
        return whole(data, i)

    monkeypatch.setattr(feed, "member", member)
    with pytest.raises(MemoryError, match="of member 1"):
        chunk.run(states, feed(0, 3), 3)


def test_the_second_stage_enters_with_fresh_parameters_and_the_firsts_state(straight):
    trained, _, _ = straight
    program = tiny.program(two_stages())
    for member, seed in enumerate(program.seeds):
        drawn = np.bincount(Order(len(program.source), 4, seed).rows(0, 5).ravel(), minlength=len(program.source))
        np.testing.assert_allclose(trained.final.method["drawn"][member], np.sqrt(drawn), rtol=1e-6)
    fresh, first = (np.asarray(tree) for tree in (trained.final.method["fresh"], tiny.members(program).params["model"]["combined"]))
    assert (np.abs(fresh - first).max(axis=(1, 2)) > 0.1).all() and np.abs(fresh[0] - fresh[1]).max() > 0.1
    counts = optax.tree_utils.tree_get(trained.final.opt_state, "count", filtering=lambda path, value: "ScaleByAdamState" in str(path))
    np.testing.assert_array_equal(counts, 5)
    assert [line["step"] for line in lines(straight[1]) if line["seed"] == 0 and "split" not in line] == [3, 4, 5, 6, 8, 9, 10]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stop", [3, 5, 8])  # inside the first stage, at its end, inside the second
def test_stopped_by_a_signal_and_resumed_equals_straight(straight, tmp_path, stop, number):
    program, when, before = tiny.program(two_stages()), {"eval_every": 4}, signal.getsignal(number)
    with pytest.raises(loop.Interrupted) as caught:
        tiny.train(program, tmp_path, when=when, watch=lambda done: os.kill(os.getpid(), number) if done == stop else None)
    assert caught.value.code == 128 + number
    assert loop.restore(program, (tiny.RULE,), tmp_path / "checkpoints" / program.name)[0] == stop
    resumed = tiny.train(program, tmp_path, when=when)
    assert resumed.clock["steps_timed"] == 10
    tiny.assert_equal(resumed._replace(clock={}), straight[0]._replace(clock={}))
    assert lines(tmp_path) == lines(straight[1])
    assert signal.getsignal(number) == before


def test_killed_between_checkpoints_and_resumed_equals_straight(straight, tmp_path):
    program, when = tiny.program(two_stages()), {"eval_every": 4, "checkpoint_every": 4}

    def die(done):
        if done == 8:
            raise MemoryError

    with pytest.raises(MemoryError):
        tiny.train(program, tmp_path, when=when, watch=die)
    assert loop.restore(program, (tiny.RULE,), tmp_path / "checkpoints" / program.name)[0] == 4
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"method": "another", "seed": 0, "step": 9}\n{"method": "shallow", "se')  # another method's line, and one cut off by the kill
    resumed = tiny.train(program, tmp_path, when=when)
    tiny.assert_equal(resumed._replace(clock={}), straight[0]._replace(clock={}))
    assert [line for line in lines(tmp_path) if line["method"] == "shallow"] == lines(straight[1])
    assert [line["step"] for line in lines(tmp_path) if line["method"] == "another"] == [9]


def test_a_finished_run_trains_no_further(straight, tmp_path):
    trained, folder, _ = straight
    again = tiny.train(tiny.program(two_stages()), folder, when={"eval_every": 4})
    assert again.clock == trained.clock
    tiny.assert_equal(again._replace(clock={}), trained._replace(clock={}))
    done, restored = loop.restore(tiny.program(two_stages()), (tiny.RULE,), folder / "checkpoints" / "shallow")
    assert done == 10 and restored.clock == trained.clock
    tiny.assert_equal(restored._replace(clock={}), trained._replace(clock={}))


def test_a_second_signal_is_obeyed_at_once(tmp_path):
    def twice(done):
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        tiny.train(tiny.program(tiny.method("erm")), tmp_path, watch=twice)
    assert not isinstance(caught.value, loop.Interrupted)


def test_training_runs_in_a_thread_which_can_set_no_signal_handlers(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(tiny.train(tiny.program(tiny.method("erm"), steps=3), tmp_path)))
    thread.start()
    thread.join(timeout=120)
    assert found and int(found[0].final.step[0]) == 3


def test_the_best_of_the_late_evaluations_is_selected_and_of_equals_the_later(tmp_path):
    scores = {2: [-np.inf, -np.inf], 4: [0.5, 0.1], 6: [0.7, 0.1], 8: [0.6, 0.1], 10: [0.1, 0.0]}
    seen = {}

    def score(states, step):
        seen[step] = jax.tree.map(np.asarray, states.params["model"])
        return {tiny.RULE: np.array(scores[step])}, [{"accuracy": value} for value in scores[step]]

    trained = tiny.train(tiny.program(tiny.method("erm")), tmp_path, when={"eval_every": 2, "score": score})
    selected = trained.selected[tiny.RULE]
    np.testing.assert_array_equal(selected.step, [6, 8])
    np.testing.assert_allclose(selected.score, [0.7, 0.1])
    for member, step in enumerate((6, 8)):
        expected = jax.tree.map(lambda x, i=member: x[i], seen[step])
        tiny.assert_equal(jax.tree.map(lambda x, i=member: x[i], selected.params["model"]), expected)
    shown = [(line["step"], line["accuracy"]) for line in lines(tmp_path) if line.get("split") == "validation" and line["seed"] == 0]
    assert shown == [(step, values[0] if np.isfinite(values[0]) else None) for step, values in scores.items()]


def test_figures_that_are_not_finite_are_written_as_null(tmp_path):
    own = tiny.source()
    own.inputs["left"][:] = np.nan
    trained = tiny.train(tiny.program(tiny.method("erm"), own, steps=3), tmp_path)
    assert lines(tmp_path)[0]["loss"] is None and lines(tmp_path)[0]["accuracy"] is not None
    assert trained.clock["steps_timed"] == 3


def three_stages():
    """ERM on the even rows; the head alone on those rows that the model then got wrong; last the head solved from what it says of validation."""

    def even(population):
        return Rows(np.flatnonzero(np.arange(len(population.label)) % 2 == 0))

    def wrong(state, hyper, model, params, fresh, told):
        assert told.features.shape == (len(told.label), 0)
        missed = jnp.argmax(told.logits, -1) != told.label
        return state | {"missed": missed, "groups": jnp.max(told.group), "kept": params["model"]["inward"]["left"]}, params

    def errors(population):
        return Rows(np.repeat(np.arange(len(population.label)), 1 + 3 * population.state["missed"]))

    def solve(state, hyper, model, params, fresh, told):
        target = jax.nn.one_hot(told.label, told.logits.shape[-1])
        kernel = jnp.linalg.solve(told.features.T @ told.features + jnp.eye(told.features.shape[1]), told.features.T @ target)
        return state, params | {"model": model.head.put(params["model"], kernel, jnp.zeros(kernel.shape[1]))}

    erm = base.erm_loss
    stages = (
        Stage(0.4, erm, draw=even),
        Stage(0.6, erm, enter=wrong, reads="train", draw=errors, trains="head"),
        Stage(0.0, None, enter=solve, reads="validation"),
    )

    def init(key, spec):
        return {}, {"missed": jnp.zeros(spec.num_examples, bool), "groups": jnp.zeros((), jnp.int32), "kept": jnp.zeros((4, tiny.DIM))}

    return Method(init=init, stages=stages, hyper={}, explain=base.explain)


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("staged")
    program, seen = tiny.program(three_stages()), {}
    return program, tiny.train(program, folder, when={"eval_every": 2, "checkpoint_every": 2}, watch=lambda done: seen.update({done: None})), folder


def test_a_stage_is_told_of_the_split_it_reads_and_draws_the_rows_it_names(staged):
    program, trained, _ = staged
    missed = np.asarray(trained.final.method["missed"])
    assert missed.shape == (2, 24) and 0 < missed.sum() < 48
    assert (np.asarray(trained.final.method["groups"]) == -1).all()  # the method declares no groups
    feed = tiny.feed(program)
    assert (np.asarray(feed(0, 3)[1]) % 2 == 0).all()
    feed.enter(program.method.stages[1].draw, [{"missed": own} for own in missed], program.hyper)
    for k, (own, seed) in enumerate(zip(missed, program.seeds, strict=True)):
        rows = np.repeat(np.arange(24), 1 + 3 * own)
        np.testing.assert_array_equal(feed(4, 3)[1][:, k], rows[Order(len(rows), 4, seed).rows(4, 3)])


def test_a_stage_that_trains_the_head_leaves_all_else_bit_for_bit(staged):
    program, trained, _ = staged
    before = np.asarray(trained.final.method["kept"])
    np.testing.assert_array_equal(np.asarray(trained.final.params["model"]["inward"]["left"]), before)
    assert np.abs(before - np.asarray(tiny.members(program).params["model"]["inward"]["left"])).max() > 0.01  # the first stage moved it
    moved = fused.make_step(program.model, program.method.stages[1], program.stage_optimizer(1), augment=False)
    member = jax.tree.map(lambda x: x[0], trained.final)
    member = dataclasses.replace(member, opt_state=program.stage_optimizer(1)(member.hyper).init(member.params))  # the schedule's is at its end
    after, _ = jax.jit(moved)(member, tiny.batch(program.source))
    paths, leaves = jax.tree_util.tree_leaves_with_path(member.params), jax.tree.leaves(after.params)
    changed = {jax.tree_util.keystr(path) for (path, x), y in zip(paths, leaves, strict=True) if (x != y).any()}
    assert changed == {"['model']['combined']", "['model']['bias']"}


def test_a_last_stage_without_steps_is_entered_at_the_end_and_selected(staged):
    program, trained, folder = staged
    told = tiny.reader(program)(trained.final, "validation")
    target = np.eye(2)[np.asarray(told.label)]
    for member in range(2):
        x = np.asarray(told.features[member], np.float64)
        kernel = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ target)
        np.testing.assert_allclose(trained.selected[tiny.RULE].params["model"]["combined"][member], kernel, atol=1e-4)
    np.testing.assert_array_equal(trained.selected[tiny.RULE].step, 10)
    assert {line["step"] for line in lines(folder)} >= {4, 10}


@pytest.mark.parametrize("stop", [2, 4, 6, 8])
def test_stages_that_read_and_solve_resume_to_the_same(staged, tmp_path, stop):
    program, straight, _ = staged

    def die(done):
        if done > stop:
            raise MemoryError

    when = {"eval_every": 2, "checkpoint_every": 2}
    with pytest.raises(MemoryError):
        tiny.train(program, tmp_path, when=when, watch=die)
    resumed = tiny.train(program, tmp_path, when=when)
    tiny.assert_equal(resumed._replace(clock={}), straight._replace(clock={}))


def test_a_stage_without_rows_is_refused(tmp_path):
    erm = tiny.method("erm")
    stage = erm.stages[0]._replace(draw=lambda population: Rows(np.array([], np.int64)))
    with pytest.raises(UserError, match=r"the training split \(24 rows\) leaves no row to train on"):
        tiny.train(tiny.program(erm._replace(stages=(stage,))), tmp_path)


def test_every_stage_has_a_schedule_and_numbers_of_its_own():
    erm = tiny.method("erm")
    stages = (Stage(0.3, base.erm_loss), Stage(0.7, base.erm_loss, learning_rate="late"))
    program = tiny.program(erm._replace(stages=stages, hyper={"late": 0.5}), steps=10)
    sizes = []
    for k, steps in enumerate((3, 7)):
        hyper = {"learning_rate": jnp.float32(0.1), "late": jnp.float32(0.5), "weight_decay": jnp.float32(0)}
        optimizer = program.stage_optimizer(k)(hyper)
        params = {"model": {"x": jnp.zeros(())}}
        state, own = optimizer.init(params), []
        for _ in range(steps):
            updates: Any
            updates, state = optimizer.update(params | {"model": {"x": jnp.ones(())}}, state, params)
            own.append(abs(float(updates["model"]["x"])))
        sizes.append(own)
    assert max(sizes[0]) == pytest.approx(0.1, rel=1e-3) and max(sizes[1]) == pytest.approx(0.5, rel=1e-3)
    assert sizes[0][-1] < 0.08 and sizes[1][-1] < 0.05  # each falls to the end of its own stage
