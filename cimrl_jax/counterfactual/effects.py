"""Causal effects of a prediction's paths, for any modalities and any subset of them, in logits (Niu et al. 2021, arXiv 2006.04315).

Every modality m has a direct path of its own to the answer, b_m; all reach it together through the fused path k, the mediator. `outcome` is Y with
some paths treated and the others not: an untreated path says one number c for every class, and so does a path whose modality is absent.

    TE    = Y(all, k) - Y(none, k*)         total effect
    NDE_S = Y(S, k*)  - Y(none, k*)         natural direct effect of the modalities S
    TIE_S = TE - NDE_S = Y(all, k) - Y(S, k*)       total indirect effect: what is left once the direct effect of S is taken out

"sum" and "hm" are Niu et al.'s fusions. "poe" is the product of experts (Clark et al. 2019): with it an untreated path is uniform, and TIE of all
modalities is the fused path's own log probabilities up to a constant.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Fusion = Literal["sum", "hm", "poe"]


class Path(NamedTuple):
    """What a modality says by itself."""

    logits: Float[Array, "*b c"]
    there: Bool[Array, "*b"]
    """Where the modality is present."""


class Effects(NamedTuple):
    """Of a set of modalities, for every class."""

    total: Float[Array, "*b c"]
    direct: Float[Array, "*b c"]
    indirect: Float[Array, "*b c"]


def fuse(fusion: Fusion, parts: Sequence[Float[Array, "*b c"]]) -> Float[Array, "*b c"]:
    """Y of the paths' logits z.

    sum: `log sigmoid(sum z)`; hm: `log(p / (1 + p)), p = prod sigmoid(z)`; poe: `sum log_softmax(z)`.
    """
    stacked = jnp.stack(parts)
    if fusion == "sum":
        return jax.nn.log_sigmoid(jnp.sum(stacked, axis=0))
    if fusion == "poe":
        return jnp.sum(jax.nn.log_softmax(stacked), axis=0)
    log_p = jnp.sum(jax.nn.log_sigmoid(stacked), axis=0)
    return log_p - jnp.log1p(jnp.exp(log_p))


def outcome(
    fusion: Fusion,
    fused: Float[Array, "*b c"],
    paths: Mapping[str, Path],
    constant: Float[Array, ""],
    treated: Collection[str],
    *,
    mediated: bool = True,
) -> Float[Array, "*b c"]:
    """Y with the paths of the modalities `treated`, and the fused one if `mediated`, saying what they say, and c on all others."""
    direct = [jnp.where(path.there[..., None] & (m in treated), path.logits, constant) for m, path in paths.items()]
    return fuse(fusion, [fused if mediated else jnp.broadcast_to(constant, fused.shape), *direct])


def effects(fusion: Fusion, fused: Float[Array, "*b c"], paths: Mapping[str, Path], constant: Float[Array, ""], subset: Collection[str]) -> Effects:
    """Total effect, and the direct and indirect effects of the modalities in `subset`."""
    untreated = outcome(fusion, fused, paths, constant, (), mediated=False)
    total = outcome(fusion, fused, paths, constant, paths) - untreated
    direct = outcome(fusion, fused, paths, constant, subset, mediated=False) - untreated
    return Effects(total, direct, total - direct)


def named(
    fusion: Fusion, fused: Float[Array, "*b c"], paths: Mapping[str, Path], constant: Float[Array, ""], subsets: Iterable[Collection[str]]
) -> dict[str, Float[Array, "*b c"]]:
    """TE, and of each subset "NDE a+b" and "TIE a+b", for every class."""
    told: dict[str, Array] = {}
    for subset in subsets:
        found, name = effects(fusion, fused, paths, constant, subset), "+".join(sorted(subset))
        told |= {"TE": found.total, f"NDE {name}": found.direct, f"TIE {name}": found.indirect}
    return told


def constant_loss(given: Float[Array, "*b c"], direct: Float[Array, "*b c"]) -> Float[Array, "*b"]:
    """`- sum sg(p_TE) log p_NDE` in nats, of Y with all paths treated and of Y with the fused one untreated: what c alone is trained by.

    The caller stops every gradient of `direct` but c's.
    """
    return -jnp.sum(jax.lax.stop_gradient(jax.nn.softmax(given)) * jax.nn.log_softmax(direct), axis=-1)
