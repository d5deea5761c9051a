"""What the chunks of steps are fed with: rows into columns that lie on the device, or the batches themselves, read by grain."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from cimrl_jax.data import pipeline
from cimrl_jax.data.source import Source
from cimrl_jax.errors import UserError
from cimrl_jax.train.mesh import member, place, sharding
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
        arrays = None if resident == "no" else source.arrays
        size = sum(x.nbytes for x in jax.tree.leaves(arrays)) if arrays is not None else 0
        fits = resident == "yes" or (resident == "auto" and size <= RESIDENT_BYTES)
        self.resident = arrays is not None and fits
        self._background, self._closed = concurrent.futures.ThreadPoolExecutor(1, "feed"), threading.Event()
        self._rooms = pipeline.Rooms()
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
        self._ready: tuple[tuple[int, int], concurrent.futures.Future[Any]] | None = None
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
        """The data of the steps first, ..., first + count - 1, filled up to a whole chunk.

        Raises:
          UserError: an example cannot be read.
        """
        if self._ready is None or self._ready[0] != (first, count):
            self.prepare(first, count)
        assert self._ready is not None
        data = self._ready[1].result()
        self._ready = None  # or the chunk would take room as long as it is trained on
        return data

    def member(self, data: Any, i: int) -> Any:
        """Member i's part of it, as the data of one member."""
        if not self.resident:
            return member(data, i, axis=1)
        columns, rows = data
        return columns, member(rows, i, axis=1)

    def prepare(self, first: int, count: int) -> None:
        """Begins to make the data of these steps ready, in the background: while the device computes, the next chunk is read and sent to it."""
        if self._ready is not None:
            self._ready[1].cancel()
        self._ready = (first, count), self._background.submit(self._data, self._orders, first, count)

    def close(self) -> None:
        """Ends the reading in the background: what was begun is given up."""
        self._closed.set()
        self._background.shutdown(wait=False, cancel_futures=True)

    def _data(self, orders: list[tuple[pipeline.Order, np.ndarray]], first: int, count: int) -> Any:
        where = sharding(self._mesh, None, "member", "data")
        drawn = {key: rows[order.rows(first, count)] for key, (order, rows) in {id(own[0]): own for own in orders}.items()}
        rows = np.stack([drawn[id(order)] for order, _ in orders], axis=1)  # [count, members, b]
        padding = np.zeros((self._chunk - count, *rows.shape[1:]), rows.dtype)
        rows = np.concatenate([rows, padding]).astype(np.int32)
        return (self._columns, place(rows, where)) if self.resident else self._load(rows, count, where)

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
        """The records of rows `[chunk, members, b]`, once where members see the same; steps from `count` on, which no one looks at, are zero."""
        _, places, kinds = np.unique(rows[:count], axis=1, return_index=True, return_inverse=True)
        leaders = np.sort(places)
        members = np.searchsorted(leaders, places[kinds.reshape(-1)])
        flat = rows[:count, leaders].reshape(-1).astype(np.int64)
        size = len(rows) * len(leaders) * rows.shape[-1]
        whole = pipeline.gather(self._source, flat, size=size, rooms=self._rooms, stopped=self._closed.is_set)
        whole["group"][: len(flat)] = self._group[flat]
        whole = jax.tree.map(lambda x: x.reshape(len(rows), len(leaders), rows.shape[-1], *x.shape[1:]), whole)
        return whole if len(leaders) == len(members) else jax.tree.map(lambda x: x[:, members], whole)


def _corner(part: tuple[slice, ...]) -> tuple[int, ...]:
    """Where a device's share of an array begins."""
    return tuple(axis.start or 0 for axis in part)
