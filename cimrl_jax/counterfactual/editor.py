"""Finds each example's shortcut and edits it away, modality by modality, without group labels.

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
from jaxtyping import Array, Bool, Float, Int, Key

from cimrl_jax.counterfactual import attribution, intervene, memory, quality, reference
from cimrl_jax.errors import UserError
from cimrl_jax.losses import generalized_cross_entropy, masked_mean
from cimrl_jax.types import Batch, Hyper, Params, Slots, SlotSpec, Spec

Intervention = Literal["auto", "rewrite", "splice", "donor", "reflect", "exchange", "mix", "mask", "mean", "gradient", "noise"]
Identify = Literal["reference", "memory", "gradient", "random"]
CANDIDATES = ("rewrite", "splice", "donor", "reflect", "exchange", "mix")
"""What "auto" chooses from, the most specific first: on equal quality the earlier wins."""
OF_WORDS = {"rewrite", "splice", "mix"}
"""Those made of texts. A word reflected is no word, and the model sees that; its place in a sentence means another thing in the next."""
PREFERENCE = 1.3
"""A rewrite wins from the others' quality divided by this on: it is a real example, so nothing tells that it was made."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed before the compile."""

    identify: Identify
    intervention: Intervention
    hidden: int
    most: float
    directions: int
    slots: Mapping[str, SlotSpec]
    num_classes: int

    def candidates(self, m: str) -> tuple[str, ...]:
        """The edits that are made of a modality."""
        if self.intervention != "auto":
            return (self.intervention,)
        if self.slots[m].kind == "text":
            return tuple(kind for kind in CANDIDATES if kind in OF_WORDS)
        return tuple(kind for kind in CANDIDATES if kind not in ("rewrite", "splice") and (kind != "exchange" or self.directions))


class Edit(NamedTuple):
    """The outcome for one batch, per modality."""

    slots: dict[str, Slots]
    evidence: dict[str, Float[Array, "b n"]]
    chosen: dict[str, Float[Array, "b n"]]
    reading: dict[str, Float[Array, "b c"]]
    """The reference's probabilities on the original."""
    quality: dict[str, Float[Array, " b"]]
    """How far the edit turned the reading into the donor's, 0 to 1."""
    able: Bool[Array, " m"]
    """Of the modalities in the order of their names those whose reference is fit to edit by, and that are not refused."""
    whole: Bool[Array, " b"]
    """Whether all of these were edited."""


def init(key: Key[Array, ""], spec: Spec, plan: Plan) -> tuple[Params, Any]:
    """(references, state)."""
    names = sorted(plan.slots)
    if plan.intervention == "exchange" and not plan.directions:
        raise UserError("option intervention=exchange of method 'cimrl' needs directions of at least 1")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    params = {m: reference.init(keys[m], plan.slots[m], num_classes=spec.num_classes, hidden=plan.hidden) for m in names}
    state = {
        "misleading": {m: memory.init_misleading(plan.slots[m], spec.num_classes) for m in names},
        "conflict": {m: memory.init_conflict(plan.slots[m], spec.num_classes) for m in names},
        "pattern": {m: _init_pattern(keys[m], plan, m) for m in names},
        "quality": {m: jnp.zeros((len(plan.candidates(m)),)) for m in names},
    }
    return params, state


def _init_pattern(key: Key[Array, ""], plan: Plan, m: str) -> Any:
    if "exchange" not in plan.candidates(m):
        return ()
    return memory.init_pattern(jax.random.fold_in(key, 1), plan.slots[m], plan.num_classes, directions=plan.directions)


def fit(params: Params, slots: Mapping[str, Slots], batch: Batch, q: Float[Array, ""]) -> Float[Array, ""]:
    """The references' own loss (generalised cross entropy), summed over modalities."""
    total = jnp.zeros(())
    for m, own in slots.items():
        logits, _ = reference.read(params[m], own)
        total += masked_mean(generalized_cross_entropy(logits, batch.label, q), batch.weight * batch.present[m])
    return total


class Model(NamedTuple):
    """What "memory", "gradient" and the gradient step need to know of the model: its gradient, what it predicts, and its soft error `1 - p_y`."""

    gradient: Mapping[str, Float[Array, "b n d"]]
    predicted: Int[Array, " b"]
    error: Float[Array, " b"]


class _Look(NamedTuple):
    """What is known of one modality of the batch before it is edited."""

    slots: Slots
    reading: Float[Array, "b c"]
    evidence: Float[Array, "b n"]
    chosen: Float[Array, "b n"]
    neutral: Float[Array, "b n"]
    weight: Float[Array, " b"]


class _Learned(NamedTuple):
    """What the state of a modality says of its shortcut."""

    mirror: memory.Mirror
    spread: Float[Array, "e e"]
    pattern: Any


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
    model: Model | None = None,
    refused: Bool[Array, " m"] | None = None,
) -> tuple[Edit, Any]:
    """Edits every modality by itself but for the refused ones; returns the outcome and the new state. `blank` are the learned mask embeddings."""
    out = Edit({}, {}, {}, {}, {}, jnp.zeros(len(slots), bool), batch.weight > 0)
    state = {part: dict(values) for part, values in state.items()}
    edits = _which(jax.random.fold_in(key, len(slots)), len(batch.label), len(slots), hyper["together"])
    for stream, m in enumerate(sorted(slots)):
        own_key = jax.random.fold_in(key, stream)
        look, state["misleading"][m] = _look(plan, m, params[m], state["misleading"][m], hyper, slots[m], batch, own_key, model)
        state["conflict"][m] = memory.update_conflict(
            state["conflict"][m],
            look.slots,
            element=plan.slots[m].element,
            label=batch.label,
            reading=look.reading,
            weight=look.weight,
            decay=hyper["decay"],
        )
        if "exchange" in plan.candidates(m):
            state["pattern"][m] = memory.update_pattern(
                state["pattern"][m],
                look.slots,
                counts=state["conflict"][m].weight,
                label=batch.label,
                reading=look.reading,
                weight=look.weight,
                decay=jnp.sqrt(hyper["decay"]),  # second moments are noisier: remembered twice as long
            )
        learned = _Learned(memory.mirror(state["conflict"][m]), memory.spread(state["conflict"][m]), state["pattern"][m])
        gradient = None if model is None else model.gradient[m]
        candidates = _candidates(plan, m, look, slots[m], learned, hyper, batch, own_key, blank[m], gradient)
        worths = []
        for own, aim, worth in candidates:
            read, _ = reference.read(params[m], jax.lax.stop_gradient(own))
            worths.append(quality.flip(read, aim) * worth)
        kinds = plan.candidates(m)
        preference = jnp.asarray([(PREFERENCE if kind == "rewrite" else 1.0) + 1e-3 * (len(kinds) - k) for k, kind in enumerate(kinds)])
        best = jnp.argmax(state["quality"][m] * preference)
        measured = jnp.stack([masked_mean(worth, look.weight) for worth in worths])
        state["quality"][m] = hyper["decay"] * state["quality"][m] + (1 - hyper["decay"]) * measured
        # A reader that is hardly better than chance has found no shortcut, and an edit would take the cause away.
        able = (memory.skill(state["conflict"][m]) >= hyper["skill"]) | (plan.intervention != "auto")
        able &= True if refused is None else ~refused[stream]
        out = out._replace(able=out.able.at[stream].set(able), whole=out.whole & (edits[:, stream] | ~able))
        made = [own for own, _, _ in candidates]
        out.slots[m] = jax.tree.map(_pick(able & edits[:, stream], best), slots[m], *made)
        out.evidence[m], out.chosen[m], out.reading[m] = look.evidence, look.chosen, look.reading
        out.quality[m] = jnp.where(able, jnp.stack(worths)[best], 0.0)
    return out._replace(whole=out.whole & jnp.any(out.able)), jax.lax.stop_gradient(state)


def _look(
    plan: Plan, m: str, params: Params, misleading: Any, hyper: Hyper, live: Slots, batch: Batch, key: Key[Array, ""], model: Model | None
) -> tuple[_Look, Any]:
    """Reads the modality and chooses its spurious slots; also the new memory of what misled the model."""
    own = jax.lax.stop_gradient(live)
    logits, per_slot = reference.read(params, own)
    reading = jax.nn.softmax(logits)
    weight = batch.weight * batch.present[m]
    if plan.identify == "reference":
        scores = reference.evidence(per_slot, own.mask, jnp.argmax(reading, axis=-1))
        if plan.slots[m].kind == "text":
            scores = scores * jnp.sqrt(reference.recurring(own, weight))
    elif plan.identify == "random":
        scores = jnp.where(own.mask, jax.random.uniform(jax.random.fold_in(key, 0), own.mask.shape), 0.0)
    else:
        assert model is not None
        scores = attribution.evidence({m: model.gradient[m]}, {m: own})[m]
        if plan.identify == "memory":
            misleading = memory.update_misleading(
                misleading, own, evidence=scores, predicted=model.predicted, error=model.error, weight=weight, decay=hyper["decay"]
            )
            scores = memory.resemblance(misleading, own, model.predicted)
    chosen = attribution.choose(scores, own.mask, threshold=hyper["threshold"])
    neutral = reference.neutral(per_slot, own.mask, jnp.argmax(reading, axis=-1), threshold=hyper["threshold"])
    return _Look(own, reading, scores, chosen, neutral, weight), misleading


def _candidates(
    plan: Plan,
    m: str,
    look: _Look,
    live: Slots,
    learned: _Learned,
    hyper: Hyper,
    batch: Batch,
    key: Key[Array, ""],
    blank: Float[Array, " d"],
    gradient: Float[Array, "b n d"] | None,
) -> list[tuple[Slots, Array, Array]]:
    """(edited slots, the class that the edit should make the reference read, how far it could be made: 0 not at all, 1 wholly) of every candidate."""
    keys = jax.random.split(jax.random.fold_in(key, 1), 4)
    source = jnp.argmax(look.reading, axis=-1)
    # How surely example j is read otherwise than example i: the power all but bars donors whose own reading is in doubt.
    apart = (1.0 - look.reading.T[source]) ** 4
    donors, found = intervene.draw_donors(keys[0], apart, look.weight > 0)
    target = jnp.argmax(look.reading[donors], axis=-1)
    here = look.weight > 0
    spec, chosen, everywhere = plan.slots[m], look.chosen, jnp.ones_like(found)
    made = []
    for kind in plan.candidates(m):
        aim, usable, mask = target, found, live.mask
        if kind == "rewrite":
            partners, usable = intervene.nearest(_alike(look, learned.spread), (apart > 0.1) & here[:, None] & here)
            values, mask, aim = live.values[partners], live.mask[partners], jnp.argmax(look.reading[partners], axis=-1)
        elif kind in ("splice", "donor"):
            usable = found & (quality.local(chosen, live.mask, most=plan.most) > 0)
            if kind == "splice":
                moved = intervene.splice(live, chosen, donors)
                values, mask = moved.values, moved.mask
            else:
                values = intervene.donor(live, chosen, look.evidence, donors)
        elif kind == "reflect":
            values = intervene.reflect(live, *(part[source, target] for part in learned.mirror))
        elif kind == "exchange":
            values = intervene.exchange(live, *memory.swap(learned.pattern, source, target, threshold=hyper["threshold"]))
            values = values if spec.low is None and spec.high is None else jnp.clip(values, spec.low, spec.high)
        elif kind == "mix":
            same = batch.label[:, None] == batch.label[None, :]
            partners, usable = intervene.draw_donors(keys[1], apart * same, look.weight > 0)
            share = jnp.median(jax.random.uniform(keys[2], (3, batch.label.shape[0])), axis=0)  # Beta(2, 2), faster to compile than its sampler
            values, aim = intervene.interpolate(live, partners, share), jnp.argmax(look.reading[partners], axis=-1)
        elif kind == "mask":
            values, usable = intervene.mask(live, chosen, blank), everywhere
        elif kind == "mean":
            values, usable = intervene.mean(live, chosen), everywhere
        elif kind == "gradient":
            assert gradient is not None
            values, usable = intervene.gradient(live, chosen, gradient, hyper["size"], spec), everywhere
        else:
            values, usable = intervene.noise(keys[3], live, chosen, hyper["size"], spec), everywhere
        use = usable > 0
        made.append((Slots(jnp.where(use[:, None, None], values, live.values), jnp.where(use[:, None], mask, live.mask)), aim, usable))
    return made


def _which(key: Key[Array, ""], b: int, modalities: int, together: Float[Array, ""]) -> Bool[Array, "b m"]:
    """Which modalities of an example are edited: all with probability `together`, else any of them, at least one.

    Shortcuts that always agree in the data come apart in use; were they only ever edited together, a disagreement would mean nothing to the model.
    """
    keys = jax.random.split(key)
    any_of = jax.random.bernoulli(keys[0], 0.5, (b, modalities))
    whole = jax.random.bernoulli(keys[1], together, (b,)) | ~jnp.any(any_of, axis=1)
    return any_of | whole[:, None]


def _pick(use: Bool[Array, " b"], best: Int[Array, ""]) -> Any:
    """(original, *candidates) -> the best candidate where it is used, for every leaf of slots."""
    return lambda own, *made: jnp.where(use.reshape(-1, *[1] * (own.ndim - 1)), jnp.stack(made)[best], own)


def _alike(look: _Look, spread: Float[Array, "e e"]) -> Float[Array, "b b"]:
    """How alike examples are but for the shortcut, -1 to 1: the cosine of the sums of their neutral slots, in the metric of the slots' own spread.

    In that metric a rare word weighs more than one that stands in every sentence. What the reading explains of the sums is taken out first.
    """
    content = jnp.einsum("bn,bnd->bd", look.neutral, look.slots.values.astype(jnp.float32))
    share = look.reading * look.weight[:, None]
    content = content - look.reading @ (share.T @ content / jnp.maximum(jnp.sum(share, axis=0), 1e-8)[:, None])
    elements = content.reshape(-1, len(spread))
    inner = content @ memory.solve(spread, elements.T).T.reshape(content.shape).T
    size = jnp.sqrt(jnp.maximum(jnp.diagonal(inner), 1e-12))
    return inner / (size[:, None] * size[None, :])
