"""A transformer on words: a slot is one word's embedding before positions, an element the whole embedding."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cimrl_jax.errors import UserError
from cimrl_jax.nn.encoders import base
from cimrl_jax.nn.transformer import Sizes
from cimrl_jax.options import Range
from cimrl_jax.types import Feature, Slots, SlotSpec


@dataclasses.dataclass(frozen=True)
class Options:
    depth: Annotated[int, Range(low=0)] = 1
    """Blocks after the words were embedded."""
    max_length: Annotated[int, Range(low=0)] = 0
    """Words that are read, from the first; 0 reads the feature's whole length."""


class TextTransformer(nn.Module):
    feature: Feature
    sizes: Sizes
    depth: int
    length: int

    def setup(self) -> None:
        size = (len(self.feature.vocabulary), self.sizes.dim)
        self.words = self.param("words", nn.initializers.normal(self.sizes.dim**-0.5), size, jnp.float32)
        self.trunk = base.Trunk(self.sizes, self.depth, mapped=True)

    @nn.nowrap
    def slot_spec(self) -> SlotSpec:
        return SlotSpec(kind=self.feature.kind, count=self.length, width=self.sizes.dim, element=self.sizes.dim)

    def embed(self, inputs: Int[Array, "*b l"], present: Bool[Array, "*b"]) -> Slots:
        ids = inputs[..., : self.length]
        return base.mask_slots(self.words[ids], (ids != 0) & present[..., None])

    def encode(self, slots: Slots, *, deterministic: bool) -> Slots:
        return self.trunk(slots, deterministic=deterministic)

    @nn.nowrap
    def regions(self, mask: Bool[Array, "*b l"]) -> Float[Array, "*b n"]:
        return mask[..., : self.length].astype(jnp.float32)

    def render(self, values: Float[Array, "*b n d"]) -> Int[Array, "*b n"]:
        # argmin |v - w|^2 over words, without the [*b, n, words, d] of differences.
        distance = jnp.sum(self.words**2, axis=-1) - 2 * values @ self.words.T
        return jnp.argmin(distance, axis=-1).astype(jnp.int32)


def build(options: Options, *, feature: Feature, dim: int, heads: int, mlp_ratio: float, dropout: float, dtype: Any) -> TextTransformer:
    """An encoder of word ids `[length]` int32, 0 for padding.

    Raises:
      UserError: not a text, or a text without a vocabulary.
    """
    base.expect(feature, encoder="text_transformer", kind="text", rank=1)
    if not feature.vocabulary:
        raise UserError("encoder 'text_transformer' needs the feature's vocabulary, which is empty; mend the data set's Feature")
    length = min(options.max_length or feature.shape[0], feature.shape[0])
    return TextTransformer(feature, Sizes(dim, heads, mlp_ratio, dropout, dtype), options.depth, length)
