"""What trained members rested on: identification against planted regions over a whole split, and a few examples to look at."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from cimrl_jax.data import pipeline
from cimrl_jax.data.source import Dataset, Source
from cimrl_jax.evaluate import attribution_alignment as alignment
from cimrl_jax.types import Batch, Method, Model, Params, Slots

BATCH = 100
"""Examples at a time: attribution keeps every member's activations."""


class Members(NamedTuple):
    """The trained members of one method: every leaf of the last three has a leading axis of members."""

    name: str
    method: Method
    model: Model
    params: Params
    state: Any
    hyper: dict[str, Array]


def examine(members: Members, dataset: Dataset, split: str, *, shown: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(each member's identification metrics and consistency under its edits, the first member's examples for the gallery)."""
    source, model = dataset.split(split), members.model
    measure = jax.jit(jax.vmap(_measure(members), in_axes=(0, 0, 0, None, None, None)))
    sums: Any = None
    for number, fields in enumerate(pipeline.evaluation_batches(source, min(BATCH, len(source)))):
        batch = Batch(**fields)
        part = measure(members.params, members.state, members.hyper, batch, _regions(model, source, fields["index"]), jax.random.key(number))
        sums = part if sums is None else alignment.add(sums, part)
    reports = []
    for i in range(len(next(iter(members.hyper.values())))):
        found, change = jax.tree.map(lambda x, i=i: np.asarray(x)[i], sums)
        report = alignment.finish(found)
        reports.append(report | ({"all": {"edit": alignment.consistency_report(change)}} if change is not None else {}))
    return reports, _examples(members, dataset, split, shown)


def _measure(members: Members) -> Any:
    model, method = members.model, members.method

    def one(params: Params, state: Any, hyper: Any, batch: Batch, regions: Any, key: Array) -> Any:
        slots = model.embed(params["model"], batch.inputs, batch.present)
        told = method.explain(state, hyper, model, params, batch, key)
        found = alignment.count(told["evidence"], told["chosen"], {m: s.mask for m, s in slots.items()}, regions, batch.weight)
        if "edited" not in told:
            return found, None
        before = _logits(model, params["model"], slots)
        after = _logits(model, params["model"], {m: Slots(told["edited"][m], s.mask) for m, s in slots.items()})
        return found, alignment.consistency(before, after, batch.weight)

    return one


def _logits(model: Model, params: Params, slots: dict[str, Slots]) -> Array:
    return model.decide(params, model.encode(params, slots)).logits


def _regions(model: Model, source: Source, rows: Int[np.ndarray, " b"]) -> dict[str, Any]:
    if source.regions is None:
        return {}
    return {target: model.regions({m: jnp.asarray(mask[rows]) for m, mask in masks.items()}) for target, masks in source.regions.items()}


def _examples(members: Members, dataset: Dataset, split: str, shown: int) -> list[dict[str, Any]]:
    """The same rows for every method: as even over groups as can be. Donors come from a batch of rows around them."""
    source, model, method = dataset.split(split), members.model, members.method
    rows = _spread(source.group, min(shown, len(source)))
    if not len(rows):
        return []
    others = np.setdiff1d(np.arange(len(source)), rows)[: max(64 - len(rows), 0)]
    batch = Batch(**pipeline.take(source, np.concatenate([rows, others])))
    params, state, hyper = jax.tree.map(lambda x: x[0], (members.params, members.state, members.hyper))

    @jax.jit
    def tell(params: Params, state: Any, hyper: Any, batch: Batch) -> Any:
        slots = model.embed(params["model"], batch.inputs, batch.present)
        told = method.explain(state, hyper, model, params, batch, jax.random.key(0))
        edited = {m: Slots(told["edited"][m], s.mask) for m, s in slots.items()} if "edited" in told else slots
        pictures = model.render(params["model"], {m: s.values for m, s in edited.items()})
        return told, jnp.argmax(_logits(model, params["model"], slots), -1), jnp.argmax(_logits(model, params["model"], edited), -1), pictures

    told, predicted, after, pictures = jax.device_get(tell(params, state, hyper, batch))
    return [_card(members, dataset, split, batch, i, told, predicted, after, pictures) for i in range(len(rows))]


def _card(
    members: Members, dataset: Dataset, split: str, batch: Batch, i: int, told: Any, predicted: np.ndarray, after: np.ndarray, pictures: Any
) -> dict[str, Any]:
    edited = "edited" in told
    image = next((m for m, f in dataset.features.items() if f.kind == "image"), None)
    text = next((m for m, f in dataset.features.items() if f.kind == "text"), None)
    group = int(batch.group[i])
    card: dict[str, Any] = {
        "id": f"{split}/{int(batch.index[i])}",
        "method": members.name,
        "split": split,
        "label": dataset.class_names[int(batch.label[i])],
        "predicted": dataset.class_names[int(predicted[i])],
        "group": dataset.group_names[group] if group >= 0 else "unknown",
        "evidence": {m: value[i] for m, value in told["evidence"].items()},
        "chosen": {m: value[i] for m, value in told["chosen"].items()},
        "grid": {m: spec.grid for m, spec in members.model.slots.items() if spec.grid},
    }
    if edited:
        card["edited_predicted"] = dataset.class_names[int(after[i])]
    if image is not None:
        card["image"] = np.asarray(batch.inputs[image][i])
        card["edited_image"] = pictures[image][i] if edited else None
    if text is not None:
        words = dataset.features[text].vocabulary
        ids = np.asarray(batch.inputs[text][i])
        card["words"] = [words[k] for k in ids[ids > 0]]
        card["edited_words"] = [words[k] for k in pictures[text][i][: len(card["words"])]] if edited else None
    return card


def _spread(group: np.ndarray, count: int) -> np.ndarray:
    """Rows taken from every group in turn."""
    queues = [np.flatnonzero(group == g) for g in np.unique(group)]
    longest = max(map(len, queues), default=0)
    return np.array([queue[k] for k in range(longest) for queue in queues if k < len(queue)][:count], np.int64)
