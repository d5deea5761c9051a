"""The smallest objects that the package trains: a shallow model that compiles in no time, random batches, and one tiny controlled study."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cimrl_jax.assembly import assemble
from cimrl_jax.config import Config, load
from cimrl_jax.data.source import ArraySource
from cimrl_jax.options import component, make_options
from cimrl_jax.train import loop
from cimrl_jax.train.feed import Feed
from cimrl_jax.train.mesh import make_mesh, sharding
from cimrl_jax.train.optimizer import make_optimizer
from cimrl_jax.train.step import init_member
from cimrl_jax.types import Batch, Head, Method, Model, Outputs, Slots, SlotSpec, Spec, Told, TrainState

LAYOUT = {m: SlotSpec(kind="slots", count=3, width=4, element=2) for m in ("left", "right")}
DIM = 5
RULE = "latest"
"""What selects, unless a test says otherwise."""

STUDY: dict[str, Any] = {
    "name": "tiny",
    "methods": ("erm",),
    "seeds": (0, 1),
    "data": {"name": "synthetic", "slots": 3, "width": 4, "train": 48, "validation": 16, "test": 24},
    "model": {
        "dim": 8,
        "heads": 2,
        "fusion_layers": 1,
        "causal_layers": 0,
        "m0": {"encoder": "identity", "depth": 0},
        "m1": {"encoder": "identity", "depth": 0},
    },
    "train": {"steps": 6, "batch_size": 8, "chunk": 2, "eval_every": 3, "learning_rate": 0.01, "compile_cache": False},
    "evaluate": {"bootstrap": 20, "batch_size": 24, "ceiling": False},
    "report": {"examples": 2},
}


def study(workdir: str | pathlib.Path = "unused", **changes: Any) -> Config:
    """The tiny study with some dotted keys changed (`__` stands for the dot)."""
    return load(STUDY, {"workdir": str(workdir), **{key.replace("__", "."): value for key, value in changes.items()}})


def method(name: str, **options: Any) -> Method:
    module = component("method", name)
    return module.build(make_options(module.Options, options, f"method.{name}"))


def shallow(num_classes: int, layout: Mapping[str, SlotSpec] = LAYOUT) -> Model:
    """A code is tanh of a linear map of the mean valid slot, the shared code the mean of all, every head is linear. Slots are scaled inputs."""
    names = sorted(layout)

    def init(key):
        keys = iter(jax.random.split(key, 3 * len(names) + 2))

        def draw(*shape):
            return jax.random.normal(next(keys), shape) * 0.5

        return {
            "inward": {m: draw(layout[m].width, DIM) for m in names},
            "heads": {part: draw(DIM, num_classes) for part in (*names, "shared")},
            "combined": draw(DIM * (len(names) + 1), num_classes),
            "bias": jnp.zeros(num_classes),
            "blank": {m: draw(layout[m].width) for m in names},
            "gain": {m: jnp.ones(layout[m].width) for m in names},
        }

    def embed(params, inputs, present):
        masks = {m: jnp.broadcast_to(present[m][..., None], inputs[m].shape[:-1]) for m in names}
        return {m: Slots(jnp.where(masks[m][..., None], inputs[m], 0.0) * params["gain"][m], masks[m]) for m in names}

    def encode(params, slots, key=None):
        codes = {}
        for m in names:
            valid = slots[m].mask[..., None]
            mean = jnp.sum(jnp.where(valid, slots[m].values, 0.0), axis=-2) / jnp.maximum(jnp.sum(valid, axis=-2), 1)
            codes[m] = jnp.tanh(mean @ params["inward"][m])
        return {**codes, "shared": sum(codes.values()) / len(names)}

    def decide(params, codes):
        heads = {part: codes[part] @ params["heads"][part] for part in (*names, "shared")}
        logits = features(codes) @ params["combined"] + params["bias"]
        return Outputs(logits=logits, heads={**heads, "combined": logits}, codes={**codes, "projection": codes["shared"]}, extras={})

    def perturb(inputs, key):
        return {m: inputs[m] + 0.1 * jax.random.normal(jax.random.fold_in(key, i), inputs[m].shape) for i, m in enumerate(names)}

    def nothing(*arguments):
        return {}

    def features(codes):
        return jnp.concatenate([codes[part] for part in (*names, "shared")], axis=-1)

    head = Head(
        features,
        get=lambda params: (params["combined"], params["bias"]),
        put=lambda params, kernel, bias: {**params, "combined": kernel, "bias": bias},
    )
    return Model(init, embed, encode, decide, perturb, nothing, lambda params, values: dict(values), layout, head)


def source(n: int = 24, *, classes: int = 2, seed: int = 0, layout: Mapping[str, SlotSpec] = LAYOUT) -> ArraySource:
    """Random slots whose first number leans towards the label, a group for each label and a random attribute, every second "right" row absent."""
    rng = np.random.default_rng(seed)
    label = (np.arange(n) % classes).astype(np.int32)
    inputs = {m: rng.normal(size=(n, spec.count, spec.width)).astype(np.float32) for m, spec in sorted(layout.items())}
    for values in inputs.values():
        values[..., 0] += label[:, None]
    group = (2 * label + rng.integers(0, 2, n)).astype(np.int32)
    return ArraySource(inputs=inputs, label=label, group=group, present={"right": np.arange(n) % 4 > 0})


def batch(own: ArraySource | None = None, rows: Any = slice(8), **changes: Any) -> Batch:
    """Some rows of a source as a batch of weight 1."""
    own = own or source()
    index = np.arange(len(own))[rows]
    records = {part: {m: jnp.asarray(column) for m, column in columns.items()} for part, columns in own.load(index).items()}
    fields = {"label": own.label[index], "group": own.group[index], "index": index.astype(np.int32), "weight": np.ones(len(index), np.float32)}
    columns: dict[str, Any] = {name: jnp.asarray(value) for name, value in (fields | changes).items()}
    return Batch(**records, **columns)


def spec(own: ArraySource, *, classes: int = 2, steps: int = 10, layout: Mapping[str, SlotSpec] = LAYOUT) -> Spec:
    return Spec(
        num_classes=classes,
        num_groups=2 * classes,
        num_examples=len(own),
        steps=steps,
        slots=layout,
        dim=DIM,
        class_counts=tuple(np.bincount(own.label, minlength=classes).tolist()),
        group_counts=tuple(np.bincount(own.group, minlength=2 * classes).tolist()),
        group_attribute=(0, 1) * classes,
        init_model=shallow(classes, layout).init,
    )


def program(record: Method, own: ArraySource | None = None, *, classes: int = 2, steps: int = 10, seeds: tuple[int, ...] = (0, 1), **changes: Any):
    """The method on the shallow model."""
    own = own or source(classes=classes)
    hyper = {**record.hyper, "learning_rate": 0.05, "weight_decay": 1e-3}
    fields: dict[str, Any] = {
        "name": "shallow",
        "method": record,
        "model": shallow(classes),
        "spec": spec(own, classes=classes, steps=steps),
        "optimizer": functools.partial(make_optimizer, warmup=0.1, schedule="cosine", clip_norm=1.0),
        "source": own,
        "seeds": seeds,
        "hyper": (hyper,) * len(seeds),
        "mesh": make_mesh(members=len(seeds), batch_size=4),
        "batch_size": 4,
        "chunk": 3,
        "augment": False,
        "resident": "auto",
    }
    return loop.Program(**(fields | changes))


def assembled(name: str, **changes: Any) -> loop.Program:
    """The method on the tiny study's data and model."""
    return assemble(study(methods=(name,), **changes)).programs[0]


def members(own: loop.Program) -> TrainState:
    """All members before the first step."""
    states = [
        init_member(seed, hyper, model=own.model, method=own.method, spec=own.spec, optimizer=own.stage_optimizer(0))
        for seed, hyper in zip(own.seeds, own.hyper, strict=True)
    ]
    return jax.device_put(jax.tree.map(lambda *parts: jnp.stack(parts), *states), sharding(own.mesh, "member"))


def feed(own: loop.Program) -> Feed:
    """Feeds the first stage."""
    found, states = own.feed(), jax.tree.map(np.asarray, members(own).method)
    found.enter(own.method.stages[0].draw, [jax.tree.map(lambda x, i=i: x[i], states) for i in range(own.members)], own.hyper)
    return found


@dataclasses.dataclass
class Quiet:
    """A progress bar that shows nothing and calls `watch(steps done)`."""

    watch: Any = None

    def update(self, *, completed: int, **figures: float | None) -> None:
        if self.watch is not None:
            self.watch(completed)


def unscored(states: TrainState, step: int) -> tuple[dict[str, np.ndarray], list[dict[str, float | None]]]:
    """A validation that costs nothing and prefers the last step."""
    members = len(states.step)
    return {RULE: np.full(members, float(step))}, [{} for _ in range(members)]


def reader(own: loop.Program) -> Any:
    """What a stage is told of the training split, which here is the validation split too."""

    def read(states: TrainState, split: str) -> Told:
        batch_of = batch(own.source, slice(None))  # type: ignore[arg-type]

        def one(params: Any, state: Any) -> tuple[Any, Any, Any]:
            slots = own.model.embed(params["model"], batch_of.inputs, batch_of.present)
            codes = own.model.encode(params["model"], slots)
            inferred = own.method.infer(state, {}, own.model, params, slots) if own.method.infer else {}
            out = own.model.decide(params["model"], codes).logits
            columns = [inferred[m] for m in sorted(inferred)]
            return out, own.model.head.features(codes), jnp.stack(columns, 1) if columns else jnp.zeros((len(out), 0, out.shape[-1]))

        logits, features, inferred = jax.jit(jax.vmap(one))(states.params, states.method)
        known = own.method.needs_groups if split == "train" else own.method.needs_validation_groups
        group = batch_of.group if known else jnp.full_like(batch_of.group, -1)
        return Told(logits, features if split == "validation" else features[..., :0], batch_of.label, group, inferred)

    return read


def told(logits: Any, label: Any, *, features: Any = None, group: Any = None, inferred: Any = None) -> Told:
    """What a stage is told; by default neither features nor groups."""
    n, c = np.shape(logits)
    features = np.zeros((n, 0), np.float32) if features is None else features
    group = np.full(n, -1) if group is None else group
    inferred = np.zeros((n, 0, c), np.float32) if inferred is None else inferred
    return Told(*(jnp.asarray(x) for x in (logits, features, label, group, inferred)))


def plan(own: loop.Program, *, eval_every: int = 0, checkpoint_every: int = 0, score: Any = unscored) -> loop.Plan:
    return loop.Plan(eval_every, checkpoint_every, (RULE,), score, reader(own))


def train(own: loop.Program, folder: pathlib.Path, *, when: Mapping[str, Any] | None = None, watch: Any = None) -> loop.Trained:
    """Trains in `folder` (checkpoints and metrics.jsonl); `when` are `plan`'s keywords."""
    return loop.train(own, plan(own, **(when or {})), folder / "checkpoints" / own.name, folder / "metrics.jsonl", Quiet(watch))


def arrays(tree: Any) -> list[np.ndarray]:
    """The leaves on the host, keys as their bits."""
    return [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x) for x in jax.tree.leaves(tree)]


def assert_equal(a: Any, b: Any) -> None:
    """Bit for bit (a NaN equals a NaN)."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_array_equal(x, y)


def assert_close(a: Any, b: Any, *, rtol: float, atol: float) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def taught(state: Any) -> Any:
    """Which numbers of the parameters received a gradient that is more than rounding.

    A key's bias, say, has none in exact arithmetic; Adam makes steps of full size out of what rounding leaves of it, to no effect on any output.
    """
    second = optax.tree_utils.tree_get(state.opt_state, "nu")
    typical = jnp.sqrt(1e-3 * jnp.max(jnp.asarray(state.step)))
    return jax.tree.map(lambda x: np.asarray(jnp.sqrt(x) > 1e-5 * typical), second)


def assert_alike(own: loop.Program, a: Any, b: Any, *, rtol: float, atol: float) -> None:
    """Two train states of a program, by what their models and methods say; their parameters may round differently where it does not show."""
    said = [reader(own)(state, "validation") for state in (a, b)]
    assert_close([(own.logits, own.features) for own in said[:1]], [(own.logits, own.features) for own in said[1:]], rtol=rtol, atol=atol)
    assert_close((a.method, a.step), (b.method, b.step), rtol=rtol, atol=atol)


def assert_trained_alike(a: Any, b: Any, *, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    """Two train states whose programs may round differently."""
    kept = taught(a)
    assert np.mean([x.mean() for x in arrays(kept)]) > 0.5
    states = [(jax.tree.map(lambda x, k: np.where(k, x, 0), state.params, kept), state.method, state.step) for state in (a, b)]
    assert_close(*states, rtol=rtol, atol=atol)
