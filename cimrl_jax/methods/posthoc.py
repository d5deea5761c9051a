"""Empirical risk minimisation whose shortcuts are subtracted afterwards: the baseline of every debiasing in training. Sees labels only.

    loss       = CE(z, y) + CE(sum_m b_m, y)
    prediction = log_softmax(z) - strength log_softmax(sum_m b_m)

b_m is a bias head on modality m's code. No gradient flows from it into the model, which is trained as by `erm`: that the heads learn beside it, and
not after it, changes nothing in it. This is logit adjustment (Menon et al. 2021, arXiv 2007.07314) with what the modalities tell without one another
in the place of the classes' prior. The heads learn their sum: each by itself, two that know the same shortcut would have it subtracted twice. An
absent modality has no say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from cimrl_jax.losses import cross_entropy, masked_mean
from cimrl_jax.methods import base
from cimrl_jax.options import Range
from cimrl_jax.types import Batch, Hyper, Method, Metrics, Model, Params, Slots, Spec, Stage


@dataclasses.dataclass(frozen=True)
class Options:
    """What is subtracted."""

    strength: float = 1.0
    """How much of the bias heads' joint log probability is subtracted."""
    hidden: Annotated[int, Range(low=1)] = 32
    """Width of a bias head's hidden layer."""


def build(options: Options) -> Method:
    """The method record. Modes: "posthoc" (the prediction), "factual" (the model as it is) and "bias_only" (the heads)."""

    def init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
        return base.bias_heads(key, spec, sorted(spec.slots), hidden=options.hidden), {}

    def direct(params: Params, codes: Mapping[str, Array]) -> Float[Array, "b c"]:
        codes = jax.lax.stop_gradient(dict(codes))
        told = [base.read_bias(head, codes[m], jnp.any(codes[m] != 0, axis=-1)) for m, head in params["method"].items()]
        return jax.nn.log_softmax(jnp.sum(jnp.stack(told), axis=0))

    def loss(
        state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
        out = base.forward(model, params, batch, key)
        main = masked_mean(cross_entropy(out.logits, batch.label), batch.weight)
        learned = masked_mean(cross_entropy(direct(params, out.codes), batch.label), batch.weight)
        return main + learned, (state, base.figures(main + learned, out.logits, batch, l_main=main, l_bias=learned))

    def factual(
        state: Any, hyper: Hyper, model: Model, params: Params, slots: Mapping[str, Slots], codes: Mapping[str, Array]
    ) -> Float[Array, "b c"]:
        return model.decide(params["model"], codes).logits

    def bias_only(
        state: Any, hyper: Hyper, model: Model, params: Params, slots: Mapping[str, Slots], codes: Mapping[str, Array]
    ) -> Float[Array, "b c"]:
        return direct(params, codes)

    def posthoc(state: Any, hyper: Hyper, *seen: Any) -> Float[Array, "b c"]:
        return jax.nn.log_softmax(factual(state, hyper, *seen)) - hyper["strength"] * bias_only(state, hyper, *seen)

    return Method(
        init=init,
        stages=(Stage(share=1.0, loss=loss),),
        hyper=base.swept(options),
        explain=base.explainer(posthoc),
        predict=posthoc,
        modes={"posthoc": posthoc, "factual": factual, "bias_only": bias_only},
    )
