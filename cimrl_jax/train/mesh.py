"""Devices as a mesh with axes ("member", "data"): members of a sweep on one, the rows of a batch on the other. They may be of several processes.

Of several processes each runs the whole program: all hold the same config and data set and draw the same rows, each feeds its own devices, and what
the host looks at is gathered to every one of them. Only the first writes files.
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import ArrayLike

from cimrl_jax.errors import UserError


def make_mesh(*, members: int, batch_size: int, mesh_member: int = 0, mesh_data: int = 0) -> Mesh:
    """The mesh over all devices; a size of 0 is chosen: as many devices on "member" as divide the members, the others on "data".

    Raises:
      UserError: the sizes do not multiply to the number of devices, or do not divide the members or the batch.
    """
    count = jax.device_count()
    if not mesh_member:
        mesh_member = count // mesh_data if mesh_data else max(k for k in range(1, count + 1) if count % k == 0 and members % k == 0)
    mesh_data = mesh_data or count // mesh_member
    if mesh_member * mesh_data != count:
        raise UserError(f"train.mesh_member * train.mesh_data = {mesh_member} * {mesh_data}, expected {count}, the number of devices")
    if members % mesh_member or batch_size % mesh_data:
        raise UserError(
            f"a mesh of {mesh_member} x {mesh_data} devices needs a multiple of {mesh_member} members (got {members}) and of {mesh_data} rows "
            f"(train.batch_size is {batch_size}); set train.mesh_member and train.mesh_data, or train.batch_size"
        )
    # Auto axes: Linen's Dropout and optax's integer-label gradients fail under Explicit ones.
    return jax.make_mesh((mesh_member, mesh_data), ("member", "data"), axis_types=(AxisType.Auto,) * 2)


def sharding(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """Array dimensions on mesh axes, in order; none: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec(*axes))


def place(tree: Any, where: NamedSharding) -> Any:
    """Arrays that every process holds whole, as global arrays."""

    def one(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(x.shape, where, lambda part: x[part])

    return on_host(one, tree)


def member(tree: Any, i: int, axis: int = 0) -> Any:
    """Member i of arrays of members, as arrays of one: views, where they are on the CPU."""
    part = (*(slice(None),) * axis, slice(i, i + 1))
    return on_host(lambda x: x[part], tree)


def members(trees: Sequence[Any]) -> Any:
    """Arrays of members of those of one each: NumPy's (keys remain what they are)."""
    return on_host(lambda *parts: np.concatenate(parts), *trees)


def on_host(one: Callable[..., ArrayLike], *trees: Any) -> Any:
    """`one` of the leaves as NumPy arrays, keys of random numbers through their numbers."""

    def leaf(*parts: Any) -> Any:
        first = parts[0]
        if isinstance(first, jax.Array) and jnp.issubdtype(first.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jnp.asarray(leaf(*map(jax.random.key_data, parts))), impl=jax.random.key_impl(first))
        return one(*map(np.asarray, parts))

    return jax.tree.map(leaf, *trees)


def free_bytes(devices: Sequence[Any]) -> float | None:
    """The memory that each of these devices of this process has left, the least; None where nobody says."""
    told = [device.memory_stats() for device in devices]
    if all(own and "bytes_limit" in own for own in told):
        return float(min(own["bytes_limit"] - own["bytes_in_use"] for own in told))
    if devices[0].platform != "cpu":
        return None
    try:
        lines = pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return None
    available = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if available is None else 1024.0 * int(available) / len(told)


def join() -> None:
    """Makes this process one of several that train together, unless it is already: as a cluster's scheduler says (SLURM, Open MPI, a TPU pod,
    Kubernetes), or the variables JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
      UserError: neither says which processes there are, or they do not find one another.
    """
    if jax.distributed.is_initialized():
        return
    count, number = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    try:
        given: dict[str, Any] = {"num_processes": int(count or ""), "process_id": int(number or "")} if count or number else {}
        # The others wait while the first evaluates.
        jax.distributed.initialize(**given, shutdown_timeout_seconds=7 * 24 * 3600)
    except (ValueError, RuntimeError) as error:
        expected = "start it under SLURM, Open MPI or on a TPU pod, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        raise UserError(f"train.distributed: cannot join the other processes ({' '.join(str(error).split())}); {expected}") from error


def abandon(code: int, reason: str) -> None:
    """Ends this process at once if others wait for it: they would wait for days, and so would it at its own end."""
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        print(reason, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(code)


def first() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return jax.process_index() == 0


def gathered(tree: Any) -> Any:
    """Global arrays as this process can look at them: of several processes, NumPy arrays on each; of one, as they are."""
    if jax.process_count() == 1:
        return tree

    def whole(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        return np.asarray(jax.jit(lambda x: x, out_shardings=NamedSharding(x.sharding.mesh, PartitionSpec()))(x))  # type: ignore[attr-defined]

    return jax.tree.map(whole, tree)


def agreed(value: Any) -> Any:
    """What the first process has of arrays that all have, so that none decides otherwise than the others."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(value))


def any_of(value: int) -> int:
    """The greatest of all processes' numbers."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(value))))
