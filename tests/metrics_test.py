"""Oracles: scikit-learn, fairlearn, SciPy, and transcriptions in NumPy. Laws: merging, padding, renaming groups."""

from __future__ import annotations

import functools
import math
import warnings

import fairlearn.metrics
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from cimrl_jax import metrics

ROWS, CLASSES, GROUPS = 24, 3, 4
counted = functools.partial(jax.jit, static_argnames=("num_groups", "bins"))(metrics.count)
few = hypothesis.settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10_000)


def make_rows(seed, n=ROWS, classes=CLASSES, groups=GROUPS, unknown=True):
    generator = np.random.default_rng(seed)
    label = generator.integers(0, classes, n).astype(np.int32)
    logits = (np.round(8 * (generator.normal(size=(n, classes)) + np.eye(classes)[label])) / 8).astype(np.float32)  # coarse: some scores tie
    group = generator.integers(-1 if unknown else 0, groups, n).astype(np.int32)
    return logits, label, group, np.ones(n, np.float32)


def fill(rows, n):
    """The same rows with padding up to n, so that everything is compiled for one shape."""
    padded = [np.concatenate([part, np.zeros((n - len(part), *part.shape[1:]), part.dtype)]) for part in rows]
    return jax.device_get(counted(*padded, num_groups=GROUPS))


def report(rows, groups=GROUPS, **keywords):
    return metrics.finish(counted(*rows, num_groups=groups), **keywords)


def flat(tree):
    return {jax.tree_util.keystr(path): value for path, value in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)}


def assert_same(a, b, tolerance=1e-5):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert (value is None) == (b[name] is None), name
        if value is not None:
            assert value == pytest.approx(b[name], abs=tolerance), name


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_equals_scikit_learn(classes):
    logits, label, group, weight = make_rows(classes, n=200, classes=classes)
    predicted = logits.argmax(1)
    sums = counted(logits, label, group, weight, num_groups=GROUPS)
    result = metrics.finish(sums)
    confusion = sklearn.metrics.confusion_matrix(label, predicted)
    np.testing.assert_array_equal(np.asarray(sums.cells).sum(0).T, [confusion.sum(1), confusion.sum(0), confusion.diagonal()])
    assert result["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(label, predicted))
    assert result["f1"] == pytest.approx(sklearn.metrics.f1_score(label, predicted, average="macro"))
    assert result["worst_class_accuracy"] == pytest.approx(np.min(sklearn.metrics.recall_score(label, predicted, average=None)))  # pyright: ignore[reportArgumentType]
    assert result["loss"] == pytest.approx(sklearn.metrics.log_loss(label, jax.nn.softmax(logits)), rel=1e-5)
    if classes == 2:
        assert result["f1_binary"] == pytest.approx(sklearn.metrics.f1_score(label, predicted))
    else:
        assert result["f1_binary"] is None


def test_f1_counts_only_classes_that_occur():
    logits, label, group, weight = make_rows(0, classes=5)
    label, logits = np.minimum(label, 2), np.where(np.arange(5) < 4, logits, -9).astype(np.float32)
    result = report((logits, label, group, weight))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert result["f1"] == pytest.approx(sklearn.metrics.f1_score(label, logits.argmax(1), average="macro"))
    assert result["worst_class_accuracy"] == pytest.approx(min(np.mean(logits.argmax(1)[label == k] == k) for k in range(3)))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("levels", [1, 4, None])
def test_auroc_equals_scikit_learn_with_ties_and_weights(classes, levels):
    logits, label, _, _ = make_rows(7, n=150, classes=classes)
    logits = np.round(logits * levels) / levels if levels else logits + np.random.default_rng(2).normal(size=logits.shape)
    weight = np.random.default_rng(1).uniform(0.5, 2, len(label))
    scores = scipy.special.softmax(logits.astype(np.float64), axis=1).round(12)  # rounding mends the ties that the oracle's exp breaks
    if classes == 2:
        expected = sklearn.metrics.roc_auc_score(label, scores[:, 1], sample_weight=weight)
    else:  # scikit-learn takes no weights for ovr as a whole, but does class by class
        expected = np.mean([sklearn.metrics.roc_auc_score(label == k, scores[:, k], sample_weight=weight) for k in range(classes)])
        plain = sklearn.metrics.roc_auc_score(label, scores, multi_class="ovr", average="macro")
        assert metrics.auroc(logits, label) == pytest.approx(plain, abs=1e-9)
    assert metrics.auroc(logits, label, weight) == pytest.approx(expected, abs=1e-9)


def test_auroc_of_saturated_logits_still_orders():
    logits = np.asarray([[0, 50.0], [0, 60.0], [0, 55.0]])  # all have probability 1.0 in floating point
    assert metrics.auroc(logits, np.asarray([0, 1, 0])) == 1.0


def test_auroc_is_none_where_it_is_undefined():
    logits, label, _, _ = make_rows(3)
    assert metrics.auroc(logits, np.minimum(label, 1)) is None
    assert metrics.auroc(np.where(label[:, None] == 1, np.nan, logits), label) is None
    assert metrics.auroc(logits[:0], label[:0]) is None


def test_groups_equal_fairlearn():
    logits, label, group, weight = make_rows(5, n=200, unknown=False)
    names = ("a", "b", "c", "d")
    result = report((logits, label, group, weight), group_names=names)
    frame = fairlearn.metrics.MetricFrame(metrics=sklearn.metrics.accuracy_score, y_true=label, y_pred=logits.argmax(1), sensitive_features=group)
    for index, name in enumerate(names):
        assert result["groups"][name]["accuracy"] == pytest.approx(frame.by_group[index])
        assert result["groups"][name]["n"] == (group == index).sum()
    assert result["worst_group_accuracy"] == pytest.approx(frame.group_min())
    assert result["gap"] == pytest.approx(frame.difference())
    assert result["accuracy_group_mean"] == pytest.approx(frame.by_group.mean())


def test_training_weights_give_plain_accuracy_at_home_and_another_number_elsewhere():
    rows = make_rows(6, n=100, unknown=False)
    home = metrics.group_shares(np.bincount(rows[2], minlength=GROUPS).tolist())
    plain = report(rows)
    assert report(rows, train_group_shares=home)["accuracy_train_weighted"] == pytest.approx(plain["accuracy"])
    away = report(rows, train_group_shares=[0.7, 0.1, 0.1, 0.1])
    by_group = [plain["groups"][str(index)]["accuracy"] for index in range(GROUPS)]
    assert away["accuracy_train_weighted"] == pytest.approx(np.dot([0.7, 0.1, 0.1, 0.1], by_group))
    only_first = report(tuple(part[rows[2] == 1] for part in rows), train_group_shares=[0.7, 0.1, 0.1, 0.1])
    assert only_first["accuracy_train_weighted"] == pytest.approx(only_first["accuracy"])  # renormalised over what occurs
    assert metrics.group_shares([0, 0]) is None


def calibration_by_hand(probabilities, label, bins):
    """Guo et al. 2017, equation 3, as written."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == label
    error = 0.0
    for low, high in zip(np.linspace(0, 1, bins + 1)[:-1], np.linspace(0, 1, bins + 1)[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_equals_its_definition(bins):
    logits, label, group, weight = make_rows(8, n=300, classes=20)  # so many that confidences of all sizes occur
    probabilities = np.asarray(jax.nn.softmax(logits))
    result = metrics.finish(counted(logits, label, group, weight, num_groups=GROUPS, bins=bins))
    assert result["ece"] == pytest.approx(calibration_by_hand(probabilities, label, bins), abs=1e-5)
    for index in range(GROUPS):
        inside = group == index
        assert result["groups"][str(index)]["ece"] == pytest.approx(calibration_by_hand(probabilities[inside], label[inside], bins), abs=1e-5)


def test_calibration_equals_torchmetrics():
    torchmetrics, torch = pytest.importorskip("torchmetrics"), pytest.importorskip("torch")
    logits, label, group, weight = make_rows(9, n=300)
    logits += np.random.default_rng(0).normal(0, 0.01, logits.shape).astype(np.float32)  # none on a bin's edge, which theirs counts upwards
    oracle = torchmetrics.classification.MulticlassCalibrationError(num_classes=CLASSES, n_bins=15, norm="l1")
    assert report((logits, label, group, weight))["ece"] == pytest.approx(float(oracle(torch.tensor(logits), torch.tensor(label).long())), abs=1e-5)


def test_edges_of_bins_belong_below_and_certainty_to_the_last():
    for bins, place in ((2, 0), (3, 1)):  # confidence 1/2
        even = counted(np.zeros((1, 2), np.float32), np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1, np.float32), num_groups=0, bins=bins)
        np.testing.assert_allclose(even.bins[0], np.eye(bins)[place][:, None] * [1, 0.5, 1])
    logits = np.asarray([[100.0, 0.0], [100.0, 0.0]], np.float32)
    result = report((logits, np.asarray([0, 1]), np.asarray([0, 0]), np.ones(2, np.float32)), groups=1)
    assert result["ece"] == pytest.approx(0.5)


@few
@hypothesis.given(seed=seeds, cuts=st.lists(st.integers(0, ROWS), max_size=3), order=seeds)
def test_any_partition_and_order_of_the_rows_gives_the_same(seed, cuts, order):
    rows = make_rows(seed)
    shuffled = [part[np.random.default_rng(order).permutation(ROWS)] for part in rows]
    pieces = zip(*(np.split(part, sorted(cuts)) for part in shuffled), strict=True)
    merged = functools.reduce(metrics.add, (fill(piece, ROWS) for piece in pieces), metrics.zeros(GROUPS, CLASSES))
    assert_same(metrics.finish(merged), report(rows))


@few
@hypothesis.given(seed=seeds, garbage=st.sampled_from([0.0, 1e30, math.nan, math.inf]))
def test_padding_changes_nothing(seed, garbage):
    logits, label, group, weight = make_rows(seed)
    padded = (
        np.concatenate([logits, np.full((5, CLASSES), garbage, np.float32)]),
        np.concatenate([label, np.asarray([-1, 0, 1, 99, 2], np.int32)]),
        np.concatenate([group, np.asarray([-1, 0, 1, 2, 99], np.int32)]),
        np.concatenate([weight, np.zeros(5, np.float32)]),
    )
    assert_same(report(padded), report((logits, label, group, weight)), 1e-6)
    assert metrics.auroc(padded[0], padded[1], padded[3]) == metrics.auroc(logits, label)


@few
@hypothesis.given(seed=seeds, names=st.permutations(range(GROUPS)))
def test_permuting_group_ids_permutes_only_the_reports(seed, names):
    logits, label, group, weight = make_rows(seed)
    renamed = np.where(group >= 0, np.asarray(names, np.int32)[group], -1)
    one, other = report((logits, label, group, weight)), report((logits, label, renamed, weight))
    groups, others = one.pop("groups"), other.pop("groups")
    assert_same(one, other)
    for index in range(GROUPS):
        assert_same(groups[str(index)], others[str(names[index])])


@few
@hypothesis.given(seed=seeds)
def test_an_integer_weight_is_that_many_copies(seed):
    logits, label, group, _ = make_rows(seed)
    copies = np.random.default_rng(seed).integers(0, 3, ROWS)
    repeated = [np.repeat(part, copies, axis=0) for part in (logits, label, group, np.ones(ROWS, np.float32))]
    assert_same(report((logits, label, group, copies.astype(np.float32))), metrics.finish(fill(repeated, 2 * ROWS)))


def test_empty_groups_are_never_the_worst():
    rows = make_rows(2, unknown=False)
    rows = (rows[0], rows[1], np.where(rows[2] == 3, 0, rows[2]), rows[3])
    result = report(rows)
    assert result["groups"]["3"] == {"accuracy": None, "n": 0.0, "ece": None}
    assert result["worst_group_accuracy"] == min(result["groups"][name]["accuracy"] for name in "012")


def test_unknown_groups_are_counted_but_reported_nowhere():
    logits, label, _, weight = make_rows(2)
    result = report((logits, label, np.full(ROWS, -1, np.int32), weight), train_group_shares=[0.25] * 4)
    assert result["accuracy"] == np.mean(logits.argmax(1) == label)
    assert all(result[name] is None for name in ("worst_group_accuracy", "gap", "accuracy_group_mean", "accuracy_train_weighted"))
    none_named = metrics.finish(counted(logits, label, np.full(ROWS, -1, np.int32), weight, num_groups=0))
    assert none_named["groups"] == {} and none_named["accuracy"] == result["accuracy"]


def test_nothing_at_all_is_none_and_never_nan():
    empty = flat(metrics.finish(metrics.zeros(2, 3)))
    assert all(value == (0 if name.endswith("['n']") else None) for name, value in empty.items())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_are_wrong_answers(bad):
    logits, label, group, weight = make_rows(2)
    result = report((np.full_like(logits, bad), label, group, weight))
    assert result["accuracy"] == result["worst_class_accuracy"] == 0 and result["ece"] is result["loss"] is None
    assert all(value is None or math.isfinite(value) for value in flat(result).values())


def test_members_counted_under_vmap_equal_their_solo_counts():
    logits, label, group, weight = make_rows(4)
    members = jnp.stack([logits, -logits, logits * 3])
    together = jax.jit(jax.vmap(lambda one: metrics.count(one, label, group, weight, num_groups=GROUPS)))(members)
    for index in range(3):
        solo = counted(members[index], label, group, weight, num_groups=GROUPS)
        for ours, theirs in zip(together, solo, strict=True):
            np.testing.assert_allclose(ours[index], theirs, rtol=1e-6)


def test_host_sums_keep_counting_where_float32_stops():
    one, many = (metrics.Sums(np.full((1, 1, 3), x, np.float32), np.zeros((1, 1, 3), np.float32), np.zeros(1, np.float32)) for x in (1, 2**24))
    assert (metrics.add(many, one).cells == 2**24 + 1).all()


def test_thousands_of_classes_are_counted_in_little_memory():
    classes, groups, n = 2274, 40, 64
    rng = np.random.default_rng(0)
    label, group = rng.integers(0, classes, n), rng.integers(-1, groups, n)
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    logits[:32, :] += 99 * np.eye(classes, dtype=np.float32)[label[:32]]
    sums = counted(logits, label, group, np.ones(n, np.float32), num_groups=groups)
    assert sum(np.asarray(own).nbytes for own in sums) < 2e6
    assert metrics.finish(sums)["accuracy"] == np.mean(logits.argmax(1) == label) and metrics.auroc(logits, label) is None


def test_vqa_accuracy_is_the_mean_over_nine_of_ten_people():
    rng = np.random.default_rng(0)
    answers, predicted = rng.integers(-1, 3, (50, 10)), rng.integers(0, 3, 50)
    nine = np.stack([np.delete(answers, person, 1) for person in range(10)])  # [10, n, 9]
    expected = np.minimum((nine == predicted[:, None]).sum(-1) / 3, 1).mean(0)
    assert metrics.vqa_accuracy(predicted, answers) == pytest.approx(expected)


def test_names_must_match_the_groups():
    with pytest.raises(ValueError, match="2 groups"):
        metrics.finish(metrics.zeros(2, 2), group_names=("only one",))


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bootstrap_equals_scipy(level):
    values = np.random.default_rng(0).normal(0.7, 0.1, 8)
    oracle = scipy.stats.bootstrap((values,), np.mean, confidence_level=level, n_resamples=9999, method="percentile", rng=np.random.default_rng(1))
    ours = metrics.bootstrap_interval(values, level=level, resamples=9999)
    np.testing.assert_allclose(ours, oracle.confidence_interval, atol=0.06 * values.std())


def test_bootstrap_is_deterministic_and_one_value_has_no_spread():
    values = [0.1, 0.5, 0.9]
    assert metrics.bootstrap_interval(values, seed=3) == metrics.bootstrap_interval(values, seed=3)
    assert metrics.bootstrap_interval([0.3]) == (0.3, 0.3)
    assert min(values) <= metrics.bootstrap_interval(values)[0] < np.mean(values) < metrics.bootstrap_interval(values)[1] <= max(values)
    for bad in ([], [0.1, math.nan]):
        with pytest.raises(ValueError, match="finite"):
            metrics.bootstrap_interval(bad)


def test_paired_difference_sees_what_unpaired_intervals_hide():
    base = np.asarray([0.1, 0.3, 0.5, 0.7, 0.9])
    better = metrics.paired_difference(base + [0.05, 0.06, 0.04, 0.05, 0.06], base)
    assert better.clear and better.low > 0 and better.mean == pytest.approx(0.052)
    assert metrics.bootstrap_interval(base + 0.05)[0] < metrics.bootstrap_interval(base)[1]
    assert not metrics.paired_difference(base + [0.2, -0.2, 0.2, -0.2, 0.1], base).clear
    assert not metrics.paired_difference([0.9], [0.1]).clear
    with pytest.raises(ValueError, match="same seeds"):
        metrics.paired_difference([0.1, 0.2], [0.1])
