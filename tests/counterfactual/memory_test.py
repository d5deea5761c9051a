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


def striped(b=400, seed=0, size=8, share=0.05):
    """Pictures of one channel on stripes across or along, of any phase; reading, label, and the pictures without stripes."""
    rng = np.random.default_rng(seed)
    label = np.arange(b) % 2
    read = np.where(rng.random(b) < share, 1 - label, label)
    place, phase = np.arange(size), rng.uniform(0, 2 * np.pi, b)
    wave = np.sin(2 * np.pi * place / 4 + phase[:, None])
    stripes = np.where(read[:, None, None] == 1, wave[:, None, :], wave[:, :, None])
    content = 0.3 * rng.normal(size=(b, size, size)) + label[:, None, None] * np.outer(place < 4, place < 4)
    patches = (content + stripes).reshape(b, 2, 4, 2, 4).swapaxes(2, 3).reshape(b, 4, 16)
    return label, read, Slots(jnp.asarray(patches, jnp.float32), jnp.ones((b, 4), bool))


TEXTURED = SlotSpec(kind="image", count=4, width=16, element=1, grid=(2, 2))


def learned(steps=150, decay=0.9):
    label, read, slots = striped(4000)
    counts = jnp.asarray([[np.mean((label == y) & (read == c)) for c in range(2)] for y in range(2)], jnp.float32)
    given = {"label": jnp.asarray(label), "reading": jnp.eye(2)[read], "weight": jnp.ones(4000)}
    state = memory.init_pattern(jax.random.key(0), TEXTURED, 2, directions=4)

    def step(state, _):
        return memory.update_pattern(state, slots, counts=counts * 4000, **given, decay=decay), None

    return label, read, slots, jax.lax.scan(step, state, None, length=steps)[0]


def test_patterns_are_the_leading_eigenvectors_of_the_difference_of_second_moments_within_labels():
    label, read, slots, state = learned()
    flat = np.asarray(slots.values, np.float64).reshape(4000, -1)
    np.testing.assert_allclose(state.mean, flat.mean(0), atol=1e-4)
    centred = flat - flat.mean(0)
    difference = np.zeros((64, 64))
    for y in range(2):
        for c, sign in ((1, 1), (0, -1)):
            own = centred[(label == y) & (read == c)]
            difference += sign * own.T @ own / len(own)
    values, vectors = np.linalg.eigh(difference)
    np.testing.assert_allclose(state.size[1, :2], values[::-1][:2], rtol=1e-2)
    np.testing.assert_allclose(state.size[0, :2], -values[:2], rtol=1e-2)
    for c, expected in ((1, vectors[:, -2:]), (0, vectors[:, :2])):
        found = np.asarray(state.basis[c, :, :2])
        np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-2)
    assert (np.asarray(state.size[:, 2]) < 0.5 * np.asarray(state.size[:, 0])).all()  # stripes of any phase span two


def test_exchanging_turns_the_stripes_keeps_the_rest_and_done_twice_is_nothing():
    _, read, slots, state = learned()
    source, target = jnp.asarray(read), jnp.asarray(1 - read)
    once = intervene.exchange(slots, *memory.swap(state, source, target, threshold=0.5))
    twice = intervene.exchange(Slots(once, slots.mask), *memory.swap(state, target, source, threshold=0.5))
    np.testing.assert_allclose(twice, slots.values, atol=1e-4)
    strength = {}
    for name, values in (("before", slots.values), ("after", once)):
        picture = np.asarray(values).reshape(-1, 2, 2, 4, 4).swapaxes(2, 3).reshape(-1, 8, 8)
        spectrum = np.abs(np.fft.fft2(picture - picture.mean(0)))
        strength[name] = np.where(read == 1, spectrum[:, 0, 2], spectrum[:, 2, 0]), np.where(read == 1, spectrum[:, 2, 0], spectrum[:, 0, 2])
    (own, other), (own_after, other_after) = strength["before"], strength["after"]
    assert own.mean() > 8 * other.mean() and other_after.mean() > 8 * own_after.mean()
    np.testing.assert_allclose(other_after.mean(), own.mean(), rtol=0.05)
    # What lies across both patterns is untouched.
    spans = np.concatenate([np.asarray(state.basis[c, :, :2]) for c in (0, 1)], 1)
    rest = np.eye(64) - spans @ np.linalg.pinv(spans)
    change = (np.asarray(once) - np.asarray(slots.values)).reshape(-1, 64)
    np.testing.assert_allclose(change @ rest, 0, atol=1e-3)


def test_where_nothing_is_known_of_patterns_nothing_is_exchanged_that_is_not_orthogonal_and_finite():
    _, _, slots = striped(8)
    state = memory.init_pattern(jax.random.key(0), TEXTURED, 2, directions=4)
    _, mirrors = memory.swap(state, jnp.zeros(8, int), jnp.ones(8, int), threshold=0.5)
    gram = np.einsum("bwk,bwl->bkl", mirrors, mirrors)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(4), gram.shape), atol=1e-5)
    _, none = memory.swap(state, jnp.ones(8, int), jnp.ones(8, int), threshold=0.5)  # a class with itself
    np.testing.assert_array_equal(none, 0)
    np.testing.assert_array_equal(intervene.exchange(slots, jnp.zeros(64), none), slots.values)


def test_gram_schmidt_agrees_with_qr_and_drops_what_depends_on_the_rest():
    columns = np.random.default_rng(0).normal(size=(3, 20, 4))
    expected = np.linalg.qr(columns)[0]
    found = np.asarray(memory.orthonormal(jnp.asarray(columns, jnp.float32)))
    np.testing.assert_allclose(
        found, expected * np.sign((expected * columns).sum(1, keepdims=True)) * 1.0 * np.sign((found * columns).sum(1, keepdims=True)), atol=1e-5
    )
    columns[..., 2] = columns[..., 0] - 2 * columns[..., 1]
    found = np.asarray(memory.orthonormal(jnp.asarray(columns, jnp.float32)))
    np.testing.assert_array_equal(found[..., 2], 0)
    np.testing.assert_allclose(np.einsum("swk,swl->skl", found, found), np.broadcast_to(np.diag([1, 1, 0, 1]), (3, 4, 4)), atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 24])
def test_conjugate_gradients_solve(size):
    rng = np.random.default_rng(size)
    root = rng.normal(size=(size, 2 * size))
    matrix, columns = root @ root.T + 0.1 * np.eye(size), rng.normal(size=(size, 5))
    columns[:, 0] = 0
    found = memory.solve(jnp.asarray(matrix, jnp.float32), jnp.asarray(columns, jnp.float32))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, columns), rtol=2e-3, atol=2e-3)
