"""What is planted is what the mask says, nothing else is touched, and a linear map reads it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cimrl_jax.data import shortcuts, tokenise
from cimrl_jax.data.shortcuts import ImageOptions, Shortcut, SlotsOptions, SpectrogramOptions, TableOptions, TextOptions
from cimrl_jax.errors import UserError
from cimrl_jax.types import Feature

N = 60
WORDS = ("<pad>", "<unk>", *(f"w{number}" for number in range(30)))
FEATURES = {
    "image": Feature("image", (12, 16, 3), "uint8"),
    "grey": Feature("image", (12, 12, 1), "uint8"),
    "text": Feature("text", (9,), "int32", vocabulary=WORDS),
    "spectrogram": Feature("spectrogram", (4, 12), "float32", mean=(0.0,), std=(2.0,)),
    "table": Feature("table", (3,), "float32", columns=("age", "height", "weight"), mean=(40.0, 170.0, 70.0), std=(10.0, 5.0, 8.0)),
    "slots": Feature("slots", (5, 4), "float32"),
}
KINDS: dict[str, tuple[str, Any]] = {
    "patch": ("image", ImageOptions(kind="patch")),
    "patch of one colour": ("image", ImageOptions(kind="patch", colour="same")),
    "patch anywhere": ("image", ImageOptions(kind="patch", place="random", strength=0.6)),
    "patch in the corner": ("image", ImageOptions(kind="patch", place="corner", size=0.3)),
    "grey patch": ("grey", ImageOptions(kind="patch")),
    "border": ("image", ImageOptions(kind="border", degrees=(10.0, 190.0, 100.0))),
    "tint": ("image", ImageOptions(kind="tint")),
    "texture": ("image", ImageOptions(kind="texture")),
    "grey texture": ("grey", ImageOptions(kind="texture", degrees=(0.0, 90.0, 30.0), period=3.0)),
    "word": ("text", TextOptions(kind="word")),
    "word at the end": ("text", TextOptions(kind="word", place="end", values=("Red", "w-new", "blue"))),
    "phrase": ("text", TextOptions(kind="phrase", place="random", values=("by the sea", "in town", "from w3 afar"))),
    "tone": ("spectrogram", SpectrogramOptions(kind="tone", width=2)),
    "chosen tones": ("spectrogram", SpectrogramOptions(kind="tone", bands=(0, 11, 5))),
    "overwritten column": ("table", TableOptions(kind="overwrite", column="height")),
    "added column": ("table", TableOptions(kind="add", numbers=(5.0, -1.0, 0.5))),
    "direction": ("slots", SlotsOptions(kind="direction")),
    "direction in the last": ("slots", SlotsOptions(kind="direction", place="last")),
}


def clean(feature: Feature, n: int = N) -> np.ndarray:
    """Raw inputs none of which has by chance what is planted; texts of any length, the full one and none included."""
    rng = np.random.default_rng(0)
    if feature.kind == "image":
        return rng.integers(60, 190, (n, *feature.shape)).astype(np.uint8)
    if feature.kind == "text":
        length = feature.shape[0]
        ids = rng.integers(2, len(feature.vocabulary), (n, length)).astype(np.int32)
        return np.where(np.arange(length) < np.resize(np.arange(length + 1), n)[:, None], ids, 0).astype(np.int32)
    return rng.normal(size=(n, *feature.shape)).astype(np.float32)


def make(feature: Feature, options: Any, values: int = 3, texts: np.ndarray | None = None) -> Shortcut:
    seen = np.zeros((1, *feature.shape), np.int32) if texts is None else texts
    return shortcuts.make(feature, options, values, seed=0, where=f"data.plant.{feature.kind}", texts=lambda: seen)


@pytest.fixture(params=KINDS)
def planted(request) -> tuple[Shortcut, np.ndarray, np.ndarray, np.ndarray]:
    """(shortcut, clean inputs, attribute, choice)."""
    name, options = KINDS[request.param]
    rng = np.random.default_rng(1)
    return make(FEATURES[name], options), clean(FEATURES[name]), rng.permutation(np.arange(N) % 3), rng.integers(2**31, size=N)


def test_what_changed_is_what_the_mask_covers(planted):
    shortcut, values, value, choice = planted
    before = values.copy()
    after, mask = shortcut.put(values, value, choice), shortcut.covers(values, value, choice)
    feature = shortcut.feature
    assert (values == before).all(), "nothing is changed in place"
    assert after.shape == (N, *feature.shape) and after.dtype == feature.dtype and np.isfinite(after).all()
    assert mask.dtype == bool and mask.shape == after.shape[: mask.ndim] and mask.any(tuple(range(1, mask.ndim))).all()
    if feature.kind == "text":
        kept = [row[~own & (row > 0)].tolist() for row, own in zip(after, mask, strict=True)]
        known = [row[row > 0].tolist() for row in values]
        assert all(own == whole[: len(own)] for own, whole in zip(kept, known, strict=True)), "the text's own words, in their order"
        room = feature.shape[0] - mask.sum(1)
        assert [len(own) for own in kept] == np.minimum([len(whole) for whole in known], room).tolist(), "no more is cut than must be"
        assert ((after[:, :-1] > 0) | (after[:, 1:] == 0)).all(), "padding stays at the end"
        texts = [" ".join(feature.vocabulary[number] for number in row[own]) for row, own in zip(after, mask, strict=True)]
        assert texts == [shortcut.words[number] for number in value]
    elif feature.shape == values.shape[1:]:
        assert ((after != values).reshape(*mask.shape, -1).any(-1) == mask).all()
    else:
        assert (after[:, :-1] == values).all() and (mask == (np.arange(feature.shape[0]) == feature.shape[0] - 1)).all()


def test_an_example_is_planted_by_itself(planted):
    shortcut, values, value, choice = planted
    rows = np.array([7, 3, 3, 50])
    whole = shortcut.put(values, value, choice), shortcut.covers(values, value, choice)
    for own, part in zip(whole, (shortcut.put, shortcut.covers), strict=True):
        assert (part(values[rows], value[rows], choice[rows]) == own[rows]).all()


def test_a_region_of_the_clean_inputs_is_found_again(planted):
    shortcut, values, value, choice = planted
    after, covered = shortcut.put(values, value, choice), shortcut.covers(values, value, choice)
    region = np.random.default_rng(2).random(values.shape[: covered.ndim]) < 0.5
    moved = shortcut.carry(region, values, value, choice)
    assert moved.shape == covered.shape and moved.dtype == bool
    if shortcut.feature.kind == "text":
        assert not (moved & covered).any()
        for row in range(N):
            own = [number for number, inside in zip(values[row], region[row], strict=True) if inside]
            assert after[row][moved[row]].tolist() == own[: moved[row].sum()]
    elif after.shape == values.shape:
        opaque = not (moved & covered).any()
        assert (moved[~covered] == region[~covered]).all() and (opaque or (moved == region).all())
    else:
        assert (moved[:, :-1] == region).all() and not moved[:, -1].any()


def test_a_linear_map_reads_the_attribute_from_the_planted_inputs_only(planted):
    from sklearn.linear_model import LogisticRegression

    shortcut, values, value, choice = planted

    many, told = np.arange(6 * N) % N, np.random.default_rng(3).permutation(np.arange(6 * N) % 3)
    noise = clean(FEATURES[_name(shortcut)], 6 * N)
    after, mask = shortcut.put(noise, told, choice[many]), shortcut.covers(noise, told, choice[many])
    anywhere = (shortcut.covers(values, value, choice) != shortcut.covers(values, value, choice[::-1])).any()

    def seen(inputs: np.ndarray) -> np.ndarray:
        if shortcut.feature.kind == "text":
            return np.stack([np.bincount(row, minlength=len(shortcut.feature.vocabulary)) for row in inputs]).astype(float)
        if anywhere:
            return np.stack([row[own].mean(0) for row, own in zip(inputs, mask, strict=True)]).astype(float)
        return inputs.reshape(len(inputs), -1).astype(float)

    def read(inputs: np.ndarray, told: np.ndarray) -> float:
        columns = seen(inputs)
        columns = (columns - columns.mean(0)) / (columns.std(0) + 1e-6)
        half = len(columns) // 2
        return LogisticRegression(max_iter=100).fit(columns[:half], told[:half]).score(columns[half:], told[half:])

    assert read(after, told) > 0.95
    assert read(noise, told) < 0.5
    assert read(after, np.random.default_rng(4).permutation(told)) < 0.5


def _name(shortcut: Shortcut) -> str:
    kind = shortcut.feature.kind
    return "grey" if kind == "image" and shortcut.feature.shape[-1] == 1 else kind


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 2**31 - 1), st.integers(0, 999))
def test_nth_is_an_allowed_place(rows, places, choice, seed):
    allowed = np.random.default_rng(seed).random((rows, places)) < 0.4
    found = shortcuts.nth(allowed, np.full(rows, choice))
    assert (allowed[np.arange(rows), found] | ~allowed.any(1)).all() and (found < places).all()


def test_nth_takes_every_allowed_place_equally_often():
    allowed = np.tile([False, True, True, False, True], (6, 1))
    assert shortcuts.nth(allowed, np.arange(6)).tolist() == [1, 2, 4] * 2


@pytest.mark.parametrize("place", ["beginning", "end", "random"])
def test_a_checkpoints_tokeniser_spells_the_words_and_no_word_is_torn_apart(tmp_path, place):
    pytest.importorskip("transformers", reason="checkpoints' tokenisers are read by transformers: pip install 'cimrl_jax[text]'")
    folder = pytest.importorskip("tests.tokenisers").word_pieces(tmp_path)
    own = tokenise.Pretrained(str(folder), 9)
    texts = ["the harbour", "digits sat near meadow", "cat"] * 4
    ids = own.encode(texts)
    shortcut = make(own.feature(), TextOptions(kind="word", place=place, values=("digital", "cats")), values=2, texts=ids)
    assert shortcut.feature == own.feature(), "a checkpoint's vocabulary is what it is"
    value, choice = np.arange(12) % 2, np.arange(12) * 7
    after = shortcut.put(ids, value, choice)
    for row, text in enumerate(texts):
        words = own.decode(after[row]).split()
        word = ("digital", "cats")[row % 2]
        assert word in words and text.startswith(" ".join(other for other in words if other != word)), (text, words)


def test_made_up_words_are_in_no_vocabulary():
    first = shortcuts.made_up(3, WORDS)
    assert len(set(shortcuts.made_up(64, WORDS))) == 64
    assert set(shortcuts.made_up(3, first)).isdisjoint(first)


SEEN = np.array([[2, 3, 4, 0, 0, 0, 0, 0, 0]] * 3 + [[5, 4, 3, 0, 0, 0, 0, 0, 0]], np.int32)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("image", ImageOptions(kind="patch", colour="same", place="random"), "data.plant.image.colour: got 'same' with place=random"),
        ("image", ImageOptions(kind="tint", colour="same"), "data.plant.image.colour: got 'same', but only of a patch"),
        ("image", ImageOptions(kind="tint", degrees=(1.0, 2.0)), "data.plant.image.degrees: got 1.0, 2.0; expected 3 different ones"),
        ("grey", ImageOptions(kind="tint", degrees=(1.0, 2.0, 3.0)), "data.plant.image.degrees: pictures of one channel have no hue"),
        ("text", TextOptions(kind="word", values=("a", "b")), "data.plant.text.values: got a, b; expected 3 different ones"),
        ("text", TextOptions(kind="word", values=("a", "b", "c d")), "data.plant.text.values: 'c d' is 2 words; expected one"),
        ("text", TextOptions(kind="phrase", values=("a b", "b", " ")), "data.plant.text.values: ' ' is 0 words"),
        ("text", TextOptions(kind="phrase", values=("a", "b", "c " * 9)), "fills a text of 9 ids"),
        ("text", TextOptions(kind="word", values=("a", "b", "w1")), "data.plant.text.values: 'w1' stands in 100% of the training texts already"),
        (
            "text",
            TextOptions(kind="phrase", values=("a", "b", "w1 w2")),
            "'w1 w2' stands in 75% of the training texts already; choose",
        ),
        ("spectrogram", SpectrogramOptions(kind="tone", width=5), "data.plant.spectrogram.width: 3 values of 5 bands each do not fit 12 bands"),
        ("spectrogram", SpectrogramOptions(kind="tone", bands=(1, 2, 12)), "data.plant.spectrogram.bands: got 12, expected at most 11"),
        ("table", TableOptions(kind="overwrite", column="hieght"), "the table has no column 'hieght'; did you mean 'height'?"),
        ("table", TableOptions(kind="add", column="age"), "data.plant.table.column: the table has a column 'age' already"),
        ("table", TableOptions(kind="add", numbers=(1.0, 1.0, 2.0)), "data.plant.table.numbers: got 1.0, 1.0, 2.0; expected 3 different ones"),
    ],
)
def test_what_does_not_fit_gives_one_line_with_the_key(name, options, message):
    with pytest.raises(UserError) as caught:
        make(FEATURES[name], options, texts=SEEN)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_word_that_texts_have_is_planted_if_that_is_allowed():
    shortcut = make(FEATURES["text"], TextOptions(kind="word", values=("a", "b", "w1"), allowed=1.0), texts=SEEN)
    assert shortcut.feature.vocabulary == (*WORDS, "a", "b")
    assert make(FEATURES["text"], TextOptions(kind="phrase", values=("a", "b", "w2 w3 w1")), texts=SEEN).words[2] == "w2 w3 w1", "in another order"


def _mask(name: str, options: Any, values: int = 4) -> np.ndarray:
    value = np.arange(values)
    return make(FEATURES[name], options, values=values).covers(clean(FEATURES[name], values), value, np.arange(values) * 991)


def test_patches_borders_and_tones_have_the_size_and_place_that_was_asked_for():
    corners = _mask("image", ImageOptions(kind="patch", size=0.25))  # a quarter of 12 is 3
    assert corners.sum((1, 2)).tolist() == [9] * 4
    assert [own[:3, :3].all() for own in corners] == [True, False, False, False]
    assert corners[1, :3, -3:].all() and corners[2, -3:, :3].all() and corners[3, -3:, -3:].all()
    anywhere = _mask("image", ImageOptions(kind="patch", size=0.25, place="random"))
    assert anywhere.sum((1, 2)).tolist() == [9] * 4 and len({own.tobytes() for own in anywhere}) == 4
    frame = _mask("image", ImageOptions(kind="border", size=0.25))
    assert (~frame[0]).sum() == 6 * 10 and not frame[0, 3:9, 3:13].any()
    tones = _mask("spectrogram", SpectrogramOptions(kind="tone", width=2))
    assert [np.flatnonzero(own[0]).tolist() for own in tones] == [[0, 1], [3, 4], [6, 7], [9, 10]] and (tones == tones[:, :1]).all()


def test_stripes_run_in_the_values_direction():
    shortcut = make(FEATURES["grey"], ImageOptions(kind="texture", strength=1.0, period=4.0), values=2)
    across, along = shortcut.put(clean(FEATURES["grey"], 2), np.arange(2), np.zeros(2, int))[..., 0]
    assert (across == across[:, :1]).all() and (along == along[:1]).all()
    assert across[:8, 0].tolist() == along[0, :8].tolist() == [255, 255, 0, 0] * 2


@pytest.mark.parametrize("place", ["beginning", "end", "random"])
def test_both_versions_of_a_text_are_planted_as_one_would_be(place):
    options = TextOptions(kind="word", place=place)
    alone = make(FEATURES["text"], options)
    both = make(dataclasses.replace(FEATURES["text"], shape=(18,), views=2), options)
    assert both.feature == dataclasses.replace(alone.feature, shape=(18,), views=2)
    first, value, choice = clean(FEATURES["text"]), np.arange(N) % 3, np.arange(N)
    versions = np.stack([first, first[::-1]], 1)
    for number in range(2):
        own, part = versions[:, number], np.s_[:, 9 * number : 9 * (number + 1)]
        region = own % 2 == 0
        whole = versions.reshape(N, 18)
        np.testing.assert_array_equal(both.put(whole, value, choice)[part], alone.put(own, value, choice))
        np.testing.assert_array_equal(both.covers(whole, value, choice)[part], alone.covers(own, value, choice))
        np.testing.assert_array_equal(both.carry(whole % 2 == 0, whole, value, choice)[part], alone.carry(region, own, value, choice))
