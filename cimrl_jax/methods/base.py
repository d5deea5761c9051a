"""What every method shares: the shape of its functions, and the explanation that any trained model can give.

A method is one file with `Options` (every number a documented field) and `build(options) -> Method`. It never imports nn, data or train: it is
handed the model as a record of pure functions. The contract tests find it by walking this folder.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from cimrl_jax.counterfactual import attribution
from cimrl_jax.losses import masked_mean
from cimrl_jax.types import Batch, Hyper, Metrics, Model, Outputs, Params


def forward(model: Model, params: Params, batch: Batch, key: Key[Array, ""] | None) -> Outputs:
    """The model's outputs on the batch as it is."""
    slots = model.embed(params["model"], batch.inputs, batch.present)
    return model.decide(params["model"], model.encode(params["model"], slots, key))


def swept(options: Any) -> dict[str, float]:
    """The float fields of a method's options: traced, so that a sweep over them needs no new compile."""
    return {f.name: getattr(options, f.name) for f in dataclasses.fields(options) if isinstance(getattr(options, f.name), float)}


def figures(loss: Float[Array, ""], logits: Float[Array, "b c"], batch: Batch, **more: Float[Array, ""]) -> Metrics:
    """What every method logs, beside its own: the loss and the accuracy on the batch."""
    right = (jnp.argmax(logits, axis=-1) == batch.label).astype(jnp.float32)
    return {"loss": loss, "accuracy": masked_mean(right, batch.weight), **more}


def explain(state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]) -> dict[str, dict[str, Array]]:
    """What the prediction rested on: gradient x input for the predicted class; chosen are the slots with at least half the highest evidence."""
    del state, hyper, key
    slots = model.embed(params["model"], batch.inputs, batch.present)

    def logits(s: dict[str, Any]) -> Array:
        return model.decide(params["model"], model.encode(params["model"], s, None)).logits

    predicted = jnp.argmax(logits(slots), axis=-1)
    _, gradient = attribution.attribute(logits, slots, predicted)
    evidence = attribution.evidence(gradient, slots)
    chosen = {m: attribution.choose(evidence[m], slots[m].mask, threshold=0.5) for m in slots}
    return {"evidence": evidence, "chosen": chosen}
