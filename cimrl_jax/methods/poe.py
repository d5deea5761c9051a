"""Product of experts (Clark et al. 2019, arXiv 1909.03683) and its family: RUBi (Cadene et al. 2019, arXiv 1906.10169), LMH. Sees labels only.

Beside the model, a bias head b_m per modality learns by its own cross entropy what its code alone tells. Training adds the heads to the logits z, so
that z need not learn what they know; the prediction is z alone.

    poe    softmax(log_softmax(z) + sum_m log_softmax(sg b_m))
    lmh    softmax(log_softmax(z) + sum_m r_m), r_m = g_m log_softmax(sg b_m), g_m = softplus(<w_m, features> + c_m); penalty w sum_m H(softmax(r_m))
    rubi   softmax(z prod_m sigmoid(b_m)); a head's own cross entropy is that of a linear map of b_m, and both losses train b_m

The heads read codes of the model's own encoders, but no gradient flows from them into these. An absent modality has no say.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from cimrl_jax.errors import UserError, nearest
from cimrl_jax.losses import cross_entropy, entropy, masked_mean, product_of_experts
from cimrl_jax.methods import base
from cimrl_jax.options import Range
from cimrl_jax.types import Batch, Hyper, Method, Metrics, Model, Params, Spec, Stage


@dataclasses.dataclass(frozen=True)
class Options:
    """What the bias heads read, and how they join the logits."""

    form: Literal["poe", "lmh", "rubi"] = "poe"
    """Product of experts, learned mixin with entropy penalty, or RUBi's mask."""
    biased: tuple[str, ...] = ()
    """The modalities that have a bias head; none named: every one."""
    hidden: Annotated[int, Range(low=1)] = 32
    """Width of a bias head's hidden layer."""
    bias_weight: float = 1.0
    """Weight of the bias heads' own cross entropies."""
    entropy_weight: float = 0.36
    """w of lmh: weight of the entropy penalty, which keeps the gates from closing."""


def build(options: Options) -> Method:
    """The method record."""

    def init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
        names, num_classes = options.biased or tuple(sorted(spec.slots)), spec.num_classes
        for m in names:
            if m not in spec.slots:
                raise UserError(f"method poe: biased names {m!r}, which is no modality of this data set; {nearest(m, spec.slots)}")
        params: Params = {"heads": base.bias_heads(key, spec, names, hidden=options.hidden)}
        if options.form == "lmh":
            width = spec.dim * (len(spec.slots) + 1)
            params["gates"] = {m: {"kernel": jnp.zeros((width, 1)), "bias": jnp.zeros((1,))} for m in names}
        if options.form == "rubi":
            params["classifiers"] = {m: {"kernel": jnp.eye(num_classes), "bias": jnp.zeros((num_classes,))} for m in names}
        return params, {}

    def loss(
        state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
        out, own = base.forward(model, params, batch, key), params["method"]
        weights = {m: batch.weight * batch.present[m] for m in own["heads"]}
        biases = {}
        for m, head in own["heads"].items():
            biases[m] = base.read_bias(head, jax.lax.stop_gradient(out.codes[m]), batch.present[m])

        joint, penalty = out.logits, jnp.zeros(())
        if options.form == "rubi":
            for m, bias in biases.items():
                joint *= jnp.where(batch.present[m][:, None], jax.nn.sigmoid(bias), 1.0)
            told = {m: bias @ own["classifiers"][m]["kernel"] + own["classifiers"][m]["bias"] for m, bias in biases.items()}
        else:
            told, known = biases, jax.lax.stop_gradient(biases)
            if options.form == "lmh":
                features = model.head.features(out.codes)
                for m, gate in own["gates"].items():
                    known[m] = jax.nn.softplus(features @ gate["kernel"] + gate["bias"]) * jax.nn.log_softmax(known[m])
                    penalty += masked_mean(entropy(known[m]), weights[m])
            joint = product_of_experts(joint, *known.values())

        learned = {m: masked_mean(cross_entropy(logits, batch.label), weights[m]) for m, logits in told.items()}
        main = masked_mean(cross_entropy(joint, batch.label), batch.weight)
        total = main + hyper["bias_weight"] * sum(learned.values()) + hyper["entropy_weight"] * penalty
        return total, (state, base.figures(total, out.logits, batch, l_joint=main, **{f"l_bias_{m}": value for m, value in learned.items()}))

    return Method(init=init, stages=(Stage(share=1.0, loss=loss),), hyper=base.swept(options), explain=base.explain)
