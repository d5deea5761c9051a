"""LISA: who is paired with whom, how often, and in what proportion. The mixture itself is mixup's."""

from __future__ import annotations

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st

from cimrl_jax.errors import UserError
from cimrl_jax.methods import base, lisa
from cimrl_jax.train.step import init_params
from tests import tiny

ROWS = 7
SMALL = st.lists(st.integers(0, 2), min_size=ROWS, max_size=ROWS).map(np.array)
PAIR = jax.jit(lisa.pair)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(SMALL, SMALL, st.lists(st.booleans(), min_size=ROWS, max_size=ROWS).map(np.array), st.booleans(), st.integers(0, 2**31))
def test_partners_keep_the_rule_of_the_batch(label, attribute, valid, intra_label, seed):
    partner = np.asarray(PAIR(jax.random.key(seed), label, attribute, valid, intra_label))
    same, other = (label, attribute) if intra_label else (attribute, label)
    for i, j in enumerate(partner):
        candidates = [k for k in range(ROWS) if valid[i] and valid[k] and same[k] == same[i] and other[k] != other[i]]
        assert j in candidates if candidates else j == i


def test_each_valid_partner_is_equally_likely():
    label, attribute, valid = np.array([0, 0, 0, 0, 1, 0]), np.array([0, 1, 1, 2, 1, 1]), np.array([1, 1, 1, 1, 1, 0], bool)
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = np.asarray(jax.vmap(PAIR, (0, None, None, None, None))(keys, label, attribute, valid, True))
    values, counts = np.unique(drawn[:, 0], return_counts=True)
    assert values.tolist() == [1, 2, 3] and scipy.stats.chisquare(counts).pvalue > 1e-3


def draws(monkeypatch, count, **options):
    """Many draws of (partners, shares) for one batch, and the batch's labels and attributes."""
    own, record, model = tiny.source(24), tiny.method("lisa", at="slots", **options), tiny.shallow(2)
    spec = dataclasses.replace(tiny.spec(own), group_attribute=(1, 0, 0, 1))  # not the group id modulo 2
    params, state = init_params(jax.random.key(0), model=model, method=record, spec=spec)
    loss = record.stages[0].loss
    assert loss
    hyper, batch, seen = {name: jnp.float32(value) for name, value in record.hyper.items()}, tiny.batch(own, slice(12)), []

    def mix(model, params, batch, partner, share, key, at):
        assert at == "slots"
        seen.append((partner, share))
        return jnp.zeros(()), {}

    def drawn(key):
        loss(state, hyper, model, params, batch, key)
        return seen.pop()

    monkeypatch.setattr(base, "mix", mix)
    partner, share = map(np.asarray, jax.vmap(drawn)(jax.random.split(jax.random.key(1), count)))
    return partner, share, np.asarray(batch.label), np.array(spec.group_attribute)[np.asarray(batch.group)]


@pytest.mark.parametrize("p_sel", [0.0, 0.3, 1.0])
def test_all_of_a_batch_is_paired_within_labels_or_within_attributes(p_sel, monkeypatch):
    partner, _, label, attribute = draws(monkeypatch, 400, p_sel=p_sel)
    assert (partner != np.arange(12)).all()  # this batch has a partner for everyone
    within_label = label[partner] == label
    within_attribute = attribute[partner] == attribute
    assert (within_label != within_attribute).all()
    assert (within_label == within_label[:, :1]).all()
    assert within_label[:, 0].mean() == pytest.approx(p_sel, abs=0.08)
    assert p_sel == 0.3 or len(set(within_label[:, 0])) == 1


def test_every_example_has_a_share_of_its_own_from_the_beta_law(monkeypatch):
    _, shares, _, _ = draws(monkeypatch, 100)
    assert len(np.unique(shares)) == shares.size
    assert scipy.stats.kstest(shares.ravel(), scipy.stats.beta(2, 2).cdf).pvalue > 1e-3


def test_without_a_partner_it_is_plain_training():
    own, record, model = tiny.source(24), tiny.method("lisa"), tiny.shallow(2)
    params, state = init_params(jax.random.key(0), model=model, method=record, spec=tiny.spec(own))
    hyper = {name: jnp.float32(value) for name, value in record.hyper.items()}
    batch = tiny.batch(own, np.flatnonzero(own.group == 2)[:4])
    arguments, loss = (hyper, model, params, batch, jax.random.key(2)), record.stages[0].loss
    assert loss and float(loss(state, *arguments)[0]) == pytest.approx(float(base.erm_loss({}, *arguments)[0]), rel=1e-6)


def test_batches_are_drawn_group_balanced():
    own = tiny.source(40)
    own.group[:] = np.where(np.arange(40) < 36, 0, 3)
    _, rows = tiny.feed(tiny.program(tiny.method("lisa"), own, batch_size=50, chunk=20, seeds=(0,)))(0, 20)
    assert np.mean(own.group[np.asarray(rows)] == 3) == pytest.approx(0.5, abs=0.05)


def test_groups_without_an_attribute_are_refused():
    record, own = tiny.method("lisa"), tiny.source()
    with pytest.raises(UserError, match="method 'lisa' mixes across the groups' attributes.* name an attribute column"):
        record.init(jax.random.key(0), dataclasses.replace(tiny.spec(own), group_attribute=()))
