"""The laws of the house, for every method: whatever file lies in cimrl_jax/methods is found and put through all of them."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cimrl_jax
from cimrl_jax import assembly as assembling
from cimrl_jax import help as help_text
from cimrl_jax import options
from cimrl_jax.data import views
from cimrl_jax.errors import UserError
from cimrl_jax.methods import base
from cimrl_jax.nn.model import build_model
from cimrl_jax.train import loop
from cimrl_jax.train import step as fused
from cimrl_jax.train.optimizer import make_optimizer
from cimrl_jax.types import Batch, Feature, Method, Population, Prompts, Spec
from tests import tiny

METHODS = options.known("method")
ROOT = pathlib.Path(cimrl_jax.__file__).parent
STEPS, SEEDS = 11, (0, 1, 2)
CHANGES = {"seeds": SEEDS, "train__steps": STEPS, "train__chunk": 3, "train__learning_rate": 3e-3}
WHEN = {"eval_every": 5, "checkpoint_every": 6}


@pytest.fixture(scope="module", params=METHODS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def assembly():
    return assembling.assemble(tiny.study(methods=METHODS, **CHANGES))


class Straight(typing.NamedTuple):
    program: loop.Program
    trained: loop.Trained
    traces: dict[int, int]
    """How often a loss had been traced when that many steps were done."""
    lines: list[dict]
    folder: pathlib.Path


def watched(program: loop.Program) -> tuple[loop.Program, list[int]]:
    """The program, and a list that grows with every trace of a loss."""
    seen: list[int] = []

    def watch(loss):
        return loss and (lambda *arguments: seen.append(1) or loss(*arguments))

    stages = tuple(stage._replace(loss=watch(stage.loss)) for stage in program.method.stages)
    return dataclasses.replace(program, method=program.method._replace(stages=stages)), seen


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """Every method trained on four devices, in another process that runs while the other tests do."""
    folder = tmp_path_factory.mktemp("spread")
    command, environment = [sys.executable, "-c", ON_FOUR_DEVICES, str(folder)], {**os.environ, "JAX_NUM_CPU_DEVICES": "4"}
    with subprocess.Popen(command, env=environment, cwd=ROOT.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process, folder
        process.kill()


@pytest.fixture(scope="module")
def straight(assembly, name, spread, tmp_path_factory):
    """Three members, trained without a break in chunks of which some are shorter."""
    program = next(own for own in assembly.programs if own.name == name)
    program = dataclasses.replace(program, together=program.members)  # all at once, as on an accelerator
    folder, traces = tmp_path_factory.mktemp(name), {}
    counted, seen = watched(program)
    trained = tiny.train(counted, folder, when=WHEN, watch=lambda done: traces.update({done: len(seen)}))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return Straight(program, trained, traces, lines, folder)


# What a method is.


def test_it_is_a_record_whose_floats_are_all_traced(name):
    module = importlib.import_module(f"cimrl_jax.methods.{name}")
    defaults = module.Options()
    record = module.build(defaults)
    assert isinstance(record, Method) and record.stages
    traced = [field.name for field in dataclasses.fields(defaults) if not field.metadata.get("static")]
    assert dict(record.hyper) == {name: value for name in traced if isinstance(value := getattr(defaults, name), float)}


def test_every_option_is_documented_and_shown_by_help(name):
    module = importlib.import_module(f"cimrl_jax.methods.{name}")
    assert (module.__doc__ or "").strip() and (module.build.__doc__ or "").strip()
    shown = help_text.render(name).splitlines()
    for field in dataclasses.fields(module.Options):
        [at] = [i for i, line in enumerate(shown) if f"{line.strip()} ".startswith(f"--method.{name}.{field.name} ")]  # a long type stands below
        assert len(shown[at + 1].strip()) > 5 and not shown[at + 1].strip().startswith("--")


def test_data_without_groups_is_refused_where_they_are_needed_and_only_there(assembly, name):
    dataset = assembly.dataset
    nameless = {
        split: dataclasses.replace(source, group=np.where(np.arange(len(source)) == 3, -1, source.group).astype(np.int32))
        for split, source in dataset.splits.items()
    }
    given = tiny.study(methods=(name,)), dataclasses.replace(dataset, splits=nameless), assembly.model, name
    if tiny.method(name).needs_groups:
        with pytest.raises(UserError, match=rf"method '{name}' trains on group labels, but 1 of 48 rows of 'synthetic' \(train\) have none"):
            assembling.programs(*given)
    else:
        assert assembling.programs(*given)[0].spec.group_counts == ()


# Laws 1, 2, 3 and 5: whole trainings on the tiny study.


def assert_alike(program, a, b, *, tolerance):
    """What both say, and their parameters too, where the last optimiser can tell which of them were taught."""
    tiny.assert_alike(program, a, b, rtol=tolerance, atol=tolerance)
    if all(stage.trains == "all" for stage in program.method.stages):
        tiny.assert_trained_alike(a, b, rtol=tolerance, atol=tolerance)


def test_1_a_vmapped_member_equals_its_solo_run(straight, tmp_path):
    solo = dataclasses.replace(straight.program, seeds=SEEDS[2:], hyper=straight.program.hyper[2:])
    alone = tiny.train(solo, tmp_path, when=WHEN)
    assert_alike(solo, jax.tree.map(lambda x: x[2:], straight.trained.final), alone.final, tolerance=1e-5)


def test_members_differ_from_one_another_and_from_where_they_began(straight):
    for leaf, first in zip(tiny.arrays(straight.trained.final.params), tiny.arrays(tiny.members(straight.program).params), strict=True):
        if leaf.ndim > 2:  # kernels, with the axis of members
            assert np.abs(leaf[0] - leaf[1]).max() > 1e-3 and (leaf != first).any()


def test_2_killed_and_resumed_equals_straight_bit_for_bit(straight, tmp_path):
    shutil.copytree(straight.folder, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints" / straight.program.name
    shutil.rmtree(checkpoints / str(STEPS))  # what a kill after step 6 would leave, with lines of later steps
    assert loop.restore(straight.program, (tiny.RULE,), checkpoints)[0] == 6
    resumed = tiny.train(straight.program, tmp_path / "run", when=WHEN)
    tiny.assert_equal(resumed._replace(clock={}), straight.trained._replace(clock={}))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == straight.lines


ON_FOUR_DEVICES = """
import dataclasses, pathlib, sys
import jax, numpy as np
from tests import contract_test, tiny
from cimrl_jax import assembly as assembling

assert jax.device_count() == 4
folder = pathlib.Path(sys.argv[1])
changes = contract_test.CHANGES | {"seeds": (0, 1), "train__mesh_member": 2, "train__mesh_data": 2}
for program in assembling.assemble(tiny.study(methods=contract_test.METHODS, **changes)).programs:
    assert dict(program.mesh.shape) == {"member": 2, "data": 2} and program.together == 0
    final = tiny.train(program, folder, when=contract_test.WHEN).final
    assert len(jax.tree.leaves(final.params)[0].sharding.device_set) == 4
    np.savez(folder / program.name, *tiny.arrays(final))
columns, rows = tiny.feed(program)(0, 2)
streamed = tiny.feed(dataclasses.replace(program, resident="no"))(0, 2)
tiny.assert_equal(jax.tree.map(lambda x: x[:2], streamed), jax.tree.map(lambda x: np.asarray(x)[np.asarray(rows)][:2], columns))
assert len(streamed.label.sharding.device_set) == 4
"""


def test_3_many_devices_equal_one(straight, spread):
    process, folder = spread
    _, errors = process.communicate(timeout=1000)
    assert process.returncode == 0, errors
    expected = jax.tree.map(lambda x: x[:2], straight.trained.final)
    with np.load(folder / f"{straight.program.name}.npz") as found:
        state = jax.tree.unflatten(jax.tree.structure(expected), list(found.values()))
    assert_alike(straight.program, expected, state, tolerance=1e-4)


def test_5_one_trace_per_stage(straight):
    lengths = np.diff(sorted(straight.traces))
    assert len(set(lengths)) > 1  # the chunks were of different lengths
    begin = 0
    for end in straight.program.boundaries():
        inside = {count for done, count in straight.traces.items() if begin < done <= end}
        assert len(inside) == (begin < end)  # a stage without steps has nothing to trace
        begin = end


def test_every_figure_that_it_logs_is_finite(straight):
    figures = [line for line in straight.lines if "split" not in line]
    assert {line["step"] for line in figures} == set(straight.traces) - {0}
    assert all(np.isfinite(value) for line in figures for value in line.values() if not isinstance(value, str))
    assert {"loss", "accuracy", "gradient_norm"} <= set(figures[0])


# Laws 4, 6 and 7, on ten classes and three modalities of different kinds, some of which are absent.

FEATURES = {
    "image": Feature("image", (4, 4, 3), "uint8"),
    "sensor": Feature("slots", (3, 4), "float32"),
    "text": Feature("text", (4,), "int32", vocabulary=("", "?", "a", "b", "c", "d")),
}
ROWS, CLASSES, GROUPS = 12, 10, 20
PADDED = np.arange(ROWS) >= 9


def read(ids) -> dict[str, np.ndarray]:
    """Texts as raw inputs of every modality."""
    return {m: np.zeros((len(ids), *own.shape), own.dtype) for m, own in FEATURES.items()} | {"text": np.array(ids, np.int32)}


PROMPTS = Prompts("text", read(np.arange(CLASSES * 4).reshape(CLASSES, 4) % 6), read([[2, 3, 0, 0], [4, 0, 0, 0]]))


def wide_batch() -> Batch:
    """Nine rows of weight, three of padding; the sensor is absent from some, the text from others."""
    rng = np.random.default_rng(0)
    words = rng.integers(2, 6, (ROWS, 4)).astype(np.int32)
    words[:, 3] = 0
    label = np.arange(ROWS) % CLASSES
    fields = {
        "inputs": {
            "image": rng.integers(0, 256, (ROWS, 4, 4, 3)).astype(np.uint8),
            "sensor": rng.normal(size=(ROWS, 3, 4)).astype(np.float32),
            "text": words,
        },
        "present": {"image": np.ones(ROWS, bool), "sensor": np.arange(ROWS) % 4 > 0, "text": np.arange(ROWS) % 5 > 1},
        "label": label.astype(np.int32),
        "group": (2 * label + rng.integers(0, 2, ROWS)).astype(np.int32),
        "index": np.arange(ROWS, dtype=np.int32),
        "weight": np.where(PADDED, 0.0, rng.uniform(0.5, 1.5, ROWS)).astype(np.float32),
    }
    return Batch(**jax.tree.map(jnp.asarray, fields))


class Wide(typing.NamedTuple):
    method: Method
    steps: tuple
    """A jitted step for each stage."""
    init: typing.Callable
    """(permutation of the groups) -> the state before the first step."""
    traces: list[int]


@pytest.fixture(scope="module")
def wide_model():
    sizes = {"dim": 8, "dtype": "float32", "heads": 2, "mlp_ratio": 1.0, "dropout": 0.0, "fusion_layers": 1, "connect_every": 2, "causal_layers": 0}
    sections = {"image": {"patch": 2, "depth": 0}, "sensor": {"depth": 0}, "text": {"depth": 0}}
    return build_model(features=FEATURES, num_classes=CLASSES, modalities=sections, views=views.make_perturb, **sizes)


@pytest.fixture(scope="module")
def wide(name, wide_model):
    method, batch, seen = tiny.method(name), wide_batch(), []
    optimizer = make_optimizer(steps=40, warmup=0.1, schedule="constant", clip_norm=0.0)
    hyper = {name: jnp.float32(value) for name, value in {**method.hyper, "learning_rate": 3e-3, "weight_decay": 0.0}.items()}
    counts = np.bincount(batch.group, minlength=GROUPS)

    def init(order=None):
        ids = np.arange(GROUPS) if order is None else np.argsort(order)
        spec = Spec(
            num_classes=CLASSES,
            num_groups=GROUPS,
            num_examples=ROWS,
            steps=40,
            slots=wide_model.slots,
            class_counts=tuple(np.bincount(batch.label, minlength=CLASSES).tolist()),
            group_counts=tuple(counts[ids].tolist()) if method.needs_groups else (),
            group_attribute=tuple((ids % 2).tolist()) if method.needs_groups else (),
            prompts=PROMPTS if method.needs_attribute_names else None,
            init_model=wide_model.init,
            dim=8,
        )
        return fused.init_member(0, hyper, model=wide_model, method=method, spec=spec, optimizer=optimizer)

    def compiled(stage):
        step = fused.make_step(wide_model, stage, optimizer, augment=False)
        return jax.jit(lambda *arguments: seen.append(1) or step(*arguments))

    return Wide(method, tuple(compiled(stage) for stage in method.stages if stage.loss), init, seen)


def take(wide, state, batch, count=1):
    """That many steps of every stage on one batch; the metrics of the last."""
    metrics = {}
    for step in wide.steps:
        for _ in range(count):
            state, metrics = step(state, batch)
    return state, metrics


def with_padding(batch: Batch, junk: dict) -> Batch:
    """The batch with something else in the rows that weigh nothing."""

    def fill(old, new):
        return jnp.where(jnp.asarray(PADDED).reshape(-1, *[1] * (old.ndim - 1)), jnp.asarray(new, old.dtype), old)

    filled = {field: fill(getattr(batch, field), junk[field]) for field in ("label", "group", "index")}
    inputs = {m: fill(batch.inputs[m], junk[m]) for m in batch.inputs}
    return dataclasses.replace(batch, inputs=inputs, present={m: here | PADDED for m, here in batch.present.items()}, **filled)


def test_ten_classes_and_three_modalities_train_on_finite_gradients(wide):
    batch, state = wide_batch(), wide.init()
    once, _ = take(wide, state, batch)
    assert all(np.isfinite(x).all() for x in tiny.arrays(once))
    _, first = wide.steps[-1](state, batch)
    trained, _ = take(wide, state, batch, count=15)
    _, last = wide.steps[-1](dataclasses.replace(trained, step=state.step, method=state.method), batch)  # the same loss, of other parameters
    assert float(last["loss"]) < float(first["loss"]) - 0.01
    assert float(first["gradient_norm"]) > 1e-3


@pytest.mark.parametrize("absent", [*FEATURES])
def test_a_modality_that_the_whole_batch_lacks_leaves_all_finite(wide, absent):
    batch = wide_batch()
    lacking = dataclasses.replace(batch, present={**batch.present, absent: jnp.zeros(ROWS, bool)})
    state, metrics = take(wide, wide.init(), lacking, count=2)
    assert all(np.isfinite(x).all() for x in tiny.arrays((state, metrics)))
    other = dataclasses.replace(lacking, inputs={**batch.inputs, absent: jnp.zeros_like(batch.inputs[absent])})
    tiny.assert_equal(take(wide, wide.init(), other, count=2)[0], state)  # what an absent modality holds does not matter


@pytest.mark.parametrize("content", [1e4, np.nan, np.inf])
def test_4_rows_of_weight_0_change_nothing(wide, content):
    batch = wide_batch()
    junk = {"image": 255, "text": 5, "sensor": content, "label": 3, "group": 7, "index": 0}
    clean = {"image": 0, "text": 0, "sensor": 0.0, "label": 0, "group": 0, "index": 11}
    expected = take(wide, wide.init(), with_padding(batch, clean), count=2)
    tiny.assert_equal(take(wide, wide.init(), with_padding(batch, junk), count=2), expected)


def test_6_no_group_label_reaches_a_method_that_declares_none(wide):
    batch = wide_batch()
    poisoned = dataclasses.replace(batch, group=jnp.full(ROWS, 10**6, jnp.int32) - batch.group)
    before, after = (take(wide, wide.init(), own, count=2) for own in (batch, poisoned))
    if not wide.method.needs_groups:
        tiny.assert_equal(after, before)
    elif all(stage.loss is base.erm_loss for stage in wide.method.stages):  # groups are read by the draw alone
        assert drawn(wide, np.asarray(batch.group)) != drawn(wide, np.zeros(ROWS, np.int32))
    else:  # the poison is strong enough to be noticed
        assert any((x != y).any() for x, y in zip(tiny.arrays(before), tiny.arrays(after), strict=True))


def drawn(wide, group):
    state = wide.init()
    label, held = np.asarray(wide_batch().label), jax.tree.map(np.asarray, state.method)
    populations = [stage.draw(Population(0, label, group, held, state.hyper)) for stage in wide.method.stages if stage.draw]
    return [tuple(np.asarray(part).tolist() for part in own if part is not None) for own in populations]


def test_7_permuting_group_ids_changes_no_parameter(wide):
    batch, order = wide_batch(), np.random.default_rng(1).permutation(GROUPS).astype(np.int32)
    permuted = dataclasses.replace(batch, group=jnp.asarray(order)[batch.group])
    expected, first = take(wide, wide.init(), batch, count=3)
    found, second = take(wide, wide.init(order), permuted, count=3)
    tiny.assert_close(second, first, rtol=1e-4, atol=1e-6)
    tiny.assert_trained_alike(dataclasses.replace(expected, method=()), dataclasses.replace(found, method=()), rtol=1e-4)


def test_no_change_of_a_number_compiles_anew(wide):
    batch, state = wide_batch(), wide.init()
    take(wide, state, batch)
    before = len(wide.traces)
    for name, value in state.hyper.items():
        changed, metrics = take(wide, dataclasses.replace(state, hyper={**state.hyper, name: value * 1.3 + 0.01}), batch)
        assert np.isfinite(metrics["loss"])
        assert changed.hyper.keys() == state.hyper.keys()
    assert len(wide.traces) == before


def test_the_explanation_covers_every_valid_slot(wide, wide_model):
    batch, state = wide_batch(), wide.init()
    explain = jax.jit(lambda state, batch: wide.method.explain(state.method, state.hyper, wide_model, state.params, batch, jax.random.key(0)))
    told = explain(state, batch)
    slots = wide_model.embed(state.params["model"], batch.inputs, batch.present)
    assert {"evidence", "chosen"} <= set(told) <= {"evidence", "chosen", "edited", "effects", "gates", "quality"}
    for m, own in slots.items():
        mask = np.asarray(own.mask)
        for part in ("evidence", "chosen"):
            found = np.asarray(told[part][m])
            assert found.shape == mask.shape and np.isfinite(found).all() and (found >= 0).all() and not found[~mask].any()
        assert (np.asarray(told["chosen"][m]) <= 1).all()
        if "edited" in told:
            assert told["edited"][m].values.shape == own.values.shape and np.isfinite(told["edited"][m].values).all()


# Law 8.


def test_8_there_is_no_batch_norm(wide_model):
    for path in sorted(ROOT.rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text()))
        names = {node.attr if isinstance(node, ast.Attribute) else node.id for node in nodes if isinstance(node, ast.Attribute | ast.Name)}
        assert not {name for name in names if "BatchNorm" in name}, path
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(wide_model.init(jax.random.key(0)))]
    assert paths and not [path for path in paths if "batch_stats" in path or "BatchNorm" in path]
