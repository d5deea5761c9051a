"""Splits in which the attribute says nothing of the label, from those that a data set comes with."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int

from cimrl_jax.data import planting, resampling
from cimrl_jax.data.listing import Listing, Options, examine


def add(listing: Listing, options: Options) -> Listing:
    """The listing with two more splits, each only where every label comes with every attribute in the split that it is drawn from.

    train_randomised: every training row at least once and some several times, so that each label has all attributes equally often (to within one).
    test_balanced: test rows left out until each label has all attributes equally often; not made where the attribute says nothing in test already.

    Rows that cannot be used are not drawn, so that both keep their promise when such rows are skipped.
    """
    if listing.group is None or not listing.group_names:
        return listing
    bad = np.array([fault.row for fault in (examine(listing) if options.on_bad_row == "skip" else listing.faults)], np.int64)
    per_label = np.array(listing.group_attribute or np.arange(len(listing.group_names)) % len(listing.attribute_names))
    values, classes = int(per_label.max()) + 1, len(listing.class_names)
    splits = dict(listing.splits)
    for name, base in (("train_randomised", "train"), ("test_balanced", "test")):
        rows = listing.splits[base]
        rows = rows[(listing.group[rows] >= 0) & ~np.isin(rows, bad)]
        label, attribute = listing.label[rows], per_label[listing.group[rows]]
        counts = np.bincount(values * label + attribute, minlength=classes * values).reshape(classes, values)
        rng = planting.generator(options.data_seed, name)
        if counts.min() > 0 and base == "train":
            splits[name] = rows[resampling.randomised(label, attribute, values, rng, where=f"{name} of {listing.name!r}")]
        elif counts.min() > 0 and (counts * counts.sum() != np.outer(counts.sum(1), counts.sum(0))).any():
            splits[name] = np.sort(rows[_equal(label, attribute, counts.min(1), rng)])
    return dataclasses.replace(listing, splits=splits)


def _equal(
    label: Int[np.ndarray, " n"], attribute: Int[np.ndarray, " n"], least: Int[np.ndarray, " c"], rng: np.random.Generator
) -> Int[np.ndarray, " k"]:
    """Of each label `least` rows with every attribute."""
    order = rng.permutation(len(label))
    pairs = np.unique(np.stack([label, attribute], 1), axis=0).tolist()
    return np.concatenate([order[(label[order] == klass) & (attribute[order] == value)][: least[klass]] for klass, value in pairs])
