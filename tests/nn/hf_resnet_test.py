"""ResNets against `transformers` with torch: the same outputs and the same gradients by the pixels, whatever the architecture and the names."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.errors import UserError
from cimrl_jax.nn import finetune, pretrained, tensor_files, tuning
from cimrl_jax.nn.encoders import base, hf_resnet
from cimrl_jax.types import Expected, Feature, Slots

torch = pytest.importorskip("torch", reason="torch is the oracle (extra: parity)")
transformers = pytest.importorskip("transformers", reason="transformers is the oracle (extra: parity)")

FEATURE = Feature("image", (32, 16, 3), "uint8", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.5))
SMALL = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1]}
CONFIGS = {
    "basic": {**SMALL, "layer_type": "basic"},
    "basic, first stage downsampled": {**SMALL, "layer_type": "basic", "downsample_in_first_stage": True},
    "bottleneck": {**SMALL, "layer_type": "bottleneck"},
    "bottleneck, downsampled in its 1x1": {**SMALL, "layer_type": "bottleneck", "downsample_in_bottleneck": True},
    "one layer": {**SMALL, "hidden_sizes": [8], "depths": [1], "layer_type": "bottleneck"},
    "three stages, gelu": {"embedding_size": 4, "hidden_sizes": [8, 8, 12], "depths": [1, 2, 1], "layer_type": "bottleneck", "hidden_act": "gelu"},
}
TORCHVISION = ("basic", "bottleneck")
SHARED = {"dim": 6, "heads": 2, "mlp_ratio": 2.0, "dropout": 0.0, "dtype": jnp.float32}


@functools.cache
def oracle(name: str):
    """A model whose batch norms have seen something."""
    torch.manual_seed(0)
    model = transformers.ResNetModel(transformers.ResNetConfig(**CONFIGS[name])).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)
            module.running_mean.normal_(0, 0.3)  # type: ignore[union-attr,operator]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr,operator]
    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)
    return model, folder


def build(folder: str, feature: Feature = FEATURE, **options):
    return hf_resnet.build(hf_resnet.Options(pretrained=folder, **options), feature=feature, **SHARED)


def load(encoder, feature: Feature = FEATURE):
    start = finetune.start(encoder, feature)
    return jax.tree.map(jnp.asarray, {"params": finetune.merge(start.moves, start.stays)})


def features(encoder: Any, params, slots) -> Slots:
    return encoder.apply(params, slots, deterministic=True, method="features")


def draw(encoder, batch: int = 2, seed: int = 0):
    spec = encoder.slot_spec()
    values = np.random.default_rng(seed).normal(size=(batch, spec.count, spec.width))
    return Slots(jnp.asarray(values, jnp.float32), jnp.ones((batch, spec.count), bool))


def picture(slots, side: int, feature: Feature = FEATURE):
    """Slots as torch's pixels `[b, c, h, w]`, put together by hand."""
    height, width, channels = feature.shape
    pixels = np.zeros((len(slots), height, width, channels), np.float32)
    for n in range(slots.shape[1]):
        row, column = divmod(n, width // side)
        at = np.s_[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
        pixels[at] = np.asarray(slots[:, n]).reshape(-1, side, side, channels)
    return torch.tensor(pixels.transpose(0, 3, 1, 2), requires_grad=True)


def close(ours, theirs, tolerance: float = 1e-5):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max() and np.abs(theirs).max() > 1e-3


def both(model, encoder, params, side: int = 16):
    """Outputs as `[b, tokens, width]` and gradients as pictures of a random functional of them, ours and torch's."""
    slots = draw(encoder)
    weights = np.random.default_rng(1).normal(size=(2, encoder.token_spec().count, encoder.token_spec().width)).astype(np.float32)

    @jax.jit
    def run(params, values):
        found, pull = jax.vjp(lambda values: features(encoder, params, Slots(values, slots.mask)).values, values)
        return found, pull(jnp.asarray(weights))[0]

    ours, gradient = run(params, slots.values)
    pixels = picture(slots.values, side)
    theirs = model(pixels).last_hidden_state.flatten(2).transpose(1, 2)
    (theirs * torch.tensor(weights)).sum().backward()
    return ours, theirs.detach(), picture(gradient, side).detach(), pixels.grad


def torchvision_names(model):
    """A state dict as torchvision would name it."""
    found = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "embedder":
            found[f"{'conv1' if parts[2] == 'convolution' else 'bn1'}.{parts[3]}"] = value
            continue
        stage, layer, leaf = int(parts[2]) + 1, parts[4], parts[-1]
        if parts[5] == "shortcut":
            own = f"downsample.{int(parts[6] == 'normalization')}"
        else:
            own = f"{'conv' if parts[7] == 'convolution' else 'bn'}{int(parts[6]) + 1}"
        found[f"layer{stage}.{layer}.{own}.{leaf}"] = value
    return found | {"fc.weight": torch.zeros(3, 8), "fc.bias": torch.zeros(3)}


def write(folder, tensors):
    tensor_files.write(folder / "model.safetensors", {name: value.numpy() for name, value in tensors.items()})


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_and_pixel_gradients_are_those_of_transformers(name):
    model, folder = oracle(name)
    encoder = build(folder)
    assert isinstance(encoder, base.Pretrained) and encoder.slot_spec().grid == (2, 1)
    ours, theirs, gradient, expected = both(model, encoder, load(encoder))
    assert ours.shape == (2, encoder.token_spec().count, encoder.token_spec().width)
    close(ours, theirs)
    close(gradient, expected)


@pytest.mark.parametrize("config", [None, {"model_type": "resnet-torchvision"}, {"architecture": "resnet18"}])
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_names_give_the_same_numbers(tmp_path, name, config):
    model, folder = oracle(name)
    write(tmp_path, torchvision_names(model))
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    encoder, same = build(str(tmp_path)), build(folder)
    assert pretrained.model_type(str(tmp_path)) == "resnet" and encoder.of == same.of
    jax.tree.map(np.testing.assert_array_equal, load(encoder), load(same))
    checkpoint = pretrained.open_checkpoint(str(tmp_path))
    assert pretrained.unused(checkpoint, encoder.tensors()) == ("fc.bias", "fc.weight")


@pytest.mark.parametrize("name", ["basic, first stage downsampled", "bottleneck"])
def test_an_export_is_what_transformers_loads_and_comes_back_bit_for_bit(tmp_path, name):
    model, folder = oracle(name)
    encoder = build(folder)
    rng = np.random.default_rng(2)  # as if it had been trained
    params = jax.tree.map(lambda leaf: leaf * jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32), load(encoder))
    pretrained.export(tmp_path / "out", params["params"]["backbone"], encoder)
    loaded, told = transformers.ResNetModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    ours, theirs, gradient, expected = both(loaded.eval(), encoder, params)
    close(ours, theirs)
    close(gradient, expected)
    again = build(str(tmp_path / "out"))
    assert again.of == encoder.of
    jax.tree.map(np.testing.assert_array_equal, load(again), params)


def test_a_masked_patch_is_the_mean_colour_even_as_nan_and_an_absent_picture_is_masked():
    model, folder = oracle("basic")
    encoder = build(folder, patch=8)
    params, slots = load(encoder), draw(encoder)
    mask = slots.mask.at[0, 3].set(False).at[1].set(False)
    spoiled = Slots(slots.values.at[0, 3].set(jnp.nan).at[1].set(jnp.nan), mask)

    @jax.jit
    def run(values):
        found, pull = jax.vjp(lambda own: features(encoder, params, Slots(own, mask)).values, values)
        return found, pull(jnp.ones_like(found))[0]

    tokens, gradient = run(spoiled.values)
    theirs = model(picture(slots.values.at[0, 3].set(0), 8)).last_hidden_state.flatten(2).transpose(1, 2).detach()
    close(tokens[0], theirs[0])
    valid = jax.eval_shape(lambda: features(encoder, params, spoiled).mask).shape
    np.testing.assert_array_equal(jax.jit(lambda: features(encoder, params, spoiled).mask)(), np.broadcast_to([[True], [False]], valid))
    assert np.isfinite(gradient).all() and not gradient[0, 3].any() and not gradient[1].any() and gradient[0, 2].any()
    assert not tokens[1].any()


def test_members_are_vmapped_and_the_second_derivative_is_that_of_the_first():
    _, folder = oracle("one layer")
    encoder = build(folder)
    slots = draw(encoder, 1)
    members = [load(encoder), jax.tree.map(lambda leaf: leaf * 0.9, load(encoder))]

    def slope(params, values):
        return jax.grad(lambda v: (features(encoder, params, Slots(v, slots.mask)).values ** 2).sum())(values)

    def steepness(params):
        return (slope(params, slots.values) ** 2).sum()

    twice = jax.grad(steepness)
    together = jax.jit(jax.vmap(twice))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *members))
    solo, steep = jax.jit(twice), jax.jit(steepness)
    for i, member in enumerate(members):
        alone = solo(member)
        jax.tree.map(lambda many, one, i=i: np.testing.assert_allclose(many[i], one, rtol=2e-3, atol=1e-4 * np.abs(one).max()), together, alone)
    # Along the parameters themselves, against differences of the first derivative, in the middle of two steps.
    step = 1e-3
    up, down = (jax.tree.map(lambda leaf, s=s: leaf * (1 + s), members[0]) for s in (step, -step))
    along = sum((g * p).sum() for g, p in zip(jax.tree.leaves(solo(members[0])), jax.tree.leaves(members[0]), strict=True))
    by_steps = (steep(up) - steep(down)) / (2 * step)
    assert along == pytest.approx(float(by_steps), rel=0.02)


def test_remat_changes_nothing_and_bfloat16_little():
    _, folder = oracle("one layer")
    encoder = build(folder)
    params, slots = load(encoder), draw(encoder)

    def run(own):
        def total(p):
            found = features(own, p, slots).values
            return (found**2).sum(), found

        (_, found), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
        return found, slope

    (plain, slope), (again, slope_again) = run(encoder), run(build(folder, remat=True))
    np.testing.assert_allclose(again, plain, rtol=1e-6, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max()), slope_again, slope)
    half = jax.jit(lambda: features(dataclasses.replace(encoder, dtype=jnp.bfloat16), params, slots).values)()
    assert half.dtype == jnp.float32
    close(half, plain, 0.05)
    assert np.abs(half - plain).max() > 1e-4


def test_freezing_and_decay_count_stages():
    _, folder = oracle("three stages, gelu")
    encoder = build(folder, freeze=(0,), layer_decay=0.5)
    start = finetune.start(encoder, FEATURE)
    assert set(start.stays["backbone"]) == {"embeddings", "segment_0"} and set(start.moves["backbone"]) == {"segment_1", "segment_2"}
    params = load(encoder)["params"]
    shares: dict[Any, Any] = flax.traverse_util.flatten_dict(finetune.rates(encoder, params))
    assert {path[1]: float(np.max(share)) for path, share in shares.items()} == {
        "embeddings": 0.125,
        "segment_0": 0.25,
        "segment_1": 0.5,
        "segment_2": 1.0,
    }
    leaves: dict[Any, Any] = flax.traverse_util.flatten_dict(params)
    for path, leaf in leaves.items():
        assert np.broadcast_shapes(shares[path].shape, leaf.shape) == leaf.shape
        assert tuning.moves(encoder.tuning, path, encoder.runs) == (path[1] not in ("embeddings", "segment_0"))


def test_without_a_checkpoint_sizes_are_options_and_the_patch_is_the_largest_that_divides():
    options = hf_resnet.Options(depth=(1, 1), hidden_sizes=(4, 8), embedding_size=4)
    encoder = hf_resnet.build(options, feature=dataclasses.replace(FEATURE, shape=(96, 64, 1), mean=(0.5,), std=(0.5,)), **SHARED)
    assert encoder.slot_spec().grid == (3, 2) and encoder.token_spec() == base.TokenSpec(12 * 8, 8, 0, (12, 8))
    assert hf_resnet.expected(options) == Expected()


@pytest.mark.parametrize(
    ("preprocessor", "expected"),
    [
        (None, Expected((224, 224), 3, hf_resnet.MEAN, hf_resnet.STD)),
        ({"size": 64, "image_mean": [0.5, 0.5, 0.5], "crop_size": None}, Expected((64, 64), 3, (0.5,) * 3, hf_resnet.STD)),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 32, "width": 48}}, Expected((32, 48), 3, hf_resnet.MEAN, hf_resnet.STD)),
        ({"size": {"shortest_edge": 40}, "do_normalize": False}, Expected((40, 40), 3, (0.0,) * 3, (1.0,) * 3)),
        ({"size": {"longest_edge": 40}}, "size"),
        ({"size": "large"}, "size"),
        ({"image_mean": [0.5, 0.5]}, "image_mean: has 2 values for 3 channels"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std: got"),
        ({"image_mean": "x"}, "image_mean"),
        ({"rescale_factor": 0.5}, "rescale_factor: .* expected 1/255"),
    ],
)
def test_pictures_are_prepared_as_the_checkpoint_says(tmp_path, preprocessor, expected):
    model, _ = oracle("basic")
    model.save_pretrained(tmp_path)
    if preprocessor is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    options = hf_resnet.Options(pretrained=str(tmp_path))
    if isinstance(expected, Expected):
        assert hf_resnet.expected(options) == expected
        assert hf_resnet.expected(dataclasses.replace(options, image_size=96)).size == (96, 96)
    else:
        with pytest.raises(UserError, match=rf"preprocessor_config\.json: .*{expected}"):
            hf_resnet.expected(options)


def test_timms_config_says_how_pictures_are_prepared_and_an_export_keeps_it(tmp_path):
    model, _ = oracle("basic")
    write(tmp_path, torchvision_names(model))
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "input_size": [3, 160, 160]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": own}))
    options, encoder = hf_resnet.Options(pretrained=str(tmp_path)), build(str(tmp_path))
    assert hf_resnet.expected(options) == Expected((160, 160), 3, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    pretrained.export(tmp_path / "out", load(encoder)["params"]["backbone"], encoder)
    assert hf_resnet.expected(hf_resnet.Options(pretrained=str(tmp_path / "out"))) == hf_resnet.expected(options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": [2]}, "config.json: 1 stages by their depths, 2 by hidden_sizes"),
        ({"depths": [2, 0]}, r"config.json: depths\[1\]: got 0"),
        ({"depths": "many"}, "config.json: depths"),
        ({"layer_type": "deep"}, "config.json: layer_type: got 'deep'"),
        ({"hidden_act": "swish9"}, "config.json: hidden_act: got 'swish9'"),
        ({"num_channels": 1}, "reads 1 channels, the image has 3"),
    ],
)
def test_a_config_that_cannot_be_is_named(tmp_path, change, message):
    model, _ = oracle("basic")
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        build(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.0.se.fc1.weight": (2, 2)}, "'layer1.0.se.fc1.weight' is of no plain ResNet"),
        ({"layer2.0.conv2.weight": None}, "'layer2.0.conv2.weight' is missing, expected a convolution"),
        ({"layer4.0.conv1.weight": (2, 2, 3, 3)}, "'layer3.0.conv2.weight' is missing, expected a convolution"),
        ({"conv1.weight": (8,)}, r"'conv1.weight' is \[8\], expected a convolution"),
    ],
)
def test_a_relative_of_the_resnet_is_refused(tmp_path, change, message):
    tensors = torchvision_names(oracle("basic")[0])
    for name, shape in change.items():
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = torch.ones(shape)
    write(tmp_path, tensors)
    with pytest.raises(UserError, match=message):
        build(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": 2}, "lora_rank=2 .* leave it out for a ResNet"),
        ({"attention": "cudnn"}, "attention=cudnn .* leave it out"),
        ({"depth": (1,)}, "depth=.* beside a checkpoint"),
        ({"freeze": (2,)}, "freeze names block 2, but there are 2"),
        ({"patch": 5}, "patch"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(UserError, match=message):
        build(oracle("basic")[1], **options)
