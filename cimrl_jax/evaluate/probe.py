"""What can be read off a method's edits: the attribute (which should be gone), the label (which should stay), and that they are edits at all.

A probe is a fresh reader of the kind that finds shortcuts (counterfactual/reference.py), trained with plain cross entropy on half of the examples
and asked about the other half. It reads slots, before the model's encoders, so it judges the edits and not what the model makes of them. Attributes
serve as an answer sheet only: nothing that is trained or selected sees a probe. Where the attribute of a split goes with its label, each is read off
the other; `test_balanced` is the split where it does not.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from cimrl_jax.counterfactual import reference
from cimrl_jax.losses import cross_entropy, masked_mean
from cimrl_jax.metrics import Report
from cimrl_jax.types import Params, Slots, SlotSpec

ROWS = 1000
"""Examples, at most, half of which train the probes."""
BYTES = 1 << 30
"""All that is kept of them, at most: with large slots and many members there are fewer examples."""
WIDTH = 256
"""Slots that are wider are projected, at random, onto so many numbers."""
HIDDEN, STEPS, BATCH, RATE, DECAY = 32, 300, 64, 3e-3, 1e-2
TOLD = ("label", "attribute")
"""What is asked of originals and of edits. Of both together: which of them are edits."""


def stride(slots: Mapping[str, SlotSpec], *, rows: int, members: int) -> int:
    """Every so many-th of a split's rows is kept."""
    size = members * 2 * 4 * sum(spec.count * min(spec.width, WIDTH) for spec in slots.values())
    return max(1, -(-rows // max(min(ROWS, BYTES // size), 1)))


def kept(slots: Mapping[str, Slots]) -> dict[str, Slots]:
    """What a probe needs of them: values of at most `WIDTH` numbers."""
    return {m: Slots(_narrow(own.values.astype(jnp.float32)), own.mask) for m, own in slots.items()}


def _narrow(values: Float[Array, "*b d"]) -> Float[Array, "*b w"]:
    width = values.shape[-1]
    return values if width <= WIDTH else values @ jax.random.normal(jax.random.key(0), (width, WIDTH)) / WIDTH**0.5


def probe(before: Slots, after: Slots, label: Int[np.ndarray, " r"], attribute: Int[np.ndarray, " r"]) -> list[Report]:
    """For each member how well one modality's originals `before` and edits `after` tell what.

    Args:
      before: originals, values [member, r, n, d].
      after: their edits, in the same order.
      label: of each row.
      attribute: of each row, -1 where it is unknown.

    Returns:
      {"label", "attribute": what originals say to a probe of originals; "label_edited", "attribute_edited": what edits say to the same probe;
      "label_recovered", "attribute_recovered": what edits say of the original to a probe of edits (between two values, an edit that always takes the
      other is recovered wholly); "edited": which of the two an input is; "n": rows that have the modality}. Each number is a skill: the mean over
      classes of the share read rightly, of rows that the probe was not trained on, as 0 at chance, 1 at perfection and below 0 under chance. None
      where fewer than two classes are there.
    """
    targets = jnp.asarray(np.stack([label, attribute]), jnp.int32)
    sizes = tuple(int(max(target.max(initial=0) + 1, 2)) for target in (label, attribute))
    found = jax.device_get(_probe(before, after, targets, sizes=sizes))
    return [
        {name: float(value[i]) if np.isfinite(value[i]) else None for name, value in found.items()} | {"n": float(before.mask[i].any(-1).sum())}
        for i in range(len(before.values))
    ]


@functools.partial(jax.jit, static_argnames=("sizes",))
def _probe(before: Slots, after: Slots, targets: Int[Array, "t r"], *, sizes: tuple[int, ...]) -> dict[str, Float[Array, " member"]]:
    keys = jax.random.split(jax.random.key(0), 4)
    train = jax.random.permutation(keys[0], targets.shape[1]) % 2 == 0

    def one(pair: tuple[Slots, Slots]) -> dict[str, Float[Array, ""]]:
        original, edited = pair
        both = jax.tree.map(lambda *x: jnp.concatenate(x), original, edited)
        which = jnp.repeat(jnp.arange(2), len(train))[None]
        said = {
            **_skills(keys[1], original, {"": original, "_edited": edited}, targets, train, sizes),
            **_skills(keys[2], edited, {"_recovered": edited}, targets, train, sizes),
        }
        told = {f"{name}{how}": skill for how, skills in said.items() for name, skill in zip(TOLD, skills, strict=True)}
        return told | {"edited": _skills(keys[3], both, {"": both}, which, jnp.tile(train, 2), (2,))[""][0]}

    return jax.lax.map(one, (before, after))


def _skills(
    key: Key[Array, ""], slots: Slots, asked: Mapping[str, Slots], targets: Int[Array, "t r"], train: Bool[Array, " r"], sizes: Sequence[int]
) -> dict[str, list[Float[Array, ""]]]:
    """One reader for all targets, trained on the rows `train` of `slots`; its skill at each on the other rows of everything `asked`."""
    there = jnp.any(slots.mask, axis=-1)
    own = (slots.mask & train[:, None])[..., None]
    total = jnp.maximum(jnp.sum(own), 1)
    mean = jnp.sum(jnp.where(own, slots.values, 0.0), axis=(0, 1)) / total
    spread = jnp.sqrt(jnp.sum(jnp.where(own, (slots.values - mean) ** 2, 0.0), axis=(0, 1)) / total)
    spread = jnp.where(spread > 1e-5 * jnp.abs(mean), spread, 1.0)  # less is the rounding of a constant
    codes = [jax.nn.one_hot(target, size) for target, size in zip(targets, sizes, strict=True)]  # all 0 where the target is unknown
    weights = [(code / jnp.maximum(jnp.sum(code * (train & there)[:, None], axis=0), 1)).sum(-1) * there for code in codes]

    def read(params: Params, own: Slots) -> list[Float[Array, "b c"]]:
        logits, _ = reference.read(params, Slots((own.values - mean) / spread, own.mask))
        return jnp.split(logits, np.cumsum(sizes)[:-1].tolist(), axis=-1)

    def loss(params: Params, rows: Int[Array, " b"]) -> Float[Array, ""]:
        said = read(params, jax.tree.map(lambda x: x[rows], slots))
        return sum(
            (masked_mean(cross_entropy(s, target[rows]), w[rows]) for s, target, w in zip(said, targets, weights, strict=True)), start=jnp.zeros(())
        )

    first, second = jax.random.split(key)
    width = slots.values.shape[-1]
    params = reference.init(first, SlotSpec("slots", slots.mask.shape[-1], width, width), num_classes=sum(sizes), hidden=HIDDEN)
    optimizer = optax.adamw(RATE, weight_decay=DECAY)

    def step(carry: tuple[Params, Any], key: Key[Array, ""]) -> tuple[tuple[Params, Any], None]:
        params, state = carry
        rows = jax.random.choice(key, len(train), (BATCH,), p=train / jnp.sum(train))
        updates, state = optimizer.update(jax.grad(loss)(params, rows), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(second, STEPS))
    counted = [code * (~train & there)[:, None] for code in codes]
    return {
        how: [_skill(jnp.argmax(s, axis=-1) == t, rows) for s, t, rows in zip(read(params, own), targets, counted, strict=True)]
        for how, own in asked.items()
    }


def _skill(right: Bool[Array, " r"], rows: Float[Array, "r c"]) -> Float[Array, ""]:
    """Of the classes that have rows; NaN where fewer than two do."""
    count = jnp.sum(rows, axis=0)
    seen = count > 0
    chance = 1 / jnp.maximum(jnp.sum(seen), 1)
    share = jnp.sum(jnp.where(seen, right @ rows / jnp.maximum(count, 1), 0.0)) * chance
    return jnp.where(jnp.sum(seen) > 1, (share - chance) / jnp.maximum(1 - chance, 1e-8), jnp.nan)
