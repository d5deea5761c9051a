"""Pictures as slots: a slot is one square patch of normalised pixels, row by row, an element one pixel's channels."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num, UInt8

from cimrl_jax.errors import UserError
from cimrl_jax.nn.encoders import base
from cimrl_jax.types import Feature, Slots, SlotSpec


@dataclasses.dataclass(frozen=True)
class Patches:
    """How the pictures of one modality are cut."""

    feature: Feature
    side: int

    def __post_init__(self) -> None:
        height, width, channels = self.feature.shape
        if height % self.side or width % self.side:
            fits = [p for p in range(1, min(height, width) + 1) if not (height % p or width % p)]
            raise UserError(f"option patch={self.side} does not divide the {height}x{width} image; choose one of {fits}")
        if any(len(x) not in (1, channels) for x in (self.feature.mean, self.feature.std)):
            raise UserError(
                f"an image of {channels} channels needs 1 or {channels} values of mean and std, not {self.feature.mean} and {self.feature.std}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.feature.shape[0] // self.side, self.feature.shape[1] // self.side

    def spec(self) -> SlotSpec:
        channels = self.feature.shape[2]
        mean, std = ([*own] * (channels // len(own)) for own in (self.feature.mean, self.feature.std))
        return SlotSpec(
            kind=self.feature.kind,
            count=math.prod(self.grid),
            width=self.side * self.side * channels,
            element=channels,
            low=min((0 - m) / s for m, s in zip(mean, std, strict=True)),
            high=max((1 - m) / s for m, s in zip(mean, std, strict=True)),
            grid=self.grid,
        )

    def cut(self, pixels: Num[Array, "*b h w c"]) -> Num[Array, "*b n d"]:
        """Pictures into patches; within a patch rows, columns, channels."""
        *lead, _, _, channels = pixels.shape
        rows, columns = self.grid
        patches = jnp.swapaxes(pixels.reshape(*lead, rows, self.side, columns, self.side, channels), -4, -3)
        return patches.reshape(*lead, rows * columns, self.side * self.side * channels)

    def join(self, patches: Num[Array, "*b n d"]) -> Num[Array, "*b h w c"]:
        """The inverse of `cut`."""
        lead, channels = patches.shape[:-2], self.feature.shape[2]
        whole = jnp.swapaxes(patches.reshape(*lead, *self.grid, self.side, self.side, channels), -4, -3)
        return whole.reshape(*lead, *self.feature.shape)

    def embed(self, inputs: Num[Array, "*b h w c"], present: Bool[Array, "*b"]) -> Slots:
        mean, std = jnp.asarray(self.feature.mean, jnp.float32), jnp.asarray(self.feature.std, jnp.float32)
        patches = self.cut((inputs.astype(jnp.float32) / 255 - mean) / std)
        return base.mask_slots(patches, base.everywhere(present, patches.shape[-2]))

    def regions(self, mask: Bool[Array, "*b h w"]) -> Float[Array, "*b n"]:
        return self.cut(mask[..., None].astype(jnp.float32)).mean(-1)

    def render(self, values: Float[Array, "*b n d"]) -> UInt8[Array, "*b h w c"]:
        mean, std = jnp.asarray(self.feature.mean, jnp.float32), jnp.asarray(self.feature.std, jnp.float32)
        return jnp.clip(jnp.round((self.join(values) * std + mean) * 255), 0, 255).astype(jnp.uint8)
