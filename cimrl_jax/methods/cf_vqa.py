"""CF-VQA: the prediction without each modality's direct effect (Niu et al. 2021, arXiv 2006.04315), for any modalities. Sees labels only.

    Y(t, v, k) = log sigmoid(z_t + z_v + z_k)                         "sum"
               = log(p / (1 + p)), p = sigmoid(z_t) sigmoid(z_v) sigmoid(z_k)        "hm"
    loss       = CE(Y(t, v, k)) + sum_m CE(z_m) - sum sg(p_TE) log p_NDE
    prediction = Y(t, v, k) - Y(t, v, k*)                              total indirect effect

z_m is a branch of its own on modality m's code, z_k the model's logits. A path that is given no treatment (`*`), or whose modality is absent, says
one learnable number c for every class. p_TE = softmax Y(t, v, k) and p_NDE = softmax Y(t, v, k*); their term trains c and nothing else, and nothing
else trains c. Cross entropy is on Y(t, v, k): on the difference it would cancel the debiasing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from cimrl_jax.counterfactual import effects
from cimrl_jax.errors import UserError, nearest
from cimrl_jax.losses import cross_entropy, masked_mean
from cimrl_jax.methods import base
from cimrl_jax.options import Range
from cimrl_jax.types import Batch, Hyper, Method, Metrics, Model, Params, Slots, Spec, Stage


@dataclasses.dataclass(frozen=True)
class Options:
    """The causal graph, and how its paths join."""

    fusion: Literal["sum", "hm"] = "sum"
    """How the paths' logits become Y."""
    branches: tuple[str, ...] = ()
    """The modalities that have a direct path to the answer; none named: every one."""
    biased: tuple[str, ...] = ()
    """Those whose direct effect is taken from the prediction; none named: all that have a path."""
    hidden: Annotated[int, Range(low=1)] = 32
    """Width of a branch's hidden layer."""
    detach: bool = True
    """Whether the branches leave the encoders, which they share with the model, as they are."""
    branch_weight: float = 1.0
    """Weight of the branches' own cross entropies."""


def build(options: Options) -> Method:
    """The method record."""

    def init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
        names = options.branches or tuple(sorted(spec.slots))
        for option, given, known in (("branches", names, spec.slots), ("biased", options.biased, names)):
            for m in given:
                if m not in known:
                    raise UserError(f"method cf_vqa: {option} names {m!r}, which is no modality of this data set with a branch; {nearest(m, known)}")
        return {"branches": base.bias_heads(key, spec, names, hidden=options.hidden), "constant": jnp.zeros(())}, {}

    def read(params: Params, codes: Mapping[str, Array]) -> dict[str, effects.Path]:
        paths = {}
        for m, head in params["method"]["branches"].items():
            code = jax.lax.stop_gradient(codes[m]) if options.detach else codes[m]
            there = jnp.any(code != 0, axis=-1)  # an absent modality's code is zero
            paths[m] = effects.Path(base.read_bias(head, code, there), there)
        return paths

    def predict(
        state: Any, hyper: Hyper, model: Model, params: Params, slots: Mapping[str, Slots], codes: Mapping[str, Array]
    ) -> Float[Array, "b c"]:
        fused, paths = model.decide(params["model"], codes).logits, read(params, codes)
        return effects.effects(options.fusion, fused, paths, params["method"]["constant"], options.biased or paths).indirect

    def loss(
        state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
        out, constant = base.forward(model, params, batch, key), params["method"]["constant"]
        paths = read(params, out.codes)
        total = effects.outcome(options.fusion, out.logits, paths, jax.lax.stop_gradient(constant), paths)
        direct = effects.outcome(options.fusion, out.logits, jax.lax.stop_gradient(paths), constant, options.biased or paths, mediated=False)
        l_te = masked_mean(cross_entropy(total, batch.label), batch.weight)
        l_c = masked_mean(effects.constant_loss(total, direct), batch.weight)
        own = {m: masked_mean(cross_entropy(path.logits, batch.label), batch.weight * path.there) for m, path in paths.items()}
        value = l_te + l_c + hyper["branch_weight"] * sum(own.values())
        told = {f"l_branch_{m}": part for m, part in own.items()}
        return value, (state, base.figures(value, total - direct, batch, l_te=l_te, constant=constant, **told))

    return Method(init=init, stages=(Stage(share=1.0, loss=loss),), hyper=base.swept(options), explain=base.explainer(predict), predict=predict)
