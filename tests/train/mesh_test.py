"""How devices become a mesh, and what is said where they cannot."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from cimrl_jax.errors import UserError
from cimrl_jax.train import mesh as meshes


@pytest.fixture
def devices(monkeypatch):
    """Pretends to have that many devices; the made mesh is its shape."""

    def pretend(count):
        monkeypatch.setattr(jax, "device_count", lambda: count)
        monkeypatch.setattr(jax, "make_mesh", lambda shape, names, axis_types: dict(zip(names, shape, strict=True)))

    return pretend


def make(members, batch_size, **sizes):
    return meshes.make_mesh.__wrapped__(members=members, batch_size=batch_size, **sizes)


@pytest.mark.parametrize(
    ("count", "members", "given", "expected"),
    [
        (1, 5, {}, (1, 1)),
        (4, 5, {}, (1, 4)),
        (4, 2, {}, (2, 2)),
        (8, 4, {}, (4, 2)),
        (4, 8, {"mesh_member": 2}, (2, 2)),
        (8, 8, {"mesh_data": 4}, (2, 4)),
        (6, 2, {"mesh_member": 1, "mesh_data": 6}, (1, 6)),
    ],
)
def test_members_get_as_many_devices_as_divide_them_and_the_rows_the_rest(devices, count, members, given, expected):
    devices(count)
    assert make(members, 48, **given) == {"member": expected[0], "data": expected[1]}


@pytest.mark.parametrize(
    ("count", "members", "batch_size", "given", "message"),
    [
        (4, 4, 8, {"mesh_member": 3}, r"train.mesh_member \* train.mesh_data = 3 \* 1, expected 4"),
        (4, 4, 8, {"mesh_member": 2, "mesh_data": 4}, r"= 2 \* 4, expected 4, the number of devices"),
        (4, 4, 8, {"mesh_data": 8}, r"expected 4"),
        (4, 3, 8, {"mesh_member": 2}, r"a mesh of 2 x 2 devices needs a multiple of 2 members \(got 3\)"),
        (4, 3, 6, {}, r"a mesh of 1 x 4 devices .*train.batch_size is 6"),
    ],
)
def test_what_does_not_fit_is_said_with_the_keys_to_set(devices, count, members, batch_size, given, message):
    devices(count)
    with pytest.raises(UserError, match=message):
        make(members, batch_size, **given)


def test_the_axes_are_automatic_and_arrays_are_placed_whole():
    mesh = meshes.make_mesh(members=2, batch_size=3)
    assert mesh.axis_names == ("member", "data") and mesh.size == 1
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)
    rows = np.arange(6).reshape(2, 3)
    placed = meshes.place({"rows": rows}, meshes.sharding(mesh, "member", "data"))["rows"]
    np.testing.assert_array_equal(placed, rows)
    assert placed.sharding.spec == jax.sharding.PartitionSpec("member", "data")


def test_the_free_memory_is_what_devices_or_the_machine_say():
    psutil = pytest.importorskip("psutil", reason="needs psutil, which says independently how much memory is available")
    found = meshes.free_bytes(jax.local_devices())
    assert found is not None and found * jax.device_count() == pytest.approx(psutil.virtual_memory().available, rel=0.2)

    class Device:
        platform = "gpu"

        def __init__(self, stats):
            self.memory_stats = lambda: stats

    def of(*stats):
        return meshes.free_bytes([Device(own) for own in stats])

    assert of({"bytes_limit": 10, "bytes_in_use": 4}, {"bytes_limit": 10, "bytes_in_use": 7}) == 3
    assert of({"bytes_limit": 10, "bytes_in_use": 4}, None) is None
