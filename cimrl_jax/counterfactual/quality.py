"""How good a counterfactual is. A counterfactual counts in a loss only as far as its quality says.

`flip` and `turned` judge edits that should remove a shortcut (CIMRL); `contrast` judges a split into core and context.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cimrl_jax.losses import jensen_shannon


def flip(edited: Float[Array, "b c"], target: Int[Array, " b"]) -> Float[Array, " b"]:
    """The probability, read off the edited input by the reference, of the class whose cue the edit should have brought: 0 (failed) to 1."""
    return jax.lax.stop_gradient(jnp.take_along_axis(jax.nn.softmax(edited), target[:, None], axis=-1)[:, 0])


def turned(before: Float[Array, "b c"], edited: Float[Array, "b c"]) -> Float[Array, " b"]:
    """How far an edit changed what the reference reads: the Jensen-Shannon divergence, 0 to 1, of its probabilities `before` and of its logits on
    the edited input, no gradient."""
    return jax.lax.stop_gradient(jensen_shannon(before, jax.nn.softmax(edited)))


def local(chosen: Float[Array, "b n"], mask: Bool[Array, "b n"], *, most: float) -> Float[Array, " b"]:
    """1 where the chosen slots are at least one and at most a share `most` of the valid ones: replacing more would take the cause along."""
    share = jnp.sum(chosen, axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1)
    return ((share > 0) & (share <= most)).astype(jnp.float32)


def contrast(
    full: Float[Array, "b c"], context: Float[Array, "b c"], core: Float[Array, "b c"], share: Float[Array, " b"], *, most: Float[Array, ""] | float
) -> Float[Array, " b"]:
    """`1[.05 <= share <= most] sqrt(JS(p, p_context) (1 - JS(p, p_core)))` of three rows of logits, no gradient."""
    p, without, only = (jax.nn.softmax(x) for x in (full, context, core))
    usable = (share >= 0.05) & (share <= most)
    product = jnp.clip(jensen_shannon(p, without), 0.0, 1.0) * (1 - jnp.clip(jensen_shannon(p, only), 0.0, 1.0))
    return jax.lax.stop_gradient(jnp.where(usable, jnp.sqrt(product), 0.0))


def told_apart(score: Float[Array, " b"], good: Bool[Array, " b"], weight: Float[Array, " b"]) -> Float[Array, ""]:
    """AUROC of a score within a batch: the share of pairs, one good and one not, in which the good one has the higher score (a tie counts half)."""
    pairs = jnp.where(good, weight, 0.0)[:, None] * jnp.where(good, 0.0, weight)[None, :]
    wins = (score[:, None] > score[None, :]) + 0.5 * (score[:, None] == score[None, :])
    return jnp.sum(pairs * wins) / jnp.maximum(jnp.sum(pairs), 1e-8)
