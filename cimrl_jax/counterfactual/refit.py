"""Refits a linear head on held-out examples, balanced over the groups that biased readers infer. No group label is read.

Where no edit removes a shortcut, a model's codes still know the cause; it is the head that prefers the shortcut (Kirichenko et al. 2022, who balance
by true groups). Here the groups are label x the class that the references read. The new head is pulled towards the old one (as by Qiu et al. 2023);
how far it may go, and whether it may at all, is decided by cross-validation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

PULLS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""The weights of the pull that are tried; of equals the first."""
FOLDS = 5
ITERATIONS = 300
LEAST = 0.05
"""The least gain for which the head is replaced. A shortcut that no edit removes costs more; less is gained where readers are merely often wrong:
their misreadings are no groups, and the true groups lose."""


def balance(label: Int[Array, " n"], inferred: Float[Array, "n m c"]) -> Float[Array, " n"]:
    """Weights of mean 1 under which the groups, label x inferred class, that there are weigh alike.

    One class is inferred for the example as a whole: that with the highest product of the modalities' probabilities, so that who is sure decides.
    """
    read = jnp.argmax(jnp.sum(jnp.log(jnp.maximum(inferred, 1e-4)), axis=1), axis=-1)
    c = inferred.shape[-1]
    own = jax.nn.one_hot(label, c)
    counts = own.T @ jax.nn.one_hot(read, c)
    weight = 1.0 / counts[label, read]
    return weight / jnp.mean(weight)


class Refit(NamedTuple):
    """The head that should be used, and why."""

    kernel: Float[Array, "k c"]
    bias: Float[Array, " c"]
    gain: Float[Array, ""]
    """How much the balanced accuracy on rows left out rises by the best pull (a share, may be negative)."""
    error: Float[Array, ""]
    """Its standard error."""
    used: Bool[Array, ""]
    """Whether the gain is above its standard error and above `LEAST`; if not, the head is the old one."""


def refit(
    key: Key[Array, ""],
    features: Float[Array, "n k"],
    label: Int[Array, " n"],
    weight: Float[Array, " n"],
    kernel: Float[Array, "k c"],
    bias: Float[Array, " c"],
) -> Refit:
    """Minimises `sum weight CE / sum weight + pull / 2 |head - old head|^2` on standardised features."""
    mean, spread = jnp.mean(features, axis=0), jnp.std(features, axis=0)
    spread = jnp.where(spread > 1e-5 * jnp.abs(mean), spread, 1.0)  # less is the rounding of a constant
    x = jnp.concatenate([(features - mean) / spread, jnp.ones((len(label), 1))], axis=1)  # [n, k + 1]
    old = jnp.concatenate([kernel * spread[:, None], (bias + mean @ kernel)[None]])

    pulls, fold = jnp.asarray(PULLS), jax.random.permutation(key, len(label)) % FOLDS
    tried = jax.vmap(lambda pull: jax.vmap(lambda part: solve(x, label, weight * (fold != part), old, pull))(jnp.arange(FOLDS)))(pulls)
    said = jnp.argmax(jnp.einsum("nk,pfkc->pfnc", x, tried), axis=-1)
    after = jnp.take_along_axis(said, fold[None, None], axis=1)[:, 0] == label  # [p, n], each row by the head that has not seen it
    before = jnp.argmax(x @ old, axis=-1) == label
    gains = (after.astype(jnp.float32) - before) * weight
    best = jnp.argmax(jnp.mean(gains, axis=1))
    gain, error = jnp.mean(gains[best]), jnp.std(gains[best]) / len(label) ** 0.5
    used = gain > jnp.maximum(error, LEAST)
    new = jnp.where(used, solve(x, label, weight, old, pulls[best]), old)
    head = new[:-1] / spread[:, None]
    return Refit(head, new[-1] - mean @ head, gain, error, used)


def solve(
    x: Float[Array, "n k"], label: Int[Array, " n"], weight: Float[Array, " n"], old: Float[Array, "k c"], pull: Float[Array, ""]
) -> Float[Array, "k c"]:
    """The minimum, by accelerated gradient descent from `old` (Nesterov 1983, with Beck & Teboulle's momentum)."""
    weight, target = weight / jnp.maximum(jnp.sum(weight), 1e-8), jax.nn.one_hot(label, old.shape[-1])
    steepest = curvature(x, weight) / 2 + pull  # a softmax's Hessian is at most 1/2

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        last, ahead, momentum = carry
        slope = x.T @ (weight[:, None] * (jax.nn.softmax(x @ ahead) - target)) + pull * (ahead - old)
        new = ahead - slope / steepest
        after = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        return (new, new + (momentum - 1) / after * (new - last), after), None

    return jax.lax.scan(step, (old, old, jnp.ones(())), None, length=ITERATIONS)[0][0]


def curvature(x: Float[Array, "n k"], weight: Float[Array, " n"]) -> Float[Array, ""]:
    """A little more than the largest eigenvalue of `sum weight x x^T`, by power iteration."""

    def power(_: Any, v: Float[Array, " k"]) -> Float[Array, " k"]:
        v = x.T @ (weight * (x @ v))
        return v / jnp.maximum(jnp.linalg.norm(v), 1e-12)

    top = jax.lax.fori_loop(0, 30, power, jax.random.normal(jax.random.key(0), x.shape[1:]))
    return 1.1 * jnp.sum(weight * (x @ top) ** 2) + 1e-6
