"""The fused step: gather, augment, every loss of the method, attribution, memory, counterfactuals, gradient and update in one function of the state.

It is written for one member; `make_chunk` maps it over members and runs many steps in one call, so that the host never looks inside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer, Key

from cimrl_jax.train.optimizer import MakeOptimizer
from cimrl_jax.types import Batch, Method, Metrics, Model, Params, Spec, Stage, TrainState

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Averages = dict[str, Float[Array, " s"]]
"""Every member's metrics."""


def init_params(key: Key[Array, ""], *, model: Model, method: Method, spec: Spec) -> tuple[Params, Any]:
    """({"model", "method"}: fresh parameters, the method's state)."""
    own, state = method.init(jax.random.fold_in(key, 1), spec)
    return {"model": model.init(jax.random.fold_in(key, 0)), "method": own}, state


def init_member(
    seed: int | Integer[Array, ""],
    hyper: Mapping[str, float | Float[Array, ""]],
    *,
    model: Model,
    method: Method,
    spec: Spec,
    optimizer: MakeOptimizer,
) -> TrainState:
    """One member's state before the first step."""
    key, traced = jax.random.key(seed), {name: jnp.asarray(value, jnp.float32) for name, value in hyper.items()}
    params, state = init_params(key, model=model, method=method, spec=spec)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=key,
        params=params,
        opt_state=optimizer(traced).init(params),
        method=state,
        hyper=traced,
    )


def make_step(model: Model, stage: Stage, optimizer: MakeOptimizer, *, augment: bool) -> Step:
    """One update of one member in a stage that has a loss."""
    assert stage.loss is not None
    loss = stage.loss

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = _address(state.key, state.step)
        if augment:
            seen = model.perturb(batch.inputs, jax.random.fold_in(key, 0))
            batch = dataclasses.replace(batch, inputs={m: batch.inputs[m] if m in model.fed else seen[m] for m in seen})
        # A row that weighs nothing has no modality: whatever fills it up, NaN included, reaches no gradient.
        batch = dataclasses.replace(batch, present={m: here & (batch.weight > 0) for m, here in batch.present.items()})

        moves = _moves(model, stage, state.params)

        def objective(params: Params) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
            params = jax.tree.map(lambda x, own: x if own else jax.lax.stop_gradient(x), params, moves)
            return loss(state.method, state.hyper, model, params, batch, jax.random.fold_in(key, 1))

        gradient, (method, metrics) = jax.grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer(state.hyper).update(gradient, state.opt_state, state.params)
        updates = jax.tree.map(lambda x, own: x if own else jnp.zeros_like(x), updates, moves)  # weight decay would move them
        if model.rates is not None:
            updates = _paced(updates, model.rates)
        params = optax.apply_updates(state.params, updates)
        metrics = metrics | {"gradient_norm": optax.tree.norm(gradient)}
        return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state, method=method), metrics

    return step


def _paced(updates: Params, rates: Params) -> Params:
    """The model's parameters, and likewise those of a method's second network, each at its share of the learning rate."""

    def network(tree: Any) -> bool:
        return jax.tree.structure(tree) == jax.tree.structure(rates)

    return jax.tree.map(lambda own: jax.tree.map(jnp.multiply, own, rates) if network(own) else own, updates, is_leaf=network)


def _address(key: Key[Array, ""], step: Int[Array, ""]) -> Key[Array, ""]:
    """The key of a member's step: an address, not a history (see TrainState.key)."""
    return jax.random.fold_in(jax.random.fold_in(key, 2), step)


def make_prepare(
    model: Model, leaders: Sequence[int], followed: Sequence[int], *, augment: bool, together: int = 0
) -> Callable[[TrainState, Batch], Batch] | None:
    """`(states [s], batch [s, b, ...]) -> batch` in which frozen encoders' features stand in the place of what they read; None: nothing to do.

    Members that see the same examples share them: only the `leaders` are computed, member i takes those of `leaders[followed[i]]`. `together`: as of
    `make_chunk`.
    """
    if model.prepare is None:
        return None
    make, first, mine = model.prepare, np.asarray(leaders), np.asarray(followed)

    def prepare(states: TrainState, batch: Batch) -> Batch:
        def one(key: Key[Array, ""], step: Int[Array, ""], inputs: dict[str, Array], present: dict[str, Array]) -> dict[str, Array]:
            made = make(inputs, present, jax.random.fold_in(_address(key, step), 0) if augment else None)
            return {m: made[m] for m in model.fed}

        few = jax.tree.map(lambda x: x[first], (states.key, states.step, batch.inputs, batch.present))
        made = in_groups(lambda own: one(*own), few, together) if together else jax.vmap(one)(*few)
        return dataclasses.replace(batch, inputs={**batch.inputs, **jax.tree.map(lambda x: x[mine], made)})

    return prepare


def _moves(model: Model, stage: Stage, params: Params) -> Any:
    """Which parameters the stage trains."""
    everything = stage.trains == "all"
    moves = jax.tree.map(lambda _: everything, params)
    return moves if everything else moves | {"model": model.head.put(moves["model"], True, True)}


def resident(data: tuple[Batch, Int[Array, "k s b"]], k: Int[Array, ""]) -> Batch:
    """Every member's k-th batch `[s, b, ...]`, gathered from columns that hold the whole split on the device."""
    columns, rows = data
    return jax.vmap(lambda own: jax.tree.map(lambda column: column[own], columns))(rows[k])


def streamed(data: Batch, k: Int[Array, ""]) -> Batch:
    """Every member's k-th batch `[s, b, ...]`, from a chunk of batches `[k, s, b, ...]` that came from the host."""
    return jax.tree.map(lambda column: column[k], data)


def in_groups(one: Callable[[Any], Any], members: Any, together: int) -> Any:
    """`vmap(one)(members)` for groups of `together` members one after the other, the last of what is left.

    A group takes members from everywhere, not neighbours: those lie on one device, and the others would have nothing to do.
    """
    count = len(jax.tree.leaves(members)[0])
    whole = count - count % together
    split = jax.tree.map(lambda x: x[:whole].reshape(together, whole // together, *x.shape[1:]).swapaxes(0, 1), members)
    made = jax.lax.map(jax.vmap(one), split)
    made = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(whole, *x.shape[2:]), made)
    if whole == count:
        return made
    rest = jax.vmap(one)(jax.tree.map(lambda x: x[whole:], members))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), made, rest)


def make_chunk(
    step: Step,
    fetch: Callable[[Any, Int[Array, ""]], Batch],
    *,
    together: int = 0,
    prepare: Callable[[TrainState, Batch], Batch] | None = None,
) -> Callable[..., tuple[TrainState, Averages]]:
    """`(states [s], data, count) -> (states, metrics [s])`: `count` steps of every member on what `fetch` takes from data (see `make_prepare`).

    Metrics are averaged over the steps. `count` is traced: a shorter last chunk runs the same program. `together` members are vmapped at a time, the
    groups of them run one after the other (0: all at once).
    """

    def chunk(states: TrainState, data: Any, count: Int[Array, ""]) -> tuple[TrainState, Averages]:
        def one(states: TrainState, k: Int[Array, ""]) -> tuple[TrainState, Averages]:
            batch = fetch(data, k)
            members = (states, batch if prepare is None else prepare(states, batch))
            return in_groups(lambda own: step(*own), members, together) if together else jax.vmap(step)(*members)

        one = jax.jit(one)  # traced once, for the shapes that it gives and for the loop's body
        shapes = jax.eval_shape(one, states, count)[1]

        def body(k: Int[Array, ""], carry: tuple[TrainState, Averages]) -> tuple[TrainState, Averages]:
            states, metrics = one(carry[0], k)
            return states, jax.tree.map(jnp.add, carry[1], metrics)

        first = jnp.zeros_like(count)  # a bare 0 would have a weak type, and the step would be traced once more
        states, totals = jax.lax.fori_loop(first, count, body, (states, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)))
        return states, jax.tree.map(lambda x: x / jnp.maximum(count, 1), totals)

    return chunk
