"""Predictions of all members of a sweep over a whole split, by one jitted function whose shapes never change."""

from __future__ import annotations

import collections
import concurrent.futures
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float

from cimrl_jax.data import pipeline
from cimrl_jax.data.source import Source
from cimrl_jax.nn.model import bound
from cimrl_jax.types import Hyper, Method, Model, Params

IN_FLIGHT = 2
"""Batches that the device may have waiting."""
AHEAD = pipeline.cores()
"""Batches that the host loads at a time, a thread each (more threads than cores are slower)."""


class Members(NamedTuple):
    """Trained members of one method: every leaf has a leading axis of members."""

    params: Params
    """{"model", "method"}"""
    state: Any
    """The method's."""
    hyper: Hyper


class Said(NamedTuple):
    """What members say of a split, on the host."""

    logits: Float[np.ndarray, "s n c"]
    features: Float[np.ndarray, "s n k"]
    """k = 0 unless asked for."""
    inferred: Float[np.ndarray, "s n m c"]
    """`Method.infer` for every modality in the order of their names; m = 0 for methods without."""
    modes: Mapping[str, Float[np.ndarray, "s n c"]] = {}
    """The logits of each of `Method.modes`; none unless asked for."""


Predict = Callable[[Members, Source], Said]


def make_predict(
    model: Model,
    method: Method | None = None,
    *,
    batch_size: int = 500,
    sharding: NamedSharding | None = None,
    resident: bool = True,
    features: bool = False,
    modes: bool = False,
    placed: dict[int, tuple[Source, Any]] | None = None,
) -> Predict:
    """Returns `predict(members, source)`. The model is traced once for all calls and splits.

    The logits (float32) are the method's prediction if it has one of its own, else the model's; `features` are `Model.head.features`; `modes`
    asks for the method's other predictions, in the same pass.
    The model is vmapped over members. The last batch is filled up with repeated rows that are
    cut off again. Where `source.arrays` is there and `resident` is true, the split is put on the device at its first use and stays there as long as
    the returned function, or `placed`, lives (several functions may share one); otherwise batches are loaded while the device computes. `sharding`
    spreads the examples of a batch over a mesh, e.g. `P("data")`; the batch size is then rounded up to a multiple of the devices that they are spread
    over. In a run of several processes each calls with the same source and gets all logits.
    """
    replicated = None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())
    if sharding is not None:
        shards = sharding.mesh.size // sharding.shard_shape((sharding.mesh.size,))[0]
        batch_size = -(-batch_size // shards) * shards

    predicted, infer = (method.predict, method.infer) if method else (None, None)
    others = dict(method.modes) if method and modes else {}
    default = next((name for name, mode in others.items() if mode is predicted), None)

    def forward(model: Model, members: Members, inputs: Any, present: Any) -> Said:
        params = members.params["model"]
        slots = model.embed(params, inputs, present)
        codes = model.encode(params, slots)
        own = (members.state, members.hyper, model, members.params)
        also = {name: mode(*own, slots, codes).astype(jnp.float32) for name, mode in others.items()}
        if default in also:
            logits = also[default]
        else:
            logits = (predicted(*own, slots, codes) if predicted else model.decide(params, codes).logits).astype(jnp.float32)
        told = infer(*own, slots) if infer else {}
        inferred = jnp.stack([told[m] for m in sorted(told)], axis=1) if told else jnp.zeros((len(logits), 0, logits.shape[-1]))
        wide = model.head.features(codes)
        return Said(logits, wide if features else wide[..., :0], inferred, also)  # type: ignore[arg-type]

    def for_all(held: Any, members: Members, records: Any) -> Said:
        own, inputs, present = bound(model, held), records["inputs"], records["present"]
        inputs = inputs if own.prepare is None else own.prepare(inputs, present)
        return jax.vmap(functools.partial(forward, own), in_axes=(0, None, None))(members, inputs, present)

    forward_all, held_values = jax.jit(for_all, out_shardings=replicated), jax.device_put(model.held, replicated)
    gather = jax.jit(lambda arrays, rows: jax.tree.map(lambda column: column[rows], arrays), out_shardings=sharding)
    placed = {} if placed is None else placed

    def batches(source: Source) -> Iterator[Any]:
        arrays = source.arrays if resident else None
        if arrays is not None and id(source) not in placed:
            placed[id(source)] = source, jax.device_put(arrays, replicated)  # the source is kept, so that its id stays its own
        rows, _ = pipeline.evaluation_rows(len(source), batch_size)
        if arrays is not None:
            for row in rows:
                yield gather(placed[id(source)][1], jax.device_put(row.astype(np.int32), sharding))
            return
        with concurrent.futures.ThreadPoolExecutor(AHEAD) as pool:
            loading = collections.deque(pool.submit(source.load, row) for row in rows[:AHEAD])
            for number in range(len(rows)):
                records = loading.popleft().result()
                if number + AHEAD < len(rows):
                    loading.append(pool.submit(source.load, rows[number + AHEAD]))
                yield jax.device_put(records, sharding)

    def run(members: Members, source: Source) -> Said:
        if predicted is None and infer is None and not others:  # so that all methods share one compile
            members = Members({"model": members.params["model"]}, (), {})
        waiting: collections.deque[Said] = collections.deque()
        done: list[Said] = []
        for records in batches(source):
            waiting.append(forward_all(held_values, members, records))
            if len(waiting) > IN_FLIGHT:
                done.append(jax.device_get(waiting.popleft()))
        done.extend(jax.device_get(said) for said in waiting)
        if not done:
            raise ValueError("the source has no rows to predict")
        said = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1)[:, : len(source)], *done)
        return said._replace(modes={name: said.modes[name] for name in others})  # in the method's own order, which jit's sorting lost

    return run
