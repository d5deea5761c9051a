"""Words to ids and back."""

from __future__ import annotations

import numpy as np
import pytest

from cimrl_jax.data import tokenise
from cimrl_jax.errors import UserError

TEXTS = ["The cat sat.", "the dog sat, too", "a cat"]


def test_frequent_words_come_first_and_ties_go_by_spelling():
    tokeniser = tokenise.fit(TEXTS, length=5)
    assert tokeniser.vocabulary == ("<pad>", "<unk>", "cat", "sat", "the", ",", ".", "a", "dog", "too")
    assert tokenise.fit(TEXTS, length=5, size=4).vocabulary == ("<pad>", "<unk>", "cat", "sat")
    assert tokenise.fit(TEXTS, length=5, least=2).vocabulary == ("<pad>", "<unk>", "cat", "sat", "the")


def test_texts_are_cut_padded_and_unknown_words_are_1():
    tokeniser = tokenise.fit(TEXTS, length=4)
    ids = tokeniser.encode(["the cat", "a dog sat , too", "the bird", "", ["dog", "The"]])
    assert ids.dtype == np.int32 and ids.shape == (5, 4)
    assert [tokeniser.decode(row) for row in ids] == ["the cat", "a dog sat ,", "the <unk>", "", "dog <unk>"]
    assert (ids[3] == 0).all() and ids[0].tolist()[2:] == [0, 0]


def test_words():
    assert tokenise.words_of("Don't #panic, @you: <num> state-of-the-art Ünïcode!") == [
        "don't", "#panic", ",", "@you", ":", "<num>", "state-of-the-art", "ünïcode", "!",
    ]  # fmt: skip


def test_what_is_saved_is_loaded(tmp_path):
    tokeniser = tokenise.fit([*TEXTS, "naïve “quotes”"], length=7)
    tokeniser.save(tmp_path / "run" / "vocabulary.json")
    assert tokenise.load(tmp_path / "run" / "vocabulary.json") == tokeniser


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"vocabulary": ["a"], "length": 3}', '{"length": 3}', '{"vocabulary": ["<pad>", "<unk>"], "length": 0}']
)
def test_what_is_no_vocabulary_is_refused(tmp_path, content):
    (tmp_path / "vocabulary.json").write_text(content)
    with pytest.raises(UserError, match="vocabulary"):
        tokenise.load(tmp_path / "vocabulary.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing.json"):
        tokenise.load(tmp_path / "nothing.json")
