"""What a model starts from: the checkpoints' values, parted into those that move (parameters) and those that stay (held beside them).

What stays is in no member's parameters, gradients, optimiser state or checkpoints: a sweep holds it once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from cimrl_jax.nn import pretrained, tuning
from cimrl_jax.nn.encoders.base import Pretrained
from cimrl_jax.types import Feature, Params, Slots

Path = tuple[str, ...]


class Start(NamedTuple):
    """One encoder's values from its checkpoint, as trees of its own parameters."""

    stays: Params
    moves: Params
    unused: tuple[str, ...] = ()
    """Tensors of the checkpoint that are no part of the encoder."""

    def __str__(self) -> str:
        stays, moves = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (self.stays, self.moves))
        rest = f"; not used: {', '.join(self.unused)}" if self.unused else ""
        return f"{(stays + moves) / 1e6:.3g} million numbers, of which {moves / 1e6:.3g} million move{rest}"


def start(encoder: Pretrained, feature: Feature) -> Start:
    """The values of an encoder's checkpoint.

    Raises:
      UserError: a checkpoint that is missing, damaged or of another shape.
    """
    shapes = {path: leaf.shape for path, leaf in _leaves(encoder, feature).items() if path[0] == "backbone"}
    checkpoint, tensors = pretrained.open_checkpoint(encoder.tuning.pretrained), encoder.tensors()
    found = pretrained.read(checkpoint, tensors, {path[1:]: shape for path, shape in shapes.items()})
    values = {("backbone", *path): value for path, value in found.items()}
    moving = {path: tuning.moves(encoder.tuning, path, encoder.runs) for path in values}
    stays, moves = (unflatten_dict({path: value for path, value in values.items() if moving[path] == side}) for side in (False, True))
    return Start(stays, moves, pretrained.unused(checkpoint, tensors))


def rates(encoder: Pretrained, params: Params) -> Params:
    """For every parameter of the encoder its share of the learning rate, shaped to be multiplied with it."""

    def one(path: Path, leaf: Any) -> np.ndarray:
        share = np.asarray(tuning.rate(encoder.tuning, path, encoder.runs), np.float32)
        return share.reshape(*share.shape, *[1] * (leaf.ndim - share.ndim))

    return unflatten_dict({path: one(path, leaf) for path, leaf in flatten_dict(params).items()})


def merge(params: Params, other: Params) -> Params:
    """Two trees that have no leaf in common as one."""
    if not other:
        return params
    return {**params, **other, **{key: merge(params[key], other[key]) for key in params.keys() & other.keys()}}


def without(params: Params, other: Params) -> Params:
    """The leaves of `params` that `other` has not."""
    if not other:
        return params
    known = flatten_dict(other)
    return unflatten_dict({path: leaf for path, leaf in flatten_dict(params).items() if path not in known})


def replaced(params: Params, other: Params) -> Params:
    """`params` with the leaves of `other` in place of its own."""
    if not other:
        return params
    return unflatten_dict({**flatten_dict(params), **{path: jnp.asarray(leaf) for path, leaf in flatten_dict(other).items()}})


def tokens(encoder: Pretrained) -> Callable[[Params, Array, Array], Slots]:
    """(the encoder's values, raw inputs `[b, ...]`, present `[b]`) -> its tokens, pooled: `[b, count, width]` float32, zero where masked."""

    def run(module: Any, inputs: Array, present: Array) -> Slots:
        return module.features(module.embed(inputs, present), deterministic=True)

    def one(values: Params, inputs: Array, present: Array) -> Slots:
        found: Slots = encoder.apply({"params": values}, inputs, present, method=run)  # type: ignore[attr-defined]
        found = _pool(encoder, found)
        values = jnp.where(found.mask[..., None], found.values, 0).astype(jnp.float32)
        # Zeros throughout mean padding wherever features are read; a convolution's cell may truly be zero.
        nothing = found.mask & (values == 0).all(-1)
        return Slots(values=values.at[..., 0].add(jnp.where(nothing, 1e-6, 0.0)), mask=found.mask)

    return one


def _pool(encoder: Pretrained, tokens: Slots) -> Slots:
    """Means over neighbouring places that are valid; a mean of none is masked."""
    spec, pool = encoder.token_spec(), encoder.tuning.pool
    if pool == 1:
        return tokens
    assert spec.grid is not None  # see `pooled`
    rows, columns = spec.grid
    lead = spec.lead

    def windows(x: Array) -> Array:
        """`[*b, tokens, d]` -> `[*b, windows, pool * pool, d]` of the places."""
        cut = x[..., lead:, :].reshape(*x.shape[:-2], rows // pool, pool, columns // pool, pool, x.shape[-1])
        return jnp.swapaxes(cut, -4, -3).reshape(*x.shape[:-2], -1, pool * pool, x.shape[-1])

    here = windows(tokens.mask[..., None])
    mean = jnp.where(here, windows(tokens.values), 0).sum(-2) / jnp.maximum(here.sum(-2), 1)
    mask = jnp.concatenate([tokens.mask[..., :lead], here.any((-2, -1))], -1)
    return Slots(values=jnp.concatenate([tokens.values[..., :lead, :], mean], -2), mask=mask)


def digest(values: Params, architecture: Mapping[str, Any]) -> str:
    """A hash of every number and name, and of what config.json says beside them (heads, activation, eps: no number tells of them)."""
    known = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for path, leaf in sorted(flatten_dict(values).items()):
        known.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        known.update(np.ascontiguousarray(leaf).tobytes())
    return known.hexdigest()


def _leaves(encoder: Pretrained, feature: Feature) -> dict[Path, Any]:
    """The shape of every parameter."""

    def everything(module: Any, inputs: Array, present: Array) -> Slots:
        return module.encode(module.embed(inputs, present), deterministic=True)

    def init() -> Params:
        inputs = jnp.zeros((1, *feature.shape), feature.dtype)
        return encoder.init(jax.random.key(0), inputs, jnp.ones((1,), bool), method=everything)["params"]  # type: ignore[attr-defined]

    return dict(flatten_dict(jax.eval_shape(init)))
