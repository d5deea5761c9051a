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
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from cimrl_jax.errors import UserError, nearest
from cimrl_jax.losses import cross_entropy, masked_mean
from cimrl_jax.methods import base
from cimrl_jax.options import Range
from cimrl_jax.types import Batch, Hyper, Method, Metrics, Model, Params, Spec, Stage

Fusion = Literal["sum", "hm"]


@dataclasses.dataclass(frozen=True)
class Options:
    """The causal graph, and how its paths join."""

    fusion: Fusion = "sum"
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


class Path(NamedTuple):
    """What a branch says."""

    logits: Float[Array, "b c"]
    there: Bool[Array, " b"]
    """Where the modality is present."""


def build(options: Options) -> Method:
    """The method record."""

    def init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
        names = options.branches or tuple(sorted(spec.slots))
        for option, given, known in (("branches", names, spec.slots), ("biased", options.biased, names)):
            for m in given:
                if m not in known:
                    raise UserError(f"method cf_vqa: {option} names {m!r}, which is no modality of this data set with a branch; {nearest(m, known)}")
        return {"branches": base.bias_heads(key, spec, names, hidden=options.hidden), "constant": jnp.zeros(())}, {}

    def read(params: Params, codes: Mapping[str, Array]) -> dict[str, Path]:
        paths = {}
        for m, head in params["method"]["branches"].items():
            code = jax.lax.stop_gradient(codes[m]) if options.detach else codes[m]
            there = jnp.any(code != 0, axis=-1)  # an absent modality's code is zero
            paths[m] = Path(base.read_bias(head, code, there), there)
        return paths

    def effects(constant: Float[Array, ""], fused: Float[Array, "b c"], paths: Mapping[str, Path]) -> tuple[Float[Array, "b c"], Float[Array, "b c"]]:
        """Y with every path treated, and Y with only the biased ones treated. Through `constant`, only the second has a gradient."""
        total = fuse(options.fusion, [fused, *treat(paths, paths, jax.lax.stop_gradient(constant))])
        untreated = jnp.broadcast_to(constant, fused.shape)
        return total, fuse(options.fusion, [untreated, *treat(paths, options.biased or paths, constant)])

    def predict(state: Any, hyper: Hyper, model: Model, params: Params, codes: Mapping[str, Array]) -> Float[Array, "b c"]:
        total, direct = effects(params["method"]["constant"], model.decide(params["model"], codes).logits, read(params, codes))
        return total - direct

    def loss(
        state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
        out, constant = base.forward(model, params, batch, key), params["method"]["constant"]
        paths = read(params, out.codes)
        total, _ = effects(constant, out.logits, paths)
        given, direct = effects(constant, *jax.lax.stop_gradient((out.logits, paths)))
        l_te = masked_mean(cross_entropy(total, batch.label), batch.weight)
        l_c = masked_mean(-jnp.sum(jax.nn.softmax(given) * jax.nn.log_softmax(direct), axis=-1), batch.weight)
        own = {m: masked_mean(cross_entropy(path.logits, batch.label), batch.weight * path.there) for m, path in paths.items()}
        value = l_te + l_c + hyper["branch_weight"] * sum(own.values())
        told = {f"l_branch_{m}": part for m, part in own.items()}
        return value, (state, base.figures(value, given - direct, batch, l_te=l_te, constant=constant, **told))

    return Method(init=init, stages=(Stage(share=1.0, loss=loss),), hyper=base.swept(options), explain=base.explainer(predict), predict=predict)


def treat(paths: Mapping[str, Path], treated: Collection[str], constant: Float[Array, ""]) -> list[Float[Array, "b c"]]:
    """What each path says: its branch's logits where it is treated and there, the constant otherwise."""
    return [jnp.where(path.there[:, None] & (m in treated), path.logits, constant) for m, path in paths.items()]


def fuse(fusion: Fusion, parts: Sequence[Float[Array, "b c"]]) -> Float[Array, "b c"]:
    """Y of the paths' logits."""
    if fusion == "sum":
        return jax.nn.log_sigmoid(jnp.sum(jnp.stack(parts), axis=0))
    log_p = jnp.sum(jax.nn.log_sigmoid(jnp.stack(parts)), axis=0)
    return log_p - jnp.log1p(jnp.exp(log_p))
