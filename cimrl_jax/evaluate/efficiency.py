"""What training and inference cost: XLA's own count of a compiled function, rates, and latencies taken side by side."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params


def cost(compiled: Any) -> dict[str, float | None]:
    """{"flops", "peak_bytes"} of one call of `jax.jit(f).lower(...).compile()`; None where the backend does not say.

    XLA counts the body of a `lax.scan` once: cost a single step, not a chunk of steps. `peak_bytes` is what the backend reports, and where it
    reports none arguments + outputs + temporaries - what outputs share with arguments (per device).
    """
    return {"flops": _flops(compiled), "peak_bytes": _peak_bytes(compiled)}


def product_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """The operations of all matrix products of `function(*arguments)`, 2 for each multiplication and addition, counted from its shapes alone.

    XLA counts everything, but a loop's body once; here a body counts as often as it runs (that of a `while` once, since nothing says how often). Of
    branches the dearest counts. A convolution counts as the products that it stands for.
    """
    return _products(jax.make_jaxpr(function)(*arguments).jaxpr)


def _products(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, options = equation.primitive.name, equation.params
        if name == "dot_general":
            contracted, _ = options["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted[0])
        elif name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval, options["dimension_numbers"]
            total += 2.0 * equation.outvars[0].aval.size * kernel.size / kernel.shape[numbers.rhs_spec[0]]
        inner = [_products(own) for own in jaxprs_in_params(options)]
        if inner:
            total += max(inner) if name == "cond" else sum(inner) * options.get("length", 1) if name == "scan" else sum(inner)
    return total


def _asked(question: Callable[[], Any]) -> Any:
    # Backends answer "not available" with different exceptions, and old ones with a list of one.
    try:
        answer = question()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None
    return (answer[0] if answer else None) if isinstance(answer, list | tuple) else answer


def _flops(compiled: Any) -> float | None:
    answer = _asked(lambda: compiled.cost_analysis())
    flops = answer.get("flops") if isinstance(answer, Mapping) else getattr(answer, "flops", None)
    return float(flops) if flops is not None and flops > 0 else None


def _peak_bytes(compiled: Any) -> float | None:
    answer = _asked(lambda: compiled.memory_analysis())

    def read(name: str) -> float | None:
        value = answer.get(name) if isinstance(answer, Mapping) else getattr(answer, name, None)
        return None if value is None else float(value)

    peak, temporaries = read("peak_memory_in_bytes"), read("temp_size_in_bytes")
    if peak is not None and peak > (temporaries or 0.0):  # the CPU's "peak" leaves the temporaries out
        return peak
    parts = [read(f"{part}_size_in_bytes") for part in ("argument", "output", "temp")]
    if answer is None or all(part is None for part in parts):
        return None
    return sum(part or 0.0 for part in parts) - (read("alias_size_in_bytes") or 0.0)


def examples_per_second(examples: int, seconds: float) -> float | None:
    """Throughput; None for no time at all."""
    return examples / seconds if seconds > 0 else None


def mfu(flops: float | None, seconds: float, matrix_rate: float | None) -> float | None:
    """Model FLOP utilisation, a share: FLOP/s over those of a big matrix product on the same device (`matrix_rate`). None if either is unknown."""
    return flops / seconds / matrix_rate if flops and matrix_rate and seconds > 0 else None


def matrix_rate(*, size: int = 2048, dtype: str = "float32", repeats: int = 5, compiler_options: Mapping[str, str | bool] | None = None) -> float:
    """FLOP/s of a `size` x `size` matrix product on the default device, measured now: the best of `repeats`.

    Compile it with the options of what it is compared with.
    """
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul).lower(a, a).compile(compiler_options=dict(compiler_options or {}))
    return 2.0 * size**3 / min(_seconds(lambda: product(a, a), repeats=repeats, warmup=1))


def relative(cost: Mapping[str, float | None], base: Mapping[str, float | None]) -> dict[str, float | None]:
    """How many times the base's cost, for every key that both have; None where either is unknown or the base's is 0."""
    pairs = {name: (cost[name], base[name]) for name in cost if name in base}
    return {name: value / other if value is not None and other else None for name, (value, other) in pairs.items()}


def latency(calls: Mapping[str, Callable[[], Any]], *, repeats: int = 20, warmup: int = 2) -> dict[str, float]:
    """Median seconds of each call, waited for on the device. The calls take turns, so that whatever else slows the machine slows them alike."""
    for call in calls.values():
        _seconds(call, repeats=warmup, warmup=0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].extend(_seconds(call, repeats=1, warmup=0))
    return {name: statistics.median(taken) for name, taken in times.items()}


def _seconds(call: Callable[[], Any], *, repeats: int, warmup: int) -> list[float]:
    taken = []
    for _ in range(warmup + repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return taken[warmup:]
