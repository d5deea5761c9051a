"""CVaR DRO: the mean loss of the worst share of each batch. Sees labels only; selected by worst group.

`L = max_q sum_i q_i CE_i` over distributions q on the batch with `q_i <= p_i / alpha`, p the examples' shares of the batch's weight. So the worst
examples count, as far as their shares add up to alpha, the last of them with what is left. No gradient goes through q.

Duchi & Namkoong 2018 (arXiv 1810.08750); on batches as Levy et al. 2020 (arXiv 2010.05893).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from cimrl_jax.losses import cross_entropy
from cimrl_jax.methods import base
from cimrl_jax.options import Range
from cimrl_jax.types import Batch, Hyper, Method, Metrics, Model, Params, Stage


@dataclasses.dataclass(frozen=True)
class Options:
    """CVaR DRO's own number."""

    alpha: Annotated[float, Range(above=0, high=1)] = 0.1
    """Share of each batch, by weight, that counts: 1 is the plain mean."""


def build(options: Options) -> Method:
    """The method record."""
    return Method(
        init=base.stateless, stages=(Stage(share=1.0, loss=_loss),), hyper=base.swept(options), explain=base.explain, selection="worst_group"
    )


def _loss(state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
    logits = base.forward(model, params, batch, key).logits
    loss = worst_mean(cross_entropy(logits, batch.label), batch.weight, hyper["alpha"])
    return loss, (state, base.figures(loss, logits, batch))


def worst_mean(values: Float[Array, " b"], weight: Float[Array, " b"], alpha: Float[Array, ""] | float) -> Float[Array, ""]:
    """The mean over the worst `alpha` of the weight; 0 where no example weighs anything."""
    values = jnp.where(weight > 0, values, 0.0)
    order = jnp.argsort(-values)
    share = weight[order] / jnp.maximum(jnp.sum(weight), 1e-8)
    before = jnp.cumsum(share) - share
    taken = jnp.clip(alpha - before, 0.0, share)
    return jnp.sum(taken * values[order]) / alpha
