"""A model on a checkpoint: what stays is in no member, what moves starts there, and features in the place of inputs change nothing but the cost."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cimrl_jax import assembly
from cimrl_jax.config import load
from cimrl_jax.data import feature_store, views
from cimrl_jax.data.source import ArraySource, Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.nn import finetune, pretrained, tensor_files
from cimrl_jax.nn.encoders import hf_vit
from cimrl_jax.nn.model import bound, build_model, frozen
from cimrl_jax.train import loop
from cimrl_jax.train import step as fused
from cimrl_jax.types import Feature
from tests import tiny

IMAGE = Feature("image", (8, 8, 3), "uint8", flip=False)
OTHER = Feature("slots", (2, 4), "float32")
FEATURES = {"image": IMAGE, "other": OTHER}
ROWS, SEEDS = 24, (0, 1, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A checkpoint of a vision transformer of two blocks, random weights."""
    options = hf_vit.Options(patch_size=4, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=12)
    encoder = hf_vit.build(options, feature=IMAGE, dim=4, heads=1, mlp_ratio=1.0, dropout=0.0, dtype=jnp.float32)

    def run(module, inputs, present):
        return module.encode(module.embed(inputs, present), deterministic=True)

    params = encoder.init(jax.random.key(7), jnp.zeros((1, *IMAGE.shape), "uint8"), jnp.ones(1, bool), method=run)["params"]
    path = tmp_path_factory.mktemp("checkpoint")
    pretrained.export(path, params["backbone"], encoder)
    return str(path)


@pytest.fixture(scope="module")
def source() -> ArraySource:
    rng = np.random.default_rng(3)
    label = (np.arange(ROWS) % 2).astype(np.int32)
    image = rng.integers(0, 200, (ROWS, *IMAGE.shape)).astype(np.uint8) + (40 * label[:, None, None, None]).astype(np.uint8)
    other = rng.normal(size=(ROWS, *OTHER.shape)).astype(np.float32)
    return ArraySource({"image": image, "other": other}, label, np.full(ROWS, -1, np.int32), {"image": np.arange(ROWS) % 5 > 0})


def config(folder: str, **options: Any):
    section = {"encoder": "hf_vit", "pretrained": folder, **options}
    return load(
        {
            **{key: value for key, value in tiny.STUDY.items() if key != "model"},
            "model": {"dim": 8, "heads": 2, "fusion_layers": 1, "causal_layers": 0, "image": section, "other": {"depth": 0}},
            "seeds": (0, 1),
        },
        {"workdir": "unused"},
    )


def dataset(source: ArraySource) -> Dataset:
    splits: Any = dict.fromkeys(("train", "validation", "test"), source)
    return Dataset(name="toy", features=FEATURES, class_names=("a", "b"), group_names=("a, x", "b, x"), splits=splits)


def model_of(own, features=FEATURES):
    sizes = {field.name: getattr(own.model, field.name) for field in dataclasses.fields(own.model)}
    return build_model(features=features, num_classes=2, views=views.make_perturb, **sizes)


def program(own, data: Dataset, model, **changes: Any) -> loop.Program:
    base = assembly.programs(own, data, model, "erm")[0]
    # Plain gradient descent: Adam makes steps of rounding where a gradient is truly zero, as that of a key's bias is.
    optimizer = functools.partial(base.optimizer, kind="sgd", momentum=0.0, clip_norm=0.0)
    return dataclasses.replace(base, optimizer=optimizer, **changes)


def trained(own: loop.Program, steps: int = 2) -> tuple[Any, Any]:
    """The members before and after some steps of the first stage."""
    states, feed = tiny.members(own), tiny.feed(own)
    before = jax.tree.map(np.asarray, states.params)
    after, _ = loop.compile_chunk(own, 0, states, feed).run(states, feed(0, steps), steps)
    return before, jax.tree.map(np.asarray, after.params)


def leaves(tree: Any) -> dict[Any, Any]:
    return dict(flatten_dict(tree))


def backbone(params: Any) -> dict[Any, Any]:
    return leaves(params["model"].get("encoders_image", {}).get("backbone", {}))


@pytest.mark.parametrize(
    ("options", "moving"),
    [
        ({"freeze": "none"}, lambda path: True),
        ({"freeze": "all"}, lambda path: False),
        ({"freeze": "all", "lora_rank": 2}, lambda path: path[-1].startswith("lora_")),
        ({"freeze": (0,)}, lambda path: path[0] in ("segment_1", "final")),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_parameters_are_what_moves_and_everything_else_is_held(folder, source, options, moving):
    own = config(folder, **options)
    model = model_of(own)
    whole = backbone({"model": model_of(config(folder)).init(jax.random.key(0))})
    params = backbone({"model": model.init(jax.random.key(0))})
    held = leaves(model.held["stays"]["encoders_image"]["backbone"]) if model.held["stays"] else {}
    assert all(map(moving, params)) and not any(map(moving, held))
    from_files = [*held.values(), *(value for path, value in params.items() if not path[-1].startswith("lora_"))]
    assert sum(value.size for value in from_files) == sum(value.size for value in whole.values())
    assert np.isclose(sum(float(np.sum(value)) for value in from_files), sum(float(np.sum(value)) for value in whole.values()), atol=1e-3)


def test_what_was_read_is_told_with_what_was_not(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "more")
    found = pretrained.open_checkpoint(folder)
    tensors = {name: found.load(name) for name in found.entries}
    tensor_files.write(tmp_path / "more" / "model.safetensors", {**tensors, "pooler.dense.weight": np.zeros((8, 8), np.float32)})
    [note] = model_of(config(str(tmp_path / "more"), freeze="all")).notes
    assert note.startswith(f"image from {tmp_path / 'more'}: ") and "of which 0 million move; not used: pooler.dense.weight" in note
    assert "not used" not in model_of(config(folder)).notes[0]


def test_every_seed_starts_at_the_checkpoint_and_training_moves_all_that_is_no_zero_gradient(folder, source):
    own = config(folder, freeze=(0,), lora_rank=2)
    before, after = trained(program(own, dataset(source), model_of(own)))
    for path, value in backbone(before).items():
        if path[-1] != "lora_a":
            np.testing.assert_array_equal(value[0], value[1])
        still = path[-1] == "lora_a" and path[0] == "segment_0" or path[1:] == ("key", "bias")
        assert still or (value != backbone(after)[path]).any(), path
    assert any((value[0] != value[1]).any() for path, value in leaves(before["model"]).items() if path[1] != "backbone")


def test_the_held_values_are_an_argument_of_the_model_bound_to_them(folder, source):
    own = config(folder, freeze="all")
    model = model_of(own)
    params, batch = model.init(jax.random.key(0)), tiny.batch(source, slice(4))

    def logits(held):
        model_, slots = bound(model, held), model.embed(params, batch.inputs, batch.present)
        return model_.decide(params, model_.encode(params, slots)).logits

    run = jax.jit(logits)
    assert (np.asarray(run(model.held)) != np.asarray(run(jax.tree.map(np.zeros_like, model.held)))).any()
    kernel = np.asarray(model.held["stays"]["encoders_image"]["backbone"]["embeddings"]["patch"]["kernel"])
    assert not any(np.array_equal(constant, kernel) for constant in jax.make_jaxpr(logits)(model.held).consts)


def logits_of(model, params, source, rows=slice(8)):
    batch = tiny.batch(source, rows)
    inputs = batch.inputs if model.prepare is None else model.prepare(batch.inputs, batch.present)
    return model.decide(params, model.encode(params, model.embed(params, inputs, batch.present))).logits


def test_features_made_in_the_step_or_read_from_disk_give_the_logits_of_the_frozen_encoder(folder, source, tmp_path):
    plain, fed, kept = (config(folder, freeze="all", **more) for more in ({}, {"features": "step"}, {"features": "disk"}))
    model = model_of(plain)
    params = model.init(jax.random.key(0))
    expected = logits_of(model, params, source)
    blank = params["blank"]
    with_features = model_of(fed)
    shared = {**params, "blank": {**blank, "image": with_features.init(jax.random.key(0))["blank"]["image"]}}
    assert jax.tree.structure(shared) == jax.tree.structure(with_features.init(jax.random.key(0)))
    np.testing.assert_allclose(logits_of(with_features, shared, source), expected, atol=1e-5)

    found = frozen("image", IMAGE, kept.model.modalities["image"], dtype="float32", views=views.make_perturb)
    assert found is not None
    data = feature_store.build(dataset(source), "image", found.compute, feature=found.feature, weights=found.digest, cache=tmp_path, batch_size=5)
    stored = data.splits["train"]
    np.testing.assert_allclose(logits_of(model_of(kept, data.features), shared, stored), expected, atol=1e-5)


def test_pooled_features_are_the_means_of_neighbouring_places(folder, source):
    sections = [config(folder, freeze="all", features="disk", pool=pool).model.modalities["image"] for pool in (1, 2)]
    image = Feature("image", (16, 24, 3), "uint8", flip=False)
    inputs = np.random.default_rng(0).integers(0, 256, (3, *image.shape), np.uint8)
    both: list[Any] = [frozen("image", image, section, dtype="float32", views=views.make_perturb) for section in sections]
    whole, pooled = (np.asarray(found.compute(inputs, np.array([True, True, False]))) for found in both)
    assert both[1].feature.shape == (1 + 2 * 3, 8) and whole.shape[1] == 1 + 4 * 6
    places = whole[:, 1:].reshape(3, 2, 2, 3, 2, 8).mean((2, 4)).reshape(3, 6, 8)
    np.testing.assert_allclose(pooled, np.concatenate([whole[:, :1], places], 1), atol=1e-6)
    assert not pooled[2].any()
    spec = model_of(config(folder, freeze="all", features="disk", pool=2), {**FEATURES, "image": both[1].feature}).slots["image"]
    assert (spec.count, spec.grid, spec.lead) == (7, (2, 3), 1)
    with pytest.raises(UserError, match="pool=2 does not divide the 2 x 3 places"):
        frozen("image", dataclasses.replace(image, shape=(8, 12, 3)), sections[1], dtype="float32", views=views.make_perturb)


def test_members_that_see_the_same_examples_share_the_features_and_train_as_each_would_alone(folder, source):
    augment, own = True, config(folder, freeze="all", features="step")
    model = model_of(own)
    make = functools.partial(program, own, dataset(source), model, augment=augment)
    base = make()
    hyper = tuple({**base.hyper[0], "learning_rate": rate} for rate in (0.01, 0.01, 0.1))
    together = dataclasses.replace(base, seeds=SEEDS, hyper=hyper, settings=({},) * 3)
    assert tiny.feed(together).leaders == ([0, 1], [0, 1, 0])
    _, after = trained(together)
    for i, seed in list(enumerate(SEEDS))[1:]:
        _, alone = trained(dataclasses.replace(base, seeds=(seed,), hyper=hyper[i : i + 1], settings=({},), together=1))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b[0], atol=2e-5), after, alone)
    counted = []

    def count(inputs, present, key=None):
        counted.append(inputs["image"].shape)
        assert model.prepare is not None
        return model.prepare(inputs, present, key)

    prepare = fused.make_prepare(model._replace(prepare=count), *tiny.feed(together).leaders, augment=augment)
    assert prepare is not None
    states = tiny.members(together)
    made = jax.eval_shape(prepare, states, jax.tree.map(lambda x: jnp.stack([x] * 3), tiny.batch(source, slice(8))))
    assert made.inputs["image"].shape[:2] == (3, 8) and len(counted) == 1


def test_the_update_of_a_block_is_scaled_by_its_share_of_the_learning_rate(folder, source):
    changes = []
    for own in (config(folder), config(folder, layer_decay=0.5)):
        base = program(own, dataset(source), model_of(own))
        before, after = trained(base, steps=1)
        changes.append(leaves(jax.tree.map(lambda a, b: b - a, before["model"], after["model"])))
    shares = {"embeddings": 0.25, "segment_0": np.array([0.5, 1.0]), "final": 1.0}
    for path, change in changes[0].items():
        share = np.asarray(shares[path[2]] if path[:2] == ("encoders_image", "backbone") else 1.0)
        np.testing.assert_allclose(changes[1][path], change * share.reshape(*share.shape, *[1] * (change.ndim - 1 - share.ndim)), atol=1e-6)


def test_trees_are_parted_and_put_together_again():
    tree = {"a": {"x": 1, "y": 2}, "b": 3}
    other = {"a": {"y": 2}}
    rest = finetune.without(tree, other)
    assert rest == {"a": {"x": 1}, "b": 3} and finetune.merge(rest, other) == tree


def test_features_are_told_apart_by_the_weights_and_by_what_no_weight_tells_of():
    known = {finetune.digest({name: np.zeros(2, np.float32)}, {"heads": heads}) for name in "ab" for heads in (1, 2)}
    assert len(known) == 4
