"""Perturbed views of tables' rows, on the device: noise, and columns set to their mean."""

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
    """Standard deviation of the noise, in standard deviations of the column (`Feature.std`)."""
    drop: Share = 0.1
    """Probability that a column is set to its mean (`Feature.mean`)."""


def perturb(
    values: Float[Array, "b k"], key: Key[Array, ""], *, options: Options, mean: Float[Array, " k"], std: Float[Array, " k"]
) -> Float[Array, "b k"]:
    """Another view of each row."""
    noise_key, drop_key = jax.random.split(key)
    noisy = values + options.noise * std * jax.random.normal(noise_key, values.shape, values.dtype)
    return jnp.where(jax.random.uniform(drop_key, values.shape) < options.drop, mean, noisy)
