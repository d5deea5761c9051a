"""The router's choices: sums against means taken in NumPy, however the rows are batched, vmapped and ordered."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.evaluate import attribution_alignment, routing

EXPERTS = ("none", "both", "alone")  # not sorted: their order is the router's
NAMES = ("g", "h", "empty")


def drawn(n=40, seed=0):
    rng = np.random.default_rng(seed)
    gates = rng.dirichlet(np.ones(3), n).astype(np.float32)
    return dict(zip(EXPERTS, gates.T, strict=True)), rng.integers(-1, 2, n).astype(np.int32), np.ones(n, np.float32)


def summed(gates, group, weight):
    return jax.jit(lambda *arguments: routing.count(*arguments, num_groups=3))(gates, group, weight)


def ordered(gates, group, weight):
    """Called under jit and vmap with plain dicts made inside, as `Method.explain` makes them."""
    stacked = jnp.stack([gates[name] for name in EXPERTS])
    told = jnp.asarray(group), jnp.asarray(weight)
    one = lambda values: routing.count(dict(zip(EXPERTS, values, strict=True)), *told, num_groups=3)  # noqa: E731
    return jax.tree.map(lambda x: np.asarray(x)[0], jax.jit(jax.vmap(one))(stacked[None]))


def test_means_and_tops_of_every_group_are_those_of_its_rows():
    gates, group, weight = drawn()
    report = routing.finish(ordered(gates, group, weight), names=NAMES)
    table = np.stack([gates[name] for name in EXPERTS])
    assert list(report["groups"]) == ["g", "h"]  # the empty group is left out
    for told, rows in ((report["all"], group > -2), *((report["groups"][name], group == i) for i, name in enumerate("gh"))):
        assert told["n"] == rows.sum() and list(told["gates"]) == list(told["top"]) == list(EXPERTS)
        np.testing.assert_allclose(list(told["gates"].values()), table[:, rows].mean(1), rtol=1e-5)
        np.testing.assert_allclose(list(told["top"].values()), np.bincount(table[:, rows].argmax(0), minlength=3) / rows.sum(), rtol=1e-5)
        assert sum(told["gates"].values()) == pytest.approx(1) and sum(told["top"].values()) == pytest.approx(1)


def test_batches_add_up_and_rows_of_weight_0_change_nothing():
    gates, group, weight = drawn()
    whole = summed(gates, group, weight)
    parts = [summed({name: own[part] for name, own in gates.items()}, group[part], weight[part]) for part in (slice(13), slice(13, 40))]
    for a, b in zip(jax.tree.leaves(attribution_alignment.add(*parts)), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    padded = {name: np.append(own, np.float32(np.nan)) for name, own in gates.items()}
    more = summed(padded, np.append(group, np.int32(1)), np.append(weight, np.float32(0)))
    for a, b in zip(jax.tree.leaves(more), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_experts_of_the_same_gate_share_the_top_and_what_is_not_finite_is_none():
    gates = {"a": np.array([0.5, 0.2], np.float32), "b": np.array([0.5, 0.8], np.float32)}
    report = routing.finish(summed(gates, np.array([0, 0]), np.ones(2, np.float32)), names=NAMES)
    assert report["groups"]["g"]["top"] == {"a": 0.25, "b": 0.75}
    broken = routing.finish(summed({"a": np.array([np.nan], np.float32)}, np.array([0]), np.ones(1, np.float32)), names=NAMES)
    assert broken["all"] == {"n": 1.0, "gates": {"a": None}, "top": {"a": None}}
    with pytest.raises(ValueError, match="3 groups, but there are 1 names"):
        routing.finish(summed(gates, np.array([0, 0]), np.ones(2, np.float32)), names=("g",))
