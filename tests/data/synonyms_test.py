"""Tables of synonyms, from groups and from a miniature of WordNet's files."""

from __future__ import annotations

import pytest

from cimrl_jax.data.synonyms import synonym_table, wordnet_synonyms
from cimrl_jax.errors import UserError

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
