"""What a sweep costs: S members in one program against S processes, and against one member. One JSON line per measurement.

Command: python benchmarks/sweep.py [processes] [members] [features] [grid] [--method cimrl] [--small] > benchmarks/results/sweep.jsonl

  processes  16 seeds of configs/digits.py, from the start of the command to results.json (without the page): as 16 processes, as many at once as
             there are cores, and as one. Both begin once without anything in the compile cache and once with what they compile there already.
             "ratio" is the one process's time over that of the 16. Runs are short, which favours the one: "at_config_steps" says what the
             ratio would be at the steps of the config file, from the time outside the steps and the time of a step that were measured here.
  members    the time of a step of S = 1, 4, 16, 64 members, in turns: "ratio" to that of one; memory as compiled, and S times one's.
  features   64 members against one on the kept features of a frozen encoder (a vision transformer with random weights, written for this), both whole
             processes whose features and programs are there already, and as `members`.
  grid       every point of the three grids of weights of configs/studies/ablations.py, all combined, as one sweep (on `synthetic`, a few
             steps): how often the step was traced and its program compiled.

`--small` is the same on sizes that mean nothing.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import importlib.util
import itertools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cimrl_jax import experiment
from cimrl_jax.assembly import assemble
from cimrl_jax.config import Config, load
from cimrl_jax.data.pipeline import cores
from cimrl_jax.errors import UserError
from cimrl_jax.evaluate import efficiency
from cimrl_jax.report.results import environment
from cimrl_jax.train import compiler, loop
from cimrl_jax.train import step as fused

ROOT = pathlib.Path(__file__).parents[1]
MEMBERS = (1, 4, 16, 64)
ROUNDS = 3
LINES = ("processes", "members", "features", "grid")


class Plan(NamedTuple):
    """What is run."""

    config: str
    method: str
    """Of the processes and members."""
    processes: int
    steps: int
    """Of a process."""
    members: tuple[int, ...]
    rounds: int
    many: int
    """Members on features."""
    feature_steps: int
    vit: Mapping[str, Any]
    """The frozen encoder."""
    changes: Mapping[str, Any]
    """Of every config."""


VIT = {"encoder": "hf_vit", "patch_size": 7, "hidden_size": 192, "num_layers": 4, "num_heads": 3, "intermediate_size": 768}
WHOLE = Plan(str(ROOT / "configs/digits.py"), "cimrl", 16, 20, MEMBERS, ROUNDS, 64, 100, VIT, {"evaluate.ceiling": False, "report.examples": 1})
TINY = {
    **{"data.train": 48, "data.validation": 16, "data.test": 24, "train.batch_size": 8, "train.chunk": 2, "evaluate.batch_size": 24},
    **{"model.dim": 8, "model.heads": 2, "model.fusion_layers": 1, "model.causal_layers": 0, "evaluate.bootstrap": 20},
}
SMALL = WHOLE._replace(
    method="erm",
    processes=2,
    steps=2,
    members=(1, 2),
    rounds=2,
    many=2,
    feature_steps=2,
    vit=VIT | {"patch_size": 14, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8},
    changes={**WHOLE.changes, **TINY},
)


class Ran(NamedTuple):
    """A process that ran to its end."""

    seconds: float
    processor: float
    """Seconds of all its threads."""
    resident: int | None
    """Bytes it held at most, where the system says."""
    in_steps: float
    """Of `seconds`, those in the steps of training."""
    step: float
    """Of one step of all its members."""
    compiling: float


def start(plan: Plan, room: pathlib.Path, cache: pathlib.Path, *words: str) -> Ran:
    """One run of the command line, to results.json.

    Raises:
      UserError: it failed.
    """
    workdir = pathlib.Path(tempfile.mkdtemp(dir=room))
    options = itertools.chain.from_iterable((f"--{key}", json.dumps(value).strip('"')) for key, value in plan.changes.items())
    command = [sys.executable, "-m", "cimrl_jax.main", "train", "evaluate", "--config", plan.config, *options, *words, "--workdir", str(workdir)]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    # Not those of a surrounding test, which keep every trifle.
    environ = {key: value for key, value in os.environ.items() if not key.startswith("JAX_PERSISTENT_CACHE")}
    environ |= {"PYTHONPATH": paths, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    began = time.perf_counter()
    with (workdir / "said").open("w") as said, subprocess.Popen(command, stdout=said, stderr=said, env=environ) as process:
        resident = None
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            resident = _resident(process.pid) or resident
            time.sleep(0.1)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise UserError(f"{' '.join(command)} ended with {process.returncode}: {(workdir / 'said').read_text()[-1000:]}")
    clock = json.loads((workdir / "results.json").read_text())["runs"][0]["train"]
    worked = usage.ru_utime + usage.ru_stime
    return Ran(seconds, worked, resident, clock["seconds"], clock["seconds"] / clock["steps"], clock["compile_seconds"])


def _resident(process: int) -> int | None:
    """The most bytes of memory that a process has held so far. (What `wait4` says begins with its parent's.)"""
    try:
        lines = pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


def processes(plan: Plan, room: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Members as processes, and as one."""
    count, at_once = plan.processes, cores()
    words = ("--methods", f"{plan.method},", "--train.steps", str(plan.steps))
    apart, joint = room / "cache_apart", room / "cache_joint"
    first = start(plan, room, apart, *words, "--seeds", "0,")
    cold = start(plan, room, joint, *words, "--seeds", str(count))
    warm = start(plan, room, joint, *words, "--seeds", str(count))
    alone = start(plan, room, apart, *words, "--seeds", "0,")
    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        several = list(pool.map(lambda seed: start(plan, room, apart, *words, "--seeds", f"{seed},"), range(count)))
    whole = time.perf_counter() - began
    processor, steps = statistics.median(own.processor for own in several), load(plan.config).train.steps
    common = {
        "members": count,
        "steps": plan.steps,
        "method": plan.method,
        "at_once": at_once,
        "resident_bytes": {"one": warm.resident, "each": max(own.resident or 0 for own in several) or None},
        "environment": environment(),
    }
    # A process beside others is slower than one alone: what it takes of the whole is its share.
    each = several[0]._replace(
        seconds=whole / count,
        in_steps=statistics.mean(own.in_steps for own in several) / at_once,
        step=statistics.mean(own.step for own in several) / at_once,
    )
    sides = (
        ("warm", warm, whole, each, count * processor, f"{count} processes run"),
        ("warm/in_turn", warm, count * alone.seconds, alone, count * processor, f"one process alone, times {count}"),
        ("cold", cold, first.seconds + whole * (count - 1) / count, None, first.processor + (count - 1) * processor, "the first fills the cache"),
        ("cold/no_cache", cold, count * first.seconds, first, count * first.processor, f"one process without a cache, times {count}"),
    )
    for name, own, seconds, one, worked, note in sides:
        yield {
            "name": f"sweep/digits/processes/{name}",
            "ratio": own.seconds / seconds,
            "ratio_of_processor_time": own.processor / worked,
            "seconds": {"one": own.seconds, "processes": seconds},
            "at_config_steps": one and {"steps": steps, "ratio": _at(own, steps) / (count * _at(one, steps))},
            "outside_steps": {"one": own.seconds - own.in_steps, "each": one and one.seconds - one.in_steps},
            "compile_seconds": {"one": own.compiling, "each": one and one.compiling},
            "step_of_a_member": {"one": own.step / count, "each": one and one.step},
            "note": note,
            **common,
        }


def _at(own: Ran, steps: int) -> float:
    """Seconds that the run would take with so many steps, and no more of all else."""
    return own.seconds - own.in_steps + steps * own.step


class Side(NamedTuple):
    """Some members, ready to be timed."""

    run: Callable[[int], tuple[float, float]]
    """Steps -> seconds of one, by the clock and of the processor."""
    peak: float | None
    """Bytes: what is compiled, as often as it runs at a time, and the states of the members that wait."""
    state: int
    """Bytes of all members' states."""
    flops: float | None
    """Of a step of all members."""


def ready(program: loop.Program) -> Side:
    """Compiles the first stage's chunk as the training loop does."""
    feed, states = program.feed(), loop.fresh(program)
    chunk, data = loop.compile_chunk(program, 0, states, feed), feed(0, program.chunk)
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(states) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key))

    def run(steps: int) -> tuple[float, float]:
        nonlocal states
        began, worked = time.perf_counter(), time.process_time()
        states, metrics = chunk.run(states, data, steps)
        jax.block_until_ready((states, metrics))
        return (time.perf_counter() - began) / steps, (time.process_time() - worked) / steps

    cost = efficiency.cost(chunk.executable)  # XLA counts a loop's body once
    members, of_one = program.members, state // program.members
    if not chunk.apart:
        return Side(run, cost["peak_bytes"], state, cost["flops"])
    peak = cost["peak_bytes"] and chunk.at_a_time * cost["peak_bytes"] + (members - chunk.at_a_time) * of_one
    return Side(run, peak, state, cost["flops"] and members * cost["flops"])


def members(name: str, config: Config, sizes: Sequence[int], rounds: int) -> Iterator[dict[str, Any]]:
    """The time of a step of so many members; the first size is one."""
    sides = {}
    for size in sizes:
        (program,) = assemble(dataclasses.replace(config, seeds=tuple(range(size)))).programs
        sides[size] = ready(program)
    rate = efficiency.matrix_rate(compiler_options=compiler.options())
    times = [{size: side.run(max(8, 64 // size)) for size, side in sides.items()} for _ in range(rounds + 1)][1:]  # the first warms up
    for size, side in sides.items():
        ratios = [own[size][0] / own[1][0] for own in times]
        yield {
            "name": f"sweep/{name}/members/{size}",
            "ratio": statistics.median(ratios),
            "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
            "ratio_of_processor_time": statistics.median(own[size][1] / own[1][1] for own in times),
            "seconds": {"one": statistics.median(own[1][0] for own in times), "members": statistics.median(own[size][0] for own in times)},
            "share_of_matrix_rate": efficiency.mfu(side.flops, statistics.median(own[size][0] for own in times), rate),
            "members": size,
            "method": config.methods[0],
            "peak_bytes": side.peak,
            "peak_over_members_times_one": side.peak / (size * sides[1].peak) if side.peak and sides[1].peak else None,
            "state_bytes": side.state,
            "environment": environment(),
        }


def features(plan: Plan, room: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Members on what a frozen encoder made once."""
    common = {**plan.changes, "methods": f"{plan.method},", "train.steps": plan.feature_steps, "data.cache": str(room / "features")}
    made = assemble(load(plan.config, {**common, "seeds": "0,", "model.image": dict(plan.vit)})).model
    assert made.export is not None
    (folder,) = made.export(made.init(jax.random.key(0)), room / "vit")
    frozen = {"pretrained": str(folder), "freeze": "all", "features": "disk", "pool": 4 if plan.vit["patch_size"] == 7 else 2}
    config = load(plan.config, {**common, "seeds": "0,", "model.image": frozen})
    yield from members("features", config, plan.members, plan.rounds)
    # The file's own image encoder has options that this one lacks, so a file of all keys takes its place.
    file = room / "features.json.yaml"
    file.write_text(json.dumps(_tree(config)))
    own, words = plan._replace(config=str(file), changes={}), ("--train.steps", str(plan.feature_steps))
    ran = {}
    for count in (1, plan.many):
        cache = room / f"cache_{count}"
        for _ in range(2):  # the first compiles
            ran[count] = start(own, room, cache, *words, "--seeds", f"{count}" if count > 1 else "0,")
    one, many = ran[1], ran[plan.many]
    yield {
        "name": "sweep/features/processes",
        "ratio": many.seconds / one.seconds,
        "ratio_of_processor_time": many.processor / one.processor,
        "seconds": {"one": one.seconds, "members": many.seconds},
        "outside_steps": {"one": one.seconds - one.in_steps, "members": many.seconds - many.in_steps},
        "step": {"one": one.step, "members": many.step},
        "resident_bytes": {"one": one.resident, "members": many.resident},
        "members": plan.many,
        "steps": plan.feature_steps,
        "method": plan.method,
        "environment": environment(),
    }


def _tree(config: Config) -> dict[str, Any]:
    from cimrl_jax.config import to_dict

    return to_dict(config)


@contextlib.contextmanager
def counted() -> Iterator[dict[str, int]]:
    """How often, within, a step was traced, and a chunk of steps compiled."""
    made, counts = fused.make_step, {"traces": 0, "compiles": 0}

    def make_step(*arguments: Any, **options: Any) -> Any:
        step = made(*arguments, **options)

        def one(*of_member: Any) -> Any:
            counts["traces"] += 1
            return step(*of_member)

        return one

    def note(event: str, duration_secs: float, **kwargs: Any) -> None:
        counts["compiles"] += event == "/jax/core/compile/backend_compile_duration" and "chunk" in str(kwargs.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(note)
    fused.make_step = make_step
    try:
        yield counts
    finally:
        fused.make_step = made
        jax.monitoring.unregister_event_duration_listener(note)


def grids() -> dict[str, tuple[float, ...]]:
    """The values of every weight in the study of ablations, by key."""
    where = importlib.util.spec_from_file_location("ablations", ROOT / "configs/studies/ablations.py")
    assert where is not None and where.loader is not None
    study = importlib.util.module_from_spec(where)
    where.loader.exec_module(study)
    return {key: values for own in study.GRIDS.values() for key, values in own["sweep"].items()}


def grid(room: pathlib.Path, *, small: bool) -> Iterator[dict[str, Any]]:
    """All ablations at once."""
    values = {key: own[:2] if small else own for key, own in grids().items()}
    changes = {**TINY, "seeds": "0,", "methods": "cimrl,", "train.steps": 4, "evaluate.ceiling": False, "method.cimrl.refit": False}
    encoders = {f"model.{m}": {"encoder": "identity", "depth": 0} for m in ("m0", "m1")}
    config = load(str(ROOT / "configs/synthetic.py"), {**changes, **encoders, "workdir": str(room / "grid"), "train.compile_cache": False})
    config = dataclasses.replace(config, sweep=values)
    programs = [own for own in assemble(config).programs]
    with counted() as counts:
        experiment.run(config, parts=("train",), quiet=True)
    yield {
        "name": "sweep/grid",
        "members": math.prod(len(own) for own in values.values()),
        "programs": len(programs),
        **counts,
        "values": values,
        "environment": environment(),
    }


def main(arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The records that the command line's words ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", choices=[*LINES, []])
    parser.add_argument("--method", default="")
    parser.add_argument("--processes", type=int, default=0, help="how many, in place of 16")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args(arguments)
    plan = SMALL if given.small else WHOLE
    plan = plan._replace(method=given.method or plan.method, processes=given.processes or plan.processes)
    lines = given.lines or LINES
    with tempfile.TemporaryDirectory() as temporary:
        room = pathlib.Path(temporary)
        if "processes" in lines:
            yield from processes(plan, room)
        if "members" in lines:
            one = load(plan.config, {**plan.changes, "methods": f"{plan.method},", "seeds": "0,"})
            yield from members("digits", one, plan.members, plan.rounds)
        if "features" in lines:
            yield from features(plan, room)
        if "grid" in lines:
            yield from grid(room, small=given.small)


if __name__ == "__main__":
    try:
        for record in main(sys.argv[1:]):
            print(json.dumps(record), flush=True)
    except UserError as error:
        sys.exit(f"error: {error}")
