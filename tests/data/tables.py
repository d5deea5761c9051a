"""Small tables of every form, with the pictures and recordings that they name."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pathlib
import wave
from typing import Any

import numpy as np

FORMS = ("csv", "tsv", "jsonl", "parquet")
Row = dict[str, Any]
INPUTS: dict[str, Any] = {"image_columns": ("photo",), "text_columns": ("caption",), "audio_columns": ("sound",), "number_columns": ("age", "dose")}
COLUMNS: dict[str, Any] = {
    **INPUTS,
    "label_column": "y",
    "attribute_columns": ("place",),
    "split_column": "split",
    "id_column": "id",
    "cause_boxes": "box",
}
"""Options that name every column of `rows`."""


def rows(n: int = 24) -> list[Row]:
    """Rows of two labels and two places that agree in three of four; every label and place comes in every split."""
    made = []
    for i in range(n):
        label, place = i % 2, (i % 2) ^ (i % 8 >= 6)
        made.append(
            {
                "id": f"r{i}",
                "photo": f"pictures/{i}.png",
                "caption": f"a {('land', 'water')[place]} bird, number {i}",
                "sound": f"sounds/{i}.wav",
                "age": 20 + i / 2,
                "dose": i % 5,
                "box": [[0.0, 0.25, 0.5, 0.5]] if i % 3 else [],
                "place": ("land", "water")[place],
                "patient": f"p{i // 3}",
                "split": ("train", "valid", "test")[i // 8 % 3],
                "y": ("bird", "fish")[label],
            }
        )
    return made


def media(folder: pathlib.Path, n: int = 24) -> pathlib.Path:
    """The pictures (8 x 8) and recordings (0.02 s at 1 kHz) of `rows(n)`."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("pictures", "sounds"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / "pictures" / f"{i}.png")
        with wave.open(str(folder / "sounds" / f"{i}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(1000)
            file.writeframes(rng.integers(-9999, 9999, 20).astype("<i2").tobytes())
    return folder


def content(rows: list[Row], form: str) -> bytes:
    """The rows as a file of that form; columns are those of all rows."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if form == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if form == "parquet":
        import pyarrow
        import pyarrow.parquet

        file = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({column: _array([row.get(column) for row in rows]) for column in columns}), file)
        return file.getvalue()
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t" if form == "tsv" else ",")
    writer.writerow(columns)
    writer.writerows([["" if (cell := row.get(column)) is None else _cell(cell) for column in columns] for row in rows])
    return text.getvalue().replace("\ud800", "\udced\udca0\udc80").encode("utf-8", "surrogateescape")


def _array(cells: list[Any]) -> Any:
    """Parquet has one type a column: of mixed ones, texts."""
    import pyarrow

    try:
        return pyarrow.array(cells)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        return pyarrow.array([None if cell is None else str(_cell(cell)) for cell in cells])


def _cell(cell: Any) -> Any:
    return json.dumps(cell) if isinstance(cell, list | dict) else cell


def write(path: pathlib.Path, rows: list[Row]) -> pathlib.Path:
    """The rows as a file whose suffix says the form."""
    form = path.name.removesuffix(".gz").rpartition(".")[2]
    made = content(rows, form)
    path.write_bytes(gzip.compress(made) if path.suffix == ".gz" else made)
    return path


def origin(path: pathlib.Path, row: int) -> str:
    """How messages name a row of such a file."""
    if ".parquet" in path.name:
        return f"{path.name}, row {row + 1}"
    return f"{path.name}, line {row + 1 + ('.jsonl' not in path.name)}"
