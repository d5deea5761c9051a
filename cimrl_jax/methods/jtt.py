"""Just train twice (Liu et al. 2021, arXiv 2107.09044). Sees labels only; selected by worst group.

Stage 1 is empirical risk minimisation for a short while. What it then gets wrong of the training split is the error set. Stage 2 begins again from
fresh weights, on the training split with `upweight` further copies of the error set. Where stage 1 makes no error, stage 2 is plain empirical risk
minimisation: shorten stage 1 then.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from cimrl_jax.methods import base
from cimrl_jax.options import Range
from cimrl_jax.types import Batch, Hyper, Method, Metrics, Model, Params, Population, Rows, Spec, Stage, Told


@dataclasses.dataclass(frozen=True)
class Options:
    """Just train twice's own numbers."""

    first: Annotated[float, Range(above=0, below=1)] = base.static(0.2)
    """Share of the steps that find the error set."""
    upweight: Annotated[float, Range(low=0)] = 20.0
    """Further copies of each example of the error set, rounded to a whole number."""


def build(options: Options) -> Method:
    """The method record."""
    stages = (
        Stage(share=options.first, loss=base.erm_loss),
        Stage(share=1 - options.first, loss=_loss, enter=_enter, reads="train", draw=_draw),
    )
    return Method(init=_init, stages=stages, hyper=base.swept(options), explain=base.explain, selection="worst_group")


def _init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
    return {}, {"errors": jnp.zeros((spec.num_examples,), bool)}


def _enter(state: Any, hyper: Hyper, model: Model, params: Params, fresh: Params, told: Told) -> tuple[Any, Params]:
    return {"errors": jnp.argmax(told.logits, axis=-1) != told.label}, fresh


def _draw(population: Population) -> Rows:
    copies = 1 + population.state["errors"] * round(float(population.hyper["upweight"]))
    return Rows(np.repeat(np.arange(len(copies)), copies))


def _loss(state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
    loss, (state, figures) = base.erm_loss(state, hyper, model, params, batch, key)
    return loss, (state, figures | {"error_share": jnp.mean(state["errors"])})
