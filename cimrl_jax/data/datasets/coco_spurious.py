"""What is in a photograph, with its caption (COCO 2017, Lin et al. 2014). It has no shortcut of its own: `data.plant` plants one in both.

`data.path` is a folder with the authors' files (cocodataset.org):
  annotations/   instances_train2017.json, instances_val2017.json, captions_train2017.json, captions_val2017.json,
  train2017/, val2017/   the pictures.

`category` names what is to be told. One category: whether it is in the picture. Several: which of them; pictures with none or more than one of them
are left out. So are pictures where the category takes up less than `least_area`; `notes` counts them. The cause are the boxes of the category.
The test is val2017; validation is held out of train2017. Groups are unknown until a shortcut is planted (configs/coco_spurious.py does).
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from cimrl_jax.data import listing, planting, tokenise
from cimrl_jax.data.listing import Box
from cimrl_jax.data.source import Dataset
from cimrl_jax.errors import UserError, nearest
from cimrl_jax.options import Range, make_options
from cimrl_jax.types import Expected

WHERE = "data set 'coco_spurious'"
NOTES = "COCO 2017 (Lin et al. 2014), annotations CC BY 4.0, every picture has its own licence; validation held out of train2017"
PARTS = ("train2017", "val2017")
PUBLISHED = {"train2017": 118287, "val2017": 5000}
"""Pictures."""


@dataclasses.dataclass(frozen=True)
class Options(listing.Options):
    category: tuple[str, ...] = ("cat", "dog")
    """What is to be told, by COCO's names: of one category whether it is there, of several which."""
    least_area: Annotated[float, Range(low=0, below=1)] = 0.02
    """Share of the picture that the category's outlines must cover together; pictures with less of it are left out."""
    balance: bool = True
    """Whether of the more frequent classes so many pictures are left out, in every split, that all are equally frequent."""
    caption: Literal["first", "drawn"] = "first"
    """Which of a picture's five captions is its text: the first, or one that is drawn."""
    mask_category: bool = False
    """Whether the words that name one of the categories are taken out of the captions, which mostly tell it (other words for it, as puppy, stay)."""
    validation: Annotated[float, Range(above=0, below=1)] = 0.1
    """Share of the pictures of train2017, of every class, that is kept for validation."""


def build(options: Options, *, path: pathlib.Path | None = None, expected: Mapping[str, Expected] | None = None) -> Dataset:
    """The data set: image [size, size, 3] uint8 and text [length] int32, the caption, absent where a picture has none. Regions: the cause are the
    category's boxes and the words that name it. `expected`: what the pretrained encoders of these modalities read.

    Raises:
      UserError: a bad option, a file that is missing or damaged, or rows that cannot be used with on_bad_row=fail.
    """
    make_options(Options, dataclasses.asdict(options), "data")
    if path is None:
        raise UserError(f"{WHERE}: it reads files; set data.path to a folder with annotations/ and pictures (`--help coco_spurious` says which)")
    return listing.assemble(read(options, path), options, expected=expected)


class Picture(NamedTuple):
    part: str
    """train2017 or val2017."""
    number: int
    name: str
    label: int
    boxes: tuple[Box, ...]
    """Of the category."""


def read(options: Options, path: pathlib.Path) -> listing.Listing:
    """The pictures of the categories, with labels, captions and splits; no picture is read.

    Raises:
      UserError: a file that is missing, damaged, or has more pictures than were published; an unknown category; a split without one of the classes.
    """
    target = options.category
    if not target or len(set(target)) < len(target):
        raise UserError(f"{WHERE}: data.category is {', '.join(target) or 'empty'}; expected one of COCO's names, or several that differ")
    classes = target if len(target) > 1 else tuple(f"{word}{name}" for name in target for word in ("no ", ""))
    rows: list[Picture] = []
    left_out: dict[str, int] = {}
    for part in PARTS:
        found, counts = read_pictures(path / "annotations" / f"instances_{part}.json", part, options)
        rows += found
        left_out |= {reason: left_out.get(reason, 0) + count for reason, count in counts.items()}
    said: list[str | None] = []
    for part in PARTS:
        said += _captions(path / "annotations" / f"captions_{part}.json", [row for row in rows if row.part == part], options)
    names = {f"{word}{end}" for name in target for word in name.split() for end in ("", "s", "es")}
    label = np.array([row.label for row in rows], np.int32)
    splits = _splits(np.array([row.part == PARTS[1] for row in rows], bool), label, classes, options)
    files = [listing.inside(path / row.part, row.name) for row in rows]
    outside = [number for number, file in enumerate(files) if file is None]
    kept = sum(map(len, splits.values()))
    if kept < len(rows):
        left_out["to balance the classes"] = len(rows) - kept
    return listing.Listing(
        name="coco_spurious",
        columns={
            "image": listing.Pictures(files, boxes={"cause": [row.boxes for row in rows]}),
            "text": listing.Texts(said if not options.mask_category else [_without(text, names) for text in said], {"cause": names.__contains__}),
        },
        label=label,
        class_names=classes,
        splits=splits,
        origins=_Origins(rows),
        notes="; ".join([NOTES, *(f"{count} pictures left out: {reason}" for reason, count in left_out.items() if count)]),
        ids=[f"{row.part}/{row.number}" for row in rows],
        faults=tuple(listing.Fault(row, "file outside", f"{rows[row].name!r:.60} is not in {path / rows[row].part}") for row in outside),
    )


def _without(text: str | None, names: set[str]) -> list[str] | None:
    """The words of a caption that name no category; None: nothing is left."""
    return [word for word in tokenise.words_of(text or "") if word not in names] or None


class _Origins(Sequence[str]):
    """Where each picture stands, said when asked for."""

    def __init__(self, rows: Sequence[Picture]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: Any) -> Any:
        return f"instances_{self.rows[row].part}.json, picture {self.rows[row].number}"


def read_pictures(path: pathlib.Path, part: str, options: Options) -> tuple[list[Picture], dict[str, int]]:
    """(the pictures of a file that have a class, how many have none, by reason).

    Raises:
      UserError: the file is missing, damaged, or has more pictures than were published, or an unknown category.
    """
    content = _load(path, ("images", "annotations", "categories"))
    names = {own["name"]: own["id"] for own in _records(content, "categories", {"id": int, "name": str}, path)}
    for category in options.category:
        if category not in names:
            raise UserError(f"{WHERE}: data.category: {path.name} has no category {category!r}; {nearest(category, names)}")
    images = _records(content, "images", {"id": int, "file_name": str, "width": int, "height": int}, path)
    if len(images) > PUBLISHED[part]:
        raise UserError(f"{WHERE}: {path} has {len(images)} pictures, but only {PUBLISHED[part]} were published; fetch it again")
    wanted = {names[category]: klass for klass, category in enumerate(options.category)}
    there: dict[int, dict[int, list[dict[str, Any]]]] = {}
    for own in _records(content, "annotations", {"image_id": int, "category_id": int, "bbox": list, "area": (int, float)}, path):
        if own["category_id"] in wanted:
            there.setdefault(own["image_id"], {}).setdefault(wanted[own["category_id"]], []).append(own)
    binary = len(options.category) == 1
    found, left_out = [], {"none of the categories": 0, "several of the categories": 0, "too little of the category": 0}
    for image in images:
        number, whole = image["id"], image["width"] * image["height"]
        own = there.get(number, {})
        if whole <= 0:
            what = f"picture {number} is {image['width']} x {image['height']} pixels"
            raise UserError(f"{WHERE}: {path}: {what}; expected both above 0: fetch the file again")
        if not own and binary:
            found.append(Picture(part, number, image["file_name"], 0, ()))
        elif len(own) != 1:
            left_out["several of the categories" if own else "none of the categories"] += 1
        else:
            ((klass, outlines),) = own.items()
            if sum(outline["area"] for outline in outlines) < options.least_area * whole:
                left_out["too little of the category"] += 1
            else:
                boxes = tuple(_box(outline["bbox"], image, path) for outline in outlines)
                found.append(Picture(part, number, image["file_name"], 1 if binary else klass, boxes))
    return found, left_out


def _box(sides: list[Any], image: dict[str, Any], path: pathlib.Path) -> Box:
    if len(sides) != 4 or not all(isinstance(side, int | float) for side in sides):
        raise UserError(f"{WHERE}: {path}: a box of picture {image['id']} is {sides!r:.60}, expected four numbers; fetch the file again")
    left, top, width, height = sides
    return left / image["width"], top / image["height"], width / image["width"], height / image["height"]


def _captions(path: pathlib.Path, rows: list[Picture], options: Options) -> list[str | None]:
    """The text of each picture; None: the file has none."""
    found: dict[int, list[tuple[int, str]]] = {row.number: [] for row in rows}
    for own in _records(_load(path, ("annotations",)), "annotations", {"id": int, "image_id": int, "caption": str}, path):
        if own["image_id"] in found:
            found[own["image_id"]].append((own["id"], own["caption"].strip()))
    texts = {number: [text for _, text in sorted(own)] for number, own in found.items()}
    drawn = planting.generator(options.data_seed, "caption", path.name).random(len(rows))
    place = [0 if options.caption == "first" else int(share * len(texts[row.number])) for row, share in zip(rows, drawn, strict=True)]
    return [texts[row.number][own] if texts[row.number] else None for row, own in zip(rows, place, strict=True)]


def _load(path: pathlib.Path, keys: tuple[str, ...]) -> dict[str, Any]:
    def small(record: dict[str, Any]) -> dict[str, Any]:
        """Without the outlines, which are most of the file: they would take gigabytes."""
        record.pop("segmentation", None)
        return record

    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file, object_hook=small)
        if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
            raise TypeError("other lists")
        return content
    except OSError as error:
        raise UserError(
            f"{WHERE}: cannot read {path} ({error.strerror}); it is in annotations_trainval2017.zip of cocodataset.org, unpack it in data.path"
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{WHERE}: {path} is damaged ({error}); expected JSON with the lists {', '.join(keys)}: fetch it again") from error


def _records(content: dict[str, Any], key: str, wanted: Mapping[str, Any], path: pathlib.Path) -> list[dict[str, Any]]:
    for number, record in enumerate(content[key]):
        for name, kind in wanted.items():
            if not isinstance(record, dict) or not isinstance(record.get(name), kind):
                what = f"{path}, entry {number + 1} of {key!r}"
                raise UserError(f"{WHERE}: {what}: {name!r} is missing or of another type; fetch the file again")
    return content[key]


def _splits(test: Any, label: Int[np.ndarray, " n"], classes: tuple[str, ...], options: Options) -> dict[str, Int[np.ndarray, " k"]]:
    """The rows of each split, every class dealt to training and validation in the same share."""
    splits: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for klass, name in enumerate(classes):
        rng = planting.generator(options.data_seed, "splits", name)
        rows = rng.permutation(np.flatnonzero((label == klass) & ~test))
        held_out = max(round(options.validation * len(rows)), 1)
        for split, own in (
            ("train", rows[held_out:]),
            ("validation", rows[:held_out]),
            ("test", rng.permutation(np.flatnonzero((label == klass) & test))),
        ):
            if not len(own):
                raise UserError(
                    f"{WHERE}: {split} has no picture of class {name!r}; fetch all files, or choose another data.category or data.least_area"
                )
            splits[split].append(own)
    least = {split: min(map(len, parts)) if options.balance else None for split, parts in splits.items()}
    return {split: np.sort(np.concatenate([own[: least[split]] for own in parts])) for split, parts in splits.items()}
