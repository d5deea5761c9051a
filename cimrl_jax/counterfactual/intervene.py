"""Counterfactual edits `x' = x + delta` of one modality's slots. Each returns the edited values `[b, n, d]`.

Which edit fits depends on where the shortcut lies: in how a sentence is put, it is replaced by one that says the same otherwise; in a few words, they
are taken out and a donor's put in; in a few other slots (a patch) their content is swapped with a donor's; in every slot (a tint, a tone) its share
of each element is reflected; in how slots go together (a texture) the patterns of two classes are exchanged in the example as a whole; where none
flips the reference, the example is interpolated with a donor.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from cimrl_jax.types import Slots, SlotSpec


def draw_donors(key: Key[Array, ""], affinity: Float[Array, "b b"], usable: Bool[Array, " b"]) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
    """For each example another one, drawn in proportion to `affinity[i, j]`; False where no usable example has any affinity."""
    b = affinity.shape[0]
    allowed = usable[None, :] & ~jnp.eye(b, dtype=bool) & (affinity > 1e-6)
    score = jnp.where(allowed, jnp.log(jnp.maximum(affinity, 1e-6)) + jax.random.gumbel(key, (b, b)), -jnp.inf)
    return jnp.argmax(score, axis=-1), jnp.any(allowed, axis=-1)


def nearest(alike: Float[Array, "b b"], allowed: Bool[Array, "b b"]) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
    """For each example the allowed one that is most like it, and how much so, at least 0; 0 where none is allowed."""
    score = jnp.where(allowed, alike, -jnp.inf)
    return jnp.argmax(score, axis=-1), jnp.maximum(jnp.max(score, axis=-1), 0.0)


def donor(slots: Slots, chosen: Float[Array, "b n"], evidence: Float[Array, "b n"], donors: Int[Array, " b"]) -> Float[Array, "b n d"]:
    """Swaps the chosen slots for the donor's: the slot with the most evidence for the donor's with the most, and so on down the ranks."""
    order = jnp.argsort(-evidence, axis=-1)  # [b, n]: rank -> slot
    rank = jnp.argsort(order, axis=-1)  # slot -> rank
    count = jnp.sum(chosen, axis=-1).astype(jnp.int32)
    last = jnp.maximum(count[donors] - 1, 0)
    source = jnp.take_along_axis(order[donors], jnp.minimum(rank, last[:, None]), axis=-1)  # [b, n]: slot of the donor
    content = jnp.take_along_axis(slots.values[donors], source[..., None], axis=1)
    return _blend(slots.values, content, chosen)


def splice(slots: Slots, chosen: Float[Array, "b n"], donors: Int[Array, " b"]) -> Slots:
    """Takes the chosen words out of a sentence and puts the donor's chosen ones in, each as far along (as a share of the length) as where it stood.

    The others close up or move apart, so that no gap and no odd place tells of the edit. What is then too long is cut.
    """
    place = (jnp.cumsum(slots.mask, axis=1) - 0.5) / jnp.maximum(jnp.sum(slots.mask, axis=1, keepdims=True), 1)
    stays, comes = slots.mask & (chosen == 0), (slots.mask & (chosen > 0))[donors]
    at = jnp.concatenate([jnp.where(stays, place, jnp.inf), jnp.where(comes, place[donors], jnp.inf)], axis=1)  # [b, 2n]
    order = jnp.argsort(at, axis=1, stable=True)[:, : slots.mask.shape[1]]
    both = jnp.concatenate([slots.values, slots.values[donors]], axis=1)
    return Slots(jnp.take_along_axis(both, order[..., None], axis=1), jnp.isfinite(jnp.take_along_axis(at, order, axis=1)))


def reflect(slots: Slots, along: Float[Array, "b e"], across: Float[Array, "b e"], middle: Float[Array, "b e"]) -> Float[Array, "b n d"]:
    """`x' = x - 2 <x - middle, across> along` for every element: a cue of one sign becomes the other, what lacks the cue stays (`memory.mirror`)."""
    b, n, width = slots.values.shape
    e = along.shape[-1]
    elements = slots.values.astype(jnp.float32).reshape(b, n, width // e, e)
    size = jnp.einsum("bnke,be->bnk", elements - middle[:, None, None], across)
    return (elements - 2 * size[..., None] * along[:, None, None]).reshape(b, n, width)


def exchange(slots: Slots, mean: Float[Array, " w"], mirrors: Float[Array, "b w k"]) -> Float[Array, "b n d"]:
    """Reflects the whole example about `mean` across every one of the mirrors, which are orthonormal (`memory.swap`).

    A pattern is moved as one piece, so that it still meets itself at the edges of the slots.
    """
    b, n, d = slots.values.shape
    flat = jnp.where(slots.mask[..., None], slots.values, 0.0).astype(jnp.float32).reshape(b, n * d) - mean
    moved = 2 * jnp.einsum("bwk,bvk,bv->bw", mirrors, mirrors, flat, optimize="optimal")
    return slots.values - moved.reshape(b, n, d)


def interpolate(slots: Slots, donors: Int[Array, " b"], share: Float[Array, " b"]) -> Float[Array, "b n d"]:
    """`share` of the example and the rest of its donor, slot by slot."""
    share = share[:, None, None]
    return share * slots.values + (1 - share) * slots.values[donors]


def mask(slots: Slots, chosen: Float[Array, "b n"], blank: Float[Array, " d"]) -> Float[Array, "b n d"]:
    """Replaces the chosen slots by the learned mask embedding."""
    return _blend(slots.values, blank, chosen)


def mean(slots: Slots, chosen: Float[Array, "b n"]) -> Float[Array, "b n d"]:
    """Replaces the chosen slots by the batch's mean valid slot."""
    valid = slots.mask[..., None]
    average = jnp.sum(jnp.where(valid, slots.values, 0.0), axis=(0, 1)) / jnp.maximum(jnp.sum(valid), 1)
    return _blend(slots.values, average, chosen)


def gradient(
    slots: Slots, chosen: Float[Array, "b n"], direction: Float[Array, "b n d"], size: Float[Array, ""] | float, spec: SlotSpec
) -> Float[Array, "b n d"]:
    """A signed step of `size` against `direction` on the chosen slots, projected to the valid range."""
    return _clip(_blend(slots.values, slots.values - size * jnp.sign(direction), chosen), spec)


def noise(key: Key[Array, ""], slots: Slots, chosen: Float[Array, "b n"], size: Float[Array, ""] | float, spec: SlotSpec) -> Float[Array, "b n d"]:
    """Gaussian noise of standard deviation `size` on the chosen slots, projected to the valid range."""
    return _clip(slots.values + chosen[..., None] * size * jax.random.normal(key, slots.values.shape), spec)


def _blend(values: Array, content: Array, chosen: Array) -> Array:
    return values + chosen[..., None] * (content - values)


def _clip(values: Array, spec: SlotSpec) -> Array:
    return values if spec.low is None and spec.high is None else jnp.clip(values, spec.low, spec.high)
