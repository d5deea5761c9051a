"""CIMRL's loss, part by part, against transcriptions of its equations; what an option removes is gone, and gradients stop where they should."""

from __future__ import annotations

import functools
import itertools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cimrl_jax.counterfactual import editor
from cimrl_jax.methods import base, cimrl
from cimrl_jax.types import REFUSED
from tests import tiny

KEY = jax.random.key(7)
ROWS = 10
NONE = {"w_ce": 0.0, "w_ci": 0.0, "w_md": 0.0, "w_if": 0.0}
WEIGHT = np.array([1, 2, 1, 0.5, 1, 1, 3, 1, 0, 0], np.float32)


@functools.cache
def make_case(**options):
    """(method, model whose perturbed view needs no key, parameters, state after the warm-up, batch with weights)."""
    record = tiny.method("cimrl", **options)
    model = tiny.shallow(3)._replace(perturb=lambda inputs, key: {m: 0.7 * x[:, ::-1] + 0.1 for m, x in inputs.items()})
    own = tiny.source(ROWS, classes=3)
    method_params, state = record.init(jax.random.key(1), tiny.spec(own, classes=3))
    params = {"model": model.init(jax.random.key(0)), "method": method_params}
    return record, model, params, state | {"step": jnp.float32(5)}, tiny.batch(own, slice(ROWS), weight=WEIGHT)


def evaluate(hyper=None, params=None, state=None, batch=None, **options):
    """(loss, metrics, gradient, new state)."""
    record, model, own, before, rows = make_case(**options)
    numbers = {name: jnp.float32(value) for name, value in {**record.hyper, **(hyper or {})}.items()}
    of_stage = record.stages[0].loss
    assert of_stage is not None

    def of(params):
        return of_stage(state or before, numbers, model, params, batch or rows, KEY)

    # Not compiled: a variant is called a few times, and the operations are those of the others.
    (loss, (after, metrics)), gradient = jax.value_and_grad(of, has_aux=True)(params or own)
    return float(loss), metrics, gradient, after


def outputs(**options):
    """The model's outputs on the originals, the perturbed and the edited inputs, as float64."""
    record, model, params, state, batch = make_case(**options)
    hyper = {name: jnp.float32(value) for name, value in record.hyper.items()}
    told = record.explain(state, hyper, model, params, batch, KEY)
    slots = model.embed(params["model"], batch.inputs, batch.present)
    view = model.embed(params["model"], model.perturb(batch.inputs, KEY), batch.present)
    edited = told["edited"]
    found = [model.decide(params["model"], model.encode(params["model"], s)) for s in (slots, view, edited)]
    return jax.tree.map(lambda x: np.asarray(x, np.float64), found)


def mean(values, weight: np.ndarray = WEIGHT):
    return (values * weight).sum() / weight.sum()


def nll(logits):
    label = np.asarray(make_case()[-1].label)
    return -scipy.special.log_softmax(logits, axis=1)[np.arange(ROWS), label]


PARTS = {"w_ce": "l_ce", "w_ci": "l_ci", "w_md": "l_md", "w_if": "l_if"}


@pytest.mark.parametrize("name", PARTS)
def test_a_weight_of_0_removes_exactly_its_part(name):
    whole, metrics, _, _ = evaluate({name: 0.8})
    without, _, _, _ = evaluate({name: 0.0})
    part = float(metrics[PARTS[name]])
    assert part > 0.05
    assert whole - without == pytest.approx(0.8 * part, rel=1e-4)


def test_without_all_weights_the_model_receives_no_gradient_and_the_references_still_learn():
    loss, _, gradient, _ = evaluate(NONE)
    assert loss > 0
    assert not any(x.any() for x in tiny.arrays(gradient["model"]))
    assert all(x.any() for x in tiny.arrays(gradient["method"]))


def test_no_part_but_their_own_loss_trains_the_references():
    _, _, every, _ = evaluate()
    _, _, own, _ = evaluate(NONE)
    tiny.assert_close(every["method"], own["method"], rtol=1e-5, atol=1e-7)


def test_counterfactuals_wait_for_the_warm_up():
    _, _, _, state, _ = make_case()
    for step, counted in ((2.0, False), (3.0, True)):
        early = state | {"step": jnp.float32(step)}
        whole, metrics, _, after = evaluate({"warmup": 0.3}, state=early)
        without, _, _, _ = evaluate({"warmup": 0.3, "w_if": 0.0}, state=early)
        assert whole - without == pytest.approx(float(metrics["l_if"]) * counted, abs=1e-5)
        assert after["step"] == step + 1


BY_CHANCE = {"identify": "random", "intervention": "noise"}
"""Edits that are made whatever the references read."""


def begun(**changes):
    """A trial of two modalities, both edited for long."""
    fields = {"turned": 0.0, "steps": 50.0, "known": [True, True], "last": [True, True], "refused": [False, False]} | changes
    return {"trial": cimrl.Trial(*(jnp.asarray(fields[name]) for name in cimrl.Trial._fields))}


@pytest.mark.parametrize(
    ("trial", "refused"),
    [
        ({"turned": 0.9}, [True, True]),
        ({"turned": 0.1}, [False, False]),
        ({"turned": 0.9, "steps": 0.0}, [False, False]),  # not yet tried for long enough
        ({"turned": 0.9, "last": [False, True]}, [False, True]),  # what came last is what took the rest away
        ({"turned": 0.9, "last": [False, True], "known": [True, False]}, [False, False]),  # it is new: the trial begins anew
        ({"turned": 0.9, "last": [False, True], "refused": [True, False]}, [True, True]),  # once refused, refused for good
        ({"turned": 0.0, "refused": [True, False]}, [True, False]),
    ],
)
def test_a_modality_whose_edits_still_turn_the_prediction_after_their_trial_is_refused(trial, refused):
    _, _, _, state, _ = make_case(**BY_CHANCE)
    _, metrics, _, after = evaluate({"warmup": 0.4}, state=state | begun(**trial), **BY_CHANCE)
    assert after["trial"].refused.tolist() == refused == [bool(metrics[f"refused_{m}"]) for m in ("left", "right")]
    if np.any(refused) and not np.any(trial.get("refused", False)):  # those that are left are on trial from now on
        assert float(after["trial"].steps) == 0 and after["trial"].last.tolist() == [not own for own in refused]


def test_a_refused_modality_is_left_alone():
    record, model, params, state, batch = make_case(**BY_CHANCE)
    hyper = {name: jnp.float32(value) for name, value in record.hyper.items()}
    slots = model.embed(params["model"], batch.inputs, batch.present)
    told = record.explain(state | begun(refused=[True, False]), hyper, model, params, batch, KEY)
    kept = {m: np.array_equal(told["edited"][m].values, slots[m].values) for m in slots}
    assert kept == {"left": True, "right": False}
    assert record.infer is not None and record.verdicts is not None
    read = record.infer(state | begun(refused=[True, False]), hyper, model, params, slots)
    assert np.ptp(read["left"]) == 0 and np.ptp(read["right"]) > 0.01  # nor are groups inferred from it
    assert record.verdicts(state | begun(refused=[True, False]), sorted(slots))["left"][REFUSED]


def test_the_trial_measures_how_often_edits_of_all_modalities_turn_the_prediction():
    every = {"identify": "gradient", "intervention": "gradient", "together": 1.0, "size": 1.0}
    original, _, edited = outputs(**every)
    turned = np.argmax(original.logits, -1) != np.argmax(edited.logits, -1)
    _, _, _, after = evaluate({"trust": 1.0}, **every)
    expected = np.average(turned, weights=WEIGHT)
    assert 0 < expected < 1 and float(after["trial"].turned) == pytest.approx(expected, abs=1e-6)
    assert float(after["trial"].steps) == 1
    _, _, _, later = evaluate({"trust": 1.0}, state=after | {"trial": after["trial"]._replace(turned=jnp.zeros(()), steps=jnp.float32(99))}, **every)
    assert float(later["trial"].turned) == pytest.approx(cimrl.MEMORY * expected, abs=1e-6)


@pytest.mark.parametrize("economy", [False, True])
def test_contrastive_invariance_is_the_equation(economy):
    options = {"economy": economy, "intervention": "mask"}  # which draws no donor
    _, metrics, _, _ = evaluate({"tau": 0.4, "together": 1.0}, **options)
    original, view, edited = outputs(**options)
    view = edited if economy else view
    z, other = (x.codes["projection"] / np.linalg.norm(x.codes["projection"], axis=1, keepdims=True) for x in (original, view))
    rows = np.zeros(ROWS)
    for i in range(ROWS):
        near = np.exp(z[i] @ other[i] / 0.4)
        rest = sum(np.exp(z[i] @ z[j] / 0.4) for j in range(ROWS) if j != i and WEIGHT[j] > 0)
        rows[i] = -np.log(near / (near + rest))
    assert float(metrics["l_ci"]) == pytest.approx(mean(rows), rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"ortho": "correlation"}, {"error_weight": True}, {"detach_heads": False}])
def test_disentanglement_is_the_equation(options):
    hyper = {"alpha": 0.7, "beta": 1.3, "gamma": 0.4, "lam": 0.9}
    _, metrics, _, _ = evaluate(hyper, **options)
    original, _, _ = outputs(**options)
    present = {m: np.asarray(x, np.float64) for m, x in make_case()[-1].present.items()}
    heads = {m: nll(original.heads[m]) for m in present}
    weight: np.ndarray = WEIGHT
    if options.get("error_weight"):
        biased = (heads["left"] + heads["right"]) / 2
        weight = WEIGHT * biased / (biased + nll(original.logits))
    total = 1.3 * mean(nll(original.heads["shared"]), weight) + 0.4 * mean(nll(original.heads["combined"]), weight)
    for m, here in present.items():
        total += 0.7 * mean(heads[m], weight * here)
        code, shared = original.codes[m], original.codes["shared"]
        if options.get("ortho") == "correlation":
            share = WEIGHT * here / (WEIGHT * here).sum()
            a, b = ((x - share @ x) / np.sqrt(share @ (x - share @ x) ** 2) for x in (code, shared))
            total += 0.9 * np.mean(((a * share[:, None]).T @ b) ** 2)
        else:
            cosine = (code * shared).sum(1) / np.maximum(np.linalg.norm(code, axis=1) * np.linalg.norm(shared, axis=1), 1e-9)
            total += 0.9 * mean(cosine**2, WEIGHT * here)
    assert float(metrics["l_md"]) == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("reverse", [False, True])
def test_intervention_is_the_equation(reverse):
    options = {"intervention": "mask", "kl_reverse": reverse}  # masking draws nothing at random
    _, metrics, _, _ = evaluate({"mu": 0.6, "nu": 1.7, "together": 1.0}, **options)
    original, _, edited = outputs(**options)
    before, after = (scipy.special.log_softmax(x.logits, axis=1) for x in (original, edited))
    p, q = (before, after) if reverse else (after, before)
    expected = 0.6 * mean((np.exp(p) * (p - q)).sum(1)) + 1.7 * mean(nll(edited.logits))
    assert float(metrics["l_if"]) == pytest.approx(expected, rel=1e-4)
    assert np.abs(before - after).max() > 0.01


def test_stopping_one_side_of_the_kl_leaves_the_others_gradient():
    only = {**NONE, "w_if": 1.0, "mu": 1.0, "nu": 0.0}
    found = {stop: evaluate(only, intervention="mask", kl_stop=stop) for stop in ("none", "original", "edited")}
    assert len({round(loss, 5) for loss, _, _, _ in found.values()}) == 1
    gradients = {stop: gradient["model"] for stop, (_, _, gradient, _) in found.items()}
    both = jax.tree.map(jnp.add, gradients["original"], gradients["edited"])
    tiny.assert_close(gradients["none"], both, rtol=1e-3, atol=1e-6)
    assert np.asarray(gradients["original"]["blank"]["left"]).any()
    assert not np.asarray(gradients["edited"]["blank"]["left"]).any()


@pytest.mark.parametrize("detached", [True, False])
def test_detached_heads_do_not_train_the_encoders(detached):
    only = {**NONE, "w_md": 1.0, "beta": 0.0, "gamma": 0.0, "lam": 0.0}
    _, _, gradient, _ = evaluate(only, detach_heads=detached)
    for m in ("left", "right"):
        assert np.asarray(gradient["model"]["heads"][m]).any()
        assert np.asarray(gradient["model"]["inward"][m]).any() != detached


def test_the_mask_embedding_learns_only_where_it_is_used():
    for intervention in ("mask", "mean"):
        _, _, gradient, _ = evaluate(intervention=intervention)
        assert all(x.any() == (intervention == "mask") for x in tiny.arrays(gradient["model"]["blank"]))


def test_conflicting_examples_weigh_more():
    record, model, params, state, batch = make_case()
    _, plain, _, _ = evaluate({"conflict_weight": 1.0})
    _, raised, _, _ = evaluate({"conflict_weight": 4.0})
    slots = model.embed(params["model"], batch.inputs, batch.present)
    misread = np.zeros(ROWS)
    for m, own in slots.items():
        reader = params["method"][m]
        hidden = np.maximum(np.asarray(own.values) @ reader["inner"] + reader["inner_bias"], 0)
        each = hidden @ np.asarray(reader["outer"]) + reader["outer_bias"]
        valid = np.asarray(own.mask)
        logits = (each * valid[..., None]).sum(1) / np.maximum(valid.sum(1), 1)[:, None]
        misread += (1 - scipy.special.softmax(logits, axis=1)[np.arange(ROWS), batch.label]) / 2
    original, _, _ = outputs()
    assert float(plain["l_ce"]) == pytest.approx(mean(nll(original.logits)), rel=1e-4)
    assert float(raised["l_ce"]) == pytest.approx(mean(nll(original.logits), WEIGHT * (1 + 3 * misread)), rel=1e-4)
    assert raised["l_ci"] == plain["l_ci"]


@pytest.mark.parametrize(("identify", "intervention"), [*itertools.product(typing.get_args(editor.Identify), typing.get_args(editor.Intervention))])
def test_every_way_to_identify_goes_with_every_intervention(identify, intervention):
    record, model, params, state, batch = make_case(identify=identify, intervention=intervention)
    hyper = {name: jnp.float32(value) for name, value in record.hyper.items()}
    told = record.explain(state, hyper, model, params, batch, KEY)
    slots = model.embed(params["model"], batch.inputs, batch.present)
    for m, own in slots.items():
        mask = np.asarray(own.mask)
        assert told["edited"][m].values.shape == own.values.shape and np.isfinite(told["edited"][m].values).all()
        assert (np.asarray(told["evidence"][m]) >= 0).all() and not np.asarray(told["evidence"][m])[~mask].any()
        assert set(np.unique(told["chosen"][m])) <= {0.0, 1.0} and not np.asarray(told["chosen"][m])[~mask].any()
    run = record.stages[0].loss
    assert run is not None
    loss, (after, metrics) = run(state, hyper, model, params, batch, KEY)
    assert np.isfinite(loss) and all(np.isfinite(x).all() for x in tiny.arrays((after, metrics)))


def test_economy_never_perturbs():
    record, model, params, state, batch = make_case(economy=True)
    hyper = {name: jnp.float32(value) for name, value in record.hyper.items()}
    loss = record.stages[0].loss
    assert loss is not None and loss(state, hyper, model._replace(perturb=None), params, batch, KEY)[0] > 0  # type: ignore[arg-type]


def test_the_first_pass_through_the_model_is_the_forward_pass():
    _, model, params, _, batch = make_case()
    original, _, _ = outputs()
    np.testing.assert_allclose(base.forward(model, params, batch, None).logits, original.logits, rtol=1e-5)
