"""Learning from failure against the authors' loss averages, transcribed to NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cimrl_jax.losses import cross_entropy
from cimrl_jax.methods import base
from cimrl_jax.train.optimizer import make_optimizer
from cimrl_jax.train.step import init_member, make_step
from tests import tiny

CLASSES, ROWS, Q, DECAY = 3, 30, 0.6, 0.8


class Average:
    """The running average of each example's loss, and its maximum within a class."""

    def __init__(self, label):
        self.label, self.value, self.seen = label, np.zeros(len(label)), np.zeros(len(label))

    def update(self, losses, index):
        self.value[index] = DECAY * self.value[index] + (1 - DECAY * self.seen[index]) * losses
        self.seen[index] = 1

    def highest(self, label):
        return self.value[self.label == label].max()


@pytest.fixture
def case():
    """A source, and the jitted step of one member."""
    own = tiny.source(ROWS, classes=CLASSES)
    record, model, spec = tiny.method("lff", q=Q, decay=DECAY), tiny.shallow(CLASSES), tiny.spec(own, classes=CLASSES)
    optimizer = make_optimizer(steps=30, warmup=0.1, schedule="constant", clip_norm=1.0)
    hyper = {name: jnp.float32(value) for name, value in {**record.hyper, "learning_rate": 0.05, "weight_decay": 0.0}.items()}
    state = init_member(0, hyper, model=model, method=record, spec=spec, optimizer=optimizer)
    return own, record, model, state, jax.jit(make_step(model, record.stages[0], optimizer, augment=False))


def biased_params(params):
    return {"model": params["method"]["biased"]}


def test_averages_weights_and_loss_follow_the_authors_code(case):
    own, _, model, state, step = case
    forward = jax.jit(lambda params, batch: base.forward(model, params, batch, None).logits)
    averages, rng, widest = (Average(own.label), Average(own.label)), np.random.default_rng(0), 0.0
    assert any((a != b).any() for a, b in zip(tiny.arrays(state.params["model"]), tiny.arrays(state.params["method"]["biased"]), strict=True))
    for _ in range(25):
        rows = rng.choice(ROWS, 8, replace=False)
        rows[1] = rows[0]  # an example that the batch holds twice
        batch = tiny.batch(own, rows, weight=jnp.where(jnp.arange(8) < 6, 1.0, 0.0))
        junk = jnp.where(batch.weight > 0, batch.index, jnp.asarray([0, 0, 0, 0, 0, 0, 3, 10**6]))
        batch = dataclasses.replace(batch, index=junk, label=jnp.where(batch.weight > 0, batch.label, 0))

        index, label = rows[:6], own.label[rows[:6]]
        log_p = [scipy.special.log_softmax(np.asarray(forward(p, batch), np.float64), 1)[:6] for p in (biased_params(state.params), state.params)]
        losses = [-own_p[np.arange(6), label] for own_p in log_p]
        shares = []
        for average, own_losses in zip(averages, losses, strict=True):
            average.update(own_losses, index)
            shares.append(average.value[index] / [average.highest(c) for c in label])
        weight = shares[0] / (shares[0] + shares[1] + 1e-8)
        expected = np.mean(weight * losses[1]) + np.mean((1 - np.exp(-Q * losses[0])) / Q)

        state, metrics = step(state, batch)
        for column, average in enumerate(averages):
            np.testing.assert_allclose(state.method["average"][:, column], average.value, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(metrics["difficulty"], weight.mean(), rtol=1e-4)
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
        widest = max(widest, np.ptp(weight))
    assert widest > 0.5  # the weights tell examples apart


def test_the_weight_is_a_constant_and_each_network_has_its_own_loss(case):
    own, record, model, state, _ = case
    batch = tiny.batch(own, slice(9))
    key = jax.random.key(0)
    gradient = jax.grad(lambda p: record.stages[0].loss(state.method, state.hyper, model, p, batch, key)[0])(state.params)
    first = [cross_entropy(base.forward(model, p, batch, None).logits, batch.label) for p in (biased_params(state.params), state.params)]
    highest = [np.array([np.max(np.asarray(x)[np.asarray(batch.label) == c]) for c in batch.label]) for x in first]
    share = [x / top for x, top in zip(first, highest, strict=True)]
    weight = share[0] / (share[0] + share[1])

    def apart(params):
        hardness = cross_entropy(base.forward(model, params, batch, None).logits, batch.label)
        easy = jnp.exp(-cross_entropy(base.forward(model, biased_params(params), batch, None).logits, batch.label))
        return jnp.mean(weight * hardness) + jnp.mean((1 - easy**Q) / Q)

    tiny.assert_close(gradient, jax.grad(apart)(state.params), rtol=1e-4, atol=1e-6)


def test_views_of_one_example_in_a_batch_count_with_their_mean_in_any_order(case):
    own, record, model, state, _ = case
    views = tiny.batch(own, np.array([0, 3, 6, 1]), index=jnp.asarray([7, 7, 7, 2]), weight=jnp.asarray([1.0, 2.0, 1.0, 1.0]))
    turned = jax.tree.map(lambda x: x[jnp.asarray([2, 3, 0, 1])], views)
    found = []
    for batch in (views, turned):
        _, (after, _) = record.stages[0].loss(state.method, state.hyper, model, state.params, batch, jax.random.key(0))
        found.append(np.asarray(after["average"]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    losses = np.asarray(cross_entropy(base.forward(model, state.params, views, None).logits, views.label))
    np.testing.assert_allclose(found[0][7, 1], (losses[0] + 2 * losses[1] + losses[2]) / 4, rtol=1e-5)
    assert np.ptp(losses[:3]) > 0.1 and np.flatnonzero(found[0][:, 1]).tolist() == [2, 7]
