"""Reweighting against the weights written out in NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cimrl_jax.errors import UserError
from cimrl_jax.methods import base
from cimrl_jax.train.step import init_params
from tests import tiny

HELD = 0, 1, 2
"""The groups that training has; there is a fourth."""


def make_source():
    own = tiny.source(31)
    own.label[:] = np.arange(31) % 4 == 3
    own.group[:] = np.where(own.label == 1, 2, np.arange(31) % 5 == 0)
    assert np.bincount(own.label).tolist() == [24, 7] and np.bincount(own.group).tolist() == [18, 6, 7]
    return own


def run(own, batch, **options):
    """(the loss, the losses of the examples by a forward pass)."""
    record, model = tiny.method("reweight", **options), tiny.shallow(2)
    params, state = init_params(jax.random.key(0), model=model, method=record, spec=tiny.spec(own))
    hyper = {name: jnp.float32(value) for name, value in record.hyper.items()}
    stage_loss = record.stages[0].loss
    assert stage_loss
    loss, _ = jax.jit(lambda params, batch: stage_loss(state, hyper, model, params, batch, jax.random.key(1)))(params, batch)
    log_p = scipy.special.log_softmax(np.asarray(base.forward(model, params, batch, None).logits, np.float64), axis=1)
    return float(loss), -log_p[np.arange(len(log_p)), np.asarray(batch.label)]


@pytest.mark.parametrize("power", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("by", ["group", "class"])
def test_a_batch_costs_what_the_weights_say(by, power):
    own, rng = make_source(), np.random.default_rng(0)
    weight = rng.uniform(0.5, 2.0, 9).astype(np.float32)
    weight[3] = 0.0
    batch = tiny.batch(own, rng.permutation(31)[:9], weight=weight)
    key = own.group if by == "group" else own.label
    each = np.array([np.sum(key == k) ** -power for k in key])
    each /= each.mean()  # 1 on average over the training split
    found, losses = run(own, batch, by=by, power=power)
    assert found == pytest.approx((weight * each[np.asarray(batch.index)] * losses).sum() / weight.sum(), rel=1e-5)


def test_over_the_whole_split_every_group_counts_alike():
    own = make_source()
    found, losses = run(own, tiny.batch(own, slice(None)))
    assert found == pytest.approx(np.mean([losses[own.group == g].mean() for g in HELD]), rel=1e-5)
    assert found != pytest.approx(losses.mean(), rel=1e-3)


def test_power_0_is_the_plain_mean():
    own = make_source()
    found, losses = run(own, tiny.batch(own, slice(9)), power=0.0)
    assert found == pytest.approx(losses.mean(), rel=1e-5)


def test_a_group_that_training_lacks_weighs_nothing():
    own = make_source()
    batch = tiny.batch(own, slice(8))
    stranger = dataclasses.replace(batch, group=batch.group.at[5].set(3))
    found, losses = run(own, stranger)
    sizes = np.bincount(own.group)
    each = 31 / (3 * sizes[own.group[:8]])
    each[5] = 0.0
    assert found == pytest.approx((each * losses).mean(), rel=1e-5)


def test_only_the_weights_by_group_need_groups():
    assert tiny.method("reweight").needs_groups and not tiny.method("reweight", by="class").needs_groups


def test_a_negative_power_is_refused():
    with pytest.raises(UserError, match=r"method\.reweight\.power: got -1 .*at least 0"):
        tiny.method("reweight", power=-1)
