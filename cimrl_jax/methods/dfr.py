"""Deep feature reweighting on the validation split (Kirichenko et al. 2022, arXiv 2204.02937, DFR^val_tr). Sees validation group labels.

Empirical risk minimisation; then its head is replaced by an L1 logistic regression on the standardised features of the validation split:

    min |w|_1 + |b| + C sum_i log(1 + exp(-s_i (w f_i + b))),    s_i = 1 for the class, -1 for all others

one for each class, as in the authors' solver (liblinear, which penalises the intercept like any other coefficient). They are fitted on group-balanced
subsamples: as many rows of every group as the smallest has. C is the one that fitted on one half of the rows has the best worst-group accuracy on the
other half; the head is the mean of `refits` fits with it, on subsamples of all rows. Rows of unknown group take no part, nor do groups that the
validation split lacks. The authors standardise by the training split's features, here it is by the validation split's.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from cimrl_jax.counterfactual import refit
from cimrl_jax.methods import base
from cimrl_jax.options import Range
from cimrl_jax.types import Hyper, Method, Model, Params, Spec, Stage, Told

STRENGTHS = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
"""The values of C that are tried; of equals the first."""
ITERATIONS, STILL = 5000, 1e-4
"""The solver stops after so many iterations, or when the slope is as near to zero, where that of the penalty is 1."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Deep feature reweighting's own numbers."""

    refits: Annotated[int, Range(low=1)] = 20
    """Fits on subsamples of their own that are averaged."""


def build(options: Options) -> Method:
    """The method record."""

    def enter(state: Any, hyper: Hyper, model: Model, params: Params, fresh: Params, told: Told) -> tuple[Any, Params]:
        keys = jax.random.split(jax.random.wrap_key_data(state["key"]), 3)
        known = told.group >= 0
        share = known / jnp.maximum(jnp.sum(known), 1)
        mean = share @ told.features
        spread = jnp.sqrt(share @ (told.features - mean) ** 2)
        spread = jnp.where(spread > 1e-5 * jnp.abs(mean), spread, 1.0)  # less is the rounding of a constant
        x = jnp.concatenate([(told.features - mean) / spread, jnp.ones((len(known), 1))], axis=1)  # [n, k + 1]

        strength = _strength(x, told, known, keys[0], keys[1])
        subsamples = jax.vmap(lambda key: _balanced(key, told.group, known))(jax.random.split(keys[2], options.refits))
        fits = jax.vmap(lambda own: _fit(x, told, own, strength))(subsamples)  # [refits, k + 1, c]
        fit = jnp.mean(fits, axis=0)
        kernel = fit[:-1] / spread[:, None]
        head = model.head.put(params["model"], kernel, fit[-1] - mean @ kernel)
        return {**state, "strength": strength}, {**params, "model": head}

    stages = (Stage(share=1.0, loss=base.erm_loss), Stage(share=0.0, loss=None, enter=enter, reads="validation"))
    return Method(init=_init, stages=stages, hyper=base.swept(options), explain=base.explain, needs_validation_groups=True)


def _init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
    return {}, {"key": jax.random.key_data(key), "strength": jnp.zeros(())}


def _places(key: Key[Array, ""], group: Int[Array, " n"]) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    """Each row's place among the rows of its group in a random order, and how many they are."""
    order = jnp.lexsort((jax.random.uniform(key, group.shape), group))
    first, last = (jnp.searchsorted(group[order], group, side=side) for side in ("left", "right"))
    return jnp.zeros_like(order).at[order].set(jnp.arange(len(group))) - first, last - first


def _balanced(key: Key[Array, ""], group: Int[Array, " n"], part: Bool[Array, " n"]) -> Bool[Array, " n"]:
    """A random subsample of `part` that has every group of it equally often."""
    place, size = _places(key, jnp.where(part, group, -1))
    return part & (place < jnp.min(jnp.where(part, size, len(group))))


def _strength(x: Float[Array, "n k"], told: Told, known: Bool[Array, " n"], halves: Key[Array, ""], subsample: Key[Array, ""]) -> Float[Array, ""]:
    """The best C."""
    place, size = _places(halves, jnp.where(known, 0, -1))
    judging = known & (place < size // 2)
    own = _balanced(subsample, told.group, known & ~judging)
    fits = jax.vmap(lambda strength: _fit(x, told, own, strength))(jnp.asarray(STRENGTHS))  # [strengths, k, c]
    worst = jax.vmap(lambda fit: _worst_group(jnp.argmax(x @ fit, axis=-1) == told.label, told.group, judging))(fits)
    return jnp.asarray(STRENGTHS)[jnp.argmax(worst)]


def _worst_group(right: Bool[Array, " n"], group: Int[Array, " n"], part: Bool[Array, " n"]) -> Float[Array, ""]:
    """The lowest accuracy of a group within `part`."""
    _, own = jnp.unique(group, return_inverse=True, size=len(group))
    hits, number = (jax.ops.segment_sum((part & rows).astype(jnp.float32), own, num_segments=len(group)) for rows in (right, jnp.ones_like(right)))
    return jnp.min(jnp.where(number > 0, hits / jnp.maximum(number, 1.0), jnp.inf))


def _fit(x: Float[Array, "n k"], told: Told, own: Bool[Array, " n"], strength: Float[Array, ""]) -> Float[Array, "k c"]:
    """Each class against the others, on the rows `own`; the logits of two classes share one regression's decision."""
    classes = told.logits.shape[-1]
    sign = 2.0 * jax.nn.one_hot(told.label, classes, axis=0) - 1  # [c, n]
    found = jax.vmap(lambda one: _solve(x, one, strength * own))(sign)
    return found.T / (2 if classes == 2 else 1)


def _solve(x: Float[Array, "n k"], sign: Float[Array, " n"], weight: Float[Array, " n"]) -> Float[Array, " k"]:
    """argmin over w of `|w|_1 + sum weight log(1 + exp(-sign (x w)))`: FISTA (Beck & Teboulle 2009) that restarts where it overshoots."""
    steepest = refit.curvature(x, weight) / 4  # a sigmoid's slope is at most 1/4

    def going(carry: Any) -> Bool[Array, ""]:
        number, *_, slope = carry
        return (number < ITERATIONS) & (slope > STILL)

    def step(carry: Any) -> Any:
        number, old, ahead, momentum, _ = carry
        slope = -x.T @ (weight * sign * jax.nn.sigmoid(-sign * (x @ ahead)))
        new = _shrink(ahead - slope / steepest, 1 / steepest)
        momentum = jnp.where(jnp.sum((ahead - new) * (new - old)) > 0, 1.0, momentum)
        after = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        return number + 1, new, new + (momentum - 1) / after * (new - old), after, steepest * jnp.max(jnp.abs(new - ahead))

    start = jnp.zeros(x.shape[1:])
    return jax.lax.while_loop(going, step, (0, start, start, jnp.ones(()), jnp.asarray(jnp.inf)))[1]


def _shrink(x: Float[Array, " k"], by: Float[Array, ""]) -> Float[Array, " k"]:
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - by, 0.0)
