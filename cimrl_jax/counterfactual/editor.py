"""Finds each example's shortcut and edits it away, modality by modality, without group labels (METHODS 1.3 and 1.4).

One pass: read every modality with its reference; let the reference's evidence (or the memory's, or the model's gradient) choose slots; draw for each
example a donor that reads otherwise; make the candidate edits; measure how often each turns the reading into the donor's; use the best one.
Everything it learns is method state, everything it trains is the method's parameters; gradient flows through the edited slots only, to the word
embeddings and the mask embedding that they are made of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from cimrl_jax.counterfactual import attribution, intervene, memory, quality, reference
from cimrl_jax.losses import generalized_cross_entropy, masked_mean
from cimrl_jax.types import Batch, Hyper, Params, Slots, SlotSpec, Spec

Intervention = Literal["auto", "donor", "reflect", "mix", "mask", "mean", "gradient", "noise"]
Identify = Literal["reference", "memory", "gradient", "random"]
CANDIDATES = ("donor", "reflect", "mix")
"""What "auto" chooses from, the most specific first: on equal quality the earlier wins."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed before the compile."""

    identify: Identify
    intervention: Intervention
    hidden: int
    most: float
    slots: Mapping[str, SlotSpec]
    num_classes: int

    @property
    def candidates(self) -> tuple[str, ...]:
        return CANDIDATES if self.intervention == "auto" else (self.intervention,)


class Edit(NamedTuple):
    """The outcome for one batch, per modality."""

    slots: dict[str, Slots]
    evidence: dict[str, Float[Array, "b n"]]
    chosen: dict[str, Float[Array, "b n"]]
    reading: dict[str, Float[Array, "b c"]]
    """The reference's probabilities on the original."""
    quality: dict[str, Float[Array, " b"]]
    """How far the edit turned the reading into the donor's, 0 to 1."""


def init(key: Key[Array, ""], spec: Spec, plan: Plan) -> tuple[Params, Any]:
    """(references, state)."""
    names = sorted(plan.slots)
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    params = {m: reference.init(keys[m], plan.slots[m], num_classes=spec.num_classes, hidden=plan.hidden) for m in names}
    state = {
        "misleading": {m: memory.init_misleading(plan.slots[m], spec.num_classes) for m in names},
        "conflict": {m: memory.init_conflict(plan.slots[m], spec.num_classes) for m in names},
        "quality": {m: jnp.zeros((len(plan.candidates),)) for m in names},
    }
    return params, state


def fit(params: Params, slots: Mapping[str, Slots], batch: Batch, q: Float[Array, ""]) -> Float[Array, ""]:
    """The references' own loss (generalised cross entropy), summed over modalities."""
    total = jnp.zeros(())
    for m, own in slots.items():
        logits, _ = reference.read(params[m], own)
        total += masked_mean(generalized_cross_entropy(logits, batch.label, q), batch.weight * batch.present[m])
    return total


def edit(
    plan: Plan,
    params: Params,
    state: Any,
    hyper: Hyper,
    slots: Mapping[str, Slots],
    batch: Batch,
    key: Key[Array, ""],
    *,
    blank: Mapping[str, Float[Array, " d"]],
    gradient: Mapping[str, Float[Array, "b n d"]] | None = None,
    predicted: Int[Array, " b"] | None = None,
    error: Float[Array, " b"] | None = None,
) -> tuple[Edit, Any]:
    """Edits every modality by itself. `gradient`, `predicted` and `error` are the model's (needed by "memory", "gradient" and the gradient step)."""
    out = Edit({}, {}, {}, {}, {})
    state = {part: dict(values) for part, values in state.items()}
    for stream, m in enumerate(sorted(slots)):
        live, own, key_m = slots[m], jax.lax.stop_gradient(slots[m]), jax.random.fold_in(key, stream)
        logits, per_slot = reference.read(params[m], own)
        reading = jax.nn.softmax(logits)
        weight = batch.weight * batch.present[m]
        if plan.identify in ("memory", "gradient") or plan.intervention == "gradient":
            assert gradient is not None and predicted is not None and error is not None
            speaks = attribution.evidence({m: gradient[m]}, {m: own})[m]
            state["misleading"][m] = memory.update_misleading(
                state["misleading"][m], own, evidence=speaks, predicted=predicted, error=error, weight=weight, decay=hyper["decay"]
            )
        if plan.identify == "reference":
            scores = reference.evidence(per_slot, own.mask, jnp.argmax(reading, axis=-1))
        elif plan.identify == "memory":
            scores = memory.resemblance(state["misleading"][m], own, predicted)
        elif plan.identify == "gradient":
            scores = speaks
        else:
            scores = jnp.where(own.mask, jax.random.uniform(jax.random.fold_in(key_m, 0), own.mask.shape), 0.0)
        chosen = attribution.choose(scores, own.mask, threshold=hyper["threshold"])
        state["conflict"][m] = memory.update_conflict(
            state["conflict"][m],
            own,
            element=plan.slots[m].element,
            label=batch.label,
            reading=reading,
            weight=weight,
            decay=hyper["decay"],
        )
        values, worth, measured = _best(
            plan,
            m,
            live,
            params[m],
            state,
            hyper,
            key_m,
            batch=batch,
            scores=scores,
            chosen=chosen,
            reading=reading,
            weight=weight,
            blank=blank[m],
            gradient=None if gradient is None else gradient[m],
        )
        state["quality"][m] = hyper["decay"] * state["quality"][m] + (1 - hyper["decay"]) * measured
        out.slots[m], out.evidence[m], out.chosen[m], out.reading[m], out.quality[m] = own.replace(values=values), scores, chosen, reading, worth
    return out, jax.lax.stop_gradient(state)


def _best(
    plan: Plan,
    m: str,
    own: Slots,
    params: Params,
    state: Any,
    hyper: Hyper,
    key: Key[Array, ""],
    *,
    batch: Batch,
    scores: Array,
    chosen: Array,
    reading: Array,
    weight: Array,
    blank: Array,
    gradient: Array | None,
) -> tuple[Array, Array, Array]:
    """The values edited by the candidate of the highest running quality, each example's quality, and this batch's quality of every candidate."""
    keys = jax.random.split(jax.random.fold_in(key, 1), 4)
    apart = jnp.maximum(1.0 - reading @ reading.T, 0.0)
    donors, found = intervene.draw_donors(keys[0], apart, weight > 0)
    target = jnp.argmax(reading[donors], axis=-1)
    source = jnp.argmax(reading, axis=-1)
    spec = plan.slots[m]
    edits, worths = [], []
    for kind in plan.candidates:
        usable = found
        aim = target
        if kind == "donor":
            values = intervene.donor(own, chosen, scores, donors)
            usable &= quality.local(chosen, own.mask, most=plan.most) > 0
        elif kind == "reflect":
            along, across, middle = (part[source, target] for part in memory.mirror(state["conflict"][m]))
            values = intervene.reflect(own, along, across, middle)
        elif kind == "mix":
            partners, paired = intervene.draw_donors(keys[1], apart * (batch.label[:, None] == batch.label[None, :]), weight > 0)
            share = jax.random.beta(keys[2], 2.0, 2.0, (batch.label.shape[0],))
            values = intervene.interpolate(own, partners, share)
            usable, aim = paired, jnp.argmax(reading[partners], axis=-1)
        elif kind == "mask":
            values = intervene.mask(own, chosen, blank)
        elif kind == "mean":
            values = intervene.mean(own, chosen)
        elif kind == "gradient":
            assert gradient is not None
            values = intervene.gradient(own, chosen, gradient, hyper["size"], spec)
        else:
            values = intervene.noise(keys[3], own, chosen, hyper["size"], spec)
        values = jnp.where(usable[:, None, None], values, own.values)
        edits.append(values)
        worths.append(quality.flip(reference.read(params, own.replace(values=jax.lax.stop_gradient(values)))[0], aim) * usable)
    worth = jnp.stack(worths)  # [k, b]
    measured = jnp.stack([masked_mean(w, weight) for w in worths])
    best = jnp.argmax(state["quality"][m] * (1.0 + 1e-3 * jnp.arange(len(edits), 0, -1)))
    return jnp.stack(edits)[best], worth[best], measured
