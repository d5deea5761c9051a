"""Each term of the multi-modal contrastive loss against a loop over its definition, and where prompts come from."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.errors import UserError
from cimrl_jax.methods import base
from cimrl_jax.methods import clip_contrastive as module
from cimrl_jax.options import make_options
from cimrl_jax.types import Prompts
from tests import tiny

CLASSES, ROWS = 3, 10
MODEL = tiny.shallow(CLASSES)
WEIGHT = np.array([1, 2, 0.5, 1, 1, 3, 1, 1, 0, 0], np.float32)
NUMBERS = {"tau": 0.4, "w_vc": 0.7, "w_lc": 0.3, "w_spurious": 1.3}
TEXT = {"prompts": "text"}
SETTINGS = [
    {},
    {"clip": "batch"},
    {"spurious": "none"},
    {**TEXT},
    {**TEXT, "spurious": "names"},
]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def spec() -> Any:
    """Of two modalities, of which "left" reads the names."""
    texts = [{"left": draw(k, 3, 4, seed=k), "right": np.zeros((k, 3, 4), np.float32)} for k in (CLASSES, 2)]
    return dataclasses.replace(tiny.spec(tiny.source(classes=CLASSES), classes=CLASSES), prompts=Prompts("left", *texts))


def make_case(**options) -> tuple[Any, ...]:
    """(method, traced numbers, state, parameters, batch with weights)."""
    record = tiny.method("clip_contrastive", width=4, **options)
    own, state = record.init(jax.random.key(1), spec())
    hyper = {name: jnp.float32(value) for name, value in NUMBERS.items()}
    assert hyper.keys() == record.hyper.keys()
    batch = tiny.batch(tiny.source(classes=CLASSES), slice(ROWS), weight=WEIGHT)
    return record, hyper, state, {"model": MODEL.init(jax.random.key(0)), "method": own}, batch


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def softmax_loss(scores, at):
    return np.log(np.exp(scores).sum()) - scores[at]


def embedded(params, batch) -> tuple[Any, ...]:
    """(I, T, S) as float64; prompts as they are read where `params` have a map of the text's code."""
    own, out = params["method"], base.forward(MODEL, params, batch, None)
    image = jnp.concatenate([out.codes["left"], out.codes["right"], out.codes["shared"]], axis=1) @ own["joint"]
    classes, attributes = own.get("classes"), own.get("attributes")
    if "text" in own:
        named, model = spec().prompts, params["model"]
        texts = (jnp.asarray(part["left"]) for part in (named.classes, named.attributes))
        codes = (jnp.tanh(jnp.mean(x * model["gain"]["left"], axis=1) @ model["inward"]["left"]) for x in texts)
        classes, attributes = (code @ own["text"] for code in codes)
    return tuple(None if x is None else np.asarray(x, np.float64) for x in (image, classes, attributes))


def clip_by_hand(images, classes, label, tau):
    return np.array([softmax_loss(np.array([cosine(i, t) for t in classes]) / tau, y) for i, y in zip(images, label, strict=True)])


def both_ways_by_hand(images, classes, label, tau):
    """CLIP's own: the i-th image belongs to the i-th text."""
    texts, rows = [classes[y] for y in label], []
    for i in range(len(images)):
        against_texts = np.array([cosine(images[i], t) for t in texts]) / tau
        against_images = np.array([cosine(x, texts[i]) for x in images]) / tau
        rows.append((softmax_loss(against_texts, i) + softmax_loss(against_images, i)) / 2)
    return np.array(rows)


def contrast_by_hand(images, label, weight):
    pairs = [(label[i] == label[j], cosine(images[i], images[j]), weight[i] * weight[j]) for i, j in itertools.permutations(range(len(images)), 2)]
    apart, alike = (np.average([c for s, c, _ in pairs if s == same], weights=[w for s, _, w in pairs if s == same]) for same in (False, True))
    return apart - alike


@pytest.mark.parametrize("options", SETTINGS)
def test_every_term_is_the_equation(options):
    record, hyper, state, params, batch = make_case(**options)
    loss, (_, metrics) = jax.jit(lambda p: record.stages[0].loss(state, hyper, MODEL, p, batch, jax.random.key(0)))(params)
    image, classes, attributes = embedded(params, batch)
    kept = WEIGHT > 0
    image, weight = image[kept], WEIGHT[kept]
    label, group = np.asarray(batch.label)[kept], np.asarray(batch.group)[kept]
    rows = (both_ways_by_hand if options.get("clip") == "batch" else clip_by_hand)(image, classes, label, 0.4)
    expected = {
        "l_clip": np.average(rows, weights=weight),
        "l_vc": contrast_by_hand(image, label, weight),
        "l_lc": np.mean([cosine(a, b) for a, b in itertools.permutations(classes, 2)]),
    }
    spurious = options.get("spurious", "labels")
    if spurious == "labels":
        expected["l_spurious"] = np.average(clip_by_hand(image, attributes, group % 2, 0.4), weights=weight)
    elif spurious == "names":
        expected["l_spurious"] = np.mean([abs(cosine(t, s)) for t in classes for s in attributes])
    else:
        expected["l_spurious"] = 0.0
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, abs=1e-5), name
    terms = ("l_clip", "l_vc", "l_lc", "l_spurious")
    assert float(loss) == pytest.approx(sum(expected[name] * w for name, w in zip(terms, (1, 0.7, 0.3, 1.3), strict=True)), abs=1e-5)


@pytest.mark.parametrize("options", [{}, TEXT])
def test_the_prediction_is_the_nearest_class_prompt(options):
    record, hyper, state, params, batch = make_case(**options)
    assert record.predict is not None
    image, classes, _ = embedded(params, batch)
    slots = MODEL.embed(params["model"], batch.inputs, batch.present)
    found = record.predict(state, hyper, MODEL, params, slots, MODEL.encode(params["model"], slots))
    np.testing.assert_allclose(found, [[cosine(i, t) / 0.4 for t in classes] for i in image], atol=1e-5)


def test_names_are_read_by_the_models_text_modality_and_train_it():
    record, hyper, state, params, batch = make_case(prompts="text", spurious="names")
    silent = dataclasses.replace(batch, weight=jnp.zeros(ROWS))  # L_lc and L_ls alone
    gradient = jax.jit(jax.grad(lambda p: record.stages[0].loss(state, hyper, MODEL, p, silent, jax.random.key(0))[0]))(params)
    assert np.abs(gradient["model"]["inward"]["left"]).max() > 1e-3
    assert not np.asarray(gradient["model"]["inward"]["right"]).any()
    assert all(np.isfinite(x).all() for x in tiny.arrays(gradient))


def test_names_are_read_with_every_other_modality_absent():
    record, hyper, state, params, batch = make_case(prompts="text")

    def encode(own, slots, key=None):  # a text's code tells whether there was something else beside it
        codes = MODEL.encode(own, slots, key)
        return codes | {"left": codes["left"] + jnp.any(slots["right"].mask, axis=-1)[:, None]}

    slots = MODEL.embed(params["model"], batch.inputs, batch.present)
    codes = MODEL.encode(params["model"], slots)
    alone, beside = (record.predict(state, hyper, model, params, slots, codes) for model in (MODEL, MODEL._replace(encode=encode)))
    np.testing.assert_array_equal(alone, beside)


def test_what_each_setting_must_be_told():
    told = {}
    for prompts, spurious in itertools.product(("learned", "text"), ("labels", "none")):
        record = tiny.method("clip_contrastive", prompts=prompts, spurious=spurious)
        told[prompts, spurious] = record.needs_groups, record.needs_attribute_names
    assert told == {
        ("learned", "labels"): (True, False),
        ("learned", "none"): (False, False),
        ("text", "labels"): (True, True),
        ("text", "none"): (False, True),
    }
    names = tiny.method("clip_contrastive", prompts="text", spurious="names")
    assert names.needs_attribute_names and not names.needs_groups


@pytest.mark.parametrize("clip", ["classes", "batch"])
def test_a_batch_of_one_class_or_of_one_row_leaves_all_finite(clip):
    record, hyper, state, params, batch = make_case(clip=clip)
    run = jax.jit(jax.value_and_grad(lambda p, b: record.stages[0].loss(state, hyper, MODEL, p, b, jax.random.key(0))[0]))
    for changes in ({"label": jnp.ones(ROWS, jnp.int32)}, {"weight": jnp.eye(ROWS)[0]}, {"weight": jnp.zeros(ROWS)}):
        assert all(np.isfinite(x).all() for x in tiny.arrays(run(params, dataclasses.replace(batch, **changes))))


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="spurious=names compares names, but prompts=learned reads none"):
        make_options(module.Options, {"spurious": "names"}, "method.clip_contrastive")
    with pytest.raises(UserError, match="does not say which attribute value a group has"):
        tiny.method("clip_contrastive").init(jax.random.key(0), dataclasses.replace(spec(), group_attribute=()))
