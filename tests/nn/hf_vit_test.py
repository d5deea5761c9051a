"""Published vision transformers against `transformers`: outputs, input gradients, and folders both ways."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from cimrl_jax.errors import UserError
from cimrl_jax.nn import pretrained, tuning
from cimrl_jax.nn.encoders import base, hf_vit
from cimrl_jax.nn.model_folder import open_checkpoint
from cimrl_jax.types import Expected, Feature, Slots

torch = pytest.importorskip("torch", reason="parity is with transformers and torch: pip install 'cimrl_jax[parity]'")
transformers = pytest.importorskip("transformers", reason="parity is with transformers and torch: pip install 'cimrl_jax[parity]'")

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8, "patch_size": 4}
TEXTS = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
# (class of transformers, changes of its configuration, the picture's height and width)
CASES = {
    "vit": ("ViTModel", {}, (8, 8)),
    "vit, resized and not square": ("ViTModel", {}, (12, 20)),
    "vit, as many patches on another grid": ("ViTModel", {}, (4, 16)),
    "vit of pictures that are not square, without some biases": (
        "ViTModel",
        {"image_size": (8, 12), "qkv_bias": False, "hidden_act": "gelu_pytorch_tanh"},
        (8, 12),
    ),
    "vit below a classifier": ("ViTForImageClassification", {"layer_norm_eps": 1e-3, "hidden_act": "relu"}, (8, 8)),
    "deit, resized": ("DeiTModel", {}, (4, 12)),
    "dinov2": ("Dinov2Model", {"mlp_ratio": 2}, (8, 8)),
    "dinov2 with gates, resized": ("Dinov2Model", {"mlp_ratio": 3, "use_swiglu_ffn": True, "image_size": 12}, (8, 4)),
    "clip": ("CLIPVisionModel", {}, (8, 8)),
    "clip with its texts, resized": ("CLIPModel", {}, (12, 8)),
}


def picture(size, **changes) -> Feature:
    return Feature("image", (*size, 3), "uint8", mean=(0.5,), std=(0.5,), **changes)


def make(feature, dtype: Any = jnp.float32, **options) -> Any:
    return hf_vit.build(hf_vit.Options(**options), feature=feature, dim=6, heads=1, mlp_ratio=1.0, dropout=0.0, dtype=dtype)


def init(encoder, seed=0) -> Any:
    spec = encoder.slot_spec()
    slots = Slots(jnp.zeros((1, spec.count, spec.width)), jnp.ones((1, spec.count), bool))
    return jax.jit(lambda key: encoder.init(key, slots, deterministic=True, method="encode")["params"])(jax.random.key(seed))


def loaded(encoder) -> Any:
    """The checkpoint's values as the encoder's parameters; those of LoRA, which no checkpoint has, as training starts with them."""
    leaves: Any = flatten_dict(jax.eval_shape(lambda: init(encoder))["backbone"])
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    found = pretrained.read(open_checkpoint(encoder.tuning.pretrained), encoder.tensors(), shapes)
    own = {path: np.full(shape, path[-1] == "lora_a", np.float32) for path, shape in shapes.items()}
    return {"backbone": unflatten_dict(jax.tree.map(jnp.asarray, own | found))}


def features(encoder, params, values, mask=None) -> Any:
    mask = jnp.ones(values.shape[:-1], bool) if mask is None else mask
    run = jax.jit(lambda params, slots: encoder.apply({"params": params}, slots, deterministic=True, method="features"))
    return run(params, Slots(values, mask))


def torch_model(name, changes):
    if name == "CLIPModel":
        return transformers.CLIPModel(transformers.CLIPConfig(vision_config=SMALL | changes, text_config=TEXTS))
    kind = getattr(transformers, name)
    return kind(kind.config_class(**SMALL | changes))


def save(model, folder, seed=0):
    """A checkpoint whose every number is drawn, norms and scales too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.mean() == 1))
    model.save_pretrained(folder)
    return model.eval()


def oracle(model, pixels):
    """What `features` should be."""
    tower = {"CLIPModel": "vision_model", "ViTForImageClassification": "vit"}.get(type(model).__name__)
    model = getattr(model, tower) if tower else model
    resized = {} if type(model).__name__ == "Dinov2Model" else {"interpolate_pos_encoding": tuple(pixels.shape[2:]) != (8, 12)}
    out = model(pixels, **resized).last_hidden_state
    return model.post_layernorm(out) if hasattr(model, "post_layernorm") else out


def draw(encoder, seed=0):
    """(pixels for torch [2, c, h, w], the same as slots [2, n, d])."""
    pixels = np.random.default_rng(seed).normal(size=(2, *encoder.patches.feature.shape)).astype(np.float32)
    return torch.tensor(pixels.transpose(0, 3, 1, 2), requires_grad=True), encoder.patches.cut(jnp.asarray(pixels))


def close(ours, theirs, within=1e-5):
    theirs = np.asarray(theirs)
    assert np.abs(np.asarray(ours) - theirs).max() <= within * np.abs(theirs).max()


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_input_gradients_equal_those_of_transformers(name, tmp_path):
    kind, changes, size = CASES[name]
    model = save(torch_model(kind, changes), tmp_path)
    encoder = make(picture(size), pretrained=str(tmp_path))
    pixels, slots = draw(encoder)
    theirs = oracle(model, pixels)
    probe = np.random.default_rng(1).normal(size=theirs.shape).astype(np.float32)
    (theirs * torch.tensor(probe)).sum().backward()

    def total(values):
        found = features(encoder, params, values)
        return (found.values * probe).sum(), found

    params = loaded(encoder)
    (_, ours), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(slots)
    close(ours.values, theirs.detach())
    close(encoder.patches.join(gradient), pixels.grad.numpy().transpose(0, 2, 3, 1))
    spec = encoder.token_spec()
    assert ours.values.shape == (2, spec.count, spec.width) and ours.mask.all() and ours.values.dtype == jnp.float32
    assert spec.lead == (2 if kind == "DeiTModel" else 1) and spec.count == spec.lead + np.prod(spec.grid)


def test_the_class_token_of_clip_is_what_its_pooler_gives(tmp_path):
    model = save(torch_model("CLIPVisionModel", {}), tmp_path)
    encoder = make(picture((8, 8)), pretrained=str(tmp_path))
    pixels, slots = draw(encoder)
    close(features(encoder, loaded(encoder), slots).values[:, 0], model(pixels).pooler_output.detach())


@pytest.mark.parametrize(
    ("architecture", "size", "options"),
    [
        ("vit", (4, 8), {}),
        ("deit", (4, 4), {"freeze": (), "lora_rank": 2, "lora_targets": ("query", "out", "widen", "narrow")}),
        ("dinov2", (4, 4), {}),
        ("clip_vision_model", (4, 4), {}),
    ],
)
def test_an_exported_folder_gives_the_same_in_transformers_and_here(architecture, size, options, tmp_path):
    made = {"architecture": architecture, "patch_size": 2, "hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 16}
    encoder = make(picture(size), **{**made, **options, "freeze": "none"})
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape) * 0.2, x.dtype), init(encoder))
    pretrained.export(tmp_path / "out", params["backbone"], encoder)
    model = transformers.AutoModel.from_pretrained(tmp_path / "out")
    pixels, slots = draw(encoder)
    ours = features(encoder, params, slots)
    out = model(pixels).last_hidden_state
    close(ours.values, (model.post_layernorm(out) if architecture == "clip_vision_model" else out).detach())
    again = make(picture(size), pretrained=str(tmp_path / "out"))
    close(features(again, loaded(again), slots).values, ours.values, within=1e-5 if options else 0)
    assert again.architecture() == encoder.architecture() == json.loads((tmp_path / "out" / "config.json").read_text())


@functools.cache
def scratch(**options):
    """An encoder of random weights and the same picture for all."""
    encoder = make(picture((4, 6)), patch_size=2, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=16, **options)
    return encoder, init(encoder), draw(encoder)[1]


def test_a_masked_patch_has_no_influence_even_as_nan():
    encoder, params, values = scratch()
    mask = jnp.ones(values.shape[:-1], bool).at[0, 2].set(False).at[1].set(False)

    def total(values):
        found = features(encoder, params, values, mask)
        return jnp.sin(found.values).sum(), found

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, found), gradient = run(values)
    (_, spoiled), _ = run(values.at[0, 2].set(jnp.nan).at[1].set(jnp.inf))
    np.testing.assert_array_equal(found.values, spoiled.values)
    np.testing.assert_array_equal(found.mask, jnp.concatenate([mask.any(-1, keepdims=True), mask], -1))
    assert np.isfinite(gradient).all() and not gradient[0, 2].any() and not gradient[1].any() and gradient[0, 3].any()
    assert not found.values[1].any() and not found.values[0, 3].any()  # what is absent has no token, a masked patch neither


def test_the_model_side_of_the_encoder():
    """`encode` is one linear map on `features`; the protocol is met; members run side by side."""
    encoder, params, values = scratch()
    protocol: Any = base.Pretrained
    assert isinstance(encoder, protocol) and set(params) == {"backbone", "inward"}
    assert set(params["backbone"]) == {"embeddings", "segment_0", "final"}
    slots = Slots(values, jnp.ones(values.shape[:-1], bool))

    @jax.jit
    def run(p):
        tokens = encoder.apply({"params": p}, slots, deterministic=True, method="encode")
        found = features(encoder, p, values)
        return tokens.values, found.values @ p["inward"]["kernel"] + p["inward"]["bias"]

    tokens, expected = run(params)
    np.testing.assert_allclose(tokens, expected, atol=1e-5)
    members = [params, init(encoder, seed=1)]
    together = jax.jit(jax.vmap(run))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *members))[0]
    for i, member in enumerate(members):
        np.testing.assert_allclose(together[i], run(member)[0], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-2


def test_bfloat16_is_close_to_float32():
    encoder, params, values = scratch()
    half = make(encoder.patches.feature, jnp.bfloat16, **{f.name: getattr(encoder.tuning, f.name) for f in dataclasses.fields(encoder.tuning)})
    found = features(half, params, values)
    assert found.values.dtype == jnp.float32
    np.testing.assert_allclose(found.values, features(encoder, params, values).values, atol=0.1)
    slots = Slots(values, jnp.ones(values.shape[:-1], bool))
    tokens = jax.eval_shape(lambda: half.apply({"params": params}, slots, deterministic=True, method="encode"))
    assert tokens.values.dtype == jnp.bfloat16


def test_what_moves_follows_from_the_names(tmp_path):
    """Freezing the first of two blocks cuts them into segments; the tuning's rules then find every leaf."""
    save(torch_model("ViTModel", {}), tmp_path)
    encoder = make(picture((8, 8)), pretrained=str(tmp_path), freeze=(0,), lora_rank=1, layer_decay=0.5)
    whole = make(picture((8, 8)), pretrained=str(tmp_path))
    assert encoder.runs == (range(0, 1), range(1, 2)) and whole.runs == (range(0, 2),)
    params = flatten_dict(loaded(encoder))
    moving = {path for path in params if tuning.moves(encoder.tuning, path, encoder.runs)}
    assert {path[1] for path in moving if path[0] == "backbone" and not path[-1].startswith("lora_")} == {"segment_1", "final"}
    assert {path[1:] for path in moving if path[-1].startswith("lora_")} == {
        (f"segment_{i}", name, leaf) for i in (0, 1) for name in ("query", "value") for leaf in ("lora_a", "lora_b")
    }
    slots = draw(encoder)[1]
    close(features(encoder, loaded(encoder), slots).values, features(whole, loaded(whole), slots).values, within=1e-6)


@pytest.mark.parametrize(
    ("kind", "preprocessor", "options", "expected"),
    [
        ("ViTModel", {}, {}, Expected((8, 8), 3, (0.5,) * 3, (0.5,) * 3)),
        ("Dinov2Model", {"size": {"shortest_edge": 9}, "crop_size": {"height": 6, "width": 4}, "image_mean": [0.1, 0.2, 0.3]}, {},
         Expected((6, 4), 3, (0.1, 0.2, 0.3), (0.229, 0.224, 0.225))),
        ("ViTModel", {"size": 12, "do_normalize": False}, {}, Expected((12, 12), 3, (0.0,) * 3, (1.0,) * 3)),
        ("DeiTModel", {"size": {"height": 4, "width": 8}}, {"image_size": 16}, Expected((16, 16), 3, (0.5,) * 3, (0.5,) * 3)),
        ("CLIPModel", {}, {}, Expected((8, 8), 3, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))),
    ],
)  # fmt: skip
def test_data_sets_are_told_how_the_pictures_were_prepared(kind, preprocessor, options, expected, tmp_path):
    torch_model(kind, {}).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    assert hf_vit.expected(hf_vit.Options(pretrained=str(tmp_path), **options)) == expected


def test_without_a_checkpoint_nothing_is_expected():
    assert hf_vit.expected(hf_vit.Options()) == Expected()


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        ((6, 8), {"patch_size": 4}, "patches of 4 pixels do not divide the 6x8 image; choose another patch_size"),
        ((8, 8), {"patch_size": 4, "hidden_size": 10, "num_heads": 3}, "3 attention heads do not divide a width of 10"),
        ((8, 8), {"image_size": 16}, "image_size=16 is given without a checkpoint"),
        ((8, 4), {"patch_size": 4, "architecture": "dinov2"}, "dinov2 has positions on a square, the image is 8x4"),
        ((8, 8), {"architecture": "dinov2", "intermediate_size": 200}, "multiple of hidden_size=192, not 200"),
        ((8, 8), {"pretrained": "x", "hidden_size": 3}, "hidden_size=3 is given beside a checkpoint"),
        ((8, 8), {"patch_size": 4, "attention": "cudnn"}, "attention=cudnn is for GPUs, in bfloat16"),
    ],
)
def test_options_that_do_not_fit_are_refused(size, options, message):
    with pytest.raises(UserError, match=message):
        init(make(picture(size), **options))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, r"config\.json: hidden_size: got 0"),
        ({"num_hidden_layers": "many"}, r"config\.json: num_hidden_layers: got 'many'"),
        ({"patch_size": [4, 2]}, "patch_size is 4x2"),
        ({"image_size": 2}, "image_size=2 is less than patch_size=4"),
        ({"hidden_act": "gleu"}, "hidden_act='gleu' is unknown; did you mean 'gelu'"),
        ({"num_attention_heads": 3}, "3 attention heads do not divide a width of 16"),
        ({"num_channels": 1}, "the checkpoint reads 1 channels, the image has 3"),
        ({"patch_size": 3}, "patches of 3 pixels do not divide the 8x8 image; choose an image_size"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes, message, tmp_path):
    torch_model("ViTModel", {}).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message):
        make(picture((8, 8)), pretrained=str(tmp_path))
