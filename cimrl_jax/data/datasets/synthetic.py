"""Wholly generated slots, for tests and controlled studies: where cause and shortcut sit is known to the slot.

Every modality is `slots` vectors. In each example one of them, anywhere, holds the modality's cause (+ or - a fixed direction), another the shortcut
(+ or - another direction), and the rest hold distractors, which lie along neither.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from cimrl_jax.data import planting
from cimrl_jax.data.source import ArraySource, Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.options import Range, make_options
from cimrl_jax.types import Feature

WHERE = "data set 'synthetic'"
Share = Annotated[float, Range(low=0, high=1)]
Size = Annotated[int, Range(low=1)]
Amount = Annotated[float, Range(low=0)]
NAMES = ("negative", "positive")


@dataclasses.dataclass(frozen=True)
class Options:
    modalities: Size = 2
    """How many: m0, m1, ..."""
    mode: Literal["additive", "xor"] = "additive"
    """Cause: "additive" (each modality has a noisy one of its own) or "xor" (the label is the parity of the modalities' signs: all are needed)."""
    shortcut_in: Literal["each", "first", "cross"] = "each"
    """Shortcut: in "each" modality the attribute; in the "first" only; or "cross": the attribute is whether the first two modalities' signs differ,
    so that neither alone tells it."""
    correlation: Share = 0.95
    """P(attribute = label) in training, exact in each class."""
    validation_correlation: Share | None = None
    """The same in validation; none: as in training."""
    test_correlation: Share | None = None
    """The same in test; none: as in training. test_flipped has 1 - this."""
    cause_accuracy: Share = 0.9
    """Additive: share of examples, per modality and class, whose cause has the label's sign."""
    cause_strength: Amount = 1.0
    """Length of the cause's vector."""
    shortcut_strength: Amount = 1.5
    """Length of the shortcut's vector: the longer, the easier it is to learn."""
    noise: Amount = 0.2
    """Standard deviation of the noise on every number."""
    slots: Annotated[int, Range(low=2)] = 6
    """Slots per modality."""
    width: Annotated[int, Range(low=3)] = 8
    """Numbers per slot."""
    train: Size = 4000
    """Training examples."""
    validation: Size = 400
    """Validation examples."""
    test: Size = 800
    """Test examples; every split whose name begins with test has the same."""
    data_seed: Annotated[int, Range(low=0)] = 0
    """Draws everything."""


def build(options: Options, *, path: pathlib.Path | None = None) -> Dataset:
    """The data set; it reads no files.

    Raises:
      UserError: a bad option, or a path was given.
    """
    make_options(Options, dataclasses.asdict(options), "data")
    if options.modalities < 2 and (options.mode == "xor" or options.shortcut_in == "cross"):
        raise UserError(f"{WHERE}: mode 'xor' and shortcut_in 'cross' need two modalities; modalities is {options.modalities}")
    if path is not None:
        raise UserError(f"{WHERE} is generated and reads no files; leave data.path out (got {path})")
    names = tuple(f"m{number}" for number in range(options.modalities))
    # Only where each modality has the whole shortcut can one of them be randomised by itself.
    carriers = names if options.shortcut_in == "each" else names[:1]
    given = (options.validation_correlation, options.test_correlation)
    validation, test = (options.correlation if value is None else value for value in given)
    sizes = {"train": options.train, "validation": options.validation, "test": options.test}
    examples = {name: _Examples(options, name, names, size) for name, size in sizes.items()}
    splits = {}
    for name, draw in planting.draws((options.correlation, validation, test), carriers).items():
        base = examples[draw.base]
        shared = len(set(draw.correlations)) == 1
        attributes = [
            planting.attributes(base.label, 2, share, planting.generator(options.data_seed, name, "all" if shared else carrier))
            for carrier, share in zip(carriers, draw.correlations, strict=True)
        ]
        randomised = draw.correlations.index(None) if None in draw.correlations else 0
        splits[name] = base.source(attributes, base.label * 2 + attributes[randomised])
    return Dataset(
        name="synthetic",
        features={name: Feature("slots", (options.slots, options.width), "float32", mean=(0.0,), std=(1.0,)) for name in names},
        class_names=NAMES,
        group_names=planting.group_names(NAMES, NAMES),
        attribute_names=NAMES,
        splits=splits,
        keys=planting.keys(splits),
        notes="generated from data_seed; no outside source",
    )


class _Examples:
    """Everything about a base split's examples that the attribute does not touch, so that the splits made of them differ only by it."""

    def __init__(self, options: Options, base: str, names: tuple[str, ...], n: int) -> None:
        rng = planting.generator(options.data_seed, base)
        self.options, self.names = options, names
        self.label = rng.permutation(np.arange(n) % 2).astype(np.int32)
        self.causes = _causes(self.label, options, rng)
        self.mask: Int[np.ndarray, " n"] = planting.attributes(self.label, 2, None, rng)  # "cross": the first modality's sign
        self.places: dict[str, Int[np.ndarray, "n 2"]] = {}
        self.values: dict[str, Float[np.ndarray, "n slots width"]] = {}
        self.clean: dict[str, Float[np.ndarray, "n slots width"]] = {}
        for name, cause in zip(names, self.causes, strict=True):
            # Two different slots; the directions belong to the data set, not to the split.
            self.places[name] = np.argsort(rng.random((n, options.slots)), axis=1)[:, :2]
            values = rng.standard_normal((n, options.slots, options.width))
            basis = _directions(options, name)
            values -= values @ basis[:2].T @ basis[:2]
            values /= np.linalg.norm(values, axis=-1, keepdims=True)
            values[np.arange(n), self.places[name][:, 0]] = _signed(cause)[:, None] * options.cause_strength * basis[0]
            self.clean[name] = values
            self.values[name] = values + options.noise * rng.standard_normal(values.shape)

    def source(self, attributes: list[Int[np.ndarray, " n"]], group: Int[np.ndarray, " n"]) -> ArraySource:
        options, rows = self.options, np.arange(len(self.label))
        bits: list[Int[np.ndarray, " n"] | None] = [*attributes, *[None] * (len(self.names) - len(attributes))]
        if options.shortcut_in == "cross":
            bits[:2] = [self.mask, self.mask ^ attributes[0]]
        inputs, cause, shortcut = {}, {}, {}
        for name, bit in zip(self.names, bits, strict=True):
            values, place = self.values[name].copy(), self.places[name]
            if bit is not None:
                planted = _signed(bit)[:, None] * options.shortcut_strength * _directions(options, name)[1]
                # In the distractor's stead; the slot keeps its noise.
                values[rows, place[:, 1]] += planted - self.clean[name][rows, place[:, 1]]
            inputs[name] = values.astype(np.float32)
            cause[name] = _at(place[:, 0], options.slots)
            shortcut[name] = _at(place[:, 1], options.slots) & (bit is not None)
        return ArraySource(inputs=inputs, label=self.label, group=group.astype(np.int32), regions={"cause": cause, "shortcut": shortcut})


def _causes(label: Int[np.ndarray, " n"], options: Options, rng: np.random.Generator) -> list[Int[np.ndarray, " n"]]:
    """The sign bit of each modality's cause."""
    if options.mode == "additive":
        return [planting.attributes(label, 2, options.cause_accuracy, rng) for _ in range(options.modalities)]
    bits = [planting.attributes(label, 2, None, rng) for _ in range(options.modalities - 1)]
    return [*bits, np.bitwise_xor.reduce([label, *bits])]


def _directions(options: Options, name: str) -> Float[np.ndarray, "width width"]:
    """Orthonormal rows: the cause's direction, the shortcut's, and the rest."""
    return np.linalg.qr(planting.generator(options.data_seed, "directions", name).standard_normal((options.width, options.width)))[0].T


def _signed(bit: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    return 2 * bit - 1


def _at(place: Int[np.ndarray, " n"], slots: int) -> Bool[np.ndarray, "n slots"]:
    return place[:, None] == np.arange(slots)
