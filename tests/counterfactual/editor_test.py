"""The whole edit, with references that are set by hand: what is chosen, who gives, which edit wins, and what is left alone.

A slot is (content, cue): the reference reads the sign of the cue in any slot and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.counterfactual import editor, memory, reference
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
KINDS = ("donor", "reflect", "exchange", "mix")
"""The candidates for slots that are not words."""
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
    assert KINDS[int(np.argmax(state["quality"]["only"]))] == winner
    alone, _ = edited(winner, batch, slots, key=4)
    if winner == "donor":  # it draws the same donors
        np.testing.assert_array_equal(out.slots["only"].values, alone.slots["only"].values)
    assert (reading(out.slots["only"].values, slots["only"].mask) == 1 - CUE).all()


def test_a_reader_that_is_no_better_than_chance_leaves_the_example_alone():
    batch, slots = make_batch(spread=False)
    batch = dataclasses.replace(batch, label=jnp.asarray(np.arange(ROWS) // 2 % 2, jnp.int32))
    assert abs(np.mean(np.asarray(batch.label) == CUE) - 0.5) < 0.1
    run, state = compiled("auto")
    out, after = run(state, slots, batch, jax.random.key(0))
    np.testing.assert_array_equal(out.slots["only"].values, slots["only"].values)
    assert not np.asarray(out.quality["only"]).any() and float(memory.skill(after["conflict"]["only"])) < 0.2
    assert not np.asarray(out.able).any() and not np.asarray(out.whole).any()
    asked, _ = edited("donor", batch, slots)  # by name it is made all the same
    assert (np.asarray(asked.slots["only"].values) != np.asarray(slots["only"].values)).any()
    assert np.asarray(asked.able).all() and np.asarray(asked.whole).all()


def test_skill_is_zero_at_chance_and_one_where_every_label_is_read():
    for right, expected in ((1.0, 1.0), (0.5, 0.0), (0.75, 0.5)):
        weight = jnp.array([[right, 1 - right], [10 * (1 - right), 10 * right]])  # unequal classes count alike
        state = memory.Conflict(total=jnp.zeros((2, 2, 1)), weight=weight, square=jnp.zeros((1, 1)))
        assert float(memory.skill(state)) == pytest.approx(expected, abs=1e-6)


def test_modalities_are_edited_apart_every_selection_equally_often_and_never_none():
    drawn = np.asarray(editor._which(jax.random.key(0), 6000, 2, jnp.float32(0.0)))
    shares = [np.mean((drawn == pattern).all(1)) for pattern in ([True, False], [False, True], [True, True])]
    assert drawn.any(1).all()
    np.testing.assert_allclose(shares, [0.25, 0.25, 0.5], atol=0.03)
    assert np.asarray(editor._which(jax.random.key(0), 100, 3, jnp.float32(1.0))).all()


SENTENCES = {"only": SlotSpec(kind="text", count=5, width=6, element=6)}


def ask(*questions):
    """Words are one-hot: 0 'there' says class 0, 1 'present' class 1, 2 to 4 name things, 5 stands in all."""
    values, mask = np.zeros((len(questions), 5, 6), np.float32), np.zeros((len(questions), 5), bool)
    for i, words in enumerate(questions):
        values[i, np.arange(len(words)), words] = 1
        mask[i, : len(words)] = True
    return Slots(jnp.asarray(values), jnp.asarray(mask))


def test_a_sentence_is_replaced_by_one_that_says_the_same_otherwise_whatever_its_length():
    questions = [(0, thing, 5) if form == 0 else (thing, 5, 5, 1) for thing in (2, 3, 4) for form in (0, 1)]
    slots, forms = ask(*questions), np.tile([0, 1], 3)
    reader = {"inner": 20 * jnp.eye(6)[:, :2], "inner_bias": jnp.zeros(2), "outer": jnp.array([[1.0, -1.0], [-1.0, 1.0]]), "outer_bias": jnp.zeros(2)}
    plan = editor.Plan("reference", "auto", 2, 0.5, 2, SENTENCES, 2)
    spec = Spec(num_classes=2, num_groups=0, num_examples=6, steps=10, slots=SENTENCES, dim=2, class_counts=(3, 3))
    state = editor.init(jax.random.key(0), spec, plan)[1]
    fields = {"label": forms, "group": np.full(6, -1), "index": np.arange(6)}
    batch = Batch(inputs={}, present={"only": jnp.ones(6, bool)}, weight=jnp.ones(6), **{k: jnp.asarray(v, jnp.int32) for k, v in fields.items()})
    run = jax.jit(lambda state, key: editor.edit(plan, {"only": reader}, state, HYPER, {"only": slots}, batch, key, blank={"only": jnp.zeros(6)}))
    for key in range(3):
        out, state = run(state, jax.random.key(key))
    assert plan.candidates("only")[int(np.argmax(state["quality"]["only"] * jnp.array([editor.PREFERENCE, 1, 1])))] == "rewrite"
    other = np.arange(6) ^ 1  # the same thing, asked in the other form
    np.testing.assert_array_equal(out.slots["only"].values, slots.values[other])
    np.testing.assert_array_equal(out.slots["only"].mask, slots.mask[other])


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
        place = KINDS.index(kind)
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
