"""Asymmetric co-attention with connected layers (mPLUG, Li et al. 2022), for any number of modalities."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from cimrl_jax.nn.transformer import Block, Sizes
from cimrl_jax.types import Slots


class Fusion(nn.Module):
    """Tokens of every modality -> the fused tokens, the modalities one after the other by name, and their joint mask.

    In an asymmetric layer the query modality's tokens attend to themselves, then to all others, which stay as they are; every
    `connect_every`-th layer is a connected one: self-attention over all tokens. 0 connects never; with one modality each layer is plain
    self-attention.
    """

    sizes: Sizes
    names: tuple[str, ...]
    query: str
    layers: int
    connect_every: int

    @nn.compact
    def __call__(self, tokens: Mapping[str, Slots], *, deterministic: bool) -> Slots:
        x: dict[str, Array] = {m: tokens[m].values for m in self.names}
        others = [m for m in self.names if m != self.query]
        mask = jnp.concatenate([tokens[m].mask for m in self.names], -1)
        for i in range(self.layers):
            connected = bool(self.connect_every) and (i + 1) % self.connect_every == 0
            if connected or not others:
                joint = jnp.concatenate([x[m] for m in self.names], -2)
                joint = Block(self.sizes, name=f"connected_{i}")(joint, mask, deterministic=deterministic)
                ends = [sum(x[m].shape[-2] for m in self.names[: j + 1]) for j in range(len(self.names) - 1)]
                x = dict(zip(self.names, jnp.split(joint, ends, -2), strict=True))
            else:
                source = jnp.concatenate([x[m] for m in others], -2)
                source_mask = jnp.concatenate([tokens[m].mask for m in others], -1)
                layer = Block(self.sizes, name=f"asymmetric_{i}")
                x[self.query] = layer(x[self.query], tokens[self.query].mask, deterministic=deterministic, other=source, other_mask=source_mask)
        return Slots(values=jnp.concatenate([x[m] for m in self.names], -2), mask=mask)
