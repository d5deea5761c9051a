"""Perturbed views of ready-made slots, on the device: noise, and whole slots set to 0; or one of several views that were made beforehand."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from cimrl_jax.options import Range

Share = Annotated[float, Range(low=0, high=1)]


@dataclasses.dataclass(frozen=True)
class Options:
    noise: Annotated[float, Range(low=0)] = 0.1
    """Standard deviation of the noise on each number."""
    drop: Share = 0.1
    """Probability that a slot is set to 0."""


def perturb(values: Float[Array, "b n d"], key: Key[Array, ""], *, options: Options) -> Float[Array, "b n d"]:
    """Another view of each example's slots. A slot of zeros holds nothing, and stays so."""
    noise_key, drop_key = jax.random.split(key)
    noisy = values + options.noise * jax.random.normal(noise_key, values.shape, values.dtype)
    gone = jax.random.uniform(drop_key, (*values.shape[:2], 1)) < options.drop
    return jnp.where(gone | (values == 0).all(-1, keepdims=True), 0, noisy)


def choose_view(values: Shaped[Array, "b m d"], key: Key[Array, ""], *, views: int) -> Shaped[Array, "b m d"]:
    """One of each example's `views` views, which lie one after the other (m = views * n), changes places with the first, the one that is read.

    Each is as likely, the first itself included.
    """
    together = values.reshape(len(values), views, -1, values.shape[-1])
    chosen = jax.random.randint(key, (len(values), 1), 0, views)
    place = jnp.arange(views)[None]
    order = jnp.where(place == 0, chosen, jnp.where(place == chosen, 0, place))
    return jnp.take_along_axis(together, order[:, :, None, None], axis=1).reshape(values.shape)
