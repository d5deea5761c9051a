"""Causal mediation with a mixture of debiasing experts, for any modalities. Sees labels only.

The system is that of Wu, Huang and Wu (Findings of EMNLP 2025, arXiv 2509.15361), whose equations are not public to us: this is a reconstruction from
what it says of itself, put together of published parts. Theirs: counterfactuals that separate core semantics from spurious context of text and image
switch debiasing on in training; experts for each modality's bias, a router that also filters bad counterfactuals. From elsewhere: effects and the
untreated constant (Niu et al. 2021, CF-VQA), the product of experts (Clark et al. 2019), core and context as masked inputs (Chen et al. 2020, CSS),
the weight omega (Nam et al. 2020, LfF), the router (Riquelme et al. 2021, V-MoE; Zoph et al. 2022). Ours: the scores' subtraction
(counterfactual/scores.py), the quality (counterfactual/quality.py), the gate's term for it, CIMRL's counterfactual, and how all is put together.

Every example is seen four times in one pass: x, its context x^c alone, its core x^s alone (counterfactual/core.py), and x^e, the example with its
shortcut edited as CIMRL does it (counterfactual/editor.py; biased references R_m find it). On the fused code k there is an expert for each set of
modalities, z_e; on each modality's code a bias head, which moves no encoder: b_m = q_m b_m(x^c) + (1 - q_m) b_m(x).

    L = sum_e CE(Fuse(z_e, s_e sg b_m for m in M_e), y) + sum_m (CE(b_m(x), y) + CE(b_m(x^c), y)) / 2 + L_s + L_c
      + w_original CE(z_joint(x), y) + KL(z_joint(x^e) || z_joint(x)) + CE(z_joint(x^e), y) + sum_m GCE(R_m(x), y)
      + w_core sum_m q_m KL(sg p || p^s) + w_context sum_m q_m KL(prior || p^c)
      + w_mix omega CE(sum_e g_e softmax(sg z~_e), y) + balance E sum_e f_e P_e + router_z mean(logsumexp(router)^2)

p, p^c and p^s are what the joint expert says of the three; as the target, and in the quality q_m, its running average says them. At inference expert
e says z~_e: z_e with fusion "poe", else `Fuse(z_e, s_e b) - Fuse(c, s_e b)`. Cross entropy is on the sum, never on the difference, which would
cancel the debiasing. L_c trains c alone (counterfactual/effects.py), `L_s = sum_e CE(s_e sum_m sg b_m, y)` the scales s_e alone. These are ours: two
modalities with one shortcut would count it twice, and z_e would learn its opposite, which looks like success on a split where the shortcut lies. The
first steps know no core: x^c is x, and no counterfactual counts. A product of experts learns from what contradicts the shortcut alone; x^e lets the
joint expert learn from every example, and cores are as good as the joint expert that they rest on (docs/MEDIATION.md has both figures).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from cimrl_jax.counterfactual import attribution, core, editor, effects, experts, quality, reference, scores
from cimrl_jax.errors import UserError
from cimrl_jax.losses import cross_entropy, entropy, info_nce, kl_divergence, masked_mean, relative_difficulty
from cimrl_jax.methods import base
from cimrl_jax.options import Range
from cimrl_jax.types import Batch, Hyper, Method, Metrics, Model, Params, Slots, SlotSpec, Spec, Stage

Mode = Literal["factual", "tie", "tde", "moe", "uniform", "joint", "bias_only"]
MODES: tuple[Mode, ...] = ("factual", "tie", "tde", "moe", "uniform", "joint", "bias_only")


@dataclasses.dataclass(frozen=True)
class Options:
    """The parts' weights and choices. Every float but `refresh` may be swept without a new compile."""

    inference: Mode = "joint"
    """The prediction: Y as it is (factual), without the modalities' direct effects (tie), without the context's effect (tde), the routed experts
    (moe), all of them alike (uniform), the expert for all modalities (joint), or the direct effects alone (bias_only)."""
    fusion: effects.Fusion = "poe"
    """How paths join: product of experts, or CF-VQA's sum or harmonic."""
    scores: scores.Kind = "occlusion_minus_bias"
    """What tells core from context; see counterfactual/scores.py. "external": the file below in training, elsewhere occlusion_minus_bias."""
    external: str = ""
    """With scores=external: a .npz file that holds for every modality an array [rows of the training split, slots] of scores, none negative."""
    p_text: Annotated[float, Range(above=0, high=1)] = 0.6
    """The share of a text's scores that its core holds."""
    p_other: Annotated[float, Range(above=0, high=1)] = 0.65
    """The same of every other modality."""
    most: Annotated[float, Range(above=0, high=1)] = 0.5
    """Largest share of the slots that a core may be."""
    refresh: Annotated[float, Range(above=0, high=1)] = base.static(1.0)
    """Share of each batch whose scores are computed anew, those longest ago first; the others' are remembered by example. Below 1 only where examples
    look alike every time (data.augment=false)."""
    blank: Annotated[float, Range(low=0, high=1)] = 0.1
    """Share of slots that training replaces by the mask embedding, so that counterfactuals are nothing new."""
    warmup: Annotated[float, Range(low=0, high=1)] = 0.3
    """Share of the run before cores are cut: the joint expert must rest on something before it can be told what on."""
    rank: Annotated[int, Range(low=0)] = 0
    """Rank of an expert's residual; 0: a quarter of the code's width."""
    hidden: Annotated[int, Range(low=1)] = 32
    """Width of the hidden layers of bias heads, router and references."""
    detach_others: bool = True
    """Whether the joint expert alone trains the encoders (the others, for whom some shortcut is not taken out, would teach it to them)."""
    decay: Annotated[float, Range(low=0, below=1)] = 0.95
    """Share per step that the joint expert's running average keeps."""
    w_core: float = 0.5
    """Weight of KL(p || p^s): the core alone should say the same."""
    w_context: float = 0.1
    """Weight of KL(prior || p^c): the context alone should say nothing."""
    w_mix: float = 1.0
    """Weight of the router's cross entropy."""
    balance: float = 0.01
    """Weight of the router's load balance."""
    router_z: float = 0.001
    """Weight of the router's z-loss."""
    router_noise: float = 1.0
    """Standard deviation of the noise on the router's logits in training, divided by the number of experts."""
    router_quality: float = 0.5
    """How strongly a counterfactual of low quality speaks against the experts of its modality."""
    top: Annotated[int, Range(low=1)] = 2
    """Experts that the router mixes."""
    error_weight: bool = True
    """Whether the router's cross entropy is weighted by omega = l_b / (l_b + l), near 1 where the bias heads fail and the mixture does not."""
    filter: bool = True
    """Whether a counterfactual counts as far as its quality says, and tells the router; false: all count alike."""
    spoil: Annotated[float, Range(low=0, high=1)] = 0.0
    """Share of training examples whose core is drawn from outside it: an experiment on the filter."""
    reference_q: Annotated[float, Range(above=0, high=1)] = 0.7
    """With scores=reference: exponent of the references' generalised cross entropy."""
    edit: bool = True
    """Whether the joint expert is fine-tuned on CIMRL's counterfactuals too: the example with its shortcut, which biased references find, edited."""
    w_original: float = 1.0
    """With edit: weight of the joint expert's cross entropy on x itself, beside that on x edited; 0 leaves x to the product of experts."""
    cimrl: bool = False
    """Whether the codes learn under CIMRL's other losses: contrastive invariance of an example and its core alone, as far as its quality says, and
    disentanglement."""


CIMRL = {"w_ci": 0.1, "w_md": 0.5, "w_if": 1.0, "tau": 0.1, "alpha": 1.0, "beta": 0.5, "gamma": 0.0, "lam": 0.1, "mu": 1.0, "nu": 1.0}
CIMRL |= {"warmup": 0.1, "threshold": 0.5, "together": 0.0, "skill": 0.2, "size": 0.5, "decay": 0.98}
"""The defaults of method cimrl."""


class View(NamedTuple):
    """What is said of x, x^c and x^s, stacked on the first axis."""

    logits: Float[Array, "v b e c"]
    """z_e"""
    biases: dict[str, Float[Array, "2 b c"]]
    """b_m of x and of x^c."""
    paths: dict[str, effects.Path]
    """b_m of x^c as far as its quality says, else of x."""
    average: Float[Array, "v b c"]
    """The joint expert's running average's logits."""
    quality: dict[str, Float[Array, " b"]]
    features: Float[Array, "b w"]
    """What the router reads."""


def of(paths: Mapping[str, effects.Path], scale: Float[Array, ""], chosen: Iterable[str]) -> dict[str, effects.Path]:
    """The direct paths of the modalities `chosen`, as the expert counts them whose scale it is."""
    return {m: effects.Path(scale * paths[m].logits, paths[m].there) for m in chosen}


def misplaced(edited: Slots, slots: Slots, chosen: Float[Array, "b n"], mask: Bool[Array, "b n"], spoilt: Bool[Array, " b"]) -> Slots:
    """For the rows `spoilt` the opposite of an edit: what is chosen as the shortcut stays, all else comes from the row before but its shortcut."""
    free = mask & (chosen == 0)
    wrong = (spoilt[:, None] & free & jnp.roll(free, 1, axis=0))[..., None]
    mixed = Slots(jnp.where(wrong, jnp.roll(slots.values, 1, axis=0), slots.values), slots.mask)
    return jax.tree.map(lambda a, b: jnp.where(spoilt.reshape(-1, *[1] * (a.ndim - 1)), a, b), mixed, edited)


def together(model: Model, params: Params, key: Key[Array, ""] | None, *views: Mapping[str, Slots]) -> dict[str, Float[Array, "v b d"]]:
    """The codes of several versions of the batch, in one pass over `[b, v, ...]`: b, which may be spread over devices, stays the first axis there."""
    codes = model.encode(params["model"], jax.tree.map(lambda *own: jnp.stack(own, axis=1), *views), key)
    return {name: jnp.moveaxis(code, 1, 0) for name, code in codes.items()}


def under_cimrl(
    model: Model, params: Params, codes: Mapping[str, Float[Array, "v b d"]], trust: Float[Array, " b"], batch: Batch
) -> Float[Array, ""]:
    """CIMRL's contrast and disentanglement (methods/cimrl.py), with x^s, the third of the views, for the perturbed one."""
    hyper = {name: jnp.float32(weight) for name, weight in CIMRL.items()}
    original, alone = (model.decide(params["model"], {name: code[i] for name, code in codes.items()}) for i in (0, 2))
    heads = model.decide(params["model"], jax.lax.stop_gradient({name: code[0] for name, code in codes.items()})).heads
    near = info_nce(original.codes["projection"], alone.codes["projection"], temperature=hyper["tau"], weight=batch.weight)
    return hyper["w_ci"] * masked_mean(trust * near, batch.weight) + hyper["w_md"] * base.disentangle(hyper, original, heads, batch, batch.weight)


def build(options: Options) -> Method:
    """The method record.

    Raises:
      UserError: scores=external without a file, or a file without it.
    """
    if bool(options.external) != (options.scores == "external"):
        raise UserError(f"method mediation_moe: scores={options.scores} with external={options.external!r}; give external a .npz file, or neither")

    reads = options.edit or options.scores == "reference"

    def plan(slots: Mapping[str, SlotSpec], num_classes: int) -> editor.Plan:
        return editor.Plan("reference", "auto", options.hidden, most=0.5, directions=4, slots=slots, num_classes=num_classes)

    def init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
        names, classes = sorted(spec.slots), spec.num_classes
        keys, count = jax.random.split(key, 5), len(experts.subsets(names))
        if options.top > count:
            raise UserError(f"method mediation_moe: top={options.top} is more than the {count} experts of {len(names)} modalities")
        width = spec.dim * (len(names) + 1) + 4 * len(names) + 1
        own: Params = {
            "experts": experts.init(keys[0], count, dim=spec.dim, num_classes=classes, rank=options.rank or max(spec.dim // 4, 1)),
            "heads": base.bias_heads(keys[1], spec, names, hidden=options.hidden),
            "router": experts.init_router(keys[2], count, width=width, hidden=options.hidden),
            "constant": jnp.zeros(()),
            "scale": jnp.ones((count,)),
        }
        if options.scores == "attention":
            own["attention"] = scores.init_attention(keys[3], spec.slots, num_classes=classes, dim=spec.dim)
        if reads:
            own["references"], edits = editor.init(keys[4], spec, plan(spec.slots, classes))
        counts = jnp.asarray(spec.class_counts, jnp.float32) + 1.0
        state: dict[str, Any] = {"average": jax.tree.map(lambda x: jnp.array(x[-1:]), own["experts"]), "prior": jnp.log(counts / jnp.sum(counts))}
        state |= {"step": jnp.zeros(()), "steps": jnp.asarray(float(spec.steps))} | ({"editor": edits} if options.edit else {})
        if options.scores == "external":
            state["scores"] = scores.read_file(options.external, spec)
        elif options.refresh < 1:
            state |= scores.init_memory(spec)._asdict()
        return own, state

    def score(state: Any, model: Model, params: Params, slots: Mapping[str, Slots]) -> dict[str, Float[Array, "b _"]]:
        """Of every slot, no gradient."""
        params, frozen = jax.lax.stop_gradient((params, dict(slots)))
        own, masks = params["method"], {m: core.eligible(s, model.slots[m]) for m, s in frozen.items()}

        def fused(s: dict[str, Slots]) -> tuple[Float[Array, "b c"], dict[str, Array]]:
            codes = model.encode(params["model"], s, None)
            return experts.apply(state["average"], codes["shared"])[..., 0, :], codes

        logits, codes = fused(frozen)
        target = jnp.argmax(logits, axis=-1)
        if options.scores == "attention":
            return scores.attend(own["attention"], codes["shared"], frozen, masks)[1]
        if options.scores == "grad_x_input":
            return attribution.evidence(attribution.attribute(lambda s: fused(s)[0], frozen, target)[1], frozen)

        def measure(s: dict[str, Slots]) -> dict[str, Float[Array, " b"]]:
            z, codes = fused(s)
            biases = {m: base.read_bias(own["heads"][m], codes[m], jnp.any(s[m].mask, axis=-1)) for m in s}
            return {m: scores.margin(b, target) for m, b in biases.items()} | {"fused": scores.margin(z, target)}

        lost = scores.occlude(measure, frozen, params["model"]["blank"])[1]
        found = {}
        for m, mask in masks.items():
            if options.scores == "occlusion":
                found[m] = jnp.where(mask, jax.nn.relu(lost[m]["fused"]), 0.0)
                continue
            shortcut = jnp.abs(lost[m][m])  # where the shortcut speaks against the prediction, the head gains by losing it
            if options.scores == "reference":
                read, per_slot = reference.read(own["references"][m], frozen[m])
                shortcut = reference.evidence(per_slot, mask, jnp.argmax(read, axis=-1))
            found[m] = scores.beyond(jax.nn.relu(lost[m]["fused"]), shortcut, mask)
        return found

    def recall(state: Any, model: Model, params: Params, slots: Mapping[str, Slots], batch: Batch) -> tuple[dict[str, Array], Any]:
        """(scores of the batch, state): given, computed, or some computed and the others remembered."""
        if options.scores == "external":
            return {m: own[batch.index] for m, own in state["scores"].items()}, state
        if options.refresh == 1:
            return score(state, model, params, slots), state
        memory = scores.Memory(state["scores"], state["age"])
        found, memory = scores.remember(memory, lambda few: score(state, model, params, few), slots, batch, share=options.refresh, step=state["step"])
        return found, state | {"scores": memory.scores, "age": memory.age}

    def cut(hyper: Hyper, model: Model, slots: Mapping[str, Slots], found: Mapping[str, Array]) -> dict[str, Bool[Array, "b _"]]:
        """The cores."""
        share = {m: hyper["p_text" if "text" in (spec.kind, spec.raw) else "p_other"] for m, spec in model.slots.items()}
        return {m: core.keep(found[m], core.eligible(s, model.slots[m]), p=share[m], most=hyper["most"]) for m, s in slots.items()}

    def counterfactuals(model: Model, params: Params, slots: Mapping[str, Slots], cores: Mapping[str, Array]) -> tuple[dict[str, Slots], ...]:
        """(x^c, x^s)."""
        blank = params["model"]["blank"]
        context = {m: core.context_alone(s, cores[m], blank[m]) for m, s in slots.items()}
        return context, {m: core.core_alone(s, cores[m], core.eligible(s, model.slots[m]), blank[m]) for m, s in slots.items()}

    def edit(
        state: Any, model: Model, params: Params, slots: Mapping[str, Slots], batch: Batch, spoilt: Bool[Array, " b"], key: Key[Array, ""]
    ) -> tuple[dict[str, Slots], Float[Array, " b"], Any]:
        """(x^e, how far it turned what some reference reads, state)."""
        how, hyper = plan(model.slots, len(state["prior"])), {name: jnp.float32(value) for name, value in CIMRL.items()}
        references, blank = jax.lax.stop_gradient(params["method"]["references"]), params["model"]["blank"]
        found, kept = editor.edit(how, references, state["editor"], hyper, slots, batch, key, blank=blank)
        masks = {m: core.eligible(s, model.slots[m]) for m, s in slots.items()}
        edited = {m: misplaced(s, slots[m], found.chosen[m], masks[m], spoilt) for m, s in found.slots.items()}
        turned = [quality.turned(found.reading[m], reference.read(references[m], s)[0]) for m, s in edited.items()]
        return edited, jnp.max(jnp.stack(turned), axis=0), state | {"editor": kept}

    def view(
        state: Any,
        hyper: Hyper,
        model: Model,
        params: Params,
        slots: Mapping[str, Slots],
        codes: Mapping[str, Array],
        cores: Mapping[str, Array],
        whole: Float[Array, "b d"],
    ) -> View:
        """`codes` are those of x, x^c and x^s; `whole` is the fused code by which x is judged."""
        own, fixed = params["method"], jax.lax.stop_gradient(dict(codes))
        there = {m: jnp.any(s.mask, axis=-1) for m, s in slots.items()}
        biases = {m: jnp.stack([base.read_bias(head, fixed[m][i], there[m]) for i in range(2)]) for m, head in own["heads"].items()}
        judged = jnp.concatenate([jax.lax.stop_gradient(whole)[None], fixed["shared"][1:]])
        average = experts.apply(state["average"], judged)[..., 0, :]
        share = {m: core.covered(cores[m], core.eligible(s, model.slots[m])) for m, s in slots.items()}
        worth = {m: quality.contrast(average[0], average[1], average[2], share[m], most=hyper["most"]) for m in slots}
        trust = {m: worth[m][:, None] if options.filter else jnp.ones((len(own), 1)) for m, own in there.items()}
        paths = {m: effects.Path(trust[m] * b[1] + (1 - trust[m]) * b[0], there[m]) for m, b in biases.items()}
        direct = jnp.stack([path.logits for path in paths.values()], axis=1)  # [b, m, c]
        told = jax.nn.softmax(direct)
        agreement = jnp.sum(jnp.prod(told, axis=1), axis=-1, keepdims=True)
        columns = [*(fixed[m][0] for m in slots), fixed["shared"][0], jax.vmap(entropy, 1, 1)(direct), jnp.max(told, axis=-1), agreement]
        columns += [jnp.stack([part[m] for m in slots], axis=1) for part in (share, worth)]
        features = jax.lax.stop_gradient(jnp.concatenate(columns, axis=-1))
        return View(experts.apply(own["experts"], codes["shared"]), biases, paths, average, worth, features)

    def debiased(
        z: Float[Array, "b e c"], paths: Mapping[str, effects.Path], scale: Float[Array, " e"], constant: Float[Array, ""]
    ) -> Float[Array, "b e c"]:
        """z~_e"""
        if options.fusion == "poe":
            return z
        sets = enumerate(experts.subsets(paths))
        return jnp.stack([effects.effects(options.fusion, z[:, e], of(paths, scale[e], own), constant, own).indirect for e, own in sets], axis=1)

    def gate(hyper: Hyper, params: Params, seen: View, key: Key[Array, ""] | None) -> experts.Gates:
        sets = experts.subsets(seen.quality)
        prior = jnp.zeros((len(seen.features), len(sets)))
        if options.filter:
            against = {m: jnp.log(q + 0.01) for m, q in seen.quality.items()}
            prior = hyper["router_quality"] * jnp.stack([sum((against[m] for m in own), jnp.zeros_like(prior[:, 0])) for own in sets], axis=1)
        return experts.route(params["method"]["router"], seen.features, prior, top=options.top, key=key, noise=hyper["router_noise"] / len(sets))

    def loss(
        state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Any, Metrics]]:
        keys, own, weight = jax.random.split(key, 6), params["method"], batch.weight
        slots = model.embed(params["model"], batch.inputs, batch.present)
        names = sorted(slots)
        masks = {m: core.eligible(slots[m], model.slots[m]) for m in names}
        found, state = recall(state, model, params, slots, batch)
        warm = state["step"] < hyper["warmup"] * state["steps"]
        cores = {m: own & ~warm for m, own in cut(hyper, model, slots, found).items()}
        spoilt = jax.random.bernoulli(keys[0], hyper["spoil"], batch.label.shape)
        spoiled = {m: core.spoil(jax.random.fold_in(keys[1], i), cores[m], masks[m]) for i, m in enumerate(names)}
        cores = {m: jnp.where(spoilt[:, None], spoiled[m], cores[m]) for m in names}
        blank = params["model"]["blank"]

        def blanked(version: Mapping[str, Slots]) -> dict[str, Slots]:
            drawn = {m: jax.random.fold_in(keys[2], i) for i, m in enumerate(names)}
            return {m: core.blanked(drawn[m], s, core.eligible(s, model.slots[m]), hyper["blank"], blank[m]) for m, s in version.items()}

        views = [blanked(slots), *counterfactuals(model, params, slots, cores)]
        sound = jnp.ones_like(weight)
        if options.edit:
            edited, sound, state = edit(state, model, params, slots, batch, spoilt, keys[5])
            views.append(blanked(edited))  # as x is: blanks in x alone would tell which of the two it is, and each could go by its own reading
        # One pass for all, as in cimrl: a fraction of the program to compile, and larger products.
        codes = together(model, params, keys[3], *views)
        # x is judged without blanks: where they hit the cause, p would say nothing, and no counterfactual could differ from it.
        whole = model.encode(*jax.lax.stop_gradient((params["model"], slots)), None)["shared"]
        seen = view(state, hyper, model, params, slots, codes, cores, whole)

        z, sets = seen.logits[0], experts.subsets(names)
        fixed, constant, scale = jax.lax.stop_gradient((seen.paths, own["constant"], own["scale"]))
        learned = z
        if options.detach_others:
            apart = experts.apply(own["experts"], jax.lax.stop_gradient(codes["shared"][0]))
            learned = jnp.concatenate([apart[:, :-1], z[:, -1:]], axis=1)
        joined = [effects.outcome(options.fusion, learned[:, e], of(fixed, scale[e], chosen), constant, chosen) for e, chosen in enumerate(sets)]
        l_te = masked_mean(jnp.asarray(sum(cross_entropy(y, batch.label) for y in joined)), weight)
        told = [jax.nn.log_softmax(sum(path.logits for path in of(fixed, own["scale"][e], sets[e]).values())) for e in range(1, len(sets))]
        l_scale = masked_mean(jnp.asarray(sum(cross_entropy(y, batch.label) for y in told)), weight)
        direct = effects.outcome(options.fusion, z[:, -1], of(fixed, scale[-1], names), own["constant"], names, mediated=False)  # z: its shape alone
        l_c = masked_mean(effects.constant_loss(joined[-1], direct), weight)
        alone = {m: cross_entropy(path.logits, batch.label) for m, path in seen.paths.items()}
        # A head that saw contexts alone would know nothing of a shortcut once taken for core, and the scores would take it for core ever after.
        l_bias = sum(masked_mean(cross_entropy(b, batch.label) / 2, weight * batch.present[m]) for m, two in seen.biases.items() for b in two)
        counted = sum(seen.quality[m] if options.filter else batch.present[m] * ~warm for m in names)
        l_core = masked_mean(counted * kl_divergence(jax.lax.stop_gradient(seen.average[0]), seen.logits[2][:, -1]), weight)
        prior = jnp.broadcast_to(state["prior"], z[:, -1].shape)
        l_context = masked_mean(counted * kl_divergence(prior, seen.logits[1][:, -1]), weight)

        gates, free = gate(hyper, params, seen, keys[4]), jax.lax.stop_gradient(debiased(z, fixed, scale, constant))
        mixed = cross_entropy(experts.mixture(gates.weights, free), batch.label)
        omega = relative_difficulty(jnp.asarray(sum(alone.values())) / len(names), mixed) if options.error_weight else jnp.ones_like(mixed)
        l_mix = masked_mean(omega * mixed, weight)
        l_router = hyper["balance"] * experts.load_balance(gates, weight) + hyper["router_z"] * experts.z_loss(gates, weight)
        total = l_te + l_bias + l_scale + l_c + hyper["w_core"] * l_core + hyper["w_context"] * l_context + hyper["w_mix"] * l_mix + l_router
        more = {"l_te": l_te, "l_bias": l_bias, "l_core": l_core, "l_context": l_context, "l_mix": l_mix, "constant": constant, "scale": scale[-1]}
        more |= {f"quality_{m}": masked_mean(seen.quality[m], weight * batch.present[m]) for m in names}
        more |= {f"gate_{experts.name(chosen)}": masked_mean(gates.weights[:, e], weight) for e, chosen in enumerate(sets)}
        if options.cimrl:
            more["l_cimrl"] = under_cimrl(model, params, codes, jnp.asarray(counted) / len(names), batch)
            total += more["l_cimrl"]
        if options.edit:
            joint, begun = seen.logits[:, :, -1], state["step"] >= CIMRL["warmup"] * state["steps"]
            turned = CIMRL["mu"] * kl_divergence(joint[3], joint[0]) + CIMRL["nu"] * cross_entropy(joint[3], batch.label)
            # x^e alone would teach the shortcut's opposite, for an edit always turns what is read; x beside it keeps the balance. The quality is
            # relative to the batch's: how far a reading turns depends on how strong the shortcut is.
            kept = masked_mean(cross_entropy(joint[0], batch.label), weight)
            more["l_if"] = begun * (hyper["w_original"] * kept + masked_mean(turned, weight * (sound if options.filter else 1)))
            total += CIMRL["w_if"] * more["l_if"]
        if options.spoil:
            more["quality_auroc"] = quality.told_apart(jnp.asarray(sum(seen.quality.values())), ~spoilt, weight)
            if options.edit:
                more["edit_auroc"] = quality.told_apart(sound, ~spoilt, weight)
        if options.scores == "attention":
            frozen = jax.lax.stop_gradient((codes["shared"][0], slots))
            total += masked_mean(cross_entropy(scores.attend(own["attention"], *frozen, masks)[0], batch.label), weight)
        if reads:
            total += editor.fit(own["references"], jax.lax.stop_gradient(slots), batch, hyper["reference_q"])
        blend = jax.tree.map(lambda old, new: hyper["decay"] * old + (1 - hyper["decay"]) * new[-1:], state["average"], own["experts"])
        state = state | {"average": jax.lax.stop_gradient(blend), "step": state["step"] + 1}
        return total, (state, base.figures(total, free[:, -1], batch, **more))

    def look(
        state: Any, hyper: Hyper, model: Model, params: Params, slots: Mapping[str, Slots], codes: Mapping[str, Array]
    ) -> tuple[View, dict[str, Array], dict[str, Array], dict[str, Slots]]:
        """(view, scores, cores, x^s) of a trained model."""
        found = score(state, model, params, slots)
        cores = cut(hyper, model, slots, found)
        two = counterfactuals(model, params, slots, cores)
        more = together(model, params, None, *two)
        three = {part: jnp.concatenate([codes[part][None], more[part]]) for part in codes}
        return view(state, hyper, model, params, slots, three, cores, codes["shared"]), found, cores, two[1]

    def predictor(mode: Mode) -> Callable[..., Array]:
        def predict(
            state: Any, hyper: Hyper, model: Model, params: Params, slots: Mapping[str, Slots], codes: Mapping[str, Array]
        ) -> Float[Array, "b c"]:
            own = params["method"]
            constant, scale = own["constant"], own["scale"]
            free = experts.apply(own["experts"], codes["shared"])
            if options.fusion != "poe" or mode not in ("joint", "uniform"):  # these two need neither masks nor another pass
                seen = look(state, hyper, model, params, slots, codes)[0]
                free = debiased(seen.logits[0], seen.paths, scale, constant)
            if mode == "joint":
                return free[:, -1]
            if mode == "uniform":
                return experts.mixture(jnp.full(free.shape[:2], 1 / free.shape[1]), free)
            z, named, paths = seen.logits[0], tuple(seen.paths), of(seen.paths, scale[-1], seen.paths)
            if mode == "moe":
                return experts.mixture(gate(hyper, params, seen, None).weights, free)
            joined = effects.outcome(options.fusion, z[:, -1], paths, constant, named)
            if mode == "factual":
                return joined
            if mode == "tde":
                return joined - effects.outcome(options.fusion, seen.logits[1][:, -1], paths, constant, named)
            found = effects.effects(options.fusion, z[:, -1], paths, constant, named)
            return found.indirect if mode == "tie" else found.direct

        return predict

    def explain(state: Any, hyper: Hyper, model: Model, params: Params, batch: Batch, key: Key[Array, ""]) -> dict[str, dict[str, Any]]:
        del key
        slots = model.embed(params["model"], batch.inputs, batch.present)
        codes = model.encode(params["model"], slots, None)
        seen, found, cores, alone = look(state, hyper, model, params, slots, codes)
        sets = experts.subsets(slots)
        predicted = jnp.argmax(modes[options.inference](state, hyper, model, params, slots, codes), axis=-1)
        own, joint = params["method"], seen.logits[0][:, -1]
        told = effects.named(options.fusion, joint, of(seen.paths, own["scale"][-1], sets[-1]), own["constant"], sets[1:])
        weights = gate(hyper, params, seen, None).weights
        return {
            "evidence": found,
            "chosen": {m: own.astype(jnp.float32) for m, own in cores.items()},
            "edited": alone,
            "effects": {what: jnp.take_along_axis(own, predicted[:, None], axis=-1)[:, 0] for what, own in told.items()},
            "gates": {experts.name(own): weights[:, e] for e, own in enumerate(sets)},
            "quality": seen.quality,
        }

    modes = {mode: predictor(mode) for mode in MODES}
    return Method(
        init=init, stages=(Stage(share=1.0, loss=loss),), hyper=base.swept(options), explain=explain, predict=modes[options.inference], modes=modes
    )
