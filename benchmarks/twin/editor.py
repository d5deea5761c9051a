"""The editor of `cimrl_jax/counterfactual` in PyTorch, as CIMRL uses it at its default options: biased references, evidence, memories, the
candidate edits, their quality, the choice among them.

Only the edited slots carry gradient. Where PyTorch has a better tool than ours may use (Cholesky against conjugate gradients), it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from twin.model import Slots

from cimrl_jax.counterfactual.editor import PREFERENCE
from cimrl_jax.methods.cimrl import Options

State = dict[str, dict[str, Any]]


class Layout(NamedTuple):
    """One modality's slots."""

    width: int
    element: int
    low: float | None
    high: float | None
    candidates: tuple[str, ...]


class Reference(nn.Module):
    """A shallow reader: per slot two layers, averaged over slots."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, classes)

    def forward(self, slots: Slots) -> tuple[Tensor, Tensor]:
        """(logits `[b, c]`, each slot's contribution `[b, n, c]`), in float32."""
        with torch.autocast(slots.values.device.type, enabled=False):
            per_slot = self.outer(self.inner(slots.values.float()).relu())
            valid = slots.mask[..., None]
            return torch.where(valid, per_slot, 0.0).sum(1) / valid.sum(1).clamp(min=1), per_slot


class Edit(NamedTuple):
    slots: dict[str, Slots]
    reading: dict[str, Tensor]
    quality: dict[str, Tensor]
    able: Tensor
    """Of the modalities in the order of their names those whose reference is fit to edit by, and that are not refused."""
    whole: Tensor
    """Whether all of these were edited, per example."""


class Look(NamedTuple):
    """What is known of one modality of the batch before it is edited."""

    slots: Slots
    reading: Tensor
    evidence: Tensor
    chosen: Tensor
    neutral: Tensor


def edit(
    options: Options,
    layouts: Mapping[str, Layout],
    references: Mapping[str, Reference],
    state: State,
    live: Mapping[str, Slots],
    label: Tensor,
    draws: Mapping[str, Any],
    refused: Tensor,
) -> tuple[Edit, State]:
    """Edits every modality by itself but for the refused ones; the outcome and the new state."""
    out = Edit({}, {}, {}, torch.zeros_like(refused), torch.ones_like(label, dtype=torch.bool))
    new: State = {part: {} for part in state}
    any_of = draws["which"] < 0.5
    edits = any_of | ((draws["together"] < options.together) | ~any_of.any(1))[:, None]
    for i, m in enumerate(sorted(live)):
        layout, drawn = layouts[m], draws[m]
        with torch.no_grad():
            seen = look(references[m], Slots(live[m].values.detach(), live[m].mask), options.threshold, words="splice" in layout.candidates)
            conflict = new["conflict"][m] = update_conflict(state["conflict"][m], seen, label, options.decay)
            pattern = None
            if "exchange" in layout.candidates:
                pattern = new["pattern"][m] = update_pattern(state["pattern"][m], seen, conflict["weight"], label, options.decay**0.5)
        made = candidates(options, layout, seen, live[m], conflict, pattern, label, drawn)
        with torch.no_grad():
            worths = torch.stack([read_as(references[m], own, aim) * worth for own, aim, worth in made])  # [k, b]
            kinds = layout.candidates
            preference = [(PREFERENCE if kind == "rewrite" else 1.0) + 1e-3 * (len(kinds) - k) for k, kind in enumerate(kinds)]
            best = (state["quality"][m] * torch.tensor(preference, device=label.device)).argmax(0, keepdim=True)  # [1]: an index, never a sync
            new["quality"][m] = torch.lerp(worths.mean(1), state["quality"][m], options.decay)
            able = (skill(conflict["weight"]) >= options.skill) & ~refused[i]
            use = able & edits[:, i]
            fit = out.able.clone()
            fit[i] = able
            out = out._replace(able=fit, whole=out.whole & (edits[:, i] | ~able))
            out.quality[m] = torch.where(able, worths.index_select(0, best)[0], 0.0)
        values = torch.stack([own.values for own, _, _ in made]).index_select(0, best)[0]
        mask = torch.stack([own.mask for own, _, _ in made]).index_select(0, best)[0]
        out.slots[m] = Slots(torch.where(use[:, None, None], values, live[m].values), torch.where(use[:, None], mask, live[m].mask))
        out.reading[m] = seen.reading
    return out._replace(whole=out.whole & out.able.any()), new


def look(reference: Reference, slots: Slots, threshold: float, *, words: bool) -> Look:
    """Reads the modality and chooses its spurious slots."""
    logits, per_slot = reference(slots)
    reading, mask = logits.softmax(-1), slots.mask
    own = per_slot.gather(2, reading.argmax(-1)[:, None, None].expand(-1, mask.shape[1], 1))[..., 0]
    margin = own - (per_slot.sum(-1) - own) / max(per_slot.shape[-1] - 1, 1)
    evidence = torch.where(mask, margin.relu(), 0.0)
    if words:
        evidence = evidence * recurring(slots).sqrt()
    best = evidence.amax(-1, keepdim=True)
    chosen = ((evidence >= threshold * best) & (best > 0) & mask).float()
    size = torch.where(mask, margin.abs(), 0.0)
    neutral = torch.where(mask, (1 - size / (threshold * size.amax(-1, keepdim=True)).clamp(min=1e-8)).clamp(min=0), 0.0)
    return Look(slots, reading, evidence, chosen, neutral)


def recurring(slots: Slots) -> Tensor:
    """How many slots of the batch hold just what a slot holds, per example, at most 1."""
    values = slots.values.float()
    place = (values * torch.linspace(1, 2, values.shape[-1], device=values.device).sin()).sum(-1)
    near = 1e-6 * place.masked_fill(~slots.mask, 0.0).abs().amax()
    ordered = place.masked_fill(~slots.mask, torch.inf).flatten().sort().values
    count = torch.searchsorted(ordered, place + near, right=True) - torch.searchsorted(ordered, place - near)
    return torch.where(slots.mask, (count / slots.mask.any(-1).sum().clamp(min=1)).clamp(max=1), 0.0)


def read_as(reference: Reference, slots: Slots, aim: Tensor) -> Tensor:
    """How far the edit turned the reading into the class it should have brought."""
    return reference(slots)[0].softmax(-1).gather(1, aim[:, None])[:, 0]


def candidates(
    options: Options,
    layout: Layout,
    seen: Look,
    live: Slots,
    conflict: Mapping[str, Tensor],
    pattern: Mapping[str, Tensor] | None,
    label: Tensor,
    drawn: Mapping[str, Tensor],
) -> list[tuple[Slots, Tensor, Tensor]]:
    """(edited slots, the class to be read, whether it could be made) of every candidate."""
    with torch.no_grad():
        source = seen.reading.argmax(-1)
        apart = (1 - seen.reading.T[source]) ** 4
        donors, found = draw_donors(drawn["donor"], apart)
        target = source[donors]
        spread = covariance(conflict)
        triangle = torch.linalg.cholesky_ex(spread)[0]  # cholesky would ask the device whether it succeeded
    made = []
    for kind in layout.candidates:
        aim, usable, mask, values = target, found, live.mask, live.values
        if kind == "rewrite":
            with torch.no_grad():
                alike = likeness(seen, triangle).masked_fill(apart <= 0.1, -torch.inf)
                best, partners = alike.max(-1)
                usable, aim = best > 0, source[partners]
            values, mask = live.values[partners], live.mask[partners]
        elif kind in ("splice", "donor"):
            share = seen.chosen.sum(-1) / live.mask.sum(-1).clamp(min=1)
            usable = found & (share > 0) & (share <= options.most)
            if kind == "splice":
                values, mask = splice(live, seen.chosen > 0, donors)
            else:
                values = swap_ranked(live.values, seen, donors)
        elif kind == "reflect":
            with torch.no_grad():
                along, across, middle = (part[source, target] for part in mirror(conflict, triangle))
            values = reflect(live.values, along, across, middle)
        elif kind == "exchange":
            assert pattern is not None
            values = exchange(live, pattern, source, target, options.threshold)
            values = values if layout.low is None and layout.high is None else values.clamp(layout.low, layout.high)
        else:
            with torch.no_grad():
                partners, usable = draw_donors(drawn["mix"], apart * (label[:, None] == label))
                share = drawn["share"].median(0).values[:, None, None]
            values, aim = torch.lerp(live.values[partners], live.values, share), source[partners]
        edited = Slots(torch.where(usable[:, None, None], values, live.values), torch.where(usable[:, None], mask, live.mask))
        made.append((edited, aim, usable.float()))
    return made


def draw_donors(gumbel: Tensor, affinity: Tensor) -> tuple[Tensor, Tensor]:
    allowed = (affinity > 1e-6) & ~torch.eye(len(affinity), dtype=torch.bool, device=affinity.device)
    return (affinity.clamp(min=1e-6).log() + gumbel).masked_fill(~allowed, -torch.inf).argmax(-1), allowed.any(-1)


def likeness(seen: Look, triangle: Tensor) -> Tensor:
    content = torch.einsum("bn,bnd->bd", seen.neutral, seen.slots.values)
    reading = seen.reading
    content = content - reading @ (reading.T @ content / reading.sum(0).clamp(min=1e-8)[:, None])
    elements = content.reshape(-1, len(triangle))
    inner = content @ torch.cholesky_solve(elements.T, triangle).T.reshape(content.shape).T
    size = inner.diagonal().clamp(min=1e-12).sqrt()
    return inner / (size[:, None] * size)


def splice(live: Slots, chosen: Tensor, donors: Tensor) -> tuple[Tensor, Tensor]:
    """(values, mask) of the sentences without their chosen words and with the donors', each as far along as where it stood."""
    place = (live.mask.cumsum(1) - 0.5) / live.mask.sum(1, keepdim=True).clamp(min=1)
    stays, comes = live.mask & ~chosen, (live.mask & chosen)[donors]
    at = torch.cat([place.masked_fill(~stays, torch.inf), place[donors].masked_fill(~comes, torch.inf)], 1)
    last, order = at.sort(dim=1, stable=True)
    n = live.mask.shape[1]
    both = torch.cat([live.values, live.values[donors]], 1)
    return both.gather(1, order[:, :n, None].expand(-1, -1, both.shape[2])), last[:, :n].isfinite()


def swap_ranked(values: Tensor, seen: Look, donors: Tensor) -> Tensor:
    """The chosen slots for the donor's, rank by rank of their evidence."""
    order = (-seen.evidence).argsort(dim=-1, stable=True)
    rank = order.argsort(dim=-1)
    last = (seen.chosen.sum(-1).long()[donors] - 1).clamp(min=0)
    source = order[donors].gather(1, torch.minimum(rank, last[:, None]))
    return torch.lerp(values, values[donors[:, None], source], seen.chosen[..., None])


def reflect(values: Tensor, along: Tensor, across: Tensor, middle: Tensor) -> Tensor:
    elements = values.view(len(values), -1, along.shape[-1])
    size = torch.einsum("bke,be->bk", elements - middle[:, None], across)
    return (elements - 2 * size[..., None] * along[:, None]).view_as(values)


def exchange(live: Slots, pattern: Mapping[str, Tensor], source: Tensor, target: Tensor, threshold: float) -> Tensor:
    """Reflects whole examples about the mean across the mirrors between two classes' patterns."""
    with torch.no_grad():
        basis, size = pattern["basis"], pattern["size"]
        c, strong = len(basis), size >= threshold * size.amax(-1, keepdim=True)

        def mirrors(first: Tensor, second: Tensor) -> Tensor:
            return orthonormal(torch.where((strong[first] & strong[second])[:, None], basis[second] - basis[first], 0.0))

        if c * c > len(source):
            across = mirrors(source, target)
        else:
            pair = torch.arange(c * c, device=source.device)
            across = mirrors(pair // c, pair % c)[source * c + target]
    flat = torch.where(live.mask[..., None], live.values, 0.0).flatten(1) - pattern["mean"]
    moved = 2 * torch.einsum("bwk,bk->bw", across, torch.einsum("bwk,bw->bk", across, flat))
    return live.values - moved.view_as(live.values)


def update_conflict(old: Mapping[str, Tensor], seen: Look, label: Tensor, decay: float) -> dict[str, Tensor]:
    values, mask, e = seen.slots.values, seen.slots.mask, len(old["square"])
    elements = values.view(len(values), -1, e)
    valid = mask.float().repeat_interleave(values.shape[-1] // e, 1)
    valid = valid / valid.sum(1, keepdim=True).clamp(min=1)
    own = functional.one_hot(label, seen.reading.shape[1]).float()
    weighted = elements * valid[..., None]
    new = {
        "total": torch.einsum("by,bc,be->yce", own, seen.reading, weighted.sum(1)),
        "weight": own.T @ seen.reading,
        "square": weighted.reshape(-1, e).T @ elements.reshape(-1, e),
    }
    return {part: torch.lerp(new[part], old[part], decay) for part in new}


def skill(weight: Tensor) -> Tensor:
    c = len(weight)
    return ((weight.diagonal() / weight.sum(1).clamp(min=1e-8)).mean() - 1 / c) / max(1 - 1 / c, 1e-8)


def update_pattern(old: Mapping[str, Tensor], seen: Look, counts: Tensor, label: Tensor, decay: float) -> dict[str, Tensor]:
    flat = torch.where(seen.slots.mask[..., None], seen.slots.values, 0.0).flatten(1)
    mean = torch.lerp(flat.mean(0), old["mean"], decay)
    share = seen.reading / counts[label].clamp(min=1e-3)
    contrast = share - (share.sum(1, keepdim=True) - share) / max(share.shape[1] - 1, 1)
    centred, basis = flat - mean, old["basis"]
    c, w, k = basis.shape
    along = (centred @ basis.transpose(0, 1).reshape(w, c * k)).view(-1, c, k)
    power = (centred.T @ (contrast[..., None] * along).flatten(1)).view(w, c, k).transpose(0, 1)
    power = torch.lerp(power, old["power"], decay)
    shift = power.norm(dim=-2).amax(-1)[:, None, None]
    return {"mean": mean, "power": power, "basis": orthonormal(power + (shift + 1e-6) * basis), "size": (basis * power).sum(-2)}


def orthonormal(columns: Tensor) -> Tensor:
    """Gram-Schmidt, twice over, as ours: QR would choose other signs."""
    done: list[Tensor] = []
    for own in columns.unbind(-1):
        before = own.norm(dim=-1, keepdim=True)
        for _ in range(2):
            for other in done:
                own = own - (own * other).sum(-1, keepdim=True) * other
        left = own.norm(dim=-1, keepdim=True)
        done.append(torch.where(left > 1e-4 * before, own / left.clamp(min=1e-20), 0.0))
    return torch.stack(done, -1)


def covariance(conflict: Mapping[str, Tensor]) -> Tensor:
    mean = _mean(conflict)
    between = torch.einsum("yc,yce,ycf->ef", conflict["weight"], mean, mean)
    within = (conflict["square"] - between) / conflict["weight"].sum().clamp(min=1e-8)
    e = len(within)
    return within + (1e-3 * within.trace() / e + 1e-6) * torch.eye(e, device=within.device)


def mirror(conflict: Mapping[str, Tensor], triangle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(along, across, middle) of the reflection between each pair of classes' shortcuts `[c, c, e]`."""
    mean = _mean(conflict)
    agreeing = mean.diagonal().T
    step = mean - agreeing[:, None]
    along = (step - step.transpose(0, 1)) / 4
    middle = (mean + mean.transpose(0, 1) + agreeing[:, None] + agreeing) / 4
    across = torch.cholesky_solve(along.reshape(-1, along.shape[-1]).T, triangle).T.view_as(along)
    return along, across / (across * along).sum(-1, keepdim=True).clamp(min=1e-8), middle


def _mean(conflict: Mapping[str, Tensor]) -> Tensor:
    return conflict["total"] / conflict["weight"].clamp(min=1e-8)[..., None]
