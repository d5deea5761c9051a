"""What trained members rested on: identification and the router's choices over a whole split, and a few examples to look at."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cimrl_jax.data import pipeline
from cimrl_jax.data.feature_store import Stored
from cimrl_jax.data.source import Dataset, Source
from cimrl_jax.evaluate import attribution_alignment as alignment
from cimrl_jax.evaluate import probe, routing
from cimrl_jax.evaluate.predict import Members
from cimrl_jax.metrics import Report
from cimrl_jax.nn.model import bound
from cimrl_jax.types import Batch, Feature, Method, Model, Slots, SlotSpec

BATCH = 100
"""Examples at a time: attribution keeps every member's activations."""


MASKED = "\N{WHITE SQUARE}"
"""What stands for a word in whose place the mask embedding is: the nearest word to that would say nothing."""


class Explained(NamedTuple):
    """The trained members of one method, and what they are made of."""

    name: str
    method: Method
    model: Model
    members: Members


class Examined(NamedTuple):
    """What `examine` found."""

    identification: list[dict[str, Any]]
    """Each member's metrics of identification; what its edits leave to be read (`probe.probe`, "probe"); under "all" its consistency under them
    ("edit"); its `Method.verdicts` ("verdict")."""
    routing: list[dict[str, Any] | None]
    """Each member's `routing.finish` over groups ("of": "groups"), or over classes where no group is known, with the "split"; None without gates."""
    cards: list[dict[str, Any]]
    """The first member's examples for the gallery."""


def examine(own: Explained, dataset: Dataset, split: str, *, shown: int) -> Examined:
    """One pass over the split for all members, and a look at `shown` of its examples."""
    source, model = dataset.split(split), own.model
    grouped = bool((source.group >= 0).any())
    names = dataset.group_names if grouped else dataset.class_names

    @jax.jit
    def measure(held: Any, members: Members, batch: Batch, *rest: Any) -> Any:
        bare = own._replace(model=bound(model, held))
        one = _measure(bare, num_groups=len(names), grouped=grouped)
        return jax.vmap(one, in_axes=(0, None, None, None))(members, _prepared(bare.model, batch), *rest)

    members = len(next(iter(own.members.hyper.values())))
    apart = probe.stride(model.slots, rows=len(source), members=members)
    sums, pairs, told = None, [], []
    for number, fields in enumerate(pipeline.evaluation_batches(source, min(BATCH, len(source)))):
        batch = Batch(**fields)
        *part, pair = measure(model.held, own.members, batch, _regions(model, source, fields["index"]), jax.random.key(number))
        sums = part if sums is None else alignment.add(sums, part)
        rows = np.flatnonzero((fields["weight"] > 0) & (fields["index"] % apart == 0))
        pairs.append(jax.tree.map(lambda x, rows=rows: np.asarray(x)[:, rows], pair))
        told.append([fields[name][rows] for name in ("label", "group")])
    label, group = (np.concatenate(column) for column in zip(*told, strict=True))
    probed = _probed(pairs, label, _attributes(dataset, group))
    identification, routed = [], []
    for i in range(members):
        found, change, gates = jax.tree.map(lambda x, i=i: np.asarray(x)[i], sums)
        report = alignment.finish(found)
        if change is not None:
            report["all"] = {"edit": alignment.consistency_report(change)}
        for m, reports in probed.items():
            report.setdefault(m, {})["probe"] = reports[i]
        if own.method.verdicts is not None:
            decided = own.method.verdicts(jax.tree.map(lambda x, i=i: x[i], own.members.state), sorted(model.slots))
            for place, numbers in decided.items():
                report.setdefault(place, {})["verdict"] = {name: float(value) for name, value in numbers.items()}
        identification.append(report)
        about = {"split": split, "of": "groups" if grouped else "classes"}
        routed.append(None if gates is None else about | routing.finish(gates, names=names))
    return Examined(identification, routed, _examples(own, dataset, split, shown))


def _measure(own: Explained, *, num_groups: int, grouped: bool) -> Any:
    model, method = own.model, own.method

    def one(member: Members, batch: Batch, regions: Any, key: Array) -> Any:
        slots = model.embed(member.params["model"], batch.inputs, batch.present)
        told = method.explain(member.state, member.hyper, model, member.params, batch, key)
        found = alignment.count(told["evidence"], told["chosen"], {m: s.mask for m, s in slots.items()}, regions, batch.weight)
        gates, group = told.get("gates"), batch.group if grouped else batch.label
        routed = routing.count(gates, group, batch.weight, num_groups=num_groups) if gates else None
        if "edited" not in told:
            return found, None, routed, None
        before = _logits(own, member, slots)
        after = _logits(own, member, told["edited"])
        pair = probe.kept(slots), probe.kept(told["edited"])
        return found, alignment.consistency(before, after, batch.weight), routed, pair

    return one


def _probed(pairs: list[Any], label: Int[np.ndarray, " r"], attribute: Int[np.ndarray, " r"]) -> dict[str, list[Report]]:
    """By modality each member's `probe.probe`; {} where nothing is edited."""
    if pairs[0] is None:
        return {}
    before, after = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *pairs)
    return {m: probe.probe(before[m], after[m], label, attribute) for m in before}


def _attributes(dataset: Dataset, group: Int[np.ndarray, " r"]) -> Int[np.ndarray, " r"]:
    """-1 where the group is unknown, or is not of a label and an attribute."""
    return np.where(group >= 0, np.array([*dataset.group_attribute, -1])[group], -1) if dataset.group_attribute else np.full(len(group), -1)


def _prepared(model: Model, batch: Batch) -> Batch:
    """With frozen encoders' features in the place of what they read."""
    return batch if model.prepare is None else dataclasses.replace(batch, inputs=model.prepare(batch.inputs, batch.present))


def _logits(own: Explained, member: Members, slots: dict[str, Slots]) -> Array:
    """The method's prediction."""
    codes = own.model.encode(member.params["model"], slots)
    if own.method.predict is None:
        return own.model.decide(member.params["model"], codes).logits
    return own.method.predict(member.state, member.hyper, own.model, member.params, slots, codes)


def _is_blank(values: Float[Array, "*b d"], blank: Float[Array, " d"]) -> Bool[Array, "*b"]:
    """Which slots are the mask embedding, but for the rounding of an edit that went part of the way."""
    return jnp.max(jnp.abs(values - blank), axis=-1) <= 1e-5 * jnp.max(jnp.abs(values))


def _regions(model: Model, source: Source, rows: Int[np.ndarray, " b"]) -> dict[str, Any]:
    if source.regions is None:
        return {}
    return {target: model.regions({m: jnp.asarray(mask[rows]) for m, mask in masks.items()}) for target, masks in source.regions.items()}


def _examples(own: Explained, dataset: Dataset, split: str, shown: int) -> list[dict[str, Any]]:
    """The same rows for every method: as even over groups as can be. Donors come from a batch of rows around them."""
    source, method = dataset.split(split), own.method
    rows = _spread(source.group, min(shown, len(source)))
    if not len(rows):
        return []
    others = np.setdiff1d(np.arange(len(source)), rows)[: max(64 - len(rows), 0)]
    batch = Batch(**pipeline.take(source, np.concatenate([rows, others])))
    first = jax.tree.map(lambda x: x[0], own.members)

    @jax.jit
    def tell(held: Any, member: Members, batch: Batch) -> Any:
        model = bound(own.model, held)
        batch = _prepared(model, batch)
        slots = model.embed(member.params["model"], batch.inputs, batch.present)
        told = method.explain(member.state, member.hyper, model, member.params, batch, jax.random.key(0))
        edited = told.get("edited", slots)
        blank = member.params["model"].get("blank", {})
        pictures = model.render(member.params["model"], {m: s.values for m, s in edited.items()})
        blanked = {m: _is_blank(edited[m].values, own) for m, own in blank.items()}
        bare = own._replace(model=model)
        told = {name: collections.OrderedDict(part) for name, part in told.items()}  # in the method's order, which jit would lose in a dict
        return told, jnp.argmax(_logits(bare, member, slots), -1), jnp.argmax(_logits(bare, member, edited), -1), (pictures, blanked)

    told, predicted, after, rendered = jax.device_get(tell(own.model.held, first, batch))
    raw = source.raw.load(rows)["inputs"] if isinstance(source, Stored) else batch.inputs
    return [_card(own, dataset, split, batch, raw, i, told, predicted, after, rendered) for i in range(len(rows))]


def _card(
    own: Explained, dataset: Dataset, split: str, batch: Batch, raw: Any, i: int, told: Any, predicted: np.ndarray, after: np.ndarray, rendered: Any
) -> dict[str, Any]:
    edited, layout, (pictures, blanked) = "edited" in told, own.model.slots, rendered
    declared = {m: feature.raw or feature for m, feature in dataset.features.items()}
    group = int(batch.group[i])
    card: dict[str, Any] = {
        "id": f"{split}/{int(batch.index[i])}",
        "method": own.name,
        "split": split,
        "label": dataset.class_names[int(batch.label[i])],
        "predicted": dataset.class_names[int(predicted[i])],
        "group": dataset.group_names[group] if group >= 0 else "unknown",
        "evidence": {m: _placed(layout[m], value[i]) for m, value in told["evidence"].items()},
        "chosen": {m: _placed(layout[m], value[i]) for m, value in told["chosen"].items()},
        "grid": {m: spec.grid for m, spec in layout.items() if spec.grid},
        **{part: {name: value[i] for name, value in told[part].items()} for part in ("effects", "gates", "quality") if part in told},
    }
    if edited:
        card["edited_predicted"] = dataset.class_names[int(after[i])]
    there = {m: feature for m, feature in declared.items() if batch.present[m][i]}
    card["pictures"] = {m: np.asarray(raw[m][i]) for m, feature in there.items() if feature.kind == "image"}
    card["words"] = {m: _words(feature, raw[m][i]) for m, feature in there.items() if feature.kind == "text"}
    seen = {m for m in there if edited and not layout[m].raw}  # edited features have no look
    card["edited_pictures"] = {m: pictures[m][i] for m in card["pictures"] if m in seen}
    card["edited_words"] = {}
    for m in [m for m in card["words"] if m in seen]:
        words = np.array(declared[m].vocabulary, object)[pictures[m][i]]
        words = np.where(blanked[m][i], MASKED, words) if m in blanked else words
        card["edited_words"][m] = words[told["edited"][m].mask[i]].tolist()
    counts = {m: len(words) for m, words in card["words"].items()}
    card["features"] = {m: _without_place(layout[m], value[i], counts.get(m)) for m, value in told["evidence"].items() if layout[m].raw}
    return card


def _words(feature: Feature, ids: np.ndarray) -> list[str]:
    """Of the version that is read."""
    ids = np.asarray(ids)[: feature.shape[0] // feature.views]
    return [feature.vocabulary[k] for k in ids[ids > 0]]


def _placed(spec: SlotSpec, values: np.ndarray, count: int | None = None) -> np.ndarray:
    """The values of the slots that stand for a place: those of the grid, or the first `count` behind the lead."""
    return values[spec.lead :][: spec.grid[0] * spec.grid[1] if spec.grid else count]


def _without_place(spec: SlotSpec, evidence: np.ndarray, count: int | None) -> float:
    """The share of the evidence on slots that stand for no place (markers such as a class token)."""
    whole = float(np.abs(evidence).sum())
    return 1 - float(np.abs(_placed(spec, evidence, count)).sum()) / whole if whole > 0 else 0.0


def _spread(group: np.ndarray, count: int) -> np.ndarray:
    """Rows taken from every group in turn."""
    queues = [np.flatnonzero(group == g) for g in np.unique(group)]
    longest = max(map(len, queues), default=0)
    return np.array([queue[k] for k in range(longest) for queue in queues if k < len(queue)][:count], np.int64)
