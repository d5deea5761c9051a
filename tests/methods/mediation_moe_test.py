"""What each part of the method trains, what each mode of inference says, and where its masks come from."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cimrl_jax.counterfactual import experts, reference
from cimrl_jax.errors import UserError
from cimrl_jax.methods import cimrl, mediation_moe
from tests import tiny

CLASSES, ROWS = 3, 8
MODEL = tiny.shallow(CLASSES)
SETS = experts.subsets(tiny.LAYOUT)
WEIGHT = np.array([1, 2, 0.5, 1, 1, 3, 0, 0], np.float32)
KINDS = ["attention", "grad_x_input", "occlusion", "occlusion_minus_bias", "reference"]
OFF = {"w_core": 0.0, "w_context": 0.0, "w_mix": 0.0, "balance": 0.0, "router_z": 0.0}


def spec(**options):
    return tiny.spec(tiny.source(classes=CLASSES), classes=CLASSES, **options)


@functools.cache
def method(**options):
    """(record, its loss and gradient, its explanation). Not compiled: a variant is called a few times, and the operations are those of the others."""
    record = tiny.method("mediation_moe", hidden=4, rank=1, **options)
    of_stage = record.stages[0].loss
    assert of_stage is not None

    def loss(params, state, hyper, batch):
        return of_stage(state, hyper, MODEL, params, batch, jax.random.key(0))

    def explain(params, state, hyper, batch):
        return record.explain(state, hyper, MODEL, params, batch, jax.random.key(0))

    return record, jax.value_and_grad(loss, has_aux=True), explain


def make_case(**options):
    """(options, state past the warm-up, traced numbers, parameters that say something, batch in which "right" is absent now and then)."""
    record = method(**options)[0]
    own, state = record.init(jax.random.key(1), spec())
    own = jax.tree.map(lambda x: 2 * x + 0.1, own)
    state = {**state, "step": jnp.asarray(100.0), "average": jax.tree.map(lambda x: 2 * x + 0.1, state["average"])}
    batch = tiny.batch(tiny.source(classes=CLASSES), weight=WEIGHT)
    hyper = {name: jnp.float32(value) for name, value in record.hyper.items()}
    return options, state, hyper, {"model": MODEL.init(jax.random.key(0)), "method": own}, batch


def evaluate(options, state, hyper, params, batch, **changes):
    """(loss, new state, figures, gradient)."""
    hyper = {**hyper, **{name: jnp.float32(value) for name, value in changes.items()}}
    (loss, (state, figures)), gradient = method(**options)[1](params, state, hyper, batch)
    return float(loss), state, figures, gradient


def explain(options, state, hyper, params, batch):
    return method(**options)[2](params, state, hyper, batch)


def size(tree):
    return max(float(np.abs(x).max()) for x in tiny.arrays(tree))


def seen(params, batch):
    slots = MODEL.embed(params["model"], batch.inputs, batch.present)
    return slots, MODEL.encode(params["model"], slots)


# What trains what.


@pytest.mark.parametrize("fusion", ["poe", "sum"])
def test_bias_heads_move_no_encoder_and_the_router_moves_itself_alone(fusion):
    case = make_case(fusion=fusion)
    base, mixed = evaluate(*case, **OFF)[3], evaluate(*case, **{**OFF, "w_mix": 5.0})[3]
    assert size(base["method"]["router"]) == 0 and size(mixed["method"]["router"]) > 1e-4
    rest = [{**g, "method": {name: x for name, x in g["method"].items() if name != "router"}} for g in (base, mixed)]
    tiny.assert_close(*rest, rtol=1e-5, atol=1e-6)
    assert size(base["method"]["heads"]) > 1e-3
    assert (size(base["method"]["constant"]) > 1e-6) == (fusion != "poe")  # no constant changes a product of experts


def test_only_the_joint_expert_learns_from_counterfactuals():
    case = make_case()
    base, more = (evaluate(*case, **{**OFF, "w_core": w, "w_context": w})[3]["method"]["experts"] for w in (0.0, 3.0))
    moved = {name: np.abs(base[name] - more[name]).reshape(len(SETS), -1).max(1) for name in base}
    assert all((x[:-1] < 1e-6).all() for x in moved.values()) and moved["kernel"][-1] > 1e-4


def test_the_loss_is_the_sum_of_its_figures():
    options, state, hyper, params, batch = make_case(fusion="sum")
    loss, _, figures, _ = evaluate(options, state, hyper, params, batch, balance=0.0, router_z=0.0, w_core=0.7, w_context=0.3, w_mix=1.3)
    free, _, _, _ = evaluate(options, state, hyper, params, batch, **OFF)
    weights = {"l_core": 0.7, "l_context": 0.3, "l_mix": 1.3}
    assert loss - free == pytest.approx(sum(w * float(figures[name]) for name, w in weights.items()), abs=1e-5)
    assert all(float(figures[name]) > 0 for name in ("l_core", "l_context", "l_mix"))


def test_the_scales_calibrate_the_sum_of_direct_paths_and_nothing_else_trains_them():
    options, state, hyper, params, batch = make_case()
    state = {**state, "step": jnp.asarray(0.0)}  # x^c is x
    gradient = evaluate(options, state, hyper, params, batch, **OFF, blank=0.0)[3]["method"]["scale"]
    codes, rows = seen(params, batch)[1], np.arange(ROWS)
    b = {}
    for m, head in params["method"]["heads"].items():
        inner = np.maximum(np.asarray(codes[m]) @ head["inner"] + head["inner_bias"], 0)
        b[m] = np.where(np.asarray(batch.present[m])[:, None], inner @ head["outer"] + head["outer_bias"], 0.0)

    def by_hand(scale, chosen):
        told = scipy.special.log_softmax(scale * sum(b[m] for m in chosen), axis=1)[rows, np.asarray(batch.label)]
        return -np.average(told, weights=WEIGHT)

    for e, chosen in enumerate(SETS):
        at = float(params["method"]["scale"][e])
        expected = (by_hand(at + 1e-3, chosen) - by_hand(at - 1e-3, chosen)) / 2e-3 if chosen else 0.0
        assert float(gradient[e]) == pytest.approx(expected, abs=1e-3), chosen
    assert np.abs(gradient[1:]).min() > 3e-3


def test_in_the_first_steps_there_is_no_core():
    options, state, hyper, params, batch = make_case()
    for step, warm in ((0.0, True), (100.0, False)):
        figures = evaluate(options, {**state, "step": jnp.asarray(step)}, hyper, params, batch)[2]
        quality = float(figures["quality_left"])
        assert (quality == 0) == warm and (float(figures["l_core"]) == 0) == warm


def test_the_running_average_follows_the_joint_expert():
    options, state, hyper, params, batch = make_case()
    new = evaluate(options, state, hyper, params, batch, decay=0.75)[1]["average"]
    expected = jax.tree.map(lambda old, own: 0.75 * old + 0.25 * own[-1:], state["average"], params["method"]["experts"])
    tiny.assert_close(new, expected, rtol=1e-6, atol=1e-7)


# Inference.


@pytest.mark.parametrize("fusion", ["poe", "sum", "hm"])
def test_the_modes_agree_with_one_another(fusion):
    options, state, hyper, params, batch = make_case(fusion=fusion)
    record, (slots, codes) = method(**options)[0], seen(params, batch)
    said = {mode: np.asarray(own(state, hyper, MODEL, params, slots, codes)) for mode, own in record.modes.items()}
    assert set(said) == set(mediation_moe.MODES) and record.predict is record.modes["joint"]
    z = np.asarray(experts.apply(params["method"]["experts"], codes["shared"]))
    shift = np.ptp(said["tie"] - said["joint"], axis=1)
    np.testing.assert_allclose(shift, 0, atol=1e-4)  # with an expert for all modalities, joint is the total indirect effect
    if fusion == "poe":
        np.testing.assert_allclose(said["joint"], z[:, -1], atol=1e-5)
        np.testing.assert_allclose(said["uniform"], np.log(scipy.special.softmax(z, axis=-1).mean(1)), atol=1e-5)
        direct = said["bias_only"] - said["bias_only"].mean(1, keepdims=True)
        total = scipy.special.log_softmax(z[:, -1], axis=1) + direct
        np.testing.assert_allclose(np.ptp(said["factual"] - total, axis=1), 0, atol=1e-4)
    assert all(np.isfinite(x).all() and np.ptp(x) > 0 for x in said.values())


@pytest.mark.parametrize("mode", mediation_moe.MODES)
def test_the_inference_asked_for_is_the_prediction(mode):
    record = tiny.method("mediation_moe", inference=mode)
    assert record.predict is record.modes[mode]


def test_the_explanation_tells_effects_gates_and_quality():
    options, state, hyper, params, batch = make_case()
    told = explain(options, state, hyper, params, batch)
    assert set(told["gates"]) == {"none", "left", "right", "left+right"} and set(told["quality"]) == {"left", "right"}
    np.testing.assert_allclose(sum(told["gates"].values()), 1.0, atol=1e-5)
    effect = told["effects"]
    assert set(effect) == {"TE", *(f"{kind} {m}" for kind in ("NDE", "TIE") for m in ("left", "right", "left+right"))}
    for m in ("left", "right", "left+right"):
        np.testing.assert_allclose(effect["TE"], effect[f"NDE {m}"] + effect[f"TIE {m}"], atol=1e-4)
    absent = ~np.asarray(batch.present["right"])
    assert absent.any() and not np.asarray(told["quality"]["right"])[absent].any()
    np.testing.assert_allclose(np.asarray(effect["NDE right"])[absent], 0, atol=1e-5)
    for m, core in told["chosen"].items():  # the edit keeps the core and nothing else
        same = np.all(np.isclose(told["edited"][m].values, seen(params, batch)[0][m].values), axis=-1)
        np.testing.assert_array_equal(same[np.asarray(batch.present[m])], np.asarray(core)[np.asarray(batch.present[m])] > 0)


# Scores.


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_scores_trains_and_explains(kind):
    options, state, hyper, params, batch = make_case(scores=kind)
    loss, _, _, gradient = evaluate(options, state, hyper, params, batch)
    assert np.isfinite(loss) and all(np.isfinite(x).all() for x in tiny.arrays(gradient))
    extra = {"references", "attention"} if kind == "attention" else {"references"}  # the references also tell what to edit
    assert set(params["method"]) - {"experts", "heads", "router", "constant", "scale"} == extra
    assert all(size(gradient["method"][own]) > 1e-4 for own in extra)
    told = explain(options, state, hyper, params, batch)
    assert all(float(x.max()) > 0 and not np.asarray(x)[~np.asarray(batch.present[m])].any() for m, x in told["evidence"].items())


def test_scores_of_a_part_of_the_batch_end_up_as_if_all_had_been_computed():
    options, state, hyper, params, batch = make_case(refresh=0.25)
    assert (np.asarray(state["age"]) == -1).all()
    for step in range(4):
        state = evaluate(options, {**state, "step": jnp.asarray(100.0 + step), "average": state["average"]}, hyper, params, batch, decay=1.0)[1]
    whole = explain(options, state, hyper, params, batch)["evidence"]
    rows, weighs = np.asarray(batch.index), WEIGHT > 0
    for m, known in state["scores"].items():
        np.testing.assert_allclose(np.asarray(known)[rows][weighs], np.asarray(whole[m])[weighs], atol=1e-5)
        assert not np.asarray(known)[rows][~weighs].any() and not np.asarray(known)[ROWS:].any()
    assert (np.asarray(state["age"])[rows[weighs]] >= 100).all()


def write(folder, **changes):
    arrays = {m: np.eye(3, dtype=np.float32)[np.arange(24) % 3] for m in tiny.LAYOUT} | changes
    np.savez(folder / "scores.npz", allow_pickle=False, **{m: x for m, x in arrays.items() if x is not None})
    return str(folder / "scores.npz")


def test_scores_from_a_file_are_those_of_the_training_rows(tmp_path):
    case = make_case(scores="external", external=write(tmp_path))
    np.testing.assert_array_equal(case[1]["scores"]["left"][4], [0, 1, 0])
    wide, narrow = (
        evaluate(*make_case(scores="external", external=write(tmp_path, left=x)))[2] for x in (None or np.eye(3)[[0] * 24], np.zeros((24, 3)))
    )
    assert float(wide["quality_left"]) > 0 == float(narrow["quality_left"])


@pytest.mark.parametrize(
    "options, changes, message",
    [
        ({"scores": "external"}, {}, r"scores=external with external=''; give external a .npz file"),
        ({"external": "there.npz"}, {}, r"scores=occlusion_minus_bias with external='there.npz'"),
        ({"scores": "external", "external": "nowhere.npz"}, {}, r"'nowhere.npz' cannot be read"),
        ({"scores": "external"}, {"left": None}, r"'left' is missing; expected \(24, 3\) scores"),
        ({"scores": "external"}, {"right": np.zeros((5, 3))}, r"'right' has the shape \(5, 3\), .*expected \(24, 3\)"),
        ({"scores": "external"}, {"right": -np.ones((24, 3))}, r"'right' has the shape .*or negative numbers"),
        ({"top": 5}, {}, r"top=5 is more than the 4 experts of 2 modalities"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, changes, message):
    if changes:
        options = {**options, "external": write(tmp_path, **changes)}
    with pytest.raises(UserError, match=message):
        tiny.method("mediation_moe", **options).init(jax.random.key(0), spec())


# With CIMRL's parts.


def test_cimrls_weights_are_its_own():
    defaults = dataclasses.asdict(cimrl.Options())
    assert {name: defaults[name] for name in mediation_moe.CIMRL} == mediation_moe.CIMRL


def test_the_joint_expert_alone_is_fine_tuned_on_edited_examples_once_the_references_can_tell():
    found = {}
    for step in (0.0, 100.0):
        for on in (False, True):
            options, state, hyper, params, batch = make_case(edit=on)
            assert ("references" in params["method"]) == ("editor" in state) == on
            if on and step:  # readers that know the label, so that edits are made
                state["editor"]["conflict"] = {m: dataclasses.replace(own, weight=jnp.eye(CLASSES)) for m, own in state["editor"]["conflict"].items()}
            found[step, on] = evaluate(options, {**state, "step": jnp.asarray(step)}, hyper, params, batch, blank=0.0)
        loss, after, figures, gradient = found[step, True]
        fitted = _generalised(params, batch)
        assert loss - found[step, False][0] == pytest.approx(fitted + float(figures["l_if"]), abs=1e-5)
        assert (float(figures["l_if"]) > 0) == (step > 0)
        moved = {
            name: np.abs(gradient["method"]["experts"][name] - own).reshape(len(SETS), -1).max(1)
            for name, own in found[step, False][3]["method"]["experts"].items()
        }
        assert all((own[:-1] < 1e-6).all() for own in moved.values()) and (moved["kernel"][-1] > 1e-4) == (step > 0)
        assert all(float(own.weight.sum()) > 0 for own in after["editor"]["conflict"].values())


def test_an_example_and_its_edit_are_blank_in_the_same_places():
    case = make_case(filter=False)  # the references tell nothing yet, so that nothing is edited: KL is 0, and both cross entropies are one
    alone, beside = (float(evaluate(*case, blank=0.5, w_original=own)[2]["l_if"]) for own in (0.0, 1.0))
    assert beside == pytest.approx(2 * alone, rel=1e-5)


def _generalised(params, batch):
    """The references' loss on the batch's slots: the mean of (1 - p_y^.7) / .7, summed over modalities."""
    total = 0.0
    for m, own in seen(params, batch)[0].items():
        p = scipy.special.softmax(np.asarray(reference.read(params["method"]["references"][m], own)[0]), axis=1)
        total += np.average((1 - p[np.arange(ROWS), np.asarray(batch.label)] ** 0.7) / 0.7, weights=WEIGHT * np.asarray(batch.present[m]))
    return total


def test_cimrls_other_losses_are_added_and_the_disentanglement_needs_no_counterfactual():
    found = {}
    for step in (0.0, 100.0):
        for on in (False, True):
            options, state, hyper, params, batch = make_case(**({"cimrl": True} if on else {}))
            found[step, on] = evaluate(options, {**state, "step": jnp.asarray(step)}, hyper, params, batch, blank=0.0)
        added = found[step, True][0] - found[step, False][0]
        assert added == pytest.approx(float(found[step, True][2]["l_cimrl"]), abs=1e-5)
    codes = seen(params, batch)[1]
    heads = MODEL.decide(params["model"], codes).heads
    disentangled = 0.5 * np.average(_nll(heads["shared"], batch), weights=WEIGHT)
    for m, here in batch.present.items():
        share = WEIGHT * np.asarray(here)
        a, b = (np.asarray(codes[name]) for name in (m, "shared"))
        cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-9)
        disentangled += np.average(_nll(heads[m], batch), weights=share) + 0.1 * np.average(cosine**2, weights=share)
    assert float(found[0.0, True][2]["l_cimrl"]) == pytest.approx(0.5 * disentangled, rel=1e-4)


def test_cimrls_contrast_is_the_equation():
    batch, params = make_case()[-1], {"model": MODEL.init(jax.random.key(0))}
    draw = np.random.default_rng(0)
    codes = {name: draw.normal(size=(3, *code.shape)).astype(np.float32) for name, code in seen(params, batch)[1].items()}

    def terms(trust):
        return float(mediation_moe.under_cimrl(MODEL, params, jax.tree.map(jnp.asarray, codes), jnp.asarray(trust), batch))

    x, alone = (np.asarray(MODEL.decide(params["model"], {name: code[i] for name, code in codes.items()}).codes["projection"]) for i in (0, 2))
    x, alone = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, alone))
    rows = np.zeros(ROWS)
    for i in range(ROWS):
        near = np.exp(x[i] @ alone[i] / 0.1)
        rest = sum(np.exp(x[i] @ x[j] / 0.1) for j in range(ROWS) if j != i and WEIGHT[j] > 0)
        rows[i] = -np.log(near / (near + rest))
    trust = draw.uniform(size=ROWS).astype(np.float32)
    assert terms(trust) - terms(0 * trust) == pytest.approx(0.1 * np.average(trust * rows, weights=WEIGHT), rel=1e-4)


def _nll(logits, batch):
    return -scipy.special.log_softmax(np.asarray(logits), axis=1)[np.arange(ROWS), np.asarray(batch.label)]


# The filter.


def test_spoilt_counterfactuals_are_another_loss_and_told_of():
    options, state, hyper, params, batch = make_case(spoil=0.5)
    figures = evaluate(options, state, hyper, params, batch)[2]
    clean = evaluate(options, state, hyper, params, batch, spoil=0.0)[2]
    assert 0 <= float(figures["quality_auroc"]) <= 1 and 0 <= float(figures["edit_auroc"]) <= 1
    assert abs(float(figures["l_if"]) - float(clean["l_if"])) > 1e-5
    assert abs(float(figures["l_core"]) - float(clean["l_core"])) > 1e-5


def test_a_spoilt_edit_keeps_what_was_to_be_edited_and_changes_the_rest():
    batch, params = make_case()[-1], {"model": MODEL.init(jax.random.key(0))}
    slots = seen(params, batch)[0]["left"]
    chosen, spoilt = np.eye(slots.mask.shape[1], dtype=np.float32)[np.arange(ROWS) % 3], np.arange(ROWS) % 2 > 0
    edited = dataclasses.replace(slots, values=slots.values + 100)
    made = mediation_moe.misplaced(edited, slots, jnp.asarray(chosen), slots.mask, jnp.asarray(spoilt))
    free = np.asarray(slots.mask) & (chosen == 0)
    expected = np.where((free & np.roll(free, 1, axis=0))[..., None], np.roll(slots.values, 1, axis=0), slots.values)
    np.testing.assert_array_equal(made.values, np.where(spoilt[:, None, None], expected, edited.values))
    assert (np.asarray(made.values)[spoilt] != np.asarray(slots.values)[spoilt]).any()


def test_without_the_filter_every_counterfactual_counts_alike():
    weighed, alike = (evaluate(*make_case(filter=own))[2] for own in (True, False))
    assert float(alike["l_core"]) > float(weighed["l_core"]) > 0
    assert float(alike["l_if"]) != pytest.approx(float(weighed["l_if"]), abs=1e-5)


def test_four_modalities_have_six_experts():
    layout = {m: tiny.LAYOUT["left"] for m in "abcd"}
    model, own = tiny.shallow(2, layout), tiny.source(8, layout=layout)
    own = dataclasses.replace(own, present={"a": np.arange(8) % 2 > 0})
    record = tiny.method("mediation_moe", hidden=4)
    params, state = record.init(jax.random.key(0), tiny.spec(own, layout=layout))
    hyper = {name: jnp.float32(value) for name, value in record.hyper.items()}
    both = {"model": model.init(jax.random.key(0)), "method": params}
    of_stage = record.stages[0].loss
    assert of_stage is not None
    loss, (_, figures) = of_stage(state, hyper, model, both, tiny.batch(own), jax.random.key(0))
    assert np.isfinite(loss) and [name for name in sorted(figures) if name.startswith("gate_")] == [
        "gate_a", "gate_a+b+c+d", "gate_b", "gate_c", "gate_d", "gate_none"
    ]  # fmt: skip
