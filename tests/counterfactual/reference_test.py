"""The shallow reader: what it says is the mean of what its slots say, and training finds what a single slot can tell."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.counterfactual import reference
from cimrl_jax.losses import cross_entropy
from cimrl_jax.types import Slots, SlotSpec

SPEC = SlotSpec(kind="slots", count=4, width=3, element=3)


@pytest.fixture(scope="module")
def params():
    return reference.init(jax.random.key(0), SPEC, num_classes=3, hidden=8)


def make_slots(b=6, seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((b, 4)) < 0.7
    mask[0] = False
    return Slots(jnp.asarray(rng.normal(size=(b, 4, 3)), jnp.float32), jnp.asarray(mask))


def test_logits_are_the_mean_of_the_valid_slots_contributions(params):
    slots = make_slots()
    logits, per_slot = reference.read(params, slots)
    inner = np.maximum(np.asarray(slots.values) @ params["inner"] + params["inner_bias"], 0)
    np.testing.assert_allclose(per_slot, inner @ params["outer"] + params["outer_bias"], atol=1e-5)
    for i in range(6):
        valid = np.asarray(slots.mask[i])
        expected = np.asarray(per_slot)[i, valid].mean(axis=0) if valid.any() else np.zeros(3)
        np.testing.assert_allclose(logits[i], expected, atol=1e-6)


def test_what_an_invalid_slot_holds_does_not_matter(params):
    slots = make_slots()
    spoiled = Slots(jnp.where(slots.mask[..., None], slots.values, 1e6), slots.mask)
    np.testing.assert_array_equal(reference.read(params, spoiled)[0], reference.read(params, slots)[0])


def test_evidence_is_a_slots_own_margin_where_positive(params):
    slots, target = make_slots(), jnp.array([0, 1, 2, 0, 1, 2])
    _, per_slot = reference.read(params, slots)
    found = np.asarray(reference.evidence(per_slot, slots.mask, target))
    for i, c in enumerate(target):
        own = np.asarray(per_slot)[i]
        margin = own[:, c] - np.delete(own, c, axis=1).mean(axis=1)
        np.testing.assert_allclose(found[i], np.where(slots.mask[i], np.maximum(margin, 0), 0), atol=1e-6)


def test_words_recur_as_often_as_they_are_counted():
    rng = np.random.default_rng(0)
    words, mask, weight = rng.integers(0, 40, (9, 5)) // 3, rng.random((9, 5)) < 0.8, np.arange(9) % 4 > 0
    embedding = 0.02 * rng.normal(size=(40, 48))
    found = np.asarray(reference.recurring(Slots(jnp.asarray(embedding[words], jnp.float32), jnp.asarray(mask)), jnp.asarray(weight, jnp.float32)))
    valid = mask & weight[:, None]
    expected = np.array([[(words[valid] == word).sum() for word in row] for row in words]) / valid.any(1).sum()
    np.testing.assert_allclose(found, np.where(mask, np.minimum(expected, 1), 0), rtol=1e-6)


def test_after_training_the_evidence_points_at_the_slot_that_tells():
    rng = np.random.default_rng(1)
    label, place = rng.integers(0, 2, 200), rng.integers(0, 4, 200)
    values = 0.3 * rng.normal(size=(200, 4, 3))
    values[np.arange(200), place, 0] += 4.0 * label - 2.0
    slots, label = Slots(jnp.asarray(values, jnp.float32), jnp.ones((200, 4), bool)), jnp.asarray(label)
    params = reference.init(jax.random.key(1), SPEC, num_classes=2, hidden=8)

    @jax.jit
    def descend(params):
        gradient = jax.grad(lambda p: cross_entropy(reference.read(p, slots)[0], label).mean())(params)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient)

    for _ in range(100):
        params = descend(params)
    logits, per_slot = reference.read(params, slots)
    right = jnp.argmax(logits, axis=-1) == label
    assert right.mean() > 0.98
    assert (jnp.argmax(reference.evidence(per_slot, slots.mask, label), axis=-1) == place)[right].mean() > 0.98
