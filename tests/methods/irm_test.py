"""IRMv1 against the penalty as the paper defines it: by differentiating the risk of rescaled logits."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.errors import UserError
from cimrl_jax.losses import cross_entropy
from cimrl_jax.methods import base
from cimrl_jax.methods.irm import risk_and_penalty
from cimrl_jax.train.step import init_params
from tests import tiny

OWN = jax.jit(risk_and_penalty)


def by_hand(logits, label, weight, environment):
    """Environment by environment, half by half; the gradient on the scale by jax.grad."""
    logits, label = jnp.asarray(logits), jnp.asarray(label)

    def risk(scale, rows):
        losses = cross_entropy(scale * logits[rows], label[rows])
        return jnp.sum(losses * weight[rows]) / jnp.sum(weight[rows])

    risks, penalties = [], []
    for e in np.unique(environment[weight > 0]):
        rows = np.flatnonzero((environment == e) & (weight > 0))
        risks.append(risk(1.0, rows))
        if len(rows) > 1:
            penalties.append(jax.grad(risk)(1.0, rows[0::2]) * jax.grad(risk)(1.0, rows[1::2]))
    return float(np.mean(risks)), float(np.mean(penalties or [0.0]))


def members(environment, weight, count):
    return jnp.asarray((environment[:, None] == np.arange(count)) & (weight > 0)[:, None], jnp.float32)


def test_risk_and_penalty_are_those_of_the_paper():
    rng, single, missing = np.random.default_rng(0), 0, 0
    for _ in range(40):
        logits, label = rng.normal(size=(9, 4)).astype(np.float32) * 3, rng.integers(0, 4, 9)
        environment, weight = rng.choice(3, 9, p=[0.6, 0.25, 0.15]), rng.uniform(0.5, 2.0, 9).astype(np.float32)
        weight[rng.random(9) < 0.2] = 0.0
        sizes = np.bincount(environment[weight > 0], minlength=3)
        single, missing = single + (1 in sizes), missing + (0 in sizes)
        junk = np.where(weight[:, None] > 0, logits, np.nan)
        found = OWN(junk, label, weight, members(environment, weight, 3))
        np.testing.assert_allclose(found, by_hand(logits, label, weight, environment), rtol=1e-4, atol=1e-6)
    assert single > 5 and missing > 5  # environments of one row, and of none


def test_the_penalty_is_an_unbiased_estimate_of_the_squared_gradient():
    rng = np.random.default_rng(1)
    logits, label, one = rng.normal(size=(4, 3)).astype(np.float32), rng.integers(0, 3, 4), np.ones(4, np.float32)
    order = np.array(list(itertools.permutations(range(4))))
    _, found = jax.vmap(OWN, (0, 0, None, None))(logits[order], label[order], one, one[:, None])
    slopes = jax.vmap(jax.grad(lambda s, z, y: cross_entropy(s * z[None], y[None])[0]), (None, 0, 0))(1.0, jnp.asarray(logits), jnp.asarray(label))
    pairs = [slopes[i] * slopes[j] for i, j in itertools.permutations(range(4), 2)]  # independent draws
    assert np.mean(found) == pytest.approx(np.mean(pairs), rel=1e-4)
    assert np.ptp(found) > 0.01


def test_where_an_environments_rows_stand_in_the_batch_does_not_matter():
    rng = np.random.default_rng(2)
    logits, label, weight = rng.normal(size=(10, 3)).astype(np.float32), rng.integers(0, 3, 10), np.ones(10, np.float32)
    environment = np.arange(10) % 2
    apart = np.argsort(environment, kind="stable")
    first = OWN(logits, label, weight, members(environment, weight, 2))
    second = OWN(logits[apart], label[apart], weight, members(environment[apart], weight, 2))
    np.testing.assert_allclose(first, second, rtol=1e-5)


def make_case(**options):
    own, record, model = tiny.source(24), tiny.method("irm", **options), tiny.shallow(2)
    spec = dataclasses.replace(tiny.spec(own), group_attribute=(1, 0, 0, 1))
    params, state = init_params(jax.random.key(0), model=model, method=record, spec=spec)
    hyper = {name: jnp.float32(value) for name, value in record.hyper.items()}
    batch = tiny.batch(own, slice(12))
    stage_loss = record.stages[0].loss
    assert stage_loss
    loss = jax.jit(lambda state: stage_loss(state, hyper, model, params, batch, jax.random.key(1)))
    logits = base.forward(model, params, batch, None).logits
    return loss, state, by_hand(logits, batch.label, np.ones(12), np.array(spec.group_attribute)[batch.group])


@pytest.mark.parametrize("penalty", [100.0, 0.5])
def test_the_penalty_takes_its_weight_after_the_anneal(penalty):
    loss, state, (risk, size) = make_case(penalty=penalty, anneal=0.3)
    assert abs(size) > 1e-3
    for step in range(6):  # of 10
        found, (state, figures) = loss(state)
        weight = penalty if step >= 3 else 1.0
        assert found == pytest.approx((risk + weight * size) / max(weight, 1.0), rel=1e-4)
        assert figures["penalty"] == pytest.approx(size, rel=1e-4) and figures["risk"] == pytest.approx(risk, rel=1e-4)


def test_groups_without_an_attribute_are_refused():
    record, own = tiny.method("irm"), tiny.source()
    with pytest.raises(UserError, match="method 'irm' takes the groups' attribute .* name an attribute column"):
        record.init(jax.random.key(0), dataclasses.replace(tiny.spec(own), group_attribute=()))
