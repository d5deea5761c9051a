"""Assembles encoders, fusion and the causal layers into one `types.Model`."""

from __future__ import annotations

import dataclasses
import pathlib
import types
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from cimrl_jax.errors import UserError, nearest
from cimrl_jax.nn import finetune, pretrained
from cimrl_jax.nn.cached import Cached
from cimrl_jax.nn.causal import Causal
from cimrl_jax.nn.encoders.base import Encoder, Pretrained, pooled
from cimrl_jax.nn.fusion import Fusion
from cimrl_jax.nn.transformer import Sizes
from cimrl_jax.nn.tuning import Tuning
from cimrl_jax.options import OptionError, component, known, make_options
from cimrl_jax.types import Expected, Feature, Head, Kind, Model, Outputs, Params, Slots

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
Perturb = Callable[[Mapping[str, Array], Any], dict[str, Array]]
RESERVED = ("shared", "combined", "projection")
DEFAULTS: dict[Kind, str] = {
    "image": "vit",
    "text": "text_transformer",
    "spectrogram": "spectrogram",
    "table": "tabular",
    "slots": "identity",
}


class Blank(nn.Module):
    """The learned mask embedding of every modality `[width]`: what a slot holds when its content was taken away."""

    widths: tuple[tuple[str, int, float], ...]

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        return {m: self.param(m, nn.initializers.normal(std) if std else nn.initializers.zeros, (width,)) for m, width, std in self.widths}


class Network(nn.Module):
    """All of the model's parameters; `embed`, `encode` and `decide` are the three doors to them."""

    encoders: Mapping[str, Any]
    names: tuple[str, ...]
    fusion: Fusion
    causal: Causal
    blank: Blank

    def embed(self, inputs: Mapping[str, Array], present: Mapping[str, Array]) -> dict[str, Slots]:
        return {m: self.encoders[m].embed(inputs[m], present[m]) for m in self.names}

    def encode(self, slots: Mapping[str, Slots], *, deterministic: bool) -> dict[str, Array]:
        tokens = {m: self.encoders[m].encode(slots[m], deterministic=deterministic) for m in self.names}
        fused = self.fusion(tokens, deterministic=deterministic)
        return self.causal.encode(tokens, fused, deterministic=deterministic)

    def decide(self, codes: Mapping[str, Array]) -> Outputs:
        return self.causal.decide(codes)

    def render(self, values: Mapping[str, Array]) -> dict[str, Array]:
        return {m: self.encoders[m].render(values[m]) for m in values}

    def everything(self, inputs: Mapping[str, Array], present: Mapping[str, Array]) -> Outputs:
        """Passes through every parameter once, so that `init` makes them all."""
        self.blank()
        return self.decide(self.encode(self.embed(inputs, present), deterministic=True))


def default_encoder(kind: Kind) -> str:
    """The encoder of a modality whose configuration names none."""
    return DEFAULTS[kind]


def build_encoder(name: str, feature: Feature, section: Mapping[str, Any], sizes: Sizes) -> Encoder:
    """The encoder of one modality. `section`: "encoder" names the file (default: what reads the checkpoint that "pretrained" names, else by the
    feature's kind), the rest is its `Options`. Features of a frozen encoder (`feature.raw`) are read as that encoder's tokens.

    Raises:
      UserError: no such encoder or option, or an encoder that cannot read the feature.
    """
    module, options = _chosen(name, section, feature.kind if feature.raw is None else feature.raw.kind)
    shared = {field.name: getattr(sizes, field.name) for field in dataclasses.fields(sizes)}
    if isinstance(options, Tuning) and options.freeze == "all" and not options.lora_rank:
        shared["dropout"] = 0.0  # what nothing of moves is one function, whether it is run in the step or its output is kept
    try:
        found = module.build(options, feature=_one_version(feature.raw or feature), **shared)
        return found if feature.raw is None else Cached(feature, found, sizes)
    except UserError as error:  # an encoder does not know which modality it reads
        raise OptionError(f"model.{name}", str(error)) from error


def _one_version(raw: Feature) -> Feature:
    """What is read of an example that has several versions: the first."""
    return dataclasses.replace(raw, shape=(raw.shape[0] // raw.views, *raw.shape[1:]), views=1)


def _chosen(name: str, section: Mapping[str, Any], kind: Kind) -> tuple[types.ModuleType, Any]:
    """(the encoder's module, its options)."""
    given = dict(section)
    own = given.pop("encoder", "")
    if not own and given.get("pretrained"):
        own = _reader(name, str(given["pretrained"]))
    module = component("encoder", own or default_encoder(kind), where=f"model.{name}.encoder")
    return module, make_options(module.Options, given, f"model.{name}")


def _reader(name: str, where: str) -> str:
    """The encoder that reads checkpoints of this one's type."""
    try:
        kind = pretrained.model_type(where)
    except UserError as error:
        raise OptionError(f"model.{name}.pretrained", str(error)) from error
    return next(encoder for encoder in known("encoder") if kind in getattr(component("encoder", encoder), "MODEL_TYPES", ()))


def expected(modalities: Mapping[str, Mapping[str, Any]]) -> dict[str, Expected]:
    """What the checkpoints of a model's sections were trained to read, for the modalities that have one.

    Raises:
      UserError: a checkpoint that is missing, damaged or unknown.
    """
    found = {}
    for name, section in modalities.items():
        if section.get("pretrained"):
            module, options = _chosen(name, section, "slots")
            if not hasattr(module, "expected"):
                raise OptionError(f"model.{name}.pretrained", f"encoder {section.get('encoder')!r} has no checkpoints; leave it out, or the encoder")
            found[name] = module.expected(options)
    return found


def feature_of(encoder: Pretrained, raw: Feature) -> Feature:
    """How the encoder's tokens are declared where they take the place of what it reads."""
    tokens, views = pooled(encoder), encoder.tuning.views
    return Feature("slots", (views * tokens.count, tokens.width), "float32", raw=raw, views=views)


class Frozen(NamedTuple):
    """An encoder of which nothing moves, and whose output is to be kept."""

    feature: Feature
    """How its tokens are declared."""
    compute: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(raw inputs `[b, ...]`, present `[b]`) -> `[b, *feature.shape]` float32: the tokens of every view, the example as it is first; zero where
    masked."""
    digest: str
    """A hash of its weights and its architecture."""
    note: str
    """What was read from which checkpoint."""


def frozen(
    name: str,
    feature: Feature,
    section: Mapping[str, Any],
    *,
    dtype: str,
    views: Callable[[Mapping[str, Feature]], Perturb],
) -> Frozen | None:
    """The encoder of a modality whose section says features=disk; None for all others.

    Raises:
      UserError: as `build_model`.
    """
    if section.get("features") != "disk":
        return None
    encoder = build_encoder(name, feature, section, Sizes(1, 1, 1.0, 0.0, DTYPES[dtype]))
    assert isinstance(encoder, Pretrained)
    declared, start, perturb = feature_of(encoder, feature), finetune.start(encoder, feature), views({name: feature})
    tokens, held = finetune.tokens(encoder), jax.tree.map(jnp.asarray, start.stays)

    @jax.jit
    def run(held, inputs, present, marks):
        def view(number):
            keys = jax.vmap(lambda mark: jax.random.fold_in(jax.random.fold_in(jax.random.key(0), number), mark))(marks)
            seen = jax.vmap(lambda own, key: perturb({name: own[None]}, key)[name][0])(inputs, keys) if number else inputs
            return tokens(held, seen, present).values

        return jnp.concatenate([view(number) for number in range(declared.views)], axis=1)

    def compute(inputs: np.ndarray, present: np.ndarray) -> np.ndarray:
        marks = np.array([zlib.crc32(np.ascontiguousarray(own).tobytes()) for own in inputs], np.uint32)  # a view is a function of what is seen
        return np.asarray(run(held, inputs, present, marks))

    return Frozen(declared, compute, finetune.digest(start.stays, encoder.architecture()), _note(name, encoder, start))


def _note(name: str, encoder: Pretrained, start: finetune.Start) -> str:
    return f"{name} from {encoder.tuning.pretrained}: {start}"


def choose_query(features: Mapping[str, Feature], query: str) -> str:
    """The modality whose tokens ask in the fusion: the one named, else the first text, else the first by name.

    Raises:
      UserError: no modality of that name.
    """
    if query and query not in features:
        raise UserError(f"query={query!r} names no modality of this data set; {nearest(query, features)}")
    texts = [m for m in sorted(features) if (features[m].raw or features[m]).kind == "text"]
    return query or (texts or sorted(features))[0]


def check(features: Mapping[str, Feature], modalities: Mapping[str, Any], dtype: str, dim: int, heads: int, query: str) -> None:
    """What can be told of a model's sizes and names before anything is computed.

    Raises:
      UserError: as `build_model`.
    """
    for name in features:
        if name in RESERVED:
            raise UserError(f"a modality cannot be called {name!r}, which names one of the model's codes; rename it in the data set")
    for name in modalities:
        if name not in features:
            raise UserError(f"model options are given for modality {name!r}, which the data set lacks; {nearest(name, features)}")
    if not features:
        raise UserError("the data set has no modality; give at least one feature")
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} is unknown; {nearest(dtype, DTYPES)}")
    if heads < 1 or dim % heads:
        raise UserError(f"heads={heads} does not divide dim={dim}; choose one of {[h for h in range(1, dim + 1) if dim % h == 0]}")
    choose_query(features, query)


def build_model(
    *,
    features: Mapping[str, Feature],
    num_classes: int,
    dim: int,
    dtype: str,
    heads: int,
    mlp_ratio: float,
    dropout: float,
    fusion_layers: int,
    connect_every: int,
    causal_layers: int,
    query: str = "",
    modalities: Mapping[str, Mapping[str, Any]],
    views: Callable[[Mapping[str, Feature]], Perturb],
) -> Model:
    """The model as pure functions of a plain nested dict of float32 parameters; every function may be vmapped over them.

    `params["blank"][m]` is the learned mask embedding of modality m's slots. `dtype` is what the blocks compute in; codes and logits are float32.
    `views` makes `Model.perturb` for modalities of these features.

    Raises:
      UserError: an unknown encoder, option, dtype or query; sizes that do not fit; an encoder that cannot read its modality, or a bad checkpoint.
    """
    check(features, modalities, dtype, dim, heads, query)
    names = tuple(sorted(features))
    sizes = Sizes(dim, heads, mlp_ratio, dropout, DTYPES[dtype])
    encoders = {m: build_encoder(m, features[m], modalities.get(m, {}), sizes) for m in names}
    published = {m: encoder for m, encoder in encoders.items() if isinstance(encoder, Pretrained)}
    fed = {m: encoder for m, encoder in published.items() if encoder.tuning.features == "step"}
    own = [m for m in published if m not in fed]
    declared = {**features, **{m: feature_of(encoder, features[m]) for m, encoder in fed.items()}}
    readers = {**encoders, **{m: Cached(declared[m], encoder, sizes) for m, encoder in fed.items()}}
    layout = {m: readers[m].slot_spec() for m in names}
    network = Network(
        encoders=readers,
        names=names,
        fusion=Fusion(sizes, names, choose_query(features, query), fusion_layers, connect_every),
        causal=Causal(sizes, names, num_classes, causal_layers),
        # A word that means nothing should not be the zero vector, which is padding's; a pixel's zero is the mean colour.
        blank=Blank(tuple((m, layout[m].width, 0.02 if (features[m].raw or features[m]).kind == "text" else 0.0) for m in names)),
    )
    starts = {m: finetune.start(encoder, features[m]) for m, encoder in published.items() if encoder.tuning.pretrained}
    notes = tuple(_note(m, published[m], start) for m, start in starts.items())
    weights = {m: finetune.digest(finetune.merge(start.stays, start.moves), published[m].architecture()) for m, start in starts.items()}
    held = {
        "stays": {f"encoders_{m}": start.stays for m, start in starts.items() if m not in fed and start.stays},
        "begins": {f"encoders_{m}": start.moves for m, start in starts.items() if start.moves},
        "backbones": {m: starts[m].stays for m in fed},
    }
    held = jax.tree.map(jnp.asarray, held)
    perturb, perturb_raw = views(declared), views({m: features[m] for m in fed})
    tokens = {m: finetune.tokens(encoder) for m, encoder in fed.items()}

    @jax.jit
    def fresh(key):
        inputs = {m: jnp.zeros((1, *declared[m].shape), declared[m].dtype) for m in names}
        present = {m: jnp.ones((1,), bool) for m in names}
        return network.init(key, inputs, present, method="everything")["params"]

    def regions(masks):
        return {m: readers[m].regions(jnp.asarray(masks[m])) for m in names if m in masks}

    def bind(held: Params) -> Model:
        def init(key):
            return finetune.replaced(finetune.without(fresh(key), held["stays"]), held["begins"])

        def apply(params, *arguments, **options):
            return network.apply({"params": finetune.merge(params, held["stays"])}, *arguments, **options)

        def embed(params, inputs, present):
            return apply(params, inputs, present, method="embed")

        def encode(params, slots, key=None):
            rngs = {"dropout": key} if key is not None and dropout > 0 else {}
            return apply(params, slots, deterministic=not rngs, method="encode", rngs=rngs)

        def decide(params, codes):
            return apply(params, codes, method="decide")

        def render(params, values):
            return apply(params, values, method="render")

        def prepare(inputs, present, key=None):
            seen = {m: inputs[m] for m in fed}
            seen = seen if key is None else perturb_raw(seen, key)
            return {**inputs, **{m: tokens[m](held["backbones"][m], seen[m], present[m]).values for m in fed}}

        def export(params: Params, folder: pathlib.Path) -> list[pathlib.Path]:
            whole = jax.tree.map(np.asarray, finetune.merge(params, held["stays"]))
            for m in own:
                pretrained.export(folder / m, whole[f"encoders_{m}"]["backbone"], published[m])
            return [folder / m for m in own]

        return Model(
            init=init,
            embed=embed,  # type: ignore[arg-type]
            encode=encode,  # type: ignore[arg-type]
            decide=decide,  # type: ignore[arg-type]
            perturb=perturb,
            regions=regions,
            render=render,  # type: ignore[arg-type]
            slots=layout,
            head=_head((*names, "shared")),
            held=held,
            bind=bind,
            rates=rates,
            prepare=prepare if fed else None,
            fed=tuple(fed),
            notes=notes,
            weights=weights,
            export=export if own else None,
        )

    rates = None
    if any(encoder.tuning.layer_decay < 1 for encoder in published.values()):
        shapes = jax.eval_shape(bind(held).init, jax.random.key(0))
        rates = jax.tree.map(lambda _: np.ones((), np.float32), shapes)
        rates |= {f"encoders_{m}": finetune.rates(encoder, shapes[f"encoders_{m}"]) for m, encoder in published.items() if m not in fed}
    return bind(held)


def bound(model: Model, held: Params) -> Model:
    """The model with `held` in place of its own: what a jitted function uses that takes `held` as an argument."""
    return model.bind(held) if model.bind else model


def _head(parts: tuple[str, ...]) -> Head:
    """f_C, which is linear in the codes side by side."""
    name = "heads_combined"

    def features(codes: Mapping[str, Array]) -> Array:
        return jnp.concatenate([codes[part].astype(jnp.float32) for part in parts], -1)

    def get(params: Params) -> tuple[Array, Array]:
        own = params["causal"][name]
        return own["kernel"], own["bias"]

    def put(params: Params, kernel: Any, bias: Any) -> Params:
        return {**params, "causal": {**params["causal"], name: {"kernel": kernel, "bias": bias}}}

    return Head(features, get, put)
