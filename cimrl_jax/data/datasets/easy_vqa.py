"""Questions about pictures of one coloured shape (easy-VQA), with changing priors: how a question is asked tells the answer in training, not in test.

The pictures and questions are those that the wheel `easy-vqa` ships (V. Zhou 2019; 5,000 pictures, 48,248 questions); its code is not run. Another
folder of the same form may be named by `data.path`: train/ and test/, each with questions.json, a list of [question, answer, picture], and
images/{picture}.png.

Every question has a form, and every form an answer that it favours. Rows are drawn from the official questions, none twice in a split, so that the
answer agrees with the favoured one as often as `correlation` says: VQA-CP (Agrawal et al. 2018) with the shift under control. Groups are answer x
favoured answer. Training and validation take official training pictures, no picture in both; test takes the official test pictures.
"""

from __future__ import annotations

import bisect
import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Int, UInt8

from cimrl_jax.data import pictures, planting, resampling, tokenise
from cimrl_jax.data.source import ArraySource, Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.options import Range, make_options
from cimrl_jax.types import Expected, Feature

WHERE = "data set 'easy_vqa'"
NOTES = "easy-VQA (V. Zhou 2019, MIT), as the wheel easy-vqa ships it; questions drawn so that the priors change"
KINDS = (
    ("no", "yes"),
    ("circle", "rectangle", "triangle"),
    ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow"),
)
"""The answers, by kind of question."""
YES_NO, SHAPES, COLOURS = KINDS
DENIALS = ("no", "not")
LENGTH = 10
"""Words of the longest question."""
Share = Annotated[float, Range(low=0, high=1)]
Size = Annotated[int, Range(low=1)]


@dataclasses.dataclass(frozen=True)
class Options:
    task: Literal["yes_no", "answer"] = "yes_no"
    """What is to be told: "yes_no" (the answer to questions that have one of these two) or "answer" (to all questions: 13 answers)."""
    form: Literal["wording", "word"] = "wording"
    """What makes the form of a yes/no question: its "wording" without the words that matter ("is there ...?", "is ... present?"), or the "word" that
    is asked for, which matters too. The form of every other question is the question."""
    denied: bool = False
    """Whether questions that deny are in ("is there not a circle?"). There the answer is turned round, which is much harder to learn."""
    correlation: Share = 0.95
    """P(favoured answer = answer) in training, exact for every answer. The other examples have forms that favour the other answers of their kind."""
    validation_correlation: Share | None = None
    """The same in validation; none: as in training."""
    test_correlation: Share | None = None
    """The same in test; none: as in training. test_flipped has 1 - this."""
    train: Size = 2400
    """Training questions, as many for each answer. Answers that have too few get as many as there can be ("yes" and "no" alike), in train_randomised
    too; there can be more the nearer the correlation is to 1/2, and twice as many with `denied`."""
    validation: Size = 240
    """Validation questions, likewise."""
    test: Size = 600
    """Test questions, likewise; every split whose name begins with test has the same number."""
    validation_pictures: Annotated[float, Range(above=0, below=1)] = 0.1
    """Share of the official training pictures that is kept for validation."""
    size: Annotated[int, Range(low=8, high=64)] = 32
    """Height and width of the pictures; the files' 64 are averaged over areas. A pretrained encoder's own size takes its place."""
    data_seed: Annotated[int, Range(low=0)] = 0
    """Draws the favoured answers, the pictures for validation and the rows."""


def build(options: Options, *, path: pathlib.Path | None = None, expected: Mapping[str, Expected] | None = None) -> Dataset:
    """The data set: image [size, size, 3] uint8 and text [10] int32. Regions: the cause is the shape, and of a yes/no question what is asked for and
    a denial; the shortcut is what the form is made of. Within every answer and favoured answer, as many questions deny as do not, and as many ask for
    a shape as for a colour (where the form is not the word). `expected`: what the pretrained encoders of these modalities read.

    Raises:
      UserError: a bad option, neither wheel nor folder, or a file that is missing or damaged.
    """
    make_options(Options, dataclasses.asdict(options), "data")
    folder = locate() if path is None else path
    classes = YES_NO if options.task == "yes_no" else sum(KINDS, ())
    training, test = (read_questions(folder / official / "questions.json", options, classes) for official in ("train", "test"))
    held_out = _held_out(training.picture, options)
    pools = {"train": training.take(~held_out), "validation": training.take(held_out), "test": test}
    sizes = {"train": options.train, "validation": options.validation, "test": options.test}
    favoured = _favoured(training, options, classes)
    attributes = {base: np.array([favoured.get(str(form), -1) for form in pool.column("form")], np.int32) for base, pool in pools.items()}

    given = (options.validation_correlation, options.test_correlation)
    agree_validation, agree_test = (options.correlation if value is None else value for value in given)
    draws = planting.draws((options.correlation, agree_validation, agree_test), ("text",))
    rows: dict[str, Int[np.ndarray, " k"]] = {}
    for base, pool in pools.items():
        own = {name: draw.correlations[0] for name, draw in draws.items() if draw.base == base}
        rows |= _draw(base, pool, attributes[base], own, sizes[base], classes, options.data_seed)
    of_image, of_text = ((expected or {}).get(m) for m in ("image", "text"))
    tokeniser = tokenise.fit(pools["train"].take(rows["train"]).words, length=LENGTH, expected=of_text)
    feature = pictures.as_expected(Feature("image", (options.size, options.size, 3), "uint8", mean=(0.5,) * 3, std=(0.5,) * 3), of_image)
    shown = {official: _Pictures(folder / official / "images", feature.shape) for official in ("train", "test")}
    pairs = [(y, a) for y in range(len(classes)) for a in range(len(classes)) if _kind(classes[y]) == _kind(classes[a])]
    splits = {}
    for name, chosen in rows.items():
        base = draws[name].base
        pool, value = pools[base].take(chosen), attributes[base][chosen]
        image = shown["test" if base == "test" else "train"].read(pool.picture)
        cause, shortcut = (tokenise.spread(tokeniser, pool.words, list(pool.column(kind))) for kind in ("cause", "shortcut"))
        regions = {"cause": {"image": _shape(image), "text": cause}, "shortcut": {"text": shortcut}}
        group = np.array([pairs.index(pair) for pair in zip(pool.label.tolist(), value.tolist(), strict=True)], np.int32)
        splits[name] = ArraySource(inputs={"image": image, "text": tokeniser.encode(pool.words)}, label=pool.label, group=group, regions=regions)
    return Dataset(
        name="easy_vqa",
        features={"image": feature, "text": tokeniser.feature()},
        class_names=classes,
        group_names=tuple(f"label={classes[y]}, attribute={classes[a]}" for y, a in pairs),
        attribute_names=tuple(classes),
        group_attribute=tuple(a for _, a in pairs),
        splits=splits,
        notes=NOTES,
    )


def locate() -> pathlib.Path:
    """The files in the wheel, found without importing it."""
    found = importlib.util.find_spec("easy_vqa")
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{WHERE}: its files are in the wheel easy-vqa, which is not installed; run: pip install 'cimrl_jax[vqa]'")
    return pathlib.Path(found.submodule_search_locations[0]) / "data"


@dataclasses.dataclass(frozen=True)
class Phrase:
    """One of the few hundred questions that are asked again and again."""

    words: tuple[str, ...]
    form: str
    stratum: int
    """What must not depend on the answer either: whether a yes/no question denies and, unless that is the form, whether it asks for a colour."""
    cause: tuple[bool, ...]
    """Which of the `LENGTH` words matter."""
    shortcut: tuple[bool, ...]
    """Which of them are the form."""


@dataclasses.dataclass(frozen=True)
class Questions:
    phrases: tuple[Phrase, ...]
    phrase: Int[np.ndarray, " n"]
    """Index into `phrases`."""
    label: Int[np.ndarray, " n"]
    picture: Int[np.ndarray, " n"]

    def take(self, rows: np.ndarray) -> Questions:
        """The questions at these indices, or where the mask is true."""
        return Questions(self.phrases, self.phrase[rows], self.label[rows], self.picture[rows])

    def column(self, name: str) -> np.ndarray:
        """A field of `Phrase`, other than its words, for every question."""
        return np.array([getattr(phrase, name) for phrase in self.phrases])[self.phrase]

    @property
    def words(self) -> list[tuple[str, ...]]:
        return [self.phrases[number].words for number in self.phrase.tolist()]


def read_questions(path: pathlib.Path, options: Options, classes: tuple[str, ...]) -> Questions:
    """The questions in a file that have one of these answers, without those that deny if they are not wanted."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [(question.lower(), answer, int(picture)) for question, answer, picture in content]
        strange = {answer for _, answer, _ in rows} - set(sum(KINDS, ()))
    except OSError as error:
        raise UserError(f"{WHERE}: cannot read {path} ({error.strerror}); expected train/ and test/ with questions.json and images/ each") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{WHERE}: {path} is no list of [question, answer, picture] ({error}); fetch it again") from error
    if strange:
        raise UserError(f"{WHERE}: {path} has the answer {min(map(str, strange))!r}; expected one of {', '.join(sum(KINDS, ()))}")
    known = {key: _parse(key[0], key[1] in YES_NO, options) for key in dict.fromkeys((question, answer) for question, answer, _ in rows)}
    wanted = [row for row in rows if row[1] in classes and (options.denied or not set(DENIALS) & set(known[row[:2]].words))]
    if not wanted:
        raise UserError(f"{WHERE}: {path} has no question with one of the answers {', '.join(classes)}; fetch it again")
    place = {phrase: number for number, phrase in enumerate(dict.fromkeys(known.values()))}
    number = {key: place[phrase] for key, phrase in known.items()}
    label = {answer: klass for klass, answer in enumerate(classes)}
    return Questions(
        phrases=tuple(place),
        phrase=np.array([number[question, answer] for question, answer, _ in wanted]),
        label=np.array([label[answer] for _, answer, _ in wanted], np.int32),
        picture=np.array([picture for _, _, picture in wanted]),
    )


def _parse(question: str, yes_no: bool, options: Options) -> Phrase:
    words = tokenise.words_of(question)
    asked = [word in SHAPES + COLOURS for word in words]
    denial = [word in DENIALS for word in words]
    cause = [yes_no and (a or d) for a, d in zip(asked, denial, strict=True)]
    stratum = 2 * any(denial) + any(word in COLOURS for word in words) if yes_no else 0
    if not yes_no:
        form = [True] * len(words)
    elif options.form == "word":
        form, stratum = asked, 2 * any(denial)
    else:
        # "a" gives way to "no", and "shape" stands only beside a colour: neither is a matter of wording.
        form = [not (c or word in ("a", "shape")) for word, c in zip(words, cause, strict=True)]

    def padded(places: list[bool]) -> tuple[bool, ...]:
        return tuple((places + [False] * LENGTH)[:LENGTH])

    kind = "whether" if yes_no else "what"
    name = " ".join((kind, *(word for word, part in zip(words, form, strict=True) if part)))
    return Phrase(tuple(words), name, int(stratum), padded(cause), padded(form))


def _kind(answer: str) -> tuple[str, ...]:
    return next(kind for kind in KINDS if answer in kind)


def _favoured(questions: Questions, options: Options, classes: tuple[str, ...]) -> dict[str, int]:
    """The answer that each form favours. Within a kind, forms are dealt to the answers, the frequent ones first: none is left with rare ones."""
    rng = planting.generator(options.data_seed, "favoured")
    favoured = {}
    for kind in KINDS:
        answers = rng.permutation([classes.index(answer) for answer in kind if answer in classes])
        forms, counts = np.unique(questions.column("form")[np.isin(questions.label, answers)], return_counts=True)
        for number, place in enumerate(np.argsort(-counts, kind="stable")):
            favoured[str(forms[place])] = int(answers[number % len(answers)])
    return favoured


def _held_out(picture: Int[np.ndarray, " n"], options: Options) -> Bool[np.ndarray, " n"]:
    known = planting.generator(options.data_seed, "validation").permutation(np.unique(picture))
    return np.isin(picture, known[: max(round(options.validation_pictures * len(known)), 1)])


def _draw(
    base: str, pool: Questions, attribute: Int[np.ndarray, " n"], shares: dict[str, float | None], size: int, classes: tuple[str, ...], seed: int
) -> dict[str, Int[np.ndarray, " k"]]:
    """The rows of each split made of this pool, by the split's correlation."""
    kinds = [np.array([classes.index(other) for other in _kind(answer)], np.int32) for answer in classes]
    stratum = pool.column("stratum")
    strata = [np.unique(stratum[pool.label == label]) for label in range(len(classes))]
    counts = []
    for label, answer in enumerate(classes):
        own = pool.label == label
        have = np.array([[(own & (attribute == a) & (stratum == s)).sum() for s in strata[label]] for a in kinds[label]], np.int64)
        place = _kind(answer).index(answer)
        candidates = range(1, min(size // len(classes), int(own.sum())) + 1)
        # The first that is too many.
        counts.append(bisect.bisect_left(candidates, True, key=lambda n: not all(_enough(have, place, share, n) for share in shares.values())))
        if not counts[-1]:
            raise UserError(f"{WHERE}: there are too few questions with the answer {answer!r} for {base}; choose a correlation nearer to 1/2")
    counts[: len(YES_NO)] = [min(counts[: len(YES_NO)])] * len(YES_NO)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in shares}
    for label, answer in enumerate(classes):
        for name, share in shares.items():
            rng = planting.generator(seed, name, answer)
            itself = np.full(counts[label], _kind(answer).index(answer), np.int32)
            value = kinds[label][planting.attributes(itself, len(kinds[label]), share, rng)]
            even = np.empty(counts[label], stratum.dtype)
            for a in kinds[label]:
                even[value == a] = np.resize(rng.permutation(strata[label]), (value == a).sum())
            want = (np.full(counts[label], label, np.int32), value, even)
            drawn[name].append(resampling.matching((pool.label, attribute, stratum), want, rng, where=f"{WHERE}: {name}"))
    return {name: planting.generator(seed, name, "order").permutation(np.concatenate(rows)) for name, rows in drawn.items()}


def _enough(have: Int[np.ndarray, "attributes strata"], own: int, share: float | None, count: int) -> bool:
    """Whether the questions of one answer suffice for `count` of them: `have` by favoured answer, of which the `own`-th is the answer itself."""
    values, strata = have.shape
    aligned = round((1 / values if share is None else share) * count)
    others = -(-(count - aligned) // (values - 1))
    want = np.where(np.arange(values) == own, aligned, others)
    return bool((have >= -(-want // strata)[:, None]).all())


class _Pictures:
    """Pictures by number, each read once."""

    def __init__(self, folder: pathlib.Path, shape: tuple[int, ...]) -> None:
        self.folder, self.shape = folder, shape
        self.seen: dict[int, UInt8[np.ndarray, "h w c"]] = {}

    def read(self, numbers: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w c"]:
        height, width, channels = self.shape
        for number in set(numbers.tolist()) - set(self.seen):
            self.seen[number] = pictures.read(self.folder / f"{number}.png", height=height, width=width, channels=channels, where=WHERE)
        return np.stack([self.seen[number] for number in numbers.tolist()])


def _shape(image: UInt8[np.ndarray, "n h w c"]) -> Bool[np.ndarray, "n h w"]:
    """Where a picture differs from its ground, which is of one pale colour and covers more than half of it."""
    ground = np.median(image, (1, 2), keepdims=True)
    return np.abs(image - ground).max(-1) > 40
