"""Words to ids: a word-level tokeniser built on the training split. Id 0 is padding, id 1 the unknown word."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from cimrl_jax.errors import UserError
from cimrl_jax.files import write_whole

PADDING, UNKNOWN = 0, 1
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

    def save(self, path: pathlib.Path) -> None:
        """As JSON, written whole."""
        write_whole(path, json.dumps({"kind": "words", "length": self.length, "vocabulary": self.vocabulary}, ensure_ascii=False) + "\n")


def fit(texts: Iterable[str | Sequence[str]], *, length: int, size: int | None = None, least: int = 1) -> Tokeniser:
    """A tokeniser of the words seen at least `least` times, the most frequent first (ties by spelling), at most `size` with the two reserved ids."""
    counts = collections.Counter(word for text in texts for word in (words_of(text) if isinstance(text, str) else text))
    kept = sorted((word for word, count in counts.items() if count >= least and word not in RESERVED), key=lambda word: (-counts[word], word))
    return Tokeniser(vocabulary=RESERVED + tuple(kept[: None if size is None else max(size - 2, 0)]), length=length)


def load(path: pathlib.Path) -> Tokeniser:
    """What `Tokeniser.save` wrote.

    Raises:
      UserError: no such file, or it is no such vocabulary.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Tokeniser(vocabulary=tuple(map(str, content["vocabulary"])), length=int(content["length"]))
    except OSError as error:
        raise UserError(f"cannot read the vocabulary {path}: {error.strerror}; it is written beside the run by training") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a vocabulary: expected JSON with 'vocabulary' (a list of words) and 'length'") from error
