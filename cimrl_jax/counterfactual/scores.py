"""How far a prediction rests on each slot: the scores that core and context are made of. All are at least 0, and 0 on invalid slots.

    attention              weights of a read-out of its own (see `attend`): Model.encode hands out no attention weights
    grad_x_input           relu(<d margin/dx, x>) of the fused path
    occlusion              relu of what the margin loses as the mask embedding takes the slot's place
    occlusion_minus_bias   that, less what the modality's bias head, which falls for shortcuts, gains or loses (the default)
    reference              that, less the evidence of CIMRL's biased reference (counterfactual/reference.py)

The margin is that of the predicted class. Attention and gradients find the shortcut as readily as the core; what speaks through the bias path too is
the shortcut. The subtractions are this project's; both sides are shares of their own sum first, since their logits have no common unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from cimrl_jax.counterfactual import core
from cimrl_jax.errors import UserError
from cimrl_jax.types import Batch, Params, Slots, SlotSpec, Spec

Kind = Literal["attention", "grad_x_input", "occlusion", "occlusion_minus_bias", "reference", "external"]
TOGETHER = 16
"""Slots that are occluded in one pass; more need more memory and no less time."""


def margin(logits: Float[Array, "*b c"], target: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """The target's logit minus the mean of the others'."""
    own = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    return own - (jnp.sum(logits, axis=-1) - own) / max(logits.shape[-1] - 1, 1)


def occlude(
    measure: Callable[[dict[str, Slots]], Any], slots: Mapping[str, Slots], blank: Mapping[str, Float[Array, " d"]]
) -> tuple[Any, dict[str, Any]]:
    """(measure of the slots as they are, by modality what it loses as each slot in turn is replaced by `blank`: every leaf `[b]` becomes `[b, n]`).

    `measure(slots)` is a tree of `[b]`. All slots of all modalities go through one traced pass, `TOGETHER` at a time.
    """
    names = sorted(slots)
    counts = {m: slots[m].mask.shape[-1] for m in names}
    total = sum(counts.values())
    passes = math.ceil(total / TOGETHER)
    size = math.ceil(total / passes)
    whole = measure(dict(slots))

    def without(number: Int[Array, ""]) -> Any:
        changed, first = {}, 0
        for m in names:
            hit = (first + jnp.arange(counts[m]) == number)[:, None]
            changed[m] = Slots(jnp.where(hit & slots[m].mask[..., None], blank[m], slots[m].values), slots[m].mask)
            first += counts[m]
        return measure(changed)

    left = jax.lax.map(without, jnp.arange(passes * size), batch_size=size)  # beyond the last slot nothing is replaced
    lost = jax.tree.map(lambda all_of_it, part: jnp.moveaxis(all_of_it - part, 0, -1)[..., :total], whole, left)
    found, first = {}, 0
    for m in names:
        found[m] = jax.tree.map(lambda x, a=first, n=counts[m]: x[..., a : a + n], lost)
        first += counts[m]
    return whole, found


def beyond(own: Float[Array, "*b n"], biased: Float[Array, "*b n"], mask: Bool[Array, "*b n"]) -> Float[Array, "*b n"]:
    """relu of the share of `own` minus the share of `biased`: what counts for the one and not for the other."""
    return jax.nn.relu(core.share_of(own, mask) - core.share_of(biased, mask))


def init_attention(key: Key[Array, ""], slots: Mapping[str, SlotSpec], *, num_classes: int, dim: int, width: int = 16) -> Params:
    """Parameters of the read-out: a query made of the fused code, keys and values made of slots, for each modality."""
    made = {}
    for m, own in zip(sorted(slots), jax.random.split(key, len(slots)), strict=True):
        keys, spec = jax.random.split(own, 3), slots[m]
        made[m] = {
            "query": jax.random.normal(keys[0], (dim, width)) * dim**-0.5,
            "key": jax.random.normal(keys[1], (spec.width, width)) * spec.width**-0.5,
            "value": jax.random.normal(keys[2], (spec.width, num_classes)) * spec.width**-0.5,
        }
    return made


def attend(
    params: Params, code: Float[Array, "b d"], slots: Mapping[str, Slots], masks: Mapping[str, Bool[Array, "b _"]]
) -> tuple[Float[Array, "b c"], dict[str, Float[Array, "b _"]]]:
    """(logits, weights) of one head of attention in which the fused code asks each modality's slots; the answers are summed.

    Encoders do not hand out the attention of their own layers, so this is a read-out of its own, trained by its own cross entropy.
    """
    logits, weights = jnp.zeros((code.shape[0], next(iter(params.values()))["value"].shape[-1])), {}
    for m, own in params.items():
        values = slots[m].values.astype(jnp.float32)
        asked = jnp.einsum("bw,bnw->bn", code @ own["query"], values @ own["key"]) * own["key"].shape[-1] ** -0.5
        weight = jax.nn.softmax(jnp.where(masks[m], asked, -1e9), axis=-1)
        weights[m] = jnp.where(masks[m], weight, 0.0)
        logits += jnp.einsum("bn,bnc->bc", weights[m], values @ own["value"])
    return logits, weights


class Memory(NamedTuple):
    """The scores of every training example, for those that are dear."""

    scores: dict[str, Float[Array, "n _"]]
    age: Float[Array, " n"]
    """The step at which they were computed; -1: never, and they are 0."""


def init_memory(spec: Spec) -> Memory:
    """Nothing is known."""
    return Memory({m: jnp.zeros((spec.num_examples, own.count)) for m, own in spec.slots.items()}, jnp.full((spec.num_examples,), -1.0))


def remember(
    memory: Memory,
    compute: Callable[[dict[str, Slots]], dict[str, Float[Array, "k _"]]],
    slots: Mapping[str, Slots],
    batch: Batch,
    *,
    share: float,
    step: Float[Array, ""],
) -> tuple[dict[str, Float[Array, "b _"]], Memory]:
    """(scores of the batch, new memory): a fixed `share` of its rows is computed, those known longest first; the others are as they were."""
    age = jnp.where(batch.weight > 0, memory.age[batch.index], jnp.inf)
    rows = jax.lax.top_k(-age, math.ceil(share * len(batch.label)))[1]
    fresh = compute(jax.tree.map(lambda x: x[rows], dict(slots)))
    where = jnp.where(batch.weight[rows] > 0, batch.index[rows], len(memory.age))  # out of range: dropped
    known = {m: own.at[where].set(fresh[m], mode="drop") for m, own in memory.scores.items()}
    return {m: own[batch.index] for m, own in known.items()}, Memory(known, memory.age.at[where].set(step, mode="drop"))


def read_file(path: str, spec: Spec) -> dict[str, Float[Array, "n _"]]:
    """The scores of every training example in a .npz file, an array for each modality.

    Raises:
      UserError: no such file, or not the arrays that belong in it.
    """
    try:
        with np.load(path) as file:
            found = {m: np.asarray(file[m], np.float32) for m in spec.slots if m in file}
    except (OSError, ValueError) as error:
        raise UserError(f"external={path!r} cannot be read as a .npz file of scores: {error}") from error
    for m, own in spec.slots.items():
        shape = (spec.num_examples, own.count)
        if m not in found or found[m].shape != shape or not (found[m] >= 0).all():
            what = "is missing" if m not in found else f"has the shape {found[m].shape}, or negative numbers"
            raise UserError(f"in external={path!r} {m!r} {what}; expected {shape} scores, none negative")
    return {m: jnp.asarray(own) for m, own in found.items()}
