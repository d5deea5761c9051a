"""What slots look like, in running averages over training: what misled a reader, what each conflict looks like, and which patterns it brings.

All are method state: checkpointed, one per member of a sweep, and summed over devices because the batch is the global one.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from cimrl_jax.types import Slots, SlotSpec


@flax.struct.dataclass
class Misleading:
    """Per predicted class, the evidence-weighted mean slot over errors and over right answers."""

    errors: Float[Array, "c d"]
    errors_weight: Float[Array, " c"]
    rights: Float[Array, "c d"]
    rights_weight: Float[Array, " c"]


def init_misleading(spec: SlotSpec, num_classes: int) -> Misleading:
    """Empty averages."""
    zeros, none = jnp.zeros((num_classes, spec.width)), jnp.zeros((num_classes,))
    return Misleading(errors=zeros, errors_weight=none, rights=zeros, rights_weight=none)


def update_misleading(
    memory: Misleading,
    slots: Slots,
    *,
    evidence: Float[Array, "b n"],
    predicted: Int[Array, " b"],
    error: Float[Array, " b"],
    weight: Float[Array, " b"],
    decay: Float[Array, ""] | float,
) -> Misleading:
    """One step of the running averages; `error` is the soft error `1 - p_y`."""
    num_classes = memory.errors_weight.shape[0]
    share = evidence / jnp.maximum(jnp.sum(evidence, axis=-1, keepdims=True), 1e-8)
    content = jnp.einsum("bn,bnd->bd", share, slots.values.astype(jnp.float32))  # [b, d]
    member = (predicted[:, None] == jnp.arange(num_classes)) * weight[:, None]  # [b, c]

    def fold(total: Array, count: Array, mass: Array) -> tuple[Array, Array]:
        return decay * total + (1 - decay) * mass.T @ content, decay * count + (1 - decay) * jnp.sum(mass, axis=0)

    errors, errors_weight = fold(memory.errors, memory.errors_weight, member * error[:, None])
    rights, rights_weight = fold(memory.rights, memory.rights_weight, member * (1 - error)[:, None])
    return Misleading(errors=errors, errors_weight=errors_weight, rights=rights, rights_weight=rights_weight)


def resemblance(memory: Misleading, slots: Slots, predicted: Int[Array, " b"]) -> Float[Array, "b n"]:
    """How far each slot resembles what misled to the predicted class, beyond what was right there: the relu'd cosine with the means' difference."""
    difference = _mean(memory.errors, memory.errors_weight) - _mean(memory.rights, memory.rights_weight)  # [c, d]
    direction = difference[predicted]  # [b, d]
    values = slots.values.astype(jnp.float32)
    size = jnp.linalg.norm(values, axis=-1) * jnp.linalg.norm(direction, axis=-1)[:, None]
    cosine = jnp.einsum("bnd,bd->bn", values, direction) / jnp.maximum(size, 1e-8)
    return jnp.where(slots.mask, jnp.maximum(cosine, 0.0), 0.0)


@flax.struct.dataclass
class Conflict:
    """Statistics of elements (of an image: of pixels) by label y and by the class c that the reference reads."""

    total: Float[Array, "c c e"]
    weight: Float[Array, "c c"]
    square: Float[Array, "e e"]
    """The mean outer product of elements, over all labels and readings."""


def init_conflict(spec: SlotSpec, num_classes: int) -> Conflict:
    """Empty averages."""
    e = spec.element
    return Conflict(total=jnp.zeros((num_classes, num_classes, e)), weight=jnp.zeros((num_classes, num_classes)), square=jnp.zeros((e, e)))


def update_conflict(
    memory: Conflict,
    slots: Slots,
    *,
    element: int,
    label: Int[Array, " b"],
    reading: Float[Array, "b c"],
    weight: Float[Array, " b"],
    decay: Float[Array, ""] | float,
) -> Conflict:
    """One step of the running averages; `reading` are the reference's probabilities, `element` the width of an element."""
    b, n, width = slots.values.shape
    elements = slots.values.astype(jnp.float32).reshape(b, n * width // element, element)
    valid = jnp.repeat(slots.mask, width // element, axis=1).astype(jnp.float32)
    valid = valid / jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1.0)  # every example weighs the same
    mean = jnp.einsum("bk,bke->be", valid, elements)
    square = jnp.einsum("bke,bkf->ef", (valid * weight[:, None])[..., None] * elements, elements)  # one product, not one an example
    own = (label[:, None] == jnp.arange(reading.shape[-1])) * weight[:, None]  # [b, c]
    total = jnp.einsum("by,bc,be->yce", own, reading, mean)

    def fold(old: Array, new: Array) -> Array:
        return decay * old + (1 - decay) * new

    return Conflict(total=fold(memory.total, total), weight=fold(memory.weight, own.T @ reading), square=fold(memory.square, square))


def skill(memory: Conflict) -> Float[Array, ""]:
    """How well the label is read, by the mean over labels of the probability that the reading gives them: 0 is chance, 1 perfect."""
    c = memory.weight.shape[0]
    right = jnp.mean(jnp.diagonal(memory.weight) / jnp.maximum(jnp.sum(memory.weight, axis=1), 1e-8))
    return (right - 1 / c) / max(1 - 1 / c, 1e-8)


class Mirror(NamedTuple):
    """For each pair (from class r, to class c): `x' = x - 2 <x - middle, across> along` turns the cue of r into that of c."""

    along: Float[Array, "c c e"]
    across: Float[Array, "c c e"]
    middle: Float[Array, "c c e"]


def mirror(memory: Conflict) -> Mirror:
    """The reflection between each pair of classes' shortcuts, in the metric of the elements' own spread.

    `along` is half the difference of the two labels' (conflicting - agreeing) means: what the reading changes WITHIN a label. The
    mirror stands across it in the Mahalanobis metric of the covariance S within (label, reading): `across = S^-1 along / <along, S^-1 along>`.
    Reflections in that metric keep S as it is: how elements vary for other reasons (ink against ground, light) is left alone, where a plain
    reflection would tint it.
    """
    mean = _mean(memory.total, memory.weight)  # [y, c, e]
    agreeing = jnp.einsum("yye->ye", mean)
    step = mean - agreeing[:, None]  # [y, c, e]: what changes when label y's examples are read as c
    along = (step - jnp.swapaxes(step, 0, 1)) / 4  # [r, c, e]
    middle = (mean + jnp.swapaxes(mean, 0, 1) + agreeing[:, None] + agreeing[None, :]) / 4
    across = solve(spread(memory), along.reshape(-1, along.shape[-1]).T).T.reshape(along.shape)
    across = across / jnp.maximum(jnp.sum(across * along, axis=-1, keepdims=True), 1e-8)
    return Mirror(along, across, middle)


@flax.struct.dataclass
class Pattern:
    """For each class c, the directions of whole examples (w: all their slots' numbers) whose variance is raised where the reference reads c.

    A texture, or whatever else comes with a phase or a sign of its own, has no mean: it shows in second moments only. Their difference,
    `D_c = sum_y (S[y, c] - mean over r != c of S[y, r])`, S the second moments within a label y and reading, is never formed: `power` is its product
    with `basis` in a running average, of which the next basis is made (orthogonal iteration, shifted so that it finds the largest eigenvalues
    and not the most negative). Memory is c x w x k.
    """

    mean: Float[Array, " w"]
    power: Float[Array, "c w k"]
    basis: Float[Array, "c w k"]
    """Orthonormal, the strongest first."""
    size: Float[Array, "c k"]
    """How much variance each direction gains by the reading: its eigenvalue."""


def init_pattern(key: Key[Array, ""], spec: SlotSpec, num_classes: int, *, directions: int) -> Pattern:
    """Random directions, at most as many as an example has numbers."""
    width = spec.count * spec.width
    basis = orthonormal(jax.random.normal(key, (num_classes, width, min(directions, width))))
    return Pattern(mean=jnp.zeros((width,)), power=jnp.zeros_like(basis), basis=basis, size=jnp.zeros(basis.shape[::2]))


def update_pattern(
    memory: Pattern,
    slots: Slots,
    *,
    counts: Float[Array, "c c"],
    label: Int[Array, " b"],
    reading: Float[Array, "b c"],
    weight: Float[Array, " b"],
    decay: Float[Array, ""] | float,
) -> Pattern:
    """One step of the iteration; `counts` is the mean weight in a batch of every label (row) and reading (column): `Conflict.weight`."""
    flat = _flat(slots)

    def fold(old: Array, new: Array) -> Array:
        return decay * old + (1 - decay) * new

    mean = fold(memory.mean, weight @ flat / jnp.maximum(jnp.sum(weight), 1e-8))
    share = reading / jnp.maximum(counts[label], 1e-3)
    others = (jnp.sum(share, axis=1, keepdims=True) - share) / max(reading.shape[1] - 1, 1)
    contrast = (share - others) * weight[:, None]  # [b, c]
    centred = flat - mean
    along = jnp.einsum("bw,cwk->bck", centred, memory.basis)
    power = fold(memory.power, jnp.einsum("bw,bck->cwk", centred, contrast[..., None] * along))
    shift = jnp.max(jnp.linalg.norm(power, axis=-2), axis=-1)[:, None, None]
    basis = orthonormal(power + (shift + 1e-6) * memory.basis)
    return Pattern(mean=mean, power=power, basis=basis, size=jnp.sum(memory.basis * power, axis=-2))


def swap(
    memory: Pattern, source: Int[Array, " b"], target: Int[Array, " b"], *, threshold: Float[Array, ""] | float
) -> tuple[Float[Array, " w"], Float[Array, "b w k"]]:
    """(the mean example, mirrors): reflecting an example about the mean across each mirror swaps the patterns of two classes.

    Each class's strong directions take part, those with at least `threshold` of its largest eigenvalue; the strongest of one class goes with the
    strongest of the other. What is orthogonal to both stays.
    """
    strong = memory.size >= threshold * jnp.max(memory.size, axis=-1, keepdims=True)  # [c, k]

    def mirrors(source: Int[Array, " s"], target: Int[Array, " s"]) -> Float[Array, "s w k"]:
        both = (strong[source] & strong[target])[:, None]
        return orthonormal(jnp.where(both, memory.basis[target] - memory.basis[source], 0.0))

    c = len(strong)
    if c * c > len(source):
        return memory.mean, mirrors(source, target)
    first, second = jnp.divmod(jnp.arange(c * c), c)  # there are fewer pairs of classes than examples
    return memory.mean, mirrors(first, second)[source * c + target]


# LAPACK's factorisations in a program that is batched over members can wait for one another without end on a CPU with few cores. Neither of the next
# two needs them.


def solve(matrix: Float[Array, "e e"], columns: Float[Array, "e k"]) -> Float[Array, "e k"]:
    """`matrix^-1 columns` of a symmetric positive definite matrix, by conjugate gradients with the diagonal as preconditioner (Hestenes & Stiefel
    1952): at most 64 iterations, which is exact up to rounding for small matrices."""
    diagonal = jnp.diagonal(matrix)[:, None]

    def step(carry: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
        x, rest, ahead, size = carry
        moved = matrix @ ahead
        length = size / jnp.maximum(jnp.sum(ahead * moved, axis=0), 1e-30)
        x, rest = x + length * ahead, rest - length * moved
        scaled = rest / diagonal
        new = jnp.sum(rest * scaled, axis=0)
        return (x, rest, scaled + new / jnp.maximum(size, 1e-30) * ahead, new), None

    scaled = columns / diagonal
    start = (jnp.zeros_like(columns), columns, scaled, jnp.sum(columns * scaled, axis=0))
    return jax.lax.scan(step, start, None, length=min(2 * len(matrix), 64))[0][0]


def orthonormal(columns: Float[Array, "*s w k"]) -> Float[Array, "*s w k"]:
    """Gram-Schmidt, twice over for accuracy; a column that is zero or lies in the span of those before it becomes zero."""
    done: list[Array] = []
    for j in range(columns.shape[-1]):
        own = columns[..., j]
        before = jnp.linalg.norm(own, axis=-1, keepdims=True)
        for _ in range(2):
            for other in done:
                own = own - jnp.sum(own * other, axis=-1, keepdims=True) * other
        left = jnp.linalg.norm(own, axis=-1, keepdims=True)
        done.append(jnp.where(left > 1e-4 * before, own / jnp.maximum(left, 1e-20), 0.0))
    return jnp.stack(done, axis=-1)


def spread(memory: Conflict) -> Float[Array, "e e"]:
    """The covariance of elements within (label, reading), a little of the identity added so that it can be inverted."""
    mean = _mean(memory.total, memory.weight)
    between = jnp.einsum("yc,yce,ycf->ef", memory.weight, mean, mean)
    within = (memory.square - between) / jnp.maximum(jnp.sum(memory.weight), 1e-8)
    e = within.shape[0]
    return within + (1e-3 * jnp.trace(within) / e + 1e-6) * jnp.eye(e)


def _flat(slots: Slots) -> Float[Array, "b w"]:
    return jnp.where(slots.mask[..., None], slots.values, 0.0).astype(jnp.float32).reshape(slots.values.shape[0], -1)


def _mean(total: Array, weight: Array) -> Array:
    return total / jnp.maximum(weight, 1e-8)[..., None]
