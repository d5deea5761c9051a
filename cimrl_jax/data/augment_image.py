"""Perturbed views of images, on the device: random resized crop, horizontal flip, colour jitter."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from cimrl_jax.options import Range

Share = Annotated[float, Range(low=0, high=1)]


@dataclasses.dataclass(frozen=True)
class Options:
    crop_least: Annotated[float, Range(above=0, high=1)] = 0.6
    """Least area of the crop, as a share of the picture's; the share is uniform from this to 1. 1: no crop."""
    aspect: Annotated[float, Range(low=1)] = 1.25
    """The crop's width to height lies between 1 / this and this (log-uniform). 1: as the picture."""
    flip: Share = 0.5
    """Probability of mirroring, where the modality allows it (`Feature.flip`)."""
    brightness: Share = 0.2
    """Every pixel is multiplied by 1 +- this."""
    contrast: Share = 0.2
    """The distance to the picture's mean grey is multiplied by 1 +- this."""
    saturation: Share = 0.2
    """The distance to the pixel's grey is multiplied by 1 +- this."""
    hue: Annotated[float, Range(low=0, high=0.5)] = 0.0
    """Hues turn by up to this share of the colour circle, either way; a pixel's grey stays. 0: they do not (colour may be the cause)."""


def perturb(images: UInt8[Array, "b h w c"], key: Key[Array, ""], *, options: Options, flip: bool) -> UInt8[Array, "b h w c"]:
    """Another view of each picture. `flip`: whether mirroring keeps the meaning."""
    # One call: on a CPU, XLA takes long to compile each.
    draws = jax.random.uniform(key, (9 if options.hue else 8, len(images)))
    values = images.astype(jnp.float32)
    if options.crop_least < 1 or options.aspect > 1 or (flip and options.flip > 0):
        values = _resized_crop(values, draws[:5], options, flip)
    values = _jitter(values, draws[5:], options)
    return jnp.clip(jnp.round(values), 0, 255).astype(jnp.uint8)


def _resized_crop(values: Float[Array, "b h w c"], draws: Float[Array, "5 b"], options: Options, flip: bool) -> Float[Array, "b h w c"]:
    _, h, w, _ = values.shape
    area, ratio, top, left, mirror = draws
    side = jnp.sqrt(options.crop_least + (1 - options.crop_least) * area)
    stretch = options.aspect ** (ratio - 0.5)  # sqrt of the aspect, which is log-uniform in 1 / aspect .. aspect
    height, width = jnp.minimum(side / stretch, 1), jnp.minimum(side * stretch, 1)
    mirrored = (mirror < options.flip) & flip
    rows = _interpolation(h, height, top, jnp.zeros_like(mirrored))
    columns = _interpolation(w, width, left, mirrored)
    # Bilinear resampling is separable. As two matrix products it is faster than gathers, and it vmaps over members.
    return jnp.einsum("bip,bpqc,bjq->bijc", rows, values, columns)


def _interpolation(size: int, extent: Float[Array, " b"], offset: Float[Array, " b"], mirrored: Array) -> Float[Array, "b size size"]:
    """Weights [output, input] of the `extent` (share of `size`) that starts at `offset` (share of the room left)."""
    step = jnp.arange(size, dtype=jnp.float32)
    start = offset * (1 - extent) * size
    where = start[:, None] + (step + 0.5) * extent[:, None] - 0.5  # centres of the output pixels, in input pixels
    where = jnp.clip(jnp.where(mirrored[:, None], where[:, ::-1], where), 0, size - 1)
    return jnp.maximum(1 - jnp.abs(where[:, :, None] - step), 0)


def _jitter(values: Float[Array, "b h w c"], draws: Float[Array, "_ b"], options: Options) -> Float[Array, "b h w c"]:
    if options.hue and values.shape[-1] == 3:
        values = _turned(values, 2 * jnp.pi * options.hue * (2 * draws[3] - 1))
    strength = jnp.array([options.brightness, options.contrast, options.saturation])[:, None]
    factors = 1 + strength * (2 * draws[:3] - 1)
    brightness, contrast, saturation = factors[:, :, None, None, None]
    values = values * brightness
    if values.shape[-1] == 3:
        grey = (values @ jnp.array([0.299, 0.587, 0.114]))[..., None]
        mean = grey.mean((1, 2, 3), keepdims=True)
        values = grey + (values - grey) * saturation
    else:
        mean = values.mean((1, 2, 3), keepdims=True)
    return mean + (values - mean) * contrast


def _turned(values: Float[Array, "b h w 3"], angle: Float[Array, " b"]) -> Float[Array, "b h w 3"]:
    """Chroma turned by so many radians, in the plane of NTSC's I and Q."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    parts = np.diag([1.0, 0, 0]), np.diag([0, 1.0, 1.0]), np.array([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    grey, cosine, sine = (jnp.asarray(np.linalg.inv(to_yiq) @ part @ to_yiq, jnp.float32) for part in parts)
    turn = grey + jnp.cos(angle)[:, None, None] * cosine + jnp.sin(angle)[:, None, None] * sine
    return jnp.einsum("bijc,bdc->bijd", values, turn)
