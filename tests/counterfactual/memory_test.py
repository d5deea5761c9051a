"""The running averages against hand-computed ones, and the mirror between shortcuts against linear algebra in NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.counterfactual import intervene, memory
from cimrl_jax.types import Slots, SlotSpec

SPEC = SlotSpec(kind="image", count=4, width=6, element=3)
CLASSES = 3


def make_batch(b=8, seed=0, spec=SPEC):
    rng = np.random.default_rng(seed)
    mask = rng.random((b, spec.count)) < 0.8
    mask[:, 0] = True
    values = rng.normal(size=(b, spec.count, spec.width)) * mask[..., None]
    slots = Slots(jnp.asarray(values, jnp.float32), jnp.asarray(mask))
    weight = rng.uniform(0.5, 2, b).astype(np.float32)
    return slots, {
        "misleading": {
            "evidence": jnp.asarray(rng.random((b, spec.count)) * mask, jnp.float32),
            "predicted": jnp.asarray(rng.integers(0, CLASSES, b)),
            "error": jnp.asarray(rng.random(b), jnp.float32),
            "weight": jnp.asarray(weight),
        },
        "conflict": {
            "label": jnp.asarray(rng.integers(0, CLASSES, b)),
            "reading": jnp.asarray(rng.dirichlet(np.ones(CLASSES), b), jnp.float32),
            "weight": jnp.asarray(weight),
        },
    }


def update(kind, state: Any, slots, given, decay) -> Any:
    if kind == "misleading":
        return memory.update_misleading(state, slots, **given, decay=decay)
    return memory.update_conflict(state, slots, element=SPEC.element, **given, decay=decay)


def fresh(kind) -> Any:
    return {"misleading": memory.init_misleading, "conflict": memory.init_conflict}[kind](SPEC, CLASSES)


def test_what_misled_is_the_evidence_weighted_mean_slot_of_the_errors():
    slots, given = make_batch()
    own = given["misleading"]
    state = update("misleading", update("misleading", fresh("misleading"), slots, own, 0.9), slots, own, 0.9)
    share = np.asarray(own["evidence"]) / np.asarray(own["evidence"]).sum(1, keepdims=True)
    content = (share[..., None] * np.asarray(slots.values)).sum(1)
    for c in range(CLASSES):
        here = np.asarray(own["weight"]) * (np.asarray(own["predicted"]) == c)
        for part, error in (("errors", np.asarray(own["error"])), ("rights", 1 - np.asarray(own["error"]))):
            mass = 0.1 * (here * error).sum() * (0.9 + 1)  # two equal steps
            total = 0.1 * ((here * error)[:, None] * content).sum(0) * (0.9 + 1)
            np.testing.assert_allclose(getattr(state, f"{part}_weight")[c], mass, rtol=1e-5)
            np.testing.assert_allclose(getattr(state, part)[c], total, atol=1e-5)


def test_conflicts_are_mean_elements_by_label_and_reading():
    slots, given = make_batch()
    own = given["conflict"]
    state = update("conflict", fresh("conflict"), slots, own, 0.8)
    total, weight, square = np.zeros((CLASSES, CLASSES, 3)), np.zeros((CLASSES, CLASSES)), np.zeros((3, 3))
    for i in range(8):
        elements = np.asarray(slots.values)[i][np.asarray(slots.mask)[i]].reshape(-1, 3)  # valid slots' elements
        w, y = float(own["weight"][i]), int(own["label"][i])
        square += w * elements.T @ elements / len(elements)
        for c in range(CLASSES):
            total[y, c] += w * float(own["reading"][i, c]) * elements.mean(0)
            weight[y, c] += w * float(own["reading"][i, c])
    np.testing.assert_allclose(state.total, 0.2 * total, atol=1e-5)
    np.testing.assert_allclose(state.weight, 0.2 * weight, atol=1e-5)
    np.testing.assert_allclose(state.square, 0.2 * square, atol=1e-5)


def update_rows(kind, state, slots, given, rows):
    """The update by these rows of the batch alone."""
    own, part = jax.tree.map(lambda x: x[rows], (slots, given))
    return update(kind, state, own, part, 0.9)


@pytest.mark.parametrize("kind", ["misleading", "conflict"])
def test_a_batch_split_over_devices_adds_up_and_padding_adds_nothing(kind):
    slots, given = make_batch()
    own, (earlier, before) = given[kind], make_batch(seed=1)
    start = update(kind, fresh(kind), earlier, before[kind], 0.0)
    whole = update(kind, start, slots, own, 0.9)
    first, second, left_out = (update_rows(kind, start, slots, own, rows) for rows in (np.arange(3), np.arange(3, 8), np.arange(5)))
    merged = jax.tree.map(lambda a, b, old: a + b - 0.9 * old, first, second, start)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), merged, whole)

    keep = np.arange(8) < 5
    padded = own | {"weight": jnp.where(keep, own["weight"], 0.0)}
    spoiled = Slots(jnp.where(jnp.asarray(keep)[:, None, None], slots.values, 1e3), slots.mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), update(kind, start, spoiled, padded, 0.9), left_out)


def test_resemblance_is_the_cosine_with_what_misled_beyond_what_was_right():
    slots, given = make_batch(b=20)
    state = update("misleading", fresh("misleading"), slots, given["misleading"], 0.5)
    predicted = given["misleading"]["predicted"]
    found = np.asarray(memory.resemblance(state, slots, predicted))
    for i, c in enumerate(np.asarray(predicted)):
        direction = np.asarray(state.errors[c] / state.errors_weight[c] - state.rights[c] / state.rights_weight[c])
        for n in range(SPEC.count):
            x = np.asarray(slots.values)[i, n]
            cosine = x @ direction / np.linalg.norm(x) / np.linalg.norm(direction) if slots.mask[i, n] else 0.0
            assert found[i, n] == pytest.approx(max(cosine, 0.0), abs=1e-5)


def test_an_empty_memory_resembles_nothing():
    slots, given = make_batch()
    assert not np.asarray(memory.resemblance(fresh("misleading"), slots, given["misleading"]["predicted"])).any()


# The mirror. Elements are drawn as: what the label looks like, plus the cue of what is read, plus correlated noise.

CUES = np.array([[1.0, 0.0, 0.5], [-1.0, 0.5, 0.0]])
ROOT = np.array([[0.5, 0.0, 0.0], [0.4, 0.3, 0.0], [-0.2, 0.1, 0.6]])


def planted(b=400, looks=((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)), seed=0):
    """Two labels, each read as either class (the cue follows the reading); 8 elements an example in 4 slots of 2."""
    rng = np.random.default_rng(seed)
    label, read = np.arange(b) % 2, np.arange(b) // 2 % 2
    elements = np.asarray(looks)[label][:, None] + CUES[read][:, None] + rng.normal(size=(b, 8, 3)) @ ROOT.T
    slots = Slots(jnp.asarray(elements.reshape(b, 4, 6), jnp.float32), jnp.ones((b, 4), bool))
    state = memory.update_conflict(
        memory.init_conflict(SPEC, 2),
        slots,
        element=3,
        label=jnp.asarray(label),
        reading=jnp.eye(2)[read],
        weight=jnp.ones(b),
        decay=0.0,
    )
    return label, read, elements, slots, state


def pair(mirror, source, target, b):
    return (jnp.broadcast_to(part[source, target], (b, part.shape[-1])) for part in mirror)


def test_the_mirror_is_the_one_that_linear_algebra_gives():
    label, read, elements, _, state = planted(looks=((0.3, 0.0, 0.0), (0.0, -0.2, 0.1)))
    mirror = memory.mirror(state)
    mean = np.array([[elements[(label == y) & (read == c)].reshape(-1, 3).mean(0) for c in range(2)] for y in range(2)])
    along = ((mean[0, 1] - mean[0, 0]) - (mean[1, 0] - mean[1, 1])) / 4
    centred = np.concatenate([(elements[(label == y) & (read == c)] - mean[y, c]).reshape(-1, 3) for c in range(2) for y in range(2)])
    spread = centred.T @ centred / len(centred)
    across = np.linalg.solve(spread, along)
    np.testing.assert_allclose(mirror.along[0, 1], along, atol=1e-4)
    np.testing.assert_allclose(mirror.along[1, 0], -along, atol=1e-4)
    np.testing.assert_allclose(mirror.across[0, 1], across / (across @ along), rtol=2e-2, atol=1e-2)
    np.testing.assert_allclose(mirror.middle[0, 1], mean.reshape(4, 3).mean(0), atol=1e-4)


def test_reflecting_twice_is_doing_nothing_and_both_ways_are_one_mirror():
    _, _, _, slots, state = planted()
    mirror = memory.mirror(state)
    once = intervene.reflect(slots, *pair(mirror, 0, 1, 400))
    assert np.abs(once - slots.values).max() > 1
    np.testing.assert_allclose(intervene.reflect(Slots(once, slots.mask), *pair(mirror, 0, 1, 400)), slots.values, atol=1e-4)
    np.testing.assert_allclose(intervene.reflect(slots, *pair(mirror, 1, 0, 400)), once, atol=1e-4)


def test_reflection_maps_each_cues_mean_to_the_others_keeps_the_spread_and_what_is_orthogonal_in_it():
    _, read, elements, slots, state = planted(b=2000)
    mirror = memory.mirror(state)
    after = np.asarray(intervene.reflect(slots, *pair(mirror, 0, 1, 2000))).reshape(-1, 8, 3)
    for c in (0, 1):
        np.testing.assert_allclose(after[read == c].reshape(-1, 3).mean(0), elements[read == 1 - c].reshape(-1, 3).mean(0), atol=0.05)
        np.testing.assert_allclose(np.cov(after[read == c].reshape(-1, 3).T), np.cov(elements[read == c].reshape(-1, 3).T), atol=0.03)
    # A deviation from the middle that is orthogonal to the cue in the metric of the spread: S^-1-orthogonal.
    spread = ROOT @ ROOT.T
    along = (CUES[1] - CUES[0]) / 2
    others = np.linalg.svd(np.linalg.solve(spread, along)[None])[2][1:]
    np.testing.assert_allclose(others @ np.linalg.solve(spread, along), 0, atol=1e-9)
    values = (np.asarray(mirror.middle[0, 1]) + others).reshape(1, 1, 6)
    own = Slots(jnp.asarray(values, jnp.float32), jnp.ones((1, 1), bool))
    np.testing.assert_allclose(intervene.reflect(own, *pair(mirror, 0, 1, 1)), values, atol=0.05)


@pytest.mark.parametrize("ink", [(1.0, 1.0, 1.0), (0.9, 0.2, 0.4)])
def test_a_coloured_ground_changes_its_colour_and_the_ink_keeps_its_own(ink):
    rng = np.random.default_rng(0)
    b, grounds = 300, np.array([[0.8, 0.3, 0.2], [0.2, 0.4, 0.8]])
    label, read = np.arange(b) % 2, np.arange(b) // 2 % 2
    inked = rng.random((b, 32)) < 0.25
    pixels = np.where(inked[..., None], np.array(ink), grounds[read][:, None]) + 0.02 * rng.normal(size=(b, 32, 3))
    slots = Slots(jnp.asarray(pixels.reshape(b, 4, 24), jnp.float32), jnp.ones((b, 4), bool))
    spec = SlotSpec(kind="image", count=4, width=24, element=3)
    state = memory.update_conflict(
        memory.init_conflict(spec, 2),
        slots,
        element=3,
        label=jnp.asarray(label),
        reading=jnp.eye(2)[read],
        weight=jnp.ones(b),
        decay=0.0,
    )
    after = np.asarray(intervene.reflect(slots, *pair(memory.mirror(state), 0, 1, b))).reshape(b, 32, 3)
    for c in (0, 1):
        here = (read == c)[:, None]
        np.testing.assert_allclose(after[here & ~inked].mean(0), grounds[1 - c], atol=0.04)
        np.testing.assert_allclose(after[here & inked].mean(0), ink, atol=0.04)
    assert np.abs(after[inked] - ink).mean() < 0.04
