"""Views: same shapes and types, valid contents, one view per key, a stream of its own for each modality."""

from __future__ import annotations

import colorsys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.data import augment_image, augment_slots, augment_spectrogram, augment_table, augment_text
from cimrl_jax.data.synonyms import synonym_table
from cimrl_jax.data.views import ViewOptions, make_perturb
from cimrl_jax.types import Feature

WORDS = ("<pad>", "<unk>", "[CLS]", "[SEP]", *(f"w{number}" for number in range(20)))
FEATURES = {
    "photo": Feature("image", (12, 10, 3), "uint8"),
    "scan": Feature("image", (12, 10, 3), "uint8", flip=False),
    "text": Feature("text", (9,), "int32", vocabulary=WORDS),
    "audio": Feature("spectrogram", (20, 16), "float32"),
    "table": Feature("table", (4,), "float32", mean=(1.0, 2.0, 3.0, 4.0), std=(1.0, 1.0, 10.0, 0.1)),
    "slots": Feature("slots", (5, 3), "float32"),
}
GROUPS = [("w0", "w1", "w2"), ("w3", "w4"), ("w5", "w6")]
TABLE = synonym_table(GROUPS, WORDS, width=4)
B = 32


@pytest.fixture(scope="module")
def inputs() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 10, B)
    lengths[:3] = 0, 1, 9  # absent, a single word, no padding
    text = np.where(np.arange(9) < lengths[:, None], rng.integers(4, len(WORDS), (B, 9)), 0)
    values = {
        "photo": rng.integers(0, 256, (B, 12, 10, 3), np.uint8),
        "scan": rng.integers(0, 256, (B, 12, 10, 3), np.uint8),
        "text": text.astype(np.int32),
        "audio": rng.standard_normal((B, 20, 16), np.float32),
        "table": rng.standard_normal((B, 4), np.float32),
        "slots": rng.standard_normal((B, 5, 3), np.float32),
    }
    return {name: jnp.asarray(value) for name, value in values.items()}


@pytest.fixture(scope="module")
def perturb():
    return jax.jit(make_perturb(FEATURES, synonyms={"text": TABLE}))


def test_views_keep_shapes_and_types_and_change_something(inputs, perturb):
    views = perturb(inputs, jax.random.key(0))
    assert set(views) == set(inputs)
    for name, values in inputs.items():
        assert views[name].shape == values.shape and views[name].dtype == values.dtype == FEATURES[name].dtype
        assert (views[name] != values).any()


def test_a_key_determines_the_view_and_another_gives_another(inputs, perturb):
    first, again, other = (perturb(inputs, jax.random.key(seed)) for seed in (0, 0, 1))
    for name in inputs:
        assert (first[name] == again[name]).all() and (first[name] != other[name]).any()


def test_each_modality_has_its_own_stream(inputs, perturb):
    whole = perturb(inputs, jax.random.key(3))
    for name in ("scan", "text", "slots"):
        alone = jax.jit(make_perturb({name: FEATURES[name]}, synonyms={"text": TABLE}))({name: inputs[name]}, jax.random.key(3))
        assert (alone[name] == whole[name]).all(), "another modality changes this one's view"
    twins = make_perturb({"a": FEATURES["slots"], "b": FEATURES["slots"]})({"a": inputs["slots"], "b": inputs["slots"]}, jax.random.key(0))
    assert (twins["a"] != twins["b"]).any()


def test_members_under_vmap_equal_solo_views(inputs):
    perturb = make_perturb({name: FEATURES[name] for name in ("photo", "text")}, synonyms={"text": TABLE})
    some = {name: inputs[name] for name in ("photo", "text")}
    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.jit(jax.vmap(lambda key: perturb(some, key)))(keys)
    solo = jax.jit(perturb)
    for member in range(2):
        alone = solo(some, keys[member])
        assert (together["text"][member] == alone["text"]).all()
        # A rounding at .5 may go either way under another summation order.
        assert np.abs(together["photo"][member].astype(int) - alone["photo"].astype(int)).max() <= 1


STILL = ViewOptions(
    augment_image.Options(1.0, 1.0, 0.0, 0.0, 0.0, 0.0),
    augment_text.Options(0.0, 0.0, 0.0, 0.0),
    augment_spectrogram.Options(0, 0.0, 0, 0.0),
    augment_table.Options(0.0, 0.0),
    augment_slots.Options(0.0, 0.0),
)


def test_with_everything_off_nothing_changes(inputs):
    views = jax.jit(make_perturb(FEATURES, STILL, synonyms={"text": TABLE}))(inputs, jax.random.key(0))
    for name, values in inputs.items():
        assert (views[name] == values).all(), name


def _image(images, seed=0, allowed=False, **options):
    still = {"crop_least": 1.0, "aspect": 1.0, "flip": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    return np.asarray(IMAGE(images, jax.random.key(seed), options=augment_image.Options(**(still | options)), flip=allowed))


def test_mirroring_is_exact_and_happens_only_where_it_is_allowed(inputs):
    images = inputs["photo"]
    assert (_image(images, allowed=True, flip=1.0) == images[:, :, ::-1]).all()
    assert (_image(images, allowed=False, flip=1.0) == images).all()
    assert (_image(images, allowed=True, flip=0.0) == images).all()


def test_a_crop_shows_a_part_of_the_picture_in_order():
    # A picture whose pixels say where they are: rows in channel 0, columns in channel 1.
    rows, columns = np.mgrid[:32, :32] * 8
    images = jnp.asarray(np.broadcast_to(np.stack([rows, columns, columns], -1).astype(np.uint8), (B, 32, 32, 3)))
    views = _image(images, crop_least=0.3, aspect=1.5).astype(float)
    down, across = views[:, :, 0, 0], views[:, 0, :, 1]
    assert (np.diff(down, axis=1) >= 0).all() and (np.diff(across, axis=1) >= 0).all()
    assert (np.abs(views - views[:, :, :1, :] * [1, 0, 0] - views[:, :1, :, :] * [0, 1, 1]) <= 1).all(), "axes are mixed"
    area = (np.ptp(down, axis=1) / 248) * (np.ptp(across, axis=1) / 248)
    assert area.min() > 0.2 and area.max() <= 1 and area.min() < 0.5 and area.max() > 0.7


def test_colour_jitter_does_what_its_names_say(inputs):
    images = inputs["photo"] // 2 + 40  # far from the ends of the range, so that nothing is clipped
    original = np.asarray(images).astype(float)
    weights = np.array([0.299, 0.587, 0.114])
    grey = np.asarray(original @ weights)
    brighter = _image(images, brightness=0.3).astype(float)
    ratio = brighter.mean((1, 2, 3)) / original.mean((1, 2, 3))
    assert np.abs(brighter - original * ratio[:, None, None, None]).max() < 1.5 and np.ptp(ratio) > 0.2
    contrasted = _image(images, contrast=0.5).astype(float)
    assert np.abs((contrasted @ weights).mean((1, 2)) - grey.mean((1, 2))).max() < 0.6, "contrast moved the mean grey"
    assert np.ptp(contrasted.std((1, 2, 3)) / original.std((1, 2, 3))) > 0.3
    faded = _image(images, saturation=0.5).astype(float)
    assert np.abs(faded @ weights - grey).max() < 1.1, "saturation moved a pixel's grey"
    assert (faded != original).any()


def test_hues_turn_and_keep_grey_and_strength():
    rng = np.random.default_rng(0)
    flat = np.repeat(rng.integers(100, 156, (B, 1, 1, 3), np.uint8), 4, 1)
    images = jnp.asarray(np.repeat(np.concatenate([flat, np.full_like(flat, 130)], 2), 3, 2))
    turned = np.asarray(_image(images, hue=0.5))
    assert (turned[:, :, 3:] == 130).all(), "grey took on a colour"
    assert (turned == turned[:, :1]).all()
    before, after = (np.array([colorsys.rgb_to_yiq(*pixel) for pixel in np.asarray(own)[:, 0, 0].astype(float)]) for own in (images, turned))
    np.testing.assert_allclose(after[:, 0], before[:, 0], atol=1.5)
    np.testing.assert_allclose(np.hypot(*after[:, 1:].T), np.hypot(*before[:, 1:].T), atol=2.5)
    angle = np.angle((after[:, 1] + 1j * after[:, 2]) / (before[:, 1] + 1j * before[:, 2]))
    strong = np.hypot(*before[:, 1:].T) > 8
    assert angle[strong].min() < -2 and angle[strong].max() > 2, "hues stay near where they were"


def test_pictures_of_one_channel_work():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8))
    assert augment_image.perturb(images, jax.random.key(0), options=augment_image.Options(), flip=True).shape == (3, 8, 8, 1)


TEXT = jax.jit(augment_text.perturb, static_argnames="options")
IMAGE = jax.jit(augment_image.perturb, static_argnames=("options", "flip"))


def _text(ids, seed=0, **options):
    still: dict[str, Any] = {"synonym": 0.0, "insert": 0.0, "delete": 0.0, "swap": 0.0}
    words = jnp.asarray(augment_text.movable(WORDS))
    chosen = augment_text.Options(**(still | options))
    return np.asarray(TEXT(ids, jax.random.key(seed), options=chosen, synonyms=jnp.asarray(TABLE), words=words))


@pytest.mark.parametrize("seed", range(5))
def test_texts_stay_texts(inputs, seed):
    views = _text(inputs["text"], seed, synonym=0.5, insert=0.5, delete=0.5, swap=0.5)
    original = np.asarray(inputs["text"])
    assert views.min() >= 0 and views.max() < len(WORDS)
    assert ((views[:, :-1] > 0) | (views[:, 1:] == 0)).all(), "padding in the middle"
    assert ((views > 0).any(1) == (original > 0).any(1)).all(), "a text vanished, or an absent one appeared"
    kin = {word: {word, *(WORDS[i] for i in row if i)} for word, row in zip(WORDS, TABLE, strict=True)}
    for before, after in zip(original, views, strict=True):
        allowed = {other for i in before if i for other in kin[WORDS[i]]}
        assert {WORDS[i] for i in after if i} <= allowed, "a word from nowhere"


def test_everything_is_never_deleted(inputs):
    views = _text(inputs["text"], delete=1.0)
    assert ((views > 0).sum(1) == (np.asarray(inputs["text"]) > 0).any(1)).all()


def test_synonyms_stand_in_place_and_words_without_stay(inputs):
    original = np.asarray(inputs["text"])
    views = _text(inputs["text"], synonym=1.0)
    has = np.asarray((TABLE > 0).any(1))[original]
    assert (views[~has] == original[~has]).all() and (views[has] != original[has]).all()
    assert (TABLE[original[has]] == views[has][:, None]).any(1).all()
    many = jnp.full((200, 9), WORDS.index("w0"), jnp.int32)
    assert set(_text(many, synonym=1.0).ravel()) == {WORDS.index("w1"), WORDS.index("w2")}


def test_insertions_follow_their_word_and_drop_none():
    ids = jnp.asarray([[WORDS.index("w10"), WORDS.index("w3"), WORDS.index("w11"), 0, 0, 0, 0, 0, 0]], jnp.int32)
    assert [WORDS[i] for i in _text(ids, insert=1.0)[0] if i] == ["w10", "w10", "w3", "w4", "w11", "w11"]
    full = jnp.asarray(np.arange(4, 13)[None], jnp.int32)
    assert (_text(full, insert=1.0) == full).all(), "no room: nothing may fall off the end"
    assert [WORDS[i] for i in _text(ids[:, :4], insert=1.0)[0]] == ["w10", "w10", "w3", "w11"]


def test_swaps_exchange_two_words(inputs):
    original, views = np.asarray(inputs["text"]), _text(inputs["text"], swap=1.0)
    assert (np.sort(views, 1) == np.sort(original, 1)).all()
    moved = (views != original).sum(1)
    assert set(moved.tolist()) <= {0, 2} and (moved == 2).mean() > 0.5
    some = (_text(jnp.asarray(np.tile(np.arange(4, 13), (400, 1)), jnp.int32), swap=0.3) != np.arange(4, 13)).any(1).mean()
    assert 0.2 < some < 0.4


def test_rates_are_kept():
    ids = jnp.full((500, 9), WORDS.index("w0"), jnp.int32)
    assert (_text(ids, synonym=0.3) != np.asarray(ids)).mean() == pytest.approx(0.3, abs=0.04)
    assert (_text(ids, delete=0.3) == 0).mean() == pytest.approx(0.3, abs=0.04)
    short = ids.at[:, 4:].set(0)
    assert ((_text(short, insert=0.3) > 0).sum(1) - 4).mean() == pytest.approx(1.2, abs=0.15)


def test_markers_are_left_alone():
    cls, sep = WORDS.index("[CLS]"), WORDS.index("[SEP]")
    ids = jnp.asarray(np.tile([cls, 4, 7, 9, 10, sep, 0, 0, 0], (100, 1)), jnp.int32)
    views = _text(ids, synonym=0.5, insert=0.3, delete=0.5, swap=1.0)
    assert (views[:, 0] == cls).all()
    assert ((views == sep).sum(1) == 1).all() and (views[np.arange(100), (views > 0).sum(1) - 1] == sep).all()


def test_spectrograms_are_masked_in_whole_stretches(inputs):
    values = np.asarray(inputs["audio"])
    for options, axis in ((augment_spectrogram.Options(1, 0.5, 0, 0.0), 2), (augment_spectrogram.Options(0, 0.0, 1, 0.5), 1)):
        views = np.asarray(augment_spectrogram.perturb(inputs["audio"], jax.random.key(0), options=options))
        changed = views != values
        assert (changed.all(axis) == changed.any(axis)).all(), "a stretch is masked in part"
        lines = changed.any(axis)
        assert (np.diff(np.pad(lines, ((0, 0), (1, 1))).astype(int), axis=1) == 1).sum(1).max() == 1, "one mask, more than one stretch"
        assert lines.mean(1).max() <= 0.5 and 0.1 < lines.mean() < 0.4
        assert views[changed] == pytest.approx(np.broadcast_to(values.mean((1, 2), keepdims=True), values.shape)[changed], abs=1e-5)


def test_table_noise_is_in_units_of_the_column_and_dropped_columns_take_the_mean():
    values = jnp.zeros((4000, 4)) + 7.0
    mean, std = (jnp.asarray(FEATURES["table"].mean), jnp.asarray(FEATURES["table"].std))
    noisy = augment_table.perturb(values, jax.random.key(0), options=augment_table.Options(0.1, 0.0), mean=mean, std=std)
    assert np.asarray(noisy).std(0) == pytest.approx(0.1 * np.asarray(std), rel=0.1)
    dropped = np.asarray(augment_table.perturb(values, jax.random.key(0), options=augment_table.Options(0.0, 0.25), mean=mean, std=std))
    assert ((dropped == 7) | (dropped == np.asarray(mean))).all()
    assert (dropped == np.asarray(mean)).mean() == pytest.approx(0.25, abs=0.03)


def test_slots_are_dropped_whole(inputs):
    views = np.asarray(augment_slots.perturb(inputs["slots"], jax.random.key(0), options=augment_slots.Options(0.0, 0.3)))
    gone = (views == 0).all(-1)
    assert (views[~gone] == np.asarray(inputs["slots"])[~gone]).all() and 0.15 < gone.mean() < 0.45


def test_slots_of_zeros_stay_padding(inputs):
    padded = inputs["slots"].at[:, 3:].set(0)
    views = np.asarray(augment_slots.perturb(padded, jax.random.key(0), options=augment_slots.Options(0.5, 0.0)))
    assert not views[:, 3:].any() and (views[:, :3] != np.asarray(padded)[:, :3]).all()


def test_one_of_the_views_made_beforehand_comes_first():
    views = 4
    values = jnp.asarray(np.random.default_rng(0).standard_normal((400, views * 3, 2), np.float32))
    perturb = jax.jit(make_perturb({"kept": Feature("slots", (views * 3, 2), "float32", views=views)}))
    found = np.asarray(perturb({"kept": values}, jax.random.key(0))["kept"]).reshape(400, views, 3, 2)
    original = np.asarray(values).reshape(400, views, 3, 2)
    same = (found[:, :1] == original).all((2, 3))  # [example, which view came first]
    assert (same.sum(1) == 1).all() and np.abs(same.mean(0) - 1 / views).max() < 0.08
    chosen = same.argmax(1)
    np.testing.assert_array_equal(found[np.arange(400), chosen], original[:, 0])  # they changed places, and nothing else moved
    for example in range(20):
        others = [view for view in range(1, views) if view != chosen[example]]
        np.testing.assert_array_equal(found[example, others], original[example, others])
