"""Mixup: the mixture and its loss in NumPy, and the laws of its random numbers."""

from __future__ import annotations

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from cimrl_jax.errors import UserError
from cimrl_jax.methods import base, mixup
from tests import tiny


def make_case():
    own, model, rng = tiny.source(24, classes=3), tiny.shallow(3), np.random.default_rng(0)
    weight = rng.uniform(0.5, 2.0, 8).astype(np.float32)
    weight[[2, 5]] = 0.0
    return model, {"model": model.init(jax.random.key(0))}, tiny.batch(own, rng.permutation(24)[:8], weight=weight), rng


def by_hand(logits, batch, partner, share):
    """Each mixture against both labels, each part with the weight of the example whose label it is."""
    log_p, label, weight = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=1), np.asarray(batch.label), np.asarray(batch.weight)
    total = weights = 0.0
    for i, j in enumerate(partner):
        total += share[i] * weight[i] * -log_p[i, label[i]] + (1 - share[i]) * weight[j] * -log_p[i, label[j]]
        weights += share[i] * weight[i] + (1 - share[i]) * weight[j]
    return total / weights


def test_codes_are_mixed_and_cost_what_both_labels_say():
    model, params, batch, rng = make_case()
    partner, share = np.array([3, 0, 2, 3, 7, 5, 1, 4]), rng.random(8).astype(np.float32)
    codes = model.encode(params["model"], model.embed(params["model"], batch.inputs, batch.present))
    mixed = {name: share[:, None] * code + (1 - share)[:, None] * np.asarray(code)[partner] for name, code in codes.items()}
    loss, figures = base.mix(model, params, batch, jnp.asarray(partner), jnp.asarray(share), jax.random.key(0), at="codes")
    assert loss == pytest.approx(by_hand(model.decide(params["model"], mixed).logits, batch, partner, share), rel=1e-5)
    assert figures["loss"] == loss and 0 <= figures["accuracy"] <= 1


def test_slots_are_mixed_as_the_inputs_are():
    model, params, batch, rng = make_case()
    batch = dataclasses.replace(batch, present={m: jnp.ones(8, bool) for m in batch.present})
    partner, share = np.array([3, 0, 2, 3, 7, 5, 1, 4]), rng.random(8).astype(np.float32)
    part = share[:, None, None]
    mixed = dataclasses.replace(batch, inputs={m: part * x + (1 - part) * np.asarray(x)[partner] for m, x in batch.inputs.items()})
    loss, _ = base.mix(model, params, batch, jnp.asarray(partner), jnp.asarray(share), jax.random.key(0), at="slots")
    assert loss == pytest.approx(by_hand(base.forward(model, params, mixed, None).logits, batch, partner, share), rel=1e-5)


def test_a_slot_that_only_one_of_a_pair_has_is_mixed_with_zero():
    model, params, batch, _ = make_case()
    batch = dataclasses.replace(jax.tree.map(lambda x: x[:2], batch), present={m: jnp.ones(2, bool) for m in batch.present})
    alone = dataclasses.replace(batch, present={"left": jnp.array([True, True]), "right": jnp.array([True, False])})
    zero = dataclasses.replace(batch, inputs={**batch.inputs, "right": batch.inputs["right"].at[1].set(0.0)})
    swap, share, key = jnp.array([1, 0]), jnp.array([0.3, 0.8]), jax.random.key(0)
    found, expected, other = (float(base.mix(model, params, b, swap, share, key, at="slots")[0]) for b in (alone, zero, batch))
    assert found == pytest.approx(expected, rel=1e-6) and found != pytest.approx(other, rel=1e-3)


def test_partners_are_a_uniform_permutation_of_the_rows_that_weigh():
    valid = jnp.array([True, False, True, True, False])
    keys = jax.random.split(jax.random.key(0), 3000)
    drawn = np.asarray(jax.vmap(mixup.permute, (0, None))(keys, valid))
    assert (drawn[:, [1, 4]] == [1, 4]).all()
    counts = collections.Counter(map(tuple, drawn[:, [0, 2, 3]].tolist()))
    assert len(counts) == 6 and all(set(order) == {0, 2, 3} for order in counts)
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.2, 2.0])
def test_one_share_a_batch_follows_the_beta_law(alpha, monkeypatch):
    record, (model, params, batch, _) = tiny.method("mixup", alpha=alpha, at="slots"), make_case()
    hyper, loss, seen = {name: jnp.float32(value) for name, value in record.hyper.items()}, record.stages[0].loss, []
    assert loss

    def mix(model, params, batch, partner, share, key, at):
        assert at == "slots"
        seen.append((partner, share))
        return jnp.zeros(()), {}

    def drawn(key):
        loss({}, hyper, model, params, batch, key)
        return seen.pop()

    monkeypatch.setattr(base, "mix", mix)
    partner, share = map(np.asarray, jax.vmap(drawn)(jax.random.split(jax.random.key(0), 500)))
    assert (share == share[:, :1]).all()
    assert scipy.stats.kstest(share[:, 0], scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert (partner[:, [2, 5]] == [2, 5]).all() and len(np.unique(partner, axis=0)) > 300


@pytest.mark.parametrize("at", ["codes", "slots"])
def test_what_weighs_nothing_changes_nothing(at):
    record, (model, params, batch, _) = tiny.method("mixup", at=at), make_case()
    hyper, light = {"alpha": jnp.float32(0.2)}, np.asarray(batch.weight) == 0
    batch = dataclasses.replace(batch, present={m: here & ~light for m, here in batch.present.items()})  # as the step does
    junk = dataclasses.replace(
        batch, inputs={m: jnp.where(light[:, None, None], jnp.nan, x) for m, x in batch.inputs.items()}, label=jnp.where(light, 2, batch.label)
    )
    loss = record.stages[0].loss
    assert loss
    own = jax.jit(jax.value_and_grad(lambda params, batch: loss({}, hyper, model, params, batch, jax.random.key(3))[0]))
    tiny.assert_equal(own(params, junk), own(params, batch))


def test_no_spread_is_refused():
    with pytest.raises(UserError, match=r"method\.mixup\.alpha: got 0.* above 0"):
        tiny.method("mixup", alpha=0)
