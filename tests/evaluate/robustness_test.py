"""Split reports against scikit-learn, and what is said about drops, gaps and the choice of a checkpoint."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from cimrl_jax.data.source import Answers, ArraySource
from cimrl_jax.errors import UserError
from cimrl_jax.evaluate import robustness

NAMES = ("land on land", "land on water", "water on land", "water on water")


def make_split(n=300, classes=2, seed=0):
    generator = np.random.default_rng(seed)
    label = generator.integers(0, classes, n).astype(np.int32)
    group = (2 * label % 4 + generator.integers(0, 2, n)).astype(np.int32)
    logits = (generator.normal(size=(n, classes)) + np.eye(classes)[label]).astype(np.float32)
    return logits, ArraySource(inputs={"table": np.zeros((n, 1), np.float32)}, label=label, group=group)


def test_a_split_is_reported_in_the_form_of_the_results_file():
    logits, source = make_split()
    report = robustness.evaluate_split(logits, source, [0.45, 0.05, 0.05, 0.45], NAMES)
    assert tuple(report) == robustness.SPLIT_METRICS
    assert tuple(report["groups"]) == NAMES and all(set(group) == {"accuracy", "n", "ece"} for group in report["groups"].values())
    assert report["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(source.label, logits.argmax(1)))
    assert report["auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(source.label, logits[:, 1] - logits[:, 0]))
    accuracies = [group["accuracy"] for group in report["groups"].values()]
    assert report["accuracy_train_weighted"] == pytest.approx(np.dot([0.45, 0.05, 0.05, 0.45], accuracies))
    json.dumps(report, allow_nan=False)


def test_the_size_of_the_chunks_changes_nothing(monkeypatch):
    logits, source = make_split(n=100)
    whole = robustness.sums_of(logits, source.label, source.group, num_groups=4)
    monkeypatch.setattr(robustness, "CHUNK", 30)
    for ours, theirs in zip(robustness.sums_of(logits, source.label, source.group, num_groups=4), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert whole.cells[..., 0].sum() == 100


def test_questions_without_a_class_count_as_wrong():
    logits, source = make_split(n=4)
    logits = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
    answers = Answers(
        np.array([[0] * 10, [1] + [-1] * 9, [1] * 10, [1] * 4 + [0] * 6]), np.array([0, 0, 1, 1]), np.array([2, 0]), ("yes/no", "other")
    )
    report = robustness.evaluate_split(logits, source, None, NAMES, answers)
    assert report["vqa_accuracy"] == pytest.approx(2.3 / 6)
    assert report["vqa_accuracy/yes/no"] == pytest.approx(1.3 / 4) and report["vqa_accuracy/other"] == pytest.approx(0.5)
    assert "vqa_accuracy" not in robustness.evaluate_split(logits, source, None, NAMES)


def test_pairs_are_the_rows_of_the_same_key_and_both_right_is_their_share():
    home, away = np.array([7, 3, 9, 3]), np.array([9, 4, 3, 9])
    pairs = robustness.matched(home, away)
    assert sorted(map(tuple, pairs.tolist())) == [(1, 2), (2, 0), (2, 3)]  # of the two rows 3 the first; 4 has no version
    right = np.array([True, True, True, False]), np.array([True, True, False, False])
    assert robustness.both_right(*right, pairs) == pytest.approx(sum(right[0][i] and right[1][j] for i, j in pairs) / 3)
    assert robustness.both_right(*right, robustness.matched(home[:0], away)) is None
    assert robustness.both_right(*right, robustness.matched(home, away[:0])) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=9), st.lists(st.integers(0, 6), max_size=9))
def test_every_row_that_is_a_version_is_matched_once(home, away):
    pairs = robustness.matched(np.array(home, np.int64), np.array(away, np.int64))
    assert [tuple(pair) for pair in pairs.tolist()] == [(home.index(key), row) for row, key in enumerate(away) if key in home]


def test_a_prediction_that_is_no_number_is_not_right():
    logits = np.array([[0, 1], [1, 0], [np.nan, 1], [0, np.inf], [-np.inf, 0]], np.float32)
    assert robustness.right(logits, np.ones(5, np.int32)).tolist() == [True, False, False, False, True]


def test_rows_must_match():
    logits, source = make_split()
    with pytest.raises(ValueError, match="299 rows"):
        robustness.evaluate_split(logits[1:], source, None, NAMES)


def splits(test, flipped, balanced=0.5):
    return {"test": {"accuracy": test}, "test_flipped": {"accuracy": flipped}, "test_balanced": {"accuracy": balanced}}


def test_drops():
    assert robustness.average_drop(splits(0.9, 0.2)) == pytest.approx({"flipped": 0.7, "balanced": 0.4})
    assert robustness.average_drop({"test": {"accuracy": 0.9}}) == {"flipped": None, "balanced": None}


def test_a_baseline_that_does_not_fall_is_called_out():
    fallen = robustness.fell_for_shortcut([splits(0.95, 0.3), splits(0.96, 0.4)])
    assert fallen.fell and fallen.warning == "" and fallen.drop == pytest.approx(0.605)
    standing = robustness.fell_for_shortcut(splits(0.992, 0.988))
    assert not standing.fell and "tests nothing" in standing.warning and "0.004" in standing.warning
    assert "gains 0.100" in robustness.fell_for_shortcut(splits(0.8, 0.9)).warning
    unknown = robustness.fell_for_shortcut({"test": {"accuracy": 0.9}})
    assert not unknown.fell and unknown.drop is None and unknown.warning


ERM, CEILING = [0.20, 0.25, 0.30], [0.80, 0.85, 0.78]


def test_the_ends_of_the_gap():
    for method, share in ((ERM, 0.0), (CEILING, 1.0), ((np.asarray(ERM) + CEILING) / 2, 0.5)):
        closed = robustness.gap_closed(method, ERM, CEILING)
        assert closed is not None
        assert closed["mean"] == pytest.approx(share) and closed["ci95"] == pytest.approx([share, share])
        assert closed["per_seed"] == pytest.approx([share] * 3) and closed["n"] == 3


def test_the_gap_closed_has_an_interval_that_holds_its_mean_and_ignores_the_order_of_seeds():
    closed = robustness.gap_closed([0.5, 0.7, 0.4], ERM, CEILING)
    assert closed is not None
    low, high = closed["ci95"]
    assert low < closed["mean"] < high
    assert closed["mean"] == pytest.approx((0.5 + 0.7 + 0.4 - sum(ERM)) / (sum(CEILING) - sum(ERM)))
    assert robustness.gap_closed([0.5], [0.2], [0.8]) == {"per_seed": pytest.approx([0.5]), "mean": pytest.approx(0.5), "ci95": None, "n": 1}


def test_without_a_clear_gap_nothing_can_be_closed():
    assert robustness.gap_closed([0.5, 0.6], [0.80, 0.81], [0.80, 0.80]) is None
    assert robustness.gap_closed([0.5, 0.6], [0.9, 0.9], [0.8, 0.8]) is None
    assert robustness.gap_closed([0.5, 0.6, 0.5, 0.5], [0.4, 0.9, 0.5, 0.8], [0.9, 0.4, 0.8, 0.7]) is None
    one_narrow = robustness.gap_closed([0.5, 0.7, 0.5, 0.6], [0.2, 0.7, 0.2, 0.3], [0.8, 0.705, 0.8, 0.9])
    assert one_narrow is not None and one_narrow["per_seed"][1] is None
    with pytest.raises(ValueError, match="same seeds"):
        robustness.gap_closed([0.5], ERM, CEILING)


def test_selection():
    logits, source = make_split()
    validation = robustness.evaluate_split(logits, source, None, NAMES)
    assert robustness.select("average", validation) == validation["accuracy"]
    assert robustness.select("worst_class", validation) == validation["worst_class_accuracy"]
    assert robustness.select("worst_group", validation) == validation["worst_group_accuracy"]
    assert robustness.select("last", {}, step=20) > robustness.select("last", {}, step=10)
    unknown = robustness.evaluate_split(logits, ArraySource(inputs={}, label=source.label, group=np.full_like(source.group, -1)), None, NAMES)
    assert robustness.select("worst_class", unknown) == validation["worst_class_accuracy"]
    with pytest.raises(UserError, match="use worst_class"):
        robustness.select("worst_group", unknown)
    with pytest.raises(UserError, match="did you mean 'worst_class'"):
        robustness.select("worst_clas", validation)
    with pytest.raises(UserError, match="no examples"):
        robustness.select("average", {"accuracy": None})
