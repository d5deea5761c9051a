"""Tables that anyone may have made: CSV, TSV, JSONL (each also gzipped) and Parquet, read row by row into the cells of the columns asked for.

What is wrong with a row is that row's problem, and the rows after it are read; what is wrong with the file as a whole is an error.
"""

from __future__ import annotations

import array
import contextlib
import csv
import gzip
import io
import json
import os
import pathlib
import re
import zlib
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from cimrl_jax.data.listing import Lines
from cimrl_jax.errors import UserError, nearest

Format = Literal["csv", "tsv", "jsonl", "parquet"]
SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
CELL = 1 << 24
"""Characters of a cell beyond which a quote must have been left open."""
BATCH = 1 << 14
"""Rows of a Parquet file that are read at a time."""
SURROGATES = re.compile("[\ud800-\udfff]")
"""What stands for bytes that are not of the encoding, and is no character in JSON either."""


class Problem(NamedTuple):
    """What is wrong with a row: `listing.Fault` without its number."""

    kind: str
    detail: str


class Table(NamedTuple):
    columns: tuple[str, ...]
    """All names, in the file's order."""
    cells: dict[str, list[Any]]
    """Of the columns that were asked for: texts, numbers, true, false, None (no cell), of JSONL and Parquet also dates, lists and dicts."""
    origins: Lines
    problems: dict[int, Problem]
    """By row, those that could not be read. All their cells are None."""


class Rows(Lines):
    """`Lines` of a file that has rows and no lines."""

    def __getitem__(self, row: Any) -> str:
        return f"{self.name}, row {self.numbers[row]}"


def read(
    path: pathlib.Path,
    columns: Mapping[str, str] | None,
    *,
    format: Literal[Format, "auto"] = "auto",
    encoding: str = "utf-8",
    separator: str = "",
    nested: Collection[str] = (),
    most: int | None = None,
    where: str,
) -> Table:
    """The table in a file. Blank lines are no rows.

    Args:
      columns: those asked for, and the option that names each (for messages); None: all.
      format: "auto": what the file's suffix says.
      separator: of CSV and TSV; empty: the comma, and the tab.
      nested: columns of a Parquet file whose cells may be lists.
      most: so many rows are enough.
      where: whose table it is, for messages.

    Raises:
      UserError: there is no such file, it is no such table, or lacks one of the columns.
    """
    form = _format(path, format, where)
    file = _File(path, columns, f"{where}: {path}")
    cells: dict[str, list[Any]] = {column: [] for column in columns or ()}
    numbers, problems = array.array("q"), {}
    match form:
        case "jsonl":
            rows = _jsonl(file, encoding)
        case "parquet":
            rows = _parquet(file, nested)
        case _:
            rows = _csv(file, encoding, _separator(separator, form, where))
    with contextlib.closing(rows):
        for number, row in rows:
            if isinstance(row, Problem):
                problems[len(numbers)] = row
                row = {}
            if columns is None:
                cells |= {column: [None] * len(numbers) for column in row if column not in cells}
            for column, own in cells.items():
                own.append(row.get(column))
            numbers.append(number)
            if most is not None and len(numbers) >= most:
                break
    file.expect_columns()
    if not len(numbers):
        raise UserError(f"{file.where} has no row; expected one an example, under the names of the columns")
    return Table(tuple(file.names), cells, (Rows if form == "parquet" else Lines)(path.name, numbers), problems)


class _File:
    """What is being read, and the names of its columns as far as they are known."""

    def __init__(self, path: pathlib.Path, wanted: Mapping[str, str] | None, where: str) -> None:
        self.path, self.wanted, self.where = path, wanted, where
        self.names: dict[str, None] = {}

    def expect_columns(self) -> None:
        for column, option in (self.wanted or {}).items():
            if column not in self.names:
                raise UserError(f"{self.where} has no column {column!r}, which {option} names; {nearest(column, self.names)}")

    def name_columns(self, names: Sequence[str]) -> None:
        """For files that name their columns once."""
        twice = [name for name in (self.wanted or {}) if names.count(name) > 1]
        if twice:
            raise UserError(f"{self.where} has {names.count(twice[0])} columns {twice[0]!r}; rename all but one")
        self.names |= dict.fromkeys(names)
        self.expect_columns()


def _format(path: pathlib.Path, format: Literal[Format, "auto"], where: str) -> Format:
    known = f"expected a file that ends in {', '.join(SUFFIXES)} (or .gz after these)"
    if os.path.isdir(path):
        beside = sorted(own.name for own in path.iterdir() if _suffix(own) in SUFFIXES)[:5]
        raise UserError(f"{where}: {path} is a folder; {known}{f', such as {path / beside[0]}' if beside else ''}")
    if not os.path.isfile(path):
        beside = [str(own) for own in path.parent.glob("*") if _suffix(own) in SUFFIXES]
        raise UserError(f"{where}: there is no file {path}; {nearest(str(path), beside) if beside else known}")
    if format != "auto":
        return format
    if _suffix(path) not in SUFFIXES:
        raise UserError(f"{where}: {path}: {known}; or set --data.format to one of {', '.join(get_args(Format))}")
    return SUFFIXES[_suffix(path)]


def _suffix(path: pathlib.Path) -> str:
    return pathlib.PurePath(path.name.lower().removesuffix(".gz")).suffix


def _separator(given: str, form: Format, where: str) -> str:
    separator = {"": "\t" if form == "tsv" else ",", "\\t": "\t"}.get(given, given)
    if len(separator) != 1 or separator in '"\r\n\0':
        raise UserError(f"{where}: data.separator is {given!r}; expected one character, such as ; or \\t")
    return separator


@contextlib.contextmanager
def _text(file: _File, encoding: str) -> Iterator[Any]:
    """The file as text, its line ends as they are. Bytes that are not of the encoding become surrogates: only where they stand in a cell that is
    used is that cell wrong."""
    try:
        with file.path.open("rb") as raw:
            head = raw.peek(4)[:4]
            if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
                if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    raise UserError(f"{file.where} is no UTF-8; by its first bytes it is UTF-16: set --data.encoding utf-16")
                encoding = "utf-8-sig"  # a byte order mark is no part of the first name
            if head in (b"PAR1", b"PK\x03\x04"):
                kind = "a Parquet file: set --data.format parquet" if head == b"PAR1" else "a workbook or an archive: save it as CSV"
                raise UserError(f"{file.where} is no text; by its first bytes it is {kind}")
            content: Any = gzip.GzipFile(fileobj=raw) if head[:2] == b"\x1f\x8b" else raw
            yield io.TextIOWrapper(content, encoding=encoding, errors="surrogateescape", newline="")
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {file.path} ({reason}); fetch or write it again") from error
    except LookupError as error:
        raise UserError(f"data.encoding is {encoding!r}, which names no encoding; expected one such as utf-8, latin-1, cp1252 or utf-16") from error
    except UnicodeError as error:
        raise UserError(f"{file.where} is no text in {encoding} ({error}); set data.encoding to what it was written in") from error


def _csv(file: _File, encoding: str, separator: str) -> Generator[tuple[int, dict[str, str] | Problem], None, None]:
    """(line on which it begins, row): RFC 4180, with any line ends."""
    limit = csv.field_size_limit(CELL)
    try:
        with _text(file, encoding) as text:
            reader = csv.reader(text, delimiter=separator, strict=True)
            names: list[str] = []
            while True:
                line = reader.line_num + 1
                try:
                    cells = next(reader, None)
                except csv.Error as error:
                    span = f"lines {line} to {reader.line_num}" if reader.line_num > line else f"line {line}"
                    if not names or "field larger" in str(error) or "end of data" in str(error):
                        raise UserError(
                            f"{file.where}, {span}: a quote is opened and not closed as it should be ({error}); close it, or double it within a cell"
                        ) from error
                    yield line, Problem("damaged row", f"{span}: a quote is not closed as it should be ({error}); double it within a cell")
                    continue
                if cells is None:
                    break
                if not any(cells):
                    continue
                if not names:
                    names = [name.strip() for name in cells]
                    _expect_names(file, names, encoding)
                elif len(cells) < len(names) or any(cells[len(names) :]):
                    yield (
                        line,
                        Problem("ragged row", f"it has {len(cells)} cells for {len(names)} columns; a cell that holds {separator!r} needs quotes"),
                    )
                else:
                    yield line, dict(zip(names, cells, strict=False))
            if not names:
                raise UserError(f"{file.where} is empty; expected the names of the columns, then a row an example")
    finally:
        csv.field_size_limit(limit)


def _expect_names(file: _File, names: list[str], encoding: str) -> None:
    if any("\0" in name or SURROGATES.search(name) for name in names):
        raise UserError(f"{file.where}, line 1 is no text in {encoding}; set --data.encoding latin-1 or utf-16, or write the table again")
    try:
        file.name_columns(names)
    except UserError as error:
        other = next((mark for mark in ";\t|," if len(names) == 1 and mark in names[0]), None)
        raise UserError(f"{error}; is {other!r} what separates its cells? set --data.separator" if other else str(error)) from error


def _jsonl(file: _File, encoding: str) -> Generator[tuple[int, dict[str, Any] | Problem], None, None]:
    """(line, row)."""
    first, objects = "", 0
    with _text(file, encoding) as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            first = first or line.strip()
            if first == "[":
                raise UserError(f"{file.where} is one JSON array; expected an object a line, {{'column': value, ...}}")
            try:
                row = json.loads(line, object_pairs_hook=_once)
            except (ValueError, RecursionError) as error:
                yield number, Problem("damaged row", f"no JSON ({error})")
                continue
            if isinstance(row, dict):
                objects += 1
                file.names |= row if row.keys() - file.names.keys() else {}
                yield number, row
            else:
                yield number, Problem("damaged row", f"expected a JSON object, got {line.strip()[:40]!r}")
    if not objects:
        what = "is empty" if not first else "is one JSON array" if first.startswith("[") else "has no line that is a JSON object"
        raise UserError(f"{file.where} {what}; expected an object a line, {{'column': value, ...}}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return row


def _parquet(file: _File, nested: Collection[str]) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """(row, its cells)."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{file.where}: reading Parquet needs pyarrow, which is not installed; run: pip install 'cimrl_jax[data]'") from error
    try:
        with pyarrow.parquet.ParquetFile(file.path) as content:
            schema = content.schema_arrow
            file.name_columns(schema.names)
            wanted = [name for name in dict.fromkeys(schema.names) if file.wanted is None or name in file.wanted]
            for name in wanted:
                kind = schema.types[schema.names.index(name)]
                kind = getattr(kind, "value_type", kind) if pyarrow.types.is_dictionary(kind) else kind
                if file.wanted is not None and name not in nested and (pyarrow.types.is_nested(kind) or "binary" in str(kind)):
                    raise UserError(f"{file.where}: column {name!r} holds {str(kind)[:60]}; expected texts, numbers or the paths of files")
            number = 0
            for batch in content.iter_batches(batch_size=BATCH if file.wanted is not None else 64, columns=wanted):
                for cells in zip(*(batch.column(batch.schema.names.index(name)).to_pylist() for name in wanted), strict=True):
                    number += 1
                    yield number, dict(zip(wanted, cells, strict=True))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, TypeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file.where} is no whole Parquet file ({reason}); fetch or write it again") from error
