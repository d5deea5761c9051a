"""CCR, the causally calibrated robust classifier (Zhou & Zhu 2024, arXiv 2411.01045), for any number of modalities. Sees labels only.

Stage 1 trains the whole model on codes h that are to vary independently of one another; stage 2 the head (W, b) alone, so that it relies on codes
whose absence would change the answer, on examples weighted by how rare they are among those of the same class on which stage 1 was as right:

    stage 1:  CE + covariance |offdiag Cov(h)|_F + penalty (|W|^2 + |b|^2)
    stage 2:  w_i (CE_i + lam R_i) + penalty (|W|^2 + |b|^2),    w_i = 1 / P(class of i, stage 1 is right on i)
              R_i = -mean_j log(1 + max(0, sg p_y(h) - p_y(h with h_j = 0)))

j runs over single features, or with `unit` "modality" over whole codes (each modality's and the shared one). The head is linear, so a prediction
without h_j needs no second pass: it is `logits - h_j W_j`. The authors add up the losses of a batch of 32, here they are averaged: their .5 and 2 are
the defaults' 1/64 and 1/16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from cimrl_jax.losses import cross_entropy, masked_mean
from cimrl_jax.methods import base
from cimrl_jax.options import Range
from cimrl_jax.types import Batch, Hyper, Method, Metrics, Model, Params, Spec, Stage, Told


@dataclasses.dataclass(frozen=True)
class Options:
    """CCR's own numbers."""

    first: Annotated[float, Range(above=0, below=1)] = base.static(0.5)
    """Share of the steps that train the whole model."""
    covariance: Annotated[float, Range(low=0)] = 1 / 64
    """Weight of the covariance of the codes with one another in stage 1."""
    penalty: Annotated[float, Range(low=0)] = 1 / 16
    """Weight of the head's squared size in both stages."""
    lam: Annotated[float, Range(low=0)] = 0.1
    """Weight of R, which rewards codes that the answer needs."""
    head_learning_rate: Annotated[float, Range(low=0)] = 0.01
    """Peak learning rate of stage 2."""
    unit: Literal["feature", "modality"] = "feature"
    """What R takes away at a time."""


def build(options: Options) -> Method:
    """The method record."""

    def second(
        state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
        codes = _codes(model, params, batch, key)
        logits = model.decide(params["model"], codes).logits
        pull = _necessity(logits, _without(model, params, codes, logits, options.unit), batch)
        per_example = cross_entropy(logits, batch.label) + hyper["lam"] * pull
        loss = masked_mean(state["weight"][batch.index] * per_example, batch.weight) + hyper["penalty"] * _size(model, params)
        return loss, (state, base.figures(loss, logits, batch, necessity=-masked_mean(pull, batch.weight)))

    stages = (
        Stage(share=options.first, loss=_first),
        Stage(share=1 - options.first, loss=second, enter=_enter, reads="train", trains="head", learning_rate="head_learning_rate"),
    )
    return Method(init=_init, stages=stages, hyper=base.swept(options), explain=base.explain)


def _init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
    return {}, {"weight": jnp.ones((spec.num_examples,))}


def _first(state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
    codes = _codes(model, params, batch, key)
    logits = model.decide(params["model"], codes).logits
    entangled = _entanglement(model.head.features(codes), batch.weight)
    loss = masked_mean(cross_entropy(logits, batch.label), batch.weight)
    loss = loss + hyper["covariance"] * entangled + hyper["penalty"] * _size(model, params)
    return loss, (state, base.figures(loss, logits, batch, entanglement=entangled))


def _enter(state: Any, hyper: Hyper, model: Model, params: Params, fresh: Params, told: Told) -> tuple[Any, Params]:
    classes = told.logits.shape[-1]
    cell = 2 * told.label + (jnp.argmax(told.logits, axis=-1) == told.label)
    number = jnp.bincount(cell, length=2 * classes)
    return {"weight": len(cell) / number[cell].astype(jnp.float32)}, params


def _codes(model: Model, params: Params, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
    return model.encode(params["model"], model.embed(params["model"], batch.inputs, batch.present), key)


def _size(model: Model, params: Params) -> Float[Array, ""]:
    kernel, bias = model.head.get(params["model"])
    return jnp.sum(kernel**2) + jnp.sum(bias**2)


def _entanglement(features: Float[Array, "b k"], weight: Float[Array, " b"]) -> Float[Array, ""]:
    """The Frobenius norm of the features' covariances with one another, their variances left out."""
    features = jnp.where(weight[:, None] > 0, features, 0.0)
    total = jnp.sum(weight)
    centred = features - weight @ features / jnp.maximum(total, 1e-8)
    covariance = (centred * weight[:, None]).T @ centred / jnp.maximum(total - 1, 1.0)
    between = covariance * (1 - jnp.eye(covariance.shape[0]))
    return jnp.sqrt(jnp.sum(between**2) + 1e-12)


def _without(model: Model, params: Params, codes: Mapping[str, Array], logits: Float[Array, "b c"], unit: str) -> Float[Array, "b u c"]:
    """The logits with each unit of the codes set to zero."""
    features, (kernel, _) = model.head.features(codes), model.head.get(params["model"])
    if unit == "feature":
        return logits[:, None] - features[:, :, None] * kernel
    blocks = [features - model.head.features({**codes, name: jnp.zeros_like(code)}) for name, code in sorted(codes.items())]
    return logits[:, None] - jnp.stack([block @ kernel for block in blocks], axis=1)


def _necessity(logits: Float[Array, "b c"], without: Float[Array, "b u c"], batch: Batch) -> Float[Array, " b"]:
    """R: the more the label's probability falls as units are taken away, the lower."""
    probability = jax.lax.stop_gradient(jnp.exp(-cross_entropy(logits, batch.label)))
    left = jnp.take_along_axis(jax.nn.softmax(without), batch.label[:, None, None], axis=-1)[..., 0]  # [b, u]
    fall = probability[:, None] - left
    fall = jnp.where(fall > 1e-6, fall, 0.0)  # of a unit that holds nothing only rounding is left, which must not be followed
    return -jnp.mean(jnp.log1p(fall), axis=-1)
