"""Set before JAX is imported: the CPU, a compile cache that makes the suite's second run fast, and run-time checks of every annotated shape."""

import gc
import os
import pathlib
import sys
import types
from collections.abc import Callable, Iterator

import beartype
import beartype.roar
import jaxtyping
import pytest

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "cimrl_jax" / "tests"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# With XLA's own caches on, the key would hold the folder's path.
os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")
# Tiny programs run for milliseconds and compile for seconds: three times as fast with little optimisation.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# A trace makes millions of objects that live on in caches: looking through them every 700 takes up to a tenth of the time.
gc.set_threshold(50_000, 20, 50)

MAPPINGS = pathlib.Path("/proc/self/maps")

CHECKED = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))  # an int may stand where a float belongs


def check(function: Callable) -> Callable:
    """Functions are checked as they are called, records are not as they are made: JAX rebuilds them with leaves that are no arrays (None, shapes,
    shardings), and those that check themselves must be free to refuse a wrong value in their own words."""
    if function.__name__ == "__init__":
        return function
    try:
        return CHECKED(function)
    except beartype.roar.BeartypeDecorHintPep3119Exception:  # a protocol: only pyright can tell
        return function


# jaxtyping takes the checker by its full name.
hook = types.ModuleType("annotations_hook")
hook.check = check  # pyright: ignore[reportAttributeAccessIssue]
sys.modules[hook.__name__] = hook
jaxtyping.install_import_hook("cimrl_jax", f"{hook.__name__}.check")


@pytest.fixture(autouse=True, scope="module")
def forget_programs() -> Iterator[None]:
    """A compiled program holds dozens of memory mappings, of which Linux allows a process 65,530: with the whole suite's programs LLVM dies."""
    yield
    if "jax" in sys.modules and MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > 20_000:
        sys.modules["jax"].clear_caches()
