"""Planting a shortcut with exact counts: what is asked for holds in every split to within one example, not merely in expectation."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sized

import numpy as np
from jaxtyping import Bool, Int


@dataclasses.dataclass(frozen=True)
class Draw:
    """How one split's attributes are drawn. A correlation is P(attribute = label); None leaves them independent."""

    base: str
    """The split whose examples these are: "train", "validation" or "test"."""
    correlations: tuple[float | None, ...]
    """One per modality."""


def generator(seed: int, *address: str) -> np.random.Generator:
    """The random numbers of one purpose: another address gives other numbers, the same one the same."""
    return np.random.default_rng([seed, *(zlib.crc32(part.encode()) for part in address)])


def attributes(label: Int[np.ndarray, " n"], values: int, correlation: float | None, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """An attribute in 0..values-1 that equals the label in `round(correlation * n_c)` examples of each class, and in the others takes the other
    values equally often (to within one); `None`: every value equally often (to within one) in each class. Where there are fewer values than classes
    it is the label modulo `values` that it equals."""
    chosen = np.empty(len(label), np.int32)
    for klass in np.unique(label):
        rows = rng.permutation(np.flatnonzero(label == klass))
        others = np.delete(np.arange(values), klass % values)
        aligned = round((1 / values if correlation is None else correlation) * len(rows))
        chosen[rows[:aligned]] = klass % values
        # The order of the other values is drawn, so that a remainder favours none.
        chosen[rows[aligned:]] = np.resize(rng.permutation(others), len(rows) - aligned)
    return chosen


def flags(label: Int[np.ndarray, " n"], share: float, rng: np.random.Generator) -> Bool[np.ndarray, " n"]:
    """True for `round(share * n_c)` examples of each class."""
    chosen = np.zeros(len(label), bool)
    for klass in np.unique(label):
        rows = np.flatnonzero(label == klass)
        chosen[rng.permutation(rows)[: round(share * len(rows))]] = True
    return chosen


Correlation = float | tuple[float, ...]
"""Of all modalities, or of each."""


def draws(correlations: tuple[Correlation, Correlation, Correlation], modalities: tuple[str, ...]) -> dict[str, Draw]:
    """The splits of a planted data set. `correlations`: in train, validation and test.

    "train_randomised" are the training examples with independent attributes. "test_balanced" (independent), "test_flipped" (1 - correlation) and, for
    each modality, "test_<modality>_only" are the test examples again. In the last only that modality's attribute is independent of the label, the
    other modalities' always agree with it: how far accuracy falls says how much the model leans on that modality's shortcut.
    """
    everywhere = len(modalities)
    train, validation, test = (own if isinstance(own, tuple) else (own,) * everywhere for own in correlations)
    splits = {
        "train": Draw("train", train),
        "train_randomised": Draw("train", (None,) * everywhere),
        "validation": Draw("validation", validation),
        "test": Draw("test", test),
        "test_balanced": Draw("test", (None,) * everywhere),
        "test_flipped": Draw("test", tuple(1 - own for own in test)),
    }
    if everywhere > 1:
        for name in modalities:
            splits[f"test_{name}_only"] = Draw("test", tuple(None if other == name else 1.0 for other in modalities))
    return splits


def keys(splits: Mapping[str, Sized]) -> dict[str, Int[np.ndarray, " n"]]:
    """`Dataset.keys` of a planted data set: row i of test_flipped is row i of test with another attribute."""
    return {name: np.arange(len(splits[name])) for name in ("test", "test_flipped")}


def group_names(classes: tuple[str, ...], values: tuple[str, ...]) -> tuple[str, ...]:
    """The name of group `label * len(values) + attribute`."""
    return tuple(f"label={klass}, attribute={value}" for klass in classes for value in values)
