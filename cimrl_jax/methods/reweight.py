"""Reweighting: each example's loss weighs the more, the smaller its group or class. Sees group labels, or with `by="class"` only labels.

`L = mean_i w_i CE_i`, `w_i ~ n^-power`, n the size of example i's group (class) in training; w averages 1 over the training split. The importance
weighting with which Sagawa et al. 2020 (arXiv 1911.08731) compare group DRO.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from cimrl_jax.losses import cross_entropy, masked_mean
from cimrl_jax.methods import base
from cimrl_jax.options import Range
from cimrl_jax.types import Batch, Hyper, Method, Metrics, Model, Params, Spec, Stage


@dataclasses.dataclass(frozen=True)
class Options:
    """What is balanced, and how far."""

    by: Literal["group", "class"] = "group"
    """Whether groups or classes are to count alike."""
    power: Annotated[float, Range(low=0)] = 1.0
    """1: an example weighs the inverse of its group's size, 0.5: the inverse root, 0: nothing changes."""


def build(options: Options) -> Method:
    """The method record."""

    def init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
        counts = spec.group_counts if options.by == "group" else spec.class_counts
        return {}, {"counts": jnp.asarray(counts, jnp.float32)}

    def loss(
        state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
        logits = base.forward(model, params, batch, key).logits
        size = _sizes(state["counts"], hyper["power"])
        own = jnp.take(size, batch.group if options.by == "group" else batch.label, mode="fill", fill_value=0.0)
        total = masked_mean(own * cross_entropy(logits, batch.label), batch.weight)
        return total, (state, base.figures(total, logits, batch))

    return Method(
        init=init,
        stages=(Stage(share=1.0, loss=loss),),
        hyper=base.swept(options),
        explain=base.explain,
        needs_groups=options.by == "group",
    )


def _sizes(counts: Float[Array, " g"], power: Float[Array, ""]) -> Float[Array, " g"]:
    """What an example of each group weighs; 0 where training has none."""
    raw = jnp.where(counts > 0, jnp.maximum(counts, 1.0) ** -power, 0.0)
    return raw * jnp.sum(counts) / jnp.sum(counts * raw)
