"""The layers that CIMRL adds to a base model: modality encoders E_m, the shared encoder E_S, and the heads f_m, f_S, f_C."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cimrl_jax.nn.dense import Dense
from cimrl_jax.nn.transformer import Norm, Sizes, Stack, pool
from cimrl_jax.types import Outputs, Slots


class Causal(nn.Module):
    """`encode`: tokens -> codes h_m and h_S; `decide`: codes -> heads.

    Codes are normalised (float32) and zero where there is nothing to read: an absent modality's code is the zero vector. The heads are linear in the
    codes, f_C in their concatenation by name with h_S last.
    """

    sizes: Sizes
    names: tuple[str, ...]
    num_classes: int
    layers: int

    def setup(self) -> None:
        parts = (*self.names, "shared")
        self.stacks = {p: Stack(self.sizes, self.layers) for p in parts}
        self.norms = {p: Norm() for p in parts}
        self.heads = {p: Dense(self.num_classes) for p in (*parts, "combined")}
        self.project_in, self.project_out = Dense(self.sizes.dim), Dense(self.sizes.dim)

    def encode(self, tokens: Mapping[str, Slots], fused: Slots, *, deterministic: bool) -> dict[str, Float[Array, "*b d"]]:
        """Each modality's own tokens, and the fused tokens -> one code each."""
        codes = {}
        for part, read in {**{m: tokens[m] for m in self.names}, "shared": fused}.items():
            values = self.stacks[part](read.values, read.mask, deterministic=deterministic)
            code = self.norms[part](pool(values, read.mask))
            codes[part] = jnp.where(read.mask.any(-1)[..., None], code, 0)
        return codes

    def decide(self, codes: Mapping[str, Float[Array, "*b d"]]) -> Outputs:
        """Codes -> logits of every head; the prediction is f_C. "projection" is a two-layer map of the shared code, for contrast."""
        parts = {p: codes[p].astype(jnp.float32) for p in (*self.names, "shared")}
        heads = {p: self.heads[p](code) for p, code in parts.items()}
        heads["combined"] = self.heads["combined"](jnp.concatenate(list(parts.values()), -1))
        projection = self.project_out(jax.nn.gelu(self.project_in(parts["shared"])))
        return Outputs(logits=heads["combined"], heads=heads, codes={**parts, "projection": projection}, extras={})
