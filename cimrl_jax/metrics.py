"""Metrics as sums: `count` on the device, `add` over batches, hosts and runs, `finish` divides once, on the host.

Every reduction is a one-hot product, so `count` may be jitted, vmapped and sharded; there is no loop over groups. Rows of weight 0 change nothing,
even if their logits are not finite. What cannot be computed (no such group, a class missing) is None in the report, never NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

MOST_RANKED = 128
"""Classes of which `auroc` is computed."""
VQA_CREDIT = np.array([0.0, 0.3, 0.6, 0.9, 1.0])
Report = dict[str, Any]
"""Numbers, None and dicts of them: it goes into JSON as it is."""


class Sums(NamedTuple):
    """What merges by addition. Of the g + 1 rows the last is the unknown group's. float32 on the device, float64 once `add`ed on the host."""

    cells: Float[Array | np.ndarray, "*s rows c 3"]
    """[group, class]: sums of weight of the examples that are of the class, that are predicted to be, and both. A whole confusion matrix of each
    group would not fit into memory where there are thousands of classes."""
    bins: Float[Array | np.ndarray, "*s rows k 3"]
    """[group, confidence bin]: sums of weight, of confidence and of right answers."""
    loss: Float[Array | np.ndarray, "*s rows"]
    """Sum of the cross entropy (nats)."""


class Difference(NamedTuple):
    """A mean difference over paired seeds with its interval. `clear`: there are at least two seeds and the interval lies above 0."""

    mean: float
    low: float
    high: float
    clear: bool


def count(
    logits: Float[Array | np.ndarray, "n c"],
    label: Int[Array | np.ndarray, " n"],
    group: Int[Array | np.ndarray, " n"],
    weight: Float[Array | np.ndarray, " n"],
    *,
    num_groups: int,
    bins: int = 15,
) -> Sums:
    """The sums of one batch. Jit it with `num_groups` and `bins` static; vmap it over members.

    The confidence is the largest softmax probability; bin j of k holds `(j/k, (j+1)/k]` (Guo et al. 2017, "On Calibration of Modern Neural
    Networks"). A group outside 0..g-1 counts as unknown. Logits with a NaN or +inf are counted as a wrong answer, so that a diverged run never
    looks usable; its loss and calibration become NaN here and None in the report.
    """
    classes = logits.shape[-1]
    real = weight > 0
    weight = jnp.where(real, weight, 0.0).astype(jnp.float32)
    logits = jnp.where(real[:, None], jnp.asarray(logits, jnp.float32), 0.0)
    label = jnp.where(real, label, 0)
    normaliser = logsumexp(logits, axis=-1)
    confidence = jnp.exp(logits.max(-1) - normaliser)  # [n]
    broken = jnp.isnan(confidence)
    predicted = jnp.where(broken, (label + 1) % classes, logits.argmax(-1))
    loss = normaliser - jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]

    slot = jnp.ceil(jnp.where(broken, 1.0, confidence) * bins).astype(jnp.int32) - 1
    in_bin = jax.nn.one_hot(jnp.clip(slot, 0, bins - 1), bins)  # [n, k]
    known = (group >= 0) & (group < num_groups)
    in_group = jax.nn.one_hot(jnp.where(known, group, num_groups), num_groups + 1) * weight[:, None]  # [n, g+1]
    told, said = jax.nn.one_hot(label, classes), jax.nn.one_hot(predicted, classes)  # [n, c]
    marks = jnp.stack([jnp.ones_like(confidence), confidence, (predicted == label).astype(jnp.float32)], -1)  # [n, 3]
    # The full float32 product: accelerators round the factors of the default one, which is right for counts but not for losses and confidences.
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return Sums(
        cells=jnp.stack([product("ng,nc->gc", in_group, own) for own in (told, said, told * said)], -1),
        bins=product("ng,nk->gk", in_group, (in_bin[:, :, None] * marks[:, None, :]).reshape(-1, bins * 3)).reshape(num_groups + 1, bins, 3),
        loss=product("ng,n->g", in_group, loss),
    )


def add(a: Sums, b: Sums) -> Sums:
    """The sums of both, in float64 if they have come to the host (NumPy), where float32 would stop counting at 2^24."""

    def plus(x: Any, y: Any) -> Any:
        return x + y if isinstance(x, jax.Array) and isinstance(y, jax.Array) else np.asarray(x, np.float64) + np.asarray(y, np.float64)

    return Sums(*(plus(x, y) for x, y in zip(a, b, strict=True)))


def zeros(num_groups: int, num_classes: int, *, bins: int = 15) -> Sums:
    """The sums of no examples, on the host: what a merge starts from."""
    rows = num_groups + 1
    return Sums(np.zeros((rows, num_classes, 3)), np.zeros((rows, bins, 3)), np.zeros(rows))


def finish(
    sums: Sums,
    *,
    group_names: Sequence[str] = (),
    train_group_shares: Float[np.ndarray, " g"] | Sequence[float] | None = None,
    auroc: float | None = None,
) -> Report:
    """The metrics of one member's merged sums. `auroc` (it is no sum: see `auroc`) is passed through.

    accuracy: plain. accuracy_train_weighted: group accuracies weighted by the training split's group shares, which are renormalised over the groups
    that occur here (Sagawa et al. 2020); None without groups. accuracy_group_mean: unweighted over groups. gap: best minus worst group.
    worst_class_accuracy: smallest recall. f1: macro over the classes that occur as label or prediction (as scikit-learn does); f1_binary: that of
    class 1, None unless c = 2. groups: {name: {accuracy, n, ece}}; empty groups have n 0 and None, and are never the worst. Examples of unknown
    group count in what is not per group.

    Raises:
      ValueError: the number of names or shares is not that of the groups.
    """
    cells, bins, loss = (np.asarray(part, np.float64) for part in sums)
    groups = len(cells) - 1
    names = tuple(group_names) or tuple(str(index) for index in range(groups))
    if len(names) != groups or (train_group_shares is not None and len(train_group_shares) != groups):
        raise ValueError(f"the sums have {groups} groups, but there are {len(names)} names and the shares {train_group_shares}")
    of_group, _, right = cells[:-1].sum(1).T
    accuracies = [_ratio(r, n) for r, n in zip(right, of_group, strict=True)]
    known = [value for value in accuracies if value is not None]
    weighted = None
    if train_group_shares is not None and known:
        shares = np.asarray(train_group_shares, np.float64) * (of_group > 0)
        weighted = _ratio(shares @ (right / np.maximum(of_group, np.finfo(float).tiny)), shares.sum())
    told, said, hits = cells.sum(0).T  # [c]
    recalls = [_ratio(hit, n) for hit, n in zip(hits, told, strict=True)]
    f1s = [_ratio(2 * hit, n) for hit, n in zip(hits, told + said, strict=True)]
    occurring = [value for value in f1s if value is not None]
    return {
        "accuracy": _ratio(hits.sum(), told.sum()),
        "accuracy_train_weighted": weighted,
        "accuracy_group_mean": sum(known) / len(known) if known else None,
        "worst_group_accuracy": min(known, default=None),
        "worst_class_accuracy": min((value for value in recalls if value is not None), default=None),
        "gap": max(known) - min(known) if known else None,
        "f1": sum(occurring) / len(occurring) if occurring else None,
        "f1_binary": f1s[1] if len(f1s) == 2 else None,
        "auroc": auroc,
        "ece": calibration_error(bins.sum(0)),
        "loss": _ratio(loss.sum(), told.sum()),
        "n": float(told.sum()),
        "groups": {
            name: {"accuracy": accuracy, "n": float(n), "ece": calibration_error(b)}
            for name, accuracy, n, b in zip(names, accuracies, of_group, bins[:-1], strict=True)
        },
    }


def _ratio(part: float, whole: float) -> float | None:
    """part / whole; None where there is nothing to divide by or the result is not a finite number."""
    return float(part / whole) if whole > 0 and np.isfinite(part) else None


def calibration_error(bins: Float[np.ndarray, "k 3"]) -> float | None:
    """Expected calibration error of the sums (weight, confidence, right) per bin: the mean distance of confidence and accuracy, in 0..1."""
    weight, confidence, right = np.asarray(bins, np.float64).T
    return _ratio(np.abs(confidence - right).sum(), weight.sum())


def auroc(logits: Float[np.ndarray, "n c"], label: Int[np.ndarray, " n"], weight: Float[np.ndarray, " n"] | None = None) -> float | None:
    """Area under the ROC curve, exact and by rank (Mann-Whitney, ties count one half); for more than two classes the macro one-vs-rest mean.

    The score of a class is its log odds, which orders like its probability but does not saturate. None if a class is missing, a logit is NaN, or
    there are more than `MOST_RANKED` classes, since each of them is ranked against all others.
    """
    weights = np.ones(len(label)) if weight is None else np.asarray(weight, np.float64)
    kept = weights > 0
    logits, label, weights = np.asarray(logits, np.float64)[kept], np.asarray(label)[kept], weights[kept]
    classes = logits.shape[1]
    if not 2 <= classes <= MOST_RANKED or np.isnan(logits).any():
        return None
    areas = []
    for positive in (1,) if classes == 2 else range(classes):
        area = _area(_log_odds(logits, positive), label == positive, weights)
        if area is None:
            return None
        areas.append(area)
    return float(np.mean(areas))


def vqa_accuracy(predicted: Int[np.ndarray, " n"], answers: Int[np.ndarray, "n people"]) -> Float[np.ndarray, " n"]:
    """How right each prediction is in 0..1 by what ten people answered (Antol et al. 2015): min(those who said so / 3, 1), averaged over all choices
    of nine of the ten, which is 0, .3, .6, .9 and 1 for none, 1, 2, 3 and more who said so."""
    return VQA_CREDIT[np.minimum((answers == predicted[:, None]).sum(1), len(VQA_CREDIT) - 1)]


def _log_odds(logits: Float[np.ndarray, "n c"], positive: int) -> Float[np.ndarray, " n"]:
    # Sorted first, so that rows that differ only in the order of the other classes tie exactly.
    others = np.sort(np.delete(logits, positive, axis=1), axis=1)
    top = np.maximum(others[:, -1], np.finfo(np.float64).min)
    return (logits[:, positive] - top) - np.log(np.exp(others - top[:, None]).sum(1))


def _area(score: Float[np.ndarray, " n"], positive: np.ndarray, weight: Float[np.ndarray, " n"]) -> float | None:
    values, place = np.unique(score, return_inverse=True)
    up = np.bincount(place, weight * positive, minlength=len(values))
    down = np.bincount(place, weight * ~positive, minlength=len(values))
    below = np.cumsum(down) - down
    return _ratio(float(up @ (below + down / 2)), float(up.sum() * down.sum()))


def bootstrap_interval(
    values: Float[np.ndarray, " s"] | Sequence[float], *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over seeds; the same arguments give the same interval.

    One value gives `(v, v)`: it says nothing of spread. With few seeds the interval is too narrow, as percentile
    intervals are: for normal values five give about 84 % coverage at level .95.

    Raises:
      ValueError: no values, or one that is not finite (leave such seeds out knowingly).
    """
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or not len(numbers) or not np.isfinite(numbers).all():
        raise ValueError(f"expected at least one finite number per seed, found {numbers.tolist()}")
    means = numbers[resampled_rows(len(numbers), resamples=resamples, seed=seed)].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_rows(size: int, *, resamples: int, seed: int) -> Int[np.ndarray, "r s"]:
    """For each resample, `size` of the rows 0..size-1, drawn with replacement."""
    return np.random.default_rng(seed).integers(0, size, (resamples, size))


def paired_difference(
    method: Sequence[float] | Float[np.ndarray, " s"],
    base: Sequence[float] | Float[np.ndarray, " s"],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """How far `method` lies above `base` when both ran with the same seeds, in the same order: the interval is that of the differences seed by seed.

    Raises:
      ValueError: they differ in length, are empty, or hold numbers that are not finite.
    """
    if len(method) != len(base):
        raise ValueError(f"paired values need the same seeds: found {len(method)} and {len(base)}")
    difference = np.asarray(method, np.float64) - np.asarray(base, np.float64)
    low, high = bootstrap_interval(difference, level=level, resamples=resamples, seed=seed)
    return Difference(float(difference.mean()), low, high, len(difference) > 1 and low > 0)


def group_shares(counts: Sequence[int]) -> Float[np.ndarray, " g"] | None:
    """The share of each group among the training examples of known group; None if there is none."""
    numbers = np.asarray(counts, np.float64)
    return numbers / numbers.sum() if numbers.sum() > 0 else None
