"""A mixture of debiasing experts on one code, and its router, as pure functions of plain parameters.

Each expert takes out another set of modalities' direct effects. They share the code and differ by a low-rank residual: `z_e = W_e (k + U_e gelu(D_e
k))`, U_e zero at the start. All are computed for every example (there are few), so that the top-2 choice is a mask and not a dispatch. The router is
V-MoE's (Riquelme et al. 2021, arXiv 2106.05974) with the z-loss of Zoph et al. 2022 (arXiv 2202.08906).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from cimrl_jax.losses import masked_mean
from cimrl_jax.types import Params

MOST = 3
"""With more modalities there are no experts for two or more of them but for all."""


def subsets(modalities: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """The sets of modalities that have an expert, the empty one first and that of all last: 2^M up to three modalities, else none, each and all."""
    names = tuple(sorted(modalities))
    sizes = range(len(names) + 1) if len(names) <= MOST else (0, 1, len(names))
    return tuple(chosen for size in sizes for chosen in itertools.combinations(names, size))


def name(subset: Iterable[str]) -> str:
    """What an expert is called."""
    return "+".join(subset) or "none"


def init(key: Key[Array, ""], count: int, *, dim: int, num_classes: int, rank: int) -> Params:
    """Parameters of all experts, stacked."""
    keys = jax.random.split(key)
    return {
        "down": jax.random.normal(keys[0], (count, dim, rank)) * dim**-0.5,
        "up": jnp.zeros((count, rank, dim)),
        "kernel": jax.random.normal(keys[1], (count, dim, num_classes)) * dim**-0.5,
        "bias": jnp.zeros((count, num_classes)),
    }


def apply(params: Params, code: Float[Array, "*b d"]) -> Float[Array, "*b e c"]:
    """Every expert's logits."""
    inner = jax.nn.gelu(jnp.einsum("...d,edr->...er", code, params["down"]))
    moved = code[..., None, :] + jnp.einsum("...er,erd->...ed", inner, params["up"])
    return jnp.einsum("...ed,edc->...ec", moved, params["kernel"]) + params["bias"]


def init_router(key: Key[Array, ""], count: int, *, width: int, hidden: int) -> Params:
    """Parameters of a router of `width` features."""
    keys = jax.random.split(key)
    return {
        "inner": jax.random.normal(keys[0], (width, hidden)) * width**-0.5,
        "inner_bias": jnp.zeros((hidden,)),
        "outer": jax.random.normal(keys[1], (hidden, count)) * 0.1 * hidden**-0.5,
        "outer_bias": jnp.zeros((count,)),
    }


class Gates(NamedTuple):
    """The router's decision."""

    weights: Float[Array, "b e"]
    """0 but on the chosen experts, of sum 1."""
    probabilities: Float[Array, "b e"]
    """Of all experts, before the choice and without noise."""
    logits: Float[Array, "b e"]


def route(
    params: Params,
    features: Float[Array, "b w"],
    prior: Float[Array, "b e"],
    *,
    top: int,
    key: Key[Array, ""] | None,
    noise: Float[Array, ""] | float,
) -> Gates:
    """`prior` is added to the router's logits; with a key also normal noise of deviation `noise`. Softmax of the `top` highest, 0 on the others."""
    logits = jax.nn.gelu(features @ params["inner"] + params["inner_bias"]) @ params["outer"] + params["outer_bias"] + prior
    noisy = logits if key is None else logits + noise * jax.random.normal(key, logits.shape)
    rank = jnp.argsort(jnp.argsort(-noisy, axis=-1), axis=-1)
    weights = jax.nn.softmax(jnp.where(rank < top, noisy, -jnp.inf), axis=-1)
    return Gates(weights, jax.nn.softmax(logits), logits)


def load_balance(gates: Gates, weight: Float[Array, " b"]) -> Float[Array, ""]:
    """`E sum_e f_e P_e` (Fedus et al. 2021, arXiv 2101.03961), f_e the share of choices, P_e the mean probability of expert e: 1 if both are even."""
    chosen = (gates.weights > 0).astype(jnp.float32)
    chosen = jax.lax.stop_gradient(chosen / jnp.sum(chosen, axis=-1, keepdims=True))
    mean = jax.vmap(masked_mean, in_axes=(1, None))
    return gates.weights.shape[-1] * jnp.sum(mean(chosen, weight) * mean(gates.probabilities, weight))


def z_loss(gates: Gates, weight: Float[Array, " b"]) -> Float[Array, ""]:
    """The mean squared log partition of the router's logits, which keeps them small."""
    return masked_mean(jax.nn.logsumexp(gates.logits, axis=-1) ** 2, weight)


def mixture(weights: Float[Array, "*b e"], logits: Float[Array, "*b e c"]) -> Float[Array, "*b c"]:
    """log of `sum_e weights_e softmax(logits_e)`."""
    log_weights = jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1.0)), -1e9)
    return jax.nn.logsumexp(log_weights[..., None] + jax.nn.log_softmax(logits), axis=-2)
