"""Empirical risk minimisation: the mean cross entropy. Standard training and fine-tuning; sees labels only."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Array, Float, Key

from cimrl_jax.losses import cross_entropy, masked_mean
from cimrl_jax.methods import base
from cimrl_jax.types import Batch, Hyper, Method, Metrics, Model, Params, Spec, Stage


@dataclasses.dataclass(frozen=True)
class Options:
    """None of its own."""


def build(options: Options) -> Method:
    """The method record."""
    return Method(init=_init, stages=(Stage(share=1.0, loss=_loss),), hyper=base.swept(options), explain=base.explain)


def _init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
    return {}, {}


def _loss(state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
    logits = base.forward(model, params, batch, key).logits
    loss = masked_mean(cross_entropy(logits, batch.label), batch.weight)
    return loss, (state, base.figures(loss, logits, batch))
