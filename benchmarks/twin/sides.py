"""Both sides made ready: our step, the twin with our parameters, the same batches and the same random numbers for both."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from twin import editor as twin_editor
from twin import step as twin_step
from twin.model import Network

from cimrl_jax.counterfactual import editor
from cimrl_jax.data.views import make_perturb
from cimrl_jax.methods import cimrl, erm
from cimrl_jax.nn.model import build_model
from cimrl_jax.train import step as fused
from cimrl_jax.train.optimizer import make_optimizer
from cimrl_jax.types import Batch, Feature, Model, SlotSpec, Spec, TrainState

NAMES = ("image", "text")
FUSION: Any = {"fusion_layers": 2, "connect_every": 2, "causal_layers": 1}


@dataclasses.dataclass(frozen=True)
class Size:
    """What is trained: a ViT and a text transformer of one width, on made-up pictures and words."""

    name: str
    batch: int
    dim: int
    heads: int
    depth: int
    """Blocks of the ViT."""
    text_depth: int
    image: int
    """Side of a picture in pixels."""
    patch: int
    words: int
    """Of a text."""
    vocabulary: int = 8000
    classes: int = 2
    mlp_ratio: float = 4.0
    dtype: str = "float32"


RECIPE = twin_step.Recipe(learning_rate=1e-3, weight_decay=1e-4, steps=1000, warmup=0.1, clip_norm=1.0)
"""The defaults of cimrl_jax/config.py."""


class Ours(NamedTuple):
    """Our side, ready to run."""

    model: Model
    state: TrainState
    step: Callable[[TrainState, Batch], tuple[TrainState, Any]]
    layout: Mapping[str, SlotSpec]
    plan: editor.Plan


def features(size: Size) -> dict[str, Feature]:
    vocabulary = tuple(f"word{i}" for i in range(size.vocabulary))
    return {"image": Feature("image", (size.image, size.image, 3), "uint8"), "text": Feature("text", (size.words,), "int32", vocabulary=vocabulary)}


def batches(size: Size, seed: int = 0) -> Iterator[Batch]:
    """Pictures whose tint, and texts of which one word, mostly tell the label; the texts are of different lengths."""
    rng, b = np.random.default_rng(seed), size.batch
    while True:
        label = rng.integers(0, size.classes, b).astype(np.int32)
        cue = np.where(rng.random(b) < 0.9, label, rng.integers(0, size.classes, b))
        pixels = rng.integers(0, 200, (b, size.image, size.image, 3))
        pixels[..., 0] += (cue * 50 // max(size.classes - 1, 1))[:, None, None]
        ids = rng.integers(2 + size.classes, size.vocabulary, (b, size.words))
        ids[:, 1] = 2 + cue
        ids[np.arange(size.words) >= rng.integers(size.words // 2, size.words + 1, b)[:, None]] = 0
        yield Batch(
            inputs={"image": jnp.asarray(pixels, jnp.uint8), "text": jnp.asarray(ids, jnp.int32)},
            present={m: jnp.ones(b, bool) for m in NAMES},
            label=jnp.asarray(label),
            group=jnp.full(b, -1),
            index=jnp.arange(b),
            weight=jnp.ones(b),
        )


def ours(method: str, size: Size, recipe: twin_step.Recipe = RECIPE, *, seed: int = 0, **hyper: float) -> Ours:
    """One member of a method at its default options; `hyper` changes traced numbers."""
    module = {"erm": erm, "cimrl": cimrl}[method]
    options = module.Options()
    record = module.build(options)
    declared = features(size)
    shape: Any = {"dim": size.dim, "heads": size.heads, "mlp_ratio": size.mlp_ratio, "dropout": 0.0, "dtype": size.dtype}
    sections = {"image": {"encoder": "vit", "patch": size.patch, "depth": size.depth}, "text": {"depth": size.text_depth}}
    model = build_model(features=declared, num_classes=size.classes, modalities=sections, views=make_perturb, **shape, **FUSION)
    spec = Spec(size.classes, 0, size.batch, recipe.steps, model.slots, size.dim, (size.batch,) * size.classes, init_model=model.init)
    optimizer = make_optimizer(steps=recipe.steps, warmup=recipe.warmup, schedule="cosine", clip_norm=recipe.clip_norm)
    numbers = {**record.hyper, "learning_rate": recipe.learning_rate, "weight_decay": recipe.weight_decay, **hyper}
    state = fused.init_member(seed, numbers, model=model, method=record, spec=spec, optimizer=optimizer)
    step = fused.make_step(model, record.stages[0], optimizer, augment=False)
    own = cimrl.Options()
    plan = editor.Plan(own.identify, own.intervention, own.reference_hidden, own.most, own.directions, model.slots, size.classes)
    return Ours(model, state, step, model.slots, plan)


def twin(method: str, size: Size, side: Ours, recipe: twin_step.Recipe = RECIPE, *, device: str = "cpu", compiled: bool = False, **changes: Any):
    """(the PyTorch trainer with our side's parameters, its state). `changes` are options of CIMRL."""
    encoders = {
        "image": {"count": side.layout["image"].count, "width": side.layout["image"].width, "depth": size.depth},
        "text": {"count": size.words, "width": size.dim, "depth": size.text_depth, "words": size.vocabulary},
    }
    hidden = max(1, round(size.dim * size.mlp_ratio))
    shape: Any = {"dim": size.dim, "heads": size.heads, "hidden": hidden, "classes": size.classes}
    model = Network(**shape, encoders=encoders, query="text", **FUSION)
    loss: Any = twin_step.Erm(model)
    if method == "cimrl":
        layouts = {m: twin_editor.Layout(own.width, own.element, own.low, own.high, side.plan.candidates(m)) for m, own in side.layout.items()}
        options = dataclasses.replace(cimrl.Options(), **changes)
        loss = twin_step.Cimrl(model, layouts, options, classes=size.classes, steps=recipe.steps)
    with torch.no_grad():
        for ours_value, (name, own) in zip(carried(side.state.params, loss), loss.named_parameters(), strict=True):
            if own.shape != ours_value.shape:
                raise ValueError(f"{name}: {tuple(own.shape)} in PyTorch, {ours_value.shape} in ours")
            own.copy_(torch.tensor(ours_value))
    loss.to(device)
    trainer = twin_step.Trainer(loss, recipe, compiled=compiled, dtype=getattr(torch, size.dtype))
    return trainer, twin_state(side.state.method, device) if method == "cimrl" else ()


def carried(params: Any, loss: torch.nn.Module) -> Iterator[np.ndarray]:
    """Our parameters in the order and the layout of the twin's."""
    for name, _ in loss.named_parameters():
        part, *path = _path(name)
        leaf = functools.reduce(lambda tree, step: tree[step], path, params[part])
        value = np.asarray(leaf)
        linear = path[-1] in ("kernel", "inner", "outer")
        yield value.T if linear else value


def _path(name: str) -> list[str]:
    """A parameter's name in PyTorch -> where it lies in ours."""
    *path, leaf = name.split(".")
    if path[0] == "method":
        return [*path[:2], path[2] if leaf == "weight" else f"{path[2]}_bias"]
    norm = path[-1].endswith("norm") or path[-2:-1] == ["norms"]
    leaf = {"weight": "scale" if norm else "kernel"}.get(leaf, leaf)
    where: list[str] = ["model"]
    rest = path[1:]
    if rest[0] == "encoders":
        where += [f"encoders_{rest[1]}"] + ([] if leaf == "words" else ["trunk"])
        rest = rest[2:]
        if rest[:1] == ["blocks"]:
            where, rest = [*where, "stack", f"block_{rest[1]}"], rest[2:]
    elif rest[0] == "fusion":
        kind = "connected" if FUSION["connect_every"] and (int(rest[2]) + 1) % FUSION["connect_every"] == 0 else "asymmetric"
        where, rest = [*where, "fusion", f"{kind}_{rest[2]}"], rest[3:]
    else:
        where, rest = [*where, "causal"], rest[1:]
        if rest[0] in ("stacks", "norms", "heads"):
            where, rest = [*where, f"{rest[0]}_{rest[1]}"], rest[2:]
            if where[-1].startswith("stacks"):
                where, rest = [*where, f"block_{rest[0]}"], rest[1:]
    where += rest
    if norm and where[-1] != "norm":
        where.append("norm")  # our Norm wraps flax's
    return [*where, leaf]


def twin_state(state: Any, device: str = "cpu") -> Any:
    """CIMRL's state as the twin keeps it."""

    def tensor(x: Any) -> torch.Tensor:
        return torch.tensor(np.asarray(x), device=device)

    def fields(record: Any) -> dict[str, torch.Tensor]:
        return {field.name: tensor(getattr(record, field.name)) for field in dataclasses.fields(record)}

    own = state["editor"]
    parts = {part: {m: fields(record) for m, record in own[part].items() if record != ()} for part in ("conflict", "pattern")}
    trial = {name: tensor(x) for name, x in state["trial"]._asdict().items()}
    return {"editor": {**parts, "quality": {m: tensor(x) for m, x in own["quality"].items()}}, "trial": trial, "step": tensor(state["step"])}


@functools.partial(jax.jit, static_argnums=1)
def our_draws(state: TrainState, size: Size) -> Any:
    """The random numbers that our next CIMRL step will draw, by the addresses at which it draws them."""
    b, key = size.batch, jax.random.fold_in(fused._address(state.key, state.step), 1)
    edits, view, _ = jax.random.split(key, 3)
    which, together = jax.random.split(jax.random.fold_in(edits, len(NAMES)))
    drawn: dict[str, Any] = {"which": jax.random.uniform(which, (b, len(NAMES))), "together": jax.random.uniform(together, (b,))}
    shapes = {"image": (8, b), "text": (5, b, size.words + 1)}
    for stream, m in enumerate(NAMES):
        donor, mix, share, _ = jax.random.split(jax.random.fold_in(jax.random.fold_in(edits, stream), 1), 4)
        drawn[m] = {
            "donor": jax.random.gumbel(donor, (b, b)),
            "mix": jax.random.gumbel(mix, (b, b)),
            "share": jax.random.uniform(share, (3, b)),
            "view": jax.random.uniform(jax.random.fold_in(view, zlib.crc32(m.encode()) & 0x7FFFFFFF), shapes[m]),
        }
    return drawn


def torch_draws(size: Size, device: str) -> Any:
    """Numbers of the same distributions from PyTorch's own generator."""
    b = size.batch

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, device=device)

    def gumbel(*shape: int) -> torch.Tensor:
        return -torch.empty(shape, device=device).exponential_().log()

    shapes = {"image": (8, b), "text": (5, b, size.words + 1)}
    own = {m: {"donor": gumbel(b, b), "mix": gumbel(b, b), "share": uniform(3, b), "view": uniform(*shapes[m])} for m in NAMES}
    return {"which": uniform(b, len(NAMES)), "together": uniform(b), **own}


def as_torch(batch: Batch, device: str = "cpu") -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(inputs, label)."""
    inputs = {m: torch.tensor(np.asarray(own), device=device) for m, own in batch.inputs.items()}
    inputs["text"] = inputs["text"].long()
    return inputs, torch.tensor(np.asarray(batch.label), device=device).long()
