"""Training as the host sees it: chunks of steps, evaluation, selection, checkpoints, signals. All host effects are here, in a fixed order."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cimrl_jax.data.pipeline import cores
from cimrl_jax.data.source import Source
from cimrl_jax.files import write_whole
from cimrl_jax.nn.model import bound
from cimrl_jax.train import compiler
from cimrl_jax.train import step as fused
from cimrl_jax.train.checkpoint import Checkpoints
from cimrl_jax.train.feed import Feed
from cimrl_jax.train.mesh import agreed, any_of, first, free_bytes, gathered, member, members, place, sharding
from cimrl_jax.train.optimizer import MakeOptimizer
from cimrl_jax.types import Method, Model, Spec, Told, TrainState


class Bar(Protocol):
    """Where progress is shown."""

    def update(self, *, completed: int, **figures: float | None) -> None: ...


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything that one method's members are trained with. The members are one program: seeds and traced numbers differ, shapes do not."""

    name: str
    """Of the folder of its checkpoints, and in metrics.jsonl."""
    method: Method
    model: Model
    spec: Spec
    optimizer: Callable[..., MakeOptimizer]
    """(steps, learning_rate, weight_decay: names of traced numbers) -> the optimiser of a stage of that many steps."""
    source: Source
    seeds: tuple[int, ...]
    hyper: tuple[Mapping[str, float], ...]
    """One per member."""
    mesh: Mesh
    batch_size: int
    chunk: int
    augment: bool
    resident: Literal["auto", "yes", "no"]
    together: int = 0
    """Members vmapped at a time; 0: as is best on this backend."""
    label: str = ""
    """What the results call it: programs that differ in a sweep's settings share it."""
    settings: tuple[Mapping[str, Any], ...] = ()
    """What a sweep set, one per member."""

    @property
    def members(self) -> int:
        return len(self.seeds)

    def feed(self) -> Feed:
        """What its chunks are fed with."""
        return Feed(
            self.source,
            seeds=self.seeds,
            batch_size=self.batch_size,
            chunk=self.chunk,
            mesh=self.mesh,
            needs_groups=self.method.needs_groups,
            resident=self.resident,
        )

    def boundaries(self) -> list[int]:
        """The step at which each stage ends."""
        ends = np.cumsum([stage.share for stage in self.method.stages])
        return [round(float(end / ends[-1]) * self.spec.steps) for end in ends]

    def stage_optimizer(self, stage: int) -> MakeOptimizer:
        """The optimiser of one stage, whose schedule spans that stage."""
        own, ends = self.method.stages[stage], [0, *self.boundaries()]
        return self.optimizer(steps=ends[stage + 1] - ends[stage], learning_rate=own.learning_rate, weight_decay=own.weight_decay)


class Plan(NamedTuple):
    """When the host looks in. Steps, 0: only at the end."""

    eval_every: int
    checkpoint_every: int
    rules: tuple[str, ...]
    """Selection rules, each of which keeps its own best model."""
    score: Callable[[TrainState, int], tuple[dict[str, np.ndarray], list[dict[str, float | None]]]]
    """(states [s], step) -> ({rule: each member's score, -inf where nothing may be selected yet}, each member's validation figures)."""
    read: Callable[[TrainState, str], Told]
    """(states [s], split) -> what every member says of that split: logits and features [s, n, ...]."""


class Selected(NamedTuple):
    """Each member's model that one rule selected."""

    params: Any
    method: Any
    step: np.ndarray
    score: np.ndarray


class Trained(NamedTuple):
    """What is left after training: what each rule selected, and what it took."""

    selected: dict[str, Selected]
    hyper: dict[str, jax.Array]
    final: Any
    clock: dict[str, float]


class Interrupted(KeyboardInterrupt):
    """A signal came; a checkpoint was left. `code` is the exit code that the signal asks for."""

    def __init__(self, number: int):
        super().__init__(f"{signal.Signals(number).name} at a whole step")
        self.code = 128 + number


def train(program: Program, plan: Plan, folder: pathlib.Path, metrics_file: pathlib.Path, bar: Bar) -> Trained:
    """Trains all members, from the newest checkpoint in `folder` if there is one.

    Raises:
      Interrupted: SIGINT or SIGTERM came; the state at the last whole chunk is saved.
    """
    with Checkpoints(folder) as checkpoints:
        carry, clock, done = _start(program, plan.rules, checkpoints, metrics_file)
        bar.update(completed=done)
        if done < program.spec.steps:
            carry = _run(program, plan, checkpoints, metrics_file, bar, carry, clock, done)
    return _trained(carry, clock)


def restore(program: Program, rules: tuple[str, ...], folder: pathlib.Path) -> tuple[int, Trained]:
    """(steps done, what was trained so far) from the newest checkpoint.

    Raises:
      UserError: there is none.
    """
    with Checkpoints(folder) as checkpoints:
        done, carry, clock = checkpoints.restore(_like(program, rules))
    return done, _trained(carry, clock)


def _trained(carry: dict[str, Any], clock: dict[str, float]) -> Trained:
    best = gathered(carry["best"])
    selected = {rule: Selected(own["params"], own["method"], np.asarray(own["step"]), np.asarray(own["score"])) for rule, own in best.items()}
    return Trained(selected, gathered(carry["state"].hyper), carry["state"], clock)


def _member(program: Program) -> Callable[..., Any]:
    return functools.partial(fused.init_member, model=program.model, method=program.method, spec=program.spec, optimizer=program.stage_optimizer(0))


def _carry(state: Any, rules: tuple[str, ...]) -> dict[str, Any]:
    """What training carries from chunk to chunk: every member's state, and what each rule selected of it so far, on the same devices."""
    best = {"params": state.params, "method": state.method, "step": state.step, "score": jnp.full_like(state.step, -jnp.inf, jnp.float32)}
    return {"state": state, "best": {rule: jax.tree.map(jnp.copy, best) for rule in rules}}


def fresh(program: Program) -> TrainState:
    """Every member's state before the first step `[s]`."""
    # Member by member and not under one jit: the model's init is compiled once and serves all members and methods.
    members = [_member(program)(seed, own) for seed, own in zip(program.seeds, program.hyper, strict=True)]
    return place(jax.tree.map(lambda *parts: jnp.stack(parts), *members), sharding(program.mesh, "member"))


def _like(program: Program, rules: tuple[str, ...]) -> dict[str, Any]:
    """The shapes, types and shardings of what training begins with, without computing it."""

    def everything() -> dict[str, Any]:
        member = jax.vmap(_member(program))
        hyper = {name: jnp.zeros((program.members,)) for name in program.hyper[0]}
        return _carry(member(jnp.zeros((program.members,), jnp.uint32), hyper), rules)

    where = sharding(program.mesh, "member")
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), jax.eval_shape(everything))


def _start(
    program: Program, rules: tuple[str, ...], checkpoints: Checkpoints, metrics_file: pathlib.Path
) -> tuple[dict[str, Any], dict[str, float], int]:
    clock, done = {"seconds": 0.0, "compile_seconds": 0.0, "steps_timed": 0.0}, 0
    if checkpoints.latest is None:
        carry = _carry(fresh(program), rules)
    else:
        done, carry, saved = checkpoints.restore(_like(program, rules))
        clock |= saved
    if first():
        _forget(metrics_file, program.name, after=done)
    return carry, clock, done


def _run(
    program: Program,
    plan: Plan,
    checkpoints: Checkpoints,
    metrics_file: pathlib.Path,
    bar: Bar,
    carry: dict[str, Any],
    clock: dict[str, float],
    done: int,
) -> dict[str, Any]:
    steps, ends, stages = program.spec.steps, program.boundaries(), program.method.stages
    select = jax.jit(_select, donate_argnums=0)
    chunk, current = None, -1

    def stop(done: int, stage: int) -> int:
        return min(ends[stage], *(_next(done, every, steps) for every in (program.chunk, plan.eval_every, plan.checkpoint_every)))

    with contextlib.closing(program.feed()) as feed, _signals() as caught:
        while done < steps:
            stage = next(i for i, end in enumerate(ends) if done < end)
            if stage != current:
                began = time.perf_counter()
                carry["state"] = _enter(program, plan, stage, carry["state"], feed, begins=done == [0, *ends][stage])
                chunk, current = compile_chunk(program, stage, carry["state"], feed), stage
                if chunk.at_a_time < program.members:
                    bar.update(completed=done, members_at_a_time=chunk.at_a_time)
                clock["compile_seconds"] += time.perf_counter() - began
            assert chunk is not None
            end = stop(done, stage)
            began = time.perf_counter()
            carry["state"], metrics = chunk.run(carry["state"], feed(done, end - done), end - done)
            if end < ends[stage]:
                feed.prepare(end, stop(end, stage) - end)  # while the device computes
            figures = jax.device_get(metrics)
            clock["seconds"] += time.perf_counter() - began
            clock["steps_timed"] += end - done
            done = end
            if done == steps and current < len(stages) - 1:  # a last stage without steps
                began, current = time.perf_counter(), len(stages) - 1
                carry["state"] = jax.block_until_ready(_enter(program, plan, current, carry["state"], feed, begins=True))
                clock["compile_seconds"] += time.perf_counter() - began
            rows = [_row(program, i, done, {name: value[i] for name, value in figures.items()}) for i in range(program.members)]
            if done == _next(done - 1, plan.eval_every, steps):
                scores, validation = plan.score(carry["state"], done)
                scores = agreed(scores)
                if current == len(stages) - 1:
                    carry["best"] = select(carry["best"], carry["state"], {rule: np.asarray(scores[rule], np.float32) for rule in plan.rules})
                rows += [_row(program, i, done, {"split": "validation", **own}) for i, own in enumerate(validation)]
            if first():
                _append(metrics_file, rows)
            bar.update(completed=done, loss=float(np.mean(figures["loss"])), accuracy=float(np.mean(figures["accuracy"])))
            signalled = any_of(max(caught, default=0))
            if signalled or done == _next(done - 1, plan.checkpoint_every, steps):
                checkpoints.save(done, carry, clock=clock)
            if signalled:
                raise Interrupted(signalled)
    return carry


class Chunk(NamedTuple):
    """Steps of one stage, compiled ahead of time."""

    run: Callable[[TrainState, Any, int], tuple[TrainState, dict[str, Any]]]
    """(states [s], what the feed says, steps) -> (states, metrics [s]). The given states are used up."""
    at_a_time: int
    """Members that are trained at the same time; the others wait for them."""
    apart: bool
    """Whether each is on its own: else those at a time are vmapped."""
    executable: jax.stages.Compiled
    """The program that all members go through, or, apart, each of them."""


def compile_chunk(program: Program, stage: int, states: TrainState, feed: Feed) -> Chunk:
    """The steps of a stage of all members, for states and data as these.

    Unless the program says how many, all are vmapped, or as many as fit the memory that is free. On the CPU each is on its own, one to a core:
    there it takes half of the time and less (benchmarks/NOTES.md).
    """
    # Metrics lie on every device, so that every process can read them.
    where, everywhere = sharding(program.mesh, "member"), sharding(program.mesh)
    held, free = place(program.model.held, everywhere), free_bytes(program.mesh.local_devices)

    def build(states: Any, data: Any, together: int) -> jax.stages.Compiled:
        def chunk(states: Any, data: Any, count: Any, held: Any) -> Any:
            model = bound(program.model, held)
            step = fused.make_step(model, program.method.stages[stage], program.stage_optimizer(stage), augment=program.augment)
            prepare = fused.make_prepare(model, *feed.leaders, augment=program.augment, together=together)
            fetch = fused.resident if feed.resident else fused.streamed
            return fused.make_chunk(step, fetch, together=together, prepare=prepare)(states, data, count)

        return compiler.compiled(jax.jit(chunk, donate_argnums=0, out_shardings=(where, everywhere)).trace(states, data, jnp.int32(1), held))

    if _apart(program):
        executable = build(member(states, 0), feed.member(feed(0, 1), 0), 0)
        at_once = min(cores(), program.members)

        def one(states: Any, data: Any, count: int, i: int) -> Any:
            return jax.block_until_ready(executable(member(states, i), feed.member(data, i), jnp.int32(count), held))

        def each(states: Any, data: Any, count: int) -> Any:
            pool = concurrent.futures.ThreadPoolExecutor(at_once, "member")
            try:
                done = list(pool.map(functools.partial(one, states, data, count), range(program.members)))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
            after, metrics = zip(*done, strict=True)
            return place(members(after), where), members(metrics)

        return Chunk(each, at_once, True, executable)

    together = min(program.together or program.members, program.members)
    executable = build(states, feed(0, 1), together if together < program.members else 0)
    while not program.together and together > program.mesh.shape["member"] and _lacks(executable, free):
        together = -(-together // 2)
        executable = build(states, feed(0, 1), together)
    return Chunk(lambda states, data, count: executable(states, data, jnp.int32(count), held), together, False, executable)


def _apart(program: Program) -> bool:
    """Whether members are trained on their own: on the CPU, unless they share what a frozen encoder says of their batches."""
    alone = program.mesh.size == 1 and jax.process_count() == 1 and jax.default_backend() == "cpu"
    return alone and not program.together and program.members > 1 and program.model.prepare is None


def _lacks(compiled: jax.stages.Compiled, free: float | None) -> bool:
    """Whether what a program needs while it runs is more than is free, on any process's devices. Every process asks, since all must do the same."""
    memory = compiled.memory_analysis()
    return any_of(int(free is not None and memory is not None and memory.temp_size_in_bytes > free)) > 0


OF_EACH = Told(logits=0, features=0, label=None, group=None, inferred=0)  # type: ignore[arg-type]
"""What members say of a split, each for itself, and what holds for all: the axes of a `vmap` over members."""


def _enter(program: Program, plan: Plan, stage: int, states: Any, feed: Feed, *, begins: bool) -> Any:
    """Makes every member ready for the stage: `enter` and a fresh optimiser if it `begins`, and the rows that it draws."""
    own = program.method.stages[stage]
    if begins and stage:
        told = plan.read(states, own.reads) if own.reads else None

        def one(held: Any, state: Any, told: Told | None) -> Any:
            method, params, model = state.method, state.params, bound(program.model, held)
            if own.enter is not None:
                key = jax.random.fold_in(state.key, 3 + stage)
                fresh, _ = fused.init_params(key, model=model, method=program.method, spec=program.spec)
                method, params = own.enter(method, state.hyper, model, params, fresh, told)
            # A stage without steps has no use for an optimiser: the state of the last one that was at work stays.
            begun = state.opt_state if own.loss is None else program.stage_optimizer(stage)(state.hyper).init(params)
            return dataclasses.replace(state, method=method, params=params, opt_state=begun)

        where, held = sharding(program.mesh, "member"), place(program.model.held, sharding(program.mesh))
        states = jax.jit(jax.vmap(one, in_axes=(None, 0, told and OF_EACH)), out_shardings=where)(held, states, told)
    if own.loss is not None:
        held = jax.device_get(gathered(states.method)) if own.draw else ()
        feed.enter(own.draw, [jax.tree.map(lambda x, i=i: x[i], held) for i in range(program.members)], program.hyper)
    return states


def _select(best: dict[str, Any], state: Any, scores: dict[str, jax.Array]) -> dict[str, Any]:
    """Keeps, by every rule and member by member, the better of what was selected so far and the state: on equal scores the later."""

    def keep(best: dict[str, Any], score: jax.Array) -> dict[str, Any]:
        better = score >= best["score"]
        new = {"params": state.params, "method": state.method, "step": state.step, "score": score}
        return jax.tree.map(lambda a, b: jnp.where(better.reshape(-1, *[1] * (a.ndim - 1)), b, a), best, new)

    return {rule: keep(best[rule], score) for rule, score in scores.items()}


def _next(done: int, every: int, steps: int) -> int:
    """The first multiple of `every` after `done`, at most `steps`; `every` = 0: `steps`."""
    return min((done // every + 1) * every, steps) if every else steps


def _row(program: Program, member: int, step: int, figures: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {k: v if v is None or isinstance(v, str) else _finite(float(v)) for k, v in figures.items()}
    return {"method": program.name, "seed": program.seeds[member], "member": member, "step": step, **numbers}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _append(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _forget(path: pathlib.Path, name: str, *, after: int) -> None:
    """Drops this program's lines after a step: they belong to work that a kill undid."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if row["method"] != name or row["step"] <= after:
                kept.append(line)
    write_whole(path, "".join(line + "\n" for line in kept))


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; a second one is obeyed at once."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, _: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
