"""XLA's count against the known cost of a matrix product, in every form in which backends answer."""

from __future__ import annotations

import time
import types

import jax
import jax.numpy as jnp
import pytest

from cimrl_jax.evaluate import efficiency


def compiled(size):
    a = jnp.ones((size, size))
    return jax.jit(lambda x, y: x @ y).lower(a, a).compile()


def test_the_cost_of_a_matrix_product():
    cost = efficiency.cost(compiled(64))
    assert cost["flops"] == pytest.approx(2 * 64**3, rel=0.01)
    peak = cost["peak_bytes"]
    assert peak is not None and 3 * 64 * 64 * 4 <= peak <= 12 * 64 * 64 * 4
    twice = efficiency.relative(efficiency.cost(compiled(128)), cost)
    assert twice["flops"] == pytest.approx(8, rel=0.01) and twice["peak_bytes"] == pytest.approx(4, rel=0.1)


X, W = jnp.ones((5, 8)), jnp.ones((8, 8))
ONE = 2 * 5 * 8 * 8
"""The operations of X @ W."""


def looped(x, w):
    return jnp.sum(jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=7)[0])


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda x, w: x @ w, 1),
        (jax.jit(lambda x, w: jax.nn.relu(x @ w) @ w), 2),
        (looped, 7),  # XLA counts the body once
        (jax.grad(looped), 14),
        (jax.grad(looped, argnums=(0, 1)), 21),
        (lambda x, w: jax.vmap(lambda row: row @ w)(x), 1),
        (lambda x, w: jnp.einsum("bi,ij->bj", x, w), 1),
        (lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w), 2),
        (lambda x, w: x + 1, 0),
    ],
)
def test_matrix_products_are_counted_from_their_shapes(function, products):
    assert efficiency.product_flops(function, X, W) == products * ONE


def test_a_convolution_costs_what_xla_says():
    image, kernel = jnp.ones((2, 9, 9, 3)), jnp.ones((3, 3, 3, 8))

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(image, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert efficiency.product_flops(convolve, image, kernel) == efficiency.cost(jax.jit(convolve).lower(image, kernel).compile())["flops"]


def answer(flops, memory):
    return types.SimpleNamespace(cost_analysis=lambda: flops, memory_analysis=lambda: memory)


def refuse():
    raise NotImplementedError("not on this backend")


PARTS = {"argument_size_in_bytes": 30, "output_size_in_bytes": 20, "temp_size_in_bytes": 10, "alias_size_in_bytes": 5}


@pytest.mark.parametrize("flops", [{"flops": 8.0}, [{"flops": 8.0}], ({"flops": 8.0},), types.SimpleNamespace(flops=8.0)])
@pytest.mark.parametrize("memory", [PARTS, types.SimpleNamespace(**PARTS), [types.SimpleNamespace(**PARTS)], {"peak_memory_in_bytes": 55, **PARTS}])
def test_every_form_of_the_answer_is_read(flops, memory):
    assert efficiency.cost(answer(flops, memory)) == {"flops": 8.0, "peak_bytes": 55.0}


@pytest.mark.parametrize("flops", [None, [], {}, {"flops": -1.0}, {"bytes accessed": 3.0}])
@pytest.mark.parametrize("memory", [None, {}, types.SimpleNamespace()])
def test_what_is_not_known_is_none(flops, memory):
    unknown = {"flops": None, "peak_bytes": None}
    assert efficiency.cost(answer(flops, memory)) == unknown
    assert efficiency.cost(types.SimpleNamespace(cost_analysis=refuse, memory_analysis=refuse)) == unknown
    assert efficiency.relative(unknown, {"flops": 3.0, "peak_bytes": 0.0}) == unknown


def test_rates():
    assert efficiency.examples_per_second(64, 0.5) == 128
    assert efficiency.examples_per_second(64, 0.0) is None
    assert efficiency.mfu(1e9, 0.1, 4e10) == pytest.approx(0.25)
    assert efficiency.mfu(None, 0.1, 4e10) is None and efficiency.mfu(1e9, 0.1, None) is None
    rate = efficiency.matrix_rate(size=64, repeats=2)
    assert 1e6 < rate < 1e16


def test_relative_covers_shared_keys_only():
    assert efficiency.relative({"flops": 6.0, "extra": 1.0}, {"flops": 2.0, "peak_bytes": 1.0}) == {"flops": 3.0}


def test_latencies_are_medians_of_calls_that_take_turns():
    turns = []

    def fast():
        turns.append("fast")

    def slow():
        turns.append("slow")
        time.sleep(0.2 if turns.count("slow") == 3 else 0.01)  # one outlier, after a warm-up of one

    seconds = efficiency.latency({"fast": fast, "slow": slow}, repeats=5, warmup=1)
    assert turns[2:] == ["fast", "slow"] * 5
    assert seconds["fast"] < 0.01 <= seconds["slow"] < 0.2
