"""Pre-norm transformer blocks on masked tokens.

A masked token has no influence on any other, and neither values nor gradients turn NaN where every token of an example is masked.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cimrl_jax.nn.dense import Affine, Dense

FAR = -1e30  # a score that softmax turns into exactly 0; finite, so that a row of nothing else stays finite


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What every block of one model shares."""

    dim: int
    heads: int
    mlp_ratio: float
    dropout: float
    dtype: Any = jnp.float32

    @property
    def hidden(self) -> int:
        return max(1, round(self.dim * self.mlp_ratio))


def attend(
    query: Float[Array, "*b q h e"], key: Float[Array, "*b k h e"], value: Float[Array, "*b k h e"], mask: Bool[Array, "*b k"]
) -> Float[Array, "*b q h e"]:
    """Scaled dot-product attention over the keys that `mask` allows, softmax in float32; zero where it allows none."""
    # Keys before queries: XLA on the CPU reduces over an axis that is not the last about a fifth faster, second derivatives included.
    query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    scores = jnp.einsum("...khe,...qhe->...hkq", key, query, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[..., None, :, None], scores, FAR)
    weights = jax.nn.softmax(scores, axis=-2).astype(value.dtype)
    mixed = jnp.einsum("...hkq,...khe->...qhe", weights, value)
    return jnp.where(mask.any(-1)[..., None, None, None], mixed, 0)


def split_heads(x: Float[Array, "*b n d"], heads: int) -> Float[Array, "*b n h e"]:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def pool(tokens: Float[Array, "*b n d"], mask: Bool[Array, "*b n"]) -> Float[Array, "*b d"]:
    """The mean over valid tokens, in float32; zero where there is none."""
    total = jnp.where(mask[..., None], tokens, 0).astype(jnp.float32).sum(-2)
    return total / jnp.maximum(mask.sum(-1, dtype=jnp.float32), 1)[..., None]


class Norm(nn.Module):
    """Layer normalisation, computed in float32 and returned in `dtype`."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        normal = nn.LayerNorm(dtype=jnp.float32, use_scale=False, use_bias=False)(x.astype(jnp.float32))
        return Affine(name="norm")(normal).astype(self.dtype)


class SelfAttention(nn.Module):
    sizes: Sizes

    @nn.compact
    def __call__(self, x: Float[Array, "*b n d"], mask: Bool[Array, "*b n"]) -> Float[Array, "*b n d"]:
        joint = Dense(3 * self.sizes.dim, self.sizes.dtype, name="query_key_value")(x)
        query, key, value = (split_heads(part, self.sizes.heads) for part in jnp.split(joint, 3, -1))
        mixed = attend(query, key, value, mask)
        return Dense(self.sizes.dim, self.sizes.dtype, name="out")(mixed.reshape(x.shape))


class CrossAttention(nn.Module):
    sizes: Sizes

    @nn.compact
    def __call__(self, x: Float[Array, "*b q d"], other: Float[Array, "*b k d"], mask: Bool[Array, "*b k"]) -> Float[Array, "*b q d"]:
        joint = Dense(2 * self.sizes.dim, self.sizes.dtype, name="key_value")(other)
        key, value = (split_heads(part, self.sizes.heads) for part in jnp.split(joint, 2, -1))
        query = split_heads(Dense(self.sizes.dim, self.sizes.dtype, name="query")(x), self.sizes.heads)
        mixed = attend(query, key, value, mask)
        return Dense(self.sizes.dim, self.sizes.dtype, name="out")(mixed.reshape(x.shape))


class Mlp(nn.Module):
    sizes: Sizes

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        hidden = jax.nn.gelu(Dense(self.sizes.hidden, self.sizes.dtype, name="widen")(x))
        return Dense(self.sizes.dim, self.sizes.dtype, name="narrow")(hidden)


class Block(nn.Module):
    """`x + attention(norm x)`, then, given `other`, `x + cross(norm x, norm other)`, then `x + mlp(norm x)` (Xiong et al. 2020, pre-norm)."""

    sizes: Sizes

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*b n d"],
        mask: Bool[Array, "*b n"],
        *,
        deterministic: bool,
        other: Float[Array, "*b k d"] | None = None,
        other_mask: Bool[Array, "*b k"] | None = None,
    ) -> Float[Array, "*b n d"]:
        drop = nn.Dropout(self.sizes.dropout, deterministic=deterministic)
        dtype = self.sizes.dtype
        x = x + drop(SelfAttention(self.sizes, name="attention")(Norm(dtype, name="attention_norm")(x), mask))
        if other is not None and other_mask is not None:
            query, source = Norm(dtype, name="cross_norm")(x), Norm(dtype, name="other_norm")(other)
            x = x + drop(CrossAttention(self.sizes, name="cross")(query, source, other_mask))
        return x + drop(Mlp(self.sizes, name="mlp")(Norm(dtype, name="mlp_norm")(x)))


class Stack(nn.Module):
    """`depth` blocks of self-attention."""

    sizes: Sizes
    depth: int

    @nn.compact
    def __call__(self, x: Float[Array, "*b n d"], mask: Bool[Array, "*b n"], *, deterministic: bool) -> Float[Array, "*b n d"]:
        for i in range(self.depth):
            x = Block(self.sizes, name=f"block_{i}")(x, mask, deterministic=deterministic)
        return x
