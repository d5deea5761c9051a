"""What keeping a frozen encoder's features saves: training steps per second with features=disk against without. One JSON line per method.

Command: python benchmarks/features.py [--config configs/covid_cxr.py] [any field, as --a.b value] > benchmarks/results/features.jsonl

Beside disk there are two sides. features=step trains on the same features, and so does the same work but for the frozen encoders, which it runs in
every step: "ratio" is against it. features=no reads pixels and words through the frozen encoders, unpooled, so that CIMRL's attribution and its
counterfactuals go through them too. Every modality that has a checkpoint is frozen whole; one seed. A step is the run's own, with its batches' way
from disk or memory to the device. Computing the features is not in it (it happens once, in `prepare_seconds`, or 0 and a moment if they are there).
Times are medians over rounds in which both sides run once, so that whatever else the machine does falls on both alike.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from cimrl_jax.assembly import assemble
from cimrl_jax.config import Config, load
from cimrl_jax.errors import UserError
from cimrl_jax.main import parse, split
from cimrl_jax.report.results import environment
from cimrl_jax.train import loop

ROOT = pathlib.Path(__file__).parents[1]
ROUNDS = 4
SIDES = {"disk": 4, "step": 2, "no": 1}
"""The steps of a round: fewer where one takes long."""


class Side(NamedTuple):
    """A method's first stage, ready to be timed."""

    run: Callable[[], float]
    """Steps per second over the steps of the next round."""
    compile_seconds: float


def frozen(config: Config) -> list[str]:
    """The modalities that have a checkpoint.

    Raises:
      UserError: none has.
    """
    found = [m for m, section in config.model.modalities.items() if section.get("pretrained")]
    if not found:
        raise UserError("no modality has a checkpoint whose features could be kept; give --model.image.pretrained DIR or another's")
    return found


def ready(program: loop.Program, steps: int) -> Side:
    """Compiles a chunk of the first stage and feeds it."""
    program = dataclasses.replace(program, chunk=steps)
    feed, states, done = program.feed(), loop.fresh(program), 0
    began = time.perf_counter()
    chunk = loop.compile_chunk(program, 0, states, feed)
    seconds = time.perf_counter() - began

    def run() -> float:
        nonlocal states, done
        began = time.perf_counter()
        states, metrics = chunk.run(states, feed(done, steps), steps)
        jax.block_until_ready((states, metrics))
        done += steps
        return steps / (time.perf_counter() - began)

    return Side(run, seconds)


def measure(config: Config) -> list[dict[str, Any]]:
    """One record per method."""
    modalities = frozen(config)
    common = {f"model.{m}.{key}": value for m in modalities for key, value in (("freeze", "all"), ("lora_rank", 0), ("views", 1))}
    common |= {"seeds": "0,", "sweep": "none", "evaluate.ceiling": False}
    built, prepared = {}, {}
    for side in SIDES:
        began = time.perf_counter()
        own = {f"model.{m}.features": side for m in modalities} | ({f"model.{m}.pool": 1 for m in modalities} if side == "no" else {})
        built[side] = assemble(load(config, {**common, **own}))
        prepared[side] = time.perf_counter() - began
    records = []
    for own in zip(*(built[side].programs for side in SIDES), strict=True):
        pair = {side: ready(program, steps) for (side, steps), program in zip(SIDES.items(), own, strict=True)}
        rounds = [{side: pair[side].run() for side in SIDES} for _ in range(ROUNDS + 1)][1:]  # the first warms up
        ratios, whole = ([speed["disk"] / speed[side] for speed in rounds] for side in ("step", "no"))
        records.append(
            {
                "name": f"features/{own[0].name}",
                "ratio": statistics.median(ratios),
                "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
                "ratio_without_features": statistics.median(whole),
                "steps_per_second": {side: statistics.median(speed[side] for speed in rounds) for side in SIDES},
                "compile_seconds": {side: pair[side].compile_seconds for side in SIDES},
                "prepare_seconds": prepared,
                "batch_size": own[0].batch_size,
                "tokens": {m: [spec.count, spec.width] for m, spec in built["disk"].model.slots.items() if m in modalities},
                "checkpoints": {m: str(config.model.modalities[m]["pretrained"]) for m in modalities},
                "environment": environment(),
            }
        )
    return records


def main(arguments: list[str]) -> None:
    given = "config" in split(arguments)[1]
    config, _ = parse([*([] if given else ["--config", str(ROOT / "configs/covid_cxr.py")]), *arguments])
    for record in measure(config):
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
