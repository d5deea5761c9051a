"""Mixup (Zhang et al. 2018, arXiv 1710.09412): training on the convex combinations of pairs of examples, against both labels. Sees labels only.

`x = share x_i + (1 - share) x_j`, `L = share CE(f(x), y_i) + (1 - share) CE(f(x), y_j)`, j a random permutation of i, `share ~ Beta(alpha, alpha)`
one for a batch. Words cannot be mixed, so by default the codes of all modalities are (manifold mixup, Verma et al. 2019, arXiv 1806.05236).
`at="slots"` mixes what enters the encoders: pixels, numbers, and words by their embeddings.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from cimrl_jax.methods import base
from cimrl_jax.options import Range
from cimrl_jax.types import Batch, Hyper, Method, Metrics, Model, Params, Stage


@dataclasses.dataclass(frozen=True)
class Options:
    """Mixup's own choices."""

    alpha: Annotated[float, Range(above=0)] = 0.2
    """Of Beta(alpha, alpha): the smaller, the more a mixture resembles one of its two examples."""
    at: base.MixAt = "codes"
    """What is mixed: the codes, or the slots from which the encoders read."""


def build(options: Options) -> Method:
    """The method record."""

    def loss(
        state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
        keys = jax.random.split(key, 3)
        share = jnp.broadcast_to(jax.random.beta(keys[0], hyper["alpha"], hyper["alpha"]), batch.weight.shape)
        partner = permute(keys[1], batch.weight > 0)
        total, figures = base.mix(model, params, batch, partner, share, keys[2], at=options.at)
        return total, (state, figures)

    return Method(init=base.stateless, stages=(Stage(share=1.0, loss=loss),), hyper=base.swept(options), explain=base.explain)


def permute(key: Key[Array, ""], valid: Bool[Array, " b"]) -> Int[Array, " b"]:
    """A random permutation of the valid rows; the others stay where they are."""
    order = jnp.argsort(jnp.where(valid, jax.random.uniform(key, valid.shape), jnp.inf))  # the valid rows first
    return jnp.where(valid, order[jnp.cumsum(valid) - 1], jnp.arange(len(valid)))
