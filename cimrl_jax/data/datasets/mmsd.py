"""Sarcasm in posts with a picture (MMSD, Cai et al. 2019): text, and words read off the picture. In MMSD the hashtags tell the label, in MMSD2.0 not.

`data.path` is a folder with the authors' text files:
  mmsd1/    train.txt, valid2.txt, test2.txt, extract_all (github.com/headacheboy/data-of-multimodal-sarcasm-detection),
  mmsd2/    train.json, valid.json, test.json (github.com/JoeYing1019/MMSD2.0; Qin et al. 2023), may be absent when train_on is mmsd1,
  dmsd_cl/  ood_all.txt, rewritten posts (github.com/xvolcano02/DMSD-CL; Jia et al. 2024), may be absent.
The second modality are the five words that `extract_all` gives for each picture, predicted by the authors of MMSD. The third are the pictures, where
dataset_image/ with {number}.jpg lies in the folder, in mmsd1/ or in mmsd2/ (MMSD's authors distribute it); a post without its picture stays.

Groups are label x whether the post has a '#'. Besides train, validation and test there are test_v2 (MMSD2.0's); test_ood (DMSD-CL's: 400 test posts,
each rewritten until the other label is true, so that words which told it lie); test_balanced and test_flipped (test posts left out until '#' says
nothing, or the opposite of what it says in training); and train_randomised (training posts left out until '#' says nothing).
"""

from __future__ import annotations

import ast
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Int

from cimrl_jax.data import listing, planting, resampling, tokenise
from cimrl_jax.data.source import ArraySource, Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.options import Range, make_options
from cimrl_jax.types import Expected

WHERE = "data set 'mmsd'"
NOTES = "MMSD (Cai et al. 2019), MMSD2.0 (Qin et al. 2023), DMSD-CL (Jia et al. 2024): posts of others, no licence stated, for research only"
COUNTS = {"train": 19_816, "validation": 2410, "test": 2409, "test_v2": 2409, "test_ood": 400}
"""Posts as published, of training without those that have a telling word."""
CLASSES = ("literal", "sarcastic")
MARKS = ("no #", "#")
TELLING = {"exgag", "sarcasm", "sarcastic", "reposting", "<url>", "joke", "humour", "humor", "jokes", "irony", "ironic"}
"""Training posts with one of these words are left out, as by the authors."""
WORDS = 5
"""Words per picture."""
Size = Annotated[int, Range(low=1)]


@dataclasses.dataclass(frozen=True)
class Options(listing.Options):
    train_on: Literal["mmsd1", "mmsd2"] = "mmsd1"
    """Whose training and validation posts: "mmsd1" (hashtags tell) or "mmsd2" (hashtags and emoji removed, labels given anew). test is always that
    of mmsd1 with the human labels, test_v2 that of mmsd2."""
    train: Annotated[int, Range(low=0)] = 0
    """At most so many training posts (train_randomised likewise); 0: all."""
    length: Size = 32
    """Words of a post; longer ones are cut. With a pretrained encoder up to twice as many pieces of words."""
    vocabulary: Annotated[int, Range(low=3)] = 8000
    """Most words in the vocabulary of posts, the frequent ones; others are unknown."""
    normalise_numbers: bool = False
    """Write every number as <num>. As distributed, <num> stands in sarcastic training posts only and gives them away."""
    mask_hashtags: bool = False
    """Remove every '#' and leave the word; groups stay as they are."""
    mask_emoji: bool = False
    """Remove the words emoji_1, emoji_2, ..."""
    pictures: Literal["auto", "yes", "no"] = "auto"
    """Whether pictures are read: where there is dataset_image/, always, or never."""


def build(options: Options, *, path: pathlib.Path | None = None, expected: Mapping[str, Expected] | None = None) -> Dataset:
    """The data set: text [length] int32, attributes [5] int32, absent where a post's picture has no words, and, where they lie there, image
    [size, size, 3] uint8, absent where a post has none. Regions: the shortcut is every '#'. `expected`: what the pretrained encoders read.

    Raises:
      UserError: a bad option, a file that is missing or damaged, more posts than were published, or a picture that cannot be read.
    """
    make_options(Options, dataclasses.asdict(options), "data")
    if path is None:
        raise UserError(f"{WHERE}: it reads files; set data.path to a folder with mmsd1/, mmsd2/ and dmsd_cl/ (`--help mmsd` says what they hold)")
    first, second = path / "mmsd1", path / "mmsd2"
    if options.train_on == "mmsd1":
        posts = {"train": keep(read_lists(first / "train.txt", columns=3)), "validation": read_lists(first / "valid2.txt", columns=4)}
    else:
        posts = {"train": read_json(second / "train.json"), "validation": read_json(second / "valid.json")}
    posts["test"] = read_lists(first / "test2.txt", columns=4)
    if options.train_on == "mmsd2" or second.exists():
        posts["test_v2"] = read_json(second / "test.json")
    if (path / "dmsd_cl").exists():
        posts["test_ood"] = read_unquoted(path / "dmsd_cl" / "ood_all.txt")

    short = _short_of_published(posts)
    rows = _left_out(posts, options)
    folder = _folder(options, path)
    if folder is not None:
        found = listing.assemble(_listing(posts, rows, options, folder, read_words(first / "extract_all"), short), options, expected=expected)
        every = np.array([post.number for own in posts.values() for post in own])
        return dataclasses.replace(
            found, keys=_keys({name: every[source.rows] for name, source in found.splits.items() if isinstance(source, listing.Files)})
        )
    drawn = {name: [posts[base][row] for row in chosen] for name, (base, chosen) in rows.items()}
    words = {name: [words_of(post.text, options) for post in kept] for name, kept in drawn.items()}
    seen = read_words(first / "extract_all")
    of_text, of_attributes = ((expected or {}).get(m) for m in ("text", "attributes"))
    text = tokenise.fit(words["train"], length=options.length, size=options.vocabulary, expected=of_text)
    attributes = tokenise.fit([seen.get(post.number, ()) for post in drawn["train"]], length=WORDS, expected=of_attributes)
    missing = sum(post.number not in seen for kept in posts.values() for post in kept)
    return Dataset(
        name="mmsd",
        features={"text": text.feature(), "attributes": attributes.feature()},
        class_names=CLASSES,
        group_names=planting.group_names(CLASSES, MARKS),
        attribute_names=MARKS,
        splits={name: _source(kept, words[name], text, attributes, seen) for name, kept in drawn.items()},
        keys=_keys({name: np.array([post.number for post in kept]) for name, kept in drawn.items()}),
        notes="; ".join(
            [NOTES, *short, *([f"{missing} of {sum(map(len, posts.values()))} posts have no words for their picture"] if missing else [])]
        ),
    )


def _keys(numbers: Mapping[str, np.ndarray]) -> dict[str, Int[np.ndarray, " n"]]:
    """`Dataset.keys`, by the posts' numbers: test_v2 and test_ood are test's posts, rewritten or labelled anew."""
    own = {name: numbers[name] for name in ("test", "test_v2", "test_ood") if name in numbers}
    _, key = np.unique(np.concatenate(list(own.values())), return_inverse=True)
    return dict(zip(own, np.split(key, np.cumsum([len(x) for x in own.values()])[:-1]), strict=True))


@dataclasses.dataclass(frozen=True)
class Post:
    number: str
    """The picture's too."""
    text: str
    label: int

    @property
    def marked(self) -> int:
        """1 if there is a '#', else 0: the attribute."""
        return int("#" in self.text)


def read_lists(path: pathlib.Path, *, columns: int) -> list[Post]:
    """A file of MMSD: in each line a list [number, text, label, ...] as Python writes it. The last label counts (of four columns, the human one)."""

    def post(line: str) -> Post:
        row = ast.literal_eval(line)  # reads literals only; nothing is run
        if not isinstance(row, list) or len(row) != columns:
            raise ValueError(f"not a list of {columns}")
        return _post(row[0], row[1], row[-1])

    return _each(path, post, f"lists [number, text, label{', human label' if columns == 4 else ''}]")


def read_json(path: pathlib.Path) -> list[Post]:
    """A file of MMSD2.0: a JSON list of {"image_id", "text", "label"}."""
    try:
        return [_post(row["image_id"], row["text"], row["label"]) for row in json.loads(_text(path))]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{WHERE}: {path} is no JSON list of image_id, text and label ({error!r}); fetch it again") from error


def read_unquoted(path: pathlib.Path) -> list[Post]:
    """A file of DMSD-CL: [number,text,label] in each line, the text without quotes."""

    def post(line: str) -> Post:
        found = re.fullmatch(r"\[(\d+),(.*),([01])\]", line)
        if not found:
            raise ValueError("no [number,text,label]")
        return _post(found[1], found[2], int(found[3]))

    return _each(path, post, "[number,text,label]")


def read_words(path: pathlib.Path) -> dict[str, tuple[str, ...]]:
    """The five words of each picture, by its number."""

    def words(line: str) -> tuple[str, tuple[str, ...]]:
        row = ast.literal_eval(line)
        if not isinstance(row, list) or len(row) != 1 + WORDS:
            raise ValueError(f"not a list of {1 + WORDS}")
        return str(row[0]), tuple(map(str, row[1:]))

    return dict(_each(path, words, f"lists of a number and {WORDS} words"))


def _each(path: pathlib.Path, read: Any, expected: str) -> list[Any]:
    found = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                found.append(read(line.strip()))
            except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
                raise UserError(f"{WHERE}: {path}, line {number}: expected {expected} ({error}); fetch the file again") from error
    return found


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{WHERE}: cannot read {path} ({error}); expected data.path to be a folder with mmsd1/, mmsd2/ and dmsd_cl/") from error


def _post(number: Any, text: Any, label: Any) -> Post:
    if not isinstance(text, str) or label not in (0, 1):
        raise ValueError(f"got the text {text!r} and the label {label!r}")
    return Post(str(number), text, int(label))


def keep(posts: Iterable[Post]) -> list[Post]:
    """The posts without a word that tells the label outright."""
    return [post for post in posts if not TELLING & set(post.text.split())]


def words_of(text: str, options: Options) -> list[str]:
    """A post's words as the model sees them. MMSD's texts write don 't, the others don't: both become don ' t."""
    words = tokenise.words_of(re.sub(r"(\w)['’](?=\w)", r"\1 ' ", text))
    if options.mask_hashtags:
        words = [word.lstrip("#") for word in words if word != "#"]
    if options.mask_emoji:
        words = [word for word in words if not re.fullmatch(r"emoji_\d+", word)]
    if options.normalise_numbers:
        words = ["<num>" if word.isdecimal() else word for word in words]
    return words


def _short_of_published(posts: Mapping[str, list[Post]]) -> list[str]:
    """What is missing of what was published, a phrase each.

    Raises:
      UserError: there is more.
    """
    for base, own in posts.items():
        if len(own) > COUNTS[base]:
            raise UserError(f"{WHERE}: {base} has {len(own)} posts of {COUNTS[base]} as published; the files are not the authors': fetch them again")
    return [f"{base} has {len(own)} posts of {COUNTS[base]} as published" for base, own in posts.items() if len(own) < COUNTS[base]]


def _folder(options: Options, path: pathlib.Path) -> pathlib.Path | None:
    """Where the pictures are, if they are to be read."""
    found = next((own / "dataset_image" for own in (path, path / "mmsd1", path / "mmsd2") if (own / "dataset_image").is_dir()), None)
    if options.pictures == "yes" and found is None:
        raise UserError(f"{WHERE}: pictures is yes, but {path} has no folder dataset_image; fetch it from MMSD's authors, or set --data.pictures no")
    return None if options.pictures == "no" else found


def _listing(
    posts: Mapping[str, list[Post]],
    rows: Mapping[str, tuple[str, Int[np.ndarray, " k"]]],
    options: Options,
    folder: pathlib.Path,
    seen: Mapping[str, tuple[str, ...]],
    short: list[str],
) -> listing.Listing:
    """The posts with their pictures, those of one file after those of another."""
    first = dict(zip(posts, np.cumsum([0, *map(len, posts.values())]).tolist(), strict=False))
    every = [(base, post) for base, own in posts.items() for post in own]
    shown = {file.stem: file for file in folder.glob("*.jpg")}
    own_files = {"train": options.train_on, "validation": options.train_on, "test_v2": "mmsd2", "test_ood": "dmsd_cl"}
    label = np.array([post.label for _, post in every], np.int32)
    return listing.Listing(
        name="mmsd",
        columns={
            "text": listing.Texts([words_of(post.text, options) or None for _, post in every], {"shortcut": lambda word: word.startswith("#")}),
            "attributes": listing.Texts([seen.get(post.number) for _, post in every], length=WORDS),
            # The official splits stay as they are, whatever pictures they share.
            "image": listing.Pictures([shown.get(post.number) for _, post in every], shared=True),
        },
        label=label,
        class_names=CLASSES,
        splits={name: first[base] + chosen for name, (base, chosen) in rows.items()},
        origins=[f"{base} of {own_files.get(base, 'mmsd1')}, post {post.number}" for base, post in every],
        notes="; ".join([NOTES, *short]),
        group=len(MARKS) * label + np.array([post.marked for _, post in every], np.int32),
        group_names=planting.group_names(CLASSES, MARKS),
        attribute_names=MARKS,
    )


def _left_out(posts: dict[str, list[Post]], options: Options) -> dict[str, tuple[str, Int[np.ndarray, " k"]]]:
    """{split: (whose posts, which of them)}."""
    label = {base: np.array([post.label for post in own]) for base, own in posts.items()}
    marked = {base: np.array([post.marked for post in own]) for base, own in posts.items()}
    if len(set(label["train"].tolist())) < 2 or any(not 0 < marked["train"][label["train"] == klass].mean() < 1 for klass in (0, 1)):
        raise UserError(f"{WHERE}: of either label there must be training posts with and without a '#', or nothing can be balanced; fetch all files")
    share = [float(marked["train"][label["train"] == klass].mean()) for klass in (0, 1)]
    rows = {base: (base, np.arange(len(own))) for base, own in posts.items()}
    for name, base, shares in (
        ("train_randomised", "train", (float(marked["train"].mean()),) * 2),
        ("test_balanced", "test", (0.5, 0.5)),
        ("test_flipped", "test", (share[1], share[0])),
    ):
        wanted = np.array([[1 - share, share] for share in shares])
        rows[name] = (base, resampling.with_shares(label[base], marked[base], wanted, planting.generator(options.data_seed, name)))
    for name in ("train", "train_randomised"):
        own = rows[name][1]
        if 0 < options.train < len(own):
            order = resampling.interleave(2 * label["train"][own] + marked["train"][own], planting.generator(options.data_seed, name, "cap"))
            rows[name] = ("train", np.sort(own[order[: options.train]]))
    return rows


def _source(
    posts: list[Post],
    words: list[list[str]],
    text: tokenise.Tokeniser | tokenise.Pretrained,
    attributes: tokenise.Tokeniser | tokenise.Pretrained,
    seen: dict[str, tuple[str, ...]],
) -> ArraySource:
    label = np.array([post.label for post in posts], np.int32)
    group = len(MARKS) * label + np.array([post.marked for post in posts], np.int32)
    marks = tokenise.spread(text, words, [[word.startswith("#") for word in own] for own in words])
    inputs = {"text": text.encode(words), "attributes": attributes.encode([seen.get(post.number, ()) for post in posts])}
    present = {"attributes": np.array([post.number in seen for post in posts], bool)}
    return ArraySource(inputs=inputs, label=label, group=group, present=present, regions={"shortcut": {"text": marks}})
