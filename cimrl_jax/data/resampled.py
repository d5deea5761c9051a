"""What if: the data set's own attribute made to agree with the label more, less, the other way round or not at all, by which rows a split has."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from cimrl_jax.data import planting, resampling
from cimrl_jax.data.source import Dataset, Mask, Records, Regions, Source
from cimrl_jax.errors import UserError, nearest
from cimrl_jax.options import Range, make_options

WHERE = "data.resample"


@dataclasses.dataclass(frozen=True)
class ResampleOptions:
    attribute: Literal["own", "randomise", "flip"] | Annotated[float, Range(low=0, high=1)] = "own"
    """How the attribute of the data set's own groups is spread in each class: as it is ("own"), in all classes as in the whole split ("randomise"),
    as in the other classes' training rows ("flip"), or a number: this share has the attribute that is most typical of the class in training, the
    others equally often."""
    splits: tuple[str, ...] = ("train",)
    """The splits that are changed."""
    rows: Literal["leave_out", "draw_again"] = "leave_out"
    """Leave out rows at random until it is so, as few of each class as can be (classes may shrink differently), or draw as many of each class as
    there were, some of them again and others not."""


def resample(dataset: Dataset, options: ResampleOptions, *, seed: int) -> Dataset:
    """The data set with the named splits changed; rows of unknown group are left out of these.

    Args:
      seed: draws the rows.

    Raises:
      UserError: options that do not fit the data set: no groups with attributes, no such split, or no row of a kind that is needed.
    """
    make_options(ResampleOptions, dataclasses.asdict(options), WHERE)
    if options.attribute == "own":
        return dataset
    if not dataset.group_attribute:
        raise UserError(f"{WHERE}.attribute: data set {dataset.name!r} does not say which attribute each group has; leave it out")
    for name in options.splits:
        if name not in dataset.splits:
            raise UserError(f"{WHERE}.splits: data set {dataset.name!r} has no split {name!r}; {nearest(name, dataset.splits)}")
    splits, keys, said = dict(dataset.splits), dict(dataset.keys), []
    for name in options.splits:
        source, counts = dataset.splits[name], _counts(dataset, name)
        shares = _shares(options.attribute, counts, _counts(dataset, "train"))
        lacking = np.argwhere((counts == 0) & (shares > 0) & (counts.sum(1, keepdims=True) > 0)).tolist()
        if lacking:
            klass, value = lacking[0]
            kind = f"class {dataset.class_names[klass]!r} and attribute {_called(dataset, value)!r}"
            raise UserError(
                f"{WHERE}: {name} has no row of {kind}, but {shares[klass, value]:.3g} of that class are to have it; choose another split"
            )
        rng = planting.generator(seed, "resample", name)
        attribute = np.append(dataset.group_attribute, -1)[source.group]  # -1, the unknown group, is the last
        draw = resampling.with_shares if options.rows == "leave_out" else resampling.again_with_shares
        rows = draw(source.label, attribute, shares, rng)
        if not len(rows):
            raise UserError(f"{WHERE}: {name} has too few rows for {options.attribute}; try --{WHERE}.rows draw_again")
        splits[name] = chosen(source, rows)
        keys |= {name: keys[name][rows]} if name in keys else {}
        said.append(f"{name} has {len(np.unique(rows))} of its {len(source)} rows")
    notes = f"{dataset.notes}; attribute resampled ({options.attribute}): {', '.join(said)}"
    answers = {name: own for name, own in dataset.answers.items() if name not in options.splits}
    return dataclasses.replace(dataset, splits=splits, answers=answers, keys=keys, notes=notes)


def _counts(dataset: Dataset, split: str) -> Int[np.ndarray, "c a"]:
    """Rows of known group by class and attribute."""
    source, of_group = dataset.splits[split], np.array(dataset.group_attribute)
    known, values = source.group >= 0, int(of_group.max()) + 1
    cells = source.label[known] * values + of_group[source.group[known]]
    return np.bincount(cells, minlength=len(dataset.class_names) * values).reshape(-1, values)


def _shares(wanted: str | float, own: Int[np.ndarray, "c a"], train: Int[np.ndarray, "c a"]) -> Float[np.ndarray, "c a"]:
    """The share of each class that is to have each attribute."""
    classes, values = own.shape
    within = train / np.maximum(train.sum(1, keepdims=True), 1)
    if wanted == "randomise":
        return np.tile(own.sum(0) / max(own.sum(), 1), (classes, 1))
    if wanted == "flip":
        return np.stack([np.delete(within, klass, 0).mean(0) for klass in range(classes)])
    # Compared with all classes: an attribute that most rows have, whatever their class, is typical of none.
    typical = (within / np.maximum(train.sum(0) / max(train.sum(), 1), 1e-12)).argmax(1)
    shares = np.full((classes, values), (1 - float(wanted)) / max(values - 1, 1))
    shares[np.arange(classes), typical] = float(wanted)
    return shares


def _called(dataset: Dataset, value: int) -> str:
    return dataset.attribute_names[value] if value < len(dataset.attribute_names) else str(value)


def chosen(source: Source, rows: Int[np.ndarray, " k"]) -> Source:
    """Some rows of a source, in this order, any of them as often as it is named."""
    return Chosen(source, rows, source.label[rows], source.group[rows])


@dataclasses.dataclass(frozen=True)
class Chosen:
    raw: Source
    rows: Int[np.ndarray, " k"]
    label: Int[np.ndarray, " k"]
    group: Int[np.ndarray, " k"]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def arrays(self) -> Records | None:
        return self._everything

    @functools.cached_property
    def _everything(self) -> Records | None:
        whole = self.raw.arrays
        return None if whole is None else {part: {m: column[self.rows] for m, column in columns.items()} for part, columns in whole.items()}

    @property
    def regions(self) -> Regions | None:
        own = self.raw.regions
        return None if own is None else {target: {m: _Region(mask, self.rows) for m, mask in masks.items()} for target, masks in own.items()}

    def load(self, rows: Int[np.ndarray, " b"]) -> Records:
        return self.raw.load(self.rows[rows])


@dataclasses.dataclass(frozen=True)
class _Region:
    own: Mask
    rows: Int[np.ndarray, " k"]
    dtype: np.dtype = np.dtype(bool)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.rows), *self.own.shape[1:]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> Bool[np.ndarray, "b ..."]:
        return self.own[self.rows[rows]]
