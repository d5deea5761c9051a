"""A frozen encoder's features in the place of its raw inputs: computed once for ever, kept on disk, read through memory maps.

They lie in `<cache>/<key>` (see `data/shards.py`). The key is a hash of all that they depend on: a folder never holds anything else, and any may be
deleted. Rows are told apart by their content, so that those that occur in several splits, or several times, are computed and kept once.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from cimrl_jax.data import distinct
from cimrl_jax.data.shards import Column, Folder
from cimrl_jax.data.source import Dataset, Records, Regions, Source
from cimrl_jax.errors import UserError
from cimrl_jax.types import Feature

LAYOUT = 1
"""Of what is on disk; part of the key."""
SHARD_BYTES = 64 << 20
"""Of a shard, about: what a kill costs."""
HELD_BYTES = 2 << 30
"""Features of a split up to this size may be held in memory."""

Compute = Callable[[np.ndarray, Bool[np.ndarray, " b"]], Any]
"""(raw inputs `[b, ...]`, present `[b]`) -> features `[b, views * count, width]`, a token that is padding all zero. A pure function of each row; b is
always the same: the last row is repeated."""


def default_cache() -> pathlib.Path:
    """$XDG_CACHE_HOME/cimrl_jax/features; without that variable below ~/.cache."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "cimrl_jax" / "features"


@dataclasses.dataclass(frozen=True)
class Stored:
    """A source some of whose modalities are features on disk; everything else is the raw source's."""

    raw: Source
    columns: Mapping[str, Column]
    others: tuple[str, ...]
    """The modalities that are read from the raw source."""
    held: int = HELD_BYTES
    """`arrays` holds the features in memory if they have at most so many bytes."""

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def label(self) -> Int[np.ndarray, " n"]:
        return self.raw.label

    @property
    def group(self) -> Int[np.ndarray, " n"]:
        return self.raw.group

    @property
    def regions(self) -> Regions | None:
        """Over the raw inputs."""
        return self.raw.regions

    @property
    def arrays(self) -> Records | None:
        return self._everything

    @functools.cached_property
    def _everything(self) -> Records | None:
        small = sum(column.nbytes for column in self.columns.values()) <= self.held
        return self.load(np.arange(len(self))) if small and not (self.others and self.raw.arrays is None) else None

    def load(self, rows: Int[np.ndarray, " b"]) -> Records:
        raw = distinct.load(self.raw, self.others, rows)
        return {
            "inputs": {m: column[rows] for m, column in self.columns.items()} | {m: values for m, (values, _) in raw.items()},
            "present": {m: column.present[rows] for m, column in self.columns.items()} | {m: present for m, (_, present) in raw.items()},
        }


def build(
    dataset: Dataset,
    modality: str,
    compute: Compute,
    *,
    feature: Feature,
    weights: str,
    settings: Mapping[str, Any] | None = None,
    cache: pathlib.Path | None = None,
    batch_size: int = 64,
    held: int = HELD_BYTES,
    progress: Callable[[int, int], Any] | None = None,
    say: Callable[[str], Any] | None = None,
) -> Dataset:
    """The data set with features in the place of one modality's raw inputs; what of them is not on disk is computed. For two modalities: call twice.

    Where a process was killed, the next goes on with the shards that are whole. Of two that need the same at once, one computes and one waits.

    Args:
      dataset: raw in this modality.
      compute: see `Compute`; it gets `batch_size` rows a call.
      feature: what becomes of `dataset.features[modality]`: kind "slots", shape (views * count, width), dtype "float32" or "float16", views.
      weights: a hash of the encoder's numbers and architecture.
      settings: whatever else the features depend on (how views are made, the type that is computed in); JSON.
      cache: the folder of all features; `default_cache()` if None.
      held: see `Stored.held`; 0 always reads from disk.
      progress: called with (distinct rows that are there, all of them).
      say: called with a line of text if another process must be waited for; if None, it goes to standard error.

    Raises:
      UserError: the folder cannot be written, there is no room, or features are not finite.
    """
    raw = {name: source.raw if isinstance(source, Stored) else source for name, source in dataset.splits.items()}
    feature = dataclasses.replace(feature, raw=dataset.features[modality])
    loads = [distinct.loader(source, modality) for source in raw.values()]
    known = {name: distinct.digests(load, len(raw[name]), absent_alike=True) for name, load in zip(raw, loads, strict=True)}
    digests, first, inverse = np.unique(np.concatenate([own for own, _ in known.values()]), return_index=True, return_inverse=True)
    row_bytes = int(np.prod(feature.shape)) * np.dtype(feature.dtype).itemsize
    made_of = {
        "layout": LAYOUT,
        "weights": weights,
        "feature": dataclasses.asdict(feature),
        "settings": dict(settings or {}),
        "batch_size": batch_size,
        "shard_rows": max(1, SHARD_BYTES // row_bytes // batch_size) * batch_size,
        "rows": hashlib.sha256(digests.tobytes()).hexdigest(),
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]
    ends = np.cumsum([len(source) for source in raw.values()])

    def make(numbers: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b m w"]:
        inputs, present = distinct.read(loads, first[numbers], ends)
        filled = np.minimum(np.arange(batch_size), len(numbers) - 1)
        return _checked(compute(inputs[filled], present[filled]), feature, modality)[: len(numbers)]

    folder = Folder((cache or default_cache()) / key, feature.shape, feature.dtype, len(digests), made_of["shard_rows"])
    shards = folder.fill(
        make,
        step=batch_size,
        about={"dataset": dataset.name, "modality": modality, **made_of},
        progress=progress or (lambda done, total: None),
        say=say or functools.partial(print, file=sys.stderr, flush=True),
    )
    splits: dict[str, Source] = {}
    for (name, source), rows in zip(dataset.splits.items(), np.split(inverse, ends[:-1]), strict=True):
        columns = {**(source.columns if isinstance(source, Stored) else {}), modality: Column(shards, rows, known[name][1])}
        splits[name] = Stored(raw[name], columns, tuple(m for m in dataset.features if m not in columns), held)
    return dataclasses.replace(dataset, features={**dataset.features, modality: feature}, splits=splits)


def _checked(values: Any, feature: Feature, modality: str) -> Float[np.ndarray, "b m w"]:
    with np.errstate(over="ignore"):
        found = np.asarray(values).astype(feature.dtype)
    if found.shape[1:] != feature.shape:
        raise ValueError(f"features of {modality} are {found.shape[1:]}, declared as {feature.shape}")
    if not np.isfinite(found).all():
        raise UserError(f"the frozen encoder of {modality!r} gives numbers not finite in {feature.dtype}; mend its weights or the raw inputs")
    return found
