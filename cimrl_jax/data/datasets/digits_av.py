"""Handwritten and spoken digits: a picture (MNIST) and a recording (Free Spoken Digit Dataset). The speaker and the ground's colour are the shortcut.

`data.path` is a folder with
  mnist/  the four official files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz,
  fsdd/   recordings.zip, or recordings/: {digit}_{speaker}_{index}.wav, 8 kHz, mono, 16 bits (github.com/Jakobovski/free-spoken-digit-dataset).

Every example has an attribute with as many values as there are classes; it sets the hue behind the digit and whose voice speaks: the speakers are
dealt to the attribute's values, three to each of two. Pictures are paired with recordings of their digit at random, each picture once, recordings as
often as needed. The official splits hold in both modalities: test takes t10k and the recordings with index 0-4; validation and training take train
and the recordings with index 5-9 and 10 or more. Splits made of the same pictures differ in nothing but what the attribute sets.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from cimrl_jax.data import pictures, planting, resampling, spectrogram
from cimrl_jax.data.source import ArraySource, Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.options import Range, make_options
from cimrl_jax.types import Expected, Feature

WHERE = "data set 'digits_av'"
NOTES = "MNIST (LeCun, Cortes, Burges; CC BY-SA 3.0) and the Free Spoken Digit Dataset (Z. Jackson and others; CC BY-SA 4.0); grounds are generated"
CLASSES = {
    "high": ("low", "high"),
    "parity": ("even", "odd"),
    "digit": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
}
MODALITIES = ("image", "audio")
RATE = 8000
FRAMES, BANDS, WINDOW, HOP = 32, 32, 256, 160
SAMPLES = spectrogram.span(FRAMES, window=WINDOW, hop=HOP)
"""0.652 s: nine recordings in ten are no longer."""
INDICES = {"test": range(5), "validation": range(5, 10), "train": range(10, 1000)}
Share = Annotated[float, Range(low=0, high=1)]
Size = Annotated[int, Range(low=1)]


@dataclasses.dataclass(frozen=True)
class Options:
    task: Literal["high", "parity", "digit"] = "high"
    """What is to be told: "high" (is the digit 5 or more), "parity", or "digit" (ten classes; the six speakers then serve ten attribute values)."""
    correlation: Share = 0.95
    """P(attribute = label) in training, exact in every class. The other examples take the other values equally often."""
    validation_correlation: Share | None = None
    """The same in validation; none: as in training."""
    test_correlation: Share | None = None
    """The same in test; none: as in training. test_flipped has 1 - this."""
    train: Size = 4000
    """Training pictures."""
    validation: Size = 400
    """Validation pictures, of the same official file as those for training; no picture is in both."""
    test: Size = 800
    """Test pictures; every split whose name begins with test has the same."""
    cue_accuracy: Share = 0.9
    """Share of examples, in each class, whose spoken digit is the pictured one; the others speak a digit of another class."""
    ink: Annotated[float, Range(above=0, high=1)] = 1.0
    """How white the digit is: 1 covers the ground wholly, less lets it shine through."""
    noise: Annotated[float, Range(low=0)] = 0.05
    """Standard deviation of the pixel noise, in 0..1 of the full range."""
    jitter: Annotated[float, Range(low=0, high=0.4)] = 0.1
    """How far an example's ground strays from its attribute's: +- this in brightness (of 1), +- a fifth of the way to the next hue times this."""
    hiss: Annotated[float, Range(low=0)] = 0.1
    """White noise added to each recording: its root mean square, as a multiple of the recording's own."""
    separate: bool = False
    """Draw the speaker's attribute independently of the ground's, at the same correlation; groups follow the ground's."""
    data_seed: Annotated[int, Range(low=0)] = 0
    """Draws the splits, the pairs, the attributes and everything else that is drawn."""


def build(options: Options, *, path: pathlib.Path | None = None, expected: Mapping[str, Expected] | None = None) -> Dataset:
    """The data set in the folder `path`: image [28, 28, 3] uint8 and audio [32, 32] float32, a log-mel spectrogram of the first 0.65 s in which every
    band has mean 0 and standard deviation 1 over the training recordings. Regions cover the image only: a voice is everywhere in a recording.
    `expected`: what the pretrained encoders of these modalities read.

    Raises:
      UserError: a bad option, a file that is missing or damaged, or an encoder that expects inputs of another shape.
    """
    make_options(Options, dataclasses.asdict(options), "data")
    if path is None:
        raise UserError(f"{WHERE}: it reads files; set data.path to a folder with mnist/ and fsdd/ (`--help digits_av` says what they hold)")
    classes = CLASSES[options.task]
    voices = read_voices(path / "fsdd", options, len(classes))
    sizes = {"train": options.train, "validation": options.validation, "test": options.test}
    examples = {}
    for official, names in {"train": ("train", "validation"), "t10k": ("test",)}.items():
        pixels, digit = read_mnist(path / "mnist", official)
        order = resampling.interleave(digit, planting.generator(options.data_seed, official, "splits"))
        wanted = [sizes[name] for name in names]
        if sum(wanted) > len(order):
            raise UserError(f"{WHERE}: {' + '.join(names)} is {sum(wanted)}, but {official} holds only {len(order)} pictures; ask for fewer")
        for name, rows in zip(names, np.split(order[: sum(wanted)], np.cumsum(wanted)[:-1]), strict=True):
            examples[name] = _Examples.draw(options, name, pixels[rows], digit[rows], voices)

    given = (options.validation_correlation, options.test_correlation)
    validation, test = (options.correlation if value is None else value for value in given)
    splits = {}
    for name, draw in planting.draws((options.correlation, validation, test), MODALITIES).items():
        base = examples[draw.base]
        together = not options.separate and len(set(draw.correlations)) == 1
        image, audio = (
            planting.attributes(base.label, len(classes), share, planting.generator(options.data_seed, name, "both" if together else modality))
            for modality, share in zip(MODALITIES, draw.correlations, strict=True)
        )
        splits[name] = base.source(image, audio, audio if name == "test_audio_only" else image)
    features = {
        "image": Feature("image", (28, 28, 3), "uint8", flip=False, mean=(0.5,) * 3, std=(0.5,) * 3),
        "audio": Feature("spectrogram", (FRAMES, BANDS), "float32", mean=(0.0,), std=(1.0,)),
    }
    return Dataset(
        name="digits_av",
        features={m: pictures.if_expected(own, (expected or {}).get(m), modality=m, where=WHERE) for m, own in features.items()},
        class_names=classes,
        group_names=planting.group_names(classes, classes),
        attribute_names=classes,
        splits=splits,
        keys=planting.keys(splits),
        notes=NOTES,
    )


def read_mnist(folder: pathlib.Path, official: str) -> tuple[UInt8[np.ndarray, "n 28 28"], Int[np.ndarray, " n"]]:
    """(pixels, digit) of the official split "train" or "t10k"."""
    pixels = read_idx(folder / f"{official}-images-idx3-ubyte.gz", rank=3)
    digit = read_idx(folder / f"{official}-labels-idx1-ubyte.gz", rank=1)
    if pixels.shape != (len(digit), 28, 28) or digit.max(initial=0) > 9:
        found = f"pictures of shape {pixels.shape} and {len(digit)} labels up to {digit.max(initial=0)}"
        raise UserError(f"{WHERE}: {folder} holds as {official} {found}; expected 28x28 pictures with a digit each: fetch the files again")
    return pixels, digit.astype(np.int32)


def read_idx(path: pathlib.Path, *, rank: int) -> UInt8[np.ndarray, "..."]:
    """The bytes of a gzipped IDX file (yann.lecun.com/exdb/mnist) in its shape."""
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{WHERE}: there is no {path}; expected data.path/mnist to hold the four official MNIST files") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{WHERE}: cannot read {path} ({error}); expected an official MNIST file, gzipped: fetch it again") from error
    head = 4 + 4 * rank
    if len(content) < head or content[:4] != bytes((0, 0, 8, rank)):
        raise UserError(f"{WHERE}: {path} is no IDX file of bytes with {rank} dimensions; fetch it again")
    shape = struct.unpack(f">{rank}I", content[4:head])
    if len(content) - head != math.prod(shape):
        raise UserError(f"{WHERE}: {path} holds {len(content) - head} bytes; its head says {' x '.join(map(str, shape))}: fetch it again")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


@dataclasses.dataclass(frozen=True)
class Voices:
    """All recordings as spectrograms, and which of them a digit can be spoken by."""

    cells: Float[np.ndarray, "recordings time mel"]
    speakers: tuple[tuple[str, ...], ...]
    """Of each value of the attribute."""
    rows: dict[tuple[str, int, str], Int[np.ndarray, " k"]]
    """(split, digit, speaker) -> recordings."""


def read_voices(folder: pathlib.Path, options: Options, values: int) -> Voices:
    """The recordings in fsdd/recordings.zip or fsdd/recordings/."""
    names, waves = zip(*sorted(_recordings(folder)), strict=True)
    parts = [name.split("_") for name in names]
    waves = np.stack(waves)
    rng = planting.generator(options.data_seed, "voices")
    loudness = np.sqrt((waves**2).mean(1, keepdims=True))
    waves = waves + options.hiss * loudness * rng.standard_normal(waves.shape, np.float32)
    cells = spectrogram.log_mel(waves.astype(np.float32), rate=RATE, bands=BANDS, window=WINDOW, hop=HOP)
    digit, index = (np.array([int(part[place]) for part in parts]) for place in (0, -1))
    speaker = np.array(["_".join(part[1:-1]) for part in parts])
    everyone = rng.permutation(np.unique(speaker)).tolist()
    dealt = tuple(tuple(everyone[value::values]) or (everyone[value % len(everyone)],) for value in range(values))
    rows = {}
    for split, indices in INDICES.items():
        within = np.isin(index, indices)
        for number in range(10):
            for name in everyone:
                rows[split, number, name] = np.flatnonzero(within & (digit == number) & (speaker == name))
                if not len(rows[split, number, name]):
                    wanted = f"index in {indices[0]}..{indices[-1]}"
                    raise UserError(f"{WHERE}: {folder} has no recording of {number} by {name} with an {wanted} for {split}; fetch all of them")
    training = cells[np.isin(index, INDICES["train"])]
    mean, std = training.mean((0, 1)), training.std((0, 1))
    return Voices((cells - mean) / np.maximum(std, 1e-6), dealt, rows)


def _recordings(folder: pathlib.Path) -> Iterator[tuple[str, Float[np.ndarray, " samples"]]]:
    """(file name without its ending, the first `SAMPLES` samples)."""
    archive, found = folder / "recordings.zip", False
    try:
        if archive.exists():
            with zipfile.ZipFile(archive) as file:
                contents = [(name, file.read(name)) for name in file.namelist()]
        else:
            contents = [(str(name), name.read_bytes()) for name in (folder / "recordings").glob("*.wav")]
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{WHERE}: cannot read the recordings in {folder} ({error}); fetch them again") from error
    for name, content in contents:
        if re.fullmatch(r"\d_\w+_\d+", stem := pathlib.PurePosixPath(name).stem) and name.endswith(".wav"):
            found = True
            yield stem, spectrogram.of_length(spectrogram.read_wav(content, rate=RATE, where=f"{WHERE}: {name} in {folder}"), SAMPLES)
    if not found:
        raise UserError(
            f"{WHERE}: there are no recordings {{digit}}_{{speaker}}_{{index}}.wav in {folder}; expected recordings.zip or recordings/ there"
        )


@dataclasses.dataclass(frozen=True)
class _Examples:
    """Everything about a base split's examples that the attribute does not touch, so that the splits made of them differ only by it."""

    options: Options
    base: str
    ink: Float[np.ndarray, "n 28 28"]
    label: Int[np.ndarray, " n"]
    spoken: Int[np.ndarray, " n"]
    """The digit that is heard."""
    picks: Int[np.ndarray, "n 2"]
    """Large random numbers that choose the speaker within the attribute's and the recording."""
    voices: Voices

    @staticmethod
    def draw(options: Options, base: str, pixels: UInt8[np.ndarray, "n 28 28"], digit: Int[np.ndarray, " n"], voices: Voices) -> _Examples:
        rng = planting.generator(options.data_seed, base, "examples")
        of_digit = {"high": np.arange(10) // 5, "parity": np.arange(10) % 2, "digit": np.arange(10)}[options.task]
        label = of_digit[digit].astype(np.int32)
        named = planting.attributes(label, len(CLASSES[options.task]), options.cue_accuracy, rng)
        others = [np.flatnonzero(of_digit == klass) for klass in range(len(CLASSES[options.task]))]
        wrong = np.array([rng.choice(others[klass]) for klass in named], np.int32)
        # A stroke's core is wholly ink and its surroundings wholly ground; only its rim mixes both.
        ink = ((pixels.astype(np.float32) - 30) / 170).clip(0, 1) * np.float32(options.ink)
        return _Examples(options, base, ink, label, np.where(named == label, digit, wrong), rng.integers(2**31, size=(len(digit), 2)), voices)

    def pictures(self, attribute: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n 28 28 3"]:
        """ground * (1 - ink) + white * ink + noise."""
        options, n, values = self.options, len(attribute), len(CLASSES[self.options.task])
        rng = planting.generator(options.data_seed, self.base, "pictures")
        hue, brightness = rng.uniform(-1, 1, n) * options.jitter / 5 / values, 0.55 + rng.uniform(-1, 1, n) * options.jitter
        noise = rng.standard_normal((n, 28, 28, 3), np.float32) * np.float32(options.noise)
        ground = pictures.colour(attribute / values + hue, 0.8, brightness).astype(np.float32)[:, None, None, :]
        ink = self.ink[..., None]
        return ((ground * (1 - ink) + ink + noise) * 255).round().clip(0, 255).astype(np.uint8)

    def recordings(self, attribute: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Which of all recordings each example speaks with."""
        chosen = []
        for value, digit, (who, which) in zip(attribute.tolist(), self.spoken.tolist(), self.picks.tolist(), strict=True):
            speakers = self.voices.speakers[value]
            rows = self.voices.rows[self.base, digit, speakers[who % len(speakers)]]
            chosen.append(rows[which % len(rows)])
        return np.array(chosen)

    def source(self, image: Int[np.ndarray, " n"], audio: Int[np.ndarray, " n"], attribute: Int[np.ndarray, " n"]) -> ArraySource:
        inputs = {"image": self.pictures(image), "audio": self.voices.cells[self.recordings(audio)]}
        group = self.label * len(CLASSES[self.options.task]) + attribute
        regions = {"cause": {"image": self.ink > 0.5 * self.options.ink}, "shortcut": {"image": self.ink < 1}}
        return ArraySource(inputs=inputs, label=self.label, group=group.astype(np.int32), regions=regions)
