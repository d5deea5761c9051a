"""CSS: critical slots, the two samples and the loss against the paper's algorithm, example by example."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from sklearn.metrics import log_loss

from cimrl_jax.errors import UserError
from cimrl_jax.methods import css
from cimrl_jax.types import Slots
from tests import tiny

CLASSES, ROWS, SHARE, KEY = 3, 16, 0.5, jax.random.key(5)
MODEL = tiny.shallow(CLASSES)
WEIGHT = np.where(np.arange(ROWS) < 13, np.linspace(0.5, 2, ROWS), 0).astype(np.float32)
SOURCE = tiny.source(classes=CLASSES)


def spec():
    return tiny.spec(SOURCE, classes=CLASSES)


def make_case(**options) -> tuple[Any, ...]:
    """(method, traced numbers, parameters, batch with weights in which "right" is absent now and then)."""
    record = tiny.method("css", hidden=4, share=SHARE, weight=0.6, smooth=0.2, **options)
    own, _ = record.init(jax.random.key(1), spec())
    hyper = {name: jnp.float32(value) for name, value in record.hyper.items()}
    return record, hyper, {"model": MODEL.init(jax.random.key(0)), "method": own}, tiny.batch(SOURCE, slice(ROWS), weight=WEIGHT)


@functools.cache
def made():
    """(slots, samples) of the batch."""
    _, _, params, batch = make_case()
    slots = MODEL.embed(params["model"], batch.inputs, batch.present)
    run = jax.jit(lambda s, key: css.synthesise(MODEL, params["model"], s, batch.label, key, share=SHARE))
    return slots, run(slots, jax.random.split(KEY, 2)[0]), run


def logits_of(slots):
    params = make_case()[2]["model"]
    return MODEL.decide(params, MODEL.encode(params, slots)).logits


def contributions(slots, i, label):
    """Gradient of one example's margin times its slots."""

    def margin(values):
        out = logits_of({m: Slots(values[m][None], slots[m].mask[i : i + 1]) for m in values})[0]
        return out[label] - (jnp.sum(out) - out[label]) / (CLASSES - 1)

    values = {m: s.values[i] for m, s in slots.items()}
    gradient = jax.grad(margin)(values)
    return {m: np.asarray(jnp.sum(gradient[m] * values[m], axis=-1), np.float64) for m in values}


def fewest_by_hand(contribution, share):
    positive = np.maximum(contribution, 0)
    kept = np.zeros(len(positive))
    for j in np.argsort(-positive):
        if positive.sum() == 0 or positive[kept > 0].sum() >= share * positive.sum():
            break
        kept[j] = 1
    return kept


@pytest.mark.parametrize("share", [0.2, 0.65, 1.0])
def test_critical_are_the_fewest_slots_with_that_share(share):
    rows = np.maximum(np.random.default_rng(0).normal(size=(30, 6)), 0).astype(np.float32)
    rows[0] = 0
    found = np.asarray(css.fewest(jnp.asarray(rows), share))
    for row, kept in zip(rows, found, strict=True):
        np.testing.assert_array_equal(kept, fewest_by_hand(row, share))
    np.testing.assert_array_equal(found.any(axis=1), rows.any(axis=1))
    assert not found[0].any()


def test_both_samples_mask_one_present_modality_by_the_contribution_to_the_true_answer():
    slots, samples, _ = made()
    _, _, params, batch = make_case()
    drawn = set()
    for i in range(ROWS):
        contribution = contributions(slots, i, int(batch.label[i]))
        changed = [m for m in slots if (samples.factual[m].values[i] != slots[m].values[i]).any() or np.asarray(samples.critical[m][i]).any()]
        if not changed:
            assert samples.made[i] == 0
            continue
        [m] = changed
        assert bool(batch.present[m][i])
        drawn.add(m)
        critical = fewest_by_hand(contribution[m], SHARE)
        np.testing.assert_array_equal(samples.critical[m][i], critical)
        assert samples.made[i] == critical.any()
        blank, before = np.asarray(params["model"]["blank"][m]), np.asarray(slots[m].values[i])
        np.testing.assert_allclose(samples.counterfactual[m].values[i], np.where(critical[:, None] > 0, blank, before), atol=1e-6)
        np.testing.assert_allclose(samples.factual[m].values[i], np.where(critical[:, None] > 0, before, blank), atol=1e-6)
    assert drawn == {"left", "right"} and np.asarray(samples.made).mean() > 0.5


def test_one_modality_that_the_example_has_is_drawn_each_as_likely():
    slots, _, run = made()
    has = np.asarray(make_case()[-1].present["right"])
    factual = jax.vmap(lambda key: run(slots, key).factual)(jax.random.split(KEY, 400))
    masked = {m: np.asarray(jnp.any(factual[m].values != slots[m].values, axis=(-2, -1))) for m in slots}  # [keys, b]
    np.testing.assert_array_equal(masked["left"], ~masked["right"])
    assert not masked["right"][:, ~has].any()
    np.testing.assert_allclose(masked["right"][:, has].mean(axis=0), 0.5, atol=0.1)


def test_the_label_is_ruled_out_where_it_is_among_the_top():
    logits = np.random.default_rng(0).normal(size=(40, CLASSES)).astype(np.float32)
    label = np.arange(40) % CLASSES
    for top in (1, 2):
        expected = [label[i] in np.argsort(-logits[i])[:top] for i in range(40)]
        np.testing.assert_array_equal(css.among_top(jnp.asarray(logits), jnp.asarray(label), top), expected)


def test_binary_cross_entropy_equals_scikit_learn():
    logits, answers = 3 * np.random.default_rng(0).normal(size=(20, CLASSES)), np.random.default_rng(1).integers(0, 2, (20, CLASSES))
    p = scipy.special.expit(logits)
    expected = [sum(log_loss([a], [q], labels=[0, 1]) for a, q in zip(*row, strict=True)) for row in zip(answers, p, strict=True)]
    found = css.binary(jnp.asarray(logits, jnp.float32), jnp.asarray(answers, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def loss_by_hand(params, batch, top):
    """(loss, share of counterfactuals whose label is ruled out), written with jax.numpy so that it has a gradient; the samples are given."""
    _, samples, _ = made()
    label, weight, model = batch.label, batch.weight, params["model"]
    slots = MODEL.embed(model, batch.inputs, batch.present)
    minus = {m: Slots(jnp.where(samples.critical[m][..., None] > 0, model["blank"][m], s.values), s.mask) for m, s in slots.items()}
    order = np.argsort(-np.asarray(logits_of(samples.factual)), axis=1)
    taken = [int(y) in likely[:top] for y, likely in zip(label, order, strict=True)]
    codes, codes_minus = MODEL.encode(model, slots), MODEL.encode(model, minus)
    z, z_minus = MODEL.decide(model, codes).logits, MODEL.decide(model, codes_minus).logits
    bias, learned = jnp.zeros((ROWS, CLASSES)), 0.0
    for m, head in params["method"].items():
        said = jax.nn.relu(jax.lax.stop_gradient(codes[m]) @ head["inner"] + head["inner_bias"]) @ head["outer"] + head["outer_bias"]
        p, here = jax.nn.softmax(said), batch.present[m]
        learned -= jnp.sum(jnp.log(p[jnp.arange(ROWS), label]) * weight * here) / jnp.sum(weight * here)
        odds = (jax.lax.stop_gradient(p) + 0.2) / (1 - jax.lax.stop_gradient(p) + 0.2)
        bias += jnp.log(jnp.where(here[:, None], odds, 1.0))

    def binary(logits, answers):
        p = jax.nn.sigmoid(logits + bias)
        return -jnp.sum(jnp.where(answers, jnp.log(p), jnp.log(1 - p)), axis=1)

    answers = np.asarray(label)[:, None] == np.arange(CLASSES)
    here = weight * samples.made
    loss = jnp.sum(binary(z, answers) * weight) / jnp.sum(weight) + learned
    loss += 0.6 * jnp.sum(binary(z_minus, answers & ~np.array(taken)[:, None]) * here) / jnp.sum(here)
    return loss, np.average(taken, weights=np.asarray(here))


@pytest.mark.parametrize("options", [{"base": "ce"}, {"base": "poe"}, {"base": "ce", "top": 2}])
def test_the_loss_and_its_gradient_are_the_algorithms(options):
    record, hyper, params, batch = make_case(**options)
    run = jax.value_and_grad(lambda p: record.stages[0].loss({}, hyper, MODEL, p, batch, KEY), has_aux=True)
    (loss, (_, metrics)), gradient = jax.jit(run)(params)
    top = options.get("top", 1)
    hand = jax.value_and_grad(lambda p: loss_by_hand(p, batch, top), has_aux=True)
    (expected, taken), slope = hand(params)
    assert float(loss) == pytest.approx(float(expected), abs=1e-5)
    tiny.assert_close(gradient, slope, rtol=1e-4, atol=1e-5)
    assert float(metrics["taken"]) == pytest.approx(taken, abs=1e-5) and 0 < taken <= 1
    assert taken < 1 or top == 2
    assert max(np.abs(x).max() for x in tiny.arrays(gradient["model"]["blank"])) > 1e-3


def test_a_top_that_rules_every_label_out_is_refused():
    with pytest.raises(UserError, match="top=3 rules every label out; expected less than the 3 classes"):
        tiny.method("css", top=3).init(jax.random.key(0), spec())
