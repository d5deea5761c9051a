"""Any data set of TFDS, by its name: the records that TFDS prepared are read without TensorFlow, pictures and recordings only as they are needed.

`data.path` is the folder that TFDS keeps its data sets in (left out: TFDS_DATA_DIR or ~/tensorflow_datasets), or the folder of one data set, with its
dataset_info.json. It must have been prepared as ArrayRecord files, by `--data.download` or by
  python -c "import tensorflow_datasets as tfds; tfds.builder('NAME').download_and_prepare(file_format='array_record')"

Features are named as TFDS names them, those inside others with a /, such as attributes/Male. The modality of a picture, text or recording has its
feature's name, with _ for /; the numbers together are the modality "numbers". Classes are those of the label's feature.

Groups are label x attributes, or what `group_feature` says. With attributes there are also train_randomised (every training row, some many
times, so that the attributes are independent of the label) and test_balanced (test rows left out until all groups have as many), if every group
has rows.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import pathlib
import re
import wave
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Int

from cimrl_jax.data import balancing, listing, planting, recordings, resampling, tfds_records
from cimrl_jax.data.columns import TAKEN, Column, Numbers, Pictures, Recordings, Texts
from cimrl_jax.data.source import Dataset
from cimrl_jax.data.tfds_records import Content, Feature, Prepared, Records
from cimrl_jax.errors import UserError
from cimrl_jax.options import Range, make_options
from cimrl_jax.types import Expected

WHERE = "data set 'tfds'"
MEDIA = ("image", "text", "audio", "number")
NUMBERS = "numbers"
SUPERVISED = {"Image": "image", "Text": "text", "Audio": "audio"}
"""Kinds of features that can be inputs without being named."""


@dataclasses.dataclass(frozen=True)
class Options(listing.Options):
    dataset: str = ""
    """Its name, with configuration and version where they are wanted: caltech_birds2011, glue/cola, celeb_a:2.1.0. May be left out if data.path is
    the folder of one data set."""
    image_features: tuple[str, ...] = ()
    """Features that are pictures. If no feature is named here nor in the next three, it is what TFDS calls the data set's supervised input."""
    text_features: tuple[str, ...] = ()
    """Features that are texts; of lists of texts all, one after another."""
    audio_features: tuple[str, ...] = ()
    """Features that are recordings."""
    number_features: tuple[str, ...] = ()
    """Features that are numbers, or a fixed count of them."""
    label_feature: str = "label"
    """What is to be told: a class, a whole number, true or false, or a text. Rows with the class -1 have none."""
    attribute_features: tuple[str, ...] = ()
    """Features of the same kinds that may be shortcuts; groups are label x these."""
    group_feature: str = ""
    """Instead of attributes: a feature that is the group. Rows of one group have one label."""
    train: str = "train"
    """Training rows, as TFDS writes splits: train, train[:90%], train+extra."""
    validation: str = ""
    """Validation rows, likewise. Left out: "validation" if there is one that is not the test, else held out of the training rows."""
    test: str = ""
    """Test rows, likewise. Left out: "test" if there is one, else "validation", else held out of the training rows."""
    held_out: Annotated[float, Range(above=0, below=0.5)] = 0.1
    """Share of the training rows, alike in label and attributes, that is validation (or test) where the data set has none."""
    flip: bool = True
    """Whether a mirrored picture means the same (not so for digits and X-rays)."""
    recording: recordings.Options = recordings.Options()
    """How recordings are heard."""
    audio_rate: Annotated[int, Range(low=0)] = 0
    """Sample rate, in Hz, of recordings whose feature does not say it."""
    download: bool = False
    """Whether TFDS may download and prepare the data set if it is not there. Builders of some data sets need TensorFlow for that."""


def build(options: Options, *, path: pathlib.Path | None = None, expected: Mapping[str, Expected] | None = None) -> Dataset:
    """The data set: an image [size, size, 1 or 3] uint8, a text [length] int32 or a spectrogram [frames, bands] float32 for each such feature, and
    numbers [count] float32. `expected`: what the pretrained encoders of these modalities read.

    Raises:
      UserError: a bad option, TFDS is not installed, or the data set is not prepared, lacks a feature or a split, or has bad rows.
    """
    make_options(Options, dataclasses.asdict(options), "data")
    return listing.assemble(read(options, path), options, expected=expected)


def read(options: Options, path: pathlib.Path | None = None) -> listing.Listing:
    """The rows: labels, texts and numbers of all records, while pictures and recordings are left unread.

    Raises:
      UserError: as `build`, bad rows excepted.
    """
    prepared = tfds_records.open_folder(tfds_records.locate(options.dataset, path, download=options.download, where=WHERE), where=WHERE)
    if options.dataset and path is not None and (path / tfds_records.INFO).is_file():
        asked, held = (re.split("[/:]", name) for name in (options.dataset, prepared.title))
        if not set(asked) <= set(held):
            raise UserError(f"{WHERE}: data.dataset is {options.dataset!r}, but {path} holds {prepared.title}; leave one of them out")
    media = _media(options, prepared)
    label_of = prepared.feature(options.label_feature, "data.label_feature")
    told = _told(options, prepared)
    wanted = {"train": options.train, **_official(options, prepared.splits)}
    parts = {name: prepared.records(split, f"data.{name}") for name, split in wanted.items()}
    for (one, first), (other, second) in itertools.combinations(parts.items(), 2):
        if count := first.shared(second):
            raise UserError(f"{WHERE}: data.{one} ({first.split}) and data.{other} ({second.split}) have {count} records in common; keep them apart")

    small = [label_of, *told, *media["text"], *media["number"]]
    values: dict[str, list[Any]] = {feature.name: [] for feature in small}
    for part in parts.values():
        for example in part.examples(small):
            for name, feature in zip(values, dict.fromkeys(small), strict=True):
                values[name].append(feature.of(example))
    classes, label = _classes(label_of, values[label_of.name])
    groups = _groups(options, classes, label, [_classes(feature, values[feature.name]) for feature in told])
    offsets = np.cumsum([0, *map(len, parts.values())])
    rows = {name: np.arange(first, last) for name, first, last in zip(parts, offsets[:-1], offsets[1:], strict=True)}
    notes = [f"{prepared.title}, as TFDS distributes it", *([f"licence: {prepared.licence}"] if prepared.licence else [])]
    if options.test == "" and wanted.get("test") == "validation":
        notes.append("test is the official validation split")
    if missing := [name for name in ("validation", "test") if name not in rows]:
        rows |= _held_out(rows["train"], groups.get("group", label), missing, options)
        notes.append(f"{' and '.join(missing)} held out of {options.train}: {options.held_out:g} of its rows each, drawn by data_seed")
    found = listing.Listing(
        name="tfds",
        columns=_columns(options, media, parts, values),
        label=label,
        class_names=classes,
        splits={name: rows[name] for name in ("train", "validation", "test")},
        origins=[f"{part.split}, record {row}" for part in parts.values() for row in range(len(part))],
        notes="; ".join(notes),
        faults=tuple(listing.Fault(row, "unknown label", f"{label_of.name} is -1: no class") for row in np.flatnonzero(label < 0).tolist()),
        **groups,
    )
    return balancing.add(found, options) if found.attribute_names else found


def _media(options: Options, prepared: Prepared) -> dict[str, list[Feature]]:
    """The inputs, by what they are; each is fit to be that."""
    named: dict[str, list[str]] = {kind: list(getattr(options, f"{kind}_features")) for kind in MEDIA}
    if not any(named.values()):
        given = prepared.builder.info.supervised_keys
        own = prepared.features.get(given[0]) if given and isinstance(given[0], str) else None
        if own is None or own.kind not in SUPERVISED:
            wanted = ", ".join(f"data.{kind}_features" for kind in MEDIA)
            raise UserError(f"{WHERE}: name the inputs of {prepared.title} by {wanted}; it has {prepared.describe()}")
        named[SUPERVISED[own.kind]].append(own.name)
    found = {kind: [prepared.feature(name, f"data.{kind}_features") for name in names] for kind, names in named.items()}
    modalities = [_modality(own) for kind in MEDIA[:-1] for own in found[kind]] + [NUMBERS] * bool(found["number"])
    names = [name for own in named.values() for name in own]
    for kind, features in found.items():
        for own in features:
            if problem := _unfit(kind, own, options):
                raise UserError(f"{WHERE}: {own.name} ({own.kind}), which data.{kind}_features names, {problem}")
            if own.name in (options.label_feature, options.group_feature, *options.attribute_features):
                raise UserError(f"{WHERE}: {own.name}, which data.{kind}_features names, is what is to be told or the group; take it out there")
            if names.count(own.name) > 1 or kind != "number" and modalities.count(_modality(own)) > 1:
                raise UserError(f"{WHERE}: {own.name}, which data.{kind}_features names, is there twice, or another has its name; name each once")
    return found


def _told(options: Options, prepared: Prepared) -> list[Feature]:
    """What groups are made of."""
    if options.group_feature and options.attribute_features:
        raise UserError(f"{WHERE}: data.group_feature and data.attribute_features are both given; leave one of them out")
    if options.group_feature:
        return [prepared.feature(options.group_feature, "data.group_feature")]
    if options.label_feature in options.attribute_features:
        raise UserError(f"{WHERE}: {options.label_feature} is the label, and data.attribute_features names it too; take it out there")
    return [prepared.feature(name, "data.attribute_features") for name in options.attribute_features]


def _modality(feature: Feature) -> str:
    name = re.sub(r"\W", "_", feature.name)
    return name if name.isidentifier() and name not in (NUMBERS, *itertools.chain(*TAKEN)) else f"feature_{name}"


def _unfit(kind: str, own: Feature, options: Options) -> str:
    """Why a feature cannot be an input of that kind; empty if it can."""
    if own.listed and kind != "text":
        return "is a list in every example; expected one value"
    match kind:
        case "text":
            return "" if own.rate is None and own.shape == () and own.dtype.kind in "OSU" else "is no text"
        case "image":
            picture = len(own.shape) in (2, 3) and own.shape[2:] in ((), (1,), (3,), (4,), (None,)) and own.dtype == np.uint8
            return "" if picture else f"is {own.dtype} of the shape {own.shape}; expected uint8 of [height, width, 1, 3 or 4]"
        case "audio":
            if own.rate is None and not (len(own.shape) in (1, 2) and own.dtype.kind in "if"):
                return "is no recording"
            return "" if own.rate or options.audio_rate or own.dtype.kind == "O" else "does not say its sample rate; set --data.audio-rate"
        case _:
            return "" if None not in own.shape and own.dtype.kind in "iufb" else "is not a fixed count of numbers"


def _official(options: Options, splits: Sequence[str]) -> dict[str, str]:
    """The splits for validation and test that are named or that the data set has."""
    test = options.test or next((name for name in ("test", "validation") if name in splits and name != options.validation), "")
    validation = options.validation or ("validation" if "validation" in splits and "validation" not in test else "")
    return {name: split for name, split in (("validation", validation), ("test", test)) if split}


def _classes(feature: Feature, values: Sequence[Any]) -> tuple[tuple[str, ...], Int[np.ndarray, " n"]]:
    """(the names of the values, which of them each row has: -1 if none)."""
    if feature.listed or feature.shape != () or feature.dtype.kind == "f" or feature.rate is not None:
        raise UserError(
            f"{WHERE}: {feature.name} ({feature.kind}) cannot tell rows apart; expected one class, whole number, truth value or text in each"
        )
    if feature.dtype.kind == "b":
        word = feature.keys[-1].replace("_", " ")
        return (f"not {word}", word), np.array(values).astype(np.int32)
    if hasattr(feature.connector, "names"):
        return tuple(feature.connector.names), np.array(values, np.int32)
    known = sorted({_plain(value) for value in values})
    place = {value: number for number, value in enumerate(known)}
    return tuple(map(str, known)), np.array([place[_plain(value)] for value in values], np.int32)


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value.item() if hasattr(value, "item") else value


def _groups(
    options: Options, classes: tuple[str, ...], label: Int[np.ndarray, " n"], told: Sequence[tuple[tuple[str, ...], Int[np.ndarray, " n"]]]
) -> dict[str, Any]:
    """The listing's fields that say of groups. `told`: names and codes of the values of each feature that they are made of."""
    if not told:
        return {}
    if options.group_feature:
        names, group = told[0]
        for number in np.unique(group[group >= 0]).tolist():
            if len(own := np.unique(label[(group == number) & (label >= 0)])) > 1:
                both = " and ".join(repr(classes[klass]) for klass in own[:2])
                raise UserError(
                    f"{WHERE}: group {names[number]!r} of {options.group_feature} has rows of {both}, but a group has one label; "
                    "if it is an attribute, name it in data.attribute_features instead"
                )
        return {"group": group, "group_names": names}
    values = tuple(", ".join(parts) for parts in itertools.product(*(names for names, _ in told)))
    attribute, known = np.zeros(len(label), np.int32), label >= 0
    for names, codes in told:
        attribute, known = attribute * len(names) + codes, known & (codes >= 0)
    group = np.where(known, label * len(values) + attribute, -1).astype(np.int32)
    return {"group": group, "group_names": planting.group_names(classes, values), "attribute_names": values}


def _held_out(
    train: Int[np.ndarray, " n"], kind: Int[np.ndarray, " rows"], missing: Sequence[str], options: Options
) -> dict[str, Int[np.ndarray, " k"]]:
    """The rows of each missing split, and the training rows that are left; alike in what `kind` tells of them."""
    order = train[resampling.interleave(kind[train], planting.generator(options.data_seed, "held out"))]
    count = max(round(options.held_out * len(train)), 1)
    held = {name: np.sort(order[number * count : (number + 1) * count]) for number, name in enumerate(missing)}
    return {"train": np.sort(order[count * len(missing) :]), **held}


def _columns(
    options: Options, media: Mapping[str, Sequence[Feature]], parts: Mapping[str, Records], values: Mapping[str, Sequence[Any]]
) -> dict[str, Column]:
    found: dict[str, Column] = {}
    for own in media["image"]:
        channels = 1 if len(own.shape) == 2 or own.shape[-1] == 1 else 3
        found[_modality(own)] = Pictures(_contents(own, parts, _picture), channels=channels, flip=options.flip)
    for own in media["text"]:
        found[_modality(own)] = Texts([_text(value) for value in values[own.name]])
    for own in media["audio"]:
        encode = functools.partial(_recording, rate=own.rate or options.audio_rate)
        found[_modality(own)] = Recordings(_contents(own, parts, encode), options=options.recording)
    if media["number"]:
        numbers = [np.array(values[own.name], np.float32).reshape(len(values[own.name]), -1) for own in media["number"]]
        widths = [own.shape[1] for own in numbers]
        names = [[own.name] if width == 1 else [f"{own.name}[{i}]" for i in range(width)] for own, width in zip(media["number"], widths, strict=True)]
        found[NUMBERS] = Numbers(np.concatenate(numbers, axis=1), tuple(itertools.chain(*names)))
    return found


def _text(value: Any) -> str:
    return " ".join(map(_text, value)) if isinstance(value, list | tuple | np.ndarray) else str(_plain(value))


def _contents(feature: Feature, parts: Mapping[str, Records], encode: Callable[[Any], bytes]) -> Any:
    # Decoders are made once a split: every row's would be the same.
    decoders = [(part, part.decoder([feature])) for part in parts.values()]
    return [Content(part, row, feature, decode, encode) for part, decode in decoders for row in range(len(part))]


def _picture(value: Any) -> bytes:
    """The file of a picture; one that is not encoded becomes a PNG."""
    if isinstance(value, bytes):
        return value
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(value.reshape(value.shape[:2]) if value.shape[-1] == 1 else value).save(content, "PNG")
    return content.getvalue()


def _recording(value: Any, *, rate: int) -> bytes:
    """A WAV file of samples, whole numbers of 16 bits or fractions of full scale."""
    if isinstance(value, bytes):
        return value
    samples = np.asarray(value)
    whole = samples if samples.dtype.kind in "iu" else np.round(samples.astype(np.float64) * 32767)
    if len(samples) and not np.abs(whole).max() <= 32768:
        raise UserError("its samples are beyond 16 bits, or beyond full scale")
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(whole.clip(-32768, 32767).astype("<i2").tobytes())
    return content.getvalue()
