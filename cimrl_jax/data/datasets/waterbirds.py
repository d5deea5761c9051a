"""Landbird or waterbird (Waterbirds, Sagawa et al. 2020): a photograph and words. The background tells: most landbirds are shown on land.

`data.path` is the folder that the authors' archive waterbird_complete95_forest2water2.tar.gz unpacks to:
  metadata.csv                a row per picture: img_id, img_filename, y (1: waterbird), split (0 train, 1 validation, 2 test), place (1: water),
                              place_filename (the background in Places),
  001.Black_footed_Albatross/ and so on, the pictures that img_filename names.
Optional beside them, from CUB-200-2011 (Wah et al. 2011):
  captions/ or text_c10/      ten captions of each picture, one a line, in files as img_filename names them but for .txt (Reed et al. 2016),
  images.txt, bounding_boxes.txt   where the bird is: the cause in the picture.

The text is the species (which tells the label: every species is a landbird or a waterbird) or a caption, and the background's name, which is the
spurious text. Groups are label x background. Splits are the official ones. In the official test the background says nothing, so that there is a
test_balanced only where rows are missing; train_randomised has every training row, some many times, so that the background says nothing.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from cimrl_jax.data import balancing, listing, metadata, pictures, planting
from cimrl_jax.data.columns import in_parallel
from cimrl_jax.data.source import Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.options import make_options
from cimrl_jax.types import Expected

WHERE = "data set 'waterbirds'"
MEND = "get waterbird_complete95_forest2water2.tar.gz from github.com/kohpangwei/group_DRO and set data.path to the folder that it unpacks to"
NOTES = "Waterbirds (Sagawa et al. 2020): birds of CUB-200-2011 on backgrounds of Places, for non-commercial research"
CLASSES = ("landbird", "waterbird")
PLACES = ("land", "water")
GROUPS = planting.group_names(CLASSES, PLACES)
SPLITS = ("train", "validation", "test")
COLUMNS = ("img_filename", "y", "split", "place", "place_filename")
COUNTS = {"train": (3498, 184, 56, 1057), "validation": (467, 466, 133, 133), "test": (2255, 2255, 642, 642)}
"""Of the groups, as published."""
CAPTIONS = ("captions", "text_c10")


@dataclasses.dataclass(frozen=True)
class Options(listing.Options):
    text: Literal["species", "cub", "none"] = "species"
    """What the text says of the bird: its species, a caption of CUB's, or nothing."""
    place_in_text: bool = True
    """Whether the text names the background, as in "on water: ocean". Without it and with text none there is no text."""
    caption: Literal["first", "random"] = "first"
    """Which of a picture's captions: its first, or one drawn by data_seed."""


def build(options: Options, *, path: pathlib.Path | None = None, expected: Mapping[str, Expected] | None = None) -> Dataset:
    """The data set: image [size, size, 3] uint8 and text [length] int32. Regions: the cause are the bird's box, where boxes are given, and the words
    of its species; the shortcut are the words that name the background. `expected`: what the pretrained encoders of these modalities read.

    Raises:
      UserError: a bad option, a file that is missing or damaged, a bad row with on_bad_row=fail, or more rows than were published.
    """
    make_options(Options, dataclasses.asdict(options), "data")
    if path is None:
        raise UserError(f"{WHERE}: it reads files; set data.path to a folder with metadata.csv and the pictures (`--help waterbirds` says more)")
    return listing.assemble(read(options, path), options, expected=expected)


def read(options: Options, path: pathlib.Path) -> listing.Listing:
    """The rows of metadata.csv, their captions and boxes.

    Raises:
      UserError: a file that is missing or damaged.
    """
    columns, lines = metadata.table(path / "metadata.csv", COLUMNS, where=WHERE, mend=MEND)
    names = columns["img_filename"]
    faults = []
    label, place, split = (
        np.array([known.index(value) if value in known else -1 for value in columns[name]], np.int32)
        for name, known in (("y", ("0", "1")), ("place", ("0", "1")), ("split", ("0", "1", "2")))
    )
    for kind, name, codes in (("unknown label", "y", label), ("unknown place", "place", place), ("unknown split", "split", split)):
        expected = "0, 1 or 2" if name == "split" else "0 or 1"
        faults += [listing.Fault(row, kind, f"{name} is {columns[name][row]!r}, expected {expected}") for row in np.flatnonzero(codes < 0).tolist()]
    files = [listing.inside(path, name) for name in names]
    faults += [
        listing.Fault(row, "outside of the folder", f"img_filename is {names[row]!r}, expected a file in {path}")
        for row, file in enumerate(files)
        if file is None
    ]
    words: list[str | None] = [""] * len(names)
    marks = {}
    if options.text == "species":
        words = [*map(species, names)]
        marks["cause"] = {word for name in set(map(species, names)) for word in name.split()}.__contains__
    elif options.text == "cub":
        words, more = _captions(options, path, names)
        faults += more
    if options.place_in_text:
        seen = [re.fullmatch(r"/?\w/(\w+)/.+", name) for name in columns["place_filename"]]
        faults += [
            listing.Fault(row, "unknown place", f"place_filename is {columns['place_filename'][row]!r}, expected such as /o/ocean/00002178.jpg")
            for row, found in enumerate(seen)
            if found is None
        ]
        backgrounds = [found[1].replace("_", " ") if found else "" for found in seen]
        words = [text and f"{text} " for text in words]
        words = [own if own is None else f"{own}on {PLACES[at]}: {name}" for own, at, name in zip(words, place.tolist(), backgrounds, strict=True)]
        marks["shortcut"] = {*PLACES, *(word for name in set(backgrounds) for word in name.split())}.__contains__
    boxes, more = _boxes(path, names, files)
    texts = {"text": listing.Texts(words, marks)} if options.text != "none" or options.place_in_text else {}
    found = listing.Listing(
        name="waterbirds",
        columns={"image": listing.Pictures(files, boxes=boxes), **texts},
        label=np.maximum(label, 0),
        class_names=CLASSES,
        # A row of unknown split is looked at with the training rows.
        splits={name: np.flatnonzero(np.maximum(split, 0) == number) for number, name in enumerate(SPLITS)},
        origins=listing.Lines("metadata.csv", lines),
        notes=NOTES,
        ids=names,
        group=np.where((label < 0) | (place < 0), -1, len(PLACES) * label + place).astype(np.int32),
        group_names=GROUPS,
        attribute_names=PLACES,
        faults=tuple(faults + more),
        published={name: dict(zip(GROUPS, counts, strict=True)) for name, counts in COUNTS.items()},
    )
    return balancing.add(found, options)


def species(name: str) -> str:
    """What the folder of a picture says, in lower-case words: "001.Black_footed_Albatross/..." is a black footed albatross."""
    return name.split("/")[0].split(".", 1)[-1].replace("_", " ").lower()


def _captions(options: Options, path: pathlib.Path, names: Sequence[str]) -> tuple[list[str | None], list[listing.Fault]]:
    """(a caption of each picture, None where it cannot be had; faults)."""
    folder = next((path / name for name in CAPTIONS if (path / name).is_dir()), None)
    if folder is None:
        raise UserError(f"{WHERE}: text is cub, but {path} has no captions/ or text_c10/; put CUB's captions there, or set --data.text species")
    files = [listing.inside(folder, f"{name.rpartition('.')[0]}.txt") for name in names]
    found, reasons = metadata.contents(files)
    lines = [[line.strip() for line in (text or "").splitlines() if line.strip()] for text in found]
    empty = {row: ("empty text", f"{files[row]} has no caption") for row, own in enumerate(lines) if not own and found[row] is not None}
    drawn = planting.generator(options.data_seed, "caption").random(len(names)) * (options.caption == "random")
    captions = [own[int(share * len(own))] if own else None for own, share in zip(lines, drawn.tolist(), strict=True)]
    return captions, [listing.Fault(row, *reason) for row, reason in (reasons | empty).items()]


def _boxes(
    path: pathlib.Path, names: Sequence[str], files: Sequence[pathlib.Path | None]
) -> tuple[dict[str, list[tuple[listing.Box, ...]]], list[listing.Fault]]:
    """({"cause": the bird's box of each picture}, faults). CUB's boxes are in pixels, so that the pictures' sizes are read."""
    if not (path / "bounding_boxes.txt").exists():
        return {}, []
    mend = "get images.txt and bounding_boxes.txt of CUB-200-2011 again, or remove both"
    numbers, pixels = {}, {}
    for file, parts in (("images.txt", 2), ("bounding_boxes.txt", 5)):
        for number, line in enumerate(metadata.lines(path / file, where=WHERE, mend=mend), 1):
            cells = line.split()
            try:
                if len(cells) != parts:
                    raise ValueError
                if parts == 2:
                    numbers[cells[1]] = cells[0]
                else:
                    pixels[cells[0]] = tuple(map(float, cells[1:]))
            except ValueError:
                expected = "a number and a name" if parts == 2 else "five numbers"
                raise UserError(f"{WHERE}: {path / file}, line {number}: expected {expected}, got {line!r}; {mend}") from None

    def share(row: int) -> tuple[tuple[listing.Box, ...], str]:
        file, box = files[row], pixels.get(numbers.get(names[row], ""))
        if file is None or box is None or not file.is_file():
            return (), ""
        try:
            width, height = pictures.dimensions(file, where=str(file))
        except UserError:
            return (), ""  # the picture's own fault
        left, top, wide, tall = box
        if left + wide > width + 1 or top + tall > height + 1:
            return (), f"the bird's box {box} is not inside of {file} ({width} x {height} pixels); the picture is not the official one"
        return ((left / width, top / height, wide / width, tall / height),), ""

    found = list(in_parallel(share, range(len(names))))
    faults = [listing.Fault(row, "box outside of the picture", reason) for row, (_, reason) in enumerate(found) if reason]
    return {"cause": [boxes for boxes, _ in found]}, faults
