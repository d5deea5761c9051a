"""Whom a router chooses: the mean weight of each expert in every group, and how often it is the one with the highest.

`count` gives sums that merge by addition over batches and hosts; `finish` divides on the host.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cimrl_jax.metrics import Report


class Sums(NamedTuple):
    """By expert, in the router's order (an OrderedDict: jit and vmap would sort a plain one). Of the g + 1 rows the last is the unknown group's."""

    gates: Mapping[str, Float[Array | np.ndarray, "*s rows"]]
    top: Mapping[str, Float[Array | np.ndarray, "*s rows"]]
    """Examples in which the expert has the highest gate; those in which several have share it."""
    weight: Float[Array | np.ndarray, "*s rows"]


def count(gates: Mapping[str, Float[Array, " b"]], group: Int[Array, " b"], weight: Float[Array, " b"], *, num_groups: int) -> Sums:
    """The sums of one batch. `gates` as `Method.explain` gives them; a group outside 0..g-1 counts as unknown; rows of weight 0 change nothing."""
    values = jnp.where(weight > 0, jnp.stack(list(gates.values())), 0.0)  # [e, b]
    best = (values == values.max(0)).astype(jnp.float32)
    known = (group >= 0) & (group < num_groups)
    rows = jax.nn.one_hot(jnp.where(known, group, num_groups), num_groups + 1) * jnp.where(weight > 0, weight, 0.0)[:, None]  # [b, g+1]

    def summed(x: Float[Array, "e b"]) -> OrderedDict[str, Float[Array, " rows"]]:
        return OrderedDict(zip(gates, jnp.einsum("eb,bg->eg", x, rows, precision="highest"), strict=True))

    return Sums(summed(values), summed(best / best.sum(0)), rows.sum(0))


def finish(sums: Sums, *, names: Sequence[str]) -> Report:
    """{"all" and "groups": {name}: {"n", "gates": {expert: mean}, "top": {expert: share of the examples}}} of one member; None where no example is.
    Groups without examples are left out.

    Raises:
      ValueError: the number of names is not that of the groups.
    """
    sums = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
    if len(sums.weight) != len(names) + 1:
        raise ValueError(f"the sums are of {len(sums.weight) - 1} groups, but there are {len(names)} names")

    def told(rows: slice) -> Report:
        n = float(sums.weight[rows].sum())

        def means(part: Mapping[str, Any]) -> Report:
            totals = {expert: float(own[rows].sum()) for expert, own in part.items()}
            return {expert: total / n if n > 0 and np.isfinite(total) else None for expert, total in totals.items()}

        return {"n": n, "gates": means(sums.gates), "top": means(sums.top)}

    return {"all": told(slice(None)), "groups": {name: told(slice(i, i + 1)) for i, name in enumerate(names) if sums.weight[i] > 0}}
