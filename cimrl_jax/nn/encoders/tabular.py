"""A transformer on a table's columns (FT-Transformer, Gorishniy et al. 2021): a slot is one normalised column, an element its number."""

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
    """Blocks after the columns were embedded."""


class Tabular(nn.Module):
    feature: Feature
    sizes: Sizes
    depth: int

    def setup(self) -> None:
        # One number times one direction: a column's own affine map into the tokens. The trunk's positions are its offset.
        shape = (self.feature.shape[0], self.sizes.dim)
        self.directions = self.param("directions", nn.initializers.normal(1.0), shape, jnp.float32)
        self.trunk = base.Trunk(self.sizes, self.depth, mapped=True)

    @nn.nowrap
    def slot_spec(self) -> SlotSpec:
        return SlotSpec(kind=self.feature.kind, count=self.feature.shape[0], width=1, element=1)

    def embed(self, inputs: Float[Array, "*b k"], present: Bool[Array, "*b"]) -> Slots:
        mean, std = jnp.asarray(self.feature.mean, jnp.float32), jnp.asarray(self.feature.std, jnp.float32)
        values = (inputs.astype(jnp.float32) - mean) / std
        return base.mask_slots(values[..., None], jnp.isfinite(values) & present[..., None])

    def encode(self, slots: Slots, *, deterministic: bool) -> Slots:
        values = base.mask_slots(slots.values, slots.mask).values * self.directions
        return self.trunk(Slots(values=values, mask=slots.mask), deterministic=deterministic)

    @nn.nowrap
    def regions(self, mask: Bool[Array, "*b k"]) -> Float[Array, "*b n"]:
        return mask.astype(jnp.float32)

    def render(self, values: Float[Array, "*b k one"]) -> Float[Array, "*b k"]:
        return values[..., 0] * jnp.asarray(self.feature.std, jnp.float32) + jnp.asarray(self.feature.mean, jnp.float32)


def build(options: Options, *, feature: Feature, dim: int, heads: int, mlp_ratio: float, dropout: float, dtype: Any) -> Tabular:
    """An encoder of tables `[columns]` float32. A cell that is NaN or infinite is missing: its slot is masked.

    Raises:
      UserError: not a table, or means that do not fit its columns.
    """
    base.expect(feature, encoder="tabular", kind="table", rank=1)
    columns = feature.shape[0]
    if any(len(x) not in (1, columns) for x in (feature.mean, feature.std)):
        sizes = f"{len(feature.mean)} and {len(feature.std)}"
        raise UserError(f"a table of {columns} columns needs 1 or {columns} values of mean and std, not {sizes}; mend the data set's Feature")
    return Tabular(feature, Sizes(dim, heads, mlp_ratio, dropout, dtype), options.depth)
