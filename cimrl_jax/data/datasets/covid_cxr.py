"""COVID-19 or another finding: a chest X-ray and the clinical notes. The view tells: the severely ill are taken lying down (AP), the others not (PA).

`data.path` is a folder as github.com/ieee8023/covid-chestxray-dataset distributes it (Cohen et al. 2020), or a part of it:
  metadata.csv  a row per picture; read are patientid, finding, view, modality, filename, clinical_notes,
  images/       the pictures,
  index.csv     optional: only the pictures in it count. Columns: source_filename (metadata.csv's filename), file (where it lies), and, where known,
                the lungs' boxes rl_x, rl_y, rl_w, rl_h (right) and ll_* (left) as shares of the picture's width and height.

Used are X-rays from the front, AP (also lying) or PA, of patients whose finding is known; `notes` counts what was left out. Groups are label x view.
There is no official split: patients are dealt to folds, alike in label and view, and one fold is the test, the next the validation.
train_randomised has every training row at least once, and some several times, so that the view is independent of the label.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Int

from cimrl_jax.data import metadata, pictures, planting, resampling, tokenise
from cimrl_jax.data.source import ArraySource, Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.options import Range, make_options
from cimrl_jax.types import Expected, Feature

WHERE = "data set 'covid_cxr'"
NOTES = "COVID-19 image data collection (Cohen et al. 2020); every picture has its own licence, see metadata.csv"
CLASSES = ("other", "COVID-19")
VIEWS = ("PA", "AP")
COLUMNS = ("patientid", "finding", "view", "modality", "filename", "clinical_notes")
BOXES = tuple(f"{lung}_{side}" for lung in ("rl", "ll") for side in "xywh")
MEND = "expected data.path to be a folder with metadata.csv and images/ as distributed: fetch it again"
UNKNOWN = ("", "todo", "unknown")
LEAKS = re.compile(
    # Names of COVID-19, its virus, its test and where it came from; then names of the other findings and of what causes them.
    r"covid.*|sars.*|corona.*|.*ncov.*|wuhan|hubei|china|chinese|pandemic|epidemic|.*pcr|swabs?|tested|negative|positive|virus|viral|"
    r"pneumocystis|jirovecii?|pcp|pjp|hiv.*|aids|immunodeficiency|strep.*|pneumococc.*|klebsiella|legionella|legionnaires?|mycoplasma.*|varicella.*|"
    r"chickenpox|zoster|influenza.*|h\dn\d|lipoid|mers.*|chlamyd.*|psittac.*|coli|bacteria.*|tubercul.*|ards"
)
MASK = "<masked>"
Share = Annotated[float, Range(low=0, high=1)]
Boxes = tuple[tuple[float, float, float, float], ...]


@dataclasses.dataclass(frozen=True)
class Options:
    folds: Annotated[int, Range(low=3)] = 5
    """Into how many parts the patients are dealt."""
    fold: Annotated[int, Range(low=0)] = 0
    """Which part is the test, from 0; the next is the validation, the others are for training."""
    size: Annotated[int, Range(low=8)] = 64
    """Height and width of the pictures: cropped about the centre to a square, then averaged over areas. A pretrained encoder's own size takes its
    place, likewise its channels, mean and standard deviation."""
    channels: Literal[1, 3] = 1
    """Grey, or the same grey thrice for encoders of colour pictures."""
    length: Annotated[int, Range(low=1)] = 64
    """Words of the notes; longer ones are cut. With a pretrained encoder up to twice as many pieces of words."""
    mask_leaks: Literal["no", "mask", "remove"] = "remove"
    """What becomes of words in the notes that name the finding: nothing, <masked> in their place (how many there are still tells), or removed."""
    without_notes: Literal["keep", "drop"] = "keep"
    """What becomes of pictures without notes, nearly all of them COVID-19: text is absent there, or they are left out."""
    data_seed: Annotated[int, Range(low=0)] = 0
    """Deals the patients to folds, and draws train_randomised."""


def build(options: Options, *, path: pathlib.Path | None = None, expected: Mapping[str, Expected] | None = None) -> Dataset:
    """The data set: image [size, size, channels] uint8 and text [length] int32. Regions: the cause are the lungs, where boxes are given; the shortcut
    are the words that name the finding, unless they were removed. `expected`: what the pretrained encoders of these modalities read.

    Raises:
      UserError: a bad option, a file that is missing or damaged, or a fold without one of the classes.
    """
    make_options(Options, dataclasses.asdict(options), "data")
    if path is None:
        raise UserError(f"{WHERE}: it reads files; set data.path to a folder with metadata.csv and images/ (`--help covid_cxr` says what they hold)")
    if options.fold >= options.folds:
        raise UserError(f"{WHERE}: fold is {options.fold}, but there are {options.folds} folds; choose one of 0 to {options.folds - 1}")
    rows, left_out = read(path, options)
    fold = _folds(rows, options)
    parts = {"test": fold == options.fold, "validation": fold == (options.fold + 1) % options.folds}
    parts["train"] = ~(parts["test"] | parts["validation"])
    chosen = {name: np.flatnonzero(part) for name, part in parts.items()}
    label, view = (np.array([getattr(row, name) for row in rows], np.int32) for name in ("label", "view"))
    train = chosen["train"]
    for name, part in chosen.items():
        if set(label[part].tolist()) != {0, 1}:
            raise UserError(f"{WHERE}: {name} has no example of one class with fold {options.fold} of {options.folds}; choose fewer folds")
    rng = planting.generator(options.data_seed, "randomised")
    if len(set(zip(label[train].tolist(), view[train].tolist(), strict=True))) == 4:
        chosen["train_randomised"] = train[resampling.randomised(label[train], view[train], len(VIEWS), rng, where=WHERE)]

    of_image, of_text = ((expected or {}).get(m) for m in ("image", "text"))
    feature = pictures.as_expected(Feature("image", (options.size, options.size, options.channels), "uint8", flip=False), of_image)
    height, width, channels = feature.shape
    image = np.stack([pictures.read(row.picture, height=height, width=width, channels=channels, where=WHERE) for row in rows])
    if of_image is None:
        mean, std = (float(value) for value in (image[train].mean() / 255, image[train].std() / 255))
        feature = dataclasses.replace(feature, mean=(mean,) * channels, std=(std,) * channels)
    words = [words_of(row.notes, options) for row in rows]
    tokeniser = tokenise.fit([words[row] for row in train], length=options.length, least=2, expected=of_text)
    text = tokeniser.encode(words)
    present = (text != tokenise.PADDING).any(1)
    lungs = np.stack([_lungs(row, height, width) for row in rows])
    leaks = tokenise.spread(tokeniser, words, [[word == MASK or LEAKS.fullmatch(word) is not None for word in own] for own in words])
    splits = {
        name: ArraySource(
            inputs={"image": image[part], "text": text[part]},
            label=label[part],
            group=len(VIEWS) * label[part] + view[part],
            present={"text": present[part]},
            regions={"cause": {"image": lungs[part]}, "shortcut": {"text": leaks[part]}},
        )
        for name, part in chosen.items()
    }
    return Dataset(
        name="covid_cxr",
        features={"image": feature, "text": tokeniser.feature()},
        class_names=CLASSES,
        group_names=planting.group_names(CLASSES, VIEWS),
        attribute_names=VIEWS,
        splits=splits,
        notes="; ".join([NOTES, *(f"{count} rows left out: {reason}" for reason, count in left_out.items())]),
    )


@dataclasses.dataclass(frozen=True)
class Row:
    picture: pathlib.Path
    patient: str
    label: int
    view: int
    notes: str
    boxes: Boxes
    """Of the lungs, where given: left, top, width, height."""


def read(path: pathlib.Path, options: Options) -> tuple[list[Row], dict[str, int]]:
    """The rows that are used, and how many of metadata.csv's are not, by reason."""
    index = path / "index.csv"
    table = records(path / "metadata.csv", COLUMNS)
    packed = {row["source_filename"]: row for row in records(index, ("file", "source_filename"), BOXES)} if index.exists() else None
    rows, left_out = [], collections.Counter()
    for row in table:
        name, finding = row["filename"], row["finding"].lower()
        view = row["view"].upper().split()[:1]
        picture = path / (packed.get(name, {}).get("file", "") if packed is not None else f"images/{name}")
        if row["modality"].lower() != "x-ray":
            left_out["no X-ray"] += 1
        elif not picture.is_file():
            left_out["no picture"] += 1
        elif finding in UNKNOWN:
            left_out["no finding"] += 1
        elif not view or view[0] not in VIEWS:
            left_out["not from the front, or not known from where"] += 1
        elif options.without_notes == "drop" and not row["clinical_notes"]:
            left_out["no notes"] += 1
        else:
            boxes = _boxes(packed[name], index) if packed is not None else ()
            patient, label = row["patientid"], int("covid-19" in finding)
            rows.append(Row(picture, patient, label, VIEWS.index(view[0]), row["clinical_notes"], boxes))
    if not rows:
        raise UserError(f"{WHERE}: none of the {len(table)} rows of {path / 'metadata.csv'} can be used ({dict(left_out)}); fetch images/ too")
    return rows, dict(left_out)


def records(path: pathlib.Path, needed: tuple[str, ...], welcome: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file, its columns `needed` and those of `welcome` that it has."""
    there = metadata.names_of(path, where=WHERE, mend=MEND)
    columns = metadata.table(path, [*needed, *(name for name in welcome if name in there)], where=WHERE, mend=MEND).columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _boxes(row: dict[str, str], path: pathlib.Path) -> Boxes:
    try:
        sides = [[row.get(f"{lung}_{part}", "") for part in "xywh"] for lung in ("rl", "ll")]
        return tuple((float(x), float(y), float(w), float(h)) for x, y, w, h in sides if all((x, y, w, h)))
    except ValueError as error:
        raise UserError(f"{WHERE}: {path}, row of {row['source_filename']}: a lung's box is no four numbers ({error}); mend the row") from error


def words_of(notes: str, options: Options) -> list[str]:
    """The notes' words, those that name the finding kept, masked or removed."""
    words = tokenise.words_of(notes)
    if options.mask_leaks == "mask":
        return [MASK if LEAKS.fullmatch(word) else word for word in words]
    return [word for word in words if options.mask_leaks == "no" or not LEAKS.fullmatch(word)]


def _folds(rows: list[Row], options: Options) -> Int[np.ndarray, " n"]:
    """The fold of each row: a patient's rows all in one, and patients alike in label and view (of their first row) spread over all."""
    kinds: dict[str, int] = {}
    for row in rows:
        kinds.setdefault(row.patient, len(VIEWS) * row.label + row.view)
    shuffled = planting.generator(options.data_seed, "folds").permutation(sorted(kinds))
    dealt = {str(patient): number % options.folds for number, patient in enumerate(sorted(shuffled, key=lambda patient: kinds[str(patient)]))}
    return np.array([dealt[row.patient] for row in rows])


def _lungs(row: Row, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    size = pictures.dimensions(row.picture, where=WHERE)
    masks = [pictures.box_in_crop(box, size, height=height, width=width) for box in row.boxes]
    return np.any(masks, axis=0) if masks else np.zeros((height, width), bool)
