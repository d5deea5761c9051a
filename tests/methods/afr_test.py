"""Automatic feature reweighting: its weights and its loss against NumPy, the split, and that only the head moves in stage 2."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cimrl_jax.methods import base
from cimrl_jax.train import loop
from cimrl_jax.types import Population
from tests import tiny

CLASSES, ROWS, GAMMA, LAM = 3, 30, 5.0, 0.3


def make(**options) -> Any:
    return tiny.method("afr", **options)


def weights_by_hand(logits, label, held):
    """The authors': exp(-gamma p_y), times the share of the class, normalised over the held-out examples."""
    p = scipy.special.softmax(np.asarray(logits, np.float64)[held], axis=1)[np.arange(held.sum()), label[held]]
    mu = np.exp(-GAMMA * p) * held.sum() / np.bincount(label[held])[label[held]]
    return mu / mu.sum()


@pytest.fixture
def entered():
    """A source, the method, its model, and the state and parameters with which stage 2 begins."""
    own, model = tiny.source(ROWS, classes=CLASSES), tiny.shallow(CLASSES)
    record = make(gamma=GAMMA, lam=LAM, held_out=0.4)
    key, hyper = jax.random.key(5), {name: jnp.float32(value) for name, value in record.hyper.items()}
    params, (_, state) = {"model": model.init(key), "method": {}}, record.init(key, tiny.spec(own, classes=CLASSES))
    logits = base.forward(model, params, tiny.batch(own, slice(None)), None).logits
    told = tiny.told(3 * logits, own.label)
    state, kept = record.stages[1].enter(state, hyper, model, params, {"model": model.init(jax.random.key(9)), "method": {}}, told)
    assert kept is params
    return own, record, model, hyper, state, params, told


def test_the_weights_are_the_authors(entered):
    own, _, _, _, state, _, told = entered
    held = np.asarray(state["held"])
    mu = weights_by_hand(told.logits, own.label, held)
    np.testing.assert_allclose(np.asarray(state["weight"])[held], mu * held.sum(), rtol=1e-5)
    assert not np.asarray(state["weight"])[~held].any()
    assert mu.max() / mu.min() > 5


def test_with_a_gamma_that_underflows_all_weight_is_on_the_least_probable_example(entered):
    own, record, model, hyper, state, params, told = entered
    state, _ = record.stages[1].enter(state, {**hyper, "gamma": jnp.float32(1e5)}, model, params, params, told)
    held = np.asarray(state["held"])
    p = np.exp(scipy.special.log_softmax(np.asarray(told.logits, np.float64), axis=1)[np.arange(len(held)), own.label])
    weight = np.asarray(state["weight"])
    assert weight.argmax() == np.flatnonzero(held)[p[held].argmin()]
    np.testing.assert_allclose(weight.sum(), held.sum(), rtol=1e-5)


def test_the_loss_of_the_held_out_rows_is_the_authors_of_all_of_them(entered):
    own, record, model, hyper, state, params, told = entered
    held = np.asarray(state["held"])
    rows = np.flatnonzero(held)
    padded = np.append(rows, [0, 1])
    batch = tiny.batch(own, padded, weight=jnp.where(jnp.arange(len(padded)) < len(rows), 1.0, 0.0))
    batch = dataclasses.replace(batch, index=batch.index.at[-1].set(10**6))
    kernel, bias = model.head.get(params["model"])
    moved = {**params, "model": model.head.put(params["model"], kernel + 0.1, bias - 0.2)}
    loss, _ = record.stages[1].loss(state, hyper, model, moved, batch, jax.random.key(0))

    log_p = scipy.special.log_softmax(np.asarray(base.forward(model, moved, batch, None).logits, np.float64), axis=1)
    expected = -weights_by_hand(told.logits, own.label, held) @ log_p[np.arange(len(rows)), own.label[rows]]
    np.testing.assert_allclose(loss, expected + LAM * (0.01 * kernel.size + 0.04 * bias.size), rtol=1e-5)


@pytest.mark.parametrize(("n", "held_out", "count"), [(30, 0.2, 6), (7, 0.5, 4), (5, 0.01, 1), (5, 0.99, 4)])
def test_the_split_is_disjoint_covers_and_differs_by_seed(n, held_out, count):
    record = make(held_out=held_out)
    spec, found = tiny.spec(tiny.source(n)), []
    for seed in range(4):
        _, state = record.init(jax.random.key(seed), spec)
        population = Population(seed, np.zeros(n, int), np.full(n, -1), jax.tree.map(np.asarray, state), record.hyper)
        first, second = (stage.draw(population).rows.tolist() for stage in record.stages)
        assert len(second) == count and sorted(first + second) == list(range(n))
        found.append(tuple(second))
    assert len(set(found)) > 1


def test_stage_2_moves_only_the_head_and_resumes_bit_for_bit(tmp_path):
    record = tiny.method("afr", first=0.5, held_out=0.3)
    program, when = tiny.program(record, steps=12), {"checkpoint_every": 4}
    straight = tiny.train(program, tmp_path, when=when)
    checkpoints = tmp_path / "checkpoints" / program.name
    shutil.rmtree(checkpoints / "12")
    assert program.boundaries() == [6, 12] and loop.restore(program, (tiny.RULE,), checkpoints)[0] == 8
    resumed = tiny.train(program, tmp_path, when=when)
    tiny.assert_equal(resumed._replace(clock={}), straight._replace(clock={}))

    alone = record._replace(stages=record.stages[:1])  # its schedule ends where stage 1 does
    half = tiny.train(tiny.program(alone, steps=6), tmp_path / "alone").final.params["model"]
    final, head = straight.final.params["model"], program.model.head
    tiny.assert_equal(straight.final.method["first"], head.get(half))
    tiny.assert_equal(*(head.put(own, jnp.zeros(()), jnp.zeros(())) for own in (final, half)))
    assert all((a != b).any() for a, b in zip(head.get(final), head.get(half), strict=True))
