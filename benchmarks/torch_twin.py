"""Our training step against the same step in PyTorch, eager and compiled, side by side. One JSON line per size, method and kind of PyTorch.

Command: python benchmarks/torch_twin.py > benchmarks/results/torch_twin.jsonl

The PyTorch side (benchmarks/twin/) is CIMRL at its default options, or ERM: the same model, parameters, losses, editor and AdamW with its schedule;
tests/benchmarks/torch_twin_test.py feeds both sides the same batches and random numbers and compares losses and updated parameters. Both run on the
same device with as many threads, in rounds in which every side runs once, so that whatever else the machine does falls on all alike. `ratio` is
PyTorch's time over ours, the median over rounds: above 1 ours is the faster. `cpu_ratio` is the same of the processor's time (all threads together),
which other load disturbs less; on a GPU it means nothing and is left out. PyTorch draws its random numbers itself; both sides hold their batch on the
device. `first_calls_seconds` is what building, compiling and two steps took, with whatever the compilers' caches held.

With the word `alone` before: on one core, where processor time and time are one, for machines that others use too.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import torch
from twin.sides import Size, as_torch, batches, ours, torch_draws, twin

from cimrl_jax.report.results import environment
from cimrl_jax.train import compiler
from cimrl_jax.train import step as fused

TI = Size("vit_ti+mini", batch=8, dim=192, heads=3, depth=4, text_depth=2, image=224, patch=16, words=32)
S = Size("vit_s+mini", batch=4, dim=384, heads=6, depth=2, text_depth=1, image=224, patch=16, words=32)
CPU = (TI, S)
"""Of the published widths and numbers of tokens; the depth is cut so that a step takes a second and compiles in one minute: all blocks are alike."""
FULL_S = dataclasses.replace(S, batch=256, depth=12, text_depth=4, words=64, vocabulary=30522, dtype="bfloat16")
FULL_B = dataclasses.replace(FULL_S, name="vit_b+base", batch=64, dim=768, heads=12, text_depth=12)
GPU = (FULL_S, FULL_B)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of malloc.h."""


def keep_memory() -> None:
    """Has glibc keep what is freed for the next step, on both sides: else every step pays page faults for fresh memory (benchmarks/NOTES.md)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def measure(
    sizes: Sequence[Size] | None = None,
    methods: Sequence[str] | None = None,
    kinds: Sequence[str] = ("eager", "compiled"),
    *,
    rounds: int = 5,
    steps: int = 2,
) -> Iterator[dict[str, Any]]:
    """A record for each size, method ("erm", "cimrl") and kind of PyTorch, on the GPU if both sides see one; there call it before JAX is used.

    By default both methods at the first size, CIMRL alone at the others.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or JAX takes the memory that PyTorch needs
    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    device, threads = "cuda" if on_gpu else "cpu", len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    keep_memory()
    sizes = sizes or (GPU if on_gpu else CPU)
    for size, method in [(own, m) for own in sizes for m in methods or (("erm", "cimrl") if own == sizes[0] else ("cimrl",))]:
        calls, began, first = {}, time.perf_counter(), {}
        for side in ("ours", *kinds):
            calls[side] = _ours_call(method, size) if side == "ours" else _twin_call(method, size, device, compiled=side == "compiled")
            for _ in range(2):  # what compiles at the first call, and what at the second
                calls[side](1)
            first[side], began = time.perf_counter() - began, time.perf_counter()
        times = [{side: _timed(call, steps) for side, call in calls.items()} for _ in range(rounds)]
        for kind in kinds:
            names = {"ours": "ours", "torch": kind}
            yield {
                "name": f"torch_twin/{size.name}/{method}/{kind}",
                **_ratio(times, kind, "wall", ""),
                **({} if on_gpu else _ratio(times, kind, "cpu", "cpu_")),
                "seconds": {name: statistics.median(own[side].wall for own in times) for name, side in names.items()},
                "quartiles": {name: statistics.quantiles([own[side].wall for own in times], n=4)[::2] for name, side in names.items()},
                "first_calls_seconds": {name: first[side] for name, side in names.items()},
                "size": dataclasses.asdict(size),
                "rounds": rounds,
                "steps": steps,
                "threads": threads,
                "environment": {**environment(), "torch": torch.__version__},
            }


class Seconds(NamedTuple):
    """Of one step."""

    wall: float
    cpu: float


def _timed(call: Callable[[int], float], steps: int) -> Seconds:
    began = time.process_time()
    return Seconds(call(steps), (time.process_time() - began) / steps)


def _ratio(times: list[dict[str, Seconds]], kind: str, clock: str, prefix: str) -> dict[str, Any]:
    ratios = [getattr(own[kind], clock) / getattr(own["ours"], clock) for own in times]
    return {f"{prefix}ratio": statistics.median(ratios), f"{prefix}ratio_quartiles": statistics.quantiles(ratios, n=4)[::2]}


def _ours_call(method: str, size: Size) -> Callable[[int], float]:
    """`steps -> seconds a step`, as `train/loop.py` runs it: one member, many steps a call, its state donated."""
    side, data = ours(method, size), jax.tree.map(lambda x: x[None], next(batches(size)))
    chunk = fused.make_chunk(side.step, lambda data, k: data)
    state = jax.tree.map(lambda x: jnp.copy(x)[None], side.state)
    compiled = compiler.compiled(jax.jit(chunk, donate_argnums=0).trace(state, data, jnp.int32(1)))
    del side

    def run(steps: int) -> float:
        nonlocal state
        began = time.perf_counter()
        state, metrics = compiled(state, data, jnp.int32(steps))
        jax.block_until_ready((state, metrics))
        return (time.perf_counter() - began) / steps

    return run


def _twin_call(method: str, size: Size, device: str, *, compiled: bool) -> Callable[[int], float]:
    trainer, state = twin(method, size, ours(method, size), device=device, compiled=compiled)
    inputs, label = as_torch(next(batches(size)), device)

    def run(steps: int) -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(steps):
            state, _ = trainer.step(inputs, label, torch_draws(size, device) if method == "cimrl" else {}, state)
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / steps

    return run


if __name__ == "__main__":
    if sys.argv[1:] == ["alone"]:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before either side counts the cores
    for record in measure():
        print(json.dumps(record), flush=True)
