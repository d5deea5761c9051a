"""Invariant risk minimisation (IRMv1, Arjovsky et al. 2019, arXiv 1907.02893). Sees group labels: an environment is a value of the groups' attribute.

    L = (R + w D) / max(w, 1),   R = mean_e R_e,   D = mean_e g_e(even rows) g_e(odd rows),   g_e = d/ds mean CE(s logits, y) at s = 1

R_e is environment e's mean cross entropy in the batch. g_e is 0 where no rescaling of the logits would suit the environment better; its product
over two halves of the rows is an unbiased estimate of its square (the paper's appendix D). w is 1 before `anneal` and `penalty` after it, and the
loss is divided by it, as in the authors' code.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from cimrl_jax.errors import UserError
from cimrl_jax.losses import cross_entropy
from cimrl_jax.methods import base
from cimrl_jax.options import Range
from cimrl_jax.types import Batch, Hyper, Method, Metrics, Model, Params, Spec, Stage


@dataclasses.dataclass(frozen=True)
class Options:
    """IRM's own numbers."""

    penalty: Annotated[float, Range(low=0)] = 100.0
    """Weight of the penalty after the anneal."""
    anneal: Annotated[float, Range(low=0, high=1)] = 0.1
    """Share of the run before the penalty has its weight (it is 1 until then)."""


def build(options: Options) -> Method:
    """The method record."""
    return Method(init=_init, stages=(Stage(share=1.0, loss=_loss),), hyper=base.swept(options), explain=base.explain, needs_groups=True)


def _init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
    if not spec.group_attribute:
        raise UserError("method 'irm' takes the groups' attribute for the environment, but these groups have none; name an attribute column")
    environment = np.eye(max(spec.group_attribute) + 1, dtype=np.float32)[np.asarray(spec.group_attribute)]
    return {}, {"environment": jnp.asarray(environment), "step": jnp.zeros(()), "steps": jnp.asarray(float(spec.steps))}


def _loss(state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
    logits = base.forward(model, params, batch, key).logits
    member = jnp.take(state["environment"], batch.group, axis=0, mode="fill", fill_value=0.0) * (batch.weight > 0)[:, None]  # [b, e]
    risk, invariance = risk_and_penalty(logits, batch.label, batch.weight, member)
    size = jnp.where(state["step"] >= hyper["anneal"] * state["steps"], hyper["penalty"], 1.0)
    loss = (risk + size * invariance) / jnp.maximum(size, 1.0)
    return loss, (state | {"step": state["step"] + 1}, base.figures(loss, logits, batch, risk=risk, penalty=invariance))


def risk_and_penalty(
    logits: Float[Array, "b c"], label: Int[Array, " b"], weight: Float[Array, " b"], member: Float[Array, "b e"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """R and D over the environments that have a row, and two rows, in the batch; `member` says whose row it is, 0 throughout where the weight is."""
    rank = jnp.cumsum(member, axis=0)  # by the place inside the environment, not in the batch
    even = member * (rank % 2 == 0)

    def mean(values: Float[Array, " b"], rows: Float[Array, "b e"]) -> Float[Array, " e"]:
        share = rows * weight[:, None]
        return jnp.where(weight > 0, values, 0.0) @ share / jnp.maximum(jnp.sum(share, axis=0), 1e-8)

    risk = mean(cross_entropy(logits, label), member)
    own = jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]
    slope = jnp.sum(jax.nn.softmax(logits) * logits, axis=-1) - own  # d/ds CE(s logits, y) at s = 1
    product = mean(slope, even) * mean(slope, member - even)
    here, paired = jnp.any(member > 0, axis=0), jnp.any(even > 0, axis=0)
    return jnp.sum(risk) / jnp.maximum(jnp.sum(here), 1), jnp.sum(product) / jnp.maximum(jnp.sum(paired), 1)
