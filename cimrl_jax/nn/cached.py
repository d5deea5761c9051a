"""Reads a frozen encoder's features in the place of what it made them of: the backbone ran beforehand, once, and is no part of this module."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from cimrl_jax.nn.dense import Dense
from cimrl_jax.nn.encoders import base
from cimrl_jax.nn.transformer import Sizes
from cimrl_jax.types import Feature, Slots, SlotSpec


class Cached(nn.Module):
    """What is left of a `Pretrained` encoder once its features are known: "inward", with the name and the start that it has there.

    The slots are the encoder's tokens. A token whose numbers are all zero is padding.
    """

    feature: Feature
    """Of kind slots, `[views * count, width]`; its `raw` is what the encoder reads."""
    encoder: base.Pretrained
    """Asked for its layouts only."""
    sizes: Sizes

    def setup(self) -> None:
        self.inward = Dense(self.sizes.dim, self.sizes.dtype)

    @nn.nowrap
    def slot_spec(self) -> SlotSpec:
        tokens, raw = base.pooled(self.encoder), self.encoder.slot_spec()
        return SlotSpec("slots", tokens.count, tokens.width, element=tokens.width, grid=tokens.grid, lead=tokens.lead, raw=raw.kind)

    def embed(self, inputs: Float[Array, "*b m w"], present: Bool[Array, "*b"]) -> Slots:
        values = inputs[..., : base.pooled(self.encoder).count, :].astype(jnp.float32)
        return base.mask_slots(values, (values != 0).any(-1) & present[..., None])

    def encode(self, slots: Slots, *, deterministic: bool) -> Slots:
        values = base.mask_slots(slots.values, slots.mask).values
        return Slots(values=self.inward(values), mask=slots.mask)

    @nn.nowrap
    def regions(self, mask: Bool[Array, "..."]) -> Float[Array, "*b n"]:
        """A mask over one raw example -> the share of each token's place that it covers; tokens without a place have none."""
        tokens, raw, shares = base.pooled(self.encoder), self.encoder.slot_spec(), self.encoder.regions(mask)
        if tokens.grid is not None and raw.grid is not None and tokens.grid != raw.grid:
            down, across = (_areas(fine, coarse) for fine, coarse in zip(raw.grid, tokens.grid, strict=True))
            plane = shares.reshape(*shares.shape[:-1], *raw.grid)
            shares = jnp.einsum("ij,...jk,lk->...il", down, plane, across).reshape(*shares.shape[:-1], -1)
        after = tokens.count - tokens.lead - shares.shape[-1]
        return jnp.pad(shares, [(0, 0)] * (shares.ndim - 1) + [(tokens.lead, after)])

    @nn.nowrap
    def render(self, values: Float[Array, "*b n d"]) -> Float[Array, "*b n d"]:
        return values


def _areas(fine: int, coarse: int) -> Float[np.ndarray, "coarse fine"]:
    """The share of each of `coarse` equal stretches that lies in each of `fine` ones."""
    ends = np.arange(coarse + 1)[:, None] * fine / coarse
    cells = np.arange(fine)
    overlap = np.minimum(ends[1:], cells + 1) - np.maximum(ends[:-1], cells)
    return (np.maximum(overlap, 0) * coarse / fine).astype(np.float32)
