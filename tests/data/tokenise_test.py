"""Words to ids and back."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.data import augment_text, listing, synonyms, tokenise, views
from cimrl_jax.errors import UserError
from cimrl_jax.types import Expected
from cimrl_jax.vocabulary import checkpoint_ids
from tests.nn import cases

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


@pytest.mark.parametrize(("size", "padding", "unknown"), [(9, 0, 1), (9, 1, 0), (9, 0, 5), (9, 1, 3), (9, 3, 1), (9, 7, 5), (9, 4, 0), (2, 1, 0)])
def test_ids_of_padding_and_unknown_change_places_with_0_and_1(size, padding, unknown):
    ids = checkpoint_ids(size, padding, unknown)
    assert sorted(ids) == list(range(size)) and ids[:2].tolist() == [padding, unknown] and ids.dtype == np.int32
    assert set(np.flatnonzero(ids != np.arange(size))) <= {0, 1, padding, unknown}


@pytest.mark.parametrize(("padding", "unknown"), [(3, 3), (-1, 2), (0, 9)])
def test_ids_that_cannot_be_exchanged_are_refused(padding, unknown):
    with pytest.raises(UserError, match=f"9 words needs two ids .* not {padding} and {unknown}"):
        checkpoint_ids(9, padding, unknown)


SENTENCES = ["The cat's digital harbour, naïve!", "a [MASK] </s> <pad> [SEP] dog", "", "#tag zz \N{ZERO WIDTH SPACE} é"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    pytest.importorskip("transformers")
    tokenisers = pytest.importorskip("tests.tokenisers")
    path = tmp_path_factory.mktemp("checkpoints")
    return {"bert": str(tokenisers.word_pieces(path / "bert")), "roberta": str(tokenisers.bytes_of(path / "roberta"))}


KINDS = ("bert", "roberta")


def _oracle(folder: str, **options):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoints_tokeniser_gives_its_own_ids_without_markers(folders, kind):
    tokeniser, oracle = tokenise.Pretrained(folders[kind], 40), _oracle(folders[kind])
    ids = checkpoint_ids(len(oracle), oracle.pad_token_id, oracle.unk_token_id)
    assert tokeniser.special == (oracle.pad_token_id, oracle.unk_token_id, oracle.cls_token_id, oracle.sep_token_id)
    plain = [text for text in SENTENCES if "[" not in text]
    for row, expected in zip(tokeniser.encode(plain), oracle(plain, add_special_tokens=False)["input_ids"], strict=True):
        assert ids[row[row != 0]].tolist() == expected and not row[len(expected) :].any()
    spelt = ids[tokeniser.encode(SENTENCES)]
    assert not set(spelt[tokeniser.encode(SENTENCES) != 0].tolist()) & (set(oracle.all_special_ids) - {oracle.unk_token_id})


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_cut_and_aligned_as_transformers_does(folders, kind):
    tokeniser, oracle = tokenise.Pretrained(folders[kind], 40), _oracle(folders[kind], add_prefix_space=True)
    texts = [tokenise.words_of(text) for text in SENTENCES if "[" not in text]
    encoded = tokeniser.encode(texts)
    ids = checkpoint_ids(len(oracle), oracle.pad_token_id, oracle.unk_token_id)
    for row, words in zip(encoded, texts, strict=True):
        expected = oracle(words, is_split_into_words=True, add_special_tokens=False)
        assert ids[row[row != 0]].tolist() == expected["input_ids"]
        assert tokeniser.align(words) == expected.word_ids()
        begins = [not tokeniser.vocabulary[number].startswith("##") for number in row[row != 0]]
        changes = np.diff(tokeniser.align(words), prepend=-1) > 0
        assert (changes <= begins).all()  # a word's first piece has no ##; BERT's do not mark what follows an apostrophe or a hyphen
        assert kind == "bert" or (changes == begins).all()


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_are_cut_and_what_is_encoded_is_decoded(folders, kind):
    tokeniser = tokenise.Pretrained(folders[kind], 3)
    assert tokeniser.encode(["the cat sat, the dog"]).shape == (1, 3) and len(tokeniser.align(["the", "cat", "sat", "dog"])) == 3
    whole = dataclasses.replace(tokeniser, length=30)
    assert whole.decode(whole.encode(["the dog near the harbour"])[0]) == "the dog near the harbour"
    assert len(set(whole.vocabulary)) == len(whole.vocabulary) == len(_oracle(folders[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_feature_or_a_file_brings_its_tokeniser_back(folders, kind, tmp_path):
    tokeniser = tokenise.Pretrained(folders[kind], 7)
    tokeniser.save(tmp_path / "vocabulary.json")
    assert tokenise.load(tmp_path / "vocabulary.json") == tokeniser
    feature = tokeniser.feature()
    assert feature.shape == (7,) and feature.special == tokeniser.special and tokenise.of(feature) == tokeniser
    words = tokenise.fit(TEXTS, length=5)
    assert words.feature().special == () and tokenise.of(words.feature()) == words


def test_there_are_as_many_ids_as_the_texts_need_but_no_more_than_twice_the_words_nor_than_can_be_read(folders):
    def length(texts, words, most=0):
        return tokenise.fit(texts, length=words, expected=Expected(tokeniser=folders["bert"], length=most)).length

    assert length([["digital", "cat"], ["cat"]], 10) == 4  # dig ##it ##al cat
    assert length([["digital", "digital", "digital"]], 3) == 6 and length([["digital"]], 3, most=2) == 2 and length([[]], 3) == 1
    assert tokenise.fit(TEXTS, length=5, expected=Expected()) == tokenise.fit(TEXTS, length=5)


@pytest.mark.parametrize("kind", ("words", *KINDS))
def test_marks_of_words_follow_to_their_ids(folders, kind):
    texts = [["the", "digital", "cat"], ["harbour", "zz", "dog", "sat"], []]
    marked = [[False, True, False], [True, False, True], []]
    tokeniser = tokenise.fit(texts, length=6) if kind == "words" else tokenise.Pretrained(folders[kind], 30)
    mask, ids = tokenise.spread(tokeniser, texts, marked), tokeniser.encode(texts)
    for row in range(3):
        chosen = [word for word, own in zip(texts[row], marked[row], strict=False) if own]
        assert tokeniser.decode(np.where(mask[row], ids[row], 0)) == " ".join(chosen)
        assert tokeniser.encode([chosen])[0].tolist()[: mask[row].sum()] == ids[row][mask[row]].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_views_of_texts_leave_words_of_several_pieces_whole(folders, kind):
    tokeniser = tokenise.Pretrained(folders[kind], 24)
    texts = [tokenise.words_of("the digital cat near a harbour low dog circle"), tokenise.words_of("harbour goat the circle dog")]
    table, ids = synonyms.synonym_table([("cat", "dog"), ("near", "low")], tokeniser.vocabulary), jnp.asarray(tokeniser.encode(texts))
    options = views.ViewOptions(text=augment_text.Options(synonym=1.0, insert=0.3, delete=0.3, swap=1.0))
    perturb = views.make_perturb({"x": tokeniser.feature()}, options, synonyms={"x": table})
    run = jax.jit(lambda key: perturb({"x": ids}, key)["x"])
    seen = np.stack([np.asarray(run(jax.random.key(seed))) for seed in range(12)])
    assert (seen != np.asarray(ids)).any((1, 2)).all()
    for number, text in enumerate(texts):
        long = [word for word in text if len(tokeniser.align([word])) > 1]
        assert len(long) > 1
        for view in seen[:, number]:
            found = tokeniser.decode(view).split()
            assert [word for word in found if word in long] == long and set(found) <= {*text, "cat", "dog", "near", "low"}


def test_a_folder_without_a_readable_tokeniser_is_named(folders, tmp_path):
    with pytest.raises(UserError, match=r"has no tokeniser; expected tokenizer\.json"):
        tokenise.Pretrained(str(tmp_path), 5)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="cannot read the tokeniser in"):
        tokenise.Pretrained(str(tmp_path), 5)


def test_a_tokeniser_without_padding_is_refused(folders, tmp_path):
    source = json.loads((tmp_path.__class__(folders["roberta"]) / "tokenizer.json").read_text("utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(source))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}))
    with pytest.raises(UserError, match="does not name its pad, unk, cls and sep tokens"):
        tokenise.Pretrained(str(tmp_path), 5)


def test_longer_texts_of_other_splits_are_cut_to_the_trainings_length_so_that_nothing_is_compiled_again():
    texts = ["two words", "three more words", *(" ".join(["long"] * count) for count in (9, 20, 40))]
    rows = {"train": np.arange(2), "validation": np.array([2]), "test": np.array([3, 4])}
    own = listing.Listing(
        name="posts",
        columns={"text": listing.Texts(texts)},
        label=np.array([0, 1, 0, 1, 0]),
        class_names=("no", "yes"),
        splits=rows,
        origins=listing.Lines("posts.csv", range(5)),
        notes="made up",
    )
    dataset = listing.assemble(own, listing.Options())
    feature, traces = dataset.features["text"], []
    assert feature.shape == (8,), "that of the training texts, up to a multiple of 8"
    model = cases.make({"text": feature})
    params = model.init(jax.random.key(0))
    embed = jax.jit(lambda ids, present: traces.append(ids.shape) or model.embed(params, {"text": ids}, {"text": present}))
    for source in dataset.splits.values():
        records = source.load(np.zeros(4, int))
        assert embed(jnp.asarray(records["inputs"]["text"]), jnp.asarray(records["present"]["text"]))["text"].mask.shape == (4, 8)
    assert traces == [(4, 8)]
