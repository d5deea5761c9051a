"""The examples of a data set that lies in files: rows that name pictures, recordings and texts, before any is read.

A data set's own file says how its official layout becomes a `Listing`. Everything after that is here, once: rows are examined, bad ones refused or
left out, texts become ids, pictures and recordings are read, in memory where they fit and otherwise as they are asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped

from cimrl_jax.data import columns
from cimrl_jax.data.columns import Box, Column, Masks, Media, Numbers, Pictures, Recordings, Texts, Values, files_of, in_parallel, present_in
from cimrl_jax.data.source import Answers, Dataset, Records, Regions
from cimrl_jax.errors import UserError
from cimrl_jax.options import Range
from cimrl_jax.types import Expected, Feature

__all__ = ["Box", "Column", "Fault", "Files", "Lines", "Listing", "Numbers", "Options", "Pictures", "Recordings", "Texts"]
__all__ += ["assemble", "examine", "inside", "short_of_published"]

HELD_BYTES = 2 << 30
"""Pictures and recordings of a modality up to this size are read at once and held in memory."""
OFFICIAL = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Options:
    """What every data set that reads files can be told: its own `Options` inherit these."""

    size: Annotated[int, Range(low=8)] = 64
    """Height and width of pictures: cropped about the centre to a square, then resized. A pretrained encoder's own size takes its place, likewise its
    channels, mean and standard deviation."""
    length: Annotated[int, Range(low=0)] = 0
    """Words of a text; longer ones are cut. 0: as many as 99 of 100 training texts have, rounded up to a multiple of 8. With a pretrained encoder up
    to twice as many pieces of words."""
    vocabulary: Annotated[int, Range(low=3)] = 20000
    """Most words in the vocabulary of a text, the frequent ones; others are unknown. Of no effect with a pretrained encoder."""
    on_bad_row: Literal["fail", "skip"] = "fail"
    """What becomes of a row that cannot be used (a missing or undecodable file, an empty text, an unknown label, an id that was there before): the
    run ends and names it, or it is left out, counted and listed in the report."""
    data_seed: Annotated[int, Range(low=0)] = 0
    """Draws whatever is drawn: splits that the data set does not come with, and which rows are left out to balance one."""


class Fault(NamedTuple):
    """Why a row cannot be used."""

    row: int
    kind: str
    """In few words, the same for all faults of the kind: "missing file", "undecodable picture", "empty text", "unknown label", "duplicate id"."""
    detail: str
    """What exactly: the file, the value, what was expected."""


class Said(NamedTuple):
    """What ten people answered to the question of each row: see `source.Answers`."""

    classes: Int[np.ndarray, "n ten"]
    kind: Int[np.ndarray, " n"]
    kinds: tuple[str, ...]
    left_out: Mapping[str, Int[np.ndarray, " k"]]
    """By split, how many questions of each kind are in no split since no class is an answer to them."""


@dataclasses.dataclass(frozen=True)
class Listing:
    name: str
    columns: Mapping[str, Column]
    """By modality; all have the same rows."""
    label: Int[np.ndarray, " n"]
    class_names: tuple[str, ...]
    splits: Mapping[str, Int[np.ndarray, " k"]]
    """Rows of each split. What a split's name begins with, up to a "_", is where its rows come from: "train", "validation" or "test"."""
    origins: Sequence[str]
    """Where each row is written, for messages: "metadata.csv, line 12"."""
    notes: str
    """Source and licence, in one line."""
    ids: Sequence[str] = ()
    """Of each row, if they are to differ."""
    group: Int[np.ndarray, " n"] | None = None
    """-1 where unknown; None: nowhere known."""
    group_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()
    group_attribute: tuple[int, ...] = ()
    synonyms: tuple[tuple[str, ...], ...] = ()
    faults: tuple[Fault, ...] = ()
    """What was found while the rows were read. Such a row may have any label."""
    said: Said | None = None
    published: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    """split -> group name (or "rows") -> how many there are as published. A subset has fewer, which is said; more is an error."""


class Lines(Sequence[str]):
    """`origins` of rows that stand one a line: "metadata.csv, line 12" for the 12th, made when asked for."""

    def __init__(self, name: str, numbers: Sequence[int]) -> None:
        self.name, self.numbers = name, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: Any) -> Any:
        return f"{self.name}, line {self.numbers[row]}"


def inside(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """`folder / name`, or None if that is outside of `folder`: names in files must not climb out of their data set."""
    if "\0" not in name and not {"/", os.sep} & set(name) and name not in ("", ".", ".."):
        return folder / name  # most are, and this is quick
    base, whole = os.path.abspath(folder), os.path.abspath(folder / name)
    return folder / os.path.relpath(whole, base) if whole.startswith(os.path.join(base, "")) and "\0" not in name else None


def examine(listing: Listing, *, deep: bool = False, progress: Callable[[int, int], Any] | None = None) -> list[Fault]:
    """All faults, by row: those that `listing` comes with, and of the rows that some split has files that are missing, empty texts, ids that were
    there before, and rows of which no modality is there.

    Nothing is read unless `deep`: then every picture and every recording is decoded, and a picture is found that rows of two of train, validation and
    test share (by the file's content; the row that is told of it is the one in train, else the one in validation).

    Args:
      progress: called with (files that were decoded, all of them).
    """
    rows = _used(listing)
    found = [*listing.faults, *_repeated_ids(listing, rows)]
    there = np.zeros(len(listing.label), bool)
    for name, column in listing.columns.items():
        there |= present_in(column)
        if isinstance(column, Texts):
            empty = [
                row for row in rows.tolist() if (text := column.texts[row]) is not None and not (text.strip() if isinstance(text, str) else text)
            ]
            found += [Fault(row, "empty text", f"{name} has no word") for row in empty]
        elif isinstance(column, Pictures | Recordings):
            missing = {file: f"there is no {file}" for file in files_of(column, rows) if not _is_file(file)}
            found += _of_files(column, rows, "missing file", missing)
    found += [Fault(row, "empty row", f"none of {', '.join(listing.columns)} is there") for row in rows[~there[rows]].tolist()]
    if deep:
        found += _decode(listing, rows, progress or (lambda done, total: None))
    return sorted(dict.fromkeys(found), key=lambda fault: fault.row)


def assemble(listing: Listing, options: Options, *, expected: Mapping[str, Expected] | None = None, held: int = HELD_BYTES) -> Dataset:
    """The data set. Rows with faults are refused or left out, as `options.on_bad_row` says; what is left out is in `Dataset.skipped`.

    Args:
      expected: what the pretrained encoders of these modalities read.
      held: pictures and recordings of a modality are read at once and held in memory if all of them have at most so many bytes; others are read as
        they are asked for.

    Raises:
      UserError: a bad row with on_bad_row=fail, a split that is left without rows, or more rows than were published.
    """
    where = f"data set {listing.name!r}"
    notes = [listing.notes, *short_of_published(listing, where)]
    listing, skipped = _settled(listing, examine(listing), options, where)
    wanted = expected or {}
    media = {
        name: columns.media(own, size=options.size, expected=wanted.get(name))
        for name, own in listing.columns.items()
        if isinstance(own, Pictures | Recordings)
    }
    values: dict[str, Values] = {}
    for name, own in media.items():
        files = files_of(own.column, _used(listing))
        if len(files) * own.row_bytes <= held:
            values[name], damaged = columns.read(own, files, len(listing.label))
            listing, more = _settled(listing, _of_files(own.column, _used(listing), own.damage, damaged), options, where)
            skipped += more
    used, train = _used(listing), listing.splits["train"]
    features: dict[str, Feature] = {}
    for name, column in listing.columns.items():
        match column:
            case Texts():
                limits = {"length": options.length, "size": options.vocabulary}
                features[name], values[name] = columns.text(column, used, train, **limits, expected=wanted.get(name))
            case Numbers():
                features[name], values[name] = columns.table(column, train)
            case Pictures() | Recordings():
                features[name], values[name] = columns.normalised(media[name], values.get(name), train)
    absent = {name: int((~own.present[used]).sum()) for name, own in values.items()}
    group = np.full(len(listing.label), -1) if listing.group is None else listing.group
    return Dataset(
        name=listing.name,
        features=features,
        class_names=listing.class_names,
        group_names=listing.group_names,
        attribute_names=listing.attribute_names,
        group_attribute=listing.group_attribute,
        splits={
            name: Files(rows, listing.label[rows].astype(np.int32), group[rows].astype(np.int32), values) for name, rows in listing.splits.items()
        },
        synonyms=listing.synonyms,
        notes="; ".join([*notes, *(f"{name} is absent in {count} of {len(used)} rows" for name, count in absent.items() if count)]),
        skipped=tuple(skipped),
        answers=_answers(listing),
    )


def _answers(listing: Listing) -> dict[str, Answers]:
    said = listing.said
    if said is None:
        return {}
    return {name: Answers(said.classes[rows], said.kind[rows], said.left_out[name], said.kinds) for name, rows in listing.splits.items()}


@dataclasses.dataclass(frozen=True)
class Files:
    """The source of a split: rows of a listing."""

    rows: Int[np.ndarray, " n"]
    label: Int[np.ndarray, " n"]
    group: Int[np.ndarray, " n"]
    values: Mapping[str, Values]
    """Of all rows of the listing."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def arrays(self) -> Records | None:
        return self._everything

    @functools.cached_property
    def _everything(self) -> Records | None:
        held = [values.held_bytes for values in self.values.values()]
        small = all(size is not None for size in held) and len(self) * sum(size or 0 for size in held) <= HELD_BYTES
        return self.load(np.arange(len(self))) if small else None

    @property
    def regions(self) -> Regions | None:
        found: dict[str, dict[str, _Region]] = {}
        for name, values in self.values.items():
            for target, (shape, masks) in values.masks.items():
                found.setdefault(target, {})[name] = _Region(self.rows, shape, masks)
        return found or None

    def load(self, rows: Int[np.ndarray, " b"]) -> Records:
        own = self.rows[rows]
        return {
            "inputs": {name: values.load(own) for name, values in self.values.items()},
            "present": {name: values.present[own] for name, values in self.values.items()},
        }

    def column(self, modality: str, rows: Int[np.ndarray, " b"]) -> tuple[Shaped[np.ndarray, "b ..."], Bool[np.ndarray, " b"]]:
        """`load` of one modality: see `distinct.Keyed`, likewise below."""
        own, values = self.rows[rows], self.values[modality]
        return values.load(own), values.present[own]

    def keys(self, modality: str) -> tuple[Shaped[np.ndarray, " n"], Bool[np.ndarray, " n"]] | None:
        values = self.values[modality]
        return None if values.keys is None else (values.keys(self.rows), values.present[self.rows])


@dataclasses.dataclass(frozen=True)
class _Region:
    """Masks that are made as they are asked for: a `source.Mask`."""

    rows: Int[np.ndarray, " n"]
    row_shape: tuple[int, ...]
    masks: Masks
    dtype: np.dtype = np.dtype(bool)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.rows), *self.row_shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> Bool[np.ndarray, "b ..."]:
        return self.masks(self.rows[rows])


def _used(listing: Listing) -> Int[np.ndarray, " k"]:
    """The rows that some split has."""
    return np.unique(np.concatenate([np.zeros(0, np.int64), *listing.splits.values()])).astype(np.int64)


def _is_file(file: Any) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name that is too long, a folder that must not be looked into
        return False


def _of_files(column: Pictures | Recordings, rows: Int[np.ndarray, " k"], kind: str, reasons: Mapping[Any, str]) -> list[Fault]:
    return [Fault(row, kind, reasons[file]) for row in rows.tolist() if (file := column.files[row]) in reasons] if reasons else []


def _repeated_ids(listing: Listing, rows: Int[np.ndarray, " k"]) -> list[Fault]:
    first: dict[str, int] = {}
    found = [(row, first.setdefault(str(listing.ids[row]), row)) for row in rows.tolist()] if len(listing.ids) else []
    return [Fault(row, "duplicate id", f"{listing.ids[row]!r} is that of {listing.origins[other]} too") for row, other in found if row != other]


def _decode(listing: Listing, rows: Int[np.ndarray, " k"], progress: Callable[[int, int], Any]) -> list[Fault]:
    """Faults that only show when files are read."""
    media = [(name, columns.media(own, size=32)) for name, own in listing.columns.items() if isinstance(own, Pictures | Recordings)]
    work = [(own, file) for _, own in media for file in files_of(own.column, rows) if _is_file(file)]
    digests: dict[tuple[int, Any], bytes] = {}
    damaged: dict[int, dict[Any, str]] = {id(own): {} for _, own in media}

    def look(item: tuple[Media, Any]) -> tuple[bytes, str]:
        own, file = item
        try:
            own.read(file)
            return hashlib.blake2b(file.read_bytes(), digest_size=16).digest(), ""
        except (UserError, OSError) as error:
            return b"", str(error)

    for done, ((own, file), (digest, reason)) in enumerate(zip(work, in_parallel(look, work), strict=True), 1):
        if reason:
            damaged[id(own)][file] = reason
        else:
            digests[id(own), file] = digest
        progress(done, len(work))
    found = [fault for _, own in media for fault in _of_files(own.column, rows, own.damage, damaged[id(own)])]
    official = np.full(len(listing.label), -1)
    for name, part in listing.splits.items():
        if name.partition("_")[0] in OFFICIAL:
            official[part] = OFFICIAL.index(name.partition("_")[0])
    for name, own in media:
        if isinstance(own.column, Pictures) and not own.column.shared:
            digest = {row: digests[id(own), file] for row in rows.tolist() if (id(own), file := own.column.files[row]) in digests}
            last: dict[bytes, int] = {}
            for row, content in digest.items():
                last[content] = max(last.get(content, row), row, key=lambda row: official[row])
            for row, content in digest.items():
                if official[row] < official[last[content]]:
                    other = last[content]
                    what = f"{name} is the same picture as that of {listing.origins[other]}, which is in {OFFICIAL[official[other]]}"
                    found.append(Fault(row, "picture in two splits", what))
    return found


def _settled(listing: Listing, faults: list[Fault], options: Options, where: str) -> tuple[Listing, list[str]]:
    """(the listing without the rows that have faults, a line for each of these).

    Raises:
      UserError: there are some with on_bad_row=fail, or a split is left without rows.
    """
    if faults and options.on_bad_row == "fail":
        row, kind, detail = faults[0]
        more = f" (and {len(faults) - 1} more bad rows)" if len(faults) > 1 else ""
        raise UserError(f"{where}: {listing.origins[row]}: {kind}: {detail}{more}; mend it, or set --data.on-bad-row skip to leave such rows out")
    bad = np.array(sorted({fault.row for fault in faults}), np.int64)
    splits = {name: rows[~np.isin(rows, bad)] for name, rows in listing.splits.items()} if len(bad) else dict(listing.splits)
    for name, rows in splits.items():
        if not len(rows):
            left = f"all {len(listing.splits[name])} rows of {name} are bad, the first: {faults[0].detail}" if faults else f"{name} has no row"
            raise UserError(f"{where}: {left}; expected at least one row in every split")
    return dataclasses.replace(listing, splits=splits, faults=()), [f"{listing.origins[row]}: {kind}: {detail}" for row, kind, detail in faults]


def short_of_published(listing: Listing, where: str) -> list[str]:
    """What the splits lack of what was published, a phrase each.

    Raises:
      UserError: they have more.
    """
    found = []
    for split, counts in listing.published.items():
        rows = listing.splits.get(split, np.zeros(0, np.int64))
        group = np.full(len(rows), -1) if listing.group is None else listing.group[rows]
        for name, count in counts.items():
            have = len(rows) if name == "rows" else int((group == listing.group_names.index(name)).sum())
            what = f"{split} has {have} {'rows' if name == 'rows' else f'rows of {name!r}'} of {count} as published"
            if have > count:
                raise UserError(f"{where}: {what}; the files are not those that were distributed: fetch them again")
            if have < count:
                found.append(what)
    return found
