"""What XLA is told when the fused step is compiled."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params

_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
"""Which operations are handed to the library YNNPACK."""
_ON_CPU: dict[str, str | bool] = {
    # None is: with all that XLA would hand to it, a CIMRL step took 1.22 times the processor's time (benchmarks/NOTES.md).
    _LIBRARY: "",
    # No small operation is parted among threads: a step of small models took .4 to .9 of the time, one of a ViT-Ti as long as before
    # (benchmarks/NOTES.md).
    "xla_cpu_multi_thread_eigen": False,
}
# Measured: of these sides, and of no others among some fifty tried, LLVM makes no end: 16 to 18 rows, 16 or 17 contracted, 12 to 14 columns.
# With room to spare: at most so long, and not all of them whole vectors.
_SMALL = 32
_LANES = 8


def compiled(traced: jax.stages.Traced) -> jax.stages.Compiled:
    """`jax.jit(f).trace(...)`, compiled with what suits this backend, this version of XLA and these products; numbers change by rounding only."""
    return traced.lower().compile(compiler_options=options(traced.jaxpr.jaxpr))


def options(jaxpr: Any = None) -> dict[str, str | bool]:
    """For `jax.stages.Lowered.compile(compiler_options=...)`.

    With neither threads nor library XLA writes out small matrix products itself, and of some ([17, 17] x [17, 12], the attention of 17 slots in
    heads of 12) so much that its compiler ends for want of memory. Programs with products of that kind have all theirs from the library, at which
    small models are as fast (benchmarks/NOTES.md).
    """
    if jax.default_backend() != "cpu":
        return {}
    awkward = jaxpr is not None and any(max(sizes) <= _SMALL and any(n % _LANES for n in sizes) for sizes in _products(jaxpr))
    return _known_of("LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT" if awkward else "")


@functools.cache
def _known_of(library: str) -> dict[str, str | bool]:
    return {name: value for name, value in (_ON_CPU | {_LIBRARY: library}).items() if _known({name: value})}


def _known(option: dict[str, str | bool]) -> bool:
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=option)
    except jax.errors.JaxRuntimeError:  # another version, which knows no such option
        return False
    return True


def _products(jaxpr: Any) -> Iterator[tuple[int, int, int]]:
    """(rows, contracted, columns) of every matrix product, whatever it is batched over."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), (batch, _) = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.size
            depth, batches = (math.prod(left[axis] for axis in axes) for axes in (contracted, batch))
            rows = math.prod(left) // max(depth * batches, 1)
            yield rows, depth, out // max(rows * batches, 1)
        for inner in jaxprs_in_params(equation.params):
            yield from _products(inner)
