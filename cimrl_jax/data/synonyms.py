"""Tables of synonyms over a vocabulary, built once on the host: from groups of words, or from WordNet's files."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from cimrl_jax.errors import UserError

PARTS = ("noun", "verb", "adj", "adv")


def synonym_table(groups: Iterable[Sequence[str]], vocabulary: Sequence[str], *, width: int = 8) -> Int[np.ndarray, "v k"]:
    """Ids of each word's synonyms, at the left of its row, 0 beyond; at most `width`. A word's synonyms are the others of all groups it is in."""
    found: dict[str, list[str]] = {}
    for group in groups:
        for word in group:
            found.setdefault(word, []).extend(group)
    return _table(found, vocabulary, width)


def wordnet_synonyms(folder: pathlib.Path, vocabulary: Sequence[str], *, senses: int = 1, width: int = 8) -> Int[np.ndarray, "v k"]:
    """The same from WordNet 3's `index.*` and `data.*` files (Debian's wordnet-base puts them in /usr/share/wordnet).

    A word's synonyms are the members of its first `senses` synsets in each part of speech; index files list the most frequent sense first.

    Raises:
      UserError: a file is not there, or is none of WordNet's.
    """
    wanted = {word for word in vocabulary[2:] if word.isalpha()}
    found: dict[str, list[str]] = {}
    for part in PARTS:
        index, data = folder / f"index.{part}", folder / f"data.{part}"
        try:
            synsets = dict(map(_synset, _lines(data)))
            for line in _lines(index):
                word, offsets = _entry(line)
                if word in wanted:
                    for offset in offsets[:senses]:
                        found.setdefault(word, []).extend(synsets[offset])
        except OSError as error:
            raise UserError(
                f"cannot read WordNet's {error.filename}: {error.strerror}; point at its dict folder (apt install wordnet-base)"
            ) from error
        except (ValueError, IndexError, KeyError) as error:
            raise UserError(f"{index} and {data} do not look like WordNet 3 files; point at its dict folder (apt install wordnet-base)") from error
    return _table(found, vocabulary, width)


def _lines(path: pathlib.Path) -> Iterable[str]:
    """The lines but for the licence, which is indented by two blanks."""
    with path.open(encoding="utf-8") as file:
        return [line for line in file if not line.startswith("  ") and line.strip()]


def _synset(line: str) -> tuple[str, list[str]]:
    """`offset file type count(hex) word lexical ...` -> (offset, single words)."""
    fields = line.split()
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    # An adjective may carry its position: galore(ip).
    return fields[0], [word for word in (re.sub(r"\(\w+\)$", "", word).lower() for word in words) if word.isalpha()]


def _entry(line: str) -> tuple[str, list[str]]:
    """`lemma part synsets pointers ... senses tagged offset ...` -> (lemma, offsets)."""
    fields = line.split()
    return fields[0], fields[-int(fields[2]) :]


def _table(found: Mapping[str, Sequence[str]], vocabulary: Sequence[str], width: int) -> Int[np.ndarray, "v k"]:
    ids = {word: number for number, word in enumerate(vocabulary) if number > 1}
    table = np.zeros((len(vocabulary), max(width, 1)), np.int32)
    for word, others in found.items():
        if word in ids:
            known = [ids[other] for other in dict.fromkeys(others) if other in ids and other != word][: table.shape[1]]
            table[ids[word], : len(known)] = known
    return table
