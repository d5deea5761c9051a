"""What a data set hands over: sources of examples, one a split, and the record that names them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from cimrl_jax.errors import UserError
from cimrl_jax.types import Feature

Records = dict[str, dict[str, np.ndarray]]
"""{"inputs": {m: [b, *feature shape]}, "present": {m: [b] bool}}."""


class Mask(Protocol):
    """Which raw elements of each example lie in a region: a boolean array, or something that makes the rows of one when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


Regions = Mapping[str, Mapping[str, Any]]
"""{"cause" and "shortcut": {m: [n, *raw shape] bool}}, each a `Mask`: image `[n, h, w]`, text `[n, length]`, spectrogram
`[n, time, mel]`, table `[n, columns]`, slots `[n, slots]`."""


@runtime_checkable
class Source(Protocol):
    """The examples of one split, by row. Labels are always in memory; the inputs are loaded on demand unless `arrays` has them."""

    @property
    def label(self) -> Int[np.ndarray, " n"]:
        """Class of each example, int32."""
        ...

    @property
    def group(self) -> Int[np.ndarray, " n"]:
        """Group id of each example (an index into `Dataset.group_names`), int32, -1 where unknown."""
        ...

    @property
    def arrays(self) -> Records | None:
        """What `load` would give for all rows if it lies in memory; None otherwise."""
        ...

    @property
    def regions(self) -> Regions | None:
        """Where cause and shortcut truly are, if planted or annotated."""
        ...

    def __len__(self) -> int: ...

    def load(self, rows: Int[np.ndarray, " b"]) -> Records:
        """The inputs of these rows, each `[b, *feature shape]` with the feature's dtype, and which of them are present."""
        ...


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """A source whose inputs are arrays in memory. `present` may be left out: then every modality of every example is there."""

    inputs: Mapping[str, np.ndarray]
    label: Int[np.ndarray, " n"]
    group: Int[np.ndarray, " n"]
    present: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Per modality [n] bool."""
    regions: Regions | None = None

    def __post_init__(self) -> None:
        everywhere = np.ones(len(self.label), bool)
        object.__setattr__(self, "present", {name: self.present.get(name, everywhere) for name in self.inputs})
        columns = {"group": self.group, **self.inputs, **{f"present of {name}": value for name, value in self.present.items()}}
        for name, value in columns.items():
            if len(value) != len(self.label):
                raise UserError(f"a source has {len(self.label)} labels but {len(value)} rows of {name}; each row needs one of both")

    def __len__(self) -> int:
        return len(self.label)

    @property
    def arrays(self) -> Records:
        return {"inputs": dict(self.inputs), "present": dict(self.present)}

    def load(self, rows: Int[np.ndarray, " b"]) -> Records:
        return {part: {name: value[rows] for name, value in columns.items()} for part, columns in self.arrays.items()}


class Answers(NamedTuple):
    """What ten people answered to each question of a split, where a prediction may be right in part (`metrics.vqa_accuracy`)."""

    classes: Int[np.ndarray, "n ten"]
    """-1: no class."""
    kind: Int[np.ndarray, " n"]
    """Answer type, an index into `kinds`."""
    left_out: Int[np.ndarray, " k"]
    """By kind, the questions that are not in the split because no class is an answer to them: whatever is predicted there is wrong."""
    kinds: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set, ready to be read.

    `splits` has at least "train", "validation" and "test"; with a controlled shortcut also "test_balanced" (the attribute says nothing about the
    label), "test_flipped" (the correlation reversed) and "train_randomised" (the training examples without the correlation: the ceiling's split).
    """

    name: str
    features: Mapping[str, Feature]
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    """The index is the group id."""
    splits: Mapping[str, Source]
    notes: str = ""
    """Source and licence, in one line."""
    synonyms: tuple[tuple[str, ...], ...] = ()
    """Groups of interchangeable words, for perturbed views of texts."""
    attribute_names: tuple[str, ...] = ()
    """Of the spurious attribute's values, in words as they stand in the texts, where the groups are label x attribute."""
    group_attribute: tuple[int, ...] = ()
    """Attribute of each group id; left out: group = label * len(attribute_names) + attribute."""
    skipped: tuple[str, ...] = ()
    """Rows of the data set's files that could not be used and were left out: where each stands, and why."""
    answers: Mapping[str, Answers] = dataclasses.field(default_factory=dict)
    """By split, where people's answers differ. Whoever changes the rows of a split leaves it out."""
    keys: Mapping[str, Int[np.ndarray, " n"]] = dataclasses.field(default_factory=dict)
    """By split a number for each row. Rows of two splits with the same one are versions of the same example; splits that are no version of any other
    have none."""

    def __post_init__(self) -> None:
        if self.attribute_names and not self.group_attribute:
            object.__setattr__(self, "group_attribute", tuple(range(len(self.attribute_names))) * len(self.class_names))
        if self.group_attribute and len(self.group_attribute) != len(self.group_names):
            raise UserError(f"data set {self.name!r} has {len(self.group_names)} groups but {len(self.group_attribute)} attributes of groups")

    def split(self, name: str) -> Source:
        """The split of that name.

        Raises:
          UserError: the data set has none.
        """
        if name not in self.splits:
            raise UserError(f"data set {self.name!r} has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]


def class_counts(source: Source, num_classes: int) -> tuple[int, ...]:
    """Examples of each class."""
    return tuple(np.bincount(source.label, minlength=num_classes).tolist())


def group_counts(source: Source, num_groups: int) -> tuple[int, ...]:
    """Examples of each group; those of unknown group (-1) are not counted."""
    return tuple(np.bincount(source.group[source.group >= 0], minlength=num_groups).tolist())


def summary(dataset: Dataset) -> dict[str, Any]:
    """What a data set holds, in plain values: {"name", "notes", "skipped", "splits": {split: {"rows", "classes", "groups"}}}; the last two are counts
    by name, and "unknown" is the group of rows that have none."""
    splits = {}
    for name, source in dataset.splits.items():
        classes = dict(zip(dataset.class_names, class_counts(source, len(dataset.class_names)), strict=True))
        groups = dict(zip(dataset.group_names, group_counts(source, len(dataset.group_names)), strict=True))
        unknown = int((source.group < 0).sum())
        splits[name] = {"rows": len(source), "classes": classes, "groups": groups | ({"unknown": unknown} if unknown and groups else {})}
    return {"name": dataset.name, "notes": dataset.notes, "skipped": list(dataset.skipped), "splits": splits}
