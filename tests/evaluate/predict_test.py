"""Predictions of many members equal those of each alone, however the rows are batched, loaded and sharded."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.data.source import ArraySource
from cimrl_jax.evaluate import predict as prediction
from cimrl_jax.types import Head, Method, Model, Outputs, Slots

CLASSES, WIDTH = 3, 4


def make_model():
    """Two modalities, mean-pooled over what is present; counts its traces."""
    traces = []

    def init(key):
        keys = dict(zip(("left", "right"), jax.random.split(key), strict=True))
        return {name: jax.random.normal(one, (WIDTH, CLASSES)) for name, one in keys.items()}

    def embed(params, inputs, present):
        return {name: Slots(inputs[name], jnp.broadcast_to(present[name][:, None], inputs[name].shape[:2])) for name in params}

    def encode(params, slots, key=None):
        assert key is None  # evaluation: no dropout
        traces.append(len(traces))
        return {name: (part.values * part.mask[..., None]).sum(1) for name, part in slots.items()}

    def decide(params, codes):
        return Outputs(logits=jnp.tanh(sum(codes[name] @ params[name] for name in params)).astype(jnp.bfloat16), heads={}, codes=codes, extras={})

    def unused(*arguments):
        raise AssertionError("predictions need no views, regions or pictures")

    head = Head(features=lambda codes: jnp.concatenate([codes[name] for name in sorted(codes)], -1), get=unused, put=unused)
    return Model(init=init, embed=embed, encode=encode, decide=decide, perturb=unused, regions=unused, render=unused, slots={}, head=head), traces


def make_source(n, seed=0):
    generator = np.random.default_rng(seed)
    inputs = {name: generator.normal(size=(n, 2, WIDTH)).astype(np.float32) for name in ("left", "right")}
    return ArraySource(inputs=inputs, label=np.zeros(n, np.int32), group=np.zeros(n, np.int32), present={"right": generator.random(n) < 0.5})


@dataclasses.dataclass(frozen=True)
class Streamed:
    """The same rows, to be loaded on demand."""

    whole: ArraySource
    regions: None = None
    arrays: None = None

    @property
    def label(self):
        return self.whole.label

    @property
    def group(self):
        return self.whole.group

    def __len__(self):
        return len(self.whole)

    def load(self, rows):
        return self.whole.load(rows)


def by_hand(params, source, member):
    codes = {name: (source.inputs[name] * source.present[name][:, None, None]).sum(1) for name in params}
    return np.tanh(sum(codes[name] @ np.asarray(params[name][member]) for name in params))


def members(model, count=3):
    return jax.vmap(model.init)(jax.random.split(jax.random.key(0), count))


def predict(model, params, source, **options):
    return prediction.make_predict(model, **options)(prediction.Members({"model": params}, (), {}), source).logits


@pytest.mark.parametrize("batch_size", [1, 4, 11, 100])
@pytest.mark.parametrize("streamed", [False, True])
def test_logits_equal_the_model_by_hand(batch_size, streamed):
    model, _ = make_model()
    params, source = members(model), make_source(11)
    logits = predict(model, params, Streamed(source) if streamed else source, batch_size=batch_size)
    assert logits.shape == (3, 11, CLASSES) and logits.dtype == np.float32
    for member in range(3):
        np.testing.assert_allclose(logits[member], by_hand(params, source, member), atol=0.01)  # the model decides in bfloat16


def test_a_vmapped_member_equals_its_solo_run():
    model, _ = make_model()
    params, source = members(model), make_source(11)
    together = predict(model, params, source, batch_size=4)
    for member in range(3):
        alone = predict(model, jax.tree.map(lambda leaf: leaf[member : member + 1], params), source, batch_size=4)  # noqa: B023
        np.testing.assert_allclose(together[member], alone[0], atol=0.01)


def test_one_trace_serves_all_splits_and_ways_of_loading():
    model, traces = make_model()
    run = prediction.make_predict(model, batch_size=4)
    for source in (make_source(11), make_source(3), make_source(8), Streamed(make_source(9))):
        for method in ({}, {"more": jnp.zeros((3, 2))}):  # of several methods, too
            run(prediction.Members({"model": members(model), "method": method}, (), {}), source)
    assert len(traces) == 1


def test_rows_loaded_on_demand_come_in_order_and_nothing_else_is_transferred():
    model, _ = make_model()
    source, params = make_source(50), members(model)
    with jax.transfer_guard("disallow"):
        resident = predict(model, params, source, batch_size=3)
        loaded = predict(model, params, source, batch_size=3, resident=False)
    np.testing.assert_array_equal(resident, loaded)


def test_what_an_absent_modality_holds_does_not_matter():
    model, _ = make_model()
    source, params = make_source(11), members(model)
    garbage = {**source.inputs, "right": np.where(source.present["right"][:, None, None], source.inputs["right"], 7.0).astype(np.float32)}
    np.testing.assert_array_equal(
        predict(model, params, source, batch_size=4),
        predict(model, params, dataclasses.replace(source, inputs=garbage), batch_size=4),
    )


def test_features_are_given_where_asked_for_and_a_methods_own_prediction_replaces_the_models():
    model, _ = make_model()
    source, own = make_source(11), prediction.Members({"model": members(model)}, {"shift": jnp.arange(3.0)}, {"scale": jnp.full(3, 2.0)})

    def twice(state, hyper, model, params, slots, codes):
        return hyper["scale"] * model.decide(params["model"], codes).logits.astype(jnp.float32) + state["shift"]

    method = Method(init=None, stages=(), hyper={}, explain=None, predict=twice)  # type: ignore[arg-type]
    plain = prediction.make_predict(model, batch_size=4)(own, source)
    said = prediction.make_predict(model, method, batch_size=4, features=True)(own, source)
    np.testing.assert_allclose(said.logits, 2 * plain.logits + np.arange(3.0)[:, None, None], rtol=1e-6)
    assert plain.features.shape == (3, 11, 0) and said.features.shape == (3, 11, 2 * WIDTH)
    for member in range(3):
        codes = [(source.inputs[m] * source.present[m][:, None, None]).sum(1) for m in ("left", "right")]
        np.testing.assert_allclose(said.features[member], np.concatenate(codes, 1), rtol=1e-5)


def test_what_a_method_infers_is_told_for_every_modality_by_name():
    model, _ = make_model()
    source, own = make_source(11), prediction.Members({"model": members(model), "method": {"by": jnp.arange(1.0, 4.0)}}, {}, {})

    def infer(state, hyper, model, params, slots):
        return {m: params["method"]["by"] * jnp.where(s.mask[..., None], s.values, 0.0).sum(1)[:, :2] for m, s in reversed(slots.items())}

    method = Method(init=None, stages=(), hyper={}, explain=None, infer=infer)  # type: ignore[arg-type]
    said = prediction.make_predict(model, method, batch_size=4)(own, source)
    for member in range(3):
        sums = [(source.inputs[m] * source.present[m][:, None, None]).sum(1)[:, :2] for m in ("left", "right")]
        np.testing.assert_allclose(said.inferred[member], (member + 1) * np.stack(sums, 1), rtol=1e-5)
    plain = prediction.make_predict(model, batch_size=4)(own, source)
    np.testing.assert_array_equal(said.logits, plain.logits)
    assert plain.inferred.shape[:3] == (3, 11, 0)


def test_every_mode_is_told_in_the_same_pass_where_asked_for_and_equals_the_prediction_it_would_be_alone():
    model, traces = make_model()
    source, own = make_source(11), prediction.Members({"model": members(model)}, {"shift": jnp.arange(3.0)}, {"scale": jnp.full(3, 2.0)})

    def moved(state, hyper, model, params, slots, codes):
        return model.decide(params["model"], codes).logits + state["shift"]

    def slotwise(state, hyper, model, params, slots, codes):
        return hyper["scale"] * slots["left"].values[:, 0, :CLASSES]

    modes = {"slotwise": slotwise, "moved": moved}
    method = Method(init=None, stages=(), hyper={}, explain=None, predict=moved, modes=modes)  # type: ignore[arg-type]
    said = prediction.make_predict(model, method, batch_size=4, modes=True)(own, source)
    assert len(traces) == 1 and list(said.modes) == list(modes)
    for name, mode in modes.items():
        alone = prediction.make_predict(model, method._replace(predict=mode, modes={}), batch_size=4)(own, source)
        np.testing.assert_array_equal(said.modes[name], alone.logits)
        assert said.modes[name].dtype == np.float32 and alone.modes == {}
    np.testing.assert_array_equal(said.logits, said.modes["moved"])
    assert prediction.make_predict(model, method, batch_size=4)(own, source).modes == {}


def test_an_empty_source_is_refused():
    model, _ = make_model()
    with pytest.raises(ValueError, match="no rows"):
        predict(model, members(model), make_source(0))


ON_FOUR_DEVICES = """
import sys
sys.path.insert(0, sys.argv[1])
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import predict_test as here
from cimrl_jax.evaluate.predict import Members, make_predict

assert jax.device_count() == 4
mesh = jax.make_mesh((2, 2), ("member", "data"), axis_types=(AxisType.Auto,) * 2)
model, _ = here.make_model()
params, source = here.members(model, 2), here.make_source(11)
alone = make_predict(model, batch_size=4)(Members({"model": params}, (), {}), source).logits
spread = jax.device_put(params, NamedSharding(mesh, PartitionSpec("member")))
predict = make_predict(model, batch_size=3, sharding=NamedSharding(mesh, PartitionSpec("data")))
for way in (source, here.Streamed(source)):
    np.testing.assert_allclose(predict(Members({"model": spread}, (), {}), way).logits, alone, atol=0.01)
"""


def test_many_devices_equal_one():
    folder = os.path.dirname(os.path.abspath(__file__))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ran = subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES, folder], env=environment, cwd=os.path.dirname(os.path.dirname(folder)), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
