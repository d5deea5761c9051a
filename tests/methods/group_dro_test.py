"""Group DRO against the paper's algorithm, transcribed to NumPy."""

from __future__ import annotations

import json

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

GROUPS, ETA = 4, 0.3


def make_case(adjustment):
    """A source in which no example is of group 3, and the jitted step of one member."""
    own = tiny.source(30)
    own.group[own.group == 3] = 2
    record, model, spec = tiny.method("group_dro", eta=ETA, adjustment=adjustment), tiny.shallow(2), tiny.spec(own)
    optimizer = make_optimizer(steps=50, warmup=0.1, schedule="constant", clip_norm=1.0)
    hyper = {name: jnp.float32(value) for name, value in {**record.hyper, "learning_rate": 0.02, "weight_decay": 0.0}.items()}
    state = init_member(0, hyper, model=model, method=record, spec=spec, optimizer=optimizer)
    return own, record, model, spec, state, jax.jit(make_step(model, record.stages[0], optimizer, augment=False))


def update_by_hand(q, logits, batch, counts, adjustment):
    """Algorithm 1 with the adjusted losses of section 3.3: raise, normalise."""
    log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=1)
    losses = -log_p[np.arange(len(log_p)), np.asarray(batch.label)]
    per_group = np.zeros(GROUPS)
    for g in range(GROUPS):
        here = np.asarray(batch.group) == g
        if here.any():
            per_group[g] = losses[here].mean()
    raised = q.copy()
    for g in range(GROUPS):
        raised[g] *= np.exp(ETA * (per_group[g] + (adjustment / np.sqrt(counts[g]) if counts[g] else 0.0)))
    return raised / raised.sum(), per_group


@pytest.mark.parametrize("adjustment", [0.0, 2.0])
def test_the_group_weights_follow_the_paper_over_50_steps(adjustment):
    own, _, model, spec, state, step = make_case(adjustment)
    counts = np.array(spec.group_counts)
    assert counts[3] == 0 and counts[:3].all()
    q = np.where(counts > 0, 1 / 3, 0.0)  # uniform over the groups that training has
    forward = jax.jit(lambda params, batch: base.forward(model, params, batch, None).logits)
    np.testing.assert_allclose(state.method["q"], q)
    rng, missing = np.random.default_rng(0), 0
    for _ in range(50):
        batch = tiny.batch(own, rng.choice(30, 5, replace=False))
        missing += len(np.unique(batch.group)) < 3
        q, per_group = update_by_hand(q, forward(state.params, batch), batch, counts, adjustment)
        state, metrics = step(state, batch)
        np.testing.assert_allclose(state.method["q"], q, atol=1e-5)
        np.testing.assert_allclose(metrics["loss"], q @ per_group, rtol=1e-4)
    assert missing > 5  # groups were absent now and then
    assert q.max() > 0.4 and q[3] == 0


def test_the_gradient_treats_the_updated_weights_as_constants():
    own, record, model, _, state, _ = make_case(0.0)
    batch = tiny.batch(own, slice(10))
    loss = record.stages[0].loss
    assert loss
    own_loss = jax.value_and_grad(lambda p: loss(state.method, state.hyper, model, p, batch, jax.random.key(0)), has_aux=True)
    (_, (new, _)), gradient = own_loss(state.params)

    def weighted(params):
        losses = cross_entropy(base.forward(model, params, batch, None).logits, batch.label)
        means = [jnp.mean(losses[np.asarray(batch.group) == g]) for g in np.unique(batch.group)]
        return sum(new["q"][g] * mean for g, mean in zip(np.unique(batch.group), means, strict=True))

    tiny.assert_close(gradient, jax.grad(weighted)(state.params), rtol=1e-4, atol=1e-6)


def test_permuted_group_ids_train_the_same_parameters(tmp_path):
    record, own = tiny.method("group_dro", eta=ETA, adjustment=1.0), tiny.source(30)
    order = np.array([2, 0, 3, 1], np.int32)
    other = tiny.source(30)
    other.group[:] = order[own.group]
    first = tiny.train(tiny.program(record, own), tmp_path / "first")
    second = tiny.train(tiny.program(record, other), tmp_path / "second")
    tiny.assert_close(first.final.params, second.final.params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.asarray(second.final.method["q"])[:, order], first.final.method["q"], rtol=1e-4)
    assert np.ptp(np.asarray(first.final.method["q"])) > 0.05


def test_batches_are_drawn_group_balanced():
    own = tiny.source(40)
    own.group[:] = np.where(np.arange(40) < 36, 0, 1)
    program = tiny.program(tiny.method("group_dro"), own, batch_size=50, chunk=20, seeds=(0,))

    columns, rows = tiny.feed(program)(0, 20)
    share = np.mean(np.asarray(columns.group)[np.asarray(rows)] == 1)
    assert share == pytest.approx(0.5, abs=0.05)


ALIKE = "group_dro", "reweight", "resample", "subsample", "cvar_dro", "irm", "mixup", "lisa"
"""The methods that weigh, draw or pair the examples."""


@pytest.mark.parametrize("name", ALIKE)
def test_scarce_data_never_gives_nan(name, tmp_path):
    own = tiny.source(24, classes=3)
    own.label[:] = np.where(np.arange(24) == 7, 2, np.arange(24) > 12)
    own.group[:] = 2 * own.label + (np.arange(24) % 9 == 0)
    assert np.bincount(own.label).tolist() == [12, 11, 1]  # a class with one example,
    assert np.bincount(own.group, minlength=6).tolist() == [10, 2, 10, 1, 1, 0]  # an empty group, and batches of four lack others
    trained = tiny.train(tiny.program(tiny.method(name), own, classes=3, steps=12, seeds=(0,)), tmp_path)
    assert all(np.isfinite(x).all() for x in tiny.arrays(trained.final))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses and np.isfinite(losses).all()
