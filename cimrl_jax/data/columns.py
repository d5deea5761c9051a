"""The modalities of a data set that lies in files, a column each: what stands in the rows, and how it becomes the model's raw inputs."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from cimrl_jax.data import pictures, pipeline, recordings, tokenise
from cimrl_jax.errors import UserError
from cimrl_jax.types import Expected, Feature

Box = tuple[float, float, float, float]
"""Left, top, width, height as shares of the picture's width and height."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    files: Sequence[pathlib.Path | None]
    """Of each row; None where it has no picture (the modality is absent there, which is no fault). Whatever has `read_bytes`, `is_file` and a name as
    `str` will do."""
    channels: Literal[1, 3] = 3
    flip: bool = True
    """Whether a mirrored picture means the same."""
    boxes: Mapping[str, Sequence[tuple[Box, ...]]] = dataclasses.field(default_factory=dict)
    """"cause" or "shortcut" -> of each row the boxes that it lies in."""
    shared: bool = False
    """Whether a picture may be in several splits, as in VQA-CP. Otherwise that is a fault, which `examine(..., deep=True)` finds."""


@dataclasses.dataclass(frozen=True)
class Recordings:
    files: Sequence[pathlib.Path | None]
    """WAV or FLAC; None where a row has no recording."""
    options: recordings.Options = recordings.Options()


@dataclasses.dataclass(frozen=True)
class Texts:
    texts: Sequence[str | Sequence[str] | None]
    """A text, or its words, of each row; None where it has none."""
    marks: Mapping[str, Callable[[str], bool]] = dataclasses.field(default_factory=dict)
    """"cause" or "shortcut" -> whether a word (lower case, as `tokenise.words_of` gives it) is of it."""
    length: int = 0
    """Words of each, if known; 0: as the options say."""


@dataclasses.dataclass(frozen=True)
class Numbers:
    values: Float[np.ndarray, "n k"]
    """NaN where unknown: the encoder masks such a cell. A row of nothing else is absent."""
    columns: tuple[str, ...]


Column = Pictures | Recordings | Texts | Numbers
Masks = Callable[[Int[np.ndarray, " b"]], Bool[np.ndarray, "b ..."]]
"""Rows of a listing -> which of their raw elements are of a region."""
TAKEN = (
    # What stands beside the modalities in a config's section model, and what the model calls its own codes.
    ("dim", "heads", "mlp_ratio", "dropout", "fusion_layers", "connect_every", "query", "causal_layers", "dtype", "modalities"),
    ("shared", "combined", "projection"),
)
"""Names that a modality cannot have."""
SAMPLE = 1000
"""At most so many training files tell mean and standard deviation."""


@dataclasses.dataclass(frozen=True)
class Values:
    """One modality of all rows of a listing."""

    present: Bool[np.ndarray, " n"]
    load: Callable[[Int[np.ndarray, " b"]], Shaped[np.ndarray, "b ..."]]
    """Zero where absent."""
    held_bytes: int | None
    """Of a row, if `load` only gathers; None: it reads."""
    masks: Mapping[str, tuple[tuple[int, ...], Masks]] = dataclasses.field(default_factory=dict)
    """"cause" or "shortcut" -> (shape of one mask, what makes those of rows)."""
    keys: Callable[[Int[np.ndarray, " b"]], Shaped[np.ndarray, " b"]] | None = None
    """If `load` reads: of rows, hashes (16 bytes) that are equal only where what is read is."""


def present_in(column: Column) -> Bool[np.ndarray, " n"]:
    """Which rows have the modality."""
    match column:
        case Numbers():
            return np.asarray(np.isfinite(column.values).any(-1))
        case Texts():
            return np.array([text is not None for text in column.texts], bool)
        case Pictures() | Recordings():
            return np.array([file is not None for file in column.files], bool)


def files_of(column: Pictures | Recordings, rows: Int[np.ndarray, " k"]) -> list[Any]:
    """The distinct files of these rows."""
    return list(dict.fromkeys(file for row in rows.tolist() if (file := column.files[row]) is not None))


@dataclasses.dataclass(frozen=True)
class Media:
    """How the files of a modality are read."""

    column: Pictures | Recordings
    feature: Feature
    read: Callable[[Any], np.ndarray]
    damage: str
    """The kind of fault that a file is which cannot be read."""
    given: bool
    """Whether mean and standard deviation are a pretrained encoder's."""

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.feature.shape)) * np.dtype(self.feature.dtype).itemsize


def media(column: Pictures | Recordings, *, size: int, expected: Expected | None = None) -> Media:
    """How this column's files are read; pictures as squares of `size` pixels, or as a pretrained encoder expects them."""
    if isinstance(column, Recordings):

        def listen(file: Any) -> np.ndarray:
            if isinstance(file, pathlib.Path):  # of a long one only the beginning is read
                return recordings.read(file, column.options, where="recording")
            return recordings.decode(file.read_bytes(), column.options, where=str(file))

        feature = Feature("spectrogram", recordings.shape(column.options), "float32")
        return Media(column, feature, listen, "undecodable recording", given=False)
    feature = pictures.as_expected(Feature("image", (size, size, column.channels), "uint8", flip=column.flip), expected)
    height, width, channels = feature.shape

    def look(file: Any) -> np.ndarray:
        return pictures.decode(file.read_bytes(), height=height, width=width, channels=channels, where=str(file))

    return Media(column, feature, look, "undecodable picture", given=expected is not None and bool(expected.channels))


def read(media: Media, files: list[Any], count: int) -> tuple[Values, dict[Any, str]]:
    """(the values of all `count` rows, held in memory; by file, why it could not be read)."""
    values = np.zeros((len(files), *media.feature.shape), media.feature.dtype)

    def fill(number: int) -> str:
        try:
            values[number] = media.read(files[number])
            return ""
        except (UserError, OSError) as error:
            return str(error)

    damaged = {file: reason for file, reason in zip(files, in_parallel(fill, range(len(files))), strict=True) if reason}
    number = {file: place for place, file in enumerate(files)}
    place = np.array([number.get(media.column.files[row], -1) for row in range(count)])
    return _held(values, place, _box_masks(media)), damaged


def _held(values: Shaped[np.ndarray, "u ..."], place: Int[np.ndarray, " n"], masks: Mapping[str, tuple[tuple[int, ...], Masks]]) -> Values:
    """Values in memory. `place`: which of them a row has, -1 where none."""

    def load(rows: Int[np.ndarray, " b"]) -> Shaped[np.ndarray, "b ..."]:
        found = values[place[rows]] if len(values) else np.zeros((len(rows), *values.shape[1:]), values.dtype)
        found[place[rows] < 0] = 0
        return found

    return Values(place >= 0, load, int(np.prod(values.shape[1:])) * values.itemsize, masks)


def normalised(media: Media, values: Values | None, train: Int[np.ndarray, " k"]) -> tuple[Feature, Values]:
    """(the feature, its values): a picture's mean and standard deviation stand in the feature, a recording's bands are brought to 0 and 1.
    `values`: if they are in memory."""
    present = np.array([file is not None for file in media.column.files], bool)

    def read(rows: Int[np.ndarray, " b"]) -> Shaped[np.ndarray, "b ..."]:
        found = np.zeros((len(rows), *media.feature.shape), media.feature.dtype)
        for place, row in enumerate(rows.tolist()):
            if present[row]:
                found[place] = _readable(media, media.column.files[row])
        return found

    values = values or Values(present, read, None, _box_masks(media), functools.partial(_keys, media.column))
    if media.given:
        return media.feature, values
    load, scale = values.load, 255 if media.feature.kind == "image" else 1
    axes = tuple(range(len(media.feature.shape) - 1))

    def moments(row: int) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
        value = load(np.array([row]))[0].astype(np.float64) / scale
        return value.mean(axes), (value**2).mean(axes)

    known = train[present[train]]
    sample = known[np.linspace(0, len(known) - 1, min(SAMPLE, len(known))).astype(int)].tolist()
    first, second = (np.mean(own, axis=0) for own in zip(*in_parallel(moments, sample), strict=True)) if sample else (np.zeros(1), np.ones(1))
    mean, std = first, np.sqrt(np.maximum(second - first**2, 1e-6))
    if media.feature.kind == "image":
        rounded = [tuple(round(float(value), 4) for value in own) for own in (mean, std)]
        return dataclasses.replace(media.feature, mean=rounded[0], std=rounded[1]), values

    def bands(rows: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b time mel"]:
        found = (load(rows) - mean.astype(np.float32)) / std.astype(np.float32)
        found[~present[rows]] = 0
        return found

    return media.feature, dataclasses.replace(values, load=bands)


def _keys(column: Pictures | Recordings, rows: Int[np.ndarray, " b"]) -> Shaped[np.ndarray, " b"]:
    """Of a file's name, size and time of change; of what is no file, of its content."""
    found = np.zeros(len(rows), "S16")
    for place, file in enumerate(column.files[row] for row in rows.tolist()):
        if isinstance(file, pathlib.Path):
            stat = file.stat()
            found[place] = hashlib.blake2b(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}".encode(errors="surrogateescape"), digest_size=16).digest()
        elif file is not None:
            found[place] = hashlib.blake2b(file.read_bytes(), digest_size=16).digest()
    return found


def _readable(media: Media, file: Any) -> np.ndarray:
    try:
        return media.read(file)
    except (UserError, OSError) as error:
        raise UserError(f"{error}; `python -m cimrl_jax.main prepare --check` with the same options finds all such files") from error


def _box_masks(media: Media) -> dict[str, tuple[tuple[int, ...], Masks]]:
    if not isinstance(media.column, Pictures):
        return {}
    height, width = media.feature.shape[:2]

    def masks(column: Pictures, boxes: Sequence[tuple[Box, ...]], rows: Int[np.ndarray, " b"]) -> Bool[np.ndarray, "b h w"]:
        found = np.zeros((len(rows), height, width), bool)
        for place, row in enumerate(np.asarray(rows).tolist()):
            if boxes[row] and column.files[row] is not None:
                size = pictures.dimensions(column.files[row], where=str(column.files[row]))
                found[place] = np.any([pictures.box_in_crop(box, size, height=height, width=width) for box in boxes[row]], axis=0)
        return found

    return {target: ((height, width), functools.partial(masks, media.column, boxes)) for target, boxes in media.column.boxes.items()}


def text(
    column: Texts, used: Int[np.ndarray, " k"], train: Int[np.ndarray, " t"], *, length: int, size: int, expected: Expected | None = None
) -> tuple[Feature, Values]:
    """(the feature, ids of the rows `used`), by a tokeniser fitted to the rows `train`. `length`, `size`: see `listing.Options`."""
    present = present_in(column)
    # Marks are of words, so that texts with marks are cut into words here, whatever the tokeniser.
    texts: dict[int, Any] = {row: column.texts[row] for row in used.tolist() if present[row]}
    if column.marks:
        texts = {row: tokenise.words_of(own) if isinstance(own, str) else own for row, own in texts.items()}
    seen = [texts[row] for row in train.tolist() if present[row]]
    tokeniser = tokenise.fit(seen, length=column.length or length or _fitting(seen), size=size, expected=expected)
    place = np.full(len(present), -1)
    place[list(texts)] = np.arange(len(texts))
    masks = {}
    for target, mark in column.marks.items():
        spread = tokenise.spread(tokeniser, list(texts.values()), ([mark(word) for word in own] for own in texts.values()))
        masks[target] = (tokeniser.length,), _held(spread, place, {}).load
    return tokeniser.feature(), _held(tokeniser.encode(list(texts.values())), place, masks)


def _fitting(texts: Iterable[str | Sequence[str]]) -> int:
    """The words that 99 of 100 texts have at most, rounded up to a multiple of 8."""
    lengths = [len(tokenise.words_of(text) if isinstance(text, str) else text) for text in texts]
    return 8 * max(-(-int(np.quantile(lengths, 0.99, method="inverted_cdf")) // 8), 1) if lengths else 8


def table(column: Numbers, train: Int[np.ndarray, " k"]) -> tuple[Feature, Values]:
    """(the feature, with the columns' mean and standard deviation over the rows `train`; the numbers of all rows)."""
    values = np.where(np.isfinite(column.values), column.values, np.nan).astype(np.float32)
    known = np.ma.masked_invalid(values[train].astype(np.float64))
    mean, std = (tuple(np.ma.filled(own, default).tolist()) for own, default in ((known.mean(0), 0.0), (known.std(0), 1.0)))
    feature = Feature("table", (len(column.columns),), "float32", columns=column.columns, mean=mean, std=tuple(value or 1.0 for value in std))
    present = present_in(column)
    return feature, _held(values, np.where(present, np.arange(len(values)), -1), {})


def in_parallel(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
    """`map` on as many threads as there are cores: decoders release the interpreter's lock."""
    threads, rest = pipeline.cores(), iter(items)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        # Few at a time: each that waits takes 2 kB.
        waiting = collections.deque(pool.submit(function, item) for item in itertools.islice(rest, 16 * threads))
        try:
            while waiting:
                found = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in itertools.islice(rest, 1))
                yield found
        finally:
            for own in waiting:
                own.cancel()
