"""Devices as a mesh with axes ("member", "data"): members of a sweep on one, the rows of a batch on the other."""

from __future__ import annotations

from typing import Any

import jax
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

    def one(x: ArrayLike) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, where, lambda part: x[part])

    return jax.tree.map(one, tree)
