"""Group distributionally robust optimisation (Sagawa et al. 2020, arXiv 1911.08731, algorithm 1 and generalisation adjustment). Sees group labels.

`q_g <- q_g exp(eta (L_g + C / sqrt(n_g)))`, normalised; the loss is `sum_g q_g L_g` with the updated q and no gradient through it. q starts uniform,
a group absent from the batch has L_g = 0, batches are drawn group-balanced.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from cimrl_jax.losses import cross_entropy
from cimrl_jax.methods import base
from cimrl_jax.types import Batch, Hyper, Method, Metrics, Model, Params, Spec, Stage


@dataclasses.dataclass(frozen=True)
class Options:
    """Group DRO's own numbers."""

    eta: float = 0.01
    """Step size of the group weights' multiplicative update."""
    adjustment: float = 0.0
    """C of the generalisation adjustment C / sqrt(n_g), in nats."""


def build(options: Options) -> Method:
    """The method record."""
    return Method(
        init=_init,
        stages=(Stage(share=1.0, loss=_loss, draw=base.balanced("group")),),
        hyper=base.swept(options),
        explain=base.explain,
        needs_groups=True,
    )


def _init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
    counts = jnp.asarray(spec.group_counts, jnp.float32)
    held = counts > 0  # a group that training lacks takes no part
    return {}, {"q": held / jnp.sum(held), "held": held, "inverse_root": jnp.where(held, jax.lax.rsqrt(jnp.maximum(counts, 1.0)), 0.0)}


def _loss(state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
    logits = base.forward(model, params, batch, key).logits
    member = (batch.group[:, None] == jnp.arange(state["q"].shape[0])) * batch.weight[:, None]  # [b, g]
    losses = jnp.where(batch.weight > 0, cross_entropy(logits, batch.label), 0.0)
    per_group = losses @ member / jnp.maximum(jnp.sum(member, axis=0), 1e-8)  # [g]
    raised = jax.lax.stop_gradient(per_group) + hyper["adjustment"] * state["inverse_root"]
    q = jnp.where(state["held"], state["q"] * jnp.exp(hyper["eta"] * raised), 0.0)
    q = q / jnp.sum(q)
    loss = jnp.sum(q * per_group)
    return loss, (state | {"q": q}, base.figures(loss, logits, batch, q_max=jnp.max(q)))
