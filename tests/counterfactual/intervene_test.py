"""What each edit does to hand-made slots, and who is drawn as a donor."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cimrl_jax.counterfactual import intervene
from cimrl_jax.types import Slots, SlotSpec

UNIT = SlotSpec(kind="image", count=3, width=2, element=2, low=-1.0, high=1.0)
FREE = SlotSpec(kind="slots", count=3, width=2, element=2)


def make_slots(b=4, n=3, d=2, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return Slots(jnp.asarray(rng.uniform(-scale, scale, (b, n, d)), jnp.float32), jnp.ones((b, n), bool))


def test_donors_follow_the_affinities_and_are_never_oneself_or_unusable():
    rng = np.random.default_rng(0)
    affinity = rng.uniform(0.1, 1.0, (6, 6)).astype(np.float32)
    affinity[1, 2] = affinity[5] = 0.0
    usable = np.array([True, True, True, False, True, True])
    chances, rounds = [], 3000
    drawn, found = jax.vmap(lambda key: intervene.draw_donors(key, jnp.asarray(affinity), jnp.asarray(usable)))(
        jax.random.split(jax.random.key(0), rounds)
    )
    np.testing.assert_array_equal(found, np.tile([True] * 5 + [False], (rounds, 1)))
    for i in range(5):
        odds = affinity[i].astype(np.float64) * usable * (np.arange(6) != i)
        counts = np.bincount(np.asarray(drawn[:, i]), minlength=6)
        assert counts[odds == 0].sum() == 0
        chances.append(scipy.stats.chisquare(counts[odds > 0], rounds * odds[odds > 0] / odds.sum()).pvalue)
    assert min(chances) > 1e-3


def test_a_single_example_has_no_donor():
    drawn, found = intervene.draw_donors(jax.random.key(0), jnp.ones((1, 1)), jnp.array([True]))
    assert not found.any() and 0 <= int(drawn[0]) < 1


def test_a_donor_gives_its_best_slot_for_the_best_and_so_on_down_the_ranks():
    values = jnp.array([[[1.0], [2.0], [3.0], [4.0]], [[10.0], [20.0], [30.0], [40.0]], [[100.0], [200.0], [300.0], [400.0]]])
    slots = Slots(values, jnp.ones((3, 4), bool))
    evidence = jnp.array([[0.1, 0.9, 0.5, 0.0], [0.7, 0.0, 0.9, 0.1], [0.0, 0.0, 0.0, 1.0]])
    chosen = jnp.array([[0.0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 1]])
    edited = intervene.donor(slots, chosen, evidence, jnp.array([1, 2, 0]))[..., 0]
    # 0 takes from 1 (ranks: slots 2, 0); 1 takes from 2, which has chosen one slot only, so twice that one; 2 takes 0's best.
    np.testing.assert_array_equal(edited, [[1, 30, 10, 4], [400, 20, 400, 40], [100, 200, 300, 2]])


def test_without_chosen_slots_nothing_is_swapped():
    slots = make_slots()
    np.testing.assert_array_equal(intervene.donor(slots, jnp.zeros((4, 3)), jnp.ones((4, 3)), jnp.array([1, 0, 3, 2])), slots.values)


def sentence(text, n=6):
    """(a row of slots, which of them are chosen): a letter is a word, a capital is chosen."""
    values, mask, chosen = np.zeros((n, 1), np.float32), np.zeros(n, bool), np.zeros(n, np.float32)
    for i, letter in enumerate(text):
        values[i], mask[i], chosen[i] = ord(letter.lower()), True, letter.isupper()
    return values, mask, chosen


@pytest.mark.parametrize(
    ("own", "theirs", "expected"),
    [
        ("abXcd", "efYgh", "abycd"),  # where it stood
        ("Xabc", "efghY", "abcy"),  # from the start to the end
        ("abXc", "efg", "abc"),  # nothing comes: the others close up
        ("abcd", "eYf", "abycd"),  # nothing goes: they move apart
        ("Xabcde", "YfZgWh", "yabzcd"),  # too long by two: cut
        ("X", "Y", "y"),
        ("", "Y", "y"),
        ("aX", "", "a"),
    ],
)
def test_a_splice_takes_the_chosen_words_out_and_puts_the_donors_in_as_far_along(own, theirs, expected):
    values, mask, chosen = map(jnp.asarray, map(np.stack, zip(sentence(own), sentence(theirs), strict=True)))
    made = intervene.splice(Slots(values, mask), chosen, jnp.array([1, 0]))
    said = "".join(chr(int(x)) for x in np.asarray(made.values[0, :, 0])[np.asarray(made.mask[0])])
    assert said == expected and (np.asarray(made.mask[0]) == (np.arange(6) < len(expected))).all()


def test_interpolation_goes_from_the_donor_to_oneself():
    slots, donors = make_slots(), jnp.array([1, 2, 3, 0])
    mixed = intervene.interpolate(slots, donors, jnp.array([1.0, 0.0, 0.5, 0.25]))
    x = np.asarray(slots.values)
    np.testing.assert_allclose(mixed, [x[0], x[2], (x[2] + x[3]) / 2, 0.25 * x[3] + 0.75 * x[0]], rtol=1e-6)


def test_reflection_is_the_formula_for_every_element():
    slots = make_slots(d=6)
    along, across, middle = (np.random.default_rng(i).normal(size=(4, 3)).astype(np.float32) for i in (1, 2, 3))
    after = np.asarray(intervene.reflect(slots, *map(jnp.asarray, (along, across, middle))))
    for i, n, k in np.ndindex(4, 3, 2):
        x = np.asarray(slots.values)[i, n, 3 * k : 3 * k + 3]
        np.testing.assert_allclose(after[i, n, 3 * k : 3 * k + 3], x - 2 * ((x - middle[i]) @ across[i]) * along[i], rtol=1e-4, atol=1e-5)


def test_mask_and_mean_replace_the_chosen_slots_only():
    slots, chosen = make_slots(), jnp.array([[1.0, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 1]])
    keep = ~np.asarray(chosen, bool)
    masked = np.asarray(intervene.mask(slots, chosen, jnp.array([7.0, -7.0])))
    averaged = np.asarray(intervene.mean(slots, chosen))
    for edited, content in ((masked, [7.0, -7.0]), (averaged, np.asarray(slots.values).mean((0, 1)))):
        np.testing.assert_array_equal(edited[keep], np.asarray(slots.values)[keep])
        np.testing.assert_allclose(edited[~keep], np.broadcast_to(content, (5, 2)), rtol=1e-5)


def test_the_mean_is_that_of_valid_slots():
    slots = make_slots()
    mask = jnp.asarray(np.random.default_rng(1).random((4, 3)) < 0.6)
    content = np.asarray(slots.values)[np.asarray(mask)].mean(0)
    edited = intervene.mean(Slots(jnp.where(mask[..., None], slots.values, 99.0), mask), jnp.ones((4, 3)))
    np.testing.assert_allclose(edited, np.broadcast_to(content, (4, 3, 2)), atol=1e-5)


def test_a_gradient_step_lowers_what_the_gradient_raises_and_stays_in_range():
    slots, chosen = make_slots(), jnp.ones((4, 3)).at[0].set(0.0)
    direction = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3, 2)), jnp.float32)
    after = np.asarray(intervene.gradient(slots, chosen, direction, 0.5, FREE))
    np.testing.assert_array_equal(after[0], slots.values[0])
    np.testing.assert_allclose(after[1:], np.asarray(slots.values - 0.5 * jnp.sign(direction))[1:], rtol=1e-6)
    assert (((after - np.asarray(slots.values)) * np.asarray(direction))[1:] < 0).all()
    clipped = np.asarray(intervene.gradient(slots, chosen, direction, 0.5, UNIT))
    np.testing.assert_allclose(clipped, np.clip(after, -1, 1), rtol=1e-6)
    assert np.abs(after).max() > 1 >= np.abs(clipped).max()


@pytest.mark.parametrize(("spec", "bounded"), [(UNIT, True), (FREE, False)])
def test_noise_has_its_size_on_the_chosen_slots_and_stays_in_range(spec, bounded):
    slots = make_slots(b=2000)
    chosen = jnp.zeros((2000, 3)).at[:, 1].set(1.0)
    change = np.asarray(intervene.noise(jax.random.key(0), slots, chosen, 0.5, spec) - slots.values)
    assert not change[:, [0, 2]].any()
    if bounded:
        assert np.abs(change + np.asarray(slots.values)).max() <= 1
    else:
        assert change[:, 1].std() == pytest.approx(0.5, rel=0.05)
