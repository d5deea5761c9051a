"""Tables of synonyms over a vocabulary, built once on the host: from groups of words, or from WordNet's files."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from cimrl_jax.errors import UserError

PARTS = ("noun", "verb", "adj", "adv")
GRAMMAR = """
a an the this that these those i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers
herself it its itself they them their theirs themselves one ones who whom whose which what when where why how whether if then than because while
although though unless until since as at by for from in into of off on onto out over to up down under with without within about above across after
against along among around before behind below beneath beside between beyond during except inside near outside past through toward towards upon via
and or but nor so yet both either neither not no none nothing nobody any anybody anyone anything some somebody someone something each every
everybody everyone everything all few many more most much less least other another such same own too very just only even still also again ever never
here there now be am is are was were been being do does did done doing have has had having can could may might must shall should will would ought
need dare let s t d m o ll re ve don doesn didn isn aren wasn weren hasn haven hadn won wouldn couldn shouldn mustn ain
"""
"""WordNet knows some words of grammar as something else (a: angstrom, he: helium): they have no synonyms there. EDA spares them likewise."""
FUNCTION_WORDS = frozenset(GRAMMAR.split())


def synonym_table(
    groups: Iterable[Sequence[str]], vocabulary: Sequence[str], *, wordnet: pathlib.Path | None = None, width: int = 8
) -> Int[np.ndarray, "v k"]:
    """Ids of each word's synonyms, at the left of its row, 0 beyond; at most `width`. A word's synonyms are the others of all groups it is in, and
    behind these those of WordNet's files in the folder `wordnet`, see `wordnet_synonyms`."""
    found: dict[str, list[str]] = {}
    for group in groups:
        for word in group:
            found.setdefault(word, []).extend(group)
    for word, others in (_wordnet(wordnet, vocabulary, 1) if wordnet else {}).items():
        found.setdefault(word, []).extend(others)
    return _table(found, vocabulary, width)


def wordnet_synonyms(folder: pathlib.Path, vocabulary: Sequence[str], *, senses: int = 1, width: int = 8) -> Int[np.ndarray, "v k"]:
    """The same from WordNet 3's `index.*` and `data.*` files alone (Debian's wordnet-base puts them in /usr/share/wordnet).

    A word's synonyms are the members of its first `senses` synsets in each part of speech; index files list the most frequent sense first. EDA (Wei &
    Zou 2019) takes all senses, which more often changes what is meant. Words of several words, of other letters than a to z and of grammar have none;
    of a checkpoint's pieces only those that are a whole word.

    Raises:
      UserError: a file is not there, or is none of WordNet's.
    """
    return _table(_wordnet(folder, vocabulary, senses), vocabulary, width)


def _wordnet(folder: pathlib.Path, vocabulary: Sequence[str], senses: int) -> dict[str, list[str]]:
    wanted = {word for word in vocabulary[2:] if word.isalpha()} - FUNCTION_WORDS
    found: dict[str, list[str]] = {}
    for part in PARTS:
        index, data = folder / f"index.{part}", folder / f"data.{part}"
        try:
            entries = [(word, offsets[:senses]) for word, offsets in map(_entry, _lines(index)) if word in wanted]
            needed = {offset for _, offsets in entries for offset in offsets}
            synsets = dict(_synset(line) for line in _lines(data) if line.split(" ", 1)[0] in needed)
            for word, offsets in entries:
                for offset in offsets:
                    found.setdefault(word, []).extend(synsets[offset])
        except OSError as error:
            raise UserError(
                f"cannot read WordNet's {error.filename}: {error.strerror}; point at its dict folder (apt install wordnet-base)"
            ) from error
        except (ValueError, IndexError, KeyError) as error:
            raise UserError(f"{index} and {data} do not look like WordNet 3 files; point at its dict folder (apt install wordnet-base)") from error
    return found


def _lines(path: pathlib.Path) -> Iterable[str]:
    """The lines but for the licence, which is indented by two blanks."""
    with path.open(encoding="utf-8") as file:
        return [line for line in file if not line.startswith("  ") and line.strip()]


def _synset(line: str) -> tuple[str, list[str]]:
    """`offset file type count(hex) word lexical ...` -> (offset, single words)."""
    fields = line.split()
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    # An adjective may carry its position: galore(ip).
    return fields[0], [word for word in (re.sub(r"\(\w+\)$", "", word).lower() for word in words) if word.isalpha() and word not in FUNCTION_WORDS]


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
