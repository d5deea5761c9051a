"""Losses, per example first: each returns `[b]`, and `masked_mean` is the one place where examples are averaged.

Probabilities come in as logits and all arithmetic is float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_TINY = 1e-8


def masked_mean(values: Float[Array, " b"], weight: Float[Array, " b"]) -> Float[Array, ""]:
    """The weighted mean over examples; 0 where no example weighs anything. A row of weight 0 changes nothing, even if it is not finite."""
    return jnp.sum(jnp.where(weight > 0, values, 0.0) * weight) / jnp.maximum(jnp.sum(weight), _TINY)


def cross_entropy(logits: Float[Array, "b c"], label: Int[Array, " b"]) -> Float[Array, " b"]:
    """`-log p_y` in nats."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=-1)[:, 0]


def generalized_cross_entropy(logits: Float[Array, "b c"], label: Int[Array, " b"], q: Float[Array, ""] | float) -> Float[Array, " b"]:
    """`(1 - p_y^q) / q` (Zhang & Sabuncu 2018): the larger q, the less an example that is hard to fit is followed; q -> 0 is cross entropy."""
    return (1.0 - jnp.exp(-q * cross_entropy(logits, label))) / q


def kl_divergence(logits_p: Float[Array, "b c"], logits_q: Float[Array, "b c"]) -> Float[Array, " b"]:
    """`KL(p || q)` in nats."""
    log_p = jax.nn.log_softmax(logits_p)
    return jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(logits_q)), axis=-1)


def entropy(logits: Float[Array, "b c"]) -> Float[Array, " b"]:
    """`-sum p log p` in nats."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def product_of_experts(*experts: Float[Array, "b c"]) -> Float[Array, "b c"]:
    """Logits of the normalised product of the experts' probabilities (Hinton 2002): the sum of their log softmaxes."""
    return jnp.sum(jax.nn.log_softmax(jnp.stack(experts)), axis=0)


def info_nce(
    anchor: Float[Array, "b d"], positive: Float[Array, "b d"], *, temperature: Float[Array, ""] | float, weight: Float[Array, " b"]
) -> Float[Array, " b"]:
    """Contrast of each example with its perturbed view, against the other ORIGINALS.

    Under jit on a mesh the batch is the global one, so the negatives are those of all devices. Rows of weight 0 are no negatives.
    """
    anchor, positive = _unit(anchor), _unit(positive)
    near = jnp.sum(anchor * positive, axis=-1) / temperature  # [b]
    others = anchor @ anchor.T / temperature  # [b, b]
    usable = (weight > 0)[None, :] & ~jnp.eye(anchor.shape[0], dtype=bool)
    others = jnp.where(usable, others, -jnp.inf)
    return jax.nn.logsumexp(jnp.concatenate([near[:, None], others], axis=1), axis=1) - near


def cosines(a: Float[Array, "b d"], b: Float[Array, "k d"]) -> Float[Array, "b k"]:
    """The cosine of every row of `a` with every row of `b`."""
    return _unit(a) @ _unit(b).T


def squared_cosine(a: Float[Array, "b d"], b: Float[Array, "b d"]) -> Float[Array, " b"]:
    """The squared cosine of two codes: 0 where they are orthogonal, 1 where parallel."""
    return jnp.sum(_unit(a) * _unit(b), axis=-1) ** 2


def cross_correlation(a: Float[Array, "b d"], b: Float[Array, "b k"], weight: Float[Array, " b"]) -> Float[Array, ""]:
    """The squared Frobenius norm of the batch cross-correlation matrix of two codes, divided by its number of entries."""
    a, b = _standardise(a, weight), _standardise(b, weight)
    correlation = (a * weight[:, None]).T @ b / jnp.maximum(jnp.sum(weight), _TINY)
    return jnp.mean(correlation**2)


def relative_difficulty(biased_loss: Float[Array, " b"], loss: Float[Array, " b"]) -> Float[Array, " b"]:
    """`omega = l_b / (l_b + l)`, no gradient (LfF, GEAR): near 1 where the biased prediction fails and the main one does not."""
    biased_loss, loss = jax.lax.stop_gradient((biased_loss, loss))
    return biased_loss / jnp.maximum(biased_loss + loss, _TINY)


def jensen_shannon(p: Float[Array, "b c"], q: Float[Array, "b c"]) -> Float[Array, " b"]:
    """The Jensen-Shannon divergence of two rows of PROBABILITIES, divided by log 2: 0 where equal, 1 where disjoint."""
    middle = (p + q) / 2

    def kl(a: Float[Array, "b c"]) -> Float[Array, " b"]:
        return jnp.sum(jax.scipy.special.xlogy(a, a) - jax.scipy.special.xlogy(a, jnp.maximum(middle, _TINY)), axis=-1)

    return (kl(p) + kl(q)) / (2 * jnp.log(2.0))


def _unit(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + _TINY)


def _standardise(x: Float[Array, "b d"], weight: Float[Array, " b"]) -> Float[Array, "b d"]:
    x = x.astype(jnp.float32)
    share = (weight / jnp.maximum(jnp.sum(weight), _TINY))[:, None]
    centred = x - jnp.sum(share * x, axis=0)
    return centred * jax.lax.rsqrt(jnp.sum(share * centred**2, axis=0) + 1e-6)
