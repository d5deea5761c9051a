"""AdamW or SGD whose learning rate and weight decay are traced, so that both may be swept by vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from cimrl_jax.nn.tuning import stacked
from cimrl_jax.types import Hyper, Params

MakeOptimizer = Callable[[Hyper], optax.GradientTransformation]


def make_optimizer(
    *,
    steps: int,
    warmup: float,
    schedule: Literal["cosine", "linear", "constant"],
    clip_norm: float,
    kind: Literal["adamw", "sgd"] = "adamw",
    momentum: float = 0.9,
    learning_rate: str = "learning_rate",
    weight_decay: str = "weight_decay",
) -> MakeOptimizer:
    """`hyper -> transformation`, reading the numbers of the names `learning_rate` and `weight_decay`.

    Warm-up is linear over the share `warmup` of `steps`; "cosine" and "linear" then fall to 0 at the last step. AdamW's weight decay is decoupled and
    spares vectors (biases, norms), also those that lie stacked by block; SGD's is added to the gradient of everything, before the momentum, as in
    PyTorch.
    The model's and the method's own parameters are clipped apart: the size of one's gradient must not slow the other.
    """
    rise = max(round(warmup * steps), 1)

    def rate(count: ArrayLike) -> Float[Array, ""]:
        step = jnp.asarray(count)
        up = jnp.minimum((step + 1) / rise, 1.0)
        done = jnp.clip((step - rise) / max(steps - rise, 1), 0.0, 1.0)
        falls = {"cosine": 0.5 * (1 + jnp.cos(jnp.pi * done)), "linear": 1.0 - done, "constant": jnp.ones(())}
        return up * falls[schedule]

    def clip(updates: Params, params: Params | None = None) -> Params:
        del params
        return {part: _clip(tree, clip_norm) for part, tree in updates.items()} if clip_norm > 0 else updates

    def make(hyper: Hyper) -> optax.GradientTransformation:
        step = optax.scale_by_learning_rate(lambda count: hyper[learning_rate] * rate(count))
        if kind == "sgd":
            return optax.chain(optax.stateless(clip), optax.add_decayed_weights(hyper[weight_decay]), optax.trace(momentum), step)
        decay = optax.add_decayed_weights(hyper[weight_decay], mask=lambda tree: jax.tree_util.tree_map_with_path(_decays, tree))
        return optax.chain(optax.stateless(clip), optax.scale_by_adam(), decay, step)

    return make


def _decays(path: tuple[Any, ...], x: Array) -> bool:
    return x.ndim - stacked([str(getattr(step, "key", "")) for step in path]) > 1


def _clip(tree: Params, size: float) -> Params:
    scale = jnp.minimum(1.0, size / jnp.maximum(optax.tree.norm(tree), 1e-8))
    return jax.tree.map(lambda g: g * scale, tree)
