"""A deliberately shallow reader of each modality, which falls for shortcuts on purpose and so tells where they are.

Per slot a two-layer network, averaged over slots: it cannot combine slots, so it learns what can be read off any one of them. Trained with
generalised cross entropy (Nam et al. 2020) it follows what is easy and leaves the examples that contradict it unfitted: those whose label it
misreads are the ones on which the shortcut conflicts with the label.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from cimrl_jax.types import Params, Slots, SlotSpec


def init(key: Key[Array, ""], spec: SlotSpec, *, num_classes: int, hidden: int) -> Params:
    """Parameters of one modality's reader."""
    first, second = jax.random.split(key)
    return {
        "inner": jax.random.normal(first, (spec.width, hidden)) * (2.0 / spec.width) ** 0.5,
        "inner_bias": jnp.zeros((hidden,)),
        "outer": jax.random.normal(second, (hidden, num_classes)) * (1.0 / hidden) ** 0.5,
        "outer_bias": jnp.zeros((num_classes,)),
    }


def read(params: Params, slots: Slots) -> tuple[Float[Array, "b c"], Float[Array, "b n c"]]:
    """The reader's logits, and each slot's contribution to them (they are its mean over valid slots)."""
    hidden = jax.nn.relu(slots.values.astype(jnp.float32) @ params["inner"] + params["inner_bias"])
    per_slot = hidden @ params["outer"] + params["outer_bias"]  # [b, n, c]
    valid = slots.mask[..., None]
    total = jnp.sum(jnp.where(valid, per_slot, 0.0), axis=-2)
    return total / jnp.maximum(jnp.sum(valid, axis=-2), 1), per_slot


def evidence(per_slot: Float[Array, "b n c"], mask: Bool[Array, "b n"], target: Int[Array, " b"]) -> Float[Array, "b n"]:
    """How far each slot alone speaks for class `target`: its margin, relu'd, 0 on invalid slots."""
    return jnp.where(mask, jax.nn.relu(margin(per_slot, target)), 0.0)


def margin(per_slot: Float[Array, "b n c"], target: Int[Array, " b"]) -> Float[Array, "b n"]:
    """Each slot's logit of class `target` minus the mean of the others."""
    own = jnp.take_along_axis(per_slot, target[:, None, None], axis=-1)[..., 0]
    return own - (jnp.sum(per_slot, axis=-1) - own) / max(per_slot.shape[-1] - 1, 1)


def neutral(per_slot: Float[Array, "b n c"], mask: Bool[Array, "b n"], target: Int[Array, " b"], *, threshold: Array | float) -> Float[Array, "b n"]:
    """How little each slot speaks for or against class `target`: 1 not at all, 0 from `threshold` of the most telling slot's margin on."""
    size = jnp.where(mask, jnp.abs(margin(per_slot, target)), 0.0)
    most = jnp.max(size, axis=-1, keepdims=True)
    return jnp.where(mask, jnp.maximum(1.0 - size / jnp.maximum(threshold * most, 1e-8), 0.0), 0.0)


def recurring(slots: Slots, weight: Float[Array, " b"]) -> Float[Array, "b n"]:
    """How many slots of the batch hold just what a slot holds (words recur), per example, at most 1; 0 on invalid slots.

    What a cue in a share f of all examples tells of the label altogether grows with `f log-odds^2`: a shortcut recurs, a telling word need not.
    """
    valid = slots.mask & (weight > 0)[:, None]
    along = jax.random.normal(jax.random.key(0), slots.values.shape[-1:])
    place = jnp.sum(slots.values.astype(jnp.float32) * along, axis=-1)  # the same for the same content, and hardly for another
    near = 1e-6 * jnp.max(jnp.where(valid, jnp.abs(place), 0.0))
    ordered = jnp.sort(jnp.where(valid, place, jnp.inf).reshape(-1))
    count = jnp.searchsorted(ordered, place + near, side="right") - jnp.searchsorted(ordered, place - near)
    return jnp.where(slots.mask, jnp.minimum(count / jnp.maximum(jnp.sum(jnp.any(valid, axis=-1)), 1), 1.0), 0.0)
