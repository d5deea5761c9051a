"""Did the method find the shortcut, and does the prediction rest on the cause?

`count` compares evidence and chosen slots with planted or annotated regions; `consistency` and `flip_table` compare predictions before and after
edits. All give sums that merge by addition (`add`) over batches and hosts; `finish`, `consistency_report` and `sign_test` divide on the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from cimrl_jax.metrics import Report

MEASURES = ("precision", "recall", "iou", "pointing", "energy", "attribution_iou", "area")


class Sums(NamedTuple):
    """Sums over examples, and their weight. `total` follows `MEASURES`, or (flips, KL) for `consistency`."""

    total: Float[Array | np.ndarray, " k"]
    weight: Float[Array | np.ndarray, ""]


Alignment = dict[str, dict[str, Sums]]
"""{modality: {"cause" and "shortcut": Sums}}."""


def planted(share: Float[Array, "b n"], mask: Bool[Array, "b n"], *, at: float = 0.5) -> Bool[Array, "b n"]:
    """The slots that make up a region: those it covers at least `at` times as much as the slot it covers most (a thin mark fills no patch)."""
    share = jnp.where(mask, share, 0.0)
    return (share > 0) & (share >= at * share.max(-1, keepdims=True))


def align(
    evidence: Float[Array, "b n"], chosen: Float[Array, "b n"], mask: Bool[Array, "b n"], share: Float[Array, "b n"], weight: Float[Array, " b"]
) -> Sums:
    """Sums of `MEASURES` over the examples that have the region at all.

    With R the `planted` slots and C the chosen ones (0..1, soft choices count in part):
    precision |C R|/|C| (0 if nothing is chosen); recall |C R|/|R|; iou |C R|/|C or R|; pointing: the slot of most evidence lies in R (Zhang et al.
    2018; ties share the hit, no evidence is none); energy: the share of the positive evidence in R (Wang et al. 2020, Score-CAM); attribution_iou:
    IoU of R with the |R| slots of most evidence; area: |R| over the valid slots, which is what precision, pointing and energy come to by chance.
    """
    region = planted(share, mask).astype(jnp.float32)
    size = region.sum(-1)  # [b]
    chosen = jnp.where(mask, chosen, 0.0).astype(jnp.float32)
    both, either = jnp.minimum(chosen, region).sum(-1), jnp.maximum(chosen, region).sum(-1)
    evidence = jnp.where(mask, jnp.maximum(evidence, 0.0), 0.0).astype(jnp.float32)
    best = ((evidence == evidence.max(-1, keepdims=True)) & (evidence > 0)).astype(jnp.float32)
    rank = jnp.argsort(jnp.argsort(-evidence, axis=-1), axis=-1)  # 0 is the slot of most evidence
    top = ((rank < size[:, None]) & (evidence > 0)).astype(jnp.float32)
    shared = (top * region).sum(-1)
    values = jnp.stack(
        [
            _share(both, chosen.sum(-1)),
            _share(both, size),
            _share(both, either),
            _share((best * region).sum(-1), best.sum(-1)),
            _share((evidence * region).sum(-1), evidence.sum(-1)),
            _share(shared, top.sum(-1) + size - shared),
            _share(size, mask.sum(-1)),
        ]
    )  # [k, b]
    counted = jnp.where(size > 0, weight, 0.0)
    return Sums(jnp.where(counted > 0, values * counted, 0.0).sum(-1), counted.sum())


def _share(part: Array, whole: Array) -> Array:
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), 0.0)


def count(
    evidence: Mapping[str, Float[Array, "b _"]],
    chosen: Mapping[str, Float[Array, "b _"]],
    mask: Mapping[str, Bool[Array, "b _"]],
    regions: Mapping[str, Mapping[str, Float[Array, "b _"]]],
    weight: Float[Array, " b"],
) -> Alignment:
    """`align` of every modality with each target ("cause", "shortcut") that has regions in it.

    `evidence` and `chosen` are as `Method.explain` gives them, `mask` from `Model.embed`, `regions[target]` from `Model.regions`: shares in 0..1 of
    each slot. Modalities have numbers of slots of their own.
    """
    return {
        name: {target: align(evidence[name], chosen[name], mask[name], shares[name], weight) for target, shares in regions.items() if name in shares}
        for name in evidence
    }


def add(a: Any, b: Any) -> Any:
    """The sums of both: trees of the same structure."""
    return jax.tree.map(lambda x, y: x + y, a, b)


def finish(sums: Alignment) -> Report:
    """{modality: {target: {measure of `MEASURES`: mean over examples, None if none has such a region; "n"}}}."""
    return {name: {target: {**_means(part, MEASURES), "n": float(part.weight)} for target, part in targets.items()} for name, targets in sums.items()}


def _means(sums: Sums, names: tuple[str, ...]) -> dict[str, float | None]:
    total, weight = np.asarray(sums.total, np.float64), float(sums.weight)
    return {name: float(value / weight) if weight > 0 and np.isfinite(value) else None for name, value in zip(names, total, strict=True)}


def consistency(logits: Float[Array, "b c"], edited: Float[Array, "b c"], weight: Float[Array, " b"]) -> Sums:
    """Sums over examples of: the edit changed the predicted class; KL(f(edited) || f(x)) in nats."""
    before, after = jax.nn.log_softmax(logits), jax.nn.log_softmax(edited)
    divergence = jnp.where(jnp.exp(after) > 0, jnp.exp(after) * (after - before), 0.0).sum(-1)
    flipped = logits.argmax(-1) != edited.argmax(-1)
    values = jnp.stack([flipped.astype(jnp.float32), divergence])
    return Sums(jnp.where(weight > 0, values * weight, 0.0).sum(-1), jnp.where(weight > 0, weight, 0.0).sum())


def consistency_report(sums: Sums) -> Report:
    """{"flip_rate", "kl", "n"}: means over examples, None if there are none."""
    return {**_means(sums, ("flip_rate", "kl")), "n": float(sums.weight)}


def flip_table(
    logits: Float[Array, "b c"], cause_edited: Float[Array, "b c"], shortcut_edited: Float[Array, "b c"], weight: Float[Array, " b"]
) -> Float[Array, "2 2"]:
    """Sums of weights: [did the edit of the cause change the prediction, did that of the shortcut]."""
    before = logits.argmax(-1)
    cause, shortcut = (jax.nn.one_hot((edited.argmax(-1) != before).astype(jnp.int32), 2) for edited in (cause_edited, shortcut_edited))
    return (weight[:, None, None] * cause[:, :, None] * shortcut[:, None, :]).sum(0)


def sign_test(table: Float[Array | np.ndarray, "2 2"], *, level: float = 0.95) -> Report:
    """An edit of the cause must change the prediction, an edit of the shortcut must not.

    Returns {"cause_flips": share of examples that the cause's edit changes (should be 1), "shortcut_flips": likewise for the shortcut (should be
    0), "both_right": share with both as they should be, "p_value": one-sided exact sign test on the examples that only one of the two edits
    changes, "passes": the cause's edit changes more at this level, "n"}. None without examples; p_value is 1 without examples that tell.
    """
    from scipy.stats import binomtest  # slow to import

    counts = np.asarray(table, np.float64)
    n = counts.sum()
    if not n > 0:
        return {"cause_flips": None, "shortcut_flips": None, "both_right": None, "p_value": None, "passes": None, "n": 0.0}
    cause_only, shortcut_only = round(counts[1, 0]), round(counts[0, 1])
    telling = cause_only + shortcut_only
    p_value = float(binomtest(cause_only, telling, alternative="greater").pvalue) if telling else 1.0
    return {
        "cause_flips": float(counts[1].sum() / n),
        "shortcut_flips": float(counts[:, 1].sum() / n),
        "both_right": float(counts[1, 0] / n),
        "p_value": p_value,
        "passes": p_value < 1 - level,
        "n": float(n),
    }
