"""Automatic feature reweighting (Qiu et al. 2023, arXiv 2306.11074). Sees labels only; selected by worst group.

Stage 1 is empirical risk minimisation on a random part of the training split. Stage 2 trains the head alone, on the part that was held out, where the
first model has not seen the answers and its doubts tell who is in a minority:

    sum_i mu_i CE_i + lam |W - W_1|^2,    mu_i ~ exp(-gamma p_y) / n_y,    sum mu = 1

p_y is the first model's probability of the label, n_y the number of held-out examples of that class, W_1 the first head with its bias. Here batches
are drawn from the held-out part, where the authors take it whole, and AdamW makes the steps, where they use plain gradient descent.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from cimrl_jax.losses import cross_entropy, masked_mean
from cimrl_jax.methods import base
from cimrl_jax.options import Range
from cimrl_jax.types import Batch, Hyper, Method, Metrics, Model, Params, Population, Rows, Spec, Stage, Told


@dataclasses.dataclass(frozen=True)
class Options:
    """Automatic feature reweighting's own numbers."""

    first: Annotated[float, Range(above=0, below=1)] = base.static(0.8)
    """Share of the steps that train the whole model."""
    held_out: Annotated[float, Range(above=0, below=1)] = base.static(0.2)
    """Share of the training examples that are kept for the head."""
    gamma: Annotated[float, Range(low=0)] = 4.0
    """How much more an example weighs that the first model doubts."""
    lam: Annotated[float, Range(low=0)] = 0.1
    """Weight of the squared distance to the first head."""
    head_learning_rate: Annotated[float, Range(low=0)] = 0.01
    """Peak learning rate of stage 2."""
    head_weight_decay: Annotated[float, Range(low=0)] = 0.0
    """Weight decay of stage 2."""


def build(options: Options) -> Method:
    """The method record."""

    def init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
        n, width = spec.num_examples, spec.dim * (len(spec.slots) + 1)  # the head reads a code of every modality and the shared one
        held = jax.random.permutation(key, n) < min(max(round(options.held_out * n), 1), n - 1)
        first = jnp.zeros((width, spec.num_classes)), jnp.zeros((spec.num_classes,))
        return {}, {"held": held, "weight": jnp.ones((n,)), "first": first}

    stages = (
        Stage(share=options.first, loss=base.erm_loss, draw=_draw(held=False)),
        Stage(
            share=1 - options.first,
            loss=_loss,
            enter=_enter,
            reads="train",
            draw=_draw(held=True),
            trains="head",
            learning_rate="head_learning_rate",
            weight_decay="head_weight_decay",
        ),
    )
    return Method(init=init, stages=stages, hyper=base.swept(options), explain=base.explain, selection="worst_group")


def _draw(*, held: bool) -> Any:
    def draw(population: Population) -> Rows:
        return Rows(np.flatnonzero(population.state["held"] == held))

    return draw


def _enter(state: Any, hyper: Hyper, model: Model, params: Params, fresh: Params, told: Told) -> tuple[Any, Params]:
    weight = _weight(told, state["held"], hyper["gamma"])
    return {"held": state["held"], "weight": weight, "first": model.head.get(params["model"])}, params


def _weight(told: Told, held: Bool[Array, " n"], gamma: Float[Array, ""]) -> Float[Array, " n"]:
    """mu times the number of held-out examples, so that a batch's mean stands for the sum over all of them; 0 on the others."""
    own = held[:, None] * jax.nn.one_hot(told.label, told.logits.shape[-1])  # [n, c]
    number = jnp.sum(own, axis=0)[told.label]
    probability = jnp.exp(-cross_entropy(told.logits, told.label))
    least = jnp.min(jnp.where(held, probability, 1.0))  # cancels, and keeps a large gamma from making every weight 0
    raw = jnp.where(held, jnp.exp(-gamma * (probability - least)) / jnp.maximum(number, 1.0), 0.0)
    return raw / jnp.sum(raw) * jnp.sum(held)


def _loss(state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
    logits = base.forward(model, params, batch, None).logits  # the codes stay as they are: no dropout
    weighted = masked_mean(state["weight"][batch.index] * cross_entropy(logits, batch.label), batch.weight)
    pairs = zip(model.head.get(params["model"]), state["first"], strict=True)
    distance = sum(jnp.sum((own - first) ** 2) for own, first in pairs)
    loss = weighted + hyper["lam"] * distance
    return loss, (state, base.figures(loss, logits, batch, distance=jnp.asarray(distance)))
