"""A transformer on what already is slots: synthetic data, or features that a frozen network made beforehand."""

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
    depth: Annotated[int, Range(low=0)] = 1
    """Blocks after the slots were mapped to the model's width."""
    element: Annotated[int, Range(low=0)] = 0
    """Numbers in an element, the finest part that can carry a cue; it must divide the slot's width. 0: the whole slot."""


class Identity(nn.Module):
    feature: Feature
    sizes: Sizes
    depth: int
    element: int

    def setup(self) -> None:
        self.trunk = base.Trunk(self.sizes, self.depth)

    @nn.nowrap
    def slot_spec(self) -> SlotSpec:
        count, width = self.feature.shape
        return SlotSpec(kind=self.feature.kind, count=count, width=width, element=self.element)

    def embed(self, inputs: Float[Array, "*b n d"], present: Bool[Array, "*b"]) -> Slots:
        return base.mask_slots(inputs.astype(jnp.float32), base.everywhere(present, inputs.shape[-2]))

    def encode(self, slots: Slots, *, deterministic: bool) -> Slots:
        return self.trunk(slots, deterministic=deterministic)

    @nn.nowrap
    def regions(self, mask: Bool[Array, "*b n"]) -> Float[Array, "*b n"]:
        return mask.astype(jnp.float32)

    def render(self, values: Float[Array, "*b n d"]) -> Float[Array, "*b n d"]:
        return values


def build(options: Options, *, feature: Feature, dim: int, heads: int, mlp_ratio: float, dropout: float, dtype: Any) -> Identity:
    """An encoder of slots `[n, d]` float32.

    Raises:
      UserError: not slots, or an element that does not divide their width.
    """
    base.expect(feature, encoder="identity", kind="slots", rank=2)
    element = options.element or feature.shape[1]
    if feature.shape[1] % element:
        fits = [e for e in range(1, feature.shape[1] + 1) if feature.shape[1] % e == 0]
        raise UserError(f"option element={element} of encoder 'identity' does not divide the slots' width {feature.shape[1]}; choose one of {fits}")
    return Identity(feature, Sizes(dim, heads, mlp_ratio, dropout, dtype), options.depth, element)
