"""Choosing rows so that a split has the counts it should: stratified, or matched to wanted attributes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from cimrl_jax.errors import UserError


def interleave(kind: Int[np.ndarray, " n"], rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """A random order of the rows in which the kinds run out as evenly as can be: where all are equally frequent, each run of as many rows as there
    are kinds holds every kind once, so that any cut is stratified."""
    shuffled = rng.permutation(len(kind))
    rank = np.empty(len(kind))
    for value in np.unique(kind):
        members = shuffled[kind[shuffled] == value]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(rank[shuffled], kind="stable")]


def matching(
    have: tuple[Int[np.ndarray, " n"], ...], want: tuple[Int[np.ndarray, " k"], ...], rng: np.random.Generator, *, where: str, repeat: bool = False
) -> Int[np.ndarray, " k"]:
    """For each wanted combination of values a random row that has it, no row twice unless `repeat` (then as rarely as can be).

    Args:
      have: columns of the rows to choose from.
      want: the same columns of the rows that are wanted.
      where: what is being made, for messages.

    Raises:
      UserError: there are too few rows of some combination.
    """
    rows = np.empty(len(want[0]), np.int64)
    for combination in np.unique(np.stack(want, 1), axis=0).tolist():
        places = np.flatnonzero(np.all([column == value for column, value in zip(want, combination, strict=True)], axis=0))
        pool = rng.permutation(np.flatnonzero(np.all([column == value for column, value in zip(have, combination, strict=True)], axis=0)))
        if len(pool) == 0 or not repeat and len(pool) < len(places):
            values = ", ".join(map(str, combination))
            raise UserError(f"{where} needs {len(places)} examples of label, attribute = {values}, but there are only {len(pool)}; ask for fewer")
        rows[places] = np.resize(pool, len(places))
    return rows
