"""What the chunks of steps are fed with: rows into columns that lie on the device, or the batches themselves, read by grain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from cimrl_jax.data import pipeline
from cimrl_jax.data.source import Source
from cimrl_jax.errors import UserError
from cimrl_jax.train.mesh import place, sharding
from cimrl_jax.types import Batch, Population, Rows

RESIDENT_BYTES = 2 << 30
"""A training split up to this size is held on the device."""


class Feed:
    """What the chunk gathers its batches from: columns on the device and rows, or the batches themselves."""

    def __init__(
        self,
        source: Source,
        *,
        seeds: tuple[int, ...],
        batch_size: int,
        chunk: int,
        mesh: Mesh,
        needs_groups: bool,
        resident: Literal["auto", "yes", "no"],
    ):
        self._source, self._seeds, self._batch_size, self._chunk, self._mesh = source, seeds, batch_size, chunk, mesh
        # No group label reaches a method that declares none.
        self._group = source.group if needs_groups else np.full_like(source.group, -1)
        arrays = source.arrays
        size = sum(x.nbytes for x in jax.tree.leaves(arrays)) if arrays is not None else 0
        fits = resident == "yes" or (resident == "auto" and size <= RESIDENT_BYTES)
        self.resident = arrays is not None and fits
        self.enter(None, (), ())
        if self.resident and arrays is not None:
            index = np.arange(len(source), dtype=np.int32)
            fields = {**arrays, "label": source.label, "group": self._group, "index": index, "weight": np.ones(len(source), np.float32)}
            self._columns = place(Batch(**fields), sharding(mesh))

    def enter(self, draw: Callable[[Population], Rows] | None, states: Sequence[Any], hyper: Sequence[Mapping[str, float]]) -> None:
        """From here on members draw their rows so; `states` and `hyper` are each member's method state (NumPy) and numbers.

        Raises:
          UserError: a member is left without rows.
        """
        self._ready: tuple[int, int, np.ndarray] | None = None
        n = len(self._source)
        if draw is None:
            everything = np.arange(n)
            orders = {seed: (pipeline.Order(n, self._batch_size, seed), everything) for seed in dict.fromkeys(self._seeds)}
            self._orders = [orders[seed] for seed in self._seeds]
            return
        self._orders = []
        for seed, state, own in zip(self._seeds, states, hyper, strict=True):
            drawn = draw(Population(seed, self._source.label, self._group, state, own))
            if not len(drawn.rows):
                raise UserError(f"the training split ({n} rows) leaves no row to train on in this stage of the method; give it more examples")
            self._orders.append((pipeline.Order(len(drawn.rows), self._batch_size, seed, weights=drawn.weights), drawn.rows))

    @property
    def leaders(self) -> tuple[list[int], list[int]]:
        """(the first member of each kind that sees the same examples in the same order, the place in that list of every member's own)."""
        kinds = [id(order) for order, _ in self._orders]
        first = list(dict.fromkeys(kinds))
        return [kinds.index(kind) for kind in first], [first.index(kind) for kind in kinds]

    def __call__(self, first: int, count: int) -> Any:
        """The data of the steps first, ..., first + count - 1, filled up to a whole chunk."""
        where = sharding(self._mesh, None, "member", "data")
        if self._ready is None or self._ready[:2] != (first, count):
            self.prepare(first, count)
        assert self._ready is not None
        rows = self._ready[2]
        if self.resident:
            return self._columns, place(rows, where)
        return self._load(rows, count, where)

    def prepare(self, first: int, count: int) -> None:
        """Draws the rows `[chunk, members, b]` of these steps."""
        chunk = self._chunk
        drawn = {key: rows[order.rows(first, count)] for key, (order, rows) in {id(own[0]): own for own in self._orders}.items()}
        rows = np.stack([drawn[id(order)] for order, _ in self._orders], axis=1)
        padding = np.zeros((chunk - count, *rows.shape[1:]), rows.dtype)
        self._ready = first, count, np.concatenate([rows, padding]).astype(np.int32)

    def _load(self, rows: np.ndarray, count: int, where: NamedSharding) -> Batch:
        """The batches of these rows `[chunk, members, b]`, read by grain's threads: each process reads only what its own devices need."""
        blocks = {
            _corner(part): self._read(rows[part], count) for part in where.addressable_devices_indices_map(rows.shape).values() if part is not None
        }

        def column(path: Any, block: np.ndarray) -> jax.Array:
            shape = (*rows.shape, *block.shape[3:])
            columns = {corner: dict(jax.tree_util.tree_leaves_with_path(fields))[path] for corner, fields in blocks.items()}
            return jax.make_array_from_callback(shape, where, lambda part: columns[_corner((part or ())[:3])])

        return Batch(**jax.tree_util.tree_map_with_path(column, next(iter(blocks.values()))))

    def _read(self, rows: np.ndarray, count: int) -> dict[str, Any]:
        """The records of rows `[chunk, members, b]`; steps from `count` on, which no one looks at, are zero."""
        flat = rows[:count].reshape(-1, rows.shape[-1])
        loaded = pipeline.stream(self._source, lambda k: flat[k].astype(np.int64), first=0, count=len(flat))
        batches = [{**fields, "group": self._group[fields["index"]]} for fields in loaded]

        def stack(*parts: np.ndarray) -> np.ndarray:
            whole = np.stack(parts).reshape(count, rows.shape[1], *parts[0].shape)
            return np.concatenate([whole, np.zeros((len(rows) - count, *whole.shape[1:]), whole.dtype)])

        return jax.tree.map(stack, *batches)


def _corner(part: tuple[slice, ...]) -> tuple[int, ...]:
    """Where a device's share of an array begins."""
    return tuple(axis.start or 0 for axis in part)
