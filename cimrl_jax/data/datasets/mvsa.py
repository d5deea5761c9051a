"""Sentiment of a post with a picture (MVSA, Niu et al. 2016): negative, neutral or positive. No shortcut is known; text and picture may disagree.

`data.path` is the folder MVSA_Single or MVSA as the authors' archives unpack to:
  labelResultAll.txt      ID, and for each annotator (one in MVSA-Single, three in MVSA-Multiple) what the text and what the picture says, as in
                          "2<tab>neutral,positive"; the first line names the columns,
  data/{ID}.txt, .jpg     the post and its picture; bytes of the post that are not UTF-8 are left out.

Labels are merged as in the literature (Xu and Mao 2017): of three annotators the majority, for text and picture apart; then what both say, or what
one says if the other is neutral. Posts without a majority and those where one is positive and the other negative are left out: 4,511 of 4,869 stay of
MVSA-Single, 17,024 of 19,600 of MVSA-Multiple. There is no official split: posts are dealt 8 : 1 : 1, alike in label, by data_seed.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Literal

import numpy as np

from cimrl_jax.data import listing, metadata, planting, resampling
from cimrl_jax.data.source import Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.options import make_options
from cimrl_jax.types import Expected

WHERE = "data set 'mvsa'"
FILE = "labelResultAll.txt"
MEND = "get MVSA from mcrlab.net/research/mvsa-sentiment-analysis-on-multi-view-social-data and set data.path to the folder that it unpacks to"
NOTES = "MVSA (Niu et al. 2016): posts of others, no licence stated, for research only; split 8 : 1 : 1 here, there is no official split"
CLASSES = ("negative", "neutral", "positive")
NEUTRAL = 1
COUNTS = {1: (4511, 4869), 3: (17_024, 19_600)}
"""Posts that stay of all, by annotators, as published."""
CELLS = ((0, 0), (0, 1), (1, 0), (2, 0), (2, 1))
"""(label, whether one of text and picture is neutral and the other not); a neutral post has both neutral."""


@dataclasses.dataclass(frozen=True)
class Options(listing.Options):
    groups: Literal["none", "agreement"] = "none"
    """What groups posts have: none, as in the literature, or label x whether text and picture say the same or one of them says nothing (neutral)."""


def build(options: Options, *, path: pathlib.Path | None = None, expected: Mapping[str, Expected] | None = None) -> Dataset:
    """The data set: image [size, size, 3] uint8 and text [length] int32. `expected`: what the pretrained encoders of these modalities read.

    Raises:
      UserError: a bad option, a file that is missing or damaged, a bad row with on_bad_row=fail, or more rows than were published.
    """
    make_options(Options, dataclasses.asdict(options), "data")
    if path is None:
        raise UserError(f"{WHERE}: it reads files; set data.path to a folder with {FILE} and data/ (`--help mvsa` says what they hold)")
    return listing.assemble(read(options, path), options, expected=expected)


def read(options: Options, path: pathlib.Path) -> listing.Listing:
    """The posts that stay, and those whose labels cannot be read.

    Raises:
      UserError: a file that is missing or damaged.
    """
    annotators, posts = read_labels(path / FILE)
    merged = [merge(post.said) if post.said else None for post in posts]
    kept = [number for number, (post, own) in enumerate(zip(posts, merged, strict=True)) if own is not None or not post.said]
    stay, everything = COUNTS[annotators]
    if len(posts) > everything:
        raise UserError(f"{WHERE}: {path / FILE} has {len(posts)} posts of {everything} as published; {MEND}")
    names = [posts[number].number for number in kept]
    files = [path / "data" / f"{name}.jpg" for name in names]
    texts, reasons = metadata.contents([path / "data" / f"{name}.txt" for name in names], errors="ignore")
    faults = [listing.Fault(row, *reason) for row, reason in reasons.items()]
    faults += [
        listing.Fault(row, "unknown label", f"expected {annotators} times text,picture, each one of {', '.join(CLASSES)}")
        for row, number in enumerate(kept)
        if merged[number] is None
    ]
    label, mixed = np.array([merged[number] or (NEUTRAL, 0) for number in kept], np.int32).reshape(-1, 2).T
    # Posts of one text are in one split: what was seen in training would be known in test.
    codes: dict[str, int] = {}
    same = np.array([codes.setdefault(text if text is not None else f"post {names[row]}", len(codes)) for row, text in enumerate(texts)], np.int64)
    dealt = resampling.deal(same, label, (0.1, 0.1), planting.generator(options.data_seed, "splits"))
    groups = {}
    if options.groups == "agreement":
        groups["group"] = np.array([CELLS.index(cell) for cell in zip(label.tolist(), mixed.tolist(), strict=True)], np.int32)
        groups["group_names"] = tuple(f"label={CLASSES[own]}, attribute={('agree', 'one neutral')[apart]}" for own, apart in CELLS)
        groups["group_attribute"] = tuple(apart for _, apart in CELLS)
    return listing.Listing(
        name="mvsa",
        columns={"image": listing.Pictures(files), "text": listing.Texts(texts)},
        label=label,
        class_names=CLASSES,
        splits={name: np.flatnonzero(dealt == number) for number, name in enumerate(("test", "validation", "train"))},
        origins=listing.Lines(FILE, [posts[number].line for number in kept]),
        notes=f"{NOTES}; {len(kept)} of {len(posts)} posts stay, of the others the labels contradict one another"
        + (f" (as published {stay} of {everything})" if (len(kept), len(posts)) != (stay, everything) else ""),
        ids=names,
        faults=tuple(faults),
        **groups,
    )


@dataclasses.dataclass(frozen=True)
class Post:
    number: str
    line: int
    said: tuple[tuple[int, int], ...]
    """By annotator, what the text and what the picture says; none if the line is damaged."""


def read_labels(path: pathlib.Path) -> tuple[int, list[Post]]:
    """(annotators, the posts) of a file of labels.

    Raises:
      UserError: it cannot be read, has no post, or its first line does not name one or three pairs of labels.
    """
    head, *rest = metadata.lines(path, where=WHERE, mend=MEND)
    annotators = len(head.split()) - 1
    if annotators not in COUNTS or set(head.split()[1:]) != {"text,image"}:
        raise UserError(f"{WHERE}: {path}, line 1: expected ID and one or three times text,image, got {head.strip()!r}; {MEND}")
    posts = []
    for line, row in enumerate(rest, 2):
        if row.strip():
            number, *pairs = row.split()
            said = [tuple(CLASSES.index(own) if own in CLASSES else -1 for own in pair.split(",")) for pair in pairs]
            whole = len(said) == annotators and all(len(own) == 2 and -1 not in own for own in said)
            if not number.isdecimal():
                raise UserError(f"{WHERE}: {path}, line {line}: expected the number of a post, got {number!r}; {MEND}")
            posts.append(Post(number, line, tuple((own[0], own[1]) for own in said) if whole else ()))
    if not posts:
        raise UserError(f"{WHERE}: {path} has no post; {MEND}")
    return annotators, posts


def merge(said: tuple[tuple[int, int], ...]) -> tuple[int, int] | None:
    """(label, whether it is that of one of text and picture while the other is neutral), or None where they contradict one another."""
    agreed = []
    for own in zip(*said, strict=True):
        value, votes = collections.Counter(own).most_common(1)[0]
        if 2 * votes <= len(own):
            return None
        agreed.append(value)
    text, picture = agreed
    if text == picture:
        return text, 0
    if NEUTRAL in agreed:
        return text + picture - NEUTRAL, 1
    return None
