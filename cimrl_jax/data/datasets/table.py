"""Your own table: a row an example, columns of picture files, texts, recordings, numbers, and the label. CSV, TSV, JSONL (also .gz) or Parquet.

`data.path` is the file. Which columns are inputs must be said (image_columns, text_columns, audio_columns, number_columns); each is a modality of the
column's name, the numbers together are one, "numbers". Names of files are relative to the table's folder, or to data.root, and may not leave it.
An empty cell means that the row lacks that modality; a row that lacks all of them cannot be used.

The label is a word or a whole number; the classes are those of the training rows. Groups are label x attribute_columns (several are crossed), or
the values of group_column, and unknown where a cell is empty.

Splits are what split_column says: train (or training, 0), validation (or val, valid, dev, 1), test (or testing, 2). Without it, and for validation or
test if no row says them, rows are drawn, alike in label and group; with split_by all rows of a patient, say, are in one split. With attributes there
are also train_randomised (every training row, some many times, so that the attribute says nothing) and test_balanced (test rows left out to that
end), if every label comes with every attribute.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Int

from cimrl_jax.data import balancing, cells, listing, planting, recordings, resampling, tables
from cimrl_jax.data.cells import Cells
from cimrl_jax.data.columns import TAKEN
from cimrl_jax.data.listing import Listing
from cimrl_jax.data.source import Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.options import Range, make_options
from cimrl_jax.types import Expected

WHERE = "data set 'table'"
CLASSES = 1000
"""More classes than these are taken for something else."""
NUMBERS = "numbers"
Columns = tuple[str, ...]
Share = Annotated[float, Range(above=0, below=1)]


@dataclasses.dataclass(frozen=True)
class Options(listing.Options):
    image_columns: Columns = ()
    """Columns that name a picture file; each is a modality."""
    text_columns: Columns = ()
    """Columns that hold a text; each is a modality."""
    audio_columns: Columns = ()
    """Columns that name a recording, WAV or FLAC; each is a modality."""
    number_columns: Columns = ()
    """Columns that hold a number; together they are the modality "numbers". A cell without one is unknown."""
    label_column: str = "label"
    """The column that says the class."""
    attribute_columns: Columns = ()
    """Columns that say the spurious attribute: groups are label x attribute; the values of several columns are crossed."""
    group_column: str = ""
    """A column that names the group, in the place of attribute_columns; the rows of a group have one label."""
    split_column: str = ""
    """The column that says the split; empty: splits are drawn."""
    validation: Share = 0.1
    """Share of the rows that are drawn for validation where no column says them."""
    test: Share = 0.2
    """Share of the rows that are drawn for test where no column says them."""
    split_by: str = ""
    """A column, such as the patient's, whose equal values are never in two splits."""
    id_column: str = ""
    """A column whose values must differ from row to row."""
    cause_boxes: str = ""
    """A column that says where in the first picture the cause lies: a JSON list of [left, top, width, height], shares of its width and height."""
    shortcut_boxes: str = ""
    """Likewise for the shortcut."""
    absent: bool = True
    """Whether a cell of an input may be empty, which means that the row lacks that modality (or number)."""
    root: str = ""
    """The folder that the names of files are relative to; empty: that of the table. / for names that begin with it."""
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet"] = "auto"
    """What the table is; auto: what its suffix says."""
    encoding: str = "utf-8"
    """Of CSV, TSV and JSONL: utf-8, latin-1, cp1252, utf-16, ..."""
    separator: str = ""
    """The character between cells of a CSV or TSV, such as ";"; empty: the comma, and the tab."""
    channels: Literal[1, 3] = 3
    """Pictures in grey or in colour. A pretrained encoder's own take its place."""
    flip: bool = True
    """Whether a mirrored picture means the same."""
    recording: recordings.Options = recordings.Options()
    """How recordings are heard."""


def build(options: Options, *, path: pathlib.Path | None = None, expected: Mapping[str, Expected] | None = None) -> Dataset:
    """The data set: a modality for each column of inputs, and "numbers". `expected`: what the pretrained encoders of these read.

    Raises:
      UserError: a bad option, a file that is missing or no table, a column that is not there, a bad row, or a split without rows.
    """
    options = make_options(Options, dataclasses.asdict(options), "data")
    if path is None:
        raise UserError(f"{WHERE}: it reads a file; set data.path to a .csv, .tsv, .jsonl or .parquet (`--help table` says what it holds)")
    return listing.assemble(read(options, path), options, expected=expected)


def read(options: Options, path: pathlib.Path) -> Listing:
    """The table's rows, before any picture or recording is read.

    Raises:
      UserError: as `build`.
    """
    root = pathlib.Path(options.root or path.parent).absolute()
    if not root.is_dir():
        raise UserError(f"{WHERE}: data.root is {options.root!r}, which is no folder; expected the one that the names of files are relative to")
    modalities = _modalities(options, path, root)
    held = Cells(_table(options, path, _columns(options)))
    columns = _inputs(options, held, modalities, root)
    label = held.read(options.label_column, cells.as_label)
    groups = options.attribute_columns or (options.group_column,) * bool(options.group_column)
    attribute = list(zip(*(held.read(column, cells.as_word) for column in groups), strict=True)) or [("",)] * len(label)
    official = held.read(options.split_column, cells.as_split) if options.split_column else None
    units = held.read(options.split_by, cells.as_mark) if options.split_by else None
    ids = held.read(options.id_column, cells.as_mark) if options.id_column else ()

    sound = np.array([row for row in range(len(label)) if row not in held.faults], np.int64)
    _expect_classes([label[row] for row in sound.tolist()], options, held)
    stratum = _codes((label[row], *attribute[row]) for row in sound.tolist())
    splits, drawn = _splits(options, held, sound, stratum, official, units)
    classes = tuple(cells.in_order({label[row] for row in splits["train"].tolist()}))
    code = {word: number for number, word in enumerate(classes)}
    for row in sound.tolist():
        if label[row] not in code:
            held.blame(row, "unknown label", f"no row of the training split has the label {label[row]!r}")
    known = [row for row in sound.tolist() if row not in held.faults and "" not in attribute[row]]
    renamed = [f"column {column!r} is the modality {name}" for column, name in modalities.items() if name not in (column, NUMBERS)]
    found = Listing(
        name="table",
        columns=columns,
        label=np.array([code.get(word, 0) for word in label], np.int32),
        class_names=classes,
        splits=splits,
        origins=held.table.origins,
        notes="; ".join([f"your own table {path.name}", *renamed, *drawn]),
        ids=ids,
        faults=tuple(held.faults[row] for row in sorted(held.faults)),
        **_groups(options, label, attribute, code, known, held),
    )
    return balancing.add(found, options) if options.attribute_columns else found


def _modalities(options: Options, path: pathlib.Path, root: pathlib.Path) -> dict[str, str]:
    """The modality of each column of inputs.

    Raises:
      UserError: there is none, or a column is named for two things that exclude one another.
    """
    inputs = [*options.image_columns, *options.text_columns, *options.audio_columns, *options.number_columns]
    if not inputs:
        table = _table(options, path, None, most=100)
        names = ", ".join(map(repr, table.columns[:30])) + (", ..." if len(table.columns) > 30 else "")
        guessed = cells.guess(table, root=root)
        those = " ".join(f"--data.{kind}-column{'s' * (kind != 'label')} {','.join(columns)}" for kind, columns in guessed.items())
        raise UserError(f"{WHERE}: name the columns that are inputs; {path} has {names}{f'; by what they hold: {those}' * bool(those)}")
    if not options.label_column or "" in (*inputs, *options.attribute_columns):
        raise UserError(f"{WHERE}: a column is named by an empty text; name the column, or leave the entry out")
    twice = [column for column, count in collections.Counter(inputs).items() if count > 1]
    if twice:
        raise UserError(f"{WHERE}: column {twice[0]!r} is named as input twice; name it in one of image, text, audio and number_columns")
    if options.label_column in inputs:
        raise UserError(f"{WHERE}: column {options.label_column!r} is the label and an input too, which would tell it; leave it out of the inputs")
    told = next((column for column in (options.group_column, options.split_column) if column and column in inputs), None)
    if told:
        raise UserError(f"{WHERE}: column {told!r} is the group or the split and an input too, which may tell the label; leave it out of the inputs")
    if options.label_column in options.attribute_columns:
        raise UserError(f"{WHERE}: column {options.label_column!r} is the label and an attribute too; leave it out of data.attribute_columns")
    if options.group_column and options.attribute_columns:
        raise UserError(f"{WHERE}: data.group_column and data.attribute_columns both say the groups; give one of them")
    if (options.cause_boxes or options.shortcut_boxes) and not options.image_columns:
        raise UserError(f"{WHERE}: boxes are of the first picture, but data.image_columns names none; name it, or leave the boxes out")
    if options.validation + options.test >= 1:
        raise UserError(f"{WHERE}: data.validation and data.test are {options.validation:g} and {options.test:g}, which leaves nothing to train on")
    names = {column: NUMBERS for column in options.number_columns}
    for column in (column for column in inputs if column not in names):
        name = re.sub(r"\W", "_", column)
        name = name if name.isidentifier() and not any(name in taken for taken in TAKEN) else f"column_{name}"
        while name in names.values():
            name += "_"
        names[column] = name
    return names


def _columns(options: Options) -> dict[str, str]:
    """The columns that are read, and the option that names each."""
    fields = [field for field in dataclasses.fields(options) if field.name.endswith(("_column", "_columns", "_boxes")) or field.name == "split_by"]
    named = [(getattr(options, field.name), f"data.{field.name}") for field in fields]
    return {column: option for value, option in named for column in (value if isinstance(value, tuple) else (value,)) if column}


def _table(options: Options, path: pathlib.Path, columns: Mapping[str, str] | None, most: int | None = None) -> tables.Table:
    chosen: dict[str, Any] = {name: getattr(options, name) for name in ("format", "encoding", "separator")}
    return tables.read(path, columns, **chosen, nested=(options.cause_boxes, options.shortcut_boxes), most=most, where=WHERE)


def _inputs(options: Options, held: Cells, modalities: Mapping[str, str], root: pathlib.Path) -> dict[str, listing.Column]:
    """The modalities' columns."""

    def given(column: str, convert: Callable[[Any], Any]) -> list[Any]:
        found = held.read(column, convert, None)
        if not options.absent:
            for row, value in enumerate(found):
                if value is None or value != value:
                    held.blame(row, "empty cell", f"column {column!r}: each row needs one; --data.absent yes lets rows lack it")
        return found

    def files(column: str) -> cells.Files:
        return cells.Files(root, given(column, functools.partial(cells.as_file, root=root)))

    columns: dict[str, listing.Column] = {}
    for column in options.image_columns:
        named = {"cause": options.cause_boxes, "shortcut": options.shortcut_boxes} if column == options.image_columns[0] else {}
        boxes = {target: held.read(boxed, cells.as_boxes, ()) for target, boxed in named.items() if boxed}
        columns[modalities[column]] = listing.Pictures(files(column), channels=options.channels, flip=options.flip, boxes=boxes)
    for column in options.text_columns:
        columns[modalities[column]] = listing.Texts(given(column, lambda cell: cells.as_text(cell) or None))
    for column in options.audio_columns:
        columns[modalities[column]] = listing.Recordings(files(column), options.recording)
    if options.number_columns:
        values = [given(column, cells.as_number) for column in options.number_columns]
        table = np.array([[math.nan if number is None else number for number in own] for own in values], np.float32).T
        columns[NUMBERS] = listing.Numbers(table, options.number_columns)
    return columns


def _expect_classes(labels: list[str], options: Options, held: Cells) -> None:
    where, found = f"{WHERE}: column {options.label_column!r}", set(labels)
    parts = [word for word in found if not re.fullmatch(r"[-+]?\d+", word)]
    if parts and all(cells.NUMBER.fullmatch(word) for word in found):
        raise UserError(f"{where} holds numbers such as {min(parts)}; expected classes: words or whole numbers (cut the range into a few parts)")
    if len(found) > CLASSES:
        raise UserError(f"{where} has {len(found)} different values in {len(labels)} rows; expected at most {CLASSES} classes: name another column")
    if not labels:
        raise UserError(f"{WHERE}: {held.first.removeprefix('; ')}")
    if len(found) < 2:
        raise UserError(f"{where} says {cells.show(labels[0])} in every row; expected at least 2 classes{held.first}")


def _codes(keys: Iterable[Any]) -> Int[np.ndarray, " n"]:
    """A number for each key, the same for equal ones."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(repr(key), len(seen)) for key in keys], np.int64)


def _splits(
    options: Options,
    held: Cells,
    sound: Int[np.ndarray, " n"],
    stratum: Int[np.ndarray, " n"],
    official: list[str] | None,
    units: list[str] | None,
) -> tuple[dict[str, Int[np.ndarray, " k"]], list[str]]:
    """(rows of train, validation and test, what was drawn). `stratum`: of the rows `sound`, which are those that are dealt."""
    split = np.array(["train" if official is None else official[row] for row in sound], "<U10")
    lacking = [name for name in ("test", "validation") if not (split == name).any()]
    left = np.flatnonzero(split == "train")
    together = units or _pictures(options, held)
    unit = _codes(together[row] for row in sound[left]) if together else np.arange(len(left))
    shares = {name: getattr(options, name) for name in lacking}
    dealt = resampling.deal(unit, stratum[left], tuple(shares.values()), planting.generator(options.data_seed, "splits"))
    for place, name in enumerate(lacking):
        split[left[dealt == place]] = name
    if units and official:
        # Whoever is in test, or else in validation, is not trained on.
        rank = {name: place for place, name in enumerate(cells.SPLITS)}
        last: dict[str, str] = {}
        for row, name in zip(sound.tolist(), split.tolist(), strict=True):
            last[units[row]] = max(name, last.get(units[row], name), key=rank.__getitem__)
        for row, name in zip(sound.tolist(), split.tolist(), strict=True):
            if name != last[units[row]]:
                detail = f"{options.split_by} {cells.show(units[row])} is in {name} here and in {last[units[row]]} elsewhere"
                held.blame(row, "in two splits", detail)
    found = {name: np.array([row for row in sound[split == name].tolist() if row not in held.faults], np.int64) for name in cells.SPLITS}
    for name, rows in found.items():
        if not len(rows):
            what = f"drawing {shares[name]:g} of {len(left)} rows" if name in shares else f"column {options.split_column!r}"
            raise UserError(f"{WHERE}: {what} leaves {name} without a row; give more rows or other shares{held.first}")
    by = f" by {options.split_by}" if options.split_by else ""
    return found, [f"{' and '.join(lacking)} drawn from {'the rows' if official is None else 'train'}{by}"] if lacking else []


def _pictures(options: Options, held: Cells) -> list[Any] | None:
    """What the rows of a picture have in common: its file; of a row without one, the row. A picture that is in two splits would be known in test."""
    if not options.image_columns:
        return None
    return [str(own) if own else row for row, own in enumerate(held.table.cells[options.image_columns[0]])]


def _groups(
    options: Options, label: list[str], attribute: list[tuple[str, ...]], code: Mapping[str, int], rows: list[int], held: Cells
) -> dict[str, Any]:
    """What a `Listing` says of groups. `rows`: those whose group is known."""
    values = {attribute[row] for row in rows}
    if not values:
        return {}
    if len(values) > CLASSES:
        option = "data.attribute_columns" if options.attribute_columns else "data.group_column"
        raise UserError(f"{WHERE}: {option} has {len(values)} different values; expected at most {CLASSES}: name another, or cut it into parts")
    order = [cells.in_order(set(column)) for column in zip(*values, strict=True)]
    values = sorted(values, key=lambda value: [own.index(word) for own, word in zip(order, value, strict=True)])
    number = {value: place for place, value in enumerate(values)}
    group = np.full(len(label), -1, np.int32)
    group[rows] = [number[attribute[row]] for row in rows]
    if options.attribute_columns:
        names = tuple(", ".join(value) for value in values)
        group[rows] += len(values) * np.array([code[label[row]] for row in rows], np.int32)
        return {"group": group, "group_names": planting.group_names(tuple(code), names), "attribute_names": names}
    first: dict[tuple[str, ...], int] = {}
    for row in rows:
        other = first.setdefault(attribute[row], row)
        if label[other] != label[row]:
            where = f"{label[other]!r} ({held.table.origins[other]}) and {label[row]!r} ({held.table.origins[row]})"
            name = cells.show(attribute[row][0])
            raise UserError(
                f"{WHERE}: group {name} of column {options.group_column!r} has the labels {where}; expected one: is it data.attribute_columns?"
            )
    return {"group": group, "group_names": tuple(name for (name,) in values)}
