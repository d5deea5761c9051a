"""Questions about photographs, with changing priors (VQA-CP, Agrawal et al. 2018): how a question begins tells the answer in training, not in test.

`data.path` is a folder with the authors' files, and the pictures of COCO 2014 (cocodataset.org):
  vqacp_v2_{train,test}_{questions,annotations}.json   (or vqacp_v1_..., by version), as they are distributed: bare lists,
  train2014/, val2014/   COCO_{train2014 or val2014}_{number of 12 digits}.jpg; or all of them in the folder itself.
With version=v2 it is VQA v2 (Goyal et al. 2017), whose training and test have the same priors, from visualqa.org:
  v2_OpenEnded_mscoco_{train,val}2014_questions.json, v2_mscoco_{train,val}2014_annotations.json; the test is val2014.

Classes are the answers that at least `least` training questions have as their agreed one (of VQA-CP v2 2,274 by the usual count), normalised as the
official evaluation does. A question's label is the class that most of its ten people gave; questions without any are left out and counted in the
notes. Reported are the accuracy of that label, without these questions, and vqa_accuracy, where each of the ten counts and they count as wrong.
The attribute is the question type (65 beginnings such as "how many"), groups are answer x question type, for pairs with enough questions; in
VQA-CP hardly any pair is both in training and in test. There is no official validation set: it is held out of training, by picture. Since no answer
goes with every question type there is no train_randomised and no test_balanced.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from cimrl_jax.data import listing, planting
from cimrl_jax.data.source import Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.options import Range, make_options
from cimrl_jax.types import Expected

WHERE = "data set 'vqa_cp'"
KINDS = ("yes/no", "number", "other")
"""Answer types, by which accuracies are published."""
ARTICLES = {"a", "an", "the"}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(DIGITS)} | {"none": "0"}
# Without those that are other words when the apostrophe is missing: ill, were, shell, its.
APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd've he's how'd how'll how's i'd've i'm
    i've isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't o'clock oughtn't shan't she'd've should've shouldn't
    shouldn't've somebody'd somebody's someone'd someone'll someone's something'd something'll that'd that'd've that's there'd there're there's
    they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd
    who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all you'd you'd've you'll you're you've
"""
CONTRACTIONS = {word.replace("'", ""): word for word in APOSTROPHES.split()}


class Release(NamedTuple):
    """Where a version's files are."""

    source: str
    questions: str
    """Name of a file of questions, {} in the place of `parts`."""
    annotations: str
    parts: tuple[str, str]
    """Of training and of test."""
    lists: tuple[str, str]
    """The keys under which the files have their lists; empty where they are lists."""
    published: tuple[int, int] | None = None
    """Questions of training and of test."""


RELEASES = {
    "cp_v2": Release(
        "VQA-CP v2 (Agrawal et al. 2018)", "vqacp_v2_{}_questions.json", "vqacp_v2_{}_annotations.json", ("train", "test"), ("", ""), (438183, 219928)
    ),
    "cp_v1": Release("VQA-CP v1 (Agrawal et al. 2018)", "vqacp_v1_{}_questions.json", "vqacp_v1_{}_annotations.json", ("train", "test"), ("", "")),
    "v2": Release(
        "VQA v2 (Goyal et al. 2017)",
        "v2_OpenEnded_mscoco_{}_questions.json",
        "v2_mscoco_{}_annotations.json",
        ("train2014", "val2014"),
        ("questions", "annotations"),
        (443757, 214354),
    ),
}


@dataclasses.dataclass(frozen=True)
class Options(listing.Options):
    version: Literal["cp_v2", "cp_v1", "v2"] = "cp_v2"
    """VQA-CP v2 or v1, or VQA v2, as it was before its priors were changed."""
    least: Annotated[int, Range(low=1)] = 9
    """So many training questions (those held out for validation too) must have an answer as their agreed one for it to be a class."""
    answers: Annotated[int, Range(low=0)] = 0
    """At most so many classes, the most frequent answers; 0: all."""
    validation: Annotated[float, Range(above=0, below=1)] = 0.1
    """Share of the training pictures whose questions are kept for validation."""
    group_least: Annotated[int, Range(low=1)] = 500
    """A pair of answer and question type is a group if so many questions of training or of test have it; the group of the others is unknown, which
    methods that train on groups refuse. 1: every pair is a group."""


def build(options: Options, *, path: pathlib.Path | None = None, expected: Mapping[str, Expected] | None = None) -> Dataset:
    """The data set: image [size, size, 3] uint8 and text [length] int32, the question; `answers` are the ten people's. `expected`: what the
    pretrained encoders of these modalities read.

    Raises:
      UserError: a bad option, a file that is missing or damaged, or rows that cannot be used with on_bad_row=fail.
    """
    make_options(Options, dataclasses.asdict(options), "data")
    if path is None:
        release = RELEASES[options.version]
        first = release.questions.format(release.parts[0])
        raise UserError(
            f"{WHERE}: it reads files; set data.path to a folder with {first}, train2014/ and so on (`--help vqa_cp` says what they hold)"
        )
    return listing.assemble(read(options, path), options, expected=expected)


class Question(NamedTuple):
    """A question and what the ten people said."""

    part: int
    """0: training, 1: test."""
    number: int
    text: str | None
    picture: tuple[str, int]
    """COCO's split, and the picture's number there."""
    kind: str = ""
    """Question type."""
    answer_type: str = ""
    """yes/no, number or other."""
    agreed: str = ""
    """The answer that the authors took from the ten."""
    answers: tuple[str, ...] = ()
    fault: tuple[str, str] | None = None
    """Kind and detail of a `listing.Fault`."""


def read(options: Options, path: pathlib.Path) -> listing.Listing:
    """The questions of all files; those in a split have an answer among the classes. No picture is read.

    Raises:
      UserError: a file that is missing, damaged, or has more questions than were published, or fewer than two classes.
    """
    release = RELEASES[options.version]
    rows = [question for part in range(2) for question in read_questions(release, path, part)]
    sound = np.array([row.fault is None for row in rows], bool)
    part = np.array([row.part for row in rows])
    held_out = _held_out(rows, options)
    parts = {"train": (part == 0) & ~held_out, "validation": (part == 0) & held_out, "test": part == 1}
    classes, label = _labels(rows, vocabulary((row.agreed for row in rows if row.part == 0 and row.fault is None), options), parts["train"])
    if len(classes) < 2:
        raise UserError(
            f"{WHERE}: at least two answers are needed that {options.least} training questions have, but the files in {path} have {len(classes)}; "
            "set data.least lower"
        )
    kinds = tuple(sorted({row.kind for row in rows if row.fault is None}))
    kind = np.array([kinds.index(row.kind) if row.fault is None else -1 for row in rows], np.int32)
    pairs, group = _groups(label, kind, part, options)
    without = sound & (label < 0)
    notes = [f"{release.source}; pictures of COCO 2014, under licences of their own; validation held out of training, by picture"]
    for name, own in parts.items():
        notes.append(f"{int((own & without).sum())} of {int((own & sound).sum())} {name} questions left out: none of their answers is a class")
    for name, number, published in zip(("training", "test"), range(2), release.published or (0, 0), strict=True):
        if 0 < (part == number).sum() < published:
            notes.append(f"{int((part == number).sum())} of the {published} published {name} questions")
    return listing.Listing(
        name="vqa_cp",
        columns={
            # Left and right matter to some questions.
            "image": listing.Pictures(_files(path, rows), flip=False, shared=True),
            "text": listing.Texts([row.text for row in rows]),
        },
        label=label,
        class_names=classes,
        splits={name: np.flatnonzero(own & (label >= 0)) for name, own in parts.items()},
        origins=_Origins(release, rows),
        notes="; ".join(notes),
        ids=[str(row.number) for row in rows],
        group=group,
        group_names=tuple(f"label={classes[y]}, attribute={kinds[a]}" for y, a in pairs),
        attribute_names=kinds if pairs else (),
        group_attribute=tuple(a for _, a in pairs),
        faults=tuple(listing.Fault(number, *row.fault) for number, row in enumerate(rows) if row.fault is not None),
        said=_said(rows, classes, {name: own & without for name, own in parts.items()}),
    )


def _said(rows: Sequence[Question], classes: Sequence[str], lost: Mapping[str, Bool[np.ndarray, " n"]]) -> listing.Said:
    """What the ten said of each row. `lost`: the rows that are missing in each split since none of that is a class."""
    place = {answer: number for number, answer in enumerate(classes)}
    found = np.full((len(rows), max((len(row.answers) for row in rows), default=0)), -1)
    for number, row in enumerate(rows):
        found[number, : len(row.answers)] = [place.get(answer, -1) for answer in row.answers]
    kind = np.array([KINDS.index(row.answer_type) if row.answer_type in KINDS else -1 for row in rows], np.int32)
    return listing.Said(found, kind, KINDS, {name: np.bincount(kind[own], minlength=len(KINDS)) for name, own in lost.items()})


class _Origins(Sequence[str]):
    """Where each question stands, said when asked for."""

    def __init__(self, release: Release, rows: Sequence[Question]) -> None:
        self.release, self.rows = release, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: Any) -> Any:
        question = self.rows[row]
        file = self.release.annotations if question.text is None else self.release.questions
        return f"{file.format(self.release.parts[question.part])}, question {question.number}"


def read_questions(release: Release, path: pathlib.Path, part: int) -> list[Question]:
    """The questions of training (0) or test (1) in the file's order, then the annotations that are of none of them.

    Raises:
      UserError: one of the two files is missing or damaged, or has more questions than were published.
    """
    asked, told = (path / name.format(release.parts[part]) for name in (release.questions, release.annotations))
    questions = _load(asked, release.lists[0], None, release)
    _check(questions, {"question_id": int, "question": str, "image_id": int}, asked)
    if release.published and len(questions) > release.published[part]:
        raise UserError(f"{WHERE}: {asked} has {len(questions)} questions, but only {release.published[part]} were published; fetch it again")
    normal: dict[str, str] = {}

    def small(entry: dict[str, Any]) -> Any:
        """Of each of the ten answers only the normalised text, once for all that are the same: millions of records would take gigabytes."""
        said = entry.get("answer")
        if not isinstance(said, str):
            return entry
        return normal[said] if said in normal else normal.setdefault(said, normalise(said))

    annotations = _load(told, release.lists[1], small, release)
    wanted = {"question_id": int, "image_id": int, "question_type": str, "answer_type": str, "multiple_choice_answer": str, "answers": list}
    _check(annotations, wanted, told)
    of = {annotation["question_id"]: annotation for annotation in annotations}
    default, found = release.parts[part], []
    for entry in questions:
        number, picture = entry["question_id"], (_folder(entry, default, asked), entry["image_id"])
        answer = of.get(number)
        if answer is None:
            fault = ("no answer", f"{told.name} has none to this question")
            found.append(Question(part, number, entry["question"], picture, fault=fault))
            continue
        if not all(isinstance(said, str) for said in answer["answers"]):
            raise UserError(f"{WHERE}: {told}, question {number}: expected 'answers' to be records that have a text 'answer'; fetch the file again")
        what = f"it is about picture {picture[1]}, but its answer in {told.name} about picture {answer['image_id']}"
        fault = ("another picture", what) if answer["image_id"] != picture[1] else None
        if answer["answer_type"] not in KINDS:
            what = f"{told}, question {number}: 'answer_type' is {answer['answer_type']!r:.60}"
            raise UserError(f"{WHERE}: {what}, expected {', '.join(KINDS)}; fetch the file again")
        agreed, said = normalise(answer["multiple_choice_answer"]), tuple(answer["answers"])
        found.append(Question(part, number, entry["question"], picture, answer["question_type"], answer["answer_type"], agreed, said, fault))
    for number in of.keys() - {entry["question_id"] for entry in questions}:
        picture = (_folder(of[number], default, told), of[number]["image_id"])
        found.append(Question(part, number, None, picture, fault=("no question", f"{asked.name} has none of this number")))
    return found


def _load(path: pathlib.Path, key: str, hook: Callable[[dict[str, Any]], Any] | None, release: Release) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file, object_hook=hook)
        rows = content[key] if key else content
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise TypeError("no list of records")
        return rows
    except OSError as error:
        raise UserError(f"{WHERE}: cannot read {path} ({error.strerror}); it is a file of {release.source}, put it into data.path") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        shape = f"a list of records under {key!r}" if key else "a list of records"
        raise UserError(f"{WHERE}: {path} is damaged ({error}); expected JSON, {shape}: fetch it again") from error


def _check(rows: list[dict[str, Any]], wanted: Mapping[str, type], path: pathlib.Path) -> None:
    words = {int: "a whole number", str: "a text", list: "a list"}
    for number, row in enumerate(rows):
        for key, kind in wanted.items():
            if not isinstance(row.get(key), kind):
                what = "is missing" if key not in row else f"is {row[key]!r:.60}"
                raise UserError(f"{WHERE}: {path}, record {number + 1}: {key!r} {what}, expected {words[kind]}; fetch the file again")


def _folder(entry: dict[str, Any], default: str, path: pathlib.Path) -> str:
    name = entry.get("coco_split", default)
    if not isinstance(name, str) or not re.fullmatch(r"(train|val)2014", name):
        what = f"{path}, question {entry['question_id']}: 'coco_split' is {name!r:.60}"
        raise UserError(f"{WHERE}: {what}, expected train2014 or val2014; fetch the file again")
    return name


def _files(path: pathlib.Path, rows: Sequence[Question]) -> list[pathlib.Path]:
    """The picture of each question; questions about the same share the path too."""
    pictures = {row.picture for row in rows}
    folders = {split: path / split if (path / split).is_dir() else path for split in {split for split, _ in pictures}}
    files = {(split, number): folders[split] / f"COCO_{split}_{number:012d}.jpg" for split, number in pictures}
    return [files[row.picture] for row in rows]


def normalise(answer: str) -> str:
    """An answer as the official evaluation compares it (Antol et al. 2015; visualqa.org/evaluation): lower case, no articles, number words as digits,
    apostrophes put back into contractions, no full stop but in decimals, no comma within numbers, a blank for every other mark but the apostrophe and
    the colon."""
    text = re.sub(r"(?<=\d),(?=\d)", "", answer.lower().replace("’", "'"))
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", "", text)
    words = (NUMBERS.get(word, word) for word in re.sub(r"[^\w\s':.]|_", " ", text).split())
    return " ".join(CONTRACTIONS.get(word.replace("'", ""), word) for word in words if word not in ARTICLES)


def vocabulary(agreed: Iterable[str], options: Options) -> tuple[str, ...]:
    """The answers that are classes, of the agreed ones of all training questions: the frequent first, ties by spelling."""
    counts = collections.Counter(agreed)
    kept = sorted((answer for answer, count in counts.items() if answer and count >= options.least), key=lambda answer: (-counts[answer], answer))
    return tuple(kept[: options.answers or None])


def _labels(rows: Sequence[Question], classes: tuple[str, ...], train: Bool[np.ndarray, " n"]) -> tuple[tuple[str, ...], Int[np.ndarray, " n"]]:
    """(the classes that are left when those go that no training question has as its label, the label of each row or -1)."""
    place = {answer: number for number, answer in enumerate(classes)}
    label = np.array([_label(row, place) for row in rows], np.int32)
    kept = tuple(answer for answer, count in zip(classes, np.bincount(label[train & (label >= 0)], minlength=len(classes)), strict=True) if count)
    return (classes, label) if kept == classes else _labels(rows, kept, train)


def _label(row: Question, place: Mapping[str, int]) -> int:
    """The class that most of the ten gave; of several the agreed one, else the one that is more frequent in training. -1: none."""
    counts = collections.Counter(answer for answer in row.answers if row.fault is None and answer in place)
    return place[min(counts, key=lambda answer: (-counts[answer], answer != row.agreed, place[answer]))] if counts else -1


def _held_out(rows: Sequence[Question], options: Options) -> Bool[np.ndarray, " n"]:
    """Which rows are about one of the pictures of training that are kept for validation."""
    known = sorted({row.picture for row in rows if row.part == 0})
    order = planting.generator(options.data_seed, "validation").permutation(len(known))
    chosen = {known[number] for number in order[: max(round(options.validation * len(known)), 1)].tolist()}
    return np.array([row.picture in chosen for row in rows], bool)


def _groups(
    label: Int[np.ndarray, " n"], kind: Int[np.ndarray, " n"], part: Int[np.ndarray, " n"], options: Options
) -> tuple[list[tuple[int, int]], Int[np.ndarray, " n"]]:
    """(the pairs of label and question type that are groups, the group of each row)."""
    known = np.flatnonzero(label >= 0)
    pairs, place = np.unique(np.stack([label[known], kind[known]], 1), axis=0, return_inverse=True)
    place = place.reshape(-1)
    counts = np.stack([np.bincount(place[part[known] == number], minlength=len(pairs)) for number in range(2)])
    kept = counts.max(0) >= options.group_least
    group = np.full(len(label), -1, np.int32)
    group[known] = np.where(kept, np.cumsum(kept) - 1, -1)[place]
    return [(int(y), int(a)) for y, a in pairs[kept]], group
