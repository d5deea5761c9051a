"""Choosing rows so that a split has the counts it should: stratified, or matched to wanted attributes."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int

from cimrl_jax.data import planting
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


def randomised(
    label: Int[np.ndarray, " n"], attribute: Int[np.ndarray, " n"], values: int, rng: np.random.Generator, *, where: str
) -> Int[np.ndarray, " k"]:
    """Rows of which each label has all attributes equally often (to within one), none left out and the labels in the same proportions. They are some
    times as many: in as many as there were, half of a kind that is nearly all of its label would be lost. Rows of one kind are equally frequent (to
    within one).

    Args:
      attribute: in 0..values-1, each with every label.
      where: what is being made, for messages.
    """
    counts = np.bincount(values * label + attribute, minlength=values * (label.max() + 1)).reshape(-1, values)
    copies = math.ceil((values * counts.max(1) / counts.sum(1)).max())
    wanted = np.tile(label, copies)
    return matching((label, attribute), (wanted, planting.attributes(wanted, values, None, rng)), rng, where=where, repeat=True)


def with_shares(
    label: Int[np.ndarray, " n"], attribute: Int[np.ndarray, " n"], shares: Float[np.ndarray, "c a"], rng: np.random.Generator
) -> Int[np.ndarray, " k"]:
    """As many rows of each class as can be if `shares[label, attribute]` of them are to have each attribute (to within one), in their order. Rows
    whose attribute is -1 are left out."""
    kept = [np.zeros(0, np.int64)]
    for klass, wanted in enumerate(shares):
        pools = [rng.permutation(np.flatnonzero((label == klass) & (attribute == value))) for value in range(len(wanted))]
        total = min(len(pool) / share for pool, share in zip(pools, wanted, strict=True) if share > 0)
        kept += [pool[: round(total * share)] for pool, share in zip(pools, wanted, strict=True)]
    return np.sort(np.concatenate(kept))


def again_with_shares(
    label: Int[np.ndarray, " n"], attribute: Int[np.ndarray, " n"], shares: Float[np.ndarray, "c a"], rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """The same with as many rows of each class as there are, any of them several times, as rarely as can be."""
    drawn = [np.zeros(0, np.int64)]
    for klass, wanted in enumerate(shares):
        pools = [rng.permutation(np.flatnonzero((label == klass) & (attribute == value))) for value in range(len(wanted))]
        ends = np.rint(np.cumsum(wanted) * (label == klass).sum()).astype(int)
        counts = np.diff(ends, prepend=0)
        drawn += [np.resize(pool, count) for pool, count in zip(pools, counts, strict=True)]
    return np.sort(np.concatenate(drawn))


def deal(unit: Int[np.ndarray, " n"], stratum: Int[np.ndarray, " n"], shares: tuple[float, ...], rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """Which of the shares each row belongs to, `len(shares)` for none: all rows of a unit to one; to each a like part of every stratum (a unit's is
    that of its first row)."""
    if not len(unit):
        return unit
    _, first, place, size = np.unique(unit, return_index=True, return_inverse=True, return_counts=True)
    order = interleave(stratum[first], rng)
    middle = np.empty(len(order))
    middle[order] = (np.cumsum(size[order]) - size[order] / 2) / len(unit)
    return np.searchsorted(np.cumsum(shares), middle, side="right")[place]
