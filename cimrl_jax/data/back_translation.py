"""A second version of every training text, translated there and back, from which perturbed views choose (Yu et al. 2018, Xie et al.
2020). A route says by whom, see `translators`.

What is translated are the texts as the tokeniser gives them back, since a data set keeps no others: from whole words in lower case. Words in angle
brackets, hashtags, names after an @ and words with a _ come back as they were; a text that loses one of them stays as it is. Texts of the other
splits stand twice: no view is made of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import numpy as np
from jaxtyping import Bool, Int, Shaped

from cimrl_jax.data import distinct, tokenise, translators
from cimrl_jax.data.source import Dataset, Mask, Records, Regions, Source
from cimrl_jax.errors import UserError
from cimrl_jax.vocabulary import PADDING, UNKNOWN

BATCH = 512
"""Texts that are translated by one start of a program, and then kept: what a kill costs."""
READ = 1024
"""Rows that are read at a time."""
SECONDS = 600.0
"""Most that one start of a program may take."""
KEPT = re.compile(r"<\w+>|[#@]\w[\w'’-]*|\w*_\w*")
STAND_IN = re.compile(r"qx([a-z])([a-z])xq", re.IGNORECASE)
"""What stands for a word that is not to be translated: no word of any language, so that translators hand it on."""

Progress = Callable[[int, int], Any]


def add(dataset: Dataset, modality: str, spec: str, cache: pathlib.Path | None = None, progress: Progress | None = None) -> Dataset:
    """The data set with two versions of each text of a modality: ids [2 * length], the text's own first, `Feature.views` 2.

    Args:
      spec: the route, see `translators`.
      cache: a file to which every translation is written as soon as it is there, see `translate`.
      progress: called with (distinct texts that are translated, all of them).

    Raises:
      UserError: there is no such modality of texts, or it has several versions already; as `translate`.
    """
    feature = dataset.features.get(modality)
    texts = [name for name, own in dataset.features.items() if own.kind == "text"]
    if feature is None or feature.kind != "text":
        known = f"its texts are {', '.join(texts)}" if texts else "it has no texts"
        raise UserError(f"back-translation: data set {dataset.name!r} has no texts {modality!r}; {known}")
    if feature.views > 1:
        raise UserError(f"back-translation: {modality!r} of {dataset.name!r} has {feature.views} versions already; start from the data set itself")
    tokeniser = tokenise.of(feature)
    ids = {name: _ids(source, modality) for name, source in dataset.splits.items()}
    training = [name for name in ids if name.partition("_")[0] == "train"]
    rows = np.unique(np.concatenate([ids[name] for name in training]), axis=0)
    rows = rows[(rows != PADDING).any(-1)]
    back = _encode(tokeniser, translate([_decode(tokeniser, row) for row in rows], spec, cache=cache, progress=progress))
    back = np.where((back != PADDING).any(-1, keepdims=True), back, rows)
    second = {own.tobytes(): other for own, other in zip(rows, back, strict=True)}
    versions = {name: np.stack([second.get(row.tobytes(), row) for row in own]) if name in training else own for name, own in ids.items()}
    changed = int((back != rows).any(-1).sum())
    return dataclasses.replace(
        dataset,
        features={**dataset.features, modality: dataclasses.replace(feature, shape=(2 * tokeniser.length,), views=2)},
        splits={name: Versions(source, modality, versions[name]) for name, source in dataset.splits.items()},
        notes=f"{dataset.notes}; {modality}: {changed} of {len(rows)} training texts have a second version by {spec}",
    )


@dataclasses.dataclass(frozen=True)
class Versions:
    """A source one of whose modalities are texts that have a second version behind their own."""

    raw: Source
    modality: str
    second: Int[np.ndarray, "n length"]

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def label(self) -> Int[np.ndarray, " n"]:
        return self.raw.label

    @property
    def group(self) -> Int[np.ndarray, " n"]:
        return self.raw.group

    @property
    def regions(self) -> Regions | None:
        """Of a text those in its own version; what they became in the other is not known."""
        if self.raw.regions is None:
            return None
        found = {target: dict(masks) for target, masks in self.raw.regions.items()}
        for masks in found.values():
            if self.modality in masks:
                masks[self.modality] = _Widened(masks[self.modality], self.second.shape[1])
        return found

    @property
    def arrays(self) -> Records | None:
        return self._everything

    @functools.cached_property
    def _everything(self) -> Records | None:
        found = self.raw.arrays
        return None if found is None else self._with(found, self.second)

    def load(self, rows: Int[np.ndarray, " b"]) -> Records:
        return self._with(self.raw.load(rows), self.second[rows])

    def column(self, modality: str, rows: Int[np.ndarray, " b"]) -> tuple[Shaped[np.ndarray, "b ..."], Bool[np.ndarray, " b"]]:
        """`load` of one modality: see `distinct.Keyed`, likewise below."""
        values, present = distinct.load(self.raw, (modality,), rows)[modality]
        return (np.concatenate([values, self.second[rows]], axis=-1) if modality == self.modality else values), present

    def keys(self, modality: str) -> tuple[Shaped[np.ndarray, " n"], Bool[np.ndarray, " n"]] | None:
        return self.raw.keys(modality) if modality != self.modality and isinstance(self.raw, distinct.Keyed) else None

    def _with(self, found: Records, second: Int[np.ndarray, "b length"]) -> Records:
        both = np.concatenate([found["inputs"][self.modality], second], axis=-1)
        return {**found, "inputs": {**found["inputs"], self.modality: both}}


@dataclasses.dataclass(frozen=True)
class _Widened:
    """A `source.Mask` with nothing marked in what stands behind."""

    own: Mask
    more: int
    dtype: np.dtype = np.dtype(bool)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.own.shape[0], self.own.shape[1] + self.more

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, rows: Any) -> Bool[np.ndarray, "... m"]:
        found = self.own[rows]
        return np.pad(found, [(0, 0)] * (found.ndim - 1) + [(0, self.more)])


def translate(
    texts: Sequence[str], spec: str, *, cache: pathlib.Path | None = None, timeout: float = SECONDS, progress: Progress | None = None
) -> list[str]:
    """Each text there and back, in one line; one that comes back empty, or without a word that was to be kept, as it was.

    Args:
      spec: the route, see `translators`.
      cache: a file of JSON lines {"route", "text", "back"}: what stands there is not translated again, what is translated is written there every
        512 texts, so that a run that was stopped goes on. One file may hold several routes and data sets.
      timeout: most seconds that one start of a program may take.
      progress: called with (distinct texts that are translated, all of them).

    Raises:
      UserError: a route of no known form; a program, package, model or direction that is missing; a translator that fails or takes too long; a cache
        that cannot be read or written.
    """
    route, legs = translators.route(spec, timeout)
    wanted = [text for text in dict.fromkeys(texts) if text.strip()]
    found = {} if cache is None else _remembered(cache, route)
    missing = [text for text in wanted if text not in found]
    tell = progress or (lambda done, total: None)
    tell(len(wanted) - len(missing), len(wanted))
    if missing:
        through = legs()
        with _memory(cache) as file:
            for start in range(0, len(missing), BATCH):
                batch = missing[start : start + BATCH]
                found |= (made := dict(zip(batch, _there_and_back(batch, through), strict=True)))
                if file is not None:
                    _write(file, "".join(json.dumps({"route": route, "text": text, "back": back}) + "\n" for text, back in made.items()))
                tell(len(wanted) - len(missing) + start + len(batch), len(wanted))
    return [found.get(text, text) for text in texts]


def _there_and_back(texts: list[str], through: Sequence[translators.Translate]) -> list[str]:
    guarded = [_guard(text) for text in texts]
    backs = [text for text, _ in guarded]
    places = list(range(len(texts)))
    for leg in through:
        places = [place for place in places if backs[place]]  # what became nothing on the way is not asked for again
        for place, back in zip(places, leg([backs[place] for place in places]) if places else [], strict=True):
            backs[place] = " ".join(back.split())
    return [_restored(back, kept) or text for text, back, (_, kept) in zip(texts, backs, guarded, strict=True)]


def _guard(text: str) -> tuple[str, list[str]]:
    """(the text as a translator may see it, in one line; the words that it must not see)."""
    kept: list[str] = []

    def stand_in(found: re.Match[str]) -> str:
        if len(kept) == 26 * 26:
            return found[0]
        kept.append(found[0])
        high, low = divmod(len(kept) - 1, 26)
        return f"qx{chr(97 + high)}{chr(97 + low)}xq"

    own = KEPT.sub(stand_in, " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", text).split()))
    # As people write: words that were cut apart are one again (not behind a stand-in, whose word they would become part of), marks stand behind
    # their word, and translators do not know a small i.
    own = re.sub(r"(?<=\w)(?<!xq) (['’]) (?=(?:s|t|m|d|re|ve|ll)\b)", r"\1", own)
    return re.sub(r"\bi\b", "I", re.sub(r" +([.,;:!?])(?![\w.,;:!?])", r"\1", own)), kept


def _restored(text: str, kept: list[str]) -> str:
    """The text with the words that were kept; empty if one of them is missing, or there twice."""
    numbers = [(ord(high) - 97) * 26 + ord(low) - 97 for high, low in STAND_IN.findall(text.lower())]
    if sorted(numbers) != list(range(len(kept))):
        return ""
    words = iter(kept[number] for number in numbers)
    return STAND_IN.sub(lambda _: next(words), text)


def _remembered(cache: pathlib.Path, route: str) -> dict[str, str]:
    """The translations of a route that a file holds. What stands behind the last line's end was being written when a process was killed."""
    try:
        lines = cache.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"back-translation: cannot read {cache}: {error.strerror}; name another file") from error
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            own = json.loads(line)
            known, text, back = own["route"], own["text"], own["back"]
            if not all(isinstance(part, str) for part in (known, text, back)):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'back-translation: {cache}, line {number} is not {{"route": ..., "text": ..., "back": ...}}; delete that line, or name another file'
            ) from error
        if known == route:
            found[text] = back
    return found


@contextlib.contextmanager
def _memory(cache: pathlib.Path | None) -> Iterator[IO[bytes] | None]:
    """The file, held by this process alone, at the end of its last whole line."""
    if cache is None:
        yield None
        return
    import fcntl

    with contextlib.ExitStack() as held:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(cache.open("a+b", buffering=0))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        except BlockingIOError as error:
            raise UserError(f"back-translation: another process writes to {cache}; wait for it, or name another file") from error
        except OSError as error:
            raise UserError(f"back-translation: cannot write {cache}: {error.strerror}; name another file") from error
        yield file


def _write(file: IO[bytes], lines: str) -> None:
    left = memoryview(lines.encode())
    try:
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"back-translation: cannot write {file.name}: {error.strerror}; free some space and start again, it goes on there") from error


def _ids(source: Source, modality: str) -> Int[np.ndarray, "n length"]:
    if source.arrays is not None:
        return source.arrays["inputs"][modality]
    rows = np.arange(len(source))
    return np.concatenate([source.load(rows[start : start + READ])["inputs"][modality] for start in range(0, len(rows), READ)])


def _decode(tokeniser: tokenise.Tokeniser | tokenise.Pretrained, ids: Int[np.ndarray, " length"]) -> str:
    # A checkpoint's tokeniser would write the unknown word's marker, which it does not read as one.
    return tokeniser.decode(ids if isinstance(tokeniser, tokenise.Tokeniser) else ids[ids != UNKNOWN])


def _encode(tokeniser: tokenise.Tokeniser | tokenise.Pretrained, texts: Sequence[str]) -> Int[np.ndarray, "n length"]:
    """As `Tokeniser.encode`, but a word that the vocabulary lacks is its parts (don ' t) where it has these."""
    if isinstance(tokeniser, tokenise.Pretrained):
        return tokeniser.encode(texts)
    known = set(tokeniser.vocabulary)

    def words(text: str) -> list[str]:
        found: list[str] = []
        for word in tokenise.words_of(text):
            parts = re.findall(r"\w+|[^\w\s]", word)
            found += parts if word not in known and known.issuperset(parts) else [word]
        return found

    return tokeniser.encode([words(text) for text in texts])
