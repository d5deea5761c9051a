"""Examples to look at: what a method found, what it chose, and the counterfactual it made. Saved as JSON, drawn without a plotting library."""

from __future__ import annotations

import base64
import binascii
import json
import os
import pathlib
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cimrl_jax.errors import UserError
from cimrl_jax.files import write_whole
from cimrl_jax.report.bars import Bars, bars
from cimrl_jax.report.results import plain

CELL = 12
"""Side, in the drawing's units, of a slot of a modality that has no picture."""
TOWARDS, AGAINST = (213, 94, 0), (0, 114, 178)
"""Colours of positive and of negative evidence (Okabe and Ito): told apart by all."""


class Panel(NamedTuple):
    """One drawing: layers of pictures (base64 PNG) under outlines, in a box of `width` x `height` units."""

    title: str
    alt: str
    width: int
    height: int
    layers: list[str]
    outline: str
    """An SVG path around the chosen slots; empty for none."""


class Word(NamedTuple):
    text: str
    style: str
    """CSS for the evidence."""
    chosen: bool
    changed: bool


class Text(NamedTuple):
    """One text modality. `name` is empty where there is no other."""

    name: str
    words: list[Word]
    edited: list[Word]
    """Empty where there is no counterfactual to show."""


class Card(NamedTuple):
    """One example as the page shows it."""

    facts: list[tuple[str, str]]
    panels: list[Panel]
    texts: list[Text]
    bars: list[Bars]
    right: bool


def encode_png(pixels: np.ndarray) -> str:
    """Base64 of a PNG. `pixels` [h, w] or [h, w, c] uint8; c is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA).

    Raises:
      UserError: another type or shape.
    """
    pixels = np.asarray(pixels)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4 or not pixels.size:
        raise UserError(f"a picture for the gallery is {pixels.dtype} {list(pixels.shape)}, expected uint8 [h, w, 1 to 4]; convert it first")
    height, width, channels = pixels.shape
    # Every line of a PNG starts with the number of its filter, here 0: none.
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b"")
    return base64.b64encode(png).decode("ascii")


def save(path: str | os.PathLike[str], entries: Iterable[Mapping[str, Any]]) -> None:
    """Writes `gallery.json`.

    Args:
      path: the file.
      entries: one mapping an example. "id", "label", "predicted", "group", "split", "method" (text or numbers; what lacks is not shown), and by
        modality: "pictures" and "edited_pictures" (uint8 [h, w, c]), "words" and "edited_words" (texts), "evidence" and "chosen" ([n], chosen in
        0..1), "grid" (rows, columns) where slots are patches, "features" (where a frozen encoder's are read: the share of the evidence on tokens
        without a place), "quality" (of the edit, 0..1). "edited_predicted": optional, as are "effects" {name: logits} and "gates" {expert: weight}.

    Raises:
      UserError: a picture is not uint8, or the file cannot be written.
    """
    lines = []
    for entry in entries:
        pictures = {key: {m: encode_png(own) for m, own in (entry.get(key) or {}).items()} for key in ("pictures", "edited_pictures")}
        lines.append(plain({**entry, **pictures}))
    write_whole(pathlib.Path(path), json.dumps(lines, allow_nan=False, ensure_ascii=False) + "\n")


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The entries that `save` wrote, pictures still base64; none if there is no such file.

    Raises:
      UserError: the file is broken.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is broken ({error}); delete it to make the page without a gallery, or evaluate the run again") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path} must hold a list of mappings; delete it to make the page without a gallery, or evaluate the run again")
    return [_of_one_picture(entry) for entry in entries]


def _of_one_picture(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of an older file, which had one picture and one text at most, as they are now; others as they are."""
    known, grids = [*(entry.get("evidence") or {})], entry.get("grid") or {}
    modality = {
        "pictures": next((name for name in ["image", *grids] if name in grids), "image"),
        "words": next((name for name in ["text", *known] if name in known and name not in grids), "text"),
    }
    old = {"image": ("pictures", "pictures"), "edited_image": ("edited_pictures", "pictures")}
    old |= {key: (key, "words") for key in ("words", "edited_words") if isinstance(entry.get(key), list)}
    renamed = {new: {modality[kind]: entry[key]} for key, (new, kind) in old.items() if entry.get(key) is not None}
    return {key: value for key, value in entry.items() if key not in old} | renamed


def card(entry: Mapping[str, Any]) -> Card:
    """The drawing of one entry of `read`."""
    of = {key: entry.get(key) or {} for key in ("evidence", "chosen", "grid", "pictures", "edited_pictures", "words", "edited_words", "features")}
    panels = []
    for name, picture in of["pictures"].items():
        panels += _pictures(name if len(of["pictures"]) > 1 else "", picture, *(of[key].get(name) for key in PICTURED))
    for name in dict.fromkeys([*of["evidence"], *of["chosen"]]):
        if name not in of["pictures"] and name not in of["words"]:
            panels.append(_slots(name, of["evidence"].get(name), of["chosen"].get(name), of["grid"].get(name)))
    told = ["id", "method", "split", "group", "label", "predicted"]
    if str(entry.get("id")).startswith(f"{entry.get('split')}/"):
        told.remove("split")
    facts = [(key.replace("_", " "), str(entry[key])) for key in told if entry.get(key) is not None]
    if entry.get("edited_predicted") is not None:
        facts.append(("after the edit", str(entry["edited_predicted"])))
    for name, share in of["features"].items():
        where = f", {share:.0%} of it where it has no place" if share else ""
        facts.append((f"features of {name}", f"evidence is that of a frozen encoder's tokens{where}"))
    return Card(
        facts=facts,
        panels=panels,
        texts=[
            Text(
                name=name if len(of["words"]) > 1 else "",
                words=_words(words, of["evidence"].get(name), of["chosen"].get(name), None),
                edited=_words(of["edited_words"].get(name), None, None, words),
            )
            for name, words in of["words"].items()
            if words
        ],
        bars=bars(entry),
        right=str(entry.get("label")) == str(entry.get("predicted")),
    )


PICTURED = ("edited_pictures", "evidence", "chosen", "grid")


def _pictures(name: str, picture: str, edited: str | None, evidence: Any, chosen: Any, grid: Any) -> list[Panel]:
    width, height = _size(picture)
    panels = [Panel("original", "the example as it is", width, height, [picture], "")]
    if grid is not None and evidence is not None:
        panels.append(Panel("evidence", "the example under a heat map of the evidence", width, height, [picture, _heat(evidence, grid, 0.85)], ""))
    if grid is not None and chosen is not None:
        outline = _outline(chosen, grid, width, height)
        panels.append(Panel("chosen", f"the example with {_count(chosen)} chosen slots outlined", width, height, [picture], outline))
    if edited:
        panels.append(Panel("counterfactual", "the example after the edit", *_size(edited), [edited], ""))
    return [panel._replace(title=f"{name}: {panel.title}", alt=f"{name}: {panel.alt}") for panel in panels] if name else panels


def _slots(name: str, evidence: Any, chosen: Any, grid: Any) -> Panel:
    """A modality that has no picture: its slots in their grid, or in lines of at most 32."""
    count = len(evidence if evidence is not None else chosen)
    rows, columns = grid or (-(-count // 32), min(count, 32))
    width, height = columns * CELL, rows * CELL
    layers = [] if evidence is None else [_heat(evidence, (rows, columns), 1.0)]
    outline = "" if chosen is None else _outline(chosen, (rows, columns), width, height)
    alt = f"{count} slots of {name}, coloured by their evidence, {0 if chosen is None else _count(chosen)} of them chosen"
    return Panel(name, alt, width, height, layers, outline)


def _size(picture: str) -> tuple[int, int]:
    """(width, height) of a base64 PNG, from its first bytes."""
    try:
        width, height = struct.unpack(">II", base64.b64decode(picture[:32], validate=True)[16:24])
    except (binascii.Error, struct.error, TypeError, ValueError) as error:
        raise UserError("a picture in gallery.json is not a base64 PNG; evaluate the run again to rewrite the gallery") from error
    return width, height


def _floats(values: Sequence[float | None], count: int) -> np.ndarray:
    """[count] float64; what is None or lacks is 0."""
    known = [value or 0.0 for value in values][:count]
    return np.asarray(known + [0.0] * (count - len(known)), np.float64)


def _count(chosen: Sequence[float | None]) -> int:
    return sum((value or 0.0) >= 0.5 for value in chosen)


def _shares(values: np.ndarray) -> np.ndarray:
    """Evidence on the scale -1..1, by its largest size within the example."""
    return values / max(float(np.abs(values).max(initial=0.0)), 1e-12)


def _heat(evidence: Sequence[float | None], grid: Sequence[int], opacity: float) -> str:
    rows, columns = grid
    share = _shares(_floats(evidence, rows * columns)).reshape(rows, columns, 1)
    colour = np.where(share >= 0, TOWARDS, AGAINST)
    return encode_png(np.concatenate([colour, np.round(255 * opacity * np.abs(share))], axis=2).astype(np.uint8))


def _outline(chosen: Sequence[float | None], grid: Sequence[int], width: int, height: int) -> str:
    """The border of the chosen region: the sides that a chosen slot does not share with another."""
    rows, columns = grid
    taken = np.pad(_floats(chosen, rows * columns).reshape(rows, columns) >= 0.5, 1)
    across, down = width / columns, height / rows
    lines = []
    for row, column in np.argwhere(taken):
        x, y = (column - 1) * across, (row - 1) * down
        sides = [
            (taken[row - 1, column], f"M{x:g} {y:g}h{across:g}"),
            (taken[row + 1, column], f"M{x:g} {y + down:g}h{across:g}"),
            (taken[row, column - 1], f"M{x:g} {y:g}v{down:g}"),
            (taken[row, column + 1], f"M{x + across:g} {y:g}v{down:g}"),
        ]
        lines += [path for shared, path in sides if not shared]
    return "".join(lines)


def _words(words: Sequence[str] | None, evidence: Any, chosen: Any, before: Sequence[str] | None) -> list[Word]:
    if not words:
        return []
    shares = _shares(_floats(evidence or [], len(words)))
    marks = _floats(chosen or [], len(words)) >= 0.5
    return [
        Word(
            text=str(word),
            style=f"background: rgb({', '.join(map(str, TOWARDS if share >= 0 else AGAINST))}, {0.6 * abs(share):.2f})" if abs(share) > 0.02 else "",
            chosen=bool(mark),
            changed=before is not None and (place >= len(before) or str(before[place]) != str(word)),
        )
        for place, (word, share, mark) in enumerate(zip(words, shares, marks, strict=True))
    ]
