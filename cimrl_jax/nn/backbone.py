"""The blocks of published transformers (ViT, DINOv2, CLIP, BERT), stacked by segment and scanned over: a deep one compiles as fast as one block.

A masked token has no influence on any other, and neither values nor gradients turn NaN where every token of an example is masked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cimrl_jax.errors import UserError
from cimrl_jax.nn.dense import product
from cimrl_jax.nn.pretrained import Tensor
from cimrl_jax.nn.transformer import split_heads
from cimrl_jax.nn.tuning import Tuning

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "swiglu"]
NORMS = ("attention_norm", "mlp_norm")
SCALES = ("attention_scale", "mlp_scale")


@dataclasses.dataclass(frozen=True)
class Shape:
    """What every block of one architecture shares."""

    width: int
    depth: int
    heads: int
    hidden: int
    """Width between the two maps of the feed-forward part; with swiglu `widen` makes twice as many, gates first."""
    activation: Activation = "gelu"
    eps: float = 1e-6
    """Of the layer norms."""
    norm: Literal["pre", "post"] = "pre"
    """`x + f(norm x)`, or `norm(x + f(x))`."""
    layer_scale: bool = False
    """Whether each branch is multiplied by a learned vector (Touvron et al. 2021)."""
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"{self.heads} attention heads do not divide a width of {self.width}; choose a number that does")


class Linear(nn.Module):
    """`x @ kernel + bias` over the last axis, plus `(x @ lora_a) @ lora_b * scale` where `rank` is not 0 (Hu et al. 2021)."""

    features: int
    dtype: Any = jnp.float32
    use_bias: bool = True
    rank: int = 0
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        width = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (width, self.features), jnp.float32)
        rows = x.astype(self.dtype).reshape(-1, width)
        y = product(rows, kernel.astype(self.dtype))
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        if self.rank:
            down = self.param("lora_a", nn.initializers.normal(width**-0.5), (width, self.rank), jnp.float32)
            up = self.param("lora_b", nn.initializers.zeros, (self.rank, self.features), jnp.float32)
            y += product(product(rows, down.astype(self.dtype)), up.astype(self.dtype)) * jnp.asarray(self.scale, self.dtype)
        return y.reshape(*x.shape[:-1], self.features)


class Norm(nn.Module):
    """Layer normalisation, computed in float32 and returned in `dtype`."""

    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        x = x.astype(jnp.float32)
        # Two passes: E[x^2] - E[x]^2 loses the digits that parity with a checkpoint's own library needs.
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        return (x * scale + self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)).astype(self.dtype)


class Block(nn.Module):
    """Attention, then the feed-forward part. Returns a pair, as a scan's body does."""

    shape: Shape
    tuning: Tuning
    dtype: Any = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "*b n w"], mask: Bool[Array, "*b n"]) -> tuple[Float[Array, "*b n w"], None]:
        for branch, run in (("attention", self.attention), ("mlp", self.mlp)):
            norm = Norm(self.shape.eps, self.dtype, name=f"{branch}_norm")
            y = run(norm(x), mask) if self.shape.norm == "pre" else run(x, mask)
            if self.shape.layer_scale:
                y *= self.param(f"{branch}_scale", nn.initializers.ones, (self.shape.width,), jnp.float32).astype(self.dtype)
            y = nn.Dropout(self.dropout, deterministic=not self.dropout)(y)
            x = x + y if self.shape.norm == "pre" else norm(x + y)
        return x, None

    def linear(self, name: str, features: int, x: Array, *, use_bias: bool = True) -> Array:
        rank = self.tuning.lora_rank if name in self.tuning.lora_targets else 0
        return Linear(features, self.dtype, use_bias, rank, self.tuning.lora_alpha / max(rank, 1), name=name)(x)

    def attention(self, x: Array, mask: Array) -> Array:
        width, heads = self.shape.width, self.shape.heads
        split = [split_heads(self.linear(name, width, x, use_bias=self.shape.qkv_bias), heads) for name in ("query", "key", "value")]
        # The fused kernels know one batch axis. A row without any key mixes them all, which is finite, and is itself masked.
        query, key, value = (part.reshape(-1, *part.shape[-3:]) for part in split)
        count, seen = mask.shape[-1], mask.reshape(-1, 1, 1, mask.shape[-1])
        if self.tuning.attention == "cudnn":  # it wants an even number of tokens, and a mask for each query
            query, key, value = (jnp.pad(part, ((0, 0), (0, count % 2), (0, 0), (0, 0))) for part in (query, key, value))
            seen = jnp.pad(seen, ((0, 0), (0, 0), (0, 0), (0, count % 2)))
            seen = jnp.broadcast_to(seen, (len(query), 1, query.shape[1], query.shape[1]))
        how = None if self.tuning.attention == "auto" else self.tuning.attention
        mixed = jax.nn.dot_product_attention(query, key, value, mask=seen, implementation=how)
        return self.linear("out", width, mixed[:, :count].reshape(x.shape))

    def mlp(self, x: Array, mask: Array) -> Array:
        if self.shape.activation == "swiglu":
            gate, hidden = jnp.split(self.linear("widen", 2 * self.shape.hidden, x), 2, -1)
            hidden = jax.nn.silu(gate) * hidden
        else:
            hidden = activate(self.shape.activation, self.linear("widen", self.shape.hidden, x))
        return self.linear("narrow", self.shape.width, hidden)


class Blocks(nn.Module):
    """All blocks in order. The children are segment_<i>, the blocks `runs[i]`; each of their leaves is stacked `[blocks, ...]`.

    A backbone that makes one of these in its `setup` calls `nn.share_scope(self, self.blocks)`, so that the segments lie beside its other children.
    """

    shape: Shape
    tuning: Tuning
    runs: tuple[range, ...]
    dtype: Any = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "*b n w"], mask: Bool[Array, "*b n"], *, deterministic: bool = True) -> Float[Array, "*b n w"]:
        if self.tuning.attention == "cudnn" and (self.dtype != jnp.bfloat16 or jax.default_backend() != "gpu"):
            raise UserError("attention=cudnn is for GPUs, in bfloat16; set dtype=bfloat16 there, or attention=auto")
        if self.tuning.attention == "cudnn" and self.shape.width // self.shape.heads % 8:
            raise UserError(f"attention=cudnn needs heads of a width that 8 divides, not {self.shape.width // self.shape.heads}; set attention=auto")
        x = jnp.where(mask[..., None], x, 0).astype(self.dtype)
        block: Any = nn.remat(Block, prevent_cse=False) if self.tuning.remat else Block
        rngs, all_blocks = cast(Any, {"params": True, "dropout": True}), cast(Any, nn.broadcast)
        for i, run in enumerate(self.runs):
            scan = nn.scan(block, variable_axes={"params": 0}, split_rngs=rngs, in_axes=all_blocks, length=len(run))
            x, _ = scan(self.shape, self.tuning, self.dtype, 0.0 if deterministic else self.dropout, name=f"segment_{i}")(x, mask)
        return x


def activate(name: Activation, x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    if name == "quick_gelu":
        return x * jax.nn.sigmoid(1.702 * x)
    return jax.nn.relu(x) if name == "relu" else jax.nn.gelu(x, approximate=name == "gelu_tanh")


def tensors(shape: Shape, runs: tuple[range, ...], names: Mapping[str, str]) -> tuple[Tensor, ...]:
    """The records of all blocks' parameters.

    Args:
      names: for each child of a block its name in the files, with {i} for the block's number. Linear maps and norms without ".weight" and ".bias",
        layer scales in full.
    """
    found = []
    for i, run in enumerate(runs):
        for child, pattern in names.items():
            at = [pattern.format(i=block) for block in run]
            if child in SCALES:
                found.append(Tensor((f"segment_{i}", child), tuple(at), "same"))
                continue
            leaf, form = ("scale", "same") if child in NORMS else ("kernel", "transposed")
            found.append(Tensor((f"segment_{i}", child, leaf), tuple(f"{name}.weight" for name in at), form))
            if shape.qkv_bias or child not in ("query", "key", "value"):
                found.append(Tensor((f"segment_{i}", child, "bias"), tuple(f"{name}.bias" for name in at), "same"))
    return tuple(found)


def merge(params: Mapping[str, Any], tuning: Tuning) -> dict[str, Any]:
    """The same backbone without LoRA: what it added stands in the kernels, as a checkpoint's files want it."""
    merged: dict[str, Any] = {name: merge(leaf, tuning) if isinstance(leaf, Mapping) else leaf for name, leaf in params.items()}
    if "lora_a" in merged:
        down, up = merged.pop("lora_a"), merged.pop("lora_b")
        merged["kernel"] = merged["kernel"] + (tuning.lora_alpha / tuning.lora_rank) * (down @ up)
    return merged
