"""Rows of all splits, told apart by what they hold: those that occur in several splits, or several times, are worked on and kept once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, Shaped

from cimrl_jax.data.columns import in_parallel
from cimrl_jax.data.source import Source

READ = 256
"""Rows that are read at a time to be hashed."""

Load = Callable[[Int[np.ndarray, " b"]], tuple[Shaped[np.ndarray, "b ..."], Bool[np.ndarray, " b"]]]
"""Rows of a split -> (one modality's raw inputs, present)."""


@runtime_checkable
class Keyed(Protocol):
    """What a source may have besides: it reads one modality alone, and tells rows apart without reading them."""

    def column(self, modality: str, rows: Int[np.ndarray, " b"]) -> tuple[Shaped[np.ndarray, "b ..."], Bool[np.ndarray, " b"]]:
        """(raw inputs, present)."""
        ...

    def keys(self, modality: str) -> tuple[Shaped[np.ndarray, " n"], Bool[np.ndarray, " n"]] | None:
        """(hashes, of 16 bytes, of what each row's raw input is read from: where they are equal, it is too; present). None: nothing is read."""
        ...


def load(source: Source, names: tuple[str, ...], rows: Int[np.ndarray, " b"]) -> dict[str, tuple[np.ndarray, Bool[np.ndarray, " b"]]]:
    """(raw inputs, present) of some modalities. What no one asks for is not copied, and for no modality nothing is read."""
    if not names:
        return {}
    if isinstance(source, Keyed):
        return {m: source.column(m, rows) for m in names}
    arrays = source.arrays
    found = source.load(rows) if arrays is None else {part: {m: columns[m][rows] for m in names} for part, columns in arrays.items()}
    return {m: (found["inputs"][m], found["present"][m]) for m in names}


def loader(source: Source, modality: str) -> Load:
    """`load` of one modality."""
    return lambda rows: load(source, (modality,), rows)[modality]


def digests(load: Load, count: int, *, absent_alike: bool) -> tuple[Shaped[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """(a hash of each row's content, present). `absent_alike`: whatever lies where the modality is absent counts as the same."""
    found, present = np.empty(count, "S16"), np.empty(count, bool)

    def read(start: int) -> None:
        rows = np.arange(start, min(start + READ, count))
        inputs, present[rows] = load(rows)
        wanted = present[rows] | (not absent_alike)
        contents = (np.ascontiguousarray(values).tobytes() if there else b"" for values, there in zip(inputs, wanted, strict=True))
        found[rows] = [hashlib.blake2b(content, digest_size=16).digest() for content in contents]

    for _ in in_parallel(read, range(0, count, READ)):
        pass
    return found, present


def read(
    loads: Sequence[Load], places: Int[np.ndarray, " b"], ends: Int[np.ndarray, " s"]
) -> tuple[Shaped[np.ndarray, "b ..."], Bool[np.ndarray, " b"]]:
    """(raw inputs, present) of rows counted through all splits, which end at `ends`."""
    split = np.searchsorted(ends, places, side="right")
    rows = places - np.concatenate([[0], ends])[split]
    parts = [(split == number, loads[number](rows[split == number])) for number in np.unique(split)]
    inputs, present = (np.empty((len(places), *part.shape[1:]), part.dtype) for part in parts[0][1])
    for own, (values, there) in parts:
        inputs[own], present[own] = values, there
    return inputs, present
