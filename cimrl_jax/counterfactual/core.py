"""An example's core and its context: pure masks of fixed shapes, made of non-negative scores of its slots.

The core are the slots of highest score that together have a share p of all of it, but at most a share of the slots. What is not core is context.
Two counterfactuals follow: context alone (the core replaced by the mask embedding), and core alone (the context replaced).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from cimrl_jax.counterfactual import intervene
from cimrl_jax.types import Slots, SlotSpec


def eligible(slots: Slots, spec: SlotSpec) -> Bool[Array, "*b n"]:
    """The slots that stand for something in the example: no padding, no class token or other lead, no marker of a text's end."""
    n = slots.mask.shape[-1]
    place = jnp.arange(n)
    found = slots.mask & (place >= spec.lead)
    if spec.raw == "text" and spec.lead:  # a frozen text encoder's tokens: [CLS] words [SEP]
        last = jnp.max(jnp.where(slots.mask, place, -1), axis=-1, keepdims=True)
        found &= place < last
    return found


def share_of(scores: Float[Array, "*b n"], mask: Bool[Array, "*b n"]) -> Float[Array, "*b n"]:
    """Non-negative scores that sum to 1 over the slots of the mask; 0 where none is positive."""
    scores = jnp.where(mask, jnp.maximum(scores, 0.0), 0.0)
    total = jnp.sum(scores, axis=-1, keepdims=True)
    return jnp.where(total > 1e-12, scores / jnp.where(total > 1e-12, total, 1.0), 0.0)


def keep(
    scores: Float[Array, "*b n"], mask: Bool[Array, "*b n"], *, p: Float[Array, ""] | float, most: Float[Array, ""] | float
) -> Bool[Array, "*b n"]:
    """The core: sorted downwards, slots are kept while those before them have less than `p` of the whole, but at most a share `most` of the slots.

    At least one slot may be kept however few there are; slots of equal score are kept or left together; nothing where no score is positive.
    """
    share = share_of(scores, mask)
    falling = -jnp.sort(-share, axis=-1)
    before = jnp.cumsum(falling, axis=-1) - falling
    least = jnp.min(jnp.where((before < p) & (falling > 0), falling, jnp.inf), axis=-1, keepdims=True)
    limit = jnp.maximum(jnp.floor(most * jnp.sum(mask, axis=-1, keepdims=True)), 1).astype(jnp.int32)
    lowest = jnp.take_along_axis(falling, jnp.minimum(limit, falling.shape[-1]) - 1, axis=-1)
    # The sorted copy may round otherwise than the score that it is a copy of, once both are compiled into what uses them.
    return (share >= (1 - 1e-5) * jnp.maximum(least, lowest)) & (share > 0)


def spoil(key: Key[Array, ""], core: Bool[Array, "b n"], mask: Bool[Array, "b n"]) -> Bool[Array, "b n"]:
    """As many slots as the core has, drawn from outside it (from all, where too few are outside): a core that is wrong on purpose."""
    drawn = jnp.where(mask, jax.random.uniform(key, core.shape) - core, -jnp.inf)
    rank = jnp.argsort(jnp.argsort(-drawn, axis=-1), axis=-1)
    return (rank < jnp.sum(core, axis=-1, keepdims=True)) & mask


def covered(core: Bool[Array, "*b n"], mask: Bool[Array, "*b n"]) -> Float[Array, "*b"]:
    """The share of the mask's slots that is core."""
    return jnp.sum(core & mask, axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1)


def context_alone(slots: Slots, core: Bool[Array, "b n"], blank: Float[Array, " d"]) -> Slots:
    """x^c: the mask embedding in the core's place."""
    return Slots(intervene.mask(slots, core.astype(slots.values.dtype), blank), slots.mask)


def core_alone(slots: Slots, core: Bool[Array, "b n"], mask: Bool[Array, "b n"], blank: Float[Array, " d"]) -> Slots:
    """x^s: the mask embedding in the context's place. Slots outside `mask` (markers) stay."""
    return Slots(intervene.mask(slots, (mask & ~core).astype(slots.values.dtype), blank), slots.mask)


def blanked(key: Key[Array, ""], slots: Slots, mask: Bool[Array, "b n"], share: Float[Array, ""] | float, blank: Float[Array, " d"]) -> Slots:
    """The mask embedding in the place of each slot of the mask with probability `share`, so that it is nothing new in a counterfactual."""
    hit = jax.random.bernoulli(key, share, mask.shape) & mask
    return Slots(intervene.mask(slots, hit.astype(slots.values.dtype), blank), slots.mask)
