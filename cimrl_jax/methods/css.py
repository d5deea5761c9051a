"""Counterfactual samples synthesising (Chen et al. 2020, arXiv 2003.06576), on slots of any modality. Sees labels only.

For each example one modality that it has is drawn. The contribution of slot j to the true answer is `<d(logit_y - mean of the others)/dx_j, x_j>`;
critical are the fewest slots with the share eta of all positive contribution. Two samples are made: x+ keeps the critical slots and masks the rest of
that modality, x- masks the critical ones. What x+ is predicted as (its top N classes) is no answer of x-, which may be left with none:

    loss = BCE(x, a) + weight BCE(x-, a-),  a = onehot(y),  a- = a without the top N classes of x+

BCE is binary cross entropy, summed over classes, of the logits z ("ce") or of `z + sum_m log((b_m + s) / (1 - b_m + s))` ("poe": the smoothed product
of experts of Clark et al. 2019, arXiv 1909.03683). b_m are the probabilities of a bias head on the code of the original's modality m, which learns by
its own cross entropy and moves no encoder. The prediction is z alone.

The paper sums the gradient alone, on features that are never negative; slots have either sign, so here it is gradient times slot, and the share is of
relu'd contributions in place of their softmax. In the authors' code s is learned, starting at sigmoid(-1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from cimrl_jax.counterfactual import attribution, intervene
from cimrl_jax.errors import UserError
from cimrl_jax.losses import cross_entropy, masked_mean
from cimrl_jax.methods import base
from cimrl_jax.options import Range
from cimrl_jax.types import Batch, Hyper, Method, Metrics, Model, Params, Slots, Spec, Stage


@dataclasses.dataclass(frozen=True)
class Options:
    """What is masked, and what the counterfactual is taught."""

    base: Literal["ce", "poe"] = "poe"
    """What the samples are trained with: binary cross entropy, or a product of experts with bias heads."""
    share: Annotated[float, Range(above=0, high=1)] = 0.65
    """eta: critical are the fewest slots with this share of the modality's contribution to the answer."""
    top: Annotated[int, Range(low=1)] = 1
    """N: the label is no answer of x- if it is among this many most likely classes of x+."""
    smooth: Annotated[float, Range(above=0)] = 0.27
    """s of the product of experts: the larger, the less a bias head that is sure counts."""
    weight: float = 1.0
    """Weight of the counterfactual's loss."""
    hidden: Annotated[int, Range(low=1)] = 32
    """Width of a bias head's hidden layer."""


class Samples(NamedTuple):
    """The two samples made of every example."""

    factual: dict[str, Slots]
    """x+"""
    counterfactual: dict[str, Slots]
    """x-"""
    critical: dict[str, Float[Array, "b n"]]
    """1 on the critical slots, 0 in the modalities that were not drawn."""
    made: Float[Array, " b"]
    """0 where no slot is critical."""


def build(options: Options) -> Method:
    """The method record."""

    def init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
        if options.top >= spec.num_classes:
            raise UserError(f"method css: top={options.top} rules every label out; expected less than the {spec.num_classes} classes")
        if options.base == "ce":
            return {}, {}
        return base.bias_heads(key, spec, sorted(spec.slots), hidden=options.hidden), {}

    def loss(
        state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
        keys = jax.random.split(key, 2)
        slots = model.embed(params["model"], batch.inputs, batch.present)
        samples = synthesise(model, params["model"], slots, batch.label, keys[0], share=hyper["share"])
        fixed, factual = jax.lax.stop_gradient((params["model"], samples.factual))
        taken = among_top(model.decide(fixed, model.encode(fixed, factual, None)).logits, batch.label, options.top)

        both = jax.tree.map(lambda *two: jnp.stack(two, axis=1), slots, samples.counterfactual)  # [b, 2, ...]: b may be spread over devices
        codes = model.encode(params["model"], both, keys[1])
        logits, altered = jnp.moveaxis(model.decide(params["model"], codes).logits, 1, 0)
        answer = jax.nn.one_hot(batch.label, logits.shape[-1])
        learned, known = jnp.zeros(()), jnp.zeros(())
        for m, head in params["method"].items():
            bias = base.read_bias(head, jax.lax.stop_gradient(codes[m][:, 0]), batch.present[m])
            learned += masked_mean(cross_entropy(bias, batch.label), batch.weight * batch.present[m])
            p = jax.nn.softmax(jax.lax.stop_gradient(bias))
            known += jnp.where(batch.present[m][:, None], jnp.log(p + hyper["smooth"]) - jnp.log(1.0 - p + hyper["smooth"]), 0.0)
        l_x = masked_mean(binary(logits + known, answer), batch.weight)
        l_cf = masked_mean(binary(altered + known, answer * ~taken[:, None]), batch.weight * samples.made)
        total = l_x + hyper["weight"] * l_cf + learned
        figures = base.figures(total, logits, batch, l_x=l_x, l_cf=l_cf, taken=masked_mean(taken.astype(jnp.float32), batch.weight * samples.made))
        return total, (state, figures)

    return Method(init=init, stages=(Stage(share=1.0, loss=loss),), hyper=base.swept(options), explain=base.explain)


def synthesise(
    model: Model, params: Params, slots: Mapping[str, Slots], label: Int[Array, " b"], key: Key[Array, ""], *, share: Float[Array, ""] | float
) -> Samples:
    """x+ and x- of every example; gradient flows into them only through the slots and the mask embedding that they are made of."""
    fixed, frozen = jax.lax.stop_gradient((params, dict(slots)))
    _, gradient = attribution.attribute(lambda s: model.decide(fixed, model.encode(fixed, s, None)).logits, frozen, label)
    contribution = attribution.evidence(gradient, frozen)
    names = sorted(slots)
    there = jnp.stack([jnp.any(slots[m].mask, axis=-1) for m in names])  # [m, b]
    drawn = jnp.argmax(jnp.where(there, jax.random.uniform(key, there.shape), -1.0), axis=0)
    samples = Samples({}, {}, {}, jnp.zeros(label.shape))
    for i, m in enumerate(names):
        here = (drawn == i)[:, None]
        critical = fewest(contribution[m], share) * here
        rest = jnp.where(slots[m].mask & here, 1.0 - critical, 0.0)
        samples.critical[m] = critical
        samples.counterfactual[m] = Slots(intervene.mask(slots[m], critical, params["blank"][m]), slots[m].mask)
        samples.factual[m] = Slots(intervene.mask(slots[m], rest, params["blank"][m]), slots[m].mask)
        samples = samples._replace(made=jnp.maximum(samples.made, jnp.max(critical, axis=-1)))
    return samples


def fewest(contribution: Float[Array, "b n"], share: Float[Array, ""] | float) -> Float[Array, "b n"]:
    """1 on the fewest slots that together have `share` of the example's contribution (none negative); nothing where all are 0."""
    order = jnp.argsort(-contribution, axis=-1)
    falling = jnp.take_along_axis(contribution, order, axis=-1)
    before = jnp.cumsum(falling, axis=-1) - falling
    kept = (before < share * jnp.sum(contribution, axis=-1, keepdims=True)) & (falling > 0)
    return jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), axis=-1).astype(jnp.float32)


def among_top(logits: Float[Array, "b c"], label: Int[Array, " b"], top: int) -> Bool[Array, " b"]:
    """Whether fewer than `top` classes are likelier than the label."""
    own = jnp.take_along_axis(logits, label[:, None], axis=-1)
    return jnp.sum(logits > own, axis=-1) < top


def binary(logits: Float[Array, "b c"], answers: Float[Array, "b c"]) -> Float[Array, " b"]:
    """Binary cross entropy, summed over classes, in nats."""
    return jnp.sum(jax.nn.softplus(logits) - answers * logits, axis=-1)
