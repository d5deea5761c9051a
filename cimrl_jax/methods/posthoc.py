"""Empirical risk minimisation whose shortcuts are subtracted afterwards: the baseline of every debiasing in training. Sees labels only.

    loss       = CE(z, y) + sum_m CE(b_m, y)
    prediction = log_softmax(z) - strength sum_m log_softmax(b_m)

b_m is a bias head on modality m's code. No gradient flows from it into the model, which is trained as by `erm`: that the heads learn beside it, and
not after it, changes nothing in it. This is logit adjustment (Menon et al. 2021, arXiv 2007.07314) with what each modality tells by itself in the
place of the classes' prior. An absent modality has no say.
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
    """How much of the bias heads' log probabilities is subtracted."""
    hidden: Annotated[int, Range(low=1)] = 32
    """Width of a bias head's hidden layer."""


def build(options: Options) -> Method:
    """The method record. Modes: "posthoc" (the prediction), "factual" (the model as it is) and "bias_only" (the heads)."""

    def init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
        return base.bias_heads(key, spec, sorted(spec.slots), hidden=options.hidden), {}

    def read(params: Params, codes: Mapping[str, Array]) -> dict[str, Float[Array, "b c"]]:
        codes = jax.lax.stop_gradient(dict(codes))
        return {m: base.read_bias(head, codes[m], jnp.any(codes[m] != 0, axis=-1)) for m, head in params["method"].items()}

    def loss(
        state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
        out = base.forward(model, params, batch, key)
        main = masked_mean(cross_entropy(out.logits, batch.label), batch.weight)
        biases = read(params, out.codes)
        learned = {m: masked_mean(cross_entropy(b, batch.label), batch.weight * batch.present[m]) for m, b in biases.items()}
        total = main + sum(learned.values())
        return total, (state, base.figures(total, out.logits, batch, l_main=main, **{f"l_bias_{m}": own for m, own in learned.items()}))

    def factual(
        state: Any, hyper: Hyper, model: Model, params: Params, slots: Mapping[str, Slots], codes: Mapping[str, Array]
    ) -> Float[Array, "b c"]:
        return model.decide(params["model"], codes).logits

    def bias_only(
        state: Any, hyper: Hyper, model: Model, params: Params, slots: Mapping[str, Slots], codes: Mapping[str, Array]
    ) -> Float[Array, "b c"]:
        return jnp.sum(jax.nn.log_softmax(jnp.stack(list(read(params, codes).values()))), axis=0)

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
