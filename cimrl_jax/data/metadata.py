"""The files that say what a data set's rows are: tables with the line of each row, and texts that lie one a file."""

from __future__ import annotations

import concurrent.futures
import csv
import gzip
import io
import os
import pathlib
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from cimrl_jax.errors import UserError


class Table(NamedTuple):
    columns: dict[str, list[str]]
    """The cells of each column that was asked for, without blanks around them; "" where a row is too short."""
    lines: list[int]
    """The line that each row ends on, from 1."""


def lines(path: pathlib.Path, *, where: str, mend: str) -> list[str]:
    """The lines of a text file in UTF-8, packed if its name ends in .gz; those at the end that are blank left out.

    Args:
      where: whose file it is, for messages.
      mend: what to do if there is no such file or it is damaged, for messages.

    Raises:
      UserError: it cannot be read.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read().rstrip().split("\n")
    except (EOFError, zlib.error) as error:
        raise UserError(f"{where}: cannot read {path} (it is cut off or damaged); {mend}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot read {path} ({_reason(error)}); {mend}") from error


def table(
    path: pathlib.Path,
    columns: Sequence[str],
    *,
    where: str,
    mend: str,
    delimiter: str | None = ",",
    skip: int = 0,
    names: Sequence[str] | None = None,
) -> Table:
    """The named columns of a table; others may be there too.

    Args:
      delimiter: None: any run of blanks, and no quotes.
      skip: lines before the table.
      names: of all columns; None: the table's first line has them.

    Raises:
      UserError: it cannot be read, has no row, or lacks a column.
    """
    kept = lines(path, where=where, mend=mend)[skip:]
    reader = csv.reader((f"{line}\n" for line in kept), delimiter=delimiter, strict=True) if delimiter else (line.split() for line in kept)
    rows, numbers = [], []
    try:
        known = [name.strip() for name in (next(reader, []) if names is None else names)]
        missing = [column for column in columns if column not in known]
        if missing:
            raise UserError(f"{where}: {path} has no column {missing[0]!r}; expected {', '.join(columns)}: {mend}")
        places = [known.index(column) for column in columns]
        for number, row in enumerate(reader, skip + 1 + (names is None)):
            if row:
                rows.append([row[place].strip() if place < len(row) else "" for place in places])
                numbers.append(skip + reader.line_num if delimiter else number)  # pyright: ignore[reportAttributeAccessIssue]
    except csv.Error as error:
        raise UserError(f"{where}: {path} is no table of {', '.join(columns)} ({error}); {mend}") from error
    if not rows:
        raise UserError(f"{where}: {path} has no row; expected {', '.join(columns)} in each: {mend}")
    return Table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)), numbers)


def names_of(path: pathlib.Path, *, where: str, mend: str, delimiter: str | None = ",", skip: int = 0) -> list[str]:
    """The names of a table's columns.

    Raises:
      UserError: it cannot be read, or has no line that could name them.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = [next(file, "") for _ in range(skip + 1)][-1]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot read {path} ({_reason(error)}); {mend}") from error
    names = [name.strip() for name in head.split(delimiter)]
    if not any(names):
        raise UserError(f"{where}: {path}, line {skip + 1}: expected the names of columns; {mend}")
    return names


def contents(files: Sequence[pathlib.Path | None], *, errors: str = "strict") -> tuple[list[str | None], dict[int, tuple[str, str]]]:
    """(the text of each file, why it cannot be had: a kind of `listing.Fault` and its detail, by place). What is no file has no text, nor a reason.

    Args:
      errors: what becomes of bytes that are not UTF-8: "strict" (a reason) or "ignore".
    """

    def read(file: pathlib.Path | None) -> tuple[str | None, tuple[str, str] | None]:
        try:
            return None if file is None else file.read_text(encoding="utf-8-sig", errors=errors), None
        except FileNotFoundError:
            return None, ("missing file", f"there is no {file}")
        except (OSError, UnicodeDecodeError) as error:
            return None, ("undecodable text", f"cannot read {file} ({_reason(error)})")

    # More threads than cores, since on a disk that is far away they wait.
    with concurrent.futures.ThreadPoolExecutor(4 * (os.cpu_count() or 1)) as pool:
        found = list(pool.map(read, files, chunksize=64))
    return [text for text, _ in found], {place: reason for place, (_, reason) in enumerate(found) if reason}


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else f"no UTF-8 at byte {error.start}"
