"""Perturbed views of ready-made slots, on the device: noise, and whole slots set to 0."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from cimrl_jax.options import Range

Share = Annotated[float, Range(low=0, high=1)]


@dataclasses.dataclass(frozen=True)
class Options:
    noise: Annotated[float, Range(low=0)] = 0.1
    """Standard deviation of the noise on each number."""
    drop: Share = 0.1
    """Probability that a slot is set to 0."""


def perturb(values: Float[Array, "b n d"], key: Key[Array, ""], *, options: Options) -> Float[Array, "b n d"]:
    """Another view of each example's slots."""
    noise_key, drop_key = jax.random.split(key)
    noisy = values + options.noise * jax.random.normal(noise_key, values.shape, values.dtype)
    return jnp.where(jax.random.uniform(drop_key, (*values.shape[:2], 1)) < options.drop, 0, noisy)
