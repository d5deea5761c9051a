"""One attribute of a face (CelebA, Liu et al. 2015), by default blond hair: the face and a caption. Another attribute, by default gender, tells it.

`data.path` is a folder as the authors distribute it, its subfolders Anno/, Eval/ and Img/ kept or not, or as Kaggle does:
  list_attr_celeba.txt        a line with the number of pictures, one with the names of 40 attributes, then a picture's file and 40 times 1 or -1; or
                              list_attr_celeba.csv with the columns image_id and the attributes,
  list_eval_partition.txt     a picture's file and its split (0 train, 1 validation, 2 test) in each line; or .csv with image_id and partition,
  img_align_celeba/           the pictures, aligned and cropped (also when unpacked into img_align_celeba/img_align_celeba/).
Optional beside them, from Multi-Modal-CelebA-HQ (Xia et al. 2021), ten captions of each of 30,000 of the pictures:
  celeba-caption/{i}.txt      a caption a line, of picture i of CelebA-HQ (Karras et al. 2018),
  CelebA-HQ-to-CelebA-mapping.txt   idx, orig_idx, orig_file: which of CelebA's pictures that is.

Groups are target x attribute; words that name the attribute (of Male: she, his, woman, ...) are the text's shortcut. Splits are the official ones.
train_randomised has every training row, some many times, so that the attribute says nothing; test_balanced leaves test rows out for that.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Int

from cimrl_jax.data import balancing, listing, metadata, planting, tokenise
from cimrl_jax.data.source import Dataset
from cimrl_jax.errors import UserError, nearest
from cimrl_jax.options import make_options
from cimrl_jax.types import Expected

WHERE = "data set 'celeba'"
MEND = "get it from mmlab.ie.cuhk.edu.hk/projects/CelebA.html and set data.path to the folder that has its files"
CAPTIONS = "get celeba-caption/ from github.com/IIGROUP/MM-CelebA-HQ-Dataset and the mapping from github.com/switchablenorms/CelebAMask-HQ"
NOTES = "CelebA (Liu et al. 2015): pictures of celebrities, for non-commercial research"
SPLITS = ("train", "validation", "test")
COUNTS = {"train": (71629, 66874, 22880, 1387), "validation": (8535, 8276, 2874, 182), "test": (9767, 7535, 2480, 180)}
"""Of the groups of Blond_Hair x Male, as published."""
TOTALS = {"train": 162_770, "validation": 19_867, "test": 19_962}
CAPTIONED = {"train": 24_183, "validation": 2993, "test": 2824}
"""Rows that CelebA-HQ, which has captions, has of each split (Lee et al. 2020)."""
GENDER = re.compile(
    r"(?:he|she|him|her|hers|his|himself|herself|m[ae]n|wom[ae]n|males?|females?|boys?|girls?|guys?|lad(?:y|ies)|gentlem[ae]n|mr|mrs|ms)(?:['’]s)?"
)


@dataclasses.dataclass(frozen=True)
class Options(listing.Options):
    target: str = "Blond_Hair"
    """Which of the 40 attributes is to be told."""
    attribute: str = "Male"
    """Which of them is the spurious one."""
    text: Literal["auto", "captions", "none"] = "auto"
    """Whether captions are read: where there is celeba-caption/, always, or never."""
    caption: Literal["first", "random"] = "first"
    """Which of a picture's captions: its first, or one drawn by data_seed."""
    rows: Literal["all", "captioned"] = "all"
    """Whether pictures without a caption (the text is absent there) count too."""
    mask_target: bool = False
    """Remove the words that name the target from the captions, as "blond" and "hair". As distributed they tell it."""


def build(options: Options, *, path: pathlib.Path | None = None, expected: Mapping[str, Expected] | None = None) -> Dataset:
    """The data set: image [size, size, 3] uint8 and, with captions, text [length] int32, absent where a picture has none. Regions of the text: the
    cause are the words that name the target, the shortcut those that name the attribute. `expected`: what pretrained encoders read.

    Raises:
      UserError: a bad option, a file that is missing or damaged, a bad row with on_bad_row=fail, or more rows than were published.
    """
    make_options(Options, dataclasses.asdict(options), "data")
    if path is None:
        raise UserError(f"{WHERE}: it reads files; set data.path to a folder with list_attr_celeba.txt and the pictures (`--help celeba` says more)")
    return listing.assemble(read(options, path), options, expected=expected)


def read(options: Options, path: pathlib.Path) -> listing.Listing:
    """The rows of list_attr_celeba, their splits and captions.

    Raises:
      UserError: an attribute that there is not, or a file that is missing or damaged.
    """
    if options.target == options.attribute:
        raise UserError(f"{WHERE}: target and attribute are both {options.target}; choose two attributes")
    file, (columns, lines) = _attributes(options, path)
    names = columns["image_id"]
    target, attribute = (_binary(columns[name]) for name in (options.target, options.attribute))
    faults = [
        listing.Fault(row, "unknown label", f"{name} is {columns[name][row]!r}, expected 1 or -1")
        for name, codes in ((options.target, target), (options.attribute, attribute))
        for row in np.flatnonzero(codes < 0).tolist()
    ]
    split, more = _partition(path, names)
    faults += more
    folder = next((own for own in _places(path, "Img") if (own / "img_align_celeba").is_dir()), None)
    if folder is None:
        raise UserError(f"{WHERE}: {path} has no folder img_align_celeba; {MEND}")
    inner = folder / "img_align_celeba" / "img_align_celeba"
    pictures = inner if inner.is_dir() else inner.parent
    files = [listing.inside(pictures, name) for name in names]
    outside = [row for row, own in enumerate(files) if own is None]
    faults += [listing.Fault(row, "outside of the folder", f"image_id is {names[row]!r}, expected a file in {pictures}") for row in outside]
    words = words_of(options)
    texts: dict[str, listing.Column] = {}
    counted, notes = np.ones(len(names), bool), NOTES
    if options.text == "captions" or options.text == "auto" and (path / "celeba-caption").is_dir():
        captions, more = _captions(options, path, names)
        faults += more
        if options.mask_target:
            captions = [caption and [word for word in tokenise.words_of(caption) if not words["cause"](word)] for caption in captions]
        texts["text"] = listing.Texts(captions, words)
        if options.rows == "captioned":
            counted = np.array([caption is not None for caption in captions], bool)
            counted[[fault.row for fault in more]] = True
            notes += f"; {int((~counted).sum())} pictures without a caption left out"
    elif options.rows == "captioned":
        raise UserError(f"{WHERE}: rows is captioned, but no captions are read; {CAPTIONS}, or set --data.rows all")
    classes, values = values_of(options.target), values_of(options.attribute)
    groups = planting.group_names(classes, values)
    if options.rows == "all" and (options.target, options.attribute) == ("Blond_Hair", "Male"):
        counts = {name: dict(zip(groups, own, strict=True)) for name, own in COUNTS.items()}
    else:
        counts = {name: {"rows": total} for name, total in (TOTALS if options.rows == "all" else CAPTIONED).items()}
    found = listing.Listing(
        name="celeba",
        columns={"image": listing.Pictures(files), **texts},
        label=np.maximum(target, 0),
        class_names=classes,
        # A row of unknown split is looked at with the training rows.
        splits={name: np.flatnonzero((np.maximum(split, 0) == number) & counted) for number, name in enumerate(SPLITS)},
        origins=listing.Lines(file, lines),
        notes=notes,
        ids=names,
        group=np.where((target < 0) | (attribute < 0), -1, len(values) * target + attribute).astype(np.int32),
        group_names=groups,
        attribute_names=values,
        faults=tuple(faults),
        published=counts,
    )
    return balancing.add(found, options)


def values_of(attribute: str) -> tuple[str, str]:
    """The two values of an attribute in words, the one without it first."""
    words = attribute.replace("_", " ").lower()
    return ("woman", "man") if attribute == "Male" else (f"not {words}", words)


def words_of(options: Options) -> dict[str, Callable[[str], bool]]:
    """{"cause": whether a word names the target, "shortcut": the attribute}. A word that names both is of neither."""
    known = {name: set(name.lower().split("_")) | ({"blonde"} if "Blond" in name else set()) for name in (options.target, options.attribute)}
    shared = set.intersection(*known.values())

    def named(name: str) -> Callable[[str], bool]:
        return (lambda word: GENDER.fullmatch(word) is not None) if name == "Male" else (known[name] - shared).__contains__

    return {"cause": named(options.target), "shortcut": named(options.attribute)}


def _places(path: pathlib.Path, *folders: str) -> list[pathlib.Path]:
    return [path, *(path / folder for folder in folders)]


def _file(path: pathlib.Path, stem: str, folder: str) -> pathlib.Path:
    """The file of that name, as .txt or .csv."""
    for place in _places(path, folder):
        for ending in (".txt", ".csv"):
            if (place / f"{stem}{ending}").is_file():
                return place / f"{stem}{ending}"
    raise UserError(f"{WHERE}: there is neither {path / stem}.txt nor .csv; {MEND}")


def _attributes(options: Options, path: pathlib.Path) -> tuple[str, metadata.Table]:
    file = _file(path, "list_attr_celeba", "Anno")
    plain = file.suffix == ".txt"
    head = metadata.names_of(file, where=WHERE, mend=MEND, delimiter=None if plain else ",", skip=int(plain))
    names = ["image_id", *head] if plain else head
    for key in ("target", "attribute"):
        wanted = getattr(options, key)
        if wanted not in names[1:]:
            raise UserError(f"{WHERE}: {key} is {wanted!r}, but {file} has no such attribute; {nearest(wanted, names[1:])}")
    columns = ("image_id", options.target, options.attribute)
    if not plain:
        return file.name, metadata.table(file, columns, where=WHERE, mend=MEND)
    table = metadata.table(file, columns, where=WHERE, mend=MEND, delimiter=None, skip=2, names=names)
    said = metadata.names_of(file, where=WHERE, mend=MEND, delimiter=None)[0]
    if said != str(len(table.lines)):
        raise UserError(f"{WHERE}: {file}, line 1: says {said} pictures, but {len(table.lines)} lines follow; {MEND}")
    return file.name, table


def _binary(values: list[str]) -> Int[np.ndarray, " n"]:
    """1 for "1", 0 for "-1" (or "0", as some copies have), -1 for anything else."""
    codes = {"1": 1, "-1": 0, "0": 0}
    return np.array([codes.get(value, -1) for value in values], np.int32)


def _partition(path: pathlib.Path, names: list[str]) -> tuple[Int[np.ndarray, " n"], list[listing.Fault]]:
    """(the split of each picture, -1 where unknown; faults)."""
    file, columns = _file(path, "list_eval_partition", "Eval"), ("image_id", "partition")
    if file.suffix == ".txt":
        table = metadata.table(file, columns, where=WHERE, mend=MEND, delimiter=None, names=columns)
    else:
        table = metadata.table(file, columns, where=WHERE, mend=MEND)
    said = dict(zip(table.columns["image_id"], table.columns["partition"], strict=True))
    split = np.array([int(own) if (own := said.get(name, "")) in ("0", "1", "2") else -1 for name in names], np.int32)
    faults = [
        listing.Fault(row, "unknown split", f"{file.name} has {said.get(names[row], 'nothing')!r} for {names[row]}, expected 0, 1 or 2")
        for row in np.flatnonzero(split < 0).tolist()
    ]
    return split, faults


def _captions(options: Options, path: pathlib.Path, names: list[str]) -> tuple[list[str | None], list[listing.Fault]]:
    """(a caption of each picture that CelebA-HQ has, faults)."""
    if not (path / "celeba-caption").is_dir():
        raise UserError(f"{WHERE}: text is captions, but {path} has no folder celeba-caption; {CAPTIONS}, or set --data.text none")
    file = path / "CelebA-HQ-to-CelebA-mapping.txt"
    mapping, _ = metadata.table(file, ("idx", "orig_file"), where=WHERE, mend=CAPTIONS, delimiter=None)
    number = dict(zip(mapping["orig_file"], mapping["idx"], strict=True))
    damaged = next((name for name, own in number.items() if not own.isdecimal()), None)
    if damaged is not None:
        raise UserError(f"{WHERE}: {file}: idx of {damaged!r} is {number[damaged]!r}, expected a number; {CAPTIONS}")
    files = [path / "celeba-caption" / f"{number[name]}.txt" if name in number else None for name in names]
    found, reasons = metadata.contents(files)
    lines = [[line.strip() for line in (text or "").splitlines() if line.strip()] for text in found]
    empty = {row: ("empty text", f"{files[row]} has no caption") for row, own in enumerate(lines) if not own and found[row] is not None}
    drawn = planting.generator(options.data_seed, "caption").random(len(names)) * (options.caption == "random")
    captions = [own[int(share * len(own))] if own else None for own, share in zip(lines, drawn.tolist(), strict=True)]
    return captions, [listing.Fault(row, *reason) for row, reason in (reasons | empty).items()]
