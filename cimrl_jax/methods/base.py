"""What every method shares: the shape of its functions, and the explanation that any trained model can give.

A method is one file with `Options` (every number a documented field) and `build(options) -> Method`. It never imports nn, data or train: it is
handed the model as a record of pure functions. The contract tests find it by walking this folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from cimrl_jax.counterfactual import attribution, reference
from cimrl_jax.losses import cross_correlation, cross_entropy, masked_mean, relative_difficulty, squared_cosine
from cimrl_jax.types import Batch, Hyper, Metrics, Model, Outputs, Params, Population, Rows, Slots, SlotSpec, Spec


def forward(model: Model, params: Params, batch: Batch, key: Key[Array, ""] | None) -> Outputs:
    """The model's outputs on the batch as it is."""
    slots = model.embed(params["model"], batch.inputs, batch.present)
    return model.decide(params["model"], model.encode(params["model"], slots, key))


def erm_loss(
    state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]
) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
    """The mean cross entropy, as a stage's loss: for methods that train as ERM does, but on other rows or before something else."""
    logits = forward(model, params, batch, key).logits
    loss = masked_mean(cross_entropy(logits, batch.label), batch.weight)
    return loss, (state, figures(loss, logits, batch))


def stateless(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
    """The `init` of a method that has neither parameters nor state of its own."""
    return {}, {}


def bias_heads(key: Key[Array, ""], spec: Spec, names: Iterable[str], *, hidden: int) -> dict[str, Params]:
    """Parameters of a small network for each named modality, which reads that modality's code alone (see `read_bias`)."""
    names, code = tuple(names), SlotSpec(kind="slots", count=1, width=spec.dim, element=spec.dim)
    keys = jax.random.split(key, len(names))
    return {m: reference.init(own, code, num_classes=spec.num_classes, hidden=hidden) for m, own in zip(names, keys, strict=True)}


def read_bias(head: Params, code: Float[Array, "b d"], present: Bool[Array, " b"]) -> Float[Array, "b c"]:
    """The logits of a bias head; 0, that is uniform, where the modality is absent."""
    return reference.read(head, Slots(code[:, None], present[:, None]))[0]


MixAt = Literal["codes", "slots"]


Ortho = Literal["cosine", "correlation"]


def disentangle(
    hyper: Hyper,
    out: Outputs,
    heads: dict[str, Float[Array, "b c"]],
    batch: Batch,
    weight: Float[Array, " b"],
    *,
    ortho: Ortho = "cosine",
    error_weight: bool = False,
) -> Float[Array, ""]:
    """CIMRL's modality disentanglement, by the weights alpha, beta, gamma and lam (methods/cimrl.py).

    `heads` are the modality heads' logits, detached from the encoders or not.
    """
    modalities = sorted(batch.present)
    per_head = {m: cross_entropy(heads[m], batch.label) for m in modalities}
    if error_weight:
        biased = jnp.mean(jnp.stack(list(per_head.values())), axis=0)
        weight = weight * relative_difficulty(biased, cross_entropy(out.logits, batch.label))
    total = hyper["beta"] * masked_mean(cross_entropy(out.heads["shared"], batch.label), weight)
    total += hyper["gamma"] * masked_mean(cross_entropy(out.heads["combined"], batch.label), weight)
    for m in modalities:
        here = batch.weight * batch.present[m]
        total += hyper["alpha"] * masked_mean(per_head[m], weight * batch.present[m])
        if ortho == "cosine":
            total += hyper["lam"] * masked_mean(squared_cosine(out.codes[m], out.codes["shared"]), here)
        else:
            total += hyper["lam"] * cross_correlation(out.codes[m], out.codes["shared"], here)
    return total


def mix(
    model: Model, params: Params, batch: Batch, partner: Int[Array, " b"], share: Float[Array, " b"], key: Key[Array, ""], *, at: MixAt
) -> tuple[Float[Array, ""], Metrics]:
    """(loss, figures) of training on mixtures: `share` of each row's codes or slots its own, the rest its partner's.

    The loss of a mixture is `share CE(y) + (1 - share) CE(the partner's y)`, each part scaled by the weight of the example whose label it is.
    Where only one of the two examples has a slot, the other's counts as zero.
    """

    def blend(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        own = share.reshape(-1, *[1] * (x.ndim - 1))
        return own * x + (1.0 - own) * x[partner]

    slots = model.embed(params["model"], batch.inputs, batch.present)
    if at == "slots":
        slots = {m: Slots(blend(jnp.where(s.mask[..., None], s.values, 0.0)), s.mask | s.mask[partner]) for m, s in slots.items()}
    codes = model.encode(params["model"], slots, key)
    if at == "codes":
        codes = {name: blend(code) for name, code in codes.items()}
    logits = model.decide(params["model"], codes).logits
    both = jax.tree.map(lambda x: jnp.concatenate([x, x[partner]]), batch)
    both = dataclasses.replace(both, weight=jnp.concatenate([share, 1.0 - share]) * both.weight)
    logits = jnp.concatenate([logits, logits])
    loss = masked_mean(cross_entropy(logits, both.label), both.weight)
    return loss, figures(loss, logits, both)


def static(default: float) -> Any:
    """An option that is a float but shapes the program (a stage's share, say): it is not traced, and each value of it is a compile of its own."""
    return dataclasses.field(default=default, metadata={"static": True})


def swept(options: Any) -> dict[str, float]:
    """The float fields of a method's options, but for the `static` ones: traced, so that a sweep over them needs no new compile."""
    floats = [f.name for f in dataclasses.fields(options) if isinstance(getattr(options, f.name), float) and not f.metadata.get("static")]
    return {name: getattr(options, name) for name in floats}


def balanced(by: Literal["group", "class"]) -> Callable[[Population], Rows]:
    """A `Stage.draw` with replacement, every group or class that training has equally often."""

    def draw(population: Population) -> Rows:
        key = population.group if by == "group" else population.label
        return Rows(np.arange(len(key)), 1.0 / np.bincount(key)[key])

    return draw


def figures(loss: Float[Array, ""], logits: Float[Array, "b c"], batch: Batch, **more: Float[Array, ""]) -> Metrics:
    """What every method logs, beside its own: the loss and the accuracy on the batch."""
    right = (jnp.argmax(logits, axis=-1) == batch.label).astype(jnp.float32)
    return {"loss": loss, "accuracy": masked_mean(right, batch.weight), **more}


def explainer(predict: Callable[..., Array] | None = None) -> Callable[..., dict[str, dict[str, Array]]]:
    """An `explain` for a method's prediction: gradient x input for the predicted class; chosen are slots with at least half the highest evidence."""

    def explain(state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]) -> dict[str, dict[str, Array]]:
        del key
        slots = model.embed(params["model"], batch.inputs, batch.present)

        def logits(s: dict[str, Slots]) -> Array:
            codes = model.encode(params["model"], s, None)
            return predict(state, hyper, model, params, s, codes) if predict else model.decide(params["model"], codes).logits

        predicted = jnp.argmax(logits(slots), axis=-1)
        _, gradient = attribution.attribute(logits, slots, predicted)
        evidence = attribution.evidence(gradient, slots)
        chosen = {m: attribution.choose(evidence[m], slots[m].mask, threshold=0.5) for m in slots}
        return {"evidence": evidence, "chosen": chosen}

    return explain


explain = explainer()
"""What any trained model can say of its prediction."""
