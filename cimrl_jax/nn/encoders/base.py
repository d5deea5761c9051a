"""What an encoder is, and what every encoder needs."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cimrl_jax.errors import UserError
from cimrl_jax.nn.dense import Dense
from cimrl_jax.nn.pretrained import Tensor
from cimrl_jax.nn.transformer import Sizes, Stack
from cimrl_jax.nn.tuning import Tuning
from cimrl_jax.types import Feature, Slots, SlotSpec


@runtime_checkable
class Encoder(Protocol):
    """A Linen module: `embed` and `encode` run inside `apply`, the other two need no parameters."""

    def slot_spec(self) -> SlotSpec:
        """The layout of this modality's slots."""
        ...

    def embed(self, inputs: Array, present: Bool[Array, "*b"]) -> Slots:
        """Raw inputs `[*b, ...]` -> slots `[*b, n, d]` float32, zero where masked; all masked where the modality is absent."""
        ...

    def encode(self, slots: Slots, *, deterministic: bool) -> Slots:
        """Slots `[*b, n, d]` -> tokens `[*b, n, dim]`. The only path from inputs to tokens: the slots' gradient is the inputs' gradient."""
        ...

    def regions(self, mask: Bool[Array, "..."]) -> Float[Array, "*b n"]:
        """A mask over one raw example's shape (an image's without channels) -> the share of each slot that it covers."""
        ...

    def render(self, values: Float[Array, "*b n d"]) -> Array:
        """Slot values -> what they look like, raw: the inverse of `embed` (of words the nearest one), for people to look at."""
        ...


class TokenSpec(NamedTuple):
    """The layout of the tokens that a backbone makes of its slots."""

    count: int
    width: int
    lead: int
    """Tokens before the first that stands for a place (a class token)."""
    grid: tuple[int, int] | None
    """Rows and columns of the places; None: token `lead + i` stands for slot i."""


@runtime_checkable
class Pretrained(Encoder, Protocol):
    """An encoder of a published architecture, whose parameters (all under "backbone") can come from a checkpoint (`nn/pretrained.py`).

    `encode` is one linear map to the model's width, "inward", on top of `features`.
    """

    tuning: Tuning
    runs: tuple[range, ...]
    """The blocks of each segment (`tuning.segments`)."""

    def token_spec(self) -> TokenSpec:
        """The layout of `features`."""
        ...

    def features(self, slots: Slots, *, deterministic: bool) -> Slots:
        """Slots `[*b, n, d]` -> the backbone's last hidden states `[*b, count, width]`, float32."""
        ...

    def tensors(self) -> tuple[Tensor, ...]:
        """Where each parameter under "backbone" stands in a checkpoint's files."""
        ...

    def architecture(self) -> dict[str, Any]:
        """The config.json that `transformers` reads."""
        ...


def pooled(encoder: Pretrained) -> TokenSpec:
    """The layout of its tokens where they are read as features: `tuning.pool` by `tuning.pool` neighbouring places are one.

    Raises:
      UserError: tokens without a plane, or a plane that this does not divide.
    """
    spec, pool = encoder.token_spec(), encoder.tuning.pool
    if pool == 1:
        return spec
    if spec.grid is None:
        raise UserError(f"pool={pool} is for features of pictures, these tokens lie on no plane; set pool=1")
    if any(side % pool for side in spec.grid):
        raise UserError(f"pool={pool} does not divide the {spec.grid[0]} x {spec.grid[1]} places of its tokens; choose a divisor, or 1")
    rows, columns = (side // pool for side in spec.grid)
    return spec._replace(count=spec.lead + rows * columns, grid=(rows, columns))


def expect(feature: Feature, *, encoder: str, kind: str, rank: int) -> None:
    """Checks that the encoder can read the modality.

    Raises:
      UserError: the feature is of another kind, or its shape of another rank.
    """
    if feature.kind != kind:
        raise UserError(f"encoder {encoder!r} reads {kind} features, this modality is of kind {feature.kind!r}; choose another encoder for it")
    if len(feature.shape) != rank:
        raise UserError(f"encoder {encoder!r} expects a feature of {rank} axes, this one's shape is {feature.shape}; mend the data set's Feature")


def mask_slots(values: Float[Array, "*b n d"], mask: Bool[Array, "*b n"]) -> Slots:
    """Slots that are zero where masked: whatever lies there, NaN included, reaches neither values nor gradients."""
    return Slots(values=jnp.where(mask[..., None], values, 0), mask=mask)


def everywhere(present: Bool[Array, "*b"], count: int) -> Bool[Array, "*b n"]:
    """The mask of a modality whose slots are all valid where it is present."""
    return jnp.broadcast_to(present[..., None], (*present.shape, count))


class Trunk(nn.Module):
    """Slots -> tokens: a linear map to `dim` (unless the slots come mapped), learned positions, a norm if asked for, `depth` blocks."""

    sizes: Sizes
    depth: int
    mapped: bool = False

    @nn.compact
    def __call__(self, slots: Slots, *, deterministic: bool) -> Slots:
        dim, dtype = self.sizes.dim, self.sizes.dtype
        tokens: Any = mask_slots(slots.values, slots.mask).values.astype(dtype)
        if not self.mapped:
            tokens = Dense(dim, dtype, name="inward")(tokens)
        positions = self.param("positions", nn.initializers.normal(0.02), (slots.mask.shape[-1], dim), jnp.float32)
        tokens = tokens + positions.astype(dtype)
        if self.mapped:
            tokens = nn.LayerNorm(dtype=jnp.float32, name="norm")(tokens.astype(jnp.float32)).astype(dtype)
        tokens = Stack(self.sizes, self.depth, name="stack")(tokens, slots.mask, deterministic=deterministic)
        return Slots(values=tokens, mask=slots.mask)
