"""What devices exchange in a step, read from compiled programs, and how its cost grows."""

from __future__ import annotations

import functools
import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import scaling

ROOT = pathlib.Path(__file__).parents[2]
DEVICES = 4
# No two sizes alike, so that a shape tells what it is.
SIZES = {"batch": 24, "tokens": 5, "modalities": 2, "classes": 3, "dim": 12}
HERE = """
import dataclasses, json, sys
from benchmarks import scaling
method, member, data = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sizes = scaling.Sizes(**json.loads(sys.argv[4]), members=member)
compiled = scaling.compile_chunk(scaling.program(method, sizes, mesh_member=member, mesh_data=data))
import jax
params = sum(4 * x.size for x in jax.tree.leaves(jax.eval_shape(compiled.states).params)) // member
print(json.dumps({"params": params, "found": [each._asdict() for each in scaling.collectives(compiled.chunk.as_text())]}))
"""


@functools.cache
def exchanged(method: str, member: int, data: int) -> tuple[int, list[scaling.Collective]]:
    """(bytes of a member's parameters, the exchanges) of a step on four fake devices, which need a process of their own."""
    environ = {**os.environ, "JAX_NUM_CPU_DEVICES": str(DEVICES), "PYTHONPATH": str(ROOT)}
    words = [method, str(member), str(data), json.dumps(SIZES)]
    done = subprocess.run([sys.executable, "-c", HERE, *words], env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    return said["params"], [scaling.Collective(own["kind"], tuple(own["shapes"]), own["bytes"], own["source"]) for own in said["found"]]


def test_exchanges_are_read_with_their_shapes_and_bytes():
    text = """
  %all-gather.1 = f32[1,24,5]{2,1,0} all-gather(%x), channel_id=1, dimensions={1}, metadata={op_name="jit(chunk)/gather"}
  %all-reduce.2 = (f32[4]{0}, bf16[2,3]{1,0}, pred[]) all-reduce(%a, %b, %c), to_apply=%add
  %all-gather-start.3 = (s32[6]{0}, s32[24]{0}) all-gather-start(%y), dimensions={0}
  %all-gather-done.3 = s32[24]{0} all-gather-done(%all-gather-start.3)
  %add.4 = f32[4]{0} add(%all-reduce.2, %z)
"""
    found = scaling.collectives(text)
    assert [(own.kind, own.shapes, own.bytes) for own in found] == [
        ("all-gather", ("f32[1,24,5]",), 480),
        ("all-reduce", ("f32[4]", "bf16[2,3]", "pred[]"), 16 + 12 + 1),
        ("all-gather", ("s32[24]",), 96),
    ]
    assert found[0].source == "jit(chunk)/gather" and found[0].shape == (1, 24, 5)


def test_rows_on_several_devices_exchange_gradients_and_no_activation():
    params, found = exchanged("erm", 1, DEVICES)
    assert {own.kind for own in found} == {"all-reduce"}
    gradients = sum(own.bytes for own in found)
    assert 0.9 * params < gradients < 1.1 * params  # biases that no gradient reaches, and a few sums


def test_cimrl_gathers_its_contrastive_codes_its_donors_and_nothing_else_of_size():
    b, n, dim = SIZES["batch"], SIZES["tokens"], SIZES["dim"]
    _, found = exchanged("cimrl", 1, DEVICES)
    gathered = [own for own in found if own.kind not in ("all-reduce",)]
    codes = [own for own in gathered if math.prod(own.shape) == b * dim]
    donors = [own for own in gathered if own.shape[-3:] == (b, n, scaling.WIDTH)]
    assert len(codes) == 1 and sorted(codes[0].shape[1:]) == sorted((b, dim))
    assert 0 < len(donors) <= SIZES["modalities"]
    # What is left is numbers per example or per slot: which donor, what it reads, in which order its slots come.
    rest = [own for own in gathered if own not in codes and own not in donors]
    assert all(math.prod(own.shape) <= b * max(n, SIZES["classes"], DEVICES) for own in rest), [own.shapes for own in rest]


@pytest.mark.parametrize("method", ["erm"])
def test_members_on_several_devices_exchange_metrics_only(method):
    _, found = exchanged(method, DEVICES, 1)
    assert {own.shape for own in found} <= {(DEVICES,)} and found


def test_growth_counts_operations_by_axis():
    records = {record["name"]: record for record in scaling.growth(["erm"], scaling.SMALL, rounds=2, axes=("batch",))}
    own = records["scaling/erm/batch"]
    assert own["sizes"] == [8, 16, 32] and own["flops"] == sorted(own["flops"]) and 0.5 < own["flops_exponent"] < 1.1
    assert {"ratio", "ratio_quartiles", "seconds", "time_ratio", "peak_bytes", "environment"} <= own.keys()
    json.dumps(own)
