"""Multi-modal learning that resists shortcuts: `run(config)` trains, evaluates and reports; `load(run_dir)` reads the results back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cimrl_jax.experiment import load, run

__version__ = "0.1.0"
__all__ = ["__version__", "load", "run"]


def __getattr__(name: str) -> Any:
    # Only on first use: `import cimrl_jax` does not import JAX.
    if name in ("load", "run"):
        from cimrl_jax import experiment

        return getattr(experiment, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
