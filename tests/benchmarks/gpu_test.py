"""What the GPU's script reads from programs, and that it says what a machine without one leaves unmeasured."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import gpu


def test_the_types_of_matrix_products_are_read_from_a_lowered_program():
    def f(x, y, z):
        return (x @ y).astype(jnp.float32) @ z

    shapes = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in (((3, 5), "bfloat16"), ((5, 7), "bfloat16"), ((7, 2), "float32"))]
    found = gpu.products(jax.jit(f).lower(*shapes).as_text())
    assert found == [("bf16", (3, 5), (5, 7)), ("f32", (3, 7), (7, 2))]


def test_donated_arguments_are_counted_in_the_compiled_program():
    def f(tree, x):
        return jax.tree.map(lambda own: own + x, tree), x * 2

    tree = {"a": jnp.ones(4), "b": jnp.ones((2, 3))}
    for donates, expected in (((0,), 2), ((), 0)):
        text = jax.jit(f, donate_argnums=donates).lower(tree, jnp.float32(1)).compile().as_text()
        assert gpu.donated(str(text)) == expected


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT", "matrix product"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32", "matrix product"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "attention"),
        ("MemcpyH2D", "copy"),
        ("input_reduce_fusion_3", "reduction"),
        ("loop_convert_fusion", "other fused"),
        ("ncclDevKernel_AllReduce", "exchange"),
        ("something", "other"),
    ],
)
def test_kernels_are_told_apart_by_name(name, kind):
    assert gpu.classify(name) == kind


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="it has a GPU")
def test_without_a_gpu_every_figure_that_needs_one_is_named():
    records = list(gpu.here("twin"))
    assert [own["name"] for own in records[:2]] == gpu.NEEDED["twin"] and all(own["unmeasured"] for own in records)


@pytest.mark.slow
def test_the_small_form_donates_all_state_and_counts_operations():
    records = {own["name"]: own for own in gpu.steps(gpu.SMALL, "small", gpu=False, methods=("erm",))}
    donation, mfu, types = (records[f"small/erm/{what}"] for what in ("donation", "mfu", "types"))
    assert donation["aliased"] == donation["leaves"] and mfu["flops"] > 0 and mfu["batch_size"] == 8
    # Codes and logits are float32, tokens are not: no product in float32 has a token's axis.
    tokens = {gpu.SMALL.words, gpu.SMALL.words + 2, (gpu.SMALL.image // gpu.SMALL.patch) ** 2 + 1}
    rows = {gpu.SMALL.batches[0] * count for count in tokens}
    assert not [own for own in types["float32"] if set(own["left"]) & rows]
    json.dumps(list(records.values()))
