"""How a step grows: operations and time with batch, tokens, modalities, members and classes, and what devices tell one another. One JSON line each.

Command: python benchmarks/scaling.py [growth] [devices] [--methods erm,cimrl] [--small] > benchmarks/results/scaling.jsonl

  growth    each axis by itself, doubled and doubled again from the middle of BASE: XLA's own count of the compiled step, and its time beside that of
            the base, in turns, so that whatever else the machine does falls on all alike. "exponent" is the slope of log cost over log size, of the
            last doubling: 1 grows with the size, 2 with its square.
  devices   fake devices on the CPU (a process of its own): the collectives in the compiled chunk of steps, each with its shape, bytes and where in
            the step it comes from, with the devices on "data", on "member" and on both. Nothing is timed: the devices are not real.

Modalities are random slots, read by one block each. `--small` is the same on sizes that mean nothing, in seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cimrl_jax.data import views
from cimrl_jax.data.source import ArraySource, class_counts, group_counts
from cimrl_jax.errors import UserError
from cimrl_jax.evaluate import efficiency
from cimrl_jax.nn.model import build_model
from cimrl_jax.options import component, make_options
from cimrl_jax.report.results import environment
from cimrl_jax.train import compiler, loop
from cimrl_jax.train import step as fused
from cimrl_jax.train.mesh import make_mesh, sharding
from cimrl_jax.train.optimizer import make_optimizer
from cimrl_jax.types import Feature

ROOT = pathlib.Path(__file__).parents[1]
METHODS = ("erm", "cimrl")
ROUNDS = 7
DEVICES = 4
WIDTH = 32
"""Numbers in a slot."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What grows."""

    batch: int = 64
    tokens: int = 16
    """Slots of each modality."""
    modalities: int = 2
    members: int = 1
    classes: int = 4
    dim: int = 48


BASE = Sizes()
SMALL = Sizes(batch=8, tokens=4, classes=2, dim=8)
AXES = ("batch", "tokens", "modalities", "members", "classes")


class Collective(NamedTuple):
    """One exchange between devices in a compiled program."""

    kind: str
    """all-reduce, all-gather, reduce-scatter, all-to-all, collective-permute or collective-broadcast."""
    shapes: tuple[str, ...]
    """What comes out on each device, as XLA writes it: f32[64,48]."""
    bytes: int
    source: str
    """Where in the traced program it comes from."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first result."""
        return tuple(int(size) for size in re.findall(r"\d+", self.shapes[0].partition("[")[2]))


KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_LINE = re.compile(rf"= (?P<type>\(?[a-z].*?) (?P<kind>{'|'.join(KINDS)})(?P<begun>-start)?\(")
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+)\[([\d,]*)\]")


def collectives(hlo: str) -> list[Collective]:
    """The exchanges between devices in a compiled program's text (`compiled.as_text()`), in its order; one in a loop's body stands once."""
    found = []
    for line in hlo.splitlines():
        match = _LINE.search(line)
        if match is None:
            continue
        arrays = _ARRAY.findall(match["type"])
        # What begins an exchange names its operands before its results.
        arrays = arrays[len(arrays) // 2 :] if match["begun"] and match["kind"] != "all-reduce" else arrays
        sizes = [_bytes(kind) * math.prod(int(size) for size in shape.split(",") if size) for kind, shape in arrays]
        source = re.search(r'op_name="([^"]*)"', line)
        found.append(Collective(match["kind"], tuple(f"{kind}[{shape}]" for kind, shape in arrays), sum(sizes), source[1] if source else ""))
    return found


def _bytes(kind: str) -> int:
    bits = re.search(r"\d+", kind)
    return max(1, int(bits[0]) // 8) if bits else 1


def program(method: str, sizes: Sizes, *, mesh_member: int = 0, mesh_data: int = 0, rows: int = 0) -> loop.Program:
    """The method on random slots."""
    rng, count = np.random.default_rng(0), rows or 2 * sizes.batch
    names = tuple(f"m{i}" for i in range(sizes.modalities))
    features = {m: Feature("slots", (sizes.tokens, WIDTH), "float32") for m in names}
    label = (np.arange(count) % sizes.classes).astype(np.int32)
    inputs = {m: rng.normal(size=(count, sizes.tokens, WIDTH)).astype(np.float32) for m in names}
    source = ArraySource(inputs=inputs, label=label, group=(2 * label + rng.integers(0, 2, count)).astype(np.int32))
    model = build_model(
        features=features,
        num_classes=sizes.classes,
        dim=sizes.dim,
        dtype="float32",
        heads=4,
        mlp_ratio=2.0,
        dropout=0.0,
        fusion_layers=2,
        connect_every=2,
        causal_layers=1,
        modalities={m: {"encoder": "identity", "depth": 1} for m in names},
        views=views.make_perturb,
    )
    module = component("method", method)
    record = module.build(make_options(module.Options, {}, f"method.{method}"))
    groups = 2 * sizes.classes
    spec = loop.Spec(
        num_classes=sizes.classes,
        num_groups=groups,
        num_examples=count,
        steps=100,
        slots=model.slots,
        dim=sizes.dim,
        class_counts=class_counts(source, sizes.classes),
        group_counts=group_counts(source, groups) if record.needs_groups else (),
        group_attribute=(0, 1) * sizes.classes if record.needs_groups else (),
        init_model=model.init,
    )
    return loop.Program(
        name=method,
        method=record,
        model=model,
        spec=spec,
        optimizer=functools.partial(make_optimizer, warmup=0.1, schedule="cosine", clip_norm=1.0),
        source=source,
        seeds=tuple(range(sizes.members)),
        hyper=({**record.hyper, "learning_rate": 1e-3, "weight_decay": 1e-4},) * sizes.members,
        mesh=make_mesh(members=sizes.members, batch_size=sizes.batch, mesh_member=mesh_member, mesh_data=mesh_data),
        batch_size=sizes.batch,
        chunk=1,
        augment=False,
        resident="yes",
    )


class Compiled(NamedTuple):
    """A chunk of one step of the first stage, sharded as the training loop does it."""

    chunk: Any
    states: Callable[[], Any]
    """All members' states, made anew."""
    data: Any

    def state_bytes(self) -> int:
        """Of all members."""
        leaves = jax.tree.leaves(jax.eval_shape(self.states))
        return sum(x.size * x.dtype.itemsize for x in leaves if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def compile_chunk(own: loop.Program) -> Compiled:
    """The program's step, compiled; nothing else is computed."""
    feed, optimizer = own.feed(), own.stage_optimizer(0)
    where, everywhere = sharding(own.mesh, "member"), sharding(own.mesh)
    init = functools.partial(fused.init_member, model=own.model, method=own.method, spec=own.spec, optimizer=optimizer)
    hyper = {name: jnp.asarray([each[name] for each in own.hyper]) for name in own.hyper[0]}
    members = jax.jit(jax.vmap(init), out_shardings=where)
    seeds = jnp.arange(own.members, dtype=jnp.uint32)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), jax.eval_shape(members, seeds, hyper))
    step = fused.make_step(own.model, own.method.stages[0], optimizer, augment=own.augment)
    chunk = fused.make_chunk(step, fused.resident, together=own.together)
    data = feed(0, 1)
    traced = jax.jit(chunk, donate_argnums=0, out_shardings=(where, everywhere)).trace(shapes, data, jnp.int32(1))
    return Compiled(compiler.compiled(traced), lambda: members(seeds, hyper), data)


class Side(NamedTuple):
    """A size, ready to be timed."""

    run: Callable[[], float]
    """Seconds of one step of all members."""
    cost: dict[str, float | None]


def ready(method: str, sizes: Sizes) -> Side:
    compiled = compile_chunk(program(method, sizes))
    states = compiled.states()

    def run() -> float:
        nonlocal states
        began = time.perf_counter()
        states, metrics = compiled.chunk(states, compiled.data, jnp.int32(1))
        jax.block_until_ready((states, metrics))
        return time.perf_counter() - began

    return Side(run, efficiency.cost(compiled.chunk))


def growth(methods: Sequence[str], base: Sizes, rounds: int = ROUNDS, axes: Sequence[str] = AXES) -> Iterator[dict[str, Any]]:
    """One record per method and axis."""
    for method in methods:
        middle = ready(method, base)
        for axis in axes:
            sizes = [getattr(base, axis) * factor for factor in (1, 2, 4)]
            sides = [middle, *(ready(method, dataclasses.replace(base, **{axis: size})) for size in sizes[1:])]
            times = [[side.run() for side in sides] for _ in range(rounds + 1)][1:]  # the first warms up
            flops = [side.cost["flops"] for side in sides]
            ratios = [[own / each[0] for own in each] for each in times]
            medians = [statistics.median(column) for column in zip(*ratios, strict=True)]
            yield {
                "name": f"scaling/{method}/{axis}",
                "ratio": medians[-1],
                "ratio_quartiles": statistics.quantiles([each[-1] for each in ratios], n=4)[::2],
                "sizes": sizes,
                "flops": flops,
                "flops_ratio": [_ratio(own, flops[0]) for own in flops],
                "flops_exponent": _exponent(flops),
                "seconds": [statistics.median(column) for column in zip(*times, strict=True)],
                "time_ratio": medians,
                "time_exponent": _exponent(medians),
                "peak_bytes": [side.cost["peak_bytes"] for side in sides],
                "base": dataclasses.asdict(base),
                "environment": environment(),
            }


def _ratio(own: float | None, base: float | None) -> float | None:
    return own / base if own and base else None


def _exponent(costs: Sequence[float | None]) -> float | None:
    """The slope of log cost over log size of the last doubling."""
    last = _ratio(costs[-1], costs[-2])
    return math.log2(last) if last else None


def devices(methods: Sequence[str], base: Sizes) -> Iterator[dict[str, Any]]:
    """One record per method and mesh, of all devices that this process has."""
    count = jax.device_count()
    meshes = {"data": (1, count), "member": (count, 1), **({"both": (2, count // 2)} if count % 2 == 0 and count > 2 else {})}
    for method in methods:
        for name, (member, data) in meshes.items():
            own = program(method, dataclasses.replace(base, members=member), mesh_member=member, mesh_data=data)
            compiled = compile_chunk(own)
            found, state = collectives(compiled.chunk.as_text()), compiled.state_bytes()
            kinds = {kind: [each for each in found if each.kind == kind] for kind in sorted({each.kind for each in found})}
            gathered = [each for each in found if each.kind == "all-gather"]
            yield {
                "name": f"scaling/{method}/devices/{name}",
                "mesh": {"member": member, "data": data},
                "ratio": sum(each.bytes for each in found) / (state / member),
                "bytes": {kind: sum(each.bytes for each in of) for kind, of in kinds.items()},
                "counts": {kind: len(of) for kind, of in kinds.items()},
                "state_bytes_of_a_member": state // member,
                "gathered": [each._asdict() for each in sorted(gathered, key=lambda each: -each.bytes)],
                "sizes": dataclasses.asdict(base),
                "environment": environment(),
            }


def with_devices(arguments: Sequence[str], count: int = DEVICES) -> list[dict[str, Any]]:
    """The records of `devices` from a process that has so many."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(count), "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, __file__, "devices-here", *arguments], env=environ, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def main(arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The records that the command line's words ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", choices=["growth", "devices", "devices-here", []])
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args(arguments)
    methods, base = given.methods.split(","), SMALL if given.small else BASE
    lines = given.lines or ["devices", "growth"]
    if "devices" in lines:
        yield from with_devices(["--methods", given.methods, *(["--small"] if given.small else [])])
    if "devices-here" in lines:
        yield from devices(methods, base)
    if "growth" in lines:
        yield from growth(methods, base, 2 if given.small else ROUNDS)


if __name__ == "__main__":
    try:
        for record in main(sys.argv[1:]):
            print(json.dumps(record), flush=True)
    except UserError as error:
        sys.exit(f"error: {error}")
