"""What the predictions of one run are worth on each split, and how much of the damage of the shortcut a method undoes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from cimrl_jax import metrics
from cimrl_jax.data.source import Answers, Source
from cimrl_jax.errors import UserError, nearest

SPLIT_METRICS = (
    "accuracy",
    "accuracy_train_weighted",
    "accuracy_group_mean",
    "worst_group_accuracy",
    "worst_class_accuracy",
    "f1",
    "auroc",
    "ece",
    "gap",
    "groups",
)
CHUNK = 4096
"""Rows counted at a time: one compile for all splits, and float32 sums stay exact."""
LEAST_FALL = 0.05
"""A baseline whose accuracy falls by less than this has not followed the shortcut."""
LEAST_GAP = 0.01
"""A ceiling must lie this far above ERM before the share of that gap means anything."""
Values = Sequence[float] | Float[np.ndarray, " s"]
"""One number a seed."""
_count = functools.partial(jax.jit, static_argnames=("num_groups", "bins"))(metrics.count)


class Fall(NamedTuple):
    """Whether the baseline fell for the shortcut, by how much accuracy (None: not measured), and a warning, empty if there is nothing to warn of."""

    fell: bool
    drop: float | None
    warning: str


def sums_of(
    logits: Float[np.ndarray, "n c"], label: Int[np.ndarray, " n"], group: Int[np.ndarray, " n"], *, num_groups: int, bins: int = 15
) -> metrics.Sums:
    """The merged sums of any number of rows, on the host, counted in chunks of one size."""
    total = metrics.zeros(num_groups, logits.shape[1], bins=bins)
    for first in range(0, len(logits), CHUNK):
        part = slice(first, first + CHUNK)
        padding = max(first + CHUNK - len(logits), 0)
        columns = (
            np.asarray(logits[part], np.float32),
            label[part].astype(np.int32),
            group[part].astype(np.int32),
            np.ones(CHUNK - padding, np.float32),
        )
        padded = (np.pad(column, [(0, padding)] + [(0, 0)] * (column.ndim - 1)) for column in columns)
        total = metrics.add(total, jax.device_get(_count(*jax.device_put(tuple(padded)), num_groups=num_groups, bins=bins)))
    return total


def evaluate_split(
    logits: Float[np.ndarray, "n c"],
    source: Source,
    train_group_shares: Float[np.ndarray, " g"] | Sequence[float] | None,
    group_names: Sequence[str],
    answers: Answers | None = None,
) -> metrics.Report:
    """One member's metrics on one split, in the form of results.json: `SPLIT_METRICS`, see `metrics.finish`; with `answers` also "vqa_accuracy" and
    "vqa_accuracy/KIND", in which the questions without a class count as wrong.

    The shares are those of the training split (`metrics.group_shares`), None where its groups are unknown.

    Raises:
      ValueError: the logits have another number of rows than the source.
    """
    if len(logits) != len(source):
        raise ValueError(f"{len(logits)} rows of logits for a source of {len(source)}")
    sums = sums_of(logits, source.label, source.group, num_groups=len(group_names))
    area = metrics.auroc(logits, source.label)
    report = metrics.finish(sums, group_names=group_names, train_group_shares=train_group_shares, auroc=area)
    return {name: report[name] for name in SPLIT_METRICS} | ({} if answers is None else _vqa(logits, answers))


def _vqa(logits: Float[np.ndarray, "n c"], answers: Answers) -> dict[str, float | None]:
    right = metrics.vqa_accuracy(logits.argmax(1), answers.classes) * np.isfinite(logits).all(1)
    sums = np.bincount(answers.kind, right, minlength=len(answers.kinds))
    counts = np.bincount(answers.kind, minlength=len(answers.kinds)) + answers.left_out
    parts = {f"vqa_accuracy/{kind}": float(own / n) if n else None for kind, own, n in zip(answers.kinds, sums, counts, strict=True)}
    return {"vqa_accuracy": float(sums.sum() / counts.sum()) if counts.sum() else None, **parts}


def right(logits: Float[np.ndarray, "n c"], label: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Whether each prediction is; logits with a NaN or +inf are not."""
    return (logits.argmax(1) == label) & np.isfinite(logits.max(1))


def matched(home: Int[np.ndarray, " n"], away: Int[np.ndarray, " m"]) -> Int[np.ndarray, "k 2"]:
    """(row of one split, row of another) for every row of the second that is a version of one of the first, by their `Dataset.keys`. Where several
    rows of the first have the same key, it is the first of them."""
    keys, first = np.unique(home, return_index=True)
    if not len(keys):
        return np.zeros((0, 2), np.int64)
    place = np.minimum(np.searchsorted(keys, away), len(keys) - 1)
    rows = np.flatnonzero(keys[place] == away)
    return np.stack([first[place[rows]], rows], axis=1)


def both_right(home: Bool[np.ndarray, " n"], away: Bool[np.ndarray, " m"], pairs: Int[np.ndarray, "k 2"]) -> float | None:
    """Pair consistency: the share of the pairs of `matched` whose two versions are both predicted right; None if there are none. Versions that differ
    in the shortcut alone, or in the cause alone and so in their label, are both right only by the cause."""
    return float((home[pairs[:, 0]] & away[pairs[:, 1]]).mean()) if len(pairs) else None


def average_drop(splits: Mapping[str, Mapping[str, Any]], *, metric: str = "accuracy") -> dict[str, float | None]:
    """{"flipped", "balanced"}: the metric on "test" (the training distribution) minus that on "test_<name>"; None if not measured."""
    home = splits.get("test", {}).get(metric)
    away = {name: splits.get(f"test_{name}", {}).get(metric) for name in ("flipped", "balanced")}
    return {name: None if home is None or value is None else home - value for name, value in away.items()}


def fell_for_shortcut(runs: Mapping[str, Mapping[str, Any]] | Sequence[Mapping[str, Mapping[str, Any]]]) -> Fall:
    """Whether ERM falls on the flipped split, by its mean over the runs (each {split: metrics}). A task on which it does not measures nothing."""
    runs = [runs] if isinstance(runs, Mapping) else list(runs)
    drops = [drop for drop in (average_drop(run)["flipped"] for run in runs) if drop is not None]
    if not drops:
        return Fall(False, None, "there is no flipped split, so nothing shows that ERM falls for the shortcut: robustness is not tested")
    drop = float(np.mean(drops))
    if drop >= LEAST_FALL:
        return Fall(True, drop, "")
    change = f"loses only {drop:.3f}" if drop >= 0 else f"gains {-drop:.3f}"
    return Fall(
        False,
        drop,
        f"ERM {change} accuracy on the flipped split: it did not learn the shortcut, so the run tests nothing; raise its correlation or train longer",
    )


def gap_closed(method: Values, erm: Values, ceiling: Values, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> dict[str, Any] | None:
    """The share of the way from ERM to the ceiling that a method goes: 0 is ERM, 1 the ceiling. One value a seed, in the same order.

    Returns {"per_seed", "mean", "ci95", "n"}: `mean` is the ratio of the means, since a seed with a narrow gap would blow up the mean of the
    ratios; `ci95` the percentile bootstrap of that ratio at `level`, the three resampled together (None for one seed); `per_seed` has None where
    that seed's gap is below `LEAST_GAP`. None altogether if ceiling - ERM is not clearly positive: its mean below `LEAST_GAP`, or its interval over
    seeds touching 0.

    Raises:
      ValueError: the three differ in length, are empty, or hold numbers that are not finite.
    """
    gap = metrics.paired_difference(ceiling, erm, level=level, resamples=resamples, seed=seed)
    metrics.paired_difference(method, erm, level=level, resamples=1, seed=seed)  # raises if the seeds do not match
    if gap.mean < LEAST_GAP or gap.low <= 0:
        return None
    base = np.asarray(erm, np.float64)
    gains, gaps = np.asarray(method, np.float64) - base, np.asarray(ceiling, np.float64) - base
    rows = metrics.resampled_rows(len(base), resamples=resamples, seed=seed)
    ratios = gains[rows].mean(1) / np.maximum(gaps[rows].mean(1), LEAST_GAP)
    interval = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2]).tolist() if len(base) > 1 else None
    per_seed = [float(gain / width) if width >= LEAST_GAP else None for gain, width in zip(gains, gaps, strict=True)]
    return {"per_seed": per_seed, "mean": float(gains.mean() / gaps.mean()), "ci95": interval, "n": len(base)}


def select(rule: str, validation: Mapping[str, Any], *, step: int = 0) -> float:
    """The score by which a checkpoint is chosen, higher is better. `validation` are its metrics as `evaluate_split` gives them.

    worst_class: smallest recall, needs no groups. worst_group: smallest group accuracy. average: accuracy. last: the step itself.

    Raises:
      UserError: an unknown rule, worst_group without known groups, or an empty validation split.
    """
    if rule == "last":
        return float(step)
    names = {"worst_class": "worst_class_accuracy", "worst_group": "worst_group_accuracy", "average": "accuracy"}
    if rule not in names:
        raise UserError(f"evaluate.selection is {rule!r}, expected worst_class, worst_group, average or last; {nearest(rule, [*names, 'last'])}")
    score = validation.get(names[rule])
    if score is None and rule == "worst_group":
        raise UserError("evaluate.selection is 'worst_group', but the validation split has no known groups; use worst_class, which needs none")
    if score is None:
        raise UserError(f"evaluate.selection is {rule!r}, but the validation split has no examples to measure it on; use last, or give it some")
    return float(score)
