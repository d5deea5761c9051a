"""Learning from failure (Nam et al. 2020, arXiv 2007.02561, algorithm 1). Sees labels only; selected by worst group.

Two networks are trained side by side. The biased one minimises the generalised cross entropy, which follows what is easy; the other one the cross
entropy, weighted by how much harder the biased network finds the example:

    W = l_b / (l_b + l_d),    l = EMA_i / max over the class of EMA

EMA_i is the running average of example i's cross entropy under each network, l its share of the highest average among the examples of its class.
An example that was not seen yet takes no part in the maximum. The second network is a whole second model: a step costs twice as much.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from cimrl_jax.losses import cross_entropy, generalized_cross_entropy, masked_mean, relative_difficulty
from cimrl_jax.methods import base
from cimrl_jax.options import Range
from cimrl_jax.types import Batch, Hyper, Method, Metrics, Model, Params, Spec, Stage


@dataclasses.dataclass(frozen=True)
class Options:
    """Learning from failure's own numbers."""

    q: Annotated[float, Range(above=0, high=1)] = 0.7
    """Exponent of the biased network's loss (1 - p_y^q) / q: the larger, the less it follows what is hard to fit."""
    decay: Annotated[float, Range(low=0, below=1)] = 0.7
    """Share of an example's average loss that it keeps each time the example is seen."""


def build(options: Options) -> Method:
    """The method record."""
    return Method(init=_init, stages=(Stage(share=1.0, loss=_loss),), hyper=base.swept(options), explain=base.explain, selection="worst_group")


def _init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
    assert spec.init_model is not None
    n, unseen = spec.num_examples, spec.num_classes
    return {"biased": spec.init_model(key)}, {"average": jnp.zeros((n, 2)), "label": jnp.full((n,), unseen, jnp.int32)}


def _loss(state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
    keys = jax.random.split(key)
    biased = base.forward(model, {"model": params["method"]["biased"]}, batch, keys[0]).logits
    logits = base.forward(model, params, batch, keys[1]).logits
    hardness = cross_entropy(logits, batch.label)
    losses = jnp.stack([cross_entropy(biased, batch.label), hardness], axis=-1)  # [b, 2]
    state = _remember(state, losses, batch, hyper["decay"], unseen=logits.shape[-1])
    weight = _difficulty(state, batch, unseen=logits.shape[-1])
    debiased = masked_mean(weight * hardness, batch.weight)
    loss = debiased + masked_mean(generalized_cross_entropy(biased, batch.label, hyper["q"]), batch.weight)
    right = (jnp.argmax(biased, axis=-1) == batch.label).astype(jnp.float32)
    more = {"difficulty": masked_mean(weight, batch.weight), "biased_accuracy": masked_mean(right, batch.weight)}
    return loss, (state, base.figures(loss, logits, batch, **more))


def _remember(state: Any, losses: Float[Array, "b 2"], batch: Batch, decay: Float[Array, ""], *, unseen: int) -> Any:
    """The averages after this batch. An example that it holds more than once counts with the mean of its losses; a first loss is taken whole."""
    average, label = state["average"], state["label"]
    rows = jnp.where(batch.weight > 0, batch.index, len(label))  # out of range: dropped
    weight = batch.weight[:, None]
    total = jnp.zeros_like(average).at[rows].add(jnp.where(weight > 0, losses, 0.0) * weight, mode="drop")
    mass = jnp.zeros_like(average[:, :1]).at[rows].add(weight, mode="drop")
    new = total / jnp.maximum(mass, 1e-8)
    moved = jnp.where(label[:, None] == unseen, new, decay * average + (1 - decay) * new)
    return {"average": jnp.where(mass > 0, moved, average), "label": label.at[rows].set(batch.label, mode="drop")}


def _difficulty(state: Any, batch: Batch, *, unseen: int) -> Float[Array, " b"]:
    """The examples' weights W, from both networks' averages."""
    highest = jax.ops.segment_max(state["average"], state["label"], num_segments=unseen + 1)  # [c + 1, 2]
    share = state["average"][batch.index] / jnp.maximum(highest[batch.label], 1e-8)
    return relative_difficulty(share[:, 0], share[:, 1])
