"""The contract of encoders: every file of the folder is found by walking it, and put through the same laws beside a second modality."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.errors import UserError
from cimrl_jax.nn.model import build_encoder, default_encoder
from cimrl_jax.nn.transformer import Sizes
from cimrl_jax.options import component, known
from cimrl_jax.types import Slots
from tests.nn.cases import BATCH, FEATURES, OPTIONS, draw_inputs, make, present_everywhere

ENCODERS = known("encoder")


def kind_of(encoder: str) -> str:
    """The kind of feature that an encoder reads, found by trying: it must read exactly one."""
    reads = []
    for kind, feature in FEATURES.items():
        try:
            build_encoder("x", feature, {"encoder": encoder, **OPTIONS.get(encoder, {})}, Sizes(8, 2, 2.0, 0.0))
            reads.append(kind)
        except UserError as error:
            assert "another encoder" in str(error)
    assert len(reads) == 1
    return reads[0]


@functools.cache
def case(encoder: str):
    """A model that reads "x" by the encoder beside "other", with parameters and one jitted function that runs it from slots."""
    features = {"x": FEATURES[kind_of(encoder)], "other": FEATURES["slots"]}
    # What is not the encoder's stays as shallow as it may be: compiling is what these tests spend their time on.
    sections = {"x": {"encoder": encoder, **OPTIONS.get(encoder, {})}, "other": {"depth": 0}}
    model = make(features, sections, fusion_layers=1, causal_layers=0)
    params = model.init(jax.random.key(0))
    inputs = {m: draw_inputs(features[m], seed=i) for i, m in enumerate(features)}
    slots = model.embed(params, inputs, present_everywhere(features))
    return model, params, inputs, slots, jax.jit(lambda p, s: model.decide(p, model.encode(p, s)))


def put(slots, name, **changes):
    return {**slots, name: dataclasses.replace(slots[name], **changes)}


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(x, np.float32)) for x in jax.tree.leaves(tree)])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_slots_have_the_declared_layout(encoder):
    model, params, _, slots, run = case(encoder)
    spec = model.slots["x"]
    assert slots["x"].values.shape == (BATCH, spec.count, spec.width) and slots["x"].values.dtype == jnp.float32
    assert slots["x"].mask.shape == (BATCH, spec.count) and slots["x"].mask.dtype == bool
    assert spec.width % spec.element == 0 and spec.kind == kind_of(encoder)
    assert params["blank"]["x"].shape == (spec.width,)
    for bound, sign in ((spec.low, 1), (spec.high, -1)):
        assert bound is None or (sign * (slots["x"].values - bound) >= -1e-6).all()
    out = run(params, slots)
    assert out.logits.shape == (BATCH, 3) and out.logits.dtype == jnp.float32
    assert {k: v.shape for k, v in out.heads.items()} == dict.fromkeys(("x", "other", "shared", "combined"), (BATCH, 3))
    assert {k: v.shape for k, v in out.codes.items()} == dict.fromkeys(("x", "other", "shared", "projection"), (BATCH, 8))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_masked_slot_has_no_influence_even_as_nan_and_a_valid_one_has(encoder):
    _, params, _, slots, run = case(encoder)
    mask = slots["x"].mask.at[:, 0].set(False)
    masked = put(slots, "x", mask=mask)
    spoiled = put(slots, "x", mask=mask, values=slots["x"].values.at[:, 0].set(jnp.nan))
    np.testing.assert_array_equal(flat(run(params, masked)), flat(run(params, spoiled)))
    moved = put(slots, "x", values=slots["x"].values.at[:, 0].multiply(-1))
    assert np.abs(run(params, moved).logits - run(params, slots).logits).max() > 1e-5


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_absent_modality_has_no_influence_and_finite_second_derivatives(encoder):
    model, params, inputs, slots, run = case(encoder)
    present = {"x": jnp.array([True, False, True]), "other": jnp.array([True, True, False])}
    embedded = model.embed(params, inputs, present)
    assert not embedded["x"].mask[1].any() and not embedded["x"].values[1].any()
    out = run(params, embedded)
    assert not out.codes["x"][1].any() and not out.codes["other"][2].any() and out.codes["x"][0].any()
    # What is there reads as if the absent one held anything else; what is present elsewhere in the batch does not matter either.
    other = put(embedded, "x", values=embedded["x"].values.at[1].set(7.0))
    np.testing.assert_array_equal(flat(out), flat(run(params, other)))
    np.testing.assert_allclose(out.logits[0], run(params, slots).logits[0], atol=1e-5)

    def evidence(p, values):
        return run(p, {m: Slots(values[m], embedded[m].mask) for m in embedded}).logits[:, 0].sum()

    values = {m: s.values for m, s in embedded.items()}
    first, by_slot = jax.jit(jax.grad(evidence, (0, 1)))(params, values)
    twice = jax.jit(jax.grad(lambda p: sum((g**2).sum() for g in jax.tree.leaves(jax.grad(evidence, 1)(p, values)))))(params)
    assert np.isfinite(flat((first, by_slot, twice))).all()
    assert not by_slot["x"][1].any() and by_slot["x"][0].any() and np.abs(flat(twice)).max() > 0


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_vmapped_member_equals_its_solo_run(encoder):
    model, params, inputs, _, _ = case(encoder)

    def run(p):
        out = model.decide(p, model.encode(p, model.embed(p, inputs, present_everywhere(inputs))))
        return out.logits, out.codes

    solo = [params, model.init(jax.random.key(1))]
    together = jax.jit(jax.vmap(run))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *solo))
    for i, alone in enumerate(map(jax.jit(run), solo)):
        jax.tree.map(lambda many, one, i=i: np.testing.assert_allclose(many[i], one, atol=1e-5), together, alone)
    assert np.abs(together[0][0] - together[0][1]).max() > 1e-3


@pytest.mark.parametrize("encoder", ENCODERS)
def test_one_example_needs_no_batch_axis(encoder):
    model, params, inputs, slots, run = case(encoder)
    single = model.embed(params, {m: v[0] for m, v in inputs.items()}, {m: jnp.array(True) for m in inputs})
    np.testing.assert_allclose(run(params, single).logits, run(params, slots).logits[0], atol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_parameter_is_used_by_some_head(encoder):
    model, params, inputs, _, _ = case(encoder)

    def total(p):
        out = model.decide(p, model.encode(p, model.embed(p, inputs, present_everywhere(inputs))))
        return sum((jnp.sin(v + 1) ** 2).sum() for v in (*out.heads.values(), out.codes["projection"]))

    used = jax.tree.map(lambda g: bool(np.abs(g).max() > 0), jax.jit(jax.grad(total))(params))
    unused = [jax.tree_util.keystr(path) for path, is_used in jax.tree_util.tree_leaves_with_path(used) if not is_used]
    assert unused == ["['blank']['other']", "['blank']['x']"]  # those are for methods: the model alone blanks nothing


@pytest.mark.parametrize("encoder", ENCODERS)
def test_regions_are_shares_of_slots(encoder):
    model = case(encoder)[0]
    feature = FEATURES[kind_of(encoder)]
    shape = feature.shape[:2] if feature.kind == "image" else feature.shape[:1] if feature.kind == "slots" else feature.shape
    whole = model.regions({"x": jnp.ones((2, *shape), bool)})["x"]
    np.testing.assert_array_equal(whole, np.ones((2, model.slots["x"].count)))
    corner = np.zeros((1, *shape), bool)
    corner[(0, *(0 for _ in shape))] = True
    share = np.asarray(model.regions({"x": jnp.asarray(corner)})["x"])[0]
    assert share[0] == pytest.approx(model.slots["x"].count / np.prod(shape)) and not share[1:].any()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_options_are_documented_and_checked(encoder):
    options = component("encoder", encoder).Options
    feature = FEATURES[kind_of(encoder)]
    layers = "depth" if "depth" in options.__dataclass_fields__ else "num_layers"
    with pytest.raises(UserError, match=rf"model\.x\.{layers[:-1]}: unknown key; did you mean 'model\.x\.{layers}'"):
        build_encoder("x", feature, {"encoder": encoder, layers[:-1]: 1}, Sizes(8, 2, 2.0, 0.0))
    with pytest.raises(UserError, match=rf"model\.x\.{layers}(\[0\])?: got -1"):
        build_encoder("x", feature, {"encoder": encoder, layers: (-1,) if encoder == "hf_resnet" else -1}, Sizes(8, 2, 2.0, 0.0))
    owners: list[Any] = [owner for owner in options.__mro__ if dataclasses.is_dataclass(owner)]
    files = {owner.__name__: pathlib.Path(sys.modules[owner.__module__].__file__ or "").read_text("utf-8") for owner in owners}
    source = "".join(text.split(f"class {name}", 1)[1].split("\n\n\n", 1)[0] for name, text in files.items())
    for field in dataclasses.fields(options):
        line = source.split(f"    {field.name}: ", 1)[1].split("\n", 2)[1]
        assert line.startswith('    """')


def test_every_kind_has_a_default_that_reads_it():
    for kind in FEATURES:
        assert kind_of(default_encoder(kind)) == kind  # type: ignore[arg-type]


def test_an_image_slots_gradient_is_the_pixel_gradient_through_normalisation():
    model, params, inputs, _, run = case("vit")

    def from_slots(slots):
        return run(params, slots).logits[:, 0].sum()

    def from_pixels(pixels):
        return from_slots(model.embed(params, {**inputs, "x": pixels}, present_everywhere(inputs)))

    pixels = inputs["x"].astype(jnp.float32)
    by_pixel = jax.jit(jax.grad(from_pixels))(pixels)
    slots = model.embed(params, inputs, present_everywhere(inputs))
    by_slot = jax.jit(jax.grad(lambda v: from_slots(put(slots, "x", values=v))))(slots["x"].values)
    # Cut by hand: patch (i, j) holds rows 2i, 2i+1 and columns 2j, 2j+1.
    for i in range(4):
        for j in range(2):
            patch = by_pixel[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] * 255 * np.array(FEATURES["image"].std)
            np.testing.assert_allclose(by_slot[:, 2 * i + j], patch.reshape(BATCH, -1), atol=1e-6)
    assert np.abs(by_slot).max() > 1e-4
    assert model.slots["x"].low == pytest.approx(-0.4 / 0.2) and model.slots["x"].high == pytest.approx(0.6 / 0.2)


def test_a_spectrogram_is_cut_by_time_then_band():
    model, params, inputs, slots, _ = case("spectrogram")
    np.testing.assert_array_equal(slots["x"].values[1, 3], np.asarray(inputs["x"])[1, 3:6, 2:4].ravel())


def test_words_of_padding_are_masked_and_long_texts_are_cut():
    model, params, inputs, slots, _ = case("text_transformer")
    np.testing.assert_array_equal(slots["x"].mask, np.asarray(inputs["x"]) != 0)
    np.testing.assert_array_equal(slots["x"].values[0, 0], params["encoders_x"]["words"][inputs["x"][0, 0]])
    short = make({"x": FEATURES["text"]}, {"x": {"max_length": 2}})
    assert short.slots["x"].count == 2
    assert short.regions({"x": jnp.ones((1, 5), bool)})["x"].shape == (1, 2)


def test_a_tables_columns_are_normalised_and_its_missing_cells_masked():
    model, params, inputs, _, run = case("tabular")
    table = jnp.array([[1.0, 2.0, 3.0], [3.0, jnp.nan, jnp.inf], [jnp.nan, jnp.nan, jnp.nan]])
    slots = model.embed(params, {**inputs, "x": table}, present_everywhere(inputs))
    np.testing.assert_array_equal(slots["x"].mask, [[True, True, True], [True, False, False], [False, False, False]])
    np.testing.assert_array_equal(slots["x"].values[..., 0], [[0, 0, 0], [1, 0, 0], [0, 0, 0]])
    assert np.isfinite(run(params, slots).logits).all()


@pytest.mark.parametrize(
    ("encoder", "feature", "options", "message"),
    [
        ("vit", "image", {"patch": 3}, r"model\.x: option patch=3 .* 8x4 image; choose one of \[1, 2, 4\]"),
        ("spectrogram", "spectrogram", {"patch_time": 4}, r"patch_time=4 .* 6 frames; choose one of \[1, 2, 3, 6\]"),
        ("identity", "slots", {"element": 4}, r"element=4 .* width 6; choose one of \[1, 2, 3, 6\]"),
        ("vit", "text", {}, r"'vit' reads image features, this modality is of kind 'text'"),
        ("vitt", "image", {}, r"model\.x\.encoder: there is no encoder 'vitt'; did you mean 'vit'"),
    ],
)
def test_a_wrong_option_says_how_to_mend_it(encoder, feature, options, message):
    with pytest.raises(UserError, match=message):
        make({"x": FEATURES[feature]}, {"x": {"encoder": encoder, **options}})


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (dataclasses.replace(FEATURES["text"], vocabulary=()), "vocabulary, which is empty"),
        (dataclasses.replace(FEATURES["image"], mean=(0.5, 0.5)), "3 channels needs 1 or 3"),
        (dataclasses.replace(FEATURES["table"], std=(0.5, 0.5)), "3 columns needs 1 or 3"),
        (dataclasses.replace(FEATURES["slots"], shape=(4,)), "2 axes"),
    ],
)
def test_a_wrong_feature_is_named(feature, message):
    with pytest.raises(UserError, match=message):
        make({"x": feature}, {"x": {"patch": 2}} if feature.kind == "image" else {})
