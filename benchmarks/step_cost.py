"""What a step of each method costs relative to ERM's: operations as XLA counts them, and time side by side. One JSON line per method and stage.

Command: python benchmarks/step_cost.py [--config configs/digits.py] [any field, as --a.b value] > benchmarks/results/step_cost.jsonl

With the word `count` before the options: only the operations of the step as written, before XLA optimises it, in a minute and alike on any machine.

One member at a time. Operations and memory are those of one step compiled alone, since XLA counts a loop's body once; times are those of a chunk of
steps in one call, as training runs it. They are medians over rounds in which the method and ERM run once each, so that whatever else the machine does
falls on both alike; ratios, not times, are the result.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cimrl_jax.assembly import assemble
from cimrl_jax.config import Config
from cimrl_jax.evaluate import efficiency
from cimrl_jax.main import parse
from cimrl_jax.report.results import environment
from cimrl_jax.train import compiler, loop
from cimrl_jax.train import step as fused
from cimrl_jax.train.mesh import sharding

ROUNDS = 9


class Side(NamedTuple):
    """One stage of a method, ready to be timed."""

    name: str
    share: float
    """Of the run's steps."""
    run: Callable[[], tuple[float, float]]
    """A chunk of steps: (seconds of one step, seconds of the chunk in which the host is not free)."""
    cost: dict[str, float | None]
    product_flops: float
    compile_seconds: float
    traces: Callable[[], int]
    """How often the loss has been traced, the next step's batch and state included."""


class Step(NamedTuple):
    """One step of one member, and what it is called with."""

    function: Any
    state: Any
    batches: tuple[Any, Any]
    traced: list[int]
    """Grows with every trace of the loss."""

    def trace(self) -> Any:
        return self.function.trace(self.state, self.batches[0])


def make(program: loop.Program, stage: int) -> Step:
    """The step of a stage, before it is compiled."""
    optimizer, traced, own = program.stage_optimizer(stage), [], program.method.stages[stage]
    loss = own.loss
    assert loss is not None

    def counted(*arguments: Any) -> Any:
        traced.append(stage)
        return loss(*arguments)

    step = fused.make_step(program.model, own._replace(loss=counted), optimizer, augment=program.augment)
    state = fused.init_member(0, program.hyper[0], model=program.model, method=program.method, spec=program.spec, optimizer=optimizer)
    state = jax.device_put(state, sharding(program.mesh))  # where the batches lie, as in a run
    fed = dataclasses.replace(program, seeds=(0,)).feed()(0, 2)
    first, second = (jax.tree.map(lambda x: x[0], fused.resident(fed, jnp.int32(k))) for k in range(2))
    return Step(jax.jit(step), state, (first, second), traced)


def place(program: loop.Program, stage: int) -> tuple[str, float]:
    """(name of the stage, its share of the steps)."""
    ends = [0, *program.boundaries()]
    name = program.name if sum(own.loss is not None for own in program.method.stages) == 1 else f"{program.name}/stage{stage + 1}"
    return name, (ends[stage + 1] - ends[stage]) / ends[-1]


def count(config: Config) -> list[dict[str, Any]]:
    """One record per stage: the operations of a step as written."""
    sides = [(place(*own), make(*own).trace().lower().cost_analysis()["flops"]) for own in stages(config)]
    found = {"environment": environment()}
    return [
        {"name": f"step_cost/{name}", "share_of_steps": share, "written_flops_ratio": flops / sides[0][1], "written_flops": flops, **found}
        for (name, share), flops in sides
    ]


def stages(config: Config) -> list[tuple[loop.Program, int]]:
    """Every stage that has steps, ERM's first, those of CIMRL's economy last."""
    config = dataclasses.replace(config, methods=("erm", *(m for m in config.methods if m != "erm")), seeds=(0,), sweep={})
    programs = [own for own in assemble(config).programs if own.name != "ceiling"]
    if "cimrl" in config.methods:
        cheaper = {**config.method, "cimrl": {**config.method["cimrl"], "economy": True}}
        last = assemble(dataclasses.replace(config, methods=("cimrl",), method=cheaper)).programs
        programs += [dataclasses.replace(own, name="cimrl_economy") for own in last if own.name != "ceiling"]
    return [(own, stage) for own in programs for stage, kept in enumerate(own.method.stages) if kept.loss]


def prepare(program: loop.Program, stage: int) -> Side:
    """Compiles one step of one member."""
    step = make(program, stage)
    traced, state, batch = step.trace(), step.state, step.batches[0]
    began = time.perf_counter()
    compiled = compiler.compiled(traced)
    seconds = time.perf_counter() - began
    feed = dataclasses.replace(program, seeds=(0,)).feed()(0, program.chunk)
    members = jax.tree.map(lambda x: x[None], state)
    chunk = jax.jit(fused.make_chunk(step.function, fused.resident), donate_argnums=0).trace(members, feed, jnp.int32(1))
    steps = compiler.compiled(chunk)

    def run() -> tuple[float, float]:
        nonlocal members
        began = time.perf_counter()
        members, metrics = steps(members, feed, jnp.int32(program.chunk))
        asked = time.perf_counter() - began
        jax.block_until_ready(metrics)
        return (time.perf_counter() - began) / program.chunk, asked

    def traces() -> int:
        step.function.lower(state, step.batches[1])
        return len(step.traced)

    products = efficiency.product_flops(step.function, state, batch)
    return Side(*place(program, stage), run, efficiency.cost(compiled), products, seconds, traces)


def measure(config: Config) -> Iterator[dict[str, Any]]:
    """A record per method and stage, each timed in turns with ERM. (All programs at once would be more than a process can map.)"""
    first, *others = stages(config)
    base = prepare(*first)
    yield beside(base, base)
    for own in others:
        yield beside(base, prepare(*own))


def beside(base: Side, side: Side) -> dict[str, Any]:
    rounds = [(base.run(), side.run()) for _ in range(ROUNDS + 1)][1:]  # the first warms up
    ratios = [own[0] / one[0] for one, own in rounds] if side is not base else [1.0] * ROUNDS
    ratio, flops = statistics.median(ratios), _over(side.cost["flops"], base.cost["flops"])
    return {
        "name": f"step_cost/{side.name}",
        "share_of_steps": side.share,
        "time_ratio": ratio,
        "time_ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
        "flops_ratio": flops,
        "time_over_flops": _over(ratio, flops),
        "product_flops_ratio": side.product_flops / base.product_flops,
        "flops": side.cost["flops"],
        "product_flops": side.product_flops,
        "seconds": statistics.median(own[0] for _, own in rounds),
        "seconds_of_erm": statistics.median(one[0] for one, _ in rounds),
        "host_seconds": statistics.median(own[1] for _, own in rounds),
        "peak_bytes": side.cost["peak_bytes"],
        "compile_seconds": side.compile_seconds,
        "traces": side.traces(),
        "environment": environment(),
    }


def _over(own: float | None, one: float | None) -> float | None:
    return own / one if own and one else None


if __name__ == "__main__":
    arguments, run = sys.argv[1:], measure
    if arguments[:1] == ["count"]:
        arguments, run = arguments[1:], count
    if not any(word.startswith("--config") for word in arguments):
        arguments = ["--config", "configs/digits.py", *arguments]
    for record in run(parse(arguments)[0]):
        print(json.dumps(record), flush=True)
