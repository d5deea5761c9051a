"""Which slots a prediction rests on: gradient times input, for any modality, by `vmap(grad)` of a single-example function."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cimrl_jax.types import Slots

Logits = Callable[[dict[str, Slots]], Float[Array, "b c"]]


def attribute(logits: Logits, slots: Mapping[str, Slots], target: Int[Array, " b"]) -> tuple[Float[Array, "b c"], dict[str, Float[Array, "b n w"]]]:
    """The logits, and the gradient of each example's margin for its `target` class with respect to its slots.

    The margin is the target's logit minus the mean of the others. Examples do not interact, so the gradient of the batch's summed margin IS the
    per-example gradient, at the cost of one backward pass.
    """
    values = {m: s.values for m, s in slots.items()}

    def margin(values: dict[str, Array]) -> tuple[Array, Array]:
        out = logits({m: Slots(values[m], s.mask) for m, s in slots.items()})  # [b, c]
        chosen = jnp.take_along_axis(out, target[:, None], axis=-1)[:, 0]
        rest = (jnp.sum(out, axis=-1) - chosen) / max(out.shape[-1] - 1, 1)
        return jnp.sum(chosen - rest), out

    gradient, out = jax.grad(margin, has_aux=True)(values)
    return out, gradient


def evidence(gradient: Mapping[str, Float[Array, "b n w"]], slots: Mapping[str, Slots]) -> dict[str, Float[Array, "b n"]]:
    """`relu(<gradient, slot>)`, 0 on invalid slots: how far each slot speaks for the target class (gradient x input)."""
    return {m: jnp.where(s.mask, jax.nn.relu(jnp.sum(gradient[m] * s.values, axis=-1)), 0.0) for m, s in slots.items()}


def choose(scores: Float[Array, "b n"], mask: Bool[Array, "b n"], *, threshold: Float[Array, ""] | float) -> Float[Array, "b n"]:
    """1 on the slots whose score is at least `threshold` times the example's highest, 0 elsewhere; nothing where all scores are 0.

    Relative, not top-k: a cue that sits in one word chooses one slot, a cue that covers the whole ground chooses nearly all.
    """
    best = jnp.max(scores, axis=-1, keepdims=True)
    return jnp.where((scores >= threshold * best) & (best > 0) & mask, 1.0, 0.0)
