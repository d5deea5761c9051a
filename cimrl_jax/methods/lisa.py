"""LISA, learning invariant predictors by selective augmentation (Yao et al. 2022, arXiv 2201.00299). Sees group labels and the groups' attributes.

Each example is mixed with another of the batch, `share ~ Beta(2, 2)` of the mixture its own. With probability `p_sel` the others of a batch are
those of the same label and another attribute (intra-label), otherwise those of the same attribute and another label (intra-domain). An example for
which the batch has no such partner stays as it is. Batches are drawn group-balanced, as in the authors' Waterbirds and CelebA runs.

Words cannot be mixed, so by default the codes of all modalities are, as the authors do it for text. `at="slots"` mixes what enters the encoders:
pixels, as they do it for Waterbirds (for CelebA they use CutMix), numbers, and words by their embeddings.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from cimrl_jax.errors import UserError
from cimrl_jax.methods import base
from cimrl_jax.options import Range
from cimrl_jax.types import Batch, Hyper, Method, Metrics, Model, Params, Spec, Stage


@dataclasses.dataclass(frozen=True)
class Options:
    """LISA's own choices."""

    p_sel: Annotated[float, Range(low=0, high=1)] = 0.5
    """Probability that a batch is mixed within labels; otherwise it is within attributes."""
    alpha: Annotated[float, Range(above=0)] = 2.0
    """Of Beta(alpha, alpha), from which each example's own share in its mixture comes."""
    at: base.MixAt = "codes"
    """What is mixed: the codes, or the slots from which the encoders read."""


def build(options: Options) -> Method:
    """The method record."""

    def loss(
        state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
        keys = jax.random.split(key, 4)
        intra_label = jax.random.uniform(keys[0]) < hyper["p_sel"]
        attribute = jnp.take(state["attribute"], batch.group, mode="fill", fill_value=-1)
        partner = pair(keys[1], batch.label, attribute, batch.weight > 0, intra_label)
        share = jax.random.beta(keys[2], hyper["alpha"], hyper["alpha"], batch.weight.shape)
        total, figures = base.mix(model, params, batch, partner, share, keys[3], at=options.at)
        return total, (state, figures)

    return Method(
        init=_init,
        stages=(Stage(share=1.0, loss=loss, draw=base.balanced("group")),),
        hyper=base.swept(options),
        explain=base.explain,
        needs_groups=True,
    )


def _init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
    if not spec.group_attribute:
        raise UserError("method 'lisa' mixes across the groups' attributes, but these groups have none; name an attribute column")
    return {}, {"attribute": jnp.asarray(spec.group_attribute, jnp.int32)}


def pair(
    key: Key[Array, ""], label: Int[Array, " b"], attribute: Int[Array, " b"], valid: Bool[Array, " b"], intra_label: Bool[Array, ""]
) -> Int[Array, " b"]:
    """Each row's partner, drawn from the valid rows of the same label and another attribute (or the other way round); itself where there is none."""
    same_label, same_attribute = (x[:, None] == x[None, :] for x in (label, attribute))
    allowed = jnp.where(intra_label, same_label & ~same_attribute, same_attribute & ~same_label) & valid[:, None] & valid[None, :]
    drawn = jnp.argmax(jnp.where(allowed, jax.random.uniform(key, allowed.shape), -1.0), axis=1)
    return jnp.where(jnp.any(allowed, axis=1), drawn, jnp.arange(len(label)))
