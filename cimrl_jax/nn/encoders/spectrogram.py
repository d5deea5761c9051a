"""An audio transformer (AST, Gong et al. 2021) on spectrogram patches: a slot is one patch of time by mel band, an element one cell."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cimrl_jax.errors import UserError
from cimrl_jax.nn.encoders import base
from cimrl_jax.nn.transformer import Sizes
from cimrl_jax.options import Range
from cimrl_jax.types import Feature, Slots, SlotSpec


@dataclasses.dataclass(frozen=True)
class Options:
    patch_time: Annotated[int, Range(low=0)] = 0
    """Frames in a patch; it must divide the recording's frames. 0: the smallest number from 8 on that does."""
    patch_mel: Annotated[int, Range(low=0)] = 0
    """Mel bands in a patch; it must divide the recording's bands. 0: the smallest number from 8 on that does."""
    depth: Annotated[int, Range(low=0)] = 2
    """Blocks after the patches were embedded."""


class Spectrogram(nn.Module):
    feature: Feature
    sizes: Sizes
    patch: tuple[int, int]
    depth: int

    def setup(self) -> None:
        self.trunk = base.Trunk(self.sizes, self.depth)

    @nn.nowrap
    def slot_spec(self) -> SlotSpec:
        (time, mel), (across, up) = self.feature.shape, self.patch
        return SlotSpec(kind=self.feature.kind, count=(time // across) * (mel // up), width=across * up, element=1, grid=(time // across, mel // up))

    @nn.nowrap
    def fold(self, cells: Float[Array, "*b t f"]) -> Float[Array, "*b n d"]:
        """Cuts recordings into patches, time first; within a patch frames, then bands."""
        *lead, time, mel = cells.shape
        across, up = self.patch
        patches = cells.reshape(*lead, time // across, across, mel // up, up)
        return jnp.swapaxes(patches, -3, -2).reshape(*lead, (time // across) * (mel // up), across * up)

    def embed(self, inputs: Float[Array, "*b t f"], present: Bool[Array, "*b"]) -> Slots:
        patches = self.fold(inputs.astype(jnp.float32))
        return base.mask_slots(patches, base.everywhere(present, patches.shape[-2]))

    def encode(self, slots: Slots, *, deterministic: bool) -> Slots:
        return self.trunk(slots, deterministic=deterministic)

    @nn.nowrap
    def regions(self, mask: Bool[Array, "*b t f"]) -> Float[Array, "*b n"]:
        return self.fold(mask.astype(jnp.float32)).mean(-1)

    def render(self, values: Float[Array, "*b n d"]) -> Float[Array, "*b t f"]:
        (time, mel), (across, up), lead = self.feature.shape, self.patch, values.shape[:-2]
        return jnp.swapaxes(values.reshape(*lead, time // across, mel // up, across, up), -3, -2).reshape(*lead, time, mel)


def build(options: Options, *, feature: Feature, dim: int, heads: int, mlp_ratio: float, dropout: float, dtype: Any) -> Spectrogram:
    """An encoder of spectrograms `[time, mel]` float32, as the data set normalised them.

    Raises:
      UserError: not a spectrogram, or a patch that does not divide it.
    """
    base.expect(feature, encoder="spectrogram", kind="spectrogram", rank=2)
    patch = []
    for option, size, axis in zip(("patch_time", "patch_mel"), feature.shape, ("frames", "mel bands"), strict=True):
        fits = [p for p in range(1, size + 1) if size % p == 0]
        patch.append(getattr(options, option) or next((p for p in fits if p >= 8), size))
        if patch[-1] not in fits:
            raise UserError(f"option {option}={patch[-1]} of encoder 'spectrogram' does not divide the {size} {axis}; choose one of {fits}")
    return Spectrogram(feature, Sizes(dim, heads, mlp_ratio, dropout, dtype), (patch[0], patch[1]), options.depth)
