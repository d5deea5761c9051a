"""Deep feature reweighting against scikit-learn's liblinear on the same subsamples, and the laws of the subsamples."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cimrl_jax.methods import dfr
from cimrl_jax.train import loop
from tests import tiny

FEATURES, REFITS = 12, 3
COUNTS = (50, 11, 14, 40, 23, 0)  # of label x attribute; a group that validation lacks


def make_told(classes, scale=1.0, seed=0):
    """Correlated features that lean towards label and attribute; the last ten rows are of unknown group and hold junk."""
    rng, groups = np.random.default_rng(seed), 2 * classes
    group = np.repeat(np.arange(groups), COUNTS[:groups])
    label = group // 2
    features = rng.normal(size=(len(group), FEATURES)) @ (np.eye(FEATURES) + 0.4 * rng.normal(size=(FEATURES, FEATURES)))
    features[:, :2] += np.stack([0.8 * label, 2.0 * (group % 2)], axis=1)
    features = features * scale + 3 * np.arange(FEATURES)
    features[:, 5] = 7.0  # holds nothing
    junk = np.full((10, FEATURES), 1e4)
    group, label = np.append(group, np.full(10, -1)), np.append(label, np.zeros(10, int))
    features = np.concatenate([features, junk]).astype(np.float32)
    return tiny.told(np.zeros((len(group), classes)), label, features=features, group=group)


def enter(told, key=4):
    """(state, kernel, bias) after the last stage."""
    classes = told.logits.shape[1]
    record: Any = tiny.method("dfr", refits=REFITS)
    model, own = tiny.shallow(classes), tiny.source(classes=classes)
    _, state = record.init(jax.random.key(key), tiny.spec(own, classes=classes))
    params = {"model": model.init(jax.random.key(0)), "method": {}}
    fit = jax.jit(lambda state, told: record.stages[1].enter(state, {}, model, params, params, told))
    state, params = fit(state, told)
    return state, *(np.asarray(part, np.float64) for part in model.head.get(params["model"]))


def liblinear(x, label, strength):
    """[c, k + 1]: one regression for each class against the others; of two classes only that for class 1."""
    classes = np.unique(label) if label.max() > 1 else [1]
    fits = [LogisticRegression(l1_ratio=1, C=strength, solver="liblinear", tol=1e-8, max_iter=10**5).fit(x, label == c) for c in classes]
    return np.array([np.append(own.coef_, own.intercept_) for own in fits])


def standardised(told, known):
    """The features in units of the known rows' spread, and what they were divided by."""
    x = np.asarray(told.features, np.float64)
    mean, spread = x[known].mean(0), x[known].std(0)
    spread[spread < 1e-6] = 1
    return (x - mean) / spread, mean, spread


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_is_the_mean_of_liblinears_fits(classes):
    told = make_told(classes)
    state, kernel, bias = enter(told)
    group, label, strength = np.asarray(told.group), np.asarray(told.label), float(state["strength"])
    keys = jax.random.split(jax.random.split(jax.random.key(4), 3)[2], REFITS)
    own = [np.asarray(dfr._balanced(key, told.group, told.group >= 0)) for key in keys]
    assert any((own[0] != other).any() for other in own[1:])
    x, mean, spread = standardised(told, group >= 0)
    fits = np.mean([liblinear(x[rows], label[rows], strength) for rows in own], axis=0)

    expected = fits[:, :-1] / spread
    offset = fits[:, -1] - expected @ mean
    found = (kernel[:, 1] - kernel[:, 0])[None] if classes == 2 else kernel.T
    found_offset = np.array([bias[1] - bias[0]]) if classes == 2 else bias
    np.testing.assert_allclose(found * spread, expected * spread, atol=1e-3)
    np.testing.assert_allclose(found_offset, offset, atol=2e-3)
    assert 0.05 < np.mean(expected != 0) < 1  # C leaves something, and not everything
    decision = np.asarray(told.features)[group >= 0] @ expected.T + offset
    predicted = (decision[:, 0] > 0) if classes == 2 else decision.argmax(1)
    np.testing.assert_array_equal((np.asarray(told.features)[group >= 0] @ kernel + bias).argmax(1), predicted)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_c_is_tuned_by_the_worst_group_of_the_other_half(seed):
    told = make_told(2, seed=seed)
    group, label = np.asarray(told.group), np.asarray(told.label)
    known = group >= 0
    halves, subsample, _ = jax.random.split(jax.random.key(4), 3)
    place, _ = dfr._places(halves, jnp.where(known, 0, -1))
    judging = known & (np.asarray(place) < known.sum() // 2)
    assert judging.sum() == known.sum() // 2
    own = np.asarray(dfr._balanced(subsample, told.group, jnp.asarray(known & ~judging)))
    assert not (own & judging).any()
    x, _, _ = standardised(told, known)
    worst = []
    for strength in dfr.STRENGTHS:
        fit = liblinear(x[own], label[own], strength)[0]
        right = (x @ fit[:-1] + fit[-1] > 0) == label
        worst.append(min(right[judging & (group == g)].mean() for g in np.unique(group[judging])))
    assert len(set(worst)) > 1
    assert float(enter(told)[0]["strength"]) == pytest.approx(dfr.STRENGTHS[int(np.argmax(worst))])


def test_the_solver_converges_where_there_are_more_features_than_rows_of_low_rank():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 6)) @ rng.normal(size=(6, 150)) + 0.1 * rng.normal(size=(60, 150))
    x = np.concatenate([(x - x.mean(0)) / x.std(0), np.ones((60, 1))], axis=1).astype(np.float32)
    label = (x[:, 0] + 0.3 * rng.normal(size=60) > 0).astype(int)
    sign = 2.0 * label - 1
    for strength in (1.0, 0.1):
        found = np.asarray(dfr._solve(jnp.asarray(x), jnp.asarray(sign), jnp.full(60, strength)))
        theirs = liblinear(x[:, :-1], label, strength)[0]
        mine, best = (np.abs(w).sum() + strength * np.logaddexp(0, -sign * (x @ w)).sum() for w in (found, theirs))
        assert mine < best + 1e-4
        np.testing.assert_allclose(found, theirs, atol=1e-2)  # many are nearly as good


def test_a_subsample_has_every_group_of_its_part_equally_often():
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat([-1, 0, 1, 2, 4], [9, 30, 7, 12, 5]))
    part = (group >= 0) & (group != 4)
    drawn = [np.asarray(dfr._balanced(jax.random.key(seed), jnp.asarray(group), jnp.asarray(part))) for seed in range(300)]
    for own in drawn:
        assert np.bincount(group[own], minlength=5).tolist() == [7, 7, 7, 0, 0] and not (own & ~part).any()
    for g in (0, 1, 2):  # and every row of a group as likely as any other
        shares = np.mean(drawn, axis=0)[group == g]
        np.testing.assert_allclose(shares, 7 / (group == g).sum(), atol=0.12)


def test_group_ids_scales_and_rows_of_unknown_group_change_nothing():
    told = make_told(3)
    _, kernel, bias = enter(told)
    order = jnp.asarray([3, 0, 5, 1, 4, 2])
    _, permuted, permuted_bias = enter(dataclasses.replace(told, group=jnp.where(told.group >= 0, order[told.group], -1)))
    np.testing.assert_array_equal(permuted, kernel)
    np.testing.assert_array_equal(permuted_bias, bias)
    unknown = (told.group < 0)[:, None]
    other = enter(dataclasses.replace(told, features=jnp.where(unknown, -5.0, told.features), label=jnp.where(unknown[:, 0], 2, told.label)))
    np.testing.assert_array_equal(other[1], kernel)
    _, scaled, _ = enter(make_told(3, scale=100.0))
    np.testing.assert_allclose(scaled * 100, kernel, atol=2e-3)
    assert np.abs(kernel).max() > 0.1


def test_it_replaces_the_head_of_erm_alone_and_resumes_bit_for_bit(tmp_path):
    program, when = tiny.program(tiny.method("dfr", refits=2), steps=8), {"checkpoint_every": 5}
    straight = tiny.train(program, tmp_path, when=when)
    checkpoints = tmp_path / "checkpoints" / program.name
    shutil.rmtree(checkpoints / "8")
    assert loop.restore(program, (tiny.RULE,), checkpoints)[0] == 5
    resumed = tiny.train(program, tmp_path, when=when)
    tiny.assert_equal(resumed._replace(clock={}), straight._replace(clock={}))
    tiny.assert_equal(straight.selected[tiny.RULE].params, straight.final.params)  # what is selected has the new head

    erm = tiny.train(tiny.program(tiny.method("erm"), steps=8), tmp_path / "erm").final.params["model"]
    final, head = straight.final.params["model"], program.model.head
    tiny.assert_equal(*(head.put(own, jnp.zeros(()), jnp.zeros(())) for own in (final, erm)))
    assert all((a != b).any() for a, b in zip(head.get(final), head.get(erm), strict=True))
