"""CCR: the closed form against codes that are really zeroed, weights and losses against NumPy, and that only the head moves in stage 2."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cimrl_jax.train import loop
from tests import tiny

CLASSES, ROWS, COVARIANCE, PENALTY, LAM = 3, 30, 0.4, 0.2, 0.7
PARTS = ("left", "right", "shared")


def make(**options) -> Any:
    return tiny.method("ccr", **options)


def make_case(unit="feature", junk=np.nan):
    """A batch with two rows of padding, the method, and what it is trained with."""
    own, model = tiny.source(ROWS, classes=CLASSES), tiny.shallow(CLASSES)
    batch = tiny.batch(own, slice(12), weight=jnp.where(jnp.arange(12) < 10, 1.0, 0.0))
    batch = dataclasses.replace(batch, index=batch.index.at[-1].set(10**6), inputs={m: x.at[10:].set(junk) for m, x in batch.inputs.items()})
    record = make(unit=unit, covariance=COVARIANCE, penalty=PENALTY, lam=LAM)
    params = {"model": model.init(jax.random.key(1)), "method": {}}
    params["model"] = model.head.put(params["model"], params["model"]["combined"] * 3, jnp.asarray([0.3, -0.1, 0.2]))
    return batch, record, model, params, {name: jnp.float32(value) for name, value in record.hyper.items()}


def measure(batch, model, params):
    """(codes, log probabilities, the head's squared size) of the rows that weigh something."""
    slots = model.embed(params["model"], batch.inputs, batch.present)
    codes = {name: code[:10] for name, code in model.encode(params["model"], slots).items()}
    log_p = scipy.special.log_softmax(np.asarray(model.decide(params["model"], codes).logits, np.float64), axis=1)
    kernel, bias = (np.asarray(part, np.float64) for part in model.head.get(params["model"]))
    return codes, log_p, np.sum(kernel**2) + np.sum(bias**2)


def test_stage_1_penalises_covariances_between_features_and_the_head():
    batch, record, model, params, hyper = make_case()
    loss, _ = record.stages[0].loss({"weight": jnp.ones(ROWS)}, hyper, model, params, batch, jax.random.key(0))
    codes, log_p, size = measure(batch, model, params)
    covariance = np.cov(np.concatenate([codes[part] for part in PARTS], axis=1), rowvar=False)
    between = np.linalg.norm(covariance - np.diag(np.diag(covariance)))
    entropy = -log_p[np.arange(10), np.asarray(batch.label)[:10]].mean()
    np.testing.assert_allclose(loss, entropy + COVARIANCE * between + PENALTY * size, rtol=1e-5)


@pytest.mark.parametrize("unit", ["feature", "modality"])
def test_stage_2_equals_the_equations_with_codes_zeroed_one_by_one(unit):
    batch, record, model, params, hyper = make_case(unit)
    weight = np.random.default_rng(0).uniform(0.5, 5, ROWS).astype(np.float32)
    loss, _ = record.stages[1].loss({"weight": jnp.asarray(weight)}, hyper, model, params, batch, jax.random.key(0))

    codes, log_p, size = measure(batch, model, params)
    label = np.asarray(batch.label)[:10]
    whole, falls = np.exp(log_p[np.arange(10), label]), []
    for part in PARTS:
        for units in [[j] for j in range(tiny.DIM)] if unit == "feature" else [list(range(tiny.DIM))]:
            zeroed = {**codes, part: codes[part].at[:, jnp.asarray(units)].set(0.0)}
            left = scipy.special.softmax(np.asarray(model.decide(params["model"], zeroed).logits, np.float64), axis=1)
            falls.append(np.log(1 + np.maximum(0, whole - left[np.arange(10), label])))
    assert len(falls) == (15 if unit == "feature" else 3) and 0 < np.mean(np.array(falls) > 0) < 1
    expected = np.mean(weight[:10] * (-np.log(whole) - LAM * np.mean(falls, axis=0))) + PENALTY * size
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_the_probability_of_the_whole_is_a_constant():
    batch, record, model, params, hyper = make_case("modality", junk=1e4)
    kernel, _ = model.head.get(params["model"])

    def necessity(bias, whole: Any):
        codes = model.encode(params["model"], model.embed(params["model"], batch.inputs, batch.present))
        label, total = jnp.arange(12), jnp.zeros(12)
        for part in PARTS:
            left = jax.nn.softmax(model.decide(model.head.put(params["model"], kernel, bias), {**codes, part: jnp.zeros_like(codes[part])}).logits)
            fall = whole - left[label, batch.label]
            total += jnp.where(fall > 1e-6, jnp.log1p(fall), 0.0) / 3  # an absent modality's is 0, but for rounding
        return -jnp.sum(total[:10]) / 10

    def loss(bias, lam):
        moved = {**params, "model": model.head.put(params["model"], kernel, bias)}
        weight = {"weight": jnp.ones(ROWS)}
        return record.stages[1].loss(weight, {**hyper, "lam": lam}, model, moved, batch, jax.random.key(0))[0]

    bias = model.head.get(params["model"])[1]
    codes = model.encode(params["model"], model.embed(params["model"], batch.inputs, batch.present))
    whole = jax.nn.softmax(model.decide(params["model"], codes).logits)[jnp.arange(12), batch.label]
    slope = jax.grad(loss)(bias, jnp.float32(1)) - jax.grad(loss)(bias, jnp.float32(0))
    np.testing.assert_allclose(slope, jax.grad(necessity)(bias, whole), rtol=1e-3, atol=1e-6)
    assert np.abs(slope).max() > 1e-3


def test_the_weights_are_the_inverse_shares_of_class_and_rightness():
    rng, n = np.random.default_rng(0), 200
    label, logits = rng.integers(0, CLASSES, n), rng.normal(size=(n, CLASSES)).astype(np.float32)
    logits[np.arange(n), label] += 1.5 * (label > 0)
    right, expected = logits.argmax(1) == label, np.zeros(n)
    for c in range(CLASSES):
        for outcome in (True, False):
            cell = (label == c) & (right == outcome)
            expected[cell] = n / max(cell.sum(), 1)
    record, params = make(), {"model": {"x": jnp.ones(2)}, "method": {}}
    told = tiny.told(logits, label)
    state, kept = record.stages[1].enter({"weight": jnp.ones(n)}, {}, tiny.shallow(CLASSES), params, {}, told)
    np.testing.assert_allclose(state["weight"], expected, rtol=1e-6)
    assert kept is params and len(set(expected)) == 2 * CLASSES


def test_stage_2_moves_only_the_head_and_resumes_bit_for_bit(tmp_path):
    record = tiny.method("ccr", first=0.5)
    program, when = tiny.program(record, steps=12), {"checkpoint_every": 4}
    straight = tiny.train(program, tmp_path, when=when)
    checkpoints = tmp_path / "checkpoints" / program.name
    shutil.rmtree(checkpoints / "12")
    assert program.boundaries() == [6, 12] and loop.restore(program, (tiny.RULE,), checkpoints)[0] == 8
    resumed = tiny.train(program, tmp_path, when=when)
    tiny.assert_equal(resumed._replace(clock={}), straight._replace(clock={}))

    alone = record._replace(stages=record.stages[:1])
    half = tiny.train(tiny.program(alone, steps=6), tmp_path / "alone").final.params["model"]
    final, head = straight.final.params["model"], program.model.head
    tiny.assert_equal(*(head.put(own, jnp.zeros(()), jnp.zeros(())) for own in (final, half)))
    assert all((a != b).any() for a, b in zip(head.get(final), head.get(half), strict=True))
