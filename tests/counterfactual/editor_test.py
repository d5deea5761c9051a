"""The whole edit, with references that are set by hand: what is chosen, who gives, which edit wins, and what is left alone.

A slot is (content, cue): the reference reads the sign of the cue in any slot and nothing else.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.counterfactual import editor, reference
from cimrl_jax.errors import UserError
from cimrl_jax.types import Batch, Slots, SlotSpec, Spec

ROWS, COUNT = 24, 4
LAYOUT = {"only": SlotSpec(kind="slots", count=COUNT, width=2, element=2)}
READER = {
    "inner": jnp.array([[0.0, 0.0], [1.0, -1.0]]),
    "inner_bias": jnp.zeros(2),
    "outer": 20 * jnp.array([[0.0, 1.0], [1.0, 0.0]]),  # cue above 0: class 1, below: class 0
    "outer_bias": jnp.zeros(2),
}
HYPER = {name: jnp.float32(value) for name, value in {"decay": 0.9, "threshold": 0.5, "size": 0.5, "skill": 0.2, "together": 0.0}.items()}
LABEL = np.arange(ROWS) % 2
CUE = np.where(np.arange(ROWS) % 6 < 4, LABEL, 1 - LABEL)  # two thirds agree with the label
PLACE = np.random.default_rng(0).integers(0, COUNT, ROWS)


def make_batch(*, spread: bool, weight=None, present=None):
    """The cue in one slot of each example or, spread, in all; content is far from 0 and says the label."""
    values = np.zeros((ROWS, COUNT, 2), np.float32)
    values[..., 0] = np.random.default_rng(1).normal(size=(ROWS, COUNT)) * 0.1 + (5 * LABEL + 5)[:, None]
    values[np.arange(ROWS), PLACE, 1] = 2.0 * CUE - 1.0
    if spread:
        values[..., 1] = (2.0 * CUE - 1.0)[:, None]
    here = np.ones(ROWS, bool) if present is None else present
    fields = {
        "inputs": {"only": values},
        "present": {"only": here},
        "label": LABEL.astype(np.int32),
        "group": np.full(ROWS, -1, np.int32),
        "index": np.arange(ROWS, dtype=np.int32),
        "weight": np.ones(ROWS, np.float32) if weight is None else weight,
    }
    mask = jnp.broadcast_to(jnp.asarray(here)[:, None], (ROWS, COUNT))
    return Batch(**jax.tree.map(jnp.asarray, fields)), {"only": Slots(jnp.where(mask[..., None], jnp.asarray(values), 0.0), mask)}


@functools.cache
def compiled(intervention, most=0.5, directions=2):
    plan = editor.Plan("reference", intervention, 2, most, directions, LAYOUT, 2)
    spec = Spec(num_classes=2, num_groups=0, num_examples=ROWS, steps=10, slots=LAYOUT, dim=2, class_counts=(12, 12))
    state = editor.init(jax.random.key(0), spec, plan)[1]

    @jax.jit
    def run(state, slots, batch, key):
        return editor.edit(plan, {"only": READER}, state, HYPER, slots, batch, key, blank={"only": jnp.zeros(2)})

    return run, state


def edited(intervention, batch, slots, key=0, **plan):
    run, state = compiled(intervention, **plan)
    return run(state, slots, batch, jax.random.key(key))


def reading(values, mask):
    return np.asarray(jnp.argmax(reference.read(READER, Slots(values, mask))[0], axis=-1))


def test_the_evidence_chooses_the_slot_with_the_cue():
    out, _ = edited("donor", *make_batch(spread=False))
    np.testing.assert_array_equal(out.chosen["only"], np.eye(COUNT)[PLACE])
    np.testing.assert_array_equal(np.argmax(out.reading["only"], axis=-1), CUE)
    spread, _ = edited("donor", *make_batch(spread=True))
    np.testing.assert_array_equal(spread.chosen["only"], np.ones((ROWS, COUNT)))


def test_a_donor_turns_the_cue_and_touches_nothing_but_the_chosen_slot():
    batch, slots = make_batch(spread=False)
    out, _ = edited("donor", batch, slots)
    np.testing.assert_array_equal(reading(out.slots["only"].values, slots["only"].mask), 1 - CUE)
    changed = (np.asarray(out.slots["only"].values) != np.asarray(slots["only"].values)).any(-1)
    np.testing.assert_array_equal(changed, np.eye(COUNT, dtype=bool)[PLACE])
    np.testing.assert_allclose(out.quality["only"], 1.0, atol=0.05)


def test_a_donor_edit_that_would_replace_too_much_is_not_made():
    batch, slots = make_batch(spread=True)
    out, _ = edited("donor", batch, slots)
    np.testing.assert_array_equal(out.slots["only"].values, slots["only"].values)
    np.testing.assert_array_equal(out.quality["only"], 0)
    every, _ = edited("donor", batch, slots, most=1.0)
    assert (reading(every.slots["only"].values, slots["only"].mask) == 1 - CUE).all()


def test_reflection_turns_a_cue_that_lies_everywhere_and_leaves_the_content():
    batch, slots = make_batch(spread=True)
    out, _ = edited("reflect", batch, slots)
    values = np.asarray(out.slots["only"].values)
    np.testing.assert_array_equal(reading(out.slots["only"].values, slots["only"].mask), 1 - CUE)
    np.testing.assert_allclose(values[..., 1], -np.asarray(slots["only"].values)[..., 1], atol=0.1)
    np.testing.assert_allclose(values[..., 0], np.asarray(slots["only"].values)[..., 0], atol=0.1)


def test_a_mix_is_with_an_example_of_the_same_label_that_is_read_otherwise():
    batch, slots = make_batch(spread=True)
    out, _ = edited("mix", batch, slots)
    values, own = np.asarray(out.slots["only"].values), np.asarray(slots["only"].values)
    assert np.abs(values[..., 0] - own[..., 0]).max() < 1  # contents of the two labels lie 5 apart
    assert (np.abs(values[..., 1]) < 1).all()  # between the two cues
    share = (values[:, :1, 1] / own[:, :1, 1] + 1) / 2
    assert 0.3 < share.mean() < 0.7 and share.std() > 0.1


@pytest.mark.parametrize(("spread", "winner"), [(False, "donor"), (True, "reflect")])
def test_the_edit_that_flips_the_reference_wins(spread, winner):
    batch, slots = make_batch(spread=spread)
    run, state = compiled("auto")
    for key in range(5):
        out, state = run(state, slots, batch, jax.random.key(key))
    assert editor.CANDIDATES[int(np.argmax(state["quality"]["only"]))] == winner
    alone, _ = edited(winner, batch, slots, key=4)
    if winner == "donor":  # it draws the same donors
        np.testing.assert_array_equal(out.slots["only"].values, alone.slots["only"].values)
    assert (reading(out.slots["only"].values, slots["only"].mask) == 1 - CUE).all()


def test_without_directions_there_is_no_exchange_and_no_memory_of_patterns():
    run, state = compiled("auto", directions=0)
    batch, slots = make_batch(spread=True)
    _, after = run(state, slots, batch, jax.random.key(0))
    assert after["pattern"]["only"] == () and len(after["quality"]["only"]) == 3
    with pytest.raises(UserError, match="directions"):
        compiled("exchange", directions=0)


def test_on_equal_quality_the_earlier_candidate_wins_and_the_running_quality_is_an_average():
    batch, slots = make_batch(spread=False)
    run, state = compiled("auto")
    for kind, quality in (("donor", [0.5, 0.5, 0.2, 0.5]), ("reflect", [0.1, 0.5, 0.2, 0.5]), ("mix", [0.1, 0.1, 0.2, 0.5])):
        given = state | {"quality": {"only": jnp.array(quality)}}
        out, after = run(given, slots, batch, jax.random.key(2))
        alone, measured = edited(kind, batch, slots, key=2)
        np.testing.assert_allclose(out.slots["only"].values, alone.slots["only"].values, atol=1e-5)
        place = editor.CANDIDATES.index(kind)
        fresh = float(measured["quality"]["only"][0]) / 0.1  # from 0, by a tenth
        assert float(after["quality"]["only"][place]) == pytest.approx(0.9 * quality[place] + 0.1 * fresh, abs=1e-5)


def test_absent_and_weightless_examples_give_nothing_and_count_for_nothing():
    present, weight = np.arange(ROWS) % 4 > 0, np.where(np.arange(ROWS) % 5 > 0, 1.0, 0.0).astype(np.float32)
    out, state = edited("donor", *make_batch(spread=False, weight=weight, present=present))
    batch, slots = make_batch(spread=False, weight=weight, present=present)
    marked = slots["only"].values + jnp.where(jnp.asarray(weight == 0)[:, None, None], 100.0, 0.0) * jnp.array([1.0, 0.0])
    other, after = edited("donor", batch, {"only": Slots(jnp.where(slots["only"].mask[..., None], marked, 0.0), slots["only"].mask)})
    counted = present & (weight > 0)
    np.testing.assert_array_equal(np.asarray(other.slots["only"].values)[counted], np.asarray(out.slots["only"].values)[counted])
    jax.tree.map(np.testing.assert_array_equal, after, state)
    np.testing.assert_array_equal(np.asarray(out.slots["only"].values)[~present], 0)
    for key in range(5):
        out, _ = edited("donor", batch, slots, key=key)
        np.testing.assert_array_equal(reading(out.slots["only"].values, slots["only"].mask)[counted], (1 - CUE)[counted])


def test_where_all_read_alike_nothing_is_edited():
    batch, slots = make_batch(spread=False)
    alike = {"only": Slots(jnp.abs(slots["only"].values), slots["only"].mask)}
    for intervention in ("donor", "mix"):
        out, _ = edited(intervention, batch, alike)
        np.testing.assert_array_equal(out.slots["only"].values, alike["only"].values)
        assert not np.asarray(out.quality["only"]).any()


def test_the_references_loss_is_the_weighted_generalised_cross_entropy_of_each_modality():
    batch, slots = make_batch(spread=False, weight=np.linspace(0, 2, ROWS).astype(np.float32), present=np.arange(ROWS) % 3 > 0)
    logits = np.asarray(reference.read(READER, slots["only"])[0], np.float64)
    p = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[np.arange(ROWS), LABEL]
    weight = np.asarray(batch.weight) * np.asarray(batch.present["only"])
    expected = (weight * (1 - p**0.7) / 0.7).sum() / weight.sum()
    assert float(editor.fit({"only": READER}, slots, batch, jnp.float32(0.7))) == pytest.approx(expected, rel=1e-5)
