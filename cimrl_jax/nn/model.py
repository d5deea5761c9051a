"""Assembles encoders, fusion and the causal layers into one `types.Model`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from cimrl_jax.errors import UserError, nearest
from cimrl_jax.nn.causal import Causal
from cimrl_jax.nn.encoders.base import Encoder
from cimrl_jax.nn.fusion import Fusion
from cimrl_jax.nn.transformer import Sizes
from cimrl_jax.options import OptionError, component, make_options
from cimrl_jax.types import Feature, Head, Kind, Model, Outputs, Params, Slots

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
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
    """The encoder of one modality. `section`: "encoder" names the file (default: by the feature's kind), the rest is its `Options`.

    Raises:
      UserError: no such encoder or option, or an encoder that cannot read the feature.
    """
    given = dict(section)
    module = component("encoder", given.pop("encoder", "") or default_encoder(feature.kind), where=f"model.{name}.encoder")
    options = make_options(module.Options, given, f"model.{name}")
    shared = {field.name: getattr(sizes, field.name) for field in dataclasses.fields(sizes)}
    try:
        return module.build(options, feature=feature, **shared)
    except UserError as error:  # an encoder does not know which modality it reads
        raise OptionError(f"model.{name}", str(error)) from error


def choose_query(features: Mapping[str, Feature], query: str) -> str:
    """The modality whose tokens ask in the fusion: the one named, else the first text, else the first by name.

    Raises:
      UserError: no modality of that name.
    """
    if query and query not in features:
        raise UserError(f"query={query!r} names no modality of this data set; {nearest(query, features)}")
    texts = [m for m in sorted(features) if features[m].kind == "text"]
    return query or (texts or sorted(features))[0]


def _check(features: Mapping[str, Feature], modalities: Mapping[str, Any], dtype: str, dim: int, heads: int) -> None:
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
    perturb: Callable[..., dict[str, Array]],
) -> Model:
    """The model as pure functions of a plain nested dict of float32 parameters; every function may be vmapped over them.

    `params["blank"][m]` is the learned mask embedding of modality m's slots. `dtype` is what the blocks compute in; codes and logits are float32.

    Raises:
      UserError: an unknown encoder, option, dtype or query; sizes that do not fit; an encoder that cannot read its modality.
    """
    _check(features, modalities, dtype, dim, heads)
    names = tuple(sorted(features))
    sizes = Sizes(dim, heads, mlp_ratio, dropout, DTYPES[dtype])
    readers = {m: build_encoder(m, features[m], modalities.get(m, {}), sizes) for m in names}
    layout = {m: readers[m].slot_spec() for m in names}
    network = Network(
        encoders=readers,
        names=names,
        fusion=Fusion(sizes, names, choose_query(features, query), fusion_layers, connect_every),
        causal=Causal(sizes, names, num_classes, causal_layers),
        # A word that means nothing should not be the zero vector, which is padding's; a pixel's zero is the mean colour.
        blank=Blank(tuple((m, layout[m].width, 0.02 if features[m].kind == "text" else 0.0) for m in names)),
    )

    def init(key):
        inputs = {m: jnp.zeros((1, *features[m].shape), features[m].dtype) for m in names}
        present = {m: jnp.ones((1,), bool) for m in names}
        return network.init(key, inputs, present, method="everything")["params"]

    def embed(params, inputs, present):
        return network.apply({"params": params}, inputs, present, method="embed")

    def encode(params, slots, key=None):
        rngs = {"dropout": key} if key is not None and dropout > 0 else {}
        return network.apply({"params": params}, slots, deterministic=not rngs, method="encode", rngs=rngs)

    def decide(params, codes):
        return network.apply({"params": params}, codes, method="decide")

    def regions(masks):
        return {m: readers[m].regions(jnp.asarray(masks[m])) for m in names if m in masks}

    def render(params, values):
        return network.apply({"params": params}, values, method="render")

    return Model(
        init=jax.jit(init),
        embed=embed,  # type: ignore[arg-type]
        encode=encode,  # type: ignore[arg-type]
        decide=decide,  # type: ignore[arg-type]
        perturb=perturb,
        regions=regions,
        render=render,  # type: ignore[arg-type]
        slots=layout,
        head=_head((*names, "shared")),
    )


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
