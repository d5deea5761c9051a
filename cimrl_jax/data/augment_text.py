"""Perturbed views of texts, on the device, on token ids: synonym replacement, random insertion, deletion and swap (Wei & Zou 2019, EDA).

EDA makes several new texts, each by one of the four operations, on a fixed share alpha of the words (its authors recommend 0.1, and 0.05 for small
data sets) and at least one. Here a view is made by all four, each word by a coin of its own; an inserted word stands beside the one it comes from,
not anywhere, and at most two words change places.

Markers ([CLS], </s>, ...) are neither changed nor left out nor swapped, nor are words of more than one piece.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from cimrl_jax.options import Range

Share = Annotated[float, Range(low=0, high=1)]
MARKERS = frozenset({"[CLS]", "[SEP]", "[MASK]", "[PAD]", "<s>", "</s>", "<mask>", "<pad>"})


@dataclasses.dataclass(frozen=True)
class Options:
    synonym: Share = 0.2
    """Probability that a word which has synonyms is replaced by one of them."""
    insert: Share = 0.1
    """Probability that a synonym of a word (or, where it has none, the word again) is put in beside it, as far as there is padding to make room."""
    delete: Share = 0.1
    """Probability that a word is left out; one always stays."""
    swap: Share = 0.1
    """Probability that two words of the text change places."""
    wordnet: str = ""
    """A folder with WordNet 3's dict files (Debian's wordnet-base: /usr/share/wordnet): words have the synonyms of their most frequent sense in each
    part of speech besides those that the data set names. Empty: only the latter."""


def movable(vocabulary: tuple[str, ...]) -> Bool[np.ndarray, " v"]:
    """Which ids are words: neither padding nor markers."""
    return np.array([number > 0 and word not in MARKERS for number, word in enumerate(vocabulary)])


def continuing(vocabulary: tuple[str, ...]) -> Bool[np.ndarray, " v"]:
    """Which ids are pieces that continue the word before them."""
    return np.array([len(word) > 2 and word.startswith("##") for word in vocabulary])


def perturb(
    ids: Int[Array, "b length"],
    key: Key[Array, ""],
    *,
    options: Options,
    synonyms: Int[Array, "v k"],
    words: Bool[Array, " v"],
    pieces: Bool[Array, " v"] | None = None,
) -> Int[Array, "b length"]:
    """Another view of each text; its padding stays at the end.

    `synonyms`: ids of each id's synonyms, at the left of its row, 0 beyond. `words`: `movable`. `pieces`: `continuing`; None: every id is a word.
    """
    b, length = ids.shape
    # One call: on a CPU, XLA takes long to compile each. The last column holds numbers for the text as a whole.
    drawn = jax.random.uniform(key, (5, b, length + 1))
    draws, coin = drawn[:, :, :length], drawn[0, :, length] < options.swap
    known = (synonyms > 0).sum(-1)[ids]  # [b, length]
    free, real = words[ids], ids > 0
    if pieces is not None:
        inner = pieces[ids]
        free &= ~(inner | jnp.pad(inner[:, 1:], ((0, 0), (0, 1))))
    pick = jnp.minimum((draws[0] * known).astype(jnp.int32), jnp.maximum(known - 1, 0))
    other = jnp.where((known > 0) & free, synonyms[ids, pick], ids)
    replaced = jnp.where(draws[1] < options.synonym, other, ids)

    kept = real & ~(free & (draws[2] < options.delete))
    kept |= (kept.sum(-1, keepdims=True) == 0) & real & (draws[2] == jnp.where(real, draws[2], -1).max(-1, keepdims=True))
    room = length - kept.sum(-1, keepdims=True)
    inserted = free & real & (draws[3] < options.insert)
    inserted &= jnp.cumsum(inserted, -1) <= room

    # A place in the line for every word (even numbers), every insertion (behind its word, odd numbers), and the end for what is not there.
    place = 2 * jnp.arange(length) + jnp.zeros_like(ids)
    place = _swap(place, free & kept, draws[4], coin)
    line = jnp.concatenate([jnp.where(kept, place, 2 * length), jnp.where(inserted, 2 * jnp.arange(length) + 1, 2 * length)], -1)
    written = jnp.concatenate([jnp.where(kept, replaced, 0), jnp.where(inserted, other, 0)], -1)
    return jnp.take_along_axis(written, jnp.argsort(line, axis=-1, stable=True)[:, :length], -1)


def _swap(
    place: Int[Array, "b length"], free: Bool[Array, "b length"], draw: Float[Array, "b length"], coin: Bool[Array, " b"]
) -> Int[Array, "b length"]:
    """Two random words' places exchanged where the coin says so: those of the highest and the lowest draw among the free."""
    high = jnp.argmax(jnp.where(free, draw, -1), -1)
    low = jnp.argmin(jnp.where(free, draw, 2), -1)
    rows = jnp.arange(len(place))
    exchanged = place.at[rows, high].set(place[rows, low]).at[rows, low].set(place[rows, high])
    return jnp.where((coin & (free.sum(-1) > 1))[:, None], exchanged, place)
