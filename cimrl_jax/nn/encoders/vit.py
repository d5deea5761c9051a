"""A vision transformer (Dosovitskiy et al. 2021) on pixel patches: a slot is one patch of normalised pixels, an element one pixel's channels."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num, UInt8

from cimrl_jax.errors import UserError
from cimrl_jax.nn.encoders import base
from cimrl_jax.nn.transformer import Sizes
from cimrl_jax.options import Range
from cimrl_jax.types import Feature, Slots, SlotSpec


@dataclasses.dataclass(frozen=True)
class Options:
    patch: Annotated[int, Range(low=0)] = 0
    """Side of a patch in pixels; it must divide the image's height and width. 0: the smallest that does, is 7 or more, and cuts the shorter side into
    8 at most."""
    depth: Annotated[int, Range(low=0)] = 2
    """Blocks after the patches were embedded."""


class Vit(nn.Module):
    feature: Feature
    sizes: Sizes
    patch: int
    depth: int

    def setup(self) -> None:
        self.trunk = base.Trunk(self.sizes, self.depth)

    @nn.nowrap
    def slot_spec(self) -> SlotSpec:
        height, width, channels = self.feature.shape
        mean, std = (jnp.broadcast_to(jnp.asarray(x), (channels,)).tolist() for x in (self.feature.mean, self.feature.std))
        return SlotSpec(
            kind=self.feature.kind,
            count=(height // self.patch) * (width // self.patch),
            width=self.patch * self.patch * channels,
            element=channels,
            low=min((0 - m) / s for m, s in zip(mean, std, strict=True)),
            high=max((1 - m) / s for m, s in zip(mean, std, strict=True)),
            grid=(height // self.patch, width // self.patch),
        )

    @nn.nowrap
    def fold(self, pixels: Num[Array, "*b h w c"]) -> Num[Array, "*b n d"]:
        """Cuts pictures into patches, row by row; within a patch rows, columns, channels."""
        *lead, height, width, channels = pixels.shape
        p = self.patch
        patches = pixels.reshape(*lead, height // p, p, width // p, p, channels)
        return jnp.swapaxes(patches, -4, -3).reshape(*lead, (height // p) * (width // p), p * p * channels)

    def embed(self, inputs: Num[Array, "*b h w c"], present: Bool[Array, "*b"]) -> Slots:
        mean, std = jnp.asarray(self.feature.mean, jnp.float32), jnp.asarray(self.feature.std, jnp.float32)
        patches = self.fold((inputs.astype(jnp.float32) / 255 - mean) / std)
        return base.mask_slots(patches, base.everywhere(present, patches.shape[-2]))

    def encode(self, slots: Slots, *, deterministic: bool) -> Slots:
        return self.trunk(slots, deterministic=deterministic)

    @nn.nowrap
    def regions(self, mask: Bool[Array, "*b h w"]) -> Float[Array, "*b n"]:
        return self.fold(mask[..., None].astype(jnp.float32)).mean(-1)

    def render(self, values: Float[Array, "*b n d"]) -> UInt8[Array, "*b h w c"]:
        height, width, channels = self.feature.shape
        p, lead = self.patch, values.shape[:-2]
        patches = jnp.swapaxes(values.reshape(*lead, height // p, width // p, p, p, channels), -4, -3)
        mean, std = jnp.asarray(self.feature.mean, jnp.float32), jnp.asarray(self.feature.std, jnp.float32)
        return jnp.clip(jnp.round((patches.reshape(*lead, height, width, channels) * std + mean) * 255), 0, 255).astype(jnp.uint8)


def build(options: Options, *, feature: Feature, dim: int, heads: int, mlp_ratio: float, dropout: float, dtype: Any) -> Vit:
    """An encoder of images `[h, w, c]` uint8 (0..255).

    Raises:
      UserError: not an image, or the patch does not divide it.
    """
    base.expect(feature, encoder="vit", kind="image", rank=3)
    height, width, channels = feature.shape
    fits = [p for p in range(1, min(height, width) + 1) if not (height % p or width % p)]
    patch = options.patch or next((p for p in fits if p >= max(7, min(height, width) / 8)), fits[-1])
    if patch not in fits:
        raise UserError(f"option patch={patch} of encoder 'vit' does not divide the {height}x{width} image; choose one of {fits}")
    if any(len(x) not in (1, channels) for x in (feature.mean, feature.std)):
        raise UserError(f"an image of {channels} channels needs 1 or {channels} values of mean and std, not {feature.mean} and {feature.std}")
    return Vit(feature, Sizes(dim, heads, mlp_ratio, dropout, dtype), patch, options.depth)
