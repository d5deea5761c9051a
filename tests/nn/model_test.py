"""The assembled model: several modalities, missing ones, dropout, bfloat16, the fusion's query, and what it refuses."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.errors import UserError
from cimrl_jax.nn.fusion import Fusion
from cimrl_jax.nn.model import choose_query
from cimrl_jax.nn.transformer import Sizes
from cimrl_jax.types import Slots
from tests.nn.cases import BATCH, FEATURES, OPTIONS, draw_inputs, make, present_everywhere

THREE = {m: FEATURES[m] for m in ("image", "text", "spectrogram")}
SECTIONS = {"image": OPTIONS["vit"], "spectrogram": OPTIONS["spectrogram"]}


@functools.cache
def three():
    model = make(THREE, SECTIONS)
    inputs = {m: draw_inputs(f, seed=i) for i, (m, f) in enumerate(THREE.items())}
    run = jax.jit(lambda p, inputs, present: model.decide(p, model.encode(p, model.embed(p, inputs, present))))
    return model, model.init(jax.random.key(0)), inputs, run


@pytest.mark.parametrize("missing", sorted(THREE))
def test_any_of_three_modalities_may_be_missing(missing):
    _, params, inputs, run = three()
    present = {**present_everywhere(THREE), missing: jnp.array([True, False, True])}
    out = run(params, inputs, present)
    spoiled = run(params, {**inputs, missing: inputs[missing].at[1].set(inputs[missing][2])}, present)
    np.testing.assert_array_equal(out.logits, spoiled.logits)
    full = run(params, inputs, present_everywhere(THREE))
    np.testing.assert_allclose(out.logits[::2], full.logits[::2], atol=1e-5)
    assert np.abs(out.logits[1] - full.logits[1]).max() > 1e-4
    assert not out.codes[missing][1].any() and out.codes["shared"][1].any()


def test_with_nothing_present_all_is_finite():
    _, params, inputs, run = three()
    nothing = {m: jnp.zeros(BATCH, bool) for m in THREE}

    def total(p):
        out = run(p, inputs, nothing)
        return out.logits.sum() + (out.codes["projection"] ** 2).sum()

    out, gradient = run(params, inputs, nothing), jax.jit(jax.grad(total))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((out, gradient)))
    assert not any(np.asarray(out.codes[m]).any() for m in (*THREE, "shared"))


def test_the_prediction_reads_codes_alone_and_is_linear_in_them():
    model, params, inputs, run = three()
    codes = {m: c for m, c in run(params, inputs, present_everywhere(THREE)).codes.items() if m != "projection"}
    head = params["causal"]["heads_combined"]
    joint = np.concatenate([codes[m] for m in (*sorted(THREE), "shared")], -1)
    out = model.decide(params, codes)
    np.testing.assert_allclose(out.logits, joint @ head["kernel"] + head["bias"], atol=1e-5)
    own = params["causal"]["heads_text"]
    np.testing.assert_allclose(out.heads["text"], codes["text"] @ own["kernel"] + own["bias"], atol=1e-5)
    np.testing.assert_array_equal(out.logits, out.heads["combined"])


def test_a_modality_code_reads_its_own_modality_only():
    _, params, inputs, run = three()
    present = present_everywhere(THREE)
    moved = run(params, {**inputs, "image": 255 - inputs["image"]}, present).codes
    codes = run(params, inputs, present).codes
    changed = {m for m in codes if np.abs(codes[m] - moved[m]).max() > 1e-5}
    assert changed == {"image", "shared", "projection"}


def test_dropout_acts_only_in_training_and_only_if_asked_for():
    for rate in (0.0, 0.5):
        model = make({"text": FEATURES["text"]}, dropout=rate)
        params = model.init(jax.random.key(0))
        slots = model.embed(params, {"text": draw_inputs(FEATURES["text"])}, present_everywhere(["text"]))
        encode = jax.jit(model.encode)
        calm, again = encode(params, slots), encode(params, slots)
        first, second = (encode(params, slots, jax.random.key(i))["shared"] for i in (1, 2))
        np.testing.assert_array_equal(calm["shared"], again["shared"])
        assert bool(np.abs(first - second).max() > 1e-3) == bool(np.abs(first - calm["shared"]).max() > 1e-3) == (rate > 0)
        np.testing.assert_array_equal(first, encode(params, slots, jax.random.key(1))["shared"])


def test_bfloat16_computes_close_to_float32_and_returns_float32():
    features = {"table": FEATURES["table"], "text": FEATURES["text"]}
    sections = {m: {"depth": 0} for m in features}
    inputs = {m: draw_inputs(f) for m, f in features.items()}
    exact, low = (make(features, sections, causal_layers=0, dtype=dtype) for dtype in ("float32", "bfloat16"))
    params = exact.init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(low.init, jax.random.key(0)))} == {jnp.dtype("float32")}

    def run(model):
        def total(p):
            out = model.decide(p, model.encode(p, model.embed(p, inputs, present_everywhere(features))))
            return out.logits[:, 0].sum(), out

        (_, out), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
        assert {leaf.dtype for leaf in jax.tree.leaves((out, gradient))} == {jnp.dtype("float32")}
        return out.logits, np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])

    (logits, ours), (exact_logits, theirs) = run(low), run(exact)
    assert 0 < np.abs(logits - exact_logits).max() < 0.1 * np.abs(exact_logits).max()
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.99


def test_parameters_are_a_plain_nested_dict_that_depends_on_the_key():
    model, params, _, _ = three()

    def plain(tree):
        return isinstance(tree, jax.Array) or (type(tree) is dict and all(plain(v) for v in tree.values()))

    assert plain(params) and set(params["blank"]) == set(THREE)
    kernel = params["fusion"]["connected_1"]["mlp"]["widen"]["kernel"]
    assert np.abs(kernel - model.init(jax.random.key(1))["fusion"]["connected_1"]["mlp"]["widen"]["kernel"]).max() > 1e-2
    np.testing.assert_array_equal(kernel, model.init(jax.random.key(0))["fusion"]["connected_1"]["mlp"]["widen"]["kernel"])
    assert params["blank"]["text"].any() and not params["blank"]["image"].any()


def test_members_may_be_initialised_together():
    model, params, _, _ = three()
    members = jax.vmap(model.init)(jnp.stack([jax.random.key(5), jax.random.key(0)]))
    jax.tree.map(lambda many, one: np.testing.assert_allclose(many[1], one, atol=1e-6), members, params)


def test_the_fusion_leaves_all_but_the_query_alone_until_a_connected_layer():
    rng = np.random.default_rng(0)
    tokens = {m: Slots(jnp.asarray(rng.normal(size=(2, n, 8)), jnp.float32), jnp.ones((2, n), bool)) for m, n in (("a", 3), ("b", 2), ("c", 4))}
    names = ("a", "b", "c")

    def fuse(layers, every, query="b"):
        module = Fusion(Sizes(8, 2, 2.0, 0.0), names, query, layers, every)
        out, params = jax.jit(lambda key: module.init_with_output(key, tokens, deterministic=True))(jax.random.key(0))
        return params["params"], out

    before = np.concatenate([tokens[m].values for m in names], 1)
    for query, part in (("a", slice(0, 3)), ("b", slice(3, 5)), ("c", slice(5, 9))):
        after = fuse(1, 0, query)[1].values  # type: ignore[union-attr]
        moved = np.abs(after - before).max((0, 2)) > 1e-4
        assert moved[part].all() and moved.sum() == moved[part].size
    params, out = fuse(2, 2)
    assert sorted(params) == ["asymmetric_0", "connected_1"]
    assert (np.abs(out.values - before).max((0, 2)) > 1e-4).all() and out.mask.shape == (2, 9)  # type: ignore[union-attr]


def test_who_asks_in_the_fusion():
    assert choose_query(THREE, "") == "text"
    assert choose_query({m: f for m, f in THREE.items() if m != "text"}, "") == "image"
    assert choose_query(THREE, "image") == "image"
    with pytest.raises(UserError, match="query='imag'.*did you mean 'image'"):
        choose_query(THREE, "imag")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "dtype='float16' is unknown; did you mean"),
        ({"heads": 3}, r"heads=3 does not divide dim=8; choose one of \[1, 2, 4, 8\]"),
        ({"modalities": {"imag": {}}}, "modality 'imag', which the data set lacks; did you mean 'image'"),
        ({"features": {"shared": FEATURES["table"]}}, "cannot be called 'shared'"),
        ({"features": {}}, "no modality"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make(**{"features": THREE, "modalities": SECTIONS if "features" not in changes else {}, **changes})
