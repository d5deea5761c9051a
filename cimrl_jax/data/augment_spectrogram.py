"""Perturbed views of spectrograms, on the device: masked stretches of time and bands of frequency (SpecAugment, Park et al. 2019)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from cimrl_jax.options import Range

Share = Annotated[float, Range(low=0, high=1)]
Count = Annotated[int, Range(low=0)]


@dataclasses.dataclass(frozen=True)
class Options:
    time_masks: Count = 2
    """Stretches of time masked in each recording."""
    time_share: Share = 0.15
    """Longest stretch, as a share of the recording; lengths are uniform from 0."""
    frequency_masks: Count = 2
    """Bands of frequency masked."""
    frequency_share: Share = 0.2
    """Widest band, as a share of all bands; widths are uniform from 0."""


def perturb(values: Float[Array, "b t mel"], key: Key[Array, ""], *, options: Options) -> Float[Array, "b t mel"]:
    """Another view of each recording: what is masked is set to the recording's mean."""
    b, time, mel = values.shape
    draws = jax.random.uniform(key, (2, b, options.time_masks + options.frequency_masks, 1))
    masked = _stretches(draws[:, :, : options.time_masks], time, options.time_share)[:, :, None]
    masked = masked | _stretches(draws[:, :, options.time_masks :], mel, options.frequency_share)[:, None, :]
    return jnp.where(masked, values.mean((1, 2), keepdims=True), values)


def _stretches(draws: Float[Array, "2 b count 1"], size: int, share: float) -> Bool[Array, "b size"]:
    width, start = draws
    width = width * share * size
    start = start * (size - width)
    where = jnp.arange(size) + 0.5
    return ((where >= start) & (where < start + width)).any(1)
