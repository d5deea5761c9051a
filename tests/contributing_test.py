"""The examples in CONTRIBUTING.md are true: each file that it shows is put where it says, and works."""

from __future__ import annotations

import importlib
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.errors import UserError
from cimrl_jax.options import make_options
from cimrl_jax.types import Batch, Feature, Method, Outputs, SlotSpec

TEXT = (pathlib.Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"`cimrl_jax/([\w/]+)\.py`, used by.*?```python\n(.*?)```", TEXT, re.DOTALL))


@pytest.fixture
def example(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(name: str):
        (tmp_path / f"example_{pathlib.Path(name).name}.py").write_text(EXAMPLES[name])
        return importlib.import_module(f"example_{pathlib.Path(name).name}")

    yield load
    for name in [name for name in sys.modules if name.startswith("example_")]:
        del sys.modules[name]


def test_three_examples_are_shown():
    assert list(EXAMPLES) == ["methods/focal", "nn/encoders/frames", "data/datasets/clinic"]


def test_the_method(example, monkeypatch):
    module = example("methods/focal")
    method = module.build(make_options(module.Options, {"power": "1"}, "method.focal"))
    assert isinstance(method, Method) and method.hyper == {"power": 1.0}
    logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
    monkeypatch.setattr(module.base, "forward", lambda *_: Outputs(logits=logits, heads={}, codes={}, extras={}))
    label, weight = jnp.array([0, 0, 1]), jnp.array([1.0, 1.0, 0.0])
    batch = Batch(inputs={}, present={}, label=label, group=label, index=label, weight=weight)
    loss = method.stages[0].loss
    assert loss is not None
    value, _ = loss({}, {"power": jnp.float32(1)}, None, {}, batch, jax.random.key(0))
    p = 1 / (1 + np.exp([-2.0, 1.0]))
    assert value == pytest.approx(np.mean((1 - p) * -np.log(p)), rel=1e-5)


def test_the_encoder(example):
    module = example("nn/encoders/frames")
    feature = Feature("spectrogram", (5, 3), "float32")
    encoder = module.build(module.Options(depth=1), feature=feature, dim=8, heads=2, mlp_ratio=2.0, dropout=0.0, dtype=jnp.float32)
    assert encoder.slot_spec() == SlotSpec(kind="spectrogram", count=5, width=3, element=1)

    def tokens(module, inputs, present):
        return module.encode(module.embed(inputs, present), deterministic=True)

    inputs, present = jnp.ones((2, 5, 3)), jnp.array([True, False])
    out, _ = encoder.init_with_output(jax.random.key(0), inputs, present, method=tokens)
    assert out.values.shape == (2, 5, 8)
    assert out.mask.tolist() == [[True] * 5, [False] * 5]
    assert encoder.regions(jnp.ones((2, 5, 3), bool)).tolist() == [[1.0] * 5] * 2
    with pytest.raises(UserError, match="frames"):
        module.build(module.Options(), feature=Feature("table", (3,), "float32"), dim=8, heads=2, mlp_ratio=2.0, dropout=0.0, dtype=jnp.float32)


def test_the_data_set(example, tmp_path):
    module = example("data/datasets/clinic")
    with pytest.raises(UserError, match=r"there is no .*train\.csv"):
        module.build(module.Options(), path=tmp_path)
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.csv").write_text("1,0,.1,.2,.3\n0,1,.4,.5,.6\n")
    dataset = module.build(module.Options(columns=2), path=tmp_path)
    source = dataset.split("train")
    assert source.label.tolist() == [1, 0]
    assert [dataset.group_names[group] for group in source.group] == ["ill, site A", "well, site B"]
    np.testing.assert_allclose(source.load(np.array([1]))["inputs"]["table"], [[0.4, 0.5]])
