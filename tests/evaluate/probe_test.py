"""What can be read off edits, on slots made by hand, and against scikit-learn's logistic regression."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cimrl_jax.evaluate import probe
from cimrl_jax.report import tables
from cimrl_jax.types import Slots, SlotSpec

ROWS, CLASSES = 600, 3
RNG = np.random.default_rng(0)
LABEL, ATTRIBUTE, OTHER = RNG.integers(0, CLASSES, (3, ROWS))


def slots(label, attribute, *, tint=0.0, noise=0.1):
    """One slot that tells the label, one that tells the attribute, one that is not there, of one member."""
    values = np.zeros((len(label), 3, 2 * CLASSES))
    values[:, 0, :CLASSES], values[:, 1, CLASSES:] = np.eye(CLASSES)[label], np.eye(CLASSES)[attribute]
    values[:, 2] = 1e6
    values += noise * np.random.default_rng(1).normal(size=values.shape) + tint
    mask = np.broadcast_to(np.arange(3) < 2, (1, len(label), 3))
    return Slots(jnp.asarray(values, jnp.float32)[None], jnp.asarray(mask))


def read(after, *, attribute=ATTRIBUTE):
    [found] = probe.probe(slots(LABEL, ATTRIBUTE), after, LABEL, attribute)
    return found


def test_an_edit_that_takes_the_shortcut_and_nothing_else():
    found = read(slots(LABEL, OTHER))
    assert found.pop("n") == ROWS
    kept = {"label": 1, "label_edited": 1, "label_recovered": 1, "attribute": 1}
    assert found == pytest.approx({**kept, "attribute_edited": 0, "attribute_recovered": 0, "edited": 0}, abs=0.12)


def test_an_edit_that_always_says_the_next_value_is_gone_to_the_reader_of_originals_but_can_be_recovered():
    found = read(slots(LABEL, (ATTRIBUTE + 1) % CLASSES))
    assert found["attribute_edited"] == pytest.approx(-1 / (CLASSES - 1), abs=0.02) and found["attribute_recovered"] == pytest.approx(1, abs=0.02)


def test_an_edit_that_takes_the_cause_too():
    found = read(slots(OTHER, OTHER))
    assert found["label"] == pytest.approx(1, abs=0.02) and found["label_edited"] == pytest.approx(0, abs=0.12)


def test_an_edit_that_shows():
    found = read(slots(LABEL, OTHER, tint=2.0))
    assert found["edited"] == pytest.approx(1, abs=0.02)


def test_nothing_edited():
    found = read(slots(LABEL, ATTRIBUTE))
    assert found.keys() == {*tables.PROBED, "n"}  # what the report shows is what is measured
    assert found["attribute_edited"] == pytest.approx(1, abs=0.02) and found["edited"] == pytest.approx(0, abs=0.12)


def test_unknown_attributes_are_left_out():
    found = read(slots(LABEL, OTHER), attribute=np.full(ROWS, -1))
    assert found["attribute"] is None and found["attribute_edited"] is None and found["label"] == pytest.approx(1, abs=0.02)
    known = np.where(np.arange(ROWS) % 2, ATTRIBUTE, -1)
    assert read(slots(LABEL, OTHER), attribute=known)["attribute"] == pytest.approx(1, abs=0.02)


def test_rows_without_the_modality_do_not_count():
    there = jnp.arange(ROWS) % 3 > 0
    before, after = (
        Slots(jnp.where(there[:, None, None], own.values, 1e6), own.mask & there[:, None]) for own in (slots(LABEL, ATTRIBUTE), slots(LABEL, OTHER))
    )
    [found] = probe.probe(before, after, LABEL, ATTRIBUTE)
    assert found["n"] == 400 and found["label"] == pytest.approx(1, abs=0.02) and found["attribute_edited"] == pytest.approx(0, abs=0.15)


def test_as_skilled_as_logistic_regression_where_that_is_right():
    before, after = slots(LABEL, ATTRIBUTE, noise=0.7), slots(LABEL, OTHER, noise=0.7)
    [found] = probe.probe(before, after, LABEL, ATTRIBUTE)
    flat = np.asarray(before.values[0, :, :2]).reshape(ROWS, -1)
    half = ROWS // 2
    for name, target in (("label", LABEL), ("attribute", ATTRIBUTE)):
        oracle = LogisticRegression().fit(flat[:half], target[:half])
        right = oracle.predict(flat[half:]) == target[half:]
        share = np.mean([right[target[half:] == k].mean() for k in range(CLASSES)])
        assert found[name] == pytest.approx((share - 1 / 3) / (2 / 3), abs=0.15) and 0.2 < found[name] < 0.95


def test_every_member_has_its_own():
    one, other = slots(LABEL, OTHER), slots(LABEL, ATTRIBUTE)
    before, after = (Slots(jnp.concatenate([a.values, b.values]), jnp.concatenate([a.mask, b.mask])) for a, b in ((other, other), (one, other)))
    first, second = probe.probe(before, after, LABEL, ATTRIBUTE)
    assert first["attribute_edited"] < 0.2 and second["attribute_edited"] > 0.9


def test_what_is_kept_is_bounded():
    layout = {"image": SlotSpec("image", 196, 768, 3), "text": SlotSpec("text", 64, 128, 128)}
    size = 2 * 4 * (196 * probe.WIDTH + 64 * 128)
    assert probe.stride(layout, rows=100, members=1) == 1
    for rows, members in ((50_000, 1), (50_000, 16), (123, 10_000)):
        apart = probe.stride(layout, rows=rows, members=members)
        assert -(-rows // apart) <= probe.ROWS and (-(-rows // apart) * members * size <= probe.BYTES or apart >= rows)
    wide = Slots(jnp.ones((2, 3, 1000)), jnp.ones((2, 3), bool))
    assert probe.kept({"m": wide})["m"].values.shape == (2, 3, probe.WIDTH)
