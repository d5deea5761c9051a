"""What can be planted in one modality to tell the value of an attribute, by the modality's kind, and which raw elements it covers.

Every shortcut is a pure function of an example, its attribute and one number that chooses the place where that is drawn.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cimrl_jax.data import pictures, planting, tokenise
from cimrl_jax.data.augment_text import continuing
from cimrl_jax.errors import UserError, nearest
from cimrl_jax.options import Range
from cimrl_jax.types import Feature

Share = Annotated[float, Range(low=0, high=1)]
Value = Int[np.ndarray, " b"]
"""The attribute of each example."""
Choice = Int[np.ndarray, " b"]
"""A large random number of each example, for what is drawn about the place."""
FIRST = ("vo", "ki", "za", "mu", "tre", "pla", "dro", "gne")
LAST = ("rix", "lum", "dap", "foz", "beth", "nuk", "sild", "worp")
"""Syllables of made-up words."""
OPACITY = {"patch": 1.0, "border": 1.0, "tint": 0.3, "texture": 0.3}
"""By default."""


@dataclasses.dataclass(frozen=True)
class CommonOptions:
    """What the options of every kind of modality have."""

    modalities: tuple[str, ...] = ()
    """The modalities of this kind in which it is planted, by name; empty: all of them."""
    correlation: Share | None = None
    """P(attribute = label) in training, of these modalities' own attribute (data.plant.separate); none: data.plant.correlation."""
    validation_correlation: Share | None = None
    """The same in validation; none: data.plant.validation_correlation."""
    test_correlation: Share | None = None
    """The same in test; none: data.plant.test_correlation."""


@dataclasses.dataclass(frozen=True)
class ImageOptions(CommonOptions):
    kind: Literal["none", "patch", "border", "tint", "texture"] = "none"
    """A square ("patch") or a frame ("border") of the attribute's colour, the colour over the whole picture ("tint"), or stripes over the whole
    picture that run in the attribute's direction ("texture"). In pictures of one channel colours are greys, the last of them white."""
    size: Annotated[float, Range(above=0, below=0.5)] = 0.125
    """Side of a patch, or width of a border, as a share of the picture's shorter side."""
    place: Literal["value", "corner", "random"] = "value"
    """Where a patch is: each value of the attribute has its own place (the corners, for up to four), the upper left corner, or anywhere."""
    colour: Literal["value", "same"] = "value"
    """Whether each value of the attribute has its own colour, or all patches have the same and only the place tells."""
    degrees: tuple[float, ...] = ()
    """Hue of each value, or direction of its stripes; empty: spread evenly over 360, or 180."""
    period: Annotated[float, Range(low=2)] = 4.0
    """Pixels from stripe to stripe of a texture."""
    strength: Annotated[float, Range(above=0, high=1)] | None = None
    """How far pixels are moved towards what is planted, 1: all the way; none: 1 for patch and border, 0.3 for tint and texture."""


@dataclasses.dataclass(frozen=True)
class TextOptions(CommonOptions):
    kind: Literal["none", "word", "phrase"] = "none"
    """One word for each value of the attribute, or several in a row. A text that would grow too long loses words at its end."""
    place: Literal["beginning", "end", "random"] = "beginning"
    """Where it is inserted: before all words, behind the last (before those that must go), or before any word or behind the last."""
    values: tuple[str, ...] = ()
    """The word or phrase of each value; empty: made-up words, phrases that hold one. Words that texts have anyway are refused: see allowed."""
    allowed: Share = 0.01
    """The largest share of training texts in which a word or phrase may stand already."""


@dataclasses.dataclass(frozen=True)
class SpectrogramOptions(CommonOptions):
    kind: Literal["none", "tone"] = "none"
    """A tone that sounds all the time: the mel band of the attribute's value is raised."""
    strength: Annotated[float, Range(above=0)] = 3.0
    """By how much, in standard deviations (Feature.std)."""
    width: Annotated[int, Range(low=1)] = 1
    """Bands that are raised together."""
    bands: tuple[Annotated[int, Range(low=0)], ...] = ()
    """The lowest of these for each value; empty: spread evenly."""


@dataclasses.dataclass(frozen=True)
class TableOptions(CommonOptions):
    kind: Literal["none", "overwrite", "add"] = "none"
    """A column whose number is the attribute's: one that the table has is overwritten, or one is added."""
    column: str = "planted"
    """Its name."""
    numbers: tuple[float, ...] = ()
    """What stands there for each value; empty: spread evenly over strength standard deviations to either side of the column's mean."""
    strength: Annotated[float, Range(above=0)] = 1.0
    """How far, in standard deviations (an added column has mean 0 and standard deviation 1)."""


@dataclasses.dataclass(frozen=True)
class SlotsOptions(CommonOptions):
    kind: Literal["none", "direction"] = "none"
    """One slot is set to a vector: each value of the attribute has its own direction, drawn with the seed of the data."""
    place: Literal["first", "last", "random"] = "random"
    """Which slot: always the same, or any (but none that is known to hold the cause, as long as there are others)."""
    strength: Annotated[float, Range(above=0)] = 2.0
    """Length of the vector."""


class Shortcut(NamedTuple):
    """What is planted in one modality. `values` are raw inputs `[b, *feature shape]`; nothing is changed in place."""

    feature: Feature
    """Of what comes out."""
    put: Callable[[np.ndarray, Value, Choice], np.ndarray]
    covers: Callable[[np.ndarray, Value, Choice], np.ndarray]
    """-> which raw elements of what comes out are planted, `[b, *raw shape]` bool."""
    carry: Callable[[np.ndarray, np.ndarray, Value, Choice], np.ndarray]
    """(a region of `values`, values, ...) -> where that is in what comes out, without what was covered up."""
    words: tuple[str, ...] = ()
    """What stands in the texts for each value."""


def make(feature: Feature, options: CommonOptions, values: int, *, seed: int, where: str, texts: Callable[[], np.ndarray]) -> Shortcut:
    """The shortcut that a modality's options describe.

    Args:
      feature: of the modality.
      values: of the attribute.
      seed: for what is drawn once for all (directions).
      where: the section of the options, such as "data.plant.text", for messages.
      texts: gives the ids of (some) training texts.

    Raises:
      UserError: options that do not fit the modality, one line with the key.
    """
    match options:
        case ImageOptions():
            return _image(feature, options, values, where)
        case TextOptions() if feature.views > 1:
            length = feature.shape[0] // feature.views
            one = dataclasses.replace(feature, shape=(length,), views=1)
            return _in_each_version(_text(one, options, values, where, lambda: texts()[:, :length]), feature.views)
        case TextOptions():
            return _text(feature, options, values, where, texts)
        case SpectrogramOptions():
            return _tone(feature, options, values, where)
        case TableOptions():
            return _column(feature, options, values, where)
        case SlotsOptions():
            return _direction(feature, options, values, seed)
    raise TypeError(f"no shortcut has the options {options!r}")


def nth(allowed: Bool[np.ndarray, "b k"], choice: Choice) -> Int[np.ndarray, " b"]:
    """One of the allowed places of each example: 0 <= place < k. Where none is allowed, all are."""
    allowed = allowed | ~allowed.any(1, keepdims=True)
    return (allowed.cumsum(1) > (choice % allowed.sum(1))[:, None]).argmax(1)


def _each(given: Sequence, values: int, key: str) -> None:
    """Raises if there is not one for each value of the attribute, all different."""
    if given and (len(given) != values or len(set(given)) < values):
        raise UserError(f"{key}: got {', '.join(map(str, given))}; expected {values} different ones, one for each value of the attribute")


def _whole(count: int, covers: Callable[[int, Value, Choice], np.ndarray], *, opaque: bool) -> tuple[Callable, Callable]:
    """`covers` and `carry` where elements stay in their places; what is `opaque` covers up all that was there."""

    def covers_rows(values: np.ndarray, value: Value, choice: Choice) -> np.ndarray:
        return covers(len(values), value, choice)

    def carry(mask: np.ndarray, values: np.ndarray, value: Value, choice: Choice) -> np.ndarray:
        return mask & ~covers(len(values), value, choice) if opaque else mask

    return covers_rows, carry


def _image(feature: Feature, options: ImageOptions, values: int, where: str) -> Shortcut:
    height, width, channels = feature.shape
    if options.kind == "patch" and options.place != "value" and options.colour == "same":
        raise UserError(f"{where}.colour: got 'same' with place={options.place}; a patch needs a place or a colour of its own for each value")
    if options.colour == "same" and options.kind != "patch":
        raise UserError(f"{where}.colour: got 'same', but only of a patch (kind is {options.kind}) the place tells the value too")
    _each(options.degrees, values, f"{where}.degrees")
    turn = 180 if options.kind == "texture" else 360
    degrees = np.array(options.degrees or np.arange(values) * turn / values, np.float64)
    if options.degrees and channels == 1 and options.kind != "texture":
        raise UserError(f"{where}.degrees: pictures of one channel have no hue; leave it out")
    greys = (np.arange(1, values + 1) / values)[:, None]
    colours = greys if channels == 1 else pictures.colour(degrees / 360, 1.0, np.ones(values))
    if options.colour == "same":
        colours = np.broadcast_to(colours[-1:], colours.shape)
    side = max(round(options.size * min(height, width)), 1)
    share = OPACITY[options.kind] if options.strength is None else options.strength
    stripes = _stripes(np.deg2rad(degrees), height, width, options.period)
    per_row = math.ceil(math.sqrt(values))
    tops, lefts = (np.linspace(0, room, per_row).round().astype(int) for room in (height - side, width - side))

    def covers(count: int, value: Value, choice: Choice) -> Bool[np.ndarray, "b h w"]:
        row, column = np.arange(height), np.arange(width)
        if options.kind == "patch":
            if options.place == "value":
                top, left = tops[value // per_row], lefts[value % per_row]
            elif options.place == "random":
                top, left = choice % (height - side + 1), choice // (height - side + 1) % (width - side + 1)
            else:
                top = left = np.zeros(count, int)
            down, across = ((own >= start[:, None]) & (own < start[:, None] + side) for own, start in ((row, top), (column, left)))
            return down[:, :, None] & across[:, None, :]
        if options.kind == "border":
            down, across = (row < side) | (row >= height - side), (column < side) | (column >= width - side)
            return np.broadcast_to(down[:, None] | across[None, :], (count, height, width))
        return np.broadcast_to(True, (count, height, width))

    def put(pixels: np.ndarray, value: Value, choice: Choice) -> np.ndarray:
        target = stripes[value][..., None] if options.kind == "texture" else colours[value][:, None, None, :]
        target = np.broadcast_to(np.float32(255) * target.astype(np.float32), pixels.shape)
        mask, planted = covers(len(pixels), value, choice), pixels.copy()
        planted[mask] = np.rint(pixels[mask] * np.float32(1 - share) + target[mask] * np.float32(share)).astype(np.uint8)
        return planted

    return Shortcut(feature, put, *_whole(2, covers, opaque=share == 1))


def _stripes(direction: Float[np.ndarray, " v"], height: int, width: int, period: float) -> Float[np.ndarray, "v h w"]:
    """1 and 0 by turns, half a period each, along each direction (radians)."""
    row, column = np.mgrid[:height, :width]
    along = np.cos(direction)[:, None, None] * row + np.sin(direction)[:, None, None] * column
    # A hair off the whole numbers, so that no stripe's rim hangs on rounding.
    return ((along + 1e-3) % period < period / 2).astype(np.float32)


def _in_each_version(own: Shortcut, views: int) -> Shortcut:
    """The same in every version of a text."""

    def each(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def of(*given: np.ndarray) -> np.ndarray:
            *arrays, value, choice = given
            apart = (array.reshape(len(array) * views, -1) for array in arrays)
            return function(*apart, np.repeat(value, views), np.repeat(choice, views)).reshape(len(arrays[0]), -1)

        return of

    feature = dataclasses.replace(own.feature, shape=(views * own.feature.shape[0],), views=views)
    return own._replace(feature=feature, put=each(own.put), covers=each(own.covers), carry=each(own.carry))


def _text(feature: Feature, options: TextOptions, values: int, where: str, texts: Callable[[], np.ndarray]) -> Shortcut:
    length, own = feature.shape[0], tokenise.of(feature)
    _each(options.values, values, f"{where}.values")
    given = [tokenise.words_of(text) for text in options.values]
    for text, words in zip(options.values, given, strict=True):
        if not words or options.kind == "word" and len(words) > 1:
            raise UserError(f"{where}.values: {text!r} is {len(words)} words; expected one (several need kind=phrase)")
    planted = given or [[word] if options.kind == "word" else ["reported", "by", word] for word in made_up(values, feature.vocabulary)]
    if isinstance(own, tokenise.Tokeniser):
        known = dict.fromkeys(feature.vocabulary)
        feature = dataclasses.replace(feature, vocabulary=tuple(known | dict.fromkeys(word for words in planted for word in words)))
    roomy = dataclasses.replace(tokenise.of(feature), length=length + 1)
    ids = [row[row != tokenise.PADDING] for row in roomy.encode(planted)]
    for words, numbers in zip(planted, ids, strict=True):
        if len(numbers) >= length:
            raise UserError(f"{where}.values: {' '.join(words)!r} fills a text of {length} ids; choose a shorter one, or longer texts")
        if (numbers == tokenise.UNKNOWN).any():
            raise UserError(f"{where}.values: the tokeniser in {feature.tokeniser} cannot spell {' '.join(words)!r}; choose another")
    if options.values or feature.tokeniser:
        seen = texts()
        for words, numbers in zip(planted, ids, strict=True):
            share = _holds(seen, numbers).mean() if len(seen) else 0.0
            if share > options.allowed:
                mend = f"choose another, or raise {where}.allowed"
                raise UserError(f"{where}.values: {' '.join(words)!r} stands in {share:.0%} of the training texts already; {mend}")
    inner, count = continuing(feature.vocabulary), np.array([len(numbers) for numbers in ids])
    table = np.stack([np.resize(numbers, length) for numbers in ids]).astype(np.int32)

    def starts(values: np.ndarray, value: Value, choice: Choice) -> Int[np.ndarray, " b"]:
        last = np.minimum((values != tokenise.PADDING).sum(1), length - count[value])
        if options.place == "beginning":
            return np.zeros(len(values), int)
        if options.place == "end":
            return last
        place = np.arange(length)
        # A word is not torn apart by what is put between its pieces.
        return nth((place <= last[:, None]) & ~(inner[values] & (place < last[:, None])), choice)

    def origin(values: np.ndarray, value: Value, choice: Choice) -> tuple[np.ndarray, np.ndarray]:
        """(of each id that comes out, which of the planted ones it is, if covered; which of the text's it is otherwise)."""
        behind = np.arange(length) - starts(values, value, choice)[:, None]
        return behind, np.arange(length) - np.where(behind < 0, 0, count[value][:, None])

    def covers(values: np.ndarray, value: Value, choice: Choice) -> Bool[np.ndarray, "b length"]:
        behind, _ = origin(values, value, choice)
        return (behind >= 0) & (behind < count[value][:, None])

    def put(values: np.ndarray, value: Value, choice: Choice) -> np.ndarray:
        behind, old = origin(values, value, choice)
        inserted = np.take_along_axis(table[value], behind.clip(0, length - 1), 1)
        return np.where(covers(values, value, choice), inserted, np.take_along_axis(values, old.clip(0), 1)).astype(values.dtype)

    def carry(mask: np.ndarray, values: np.ndarray, value: Value, choice: Choice) -> np.ndarray:
        _, old = origin(values, value, choice)
        return np.take_along_axis(mask, old.clip(0), 1) & ~covers(values, value, choice)

    return Shortcut(feature, put, covers, carry, words=tuple(" ".join(words) for words in planted))


def made_up(count: int, vocabulary: Sequence[str]) -> list[str]:
    """Words that no text of this vocabulary has.

    Raises:
      UserError: there are not so many.
    """
    known = set(vocabulary)
    words = [word for last in LAST for first in FIRST if (word := first + last) not in known]
    if count > len(words):
        raise UserError(f"there are {len(words)} made-up words, but {count} are needed; give data.plant.text.values")
    return words[:count]


def _holds(ids: Int[np.ndarray, "n length"], part: Int[np.ndarray, " k"]) -> Bool[np.ndarray, " n"]:
    """Which texts have these ids in a row."""
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(part), axis=1)
    return (windows == part).all(-1).any(-1)


def _tone(feature: Feature, options: SpectrogramOptions, values: int, where: str) -> Shortcut:
    time, mel = feature.shape
    _each(options.bands, values, f"{where}.bands")
    if values * options.width > mel:
        raise UserError(f"{where}.width: {values} values of {options.width} bands each do not fit {mel} bands; choose at most {mel // values}")
    if options.bands and max(options.bands) + options.width > mel:
        raise UserError(f"{where}.bands: got {max(options.bands)}, expected at most {mel - options.width}: there are {mel} bands")
    lowest = np.array(options.bands or [(2 * value + 1) * mel // (2 * values) - options.width // 2 for value in range(values)])
    raised = options.strength * np.broadcast_to(np.asarray(feature.std, np.float32), (mel,))

    def bands(value: Value) -> Bool[np.ndarray, "b mel"]:
        low, band = lowest[value][:, None], np.arange(mel)
        return (band >= low) & (band < low + options.width)

    def covers(count: int, value: Value, choice: Choice) -> Bool[np.ndarray, "b time mel"]:
        return np.broadcast_to(bands(value)[:, None, :], (count, time, mel))

    def put(cells: np.ndarray, value: Value, choice: Choice) -> np.ndarray:
        return (cells + (bands(value) * raised)[:, None, :]).astype(cells.dtype)

    return Shortcut(feature, put, *_whole(2, covers, opaque=False))


def _column(feature: Feature, options: TableOptions, values: int, where: str) -> Shortcut:
    columns = feature.columns or tuple(map(str, range(feature.shape[0])))
    _each(options.numbers, values, f"{where}.numbers")
    if options.kind == "overwrite" and options.column not in columns:
        raise UserError(f"{where}.column: the table has no column {options.column!r}; {nearest(options.column, columns)} (kind=add adds one)")
    if options.kind == "add" and options.column in columns:
        raise UserError(f"{where}.column: the table has a column {options.column!r} already; choose another name, or kind=overwrite")
    mean, std = ([*own] * (len(columns) // len(own)) for own in (feature.mean, feature.std))
    if options.kind == "add":
        columns, mean, std = (*columns, options.column), [*mean, 0.0], [*std, 1.0]
        feature = dataclasses.replace(feature, shape=(len(columns),), columns=columns, mean=tuple(mean), std=tuple(std))
    at = columns.index(options.column)
    numbers = np.array(options.numbers or mean[at] + std[at] * options.strength * np.linspace(-1, 1, values), np.float32)

    def widened(cells: np.ndarray) -> np.ndarray:
        return np.pad(cells, [(0, 0), (0, len(columns) - cells.shape[1])])

    def covers(cells: np.ndarray, value: Value, choice: Choice) -> Bool[np.ndarray, "b columns"]:
        return np.broadcast_to(np.arange(len(columns)) == at, (len(cells), len(columns)))

    def put(cells: np.ndarray, value: Value, choice: Choice) -> np.ndarray:
        planted = widened(cells).copy()
        planted[:, at] = numbers[value]
        return planted

    def carry(mask: np.ndarray, cells: np.ndarray, value: Value, choice: Choice) -> np.ndarray:
        return widened(mask) & ~covers(cells, value, choice)

    return Shortcut(feature, put, covers, carry)


def _direction(feature: Feature, options: SlotsOptions, values: int, seed: int) -> Shortcut:
    slots, width = feature.shape
    drawn = planting.generator(seed, "plant", "directions").standard_normal((max(width, values), width))
    # Orthogonal as long as there is room for all.
    basis = np.linalg.qr(drawn[:width])[0] if values <= width else drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    vectors = (options.strength * basis[:values]).astype(np.float32)

    def places(count: int, choice: Choice) -> Int[np.ndarray, " b"]:
        return choice % slots if options.place == "random" else np.full(count, 0 if options.place == "first" else slots - 1)

    def covers(count: int, value: Value, choice: Choice) -> Bool[np.ndarray, "b slots"]:
        return places(count, choice)[:, None] == np.arange(slots)

    def put(numbers: np.ndarray, value: Value, choice: Choice) -> np.ndarray:
        planted = numbers.copy()
        planted[np.arange(len(numbers)), places(len(numbers), choice)] = vectors[value]
        return planted

    return Shortcut(feature, put, *_whole(1, covers, opaque=True))
