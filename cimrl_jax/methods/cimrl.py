"""CIMRL: causally-informed multi-modal representation learning. Sees labels only.

    L = w_ce L_CE + w_ci L_CI + w_md L_MD + w_if L_IF                                        (each weight 0 is an ablation)

- L_CI, contrastive invariance: each example's code near that of its perturbed view, far from the other originals.
- L_MD, modality disentanglement: heads on each modality's code, on the shared code and on their union; modality codes orthogonal to the shared one.
- L_IF, intervention-based fine-tuning: `CE(f(x)) + mu KL(f(x_CF) || f(x)) + nu CE(f(x_CF))`, x_CF the example with its spurious features edited.

Which features are spurious is what the equations leave open. Here a deliberately shallow reader of each modality (counterfactual/reference.py),
trained beside the model with a loss that ignores what is hard, tells for each example what its shortcut says and in which slots; the edit is the one
of several that most often turns that reading into another example's (counterfactual/editor.py). A modality whose edits turn the model's own
prediction for good is left alone (`Trial`): they take the cause away. At the end the head is refitted to validation examples, balanced over groups
that the readers infer, if that helps on examples left out (counterfactual/refit.py). `nu`, the reference, the choice of edit, its trial and the refit
are this project's realisation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from cimrl_jax.counterfactual import attribution, editor, reference, refit
from cimrl_jax.losses import cross_entropy, info_nce, kl_divergence, masked_mean
from cimrl_jax.methods import base
from cimrl_jax.options import Range
from cimrl_jax.types import REFUSED, Batch, Hyper, Method, Metrics, Model, Outputs, Params, Slots, Spec, Stage, Told


@dataclasses.dataclass(frozen=True)
class Options:
    """CIMRL's weights and choices. Every float may be swept without a new compile."""

    w_ce: float = 1.0
    """Weight of the cross entropy on the originals."""
    w_ci: float = 0.1
    """Weight of contrastive invariance (w1)."""
    w_md: float = 0.5
    """Weight of modality disentanglement (w2)."""
    w_if: float = 1.0
    """Weight of intervention-based fine-tuning (w3)."""
    tau: float = 0.1
    """Temperature of the contrastive loss."""
    alpha: float = 1.0
    """Within L_MD: weight of the modality heads' cross entropies."""
    beta: float = 0.5
    """Within L_MD: weight of the shared head's cross entropy."""
    gamma: float = 0.0
    """Within L_MD: weight of the combined head's cross entropy (it is also L_CE's; 0 avoids counting it twice)."""
    lam: float = 0.1
    """Within L_MD: weight of the orthogonality of modality codes and shared code."""
    ortho: base.Ortho = "cosine"
    """Orthogonality by the squared cosine per example, or by the batch's cross-correlation."""
    detach_heads: bool = True
    """Whether the modality heads' losses stop before the encoders (on biased data they would teach them the shortcut)."""
    error_weight: bool = False
    """Whether to weight each example by l_b / (l_b + l), l_b the mean of the modality heads' losses."""
    mu: float = 1.0
    """Within L_IF: weight of KL(f(x_CF) || f(x))."""
    nu: float = 1.0
    """Within L_IF: weight of the cross entropy on the counterfactual (0 is the equation as written)."""
    kl_reverse: bool = False
    """Use KL(f(x) || f(x_CF)) instead."""
    kl_stop: Literal["none", "original", "edited"] = "none"
    """Which side of the KL receives no gradient."""
    identify: editor.Identify = "reference"
    """What chooses the spurious slots: the biased reference, the error-contrasted memory, the model's own gradient, or chance."""
    intervention: editor.Intervention = "auto"
    """The edit; "auto" takes, of those that fit the modality, the one that most often flips the reference."""
    threshold: float = 0.5
    """Slots with at least this share of the highest evidence are chosen."""
    most: float = 0.5
    """A donor edit is used only if it replaces at most this share of the slots."""
    together: float = 0.0
    """Probability that all modalities of an example are edited; otherwise it is a random selection of them, at least one."""
    skill: float = 0.2
    """With "auto", a modality is edited only if its reference reads the label at least so well: 0 is chance, 1 perfect."""
    size: float = 0.5
    """Size of the gradient step or of the noise, in units of the slots' values."""
    decay: float = 0.98
    """Decay per step of the running averages."""
    reference_q: float = 0.7
    """Exponent of the reference's generalised cross entropy."""
    reference_hidden: int = 32
    """Width of the reference's hidden layer."""
    warmup: float = 0.1
    """Share of the run before the counterfactuals count (the reference needs it to learn)."""
    trust: float = 0.6
    """The modality added last is edited no more if the edits still turn more than this share of the model's predictions after it was trained on them
    for as long as `warmup`: what they take away is then all that tells the label. 1 trusts them always."""
    conflict_weight: float = 1.0
    """Weight of an example whose references misread its label, relative to the others."""
    directions: Annotated[int, Range(low=0)] = 4
    """Directions per class and modality among which a pattern to exchange is looked for; 0 leaves that edit out and saves its memory."""
    economy: bool = False
    """Whether the counterfactual also serves as the perturbed view: two passes in place of three, for about two thirds of the cost."""
    refit: bool = True
    """Whether the head is refitted at the end to validation examples, balanced over inferred groups, where cross-validation says that this helps."""


MEMORY = 0.05
"""Weight of a step in the running average of the trial."""


def build(options: Options) -> Method:
    """The method record."""

    def plan(model_slots: Mapping[str, Any], num_classes: int) -> editor.Plan:
        return editor.Plan(
            options.identify, options.intervention, options.reference_hidden, options.most, options.directions, model_slots, num_classes
        )

    def init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
        params, state = editor.init(key, spec, plan(spec.slots, spec.num_classes))
        judged = {"key": jax.random.key_data(jax.random.fold_in(key, 1)), "gain": jnp.zeros(()), "error": jnp.zeros(()), "used": jnp.zeros((), bool)}
        none = jnp.zeros(len(spec.slots), bool)
        trial = Trial(jnp.zeros(()), jnp.zeros(()), none, none, none)
        return params, {"editor": state, "trial": trial, "refit": judged, "step": jnp.zeros(()), "steps": jnp.asarray(float(spec.steps))}

    def loss(
        state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
        keys = jax.random.split(key, 3)
        slots = model.embed(params["model"], batch.inputs, batch.present)
        how = plan(model.slots, model_classes(params))
        edit, editor_state = counterfactual(state, hyper, model, params, batch, slots, keys[0], how)
        learned = editor.fit(params["method"], jax.lax.stop_gradient(slots), batch, hyper["reference_q"])
        seen = [slots, edit.slots]
        if not options.economy:
            seen.append(model.embed(params["model"], model.perturb(batch.inputs, keys[1]), batch.present))
        # One pass for all [b, v, ...]: a fraction of the program to compile, and larger products. b stays the first axis: it may be spread over
        # devices, and the rows of a matrix product (b x v x slots as one axis) could not be if v came first: each device would compute them all.
        codes = model.encode(params["model"], jax.tree.map(lambda *views: jnp.stack(views, axis=1), *seen), keys[2])
        outputs = model.decide(params["model"], codes)
        original, edited, perturbed = (jax.tree.map(lambda x, i=i: x[:, i], outputs) for i in (0, 1, -1))
        heads = original.heads
        if options.detach_heads:
            heads = model.decide(params["model"], jax.lax.stop_gradient({name: code[:, 0] for name, code in codes.items()})).heads

        weight = batch.weight * _conflict_weight(edit, batch, hyper["conflict_weight"])
        l_ce = masked_mean(cross_entropy(original.logits, batch.label), weight)
        l_ci = masked_mean(
            info_nce(original.codes["projection"], perturbed.codes["projection"], temperature=hyper["tau"], weight=batch.weight), batch.weight
        )
        l_md = base.disentangle(hyper, original, heads, batch, weight, ortho=options.ortho, error_weight=options.error_weight)
        warm = state["step"] >= hyper["warmup"] * state["steps"]
        trial = _try(state["trial"], original, edited, edit, batch.weight * warm, least=hyper["warmup"] * state["steps"], trust=hyper["trust"])
        l_if = _intervene(options, hyper, original, edited, batch, weight)
        ramp = warm.astype(jnp.float32)
        total = hyper["w_ce"] * l_ce + hyper["w_ci"] * l_ci + hyper["w_md"] * l_md + ramp * hyper["w_if"] * l_if + learned
        figures = base.figures(total, original.logits, batch, l_ce=l_ce, l_ci=l_ci, l_md=l_md, l_if=l_if, turned=trial.turned)
        for refused, m in zip(trial.refused, sorted(slots), strict=True):
            misread = (jnp.argmax(edit.reading[m], axis=-1) != batch.label).astype(jnp.float32)
            figures[f"conflict_{m}"] = masked_mean(misread, batch.weight * batch.present[m])
            figures[f"refused_{m}"] = refused.astype(jnp.float32)
            figures[f"flip_{m}"] = masked_mean(edit.quality[m], batch.weight * batch.present[m])
            for k, kind in enumerate(how.candidates(m) if options.intervention == "auto" else ()):
                figures[f"quality_{m}_{kind}"] = editor_state["quality"][m][k]
        return total, (state | {"editor": editor_state, "trial": trial, "step": state["step"] + 1}, figures)

    def counterfactual(
        state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, slots: dict[str, Slots], key: Key[Array, ""], how: editor.Plan
    ) -> tuple[editor.Edit, Any]:
        told = None
        if how.identify in ("memory", "gradient") or how.intervention == "gradient":
            fixed, frozen = jax.lax.stop_gradient((params["model"], slots))

            def logits(s: dict[str, Slots]) -> Array:
                return model.decide(fixed, model.encode(fixed, s, None)).logits

            predicted = jnp.argmax(logits(frozen), axis=-1)
            out, gradient = attribution.attribute(logits, frozen, predicted)
            error = 1.0 - jnp.take_along_axis(jax.nn.softmax(out), batch.label[:, None], axis=-1)[:, 0]
            told = editor.Model(gradient, predicted, error)
        references = jax.lax.stop_gradient(params["method"])
        return editor.edit(
            how, references, state["editor"], hyper, slots, batch, key, blank=params["model"]["blank"], model=told, refused=state["trial"].refused
        )

    def explain(state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]) -> dict[str, dict[str, Any]]:
        slots = model.embed(params["model"], batch.inputs, batch.present)
        whole = {**hyper, "together": jnp.ones(())}
        edit, _ = counterfactual(state, whole, model, params, batch, slots, key, plan(model.slots, model_classes(params)))
        return {"evidence": edit.evidence, "chosen": edit.chosen, "edited": edit.slots}

    def infer(state: Any, hyper: Hyper, model: Model, params: Params, slots: dict[str, Slots]) -> dict[str, Float[Array, "b c"]]:
        # A reader whose edits were refused reads what the label rests on, and infers no groups.
        logits = {m: reference.read(params["method"][m], own)[0] for m, own in slots.items()}
        return {m: jax.nn.softmax(jnp.where(state["trial"].refused[k], 0.0, logits[m])) for k, m in enumerate(sorted(slots))}

    def verdicts(state: Any, names: Sequence[str]) -> dict[str, dict[str, Array]]:
        refused = {m: {REFUSED: state["trial"].refused[k]} for k, m in enumerate(names)}
        return refused | {"all": {"head refitted": state["refit"]["used"]}}

    def last(state: Any, hyper: Hyper, model: Model, params: Params, fresh: Params, told: Told) -> tuple[Any, Params]:
        key = jax.random.wrap_key_data(state["refit"]["key"])
        weight = refit.balance(told.label, told.inferred)
        found = refit.refit(key, told.features, told.label, weight, *model.head.get(params["model"]))
        judged = {"key": state["refit"]["key"], "gain": found.gain, "error": found.error, "used": found.used}
        return state | {"refit": judged}, params | {"model": model.head.put(params["model"], found.kernel, found.bias)}

    stages = (Stage(share=1.0, loss=loss), *([Stage(share=0.0, loss=None, enter=last, reads="validation")] if options.refit else ()))
    return Method(init=init, stages=stages, hyper=base.swept(options), explain=explain, infer=infer, verdicts=verdicts)


def model_classes(params: Params) -> int:
    """The number of classes, read off the references."""
    return next(iter(params["method"].values()))["outer_bias"].shape[-1]


class Trial(NamedTuple):
    """Whether the model comes to tell the label without what the edits take away. `m` are the modalities in the order of their names."""

    turned: Float[Array, ""]
    """Of the examples with all edits the share whose predicted class these change, averaged over the last steps."""
    steps: Float[Array, ""]
    """The number of steps that were trained with these edits."""
    known: Bool[Array, " m"]
    """The modalities that were ever edited."""
    last: Bool[Array, " m"]
    """Those of them that are on trial: what still told the label may be edited since they were added."""
    refused: Bool[Array, " m"]
    """Those that are edited no more."""


def _try(trial: Trial, original: Outputs, edited: Outputs, edit: editor.Edit, weight: Float[Array, " b"], *, least: Array, trust: Array) -> Trial:
    """One more step. The trial begins anew when a modality is added or refused; if it fails again after the last was refused, so are the others."""
    new = edit.able & ~trial.known
    last = jnp.where(jnp.any(new), new, trial.last)
    whole = weight * edit.whole
    seen = jnp.any(whole > 0)
    steps = jnp.where(jnp.any(new), 0.0, trial.steps) + seen
    differs = (jnp.argmax(original.logits, axis=-1) != jnp.argmax(edited.logits, axis=-1)).astype(jnp.float32)
    share = jnp.where(seen, jnp.maximum(MEMORY, 1 / jnp.maximum(steps, 1)), 0.0)  # the plain mean of the first steps, then the running one
    turned = trial.turned + share * (masked_mean(differs, whole) - trial.turned)
    failed = seen & (steps >= jnp.maximum(least, 1 / MEMORY)) & (turned > trust)
    refused = trial.refused | (last & failed)
    known = trial.known | edit.able
    return Trial(turned, jnp.where(failed, 0.0, steps), known, jnp.where(failed, known & ~refused, last), refused)


def _conflict_weight(edit: editor.Edit, batch: Batch, size: Float[Array, ""]) -> Float[Array, " b"]:
    misread = [1.0 - jnp.take_along_axis(p, batch.label[:, None], axis=-1)[:, 0] for p in edit.reading.values()]
    return jax.lax.stop_gradient(1.0 + (size - 1.0) * sum(misread) / len(misread))


def _intervene(options: Options, hyper: Hyper, original: Outputs, edited: Outputs, batch: Batch, weight: Array) -> Array:
    """L_IF without its first term, which is L_CE's."""
    before, after = original.logits, edited.logits
    if options.kl_stop == "original":
        before = jax.lax.stop_gradient(before)
    elif options.kl_stop == "edited":
        after = jax.lax.stop_gradient(after)
    kl = kl_divergence(before, after) if options.kl_reverse else kl_divergence(after, before)
    return hyper["mu"] * masked_mean(kl, weight) + hyper["nu"] * masked_mean(cross_entropy(edited.logits, batch.label), weight)
