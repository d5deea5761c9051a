"""Words to ids: a word-level tokeniser built on the training split, or a checkpoint's own. Id 0 is padding, id 1 the unknown word."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from cimrl_jax.errors import UserError
from cimrl_jax.files import write_whole
from cimrl_jax.types import Expected, Feature
from cimrl_jax.vocabulary import PADDING, UNKNOWN, checkpoint_ids

RESERVED = ("<pad>", "<unk>")


def words_of(text: str) -> list[str]:
    """Lower-case words, with inner apostrophes and hyphens, a leading # or @ or <...> kept; every other mark is a word of its own."""
    return re.findall(r"<\w+>|[#@]?\w+(?:['’-]\w+)*|[^\w\s]", text.lower())


@dataclasses.dataclass(frozen=True)
class Tokeniser:
    """Word-level. `vocabulary[i]` is the word of id i."""

    vocabulary: tuple[str, ...]
    length: int
    """Ids per text: longer ones are cut, shorter ones padded at the end."""

    def __post_init__(self) -> None:
        if self.vocabulary[:2] != RESERVED or len(set(self.vocabulary)) != len(self.vocabulary) or self.length < 1:
            raise UserError(f"a vocabulary must start with {RESERVED} and repeat no word, and texts must have at least one id")
        object.__setattr__(self, "_ids", {word: number for number, word in enumerate(self.vocabulary)})

    def encode(self, texts: Sequence[str | Sequence[str]]) -> Int[np.ndarray, "n length"]:
        """int32 ids of texts, or of lists of words."""
        ids = np.zeros((len(texts), self.length), np.int32)
        known: dict[str, int] = self._ids  # pyright: ignore[reportAttributeAccessIssue] -- set in __post_init__
        for row, text in enumerate(texts):
            words = words_of(text) if isinstance(text, str) else text
            found = [known.get(word, UNKNOWN) for word in words[: self.length]]
            ids[row, : len(found)] = found
        return ids

    def decode(self, ids: Int[np.ndarray, " length"]) -> str:
        """The words, joined by blanks, without the padding."""
        return " ".join(self.vocabulary[number] for number in ids if number != PADDING)

    def align(self, words: Sequence[str]) -> list[int]:
        """For each id that `encode` gives a list of words, which of the words it is of."""
        return list(range(min(len(words), self.length)))

    def feature(self) -> Feature:
        """A modality of texts that this tokeniser encodes."""
        return Feature("text", (self.length,), "int32", vocabulary=self.vocabulary)

    def save(self, path: pathlib.Path) -> None:
        """As JSON, written whole."""
        write_whole(path, json.dumps({"kind": "words", "length": self.length, "vocabulary": self.vocabulary}, ensure_ascii=False) + "\n")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """The tokeniser of a checkpoint: ids are word pieces, in the checkpoint's order but for 0 and 1 (`vocabulary.checkpoint_ids`).

    Markers such as [CLS] are in no text: the encoder adds its own, and a text that spells one gets the pieces of its letters.

    Raises:
      UserError: transformers is not installed, or the folder has no tokeniser that names its ids of padding, unknown, beginning and end.
    """

    folder: str
    length: int
    """Ids per text: longer ones are cut, shorter ones padded at the end."""

    def __post_init__(self) -> None:
        _read(self.folder)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The piece of each id; one that continues a word is written ##so, whatever the checkpoint's files write."""
        return _read(self.folder).vocabulary

    @property
    def special(self) -> tuple[int, ...]:
        """The checkpoint's ids of padding, the unknown word, a text's beginning and its end."""
        return _read(self.folder).special

    def encode(self, texts: Sequence[str | Sequence[str]]) -> Int[np.ndarray, "n length"]:
        """int32 ids of texts (as `transformers` gives them, without markers), or of lists of words (each as if a blank stood before it)."""
        ids = np.zeros((len(texts), self.length), np.int32)
        _learn(self.folder, (word for text in texts if not isinstance(text, str) for word in text))
        for row, text in enumerate(texts):
            found = _pieces(self.folder, [text])[0] if isinstance(text, str) else [piece for own in self._words(text) for piece in own]
            ids[row, : len(found)] = found[: self.length]
        return ids

    def decode(self, ids: Int[np.ndarray, " length"]) -> str:
        """The text, without the padding."""
        own = _read(self.folder)
        return own.tokeniser.decode(own.ids[ids[ids != PADDING]].tolist()).strip()

    def align(self, words: Sequence[str]) -> list[int]:
        """For each id that `encode` gives a list of words, which of the words it is of."""
        return [number for number, own in enumerate(self._words(words)) for _ in own][: self.length]

    def feature(self) -> Feature:
        """A modality of texts that this tokeniser encodes."""
        return Feature("text", (self.length,), "int32", vocabulary=self.vocabulary, tokeniser=self.folder, special=self.special)

    def save(self, path: pathlib.Path) -> None:
        """As JSON, written whole: where it lies, not what it holds."""
        write_whole(path, json.dumps({"kind": "pieces", "length": self.length, "folder": self.folder}, ensure_ascii=False) + "\n")

    def _words(self, words: Sequence[str]) -> list[list[int]]:
        _learn(self.folder, words)
        return [_read(self.folder).known[word] for word in words]


class _Files(NamedTuple):
    """What a folder's tokeniser says."""

    tokeniser: Any
    vocabulary: tuple[str, ...]
    special: tuple[int, ...]
    ids: Int[np.ndarray, " v"]
    """The checkpoint's id of each of the project's."""
    back: Int[np.ndarray, " v"]
    """The project's id of each of the checkpoint's."""
    known: dict[str, list[int]]
    """The project's ids of words seen so far: of a few thousand words that make many texts, each is cut into pieces once."""


@functools.cache
def _read(folder: str) -> _Files:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UserError(f"{folder}: reading its tokeniser needs transformers, which is not installed; run: pip install 'cimrl_jax[text]'") from error
    names = ("tokenizer.json", "vocab.txt", "vocab.json")
    if not any((pathlib.Path(folder) / name).is_file() for name in names):
        raise UserError(f"{folder} has no tokeniser; expected {', '.join(names[:-1])} or {names[-1]} beside config.json: fetch the whole folder")
    try:
        tokeniser: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the reader and its Rust part have no error of their own
        raise UserError(f"cannot read the tokeniser in {folder} ({' '.join(str(error).split())[:200]}); fetch the folder again") from error
    special = tuple(number for name in ("pad", "unk", "cls", "sep") if (number := getattr(tokeniser, f"{name}_token_id", None)) is not None)
    if not tokeniser.is_fast or len(special) < 4:
        raise UserError(
            f"the tokeniser in {folder} does not name its pad, unk, cls and sep tokens, as those of BERT and RoBERTa do; use one of these"
        )
    size = max(tokeniser.get_vocab().values()) + 1
    ids = checkpoint_ids(size, *special[:2])
    pieces = _spell(tokeniser, tokeniser.convert_ids_to_tokens(list(range(size))))
    return _Files(tokeniser, tuple(pieces[number] for number in ids), special, ids, np.argsort(ids).astype(np.int32), {})


def _spell(tokeniser: Any, pieces: list[str | None]) -> list[str]:
    """Each piece as people read it, no two alike."""
    backend, markers, spelt = tokeniser.backend_tokenizer, set(tokeniser.all_special_tokens), {}
    for number, piece in enumerate(pieces):
        word = piece if piece is not None else f"<{number}>"  # an id that the files leave out
        if piece is not None and piece not in markers and type(backend.model).__name__ != "WordPiece":
            # Of the others, that of RoBERTa works on bytes and marks what begins a word, not what continues one.
            text = backend.decoder.decode([piece]).strip()
            readable = text if text and "\ufffd" not in text else piece  # a letter's second byte is no text
            word = readable if piece[0] in "Ġ▁" else f"##{readable}"
        spelt[f"{word}<{number}>" if word in spelt else word] = number
    return list(spelt)


def _pieces(folder: str, texts: Sequence[str]) -> list[list[int]]:
    own = _read(folder)
    found = own.tokeniser(list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False)
    return [own.back[np.array(ids, np.int32)].tolist() for ids in found["input_ids"]]


def _learn(folder: str, words: Iterable[str]) -> None:
    known = _read(folder).known
    unseen = [word for word in dict.fromkeys(words) if word not in known]
    if unseen:
        known.update(zip(unseen, _pieces(folder, [f" {word}" for word in unseen]), strict=True))


def fit(
    texts: Iterable[str | Sequence[str]], *, length: int, size: int | None = None, least: int = 1, expected: Expected | None = None
) -> Tokeniser | Pretrained:
    """A tokeniser for texts like these, of `length` ids each.

    Its words are those seen at least `least` times, the most frequent first (ties by spelling), at most `size` with the two reserved ids. Where
    `expected` names a checkpoint's tokeniser it is that one, and since words are made of several pieces a text gets as many ids as the longest of
    these texts needs, but no more than 2 * `length` nor than the encoder reads.

    Raises:
      UserError: `expected` names a tokeniser that cannot be read.
    """
    if expected is not None and expected.tokeniser:
        whole = Pretrained(expected.tokeniser, min(2 * length, expected.length or 2 * length))
        longest = max((whole.encode(list(texts)) != PADDING).sum(-1).tolist(), default=1)
        return dataclasses.replace(whole, length=max(longest, 1))
    counts = collections.Counter(word for text in texts for word in (words_of(text) if isinstance(text, str) else text))
    kept = sorted((word for word, count in counts.items() if count >= least and word not in RESERVED), key=lambda word: (-counts[word], word))
    return Tokeniser(vocabulary=RESERVED + tuple(kept[: None if size is None else max(size - 2, 0)]), length=length)


def of(feature: Feature) -> Tokeniser | Pretrained:
    """The tokeniser that made a text feature's ids, of one version of it."""
    length = feature.shape[0] // feature.views
    return Pretrained(feature.tokeniser, length) if feature.tokeniser else Tokeniser(feature.vocabulary, length)


def spread(
    tokeniser: Tokeniser | Pretrained, texts: Sequence[Sequence[str]], marked: Iterable[Sequence[bool] | Bool[np.ndarray, " words"]]
) -> Bool[np.ndarray, "n length"]:
    """Which ids of each text, a list of words, are of marked words. `marked`: for each text and each of its words; what is left out is not marked."""
    mask = np.zeros((len(texts), tokeniser.length), bool)
    for row, (words, own) in enumerate(zip(texts, marked, strict=True)):
        mask[row, [place for place, number in enumerate(tokeniser.align(words)) if number < len(own) and own[number]]] = True
    return mask


def load(path: pathlib.Path) -> Tokeniser | Pretrained:
    """What `save` wrote.

    Raises:
      UserError: no such file, or it is no such vocabulary.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("kind") == "pieces":
            return Pretrained(str(content["folder"]), int(content["length"]))
        return Tokeniser(vocabulary=tuple(map(str, content["vocabulary"])), length=int(content["length"]))
    except OSError as error:
        raise UserError(f"cannot read the vocabulary {path}: {error.strerror}; it is written beside the run by training") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a vocabulary: expected JSON with 'length' and 'vocabulary' (a list of words) or 'folder'") from error
