"""What XLA is told when the fused step is compiled."""

from __future__ import annotations

import functools

import jax

_YNN = "xla_cpu_experimental_ynn_fusion_type"
"""Which operations XLA on the CPU hands to the library YNNPACK; empty: none. Without it a CIMRL step took .82 of the processor's time: its matrix
products ran at three quarters of the rate of XLA's own (benchmarks/NOTES.md)."""


@functools.cache
def options() -> dict[str, str | bool]:
    """For `jax.stages.Lowered.compile(compiler_options=...)`, on this backend and this version of XLA; numbers change by rounding only."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options={_YNN: ""})
    except jax.errors.JaxRuntimeError:  # another version, which knows no such option
        return {}
    return {_YNN: ""}
