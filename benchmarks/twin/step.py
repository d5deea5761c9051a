"""One training step of ERM and of CIMRL in PyTorch, at the default options of `cimrl_jax/methods/cimrl.py`; every example weighs 1.

The loss is one function, so that `torch.compile` sees it whole; AdamW is the fused one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from twin import editor, views
from twin.model import Network, Outputs, Slots

from cimrl_jax.methods.cimrl import MEMORY, Options

PERTURB = {"image": views.perturb_image, "text": views.perturb_text}
Loss = Callable[[Mapping[str, Tensor], Tensor, Mapping[str, Any], Any], tuple[Tensor, Any, dict[str, Tensor]]]


class Recipe(NamedTuple):
    """How parameters are updated."""

    learning_rate: float
    weight_decay: float
    steps: int
    warmup: float
    clip_norm: float


class Erm(nn.Module):
    """The mean cross entropy."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, Tensor], label: Tensor, draws: Mapping[str, Any], state: Any) -> tuple[Tensor, Any, dict[str, Tensor]]:
        slots = {m: self.model.embed(m, own) for m, own in inputs.items()}
        out = self.model.causal.decide(self.model.encode(slots))
        total = functional.cross_entropy(out.logits, label)
        return total, state, {"loss": total.detach(), "accuracy": _accuracy(out.logits, label)}


class Cimrl(nn.Module):
    """All losses of CIMRL; the original, the perturbed view and the counterfactual go through the model side by side."""

    def __init__(self, model: Network, layouts: Mapping[str, editor.Layout], options: Options, *, classes: int, steps: int) -> None:
        super().__init__()
        self.model, self.layouts, self.options, self.steps = model, dict(layouts), options, steps
        self.method = nn.ModuleDict({m: editor.Reference(own.width, options.reference_hidden, classes) for m, own in layouts.items()})

    def forward(self, inputs: Mapping[str, Tensor], label: Tensor, draws: Mapping[str, Any], state: Any) -> tuple[Tensor, Any, dict[str, Tensor]]:
        options, names = self.options, sorted(inputs)
        slots = {m: self.model.embed(m, inputs[m]) for m in names}
        references: Any = self.method
        edit, new = editor.edit(options, self.layouts, references, state["editor"], slots, label, draws, state["trial"]["refused"])
        learned = sum(self._fit(references[m], slots[m], label) for m in names)
        with torch.no_grad():
            perturbed = {m: PERTURB[m](inputs[m], draws[m]["view"]) for m in names}
        view = {m: self.model.embed(m, perturbed[m]) for m in names}
        stacked = {m: Slots(*(torch.cat(parts) for parts in zip(slots[m], view[m], edit.slots[m], strict=True))) for m in names}
        out = self.model.causal.decide(self.model.encode(stacked))
        original, other, edited = (_part(out, i, len(label)) for i in range(3))
        heads = self.model.causal.decide({part: original.codes[part].detach() for part in (*names, "shared")}).heads

        l_ce = functional.cross_entropy(original.logits, label)
        l_ci = _info_nce(original.codes["projection"], other.codes["projection"], options.tau)
        l_md = options.beta * functional.cross_entropy(original.heads["shared"], label) + options.gamma * functional.cross_entropy(
            original.heads["combined"], label
        )
        for m in names:
            l_md = l_md + options.alpha * functional.cross_entropy(heads[m], label)
            l_md = l_md + options.lam * (_unit(original.codes[m]) * _unit(original.codes["shared"])).sum(-1).square().mean()
        before, after = original.logits.log_softmax(-1), edited.logits.log_softmax(-1)
        l_if = options.mu * (after.exp() * (after - before)).sum(-1).mean() + options.nu * functional.cross_entropy(edited.logits, label)
        warm = state["step"] >= options.warmup * self.steps
        with torch.no_grad():
            trial = self._try(state["trial"], original.logits, edited.logits, edit, warm)
        ramp = warm.float()
        total = options.w_ce * l_ce + options.w_ci * l_ci + options.w_md * l_md + ramp * options.w_if * l_if + learned

        figures = {"loss": total, "accuracy": _accuracy(original.logits, label), "l_ce": l_ce, "l_ci": l_ci, "l_md": l_md, "l_if": l_if}
        figures["turned"] = trial["turned"]
        for i, m in enumerate(names):
            figures[f"refused_{m}"] = trial["refused"][i].float()
            figures[f"conflict_{m}"] = (edit.reading[m].argmax(-1) != label).float().mean()
            figures[f"flip_{m}"] = edit.quality[m].mean()
            figures |= {f"quality_{m}_{kind}": new["quality"][m][k] for k, kind in enumerate(self.layouts[m].candidates)}
        return total, {"editor": new, "trial": trial, "step": state["step"] + 1}, {name: value.detach() for name, value in figures.items()}

    def _try(self, trial: Mapping[str, Tensor], before: Tensor, after: Tensor, edit: editor.Edit, warm: Tensor) -> dict[str, Tensor]:
        new = edit.able & ~trial["known"]
        last = torch.where(new.any(), new, trial["last"])
        whole = edit.whole & warm
        steps = torch.where(new.any(), 0.0, trial["steps"]) + whole.any()
        share = torch.where(whole.any(), (1 / steps.clamp(min=1)).clamp(min=MEMORY), 0.0)
        differs = ((before.argmax(-1) != after.argmax(-1)) & whole).sum() / whole.sum().clamp(min=1)
        turned = trial["turned"] + share * (differs - trial["turned"])
        failed = whole.any() & (steps >= max(self.options.warmup * self.steps, 1 / MEMORY)) & (turned > self.options.trust)
        refused, known = trial["refused"] | (last & failed), trial["known"] | edit.able
        last = torch.where(failed, known & ~refused, last)
        return {"turned": turned, "steps": torch.where(failed, 0.0, steps), "known": known, "last": last, "refused": refused}

    def _fit(self, reference: editor.Reference, slots: Slots, label: Tensor) -> Tensor:
        logits, _ = reference(Slots(slots.values.detach(), slots.mask))
        q = self.options.reference_q
        return ((1 - torch.exp(-q * functional.cross_entropy(logits, label, reduction="none"))) / q).mean()


def _part(out: Outputs, i: int, b: int) -> Outputs:
    own = slice(i * b, (i + 1) * b)
    return Outputs(out.logits[own], {n: x[own] for n, x in out.heads.items()}, {n: x[own] for n, x in out.codes.items()})


def _accuracy(logits: Tensor, label: Tensor) -> Tensor:
    return (logits.argmax(-1) == label).float().mean()


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-8)


def _info_nce(anchor: Tensor, positive: Tensor, tau: float) -> Tensor:
    anchor, positive = _unit(anchor), _unit(positive)
    near = (anchor * positive).sum(-1) / tau
    others = (anchor @ anchor.T / tau).masked_fill(torch.eye(len(anchor), dtype=torch.bool, device=anchor.device), -torch.inf)
    return (torch.cat([near[:, None], others], 1).logsumexp(1) - near).mean()


class Trainer:
    """Loss, backward pass, clipping, AdamW. `forward` is the loss's module or what `torch.compile` made of it."""

    def __init__(self, loss: Erm | Cimrl, recipe: Recipe, *, compiled: bool, dtype: torch.dtype) -> None:
        self.loss, self.recipe, self.dtype, self.count = loss, recipe, dtype, 0
        self.forward = torch.compile(loss) if compiled else loss
        self.parts = [list(part.parameters()) for part in loss.children()]  # the model's and the method's: clipped apart
        matrices = [p for part in self.parts for p in part if p.ndim > 1]
        vectors = [p for part in self.parts for p in part if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)

    def rate(self) -> float:
        """Warm-up, then a cosine."""
        recipe, step = self.recipe, self.count
        rise = max(round(recipe.warmup * recipe.steps), 1)
        done = min(max((step - rise) / max(recipe.steps - rise, 1), 0.0), 1.0)
        return recipe.learning_rate * min((step + 1) / rise, 1.0) * 0.5 * (1 + math.cos(math.pi * done))

    def step(self, inputs: Mapping[str, Tensor], label: Tensor, draws: Mapping[str, Any], state: Any) -> tuple[Any, dict[str, Tensor]]:
        """(the new state, metrics). Nothing waits for the device."""
        with torch.autocast(label.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            total, state, metrics = self.forward(inputs, label, draws, state)
        total.backward()
        for part in self.parts:
            nn.utils.clip_grad_norm_(part, self.recipe.clip_norm, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.count += 1
        return state, metrics
