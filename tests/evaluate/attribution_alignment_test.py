"""Alignment against transcriptions in NumPy (and quantus where it is installed); consistency against SciPy."""

from __future__ import annotations

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from cimrl_jax.evaluate import attribution_alignment as alignment

EXAMPLES, SLOTS = 6, 9
aligned = jax.jit(alignment.align)
few = hypothesis.settings(max_examples=25, deadline=None)


def make_case(seed):
    generator = np.random.default_rng(seed)
    evidence = generator.integers(0, 6, (EXAMPLES, SLOTS)).astype(np.float32)  # ties and zeros occur
    chosen = (generator.random((EXAMPLES, SLOTS)) < 0.3).astype(np.float32)
    mask = generator.random((EXAMPLES, SLOTS)) < 0.8
    share = np.where(generator.random((EXAMPLES, SLOTS)) < 0.3, 1.0, 0.0).astype(np.float32)
    return evidence, chosen, mask, share, np.ones(EXAMPLES, np.float32)


def by_hand(evidence, chosen, mask, share):
    """The measures of one example with sets and loops; None without a region. The top slots are taken in the order of a stable sort."""
    slots = [slot for slot in range(len(mask)) if mask[slot]]
    region = {slot for slot in slots if share[slot] > 0}
    if not region:
        return None
    picked = {slot for slot in slots if chosen[slot] > 0}
    positive = [slot for slot in slots if evidence[slot] > 0]
    ranked = sorted(positive, key=lambda slot: -evidence[slot])
    tied = [slot for slot in positive if evidence[slot] == evidence[ranked[0]]]
    top = set(ranked[: len(region)])
    return {
        "precision": len(picked & region) / len(picked) if picked else 0.0,
        "recall": len(picked & region) / len(region),
        "iou": len(picked & region) / len(picked | region),
        "pointing": np.mean([slot in region for slot in tied]) if tied else 0.0,
        "energy": sum(evidence[slot] for slot in region) / sum(evidence[slot] for slot in slots) if positive else 0.0,
        "attribution_iou": len(top & region) / len(top | region),
        "area": len(region) / len(slots),
    }


@few
@hypothesis.given(seed=st.integers(0, 10_000))
def test_alignment_equals_its_definition(seed):
    case = make_case(seed)
    expected = [found for row in zip(*case[:4], strict=True) if (found := by_hand(*row)) is not None]
    report = alignment.finish({"image": {"shortcut": aligned(*case)}})["image"]["shortcut"]
    assert report["n"] == len(expected)
    for name in alignment.MEASURES:
        assert report[name] == (pytest.approx(np.mean([found[name] for found in expected]), abs=1e-6) if expected else None)


@few
@hypothesis.given(seed=st.integers(0, 10_000), cut=st.integers(0, EXAMPLES))
def test_merging_and_padding_change_nothing(seed, cut):
    case = make_case(seed)
    weight = np.arange(EXAMPLES) < cut
    spoilt = [np.where(weight[:, None], part, np.nan).astype(np.float32) for part in case[:2]]  # rows of weight 0 may hold anything
    first = aligned(*spoilt, *case[2:4], weight.astype(np.float32))
    second = aligned(*case[:4], (~weight).astype(np.float32))
    for ours, theirs in zip(alignment.add(first, second), aligned(*case), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_perfect_and_opposite_choices():
    region = jnp.asarray([[1.0, 1.0, 0.0, 0.0]])
    mask, weight = jnp.ones((1, 4), bool), jnp.ones(1)
    right = alignment.finish({"m": {"cause": alignment.align(region, region, mask, region, weight)}})["m"]["cause"]
    wrong = alignment.finish({"m": {"cause": alignment.align(1 - region, 1 - region, mask, region, weight)}})["m"]["cause"]
    assert right == {**dict.fromkeys(alignment.MEASURES, 1.0), "area": 0.5, "n": 1.0}
    assert wrong == {**dict.fromkeys(alignment.MEASURES, 0.0), "area": 0.5, "n": 1.0}


def test_even_evidence_scores_what_chance_gives():
    mask, share = jnp.asarray([[True, True, True, True, False]]), jnp.asarray([[0.0, 0.0, 0.0, 1.0, 1.0]])
    report = alignment.finish({"m": {"cause": alignment.align(jnp.ones((1, 5)), jnp.ones((1, 5)), mask, share, jnp.ones(1))}})["m"]["cause"]
    assert report["pointing"] == report["energy"] == report["precision"] == report["area"] == 0.25


def test_a_region_thinner_than_a_slot_still_has_slots():
    share = jnp.asarray([[0.1, 0.08, 0.02, 0.0], [0.9, 1.0, 0.3, 0.0]])
    np.testing.assert_array_equal(alignment.planted(share, jnp.ones((2, 4), bool)), [[True, True, False, False]] * 2)


def test_every_modality_and_target_that_has_regions_is_reported():
    evidence, chosen, mask, share, weight = make_case(1)
    every = {"image": evidence, "text": evidence}
    regions = {"cause": {"image": share}, "shortcut": {"image": share, "text": np.zeros_like(share)}}
    report = alignment.finish(jax.jit(alignment.count)(every, {**every, "image": chosen}, {"image": mask, "text": mask}, regions, weight))
    assert {name: set(targets) for name, targets in report.items()} == {"image": {"cause", "shortcut"}, "text": {"shortcut"}}
    assert report["text"]["shortcut"] == {**dict.fromkeys(alignment.MEASURES), "n": 0.0}


def test_pointing_and_energy_equal_quantus():
    quantus = pytest.importorskip("quantus")
    generator = np.random.default_rng(0)
    evidence = generator.random((EXAMPLES, 16)).astype(np.float32)
    share = np.zeros((EXAMPLES, 16), np.float32)
    share[np.arange(EXAMPLES), np.arange(EXAMPLES) * 2] = share[:, 5] = 1.0
    report = alignment.finish({"m": {"cause": aligned(evidence, share, np.ones_like(share, bool), share, np.ones(EXAMPLES, np.float32))}})["m"][
        "cause"
    ]
    pictures = {
        "model": None,
        "x_batch": np.zeros((EXAMPLES, 1, 4, 4)),
        "y_batch": np.zeros(EXAMPLES, int),
        "a_batch": evidence.reshape(-1, 1, 4, 4),
        "s_batch": share.reshape(-1, 1, 4, 4).astype(bool),
    }
    quiet = {"abs": False, "normalise": False, "disable_warnings": True}
    assert report["pointing"] == pytest.approx(np.mean(quantus.PointingGame(**quiet)(**pictures)))
    assert report["energy"] == pytest.approx(np.mean(quantus.RelevanceMassAccuracy(**quiet)(**pictures)), abs=1e-6)


def test_consistency_equals_scipy():
    generator = np.random.default_rng(2)
    before, after = generator.normal(size=(2, 20, 3)).astype(np.float32)
    weight = np.r_[np.ones(15), np.zeros(5)].astype(np.float32)
    after[16:] = np.nan
    report = alignment.consistency_report(alignment.consistency(jnp.asarray(before), jnp.asarray(after), jnp.asarray(weight)))
    p, q = scipy.special.softmax(after[:15], axis=1), scipy.special.softmax(before[:15], axis=1)
    assert report["kl"] == pytest.approx(scipy.stats.entropy(p, q, axis=1).mean(), rel=1e-4)
    assert report["flip_rate"] == pytest.approx(np.mean(before[:15].argmax(1) != after[:15].argmax(1)))
    assert report["n"] == 15
    same = alignment.consistency_report(alignment.consistency(jnp.asarray(before), jnp.asarray(before), jnp.asarray(weight)))
    assert same["flip_rate"] == 0 and same["kl"] == pytest.approx(0, abs=1e-6)
    assert alignment.consistency_report(alignment.consistency(jnp.asarray(before), jnp.asarray(before), jnp.zeros(20))) == {
        "flip_rate": None,
        "kl": None,
        "n": 0.0,
    }


def test_the_sign_test_tells_a_causal_model_from_one_that_rests_on_the_shortcut():
    original = jnp.asarray(np.tile([[1.0, 0.0]], (12, 1)))
    flipped, weight = original[:, ::-1], jnp.ones(12)
    causal = alignment.sign_test(alignment.flip_table(original, flipped, original, weight))
    assert causal["passes"] and causal["cause_flips"] == causal["both_right"] == 1 and causal["shortcut_flips"] == 0
    assert causal["p_value"] == pytest.approx(0.5**12)
    fooled = alignment.sign_test(alignment.flip_table(original, original, flipped, weight))
    assert not fooled["passes"] and fooled["both_right"] == 0 and fooled["p_value"] == 1
    both = alignment.sign_test(alignment.flip_table(original, flipped, flipped, weight))
    assert not both["passes"] and both["p_value"] == 1 and both["n"] == 12
    assert alignment.sign_test(jnp.zeros((2, 2)))["passes"] is None


def test_flip_tables_merge():
    generator = np.random.default_rng(3)
    logits, cause, shortcut = (jnp.asarray(x) for x in generator.normal(size=(3, 10, 3)))
    table = functools.partial(alignment.flip_table, weight=jnp.ones(5))
    merged = alignment.add(table(logits[:5], cause[:5], shortcut[:5]), table(logits[5:], cause[5:], shortcut[5:]))
    np.testing.assert_allclose(merged, alignment.flip_table(logits, cause, shortcut, jnp.ones(10)))
    assert merged.sum() == 10
