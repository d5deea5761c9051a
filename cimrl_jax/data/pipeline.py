"""The order in which examples are read, and their way from a source to the host's memory.

The order is a pure function of (seed, batch number): nothing has to be saved to resume, and any number of processes sees the same global batches.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from cimrl_jax.data.source import Source
from cimrl_jax.errors import UserError

Engine = Literal["numpy", "grain"]
PIECE = 16
"""Examples that a thread reads at a time: few enough that no core idles while others end a chunk of batches."""


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """Which rows make up which global batch, for ever.

    Without weights every row comes once an epoch, reshuffled each epoch; epochs follow one another without a gap, so a batch may span two. With
    weights rows are drawn independently, in proportion.

    Raises:
      UserError: no rows, a bad batch size, seed or weights.
    """

    n: int
    """Rows of the split."""
    batch_size: int
    """Of the global batch."""
    seed: int
    """0 <= seed < 2**32."""
    weights: Float[np.ndarray, " n"] | None = None
    """Relative frequency of each row; None: every row once an epoch."""
    engine: Engine = "numpy"
    """Who shuffles: a numpy permutation per epoch, or grain's random access. The orders differ. grain's needs no memory, for hundreds of millions of
    rows; but each index costs it a walk over about 65536 / n numbers (50 batches of 64: 32 ms at n = 3,800, seconds at n = 40; numpy: 0.2 ms)."""

    def __post_init__(self) -> None:
        if self.n < 1 or self.batch_size < 1:
            raise UserError(f"cannot batch {self.n} rows by {self.batch_size}; both must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed {self.seed} is out of range; expected 0 <= seed < 2**32")
        if self.weights is not None:
            weights = np.asarray(self.weights, np.float64)
            if weights.shape != (self.n,) or not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() <= 0:
                raise UserError(f"sampling weights must be {self.n} finite numbers >= 0 that are not all 0; got shape {weights.shape}")

    def rows(self, first: int, count: int) -> Int[np.ndarray, "count b"]:
        """Rows of the global batches first, first + 1, ..., first + count - 1."""
        if self.weights is not None:
            return np.stack([self._drawn(number) for number in range(first, first + count)]) if count else np.zeros((0, self.batch_size), np.int64)
        positions = range(first * self.batch_size, (first + count) * self.batch_size)
        if self.engine == "grain":
            rows = np.fromiter(map(self._shuffled.__getitem__, positions), np.int64, len(positions))
        else:
            where = np.asarray(positions, np.int64)
            rows = np.empty_like(where)
            for epoch in np.unique(where // self.n):
                inside = where // self.n == epoch
                rows[inside] = _permutation(self.n, self.seed, int(epoch))[where[inside] % self.n]
        return rows.reshape(count, self.batch_size)

    @functools.cached_property
    def _shuffled(self):
        return require_grain().MapDataset.range(self.n).seed(self.seed).shuffle().repeat()

    @functools.cached_property
    def _cumulative(self) -> Float[np.ndarray, " n"]:
        return np.cumsum(np.asarray(self.weights, np.float64))

    def _drawn(self, number: int) -> Int[np.ndarray, " b"]:
        total = self._cumulative[-1]
        heights = np.random.default_rng([self.seed, number]).random(self.batch_size) * total
        # "right" never lands on a row of weight 0. A product that rounds up to the total belongs to the last row with a weight.
        return np.searchsorted(self._cumulative, heights, side="right").clip(max=np.searchsorted(self._cumulative, total))


@functools.lru_cache(maxsize=16)
def _permutation(n: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    # Kept because a stream asks batch by batch. Two epochs meet in a batch, and several seeds may run at once.
    permutation = np.random.default_rng([seed, epoch]).permutation(n)
    permutation.flags.writeable = False
    return permutation


def share(rows: Shaped[np.ndarray, "*count b"], process: int, processes: int) -> Shaped[np.ndarray, "*count local"]:
    """The columns of global batches (rows, or their weights) that this process loads: `process * b / processes` up to the next one's.

    Raises:
      UserError: the batch size is no multiple of the number of processes.
    """
    width = rows.shape[-1]
    if width % processes:
        raise UserError(f"batch_size {width} cannot be shared by {processes} processes; make it a multiple of {processes}")
    local = width // processes
    return rows[..., process * local : (process + 1) * local]


def take(source: Source, rows: Int[np.ndarray, " b"], weight: Float[np.ndarray, " b"] | None = None) -> dict[str, Any]:
    """The fields of the `Batch` of these rows, as numpy arrays, ready for `Batch(**fields)` once on a device. `weight` is 1 unless given."""
    return {
        **source.load(rows),
        "label": source.label[rows],
        "group": source.group[rows],
        "index": rows.astype(np.int32),
        "weight": np.ones(len(rows), np.float32) if weight is None else weight.astype(np.float32),
    }


class Rooms:
    """Memory for arrays, used again once nothing refers to them: the system takes longer to hand out fresh memory than it takes to fill it."""

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = collections.defaultdict(list)

    def like(self, fields: Any, size: int) -> Any:
        """Arrays of `size` rows for each of these, not filled."""
        if isinstance(fields, dict):
            return {name: self.like(value, size) for name, value in fields.items()}
        shape, count = (size, *fields.shape[1:]), size * fields[:1].nbytes
        free = self._free[count]
        room = free.pop() if free else np.empty(count + 64, np.uint8)
        # All views of `own` keep it alive: when it goes, whoever had one (a device that still copies, too) is done with it.
        own = np.frombuffer(room.data, np.uint8)
        weakref.finalize(own, free.append, room).atexit = False
        # At a multiple of 64 bytes: what lies so a CPU backend takes as it is; of other arrays it makes a copy.
        return own[-own.ctypes.data % 64 :][:count].view(fields.dtype).reshape(shape)


def gather(
    source: Source,
    rows: Int[np.ndarray, " n"],
    *,
    size: int,
    rooms: Rooms | None = None,
    threads: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """The fields of these rows (see `take`), read by grain's threads into arrays of `size` rows, those after them zero.

    Each thread writes its share where it belongs: the bytes of a picture are moved once.

    Args:
      rooms: where the arrays come from; new ones if None.
      threads: as many as cores (more are slower).
      stopped: whether to give up.

    Raises:
      CancelledError: it was stopped.
    """
    grain = require_grain()
    whole = (rooms or Rooms()).like(take(source, rows[:1]), size)
    _put(whole, slice(len(rows), size), 0)

    def fill(number: int) -> int:
        part = slice(number * PIECE, min((number + 1) * PIECE, len(rows)))
        _put(whole, part, take(source, rows[part]))
        return number

    pieces = grain.MapDataset.range(-(-len(rows) // PIECE)).map(lambda number: fill(int(number)))
    threads = threads or cores()
    for _ in pieces.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)):
        if stopped():
            raise concurrent.futures.CancelledError
    return whole


def _put(whole: Any, part: slice, fields: Any) -> None:
    for name, own in whole.items():
        value = fields[name] if isinstance(fields, dict) else fields
        if isinstance(own, dict):
            _put(own, part, value)
        else:
            own[part] = value


def cores() -> int:
    """Of the machine, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def evaluation_rows(n: int, batch_size: int) -> tuple[Int[np.ndarray, "count b"], Float[np.ndarray, "count b"]]:
    """(rows, weight) of a pass over every row once, in order; the last batch is filled up with the last row at weight 0."""
    count = -(-n // batch_size)
    positions = np.arange(count * batch_size).reshape(count, batch_size)
    return positions.clip(max=max(n - 1, 0)), (positions < n).astype(np.float32)


def evaluation_batches(source: Source, batch_size: int, *, process: int = 0, processes: int = 1) -> Iterator[dict[str, Any]]:
    """One pass in order (see `take`). All batches have the same size; every process gets the same number of them, its own columns of each."""
    for rows, weight in zip(*evaluation_rows(len(source), batch_size), strict=True):
        yield take(source, share(rows, process, processes), share(weight, process, processes))


def require_grain():
    """The grain module, imported when first needed (it takes 0.7 s, and some machines have none).

    Raises:
      UserError: it is not installed.
    """
    try:
        import grain
    except ImportError as error:
        raise UserError("reading in the background needs grain, which is not installed; run: pip install grain") from error
    return grain
