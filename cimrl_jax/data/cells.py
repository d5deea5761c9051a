"""What the cells of a table hold: a text, a word that names a class, a number, a file, boxes. A cell that holds something else is its row's fault."""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cimrl_jax.data import listing, tables
from cimrl_jax.data.listing import Box, Fault

SPLITS = {
    "train": ("train", "training", "0"),
    "validation": ("validation", "val", "valid", "dev", "1"),
    "test": ("test", "testing", "2"),
}
"""Splits, and how a column may name them."""
UNKNOWN = ("", "nan", "na", "n/a", "null", "none", "-", "?")
"""Cells of a column of numbers that hold none."""
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
WHOLE = re.compile(r"([-+]?\d+)\.0+")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
LABELS = ("label", "labels", "class", "category", "target", "y")


class Wrong(Exception):
    """Why a cell cannot be used: the kind of a `Fault`, and what exactly."""


class Cells:
    """A table's cells as what they should be, and the first fault of each row."""

    def __init__(self, table: tables.Table) -> None:
        self.table = table
        self.faults = {row: Fault(row, *problem) for row, problem in table.problems.items()}

    def blame(self, row: int, kind: str, detail: str) -> None:
        self.faults.setdefault(row, Fault(row, kind, detail))

    def read(self, column: str, convert: Callable[[Any], Any], default: Any = "") -> list[Any]:
        """The column, `default` where a cell is wrong."""
        found = []
        for row, cell in enumerate(self.table.cells[column]):
            try:
                found.append(convert(cell))
            except Wrong as error:
                kind, detail = error.args
                self.blame(row, kind, f"column {column!r}: {detail}")
                found.append(default)
        return found

    @property
    def first(self) -> str:
        """The end of a message: that some rows are left out of what it says."""
        if not self.faults:
            return ""
        row, kind, detail = self.faults[min(self.faults)]
        return f"; {len(self.faults)} of {len(self.table.origins)} rows cannot be used, the first: {self.table.origins[row]}: {kind}: {detail}"


def as_text(cell: Any) -> str:
    """Without blanks around it; "" where there is none."""
    if isinstance(cell, str):
        text = cell
    elif cell is None or isinstance(cell, float) and math.isnan(cell):
        return ""
    elif isinstance(cell, list | dict | tuple | bytes):
        raise Wrong("wrong type", f"expected a text or a number, got {show(cell)}")
    else:
        text = str(int(cell) if isinstance(cell, float) and cell.is_integer() else cell)
    if "\0" in text:
        raise Wrong("damaged text", f"{show(text)} has a NUL character; write the table again")
    if not text.isascii() and tables.SURROGATES.search(text):
        raise Wrong("wrong encoding", f"{show(text)} has bytes that are no text; set --data.encoding latin-1, or what the table was written in")
    return text.strip()


def as_word(cell: Any) -> str:
    """What names a class, an attribute or a split. 1.0, which some programs make of 1 where other cells are empty, is 1."""
    text = as_text(cell)
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text


def as_label(cell: Any) -> str:
    label = as_word(cell)
    if not label:
        raise Wrong("unknown label", "the cell is empty")
    return label


def as_split(cell: Any) -> str:
    """One of `SPLITS`."""
    word = as_word(cell)
    found = [name for name, words in SPLITS.items() if word.lower() in words]
    if not found:
        raise Wrong("unknown split", f"got {show(word)}, expected one of {', '.join(word for words in SPLITS.values() for word in words)}")
    return found[0]


def as_mark(cell: Any) -> str:
    """What tells rows apart, or says that they belong together."""
    word = as_word(cell)
    if not word:
        raise Wrong("empty cell", "each row needs one in this column")
    return word


def as_number(cell: Any) -> float:
    """NaN where there is none."""
    if isinstance(cell, int | float):
        number = math.inf if abs(cell) > 1e300 else float(cell)
    else:
        text = as_text(cell)
        if text.lower() in UNKNOWN:
            return math.nan
        if not NUMBER.fullmatch(text):
            raise Wrong("no number", f"got {show(text)}, expected one such as 1.5")
        number = float(text)
    if abs(number) > 3e38:
        raise Wrong("no number", f"got {show(cell)}, which is too large; give it in another unit")
    return number


def as_file(cell: Any, *, root: pathlib.Path) -> str | None:
    """A name inside of `root`, None where there is none."""
    name = as_text(cell)
    if not name:
        return None
    if "://" in name:
        raise Wrong("web address", f"{show(name)} is no file; fetch it, and name the file")
    if listing.inside(root, name) is None:
        raise Wrong("file elsewhere", f"{show(name)} is not inside {root}; set data.root to a folder that holds all files")
    return name


def as_boxes(cell: Any) -> tuple[Box, ...]:
    """None where the cell is empty."""
    if cell is None or isinstance(cell, str) and not cell.strip():
        return ()
    expected = "expected a list of [left, top, width, height], shares of the picture's width and height"
    try:
        found = [tuple(map(float, box)) for box in (json.loads(cell) if isinstance(cell, str) else cell)]
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise Wrong("wrong box", f"got {show(cell)}, {expected}") from None
    for box in found:
        if len(box) != 4 or not all(0 <= side <= 1 for side in box) or not min(box[2:]) > 0 or max(box[0] + box[2], box[1] + box[3]) > 1.001:
            raise Wrong("wrong box", f"got {show(list(box))}, {expected}, that do not leave it")
    return tuple((left, top, width, height) for left, top, width, height in found)


def show(value: Any) -> str:
    """For messages: on one line, and short."""
    text = f"{len(value)} bytes" if isinstance(value, bytes) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Files(Sequence[pathlib.Path | None]):
    """Files by their names in a folder, made when asked for: a million paths are large."""

    def __init__(self, root: pathlib.Path, names: list[str | None]) -> None:
        self.root, self.names = root, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: Any) -> Any:
        name = self.names[row]
        return None if name is None else self.root / name


def in_order(words: Iterable[str]) -> list[str]:
    """Sorted as numbers if they all are, else as words."""
    words = sorted(words)
    return sorted(words, key=float) if all(NUMBER.fullmatch(word) for word in words) else words


def guess(table: tables.Table, *, root: pathlib.Path) -> dict[str, list[str]]:
    """What the columns seem to be: {"image", "text", "audio", "number" or "label": columns}. Files count if they are there."""
    found: dict[str, list[str]] = {"image": [], "text": [], "audio": [], "number": [], "label": []}
    for column, own in table.cells.items():
        texts = [str(cell).strip() for cell in own if isinstance(cell, str | int | float) and str(cell).strip()]
        for kind, suffixes in (("image", PICTURES), ("audio", SOUNDS)):
            named = [text for text in texts if text.lower().endswith(suffixes) and listing.inside(root, text)]
            if sum(os.path.isfile(root / name) for name in named) > len(texts) / 2:
                found[kind].append(column)
        if column.lower() in LABELS:
            found["label"].append(column)
        elif texts and sum(len(text.split()) for text in texts) >= 3 * len(texts) and not all(text.startswith("[") for text in texts):
            found["text"].append(column)
        elif texts and all(NUMBER.fullmatch(text) for text in texts) and not all(text.isdecimal() for text in texts):
            found["number"].append(column)
    return {kind: columns[:1] if kind == "label" else columns for kind, columns in found.items() if columns}
