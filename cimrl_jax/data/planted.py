"""A shortcut planted in any data set: an attribute that agrees with the label as often as asked, and what tells it in every modality.

Splits that are made of the same examples differ in nothing but the attribute and what it sets. `data/shortcuts.py` says what can be planted.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from cimrl_jax.data import planting, shortcuts
from cimrl_jax.data.shortcuts import CommonOptions, Share, Shortcut
from cimrl_jax.data.source import Dataset, Mask, Records, Regions, Source
from cimrl_jax.errors import UserError, nearest
from cimrl_jax.options import Range, make_options

WHERE = "data.plant"
MOST_VALUES = 16
"""Of the attribute, where none are asked for."""
BLOCK = 256
"""Rows that are planted at a time."""
LOOKED_AT = 512
"""Training texts in which planted words are looked for, if texts are not in memory."""


@dataclasses.dataclass(frozen=True)
class PlantOptions:
    correlation: Share = 0.95
    """P(attribute = label) in training, exact in every class, of all that is planted. The other examples take the other values equally often."""
    validation_correlation: Share | None = None
    """The same in validation; none: as in training."""
    test_correlation: Share | None = None
    """The same in test; none: as in training. test_flipped has 1 - this."""
    values: Annotated[int, Range(low=0, high=64)] = 0
    """Values of the attribute; 0: as many as classes, at most 16. With fewer than classes it agrees with the class's number modulo this."""
    separate: bool = False
    """Whether every planted modality follows an attribute of its own, drawn independently of the others. Groups then follow that of the first."""
    groups: Literal["planted", "own", "crossed"] = "planted"
    """What the groups are: label x planted attribute, those that the data set comes with, or both crossed."""
    image: shortcuts.ImageOptions = shortcuts.ImageOptions()
    """In image modalities."""
    text: shortcuts.TextOptions = shortcuts.TextOptions()
    """In text modalities."""
    spectrogram: shortcuts.SpectrogramOptions = shortcuts.SpectrogramOptions()
    """In spectrogram modalities."""
    table: shortcuts.TableOptions = shortcuts.TableOptions()
    """In table modalities."""
    slots: shortcuts.SlotsOptions = shortcuts.SlotsOptions()
    """In modalities that are slots already."""


def plant(dataset: Dataset, options: PlantOptions, *, seed: int) -> Dataset:
    """The data set with what `options` ask for planted; the same data set if that is nothing.

    It has the splits of `planting.draws`, made of its own train, validation and test; splits of these names are replaced, its others stay, with an
    attribute that says nothing of the label. Regions "shortcut" are what is planted joined with the data set's own; the latter move with the words
    of a text, and what is covered up is no cause.

    Args:
      seed: draws the attributes and places.

    Raises:
      UserError: options that do not fit the data set, one line with the key.
    """
    make_options(PlantOptions, dataclasses.asdict(options), WHERE)
    chosen = _chosen(dataset, options)
    if not chosen:
        return dataset
    values = options.values or min(len(dataset.class_names), MOST_VALUES)
    if values < 2:
        raise UserError(f"{WHERE}.values: got {values}, expected at least 2")
    if options.groups == "crossed" and not dataset.group_names:
        raise UserError(f"{WHERE}.groups: got 'crossed', but data set {dataset.name!r} has no groups of its own; choose planted")
    planted = {}
    for name, own in chosen.items():
        feature = dataset.features[name]
        training = functools.partial(_texts, dataset, name)
        planted[name] = shortcuts.make(feature, own, values, seed=seed, where=f"{WHERE}.{feature.kind}", texts=training)
    draws = planting.draws(_correlations(options, chosen), tuple(planted))
    everywhere = (None,) * len(planted)
    draws |= {name: planting.Draw(name, everywhere) for name in dataset.splits if name not in draws}
    words = next((own.words for own in planted.values() if own.words), ())
    names = words or (dataset.class_names if values == len(dataset.class_names) else tuple(map(str, range(values))))
    splits = {}
    for split, draw in draws.items():
        raw = dataset.splits[draw.base]
        attribute = _attributes(raw, split, draw, tuple(planted), values, options, seed)
        told = attribute[next((name for name, share in zip(planted, draw.correlations, strict=True) if share is None), next(iter(planted)))]
        group = {"planted": raw.label * values + told, "own": raw.group, "crossed": np.where(raw.group < 0, -1, raw.group * values + told)}
        choice = {name: _choice(raw, name, dataset, chosen[name], planting.generator(seed, draw.base, "plant", name)) for name in planted}
        splits[split] = Planted(raw, planted, attribute, choice, group[options.groups].astype(np.int32))
    features = {name: planted[name].feature if name in planted else feature for name, feature in dataset.features.items()}
    test = dataset.keys.get("test", np.arange(len(dataset.splits["test"])))
    found = dataclasses.replace(
        dataset,
        features=features,
        splits=splits,
        notes=f"{dataset.notes}; planted: {_said(chosen)}",
        keys={**dataset.keys, **dict.fromkeys(planting.keys(splits), test)},
    )
    if options.groups == "planted":
        of_group = tuple(range(values)) * len(dataset.class_names)
        return dataclasses.replace(
            found, group_names=planting.group_names(dataset.class_names, names), attribute_names=words, group_attribute=of_group
        )
    if options.groups == "crossed":
        return dataclasses.replace(
            found,
            group_names=tuple(f"{own}, planted={name}" for own, name in itertools.product(dataset.group_names, names)),
            attribute_names=tuple(f"{own} {word}" for own, word in itertools.product(dataset.attribute_names, words)),
            group_attribute=tuple(own * values + value for own, value in itertools.product(dataset.group_attribute, range(values))),
        )
    return found


def _chosen(dataset: Dataset, options: PlantOptions) -> dict[str, Any]:
    """The options of each modality in which something is to be planted, in the data set's order."""
    found = {}
    for kind in ("image", "text", "spectrogram", "table", "slots"):
        own = getattr(options, kind)
        names = [name for name, feature in dataset.features.items() if feature.kind == kind]
        if own.kind == "none":
            if own.modalities:
                raise UserError(f"{WHERE}.{kind}.modalities: nothing is planted there; set {WHERE}.{kind}.kind")
            continue
        if not names:
            have = ", ".join(f"{name} ({feature.kind})" for name, feature in dataset.features.items())
            raise UserError(f"{WHERE}.{kind}.kind: got {own.kind!r}, but data set {dataset.name!r} has no {kind}, only {have}")
        for name in own.modalities:
            if name not in names:
                raise UserError(f"{WHERE}.{kind}.modalities: data set {dataset.name!r} has no {kind} {name!r}; {nearest(name, names)}")
        found |= dict.fromkeys(own.modalities or names, own)
    return {name: found[name] for name in dataset.features if name in found}


def _correlations(options: PlantOptions, chosen: Mapping[str, CommonOptions]) -> Any:
    """In train, validation and test, of each modality.

    Raises:
      UserError: modalities that follow the same attribute are to agree with the label in different shares.
    """

    def first(*given: float | None) -> float:
        return next(share for share in given if share is not None)

    train = tuple(first(own.correlation, options.correlation) for own in chosen.values())
    later = [
        tuple(
            first(getattr(own, key), getattr(options, key), share)  # the modality's own, that of all, as in training
            for own, share in zip(chosen.values(), train, strict=True)
        )
        for key in ("validation_correlation", "test_correlation")
    ]
    for split, shares in zip(("training", "validation", "test"), (train, *later), strict=True):
        if len(set(shares)) > 1 and not options.separate:
            told = ", ".join(f"{name} {share:g}" for name, share in zip(chosen, shares, strict=True))
            raise UserError(f"{WHERE}: one attribute cannot agree with the label in different shares ({split}: {told}); set {WHERE}.separate true")
    return train, *later


def _attributes(
    raw: Source, split: str, draw: planting.Draw, names: tuple[str, ...], values: int, options: PlantOptions, seed: int
) -> dict[str, Int[np.ndarray, " n"]]:
    together = not options.separate and len(set(draw.correlations)) == 1
    return {
        name: planting.attributes(raw.label, values, share, planting.generator(seed, split, "plant", "all" if together else name))
        for name, share in zip(names, draw.correlations, strict=True)
    }


def _choice(raw: Source, name: str, dataset: Dataset, options: CommonOptions, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    drawn = rng.integers(2**31, size=len(raw))
    cause = (raw.regions or {}).get("cause", {}).get(name)
    if isinstance(options, shortcuts.SlotsOptions) and cause is not None and len(raw):
        return shortcuts.nth(~cause[np.arange(len(raw))], drawn)
    return drawn


def _texts(dataset: Dataset, name: str) -> Int[np.ndarray, "n length"]:
    """Ids of training texts: all that are in memory, or some."""
    train = dataset.split("train")
    if train.arrays is not None:
        return train.arrays["inputs"][name]
    rows = np.unique(np.linspace(0, len(train) - 1, min(len(train), LOOKED_AT)).astype(np.int64))
    return train.load(rows)["inputs"][name]


def _said(chosen: Mapping[str, Any]) -> str:
    return ", ".join(f"{own.kind} in {name}" for name, own in chosen.items())


class _Clean(NamedTuple):
    """Raw inputs of some rows, kept for the regions of the same rows."""

    rows: bytes
    records: Records


@dataclasses.dataclass(frozen=True)
class Planted:
    """A source with shortcuts planted as its rows are loaded. Where a modality is absent nothing is planted in it."""

    raw: Source
    shortcuts: Mapping[str, Shortcut]
    attribute: Mapping[str, Int[np.ndarray, " n"]]
    """By modality."""
    choice: Mapping[str, Int[np.ndarray, " n"]]
    """By modality, see `shortcuts.Choice`."""
    group: Int[np.ndarray, " n"]
    _last: dict[str, _Clean] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def label(self) -> Int[np.ndarray, " n"]:
        return self.raw.label

    @property
    def arrays(self) -> Records | None:
        return self._everything

    @functools.cached_property
    def _everything(self) -> Records | None:
        clean = self.raw.arrays
        if clean is None:
            return None
        inputs = dict(clean["inputs"])
        for start in range(0, len(self), BLOCK):  # planting takes many times the room of what is planted
            rows = np.arange(start, min(start + BLOCK, len(self)))
            made = self._put({part: {m: own[rows] for m, own in columns.items()} for part, columns in clean.items()}, rows)["inputs"]
            for m in self.shortcuts:
                if not start:
                    inputs[m] = np.empty((len(self), *made[m].shape[1:]), made[m].dtype)
                inputs[m][rows] = made[m]
        return {"inputs": inputs, "present": dict(clean["present"])}

    def load(self, rows: Int[np.ndarray, " b"]) -> Records:
        return self._put(self.clean(rows), rows)

    def clean(self, rows: Int[np.ndarray, " b"]) -> Records:
        """What the wrapped source loads; the last rows are kept, since their regions are asked for next."""
        last, key = self._last.get("clean"), np.asarray(rows).tobytes()
        if last is None or last.rows != key:
            last = _Clean(key, self.raw.load(rows))
            self._last["clean"] = last
        return last.records

    def _put(self, clean: Records, rows: Int[np.ndarray, " b"]) -> Records:
        inputs = dict(clean["inputs"])
        for name, own in self.shortcuts.items():
            value, choice, there = self.attribute[name][rows], self.choice[name][rows], clean["present"][name]
            inputs[name] = own.put(inputs[name], value, choice)
            if not there.all():
                inputs[name][~there] = _fitted(clean["inputs"][name][~there], inputs[name].shape[1:])
        return {"inputs": inputs, "present": dict(clean["present"])}

    @property
    def regions(self) -> Regions:
        return self._regions

    @functools.cached_property
    def _regions(self) -> Regions:
        own = self.raw.regions or {}
        found: dict[str, dict[str, Mask]] = {target: dict(masks) for target, masks in own.items()}
        for name in self.shortcuts:
            for target in {"shortcut": None, **own}:
                mask = own.get(target, {}).get(name)
                if mask is not None or target == "shortcut":
                    found.setdefault(target, {})[name] = _Region(self, name, mask, planted=target == "shortcut")
        return found


@dataclasses.dataclass(frozen=True)
class _Region:
    """A region of a planted source, made as its rows are asked for."""

    source: Planted
    modality: str
    own: Mask | None
    """That of the wrapped source."""
    planted: bool
    """Whether what is planted belongs to it."""
    dtype: np.dtype = np.dtype(bool)

    @property
    def shape(self) -> tuple[int, ...]:
        feature = self.source.shortcuts[self.modality].feature
        return len(self.source), *feature.shape[: {"image": 2, "spectrogram": 2}.get(feature.kind, 1)]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: Any) -> Bool[np.ndarray, "b ..."]:
        rows = np.arange(len(self))[rows]
        shortcut, clean = self.source.shortcuts[self.modality], self.source.clean(rows)
        example = clean["inputs"][self.modality], self.source.attribute[self.modality][rows], self.source.choice[self.modality][rows]
        found = np.zeros((len(rows), *self.shape[1:]), bool)
        if self.own is not None:
            found |= shortcut.carry(self.own[rows], *example)
        if self.planted:
            found |= shortcut.covers(*example)
        there = clean["present"][self.modality]
        if not there.all():
            found[~there] = False if self.own is None else _fitted(self.own[rows[~there]], self.shape[1:])
        return found


def _fitted(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Rows of absent modalities, untouched but for an added column."""
    return np.pad(values, [(0, 0), *((0, whole - have) for have, whole in zip(values.shape[1:], shape, strict=True))])
