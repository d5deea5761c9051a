"""What XLA is told when the fused step is compiled."""

from __future__ import annotations

import functools

import jax

_ON_CPU: dict[str, str | bool] = {
    # Which operations are handed to the library YNNPACK; empty: none. Without it a CIMRL step took .82 of the processor's time: its matrix products
    # ran at three quarters of the rate of XLA's own (benchmarks/NOTES.md).
    "xla_cpu_experimental_ynn_fusion_type": "",
    # No small operation is parted among threads: a step of small models took .4 to .9 of the time, one of a ViT-Ti as long as before
    # (benchmarks/NOTES.md).
    "xla_cpu_multi_thread_eigen": False,
}


@functools.cache
def options() -> dict[str, str | bool]:
    """For `jax.stages.Lowered.compile(compiler_options=...)`, on this backend and this version of XLA; numbers change by rounding only."""
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in _ON_CPU.items() if _known({name: value})}


def _known(option: dict[str, str | bool]) -> bool:
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=option)
    except jax.errors.JaxRuntimeError:  # another version, which knows no such option
        return False
    return True
