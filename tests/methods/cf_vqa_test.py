"""CF-VQA's effects and loss against the paper's equations in NumPy, and which part trains what."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cimrl_jax.errors import UserError
from cimrl_jax.methods import base
from tests import tiny

CLASSES, C = 3, 0.4
MODEL = tiny.shallow(CLASSES)
WEIGHT = np.array([1, 2, 0.5, 1, 1, 3, 0, 0], np.float32)
GRAPHS = [
    {"fusion": "sum"},
    {"fusion": "hm"},
    {"fusion": "sum", "biased": ("right",)},
    {"fusion": "hm", "branches": ("right",)},
]


def spec():
    return tiny.spec(tiny.source(classes=CLASSES), classes=CLASSES)


def make_case(**options):
    """(method, traced numbers, parameters with c = C, batch with weights in which "right" is absent now and then)."""
    record = tiny.method("cf_vqa", hidden=4, **options)
    own, _ = record.init(jax.random.key(1), spec())
    hyper = {"branch_weight": jnp.float32(0.7)}
    batch = tiny.batch(tiny.source(classes=CLASSES), weight=WEIGHT)
    louder = jax.tree.map(lambda x: 3 * x, own["branches"])  # branches that say something
    return record, hyper, {"model": MODEL.init(jax.random.key(0)), "method": {"branches": louder, "constant": jnp.float32(C)}}, batch


def evaluate(record, hyper, params, batch):
    """(loss, gradient)."""
    run = jax.value_and_grad(lambda p: record.stages[0].loss({}, hyper, MODEL, p, batch, jax.random.key(0)), has_aux=True)
    (loss, _), gradient = jax.jit(run)(params)
    return float(loss), gradient


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def fuse_by_hand(fusion, parts):
    if fusion == "sum":
        return np.log(sigmoid(sum(parts)))
    p = np.prod([sigmoid(z) for z in parts], axis=0)
    return np.log(p / (1 + p))


def by_hand(params, batch, constant=C, *, fusion, branches=("left", "right"), biased=()):
    """(Y treated, Y with the biased modalities' own paths only, each branch's logits)."""
    out = jax.tree.map(lambda x: np.asarray(x, np.float64), base.forward(MODEL, params, batch, None))
    z, treated, left = {}, {}, {}
    for m in branches:
        head = jax.tree.map(lambda x: np.asarray(x, np.float64), params["method"]["branches"][m])
        z[m] = np.maximum(out.codes[m] @ head["inner"] + head["inner_bias"], 0) @ head["outer"] + head["outer_bias"]
        treated[m] = np.where(np.asarray(batch.present[m])[:, None], z[m], constant)
        left[m] = treated[m] if m in (biased or branches) else np.full_like(z[m], constant)
    untreated = np.full_like(out.logits, constant)
    return fuse_by_hand(fusion, [out.logits, *treated.values()]), fuse_by_hand(fusion, [untreated, *left.values()]), z


def mean(values, weight=WEIGHT):
    return (values * weight).sum() / weight.sum()


def nll(logits, batch):
    return -scipy.special.log_softmax(logits, axis=1)[np.arange(len(WEIGHT)), np.asarray(batch.label)]


def between(total, direct):
    """The cross entropy that c is trained through."""
    return mean(-(scipy.special.softmax(total, axis=1) * scipy.special.log_softmax(direct, axis=1)).sum(1))


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_prediction_is_the_total_indirect_effect(graph):
    record, hyper, params, batch = make_case(**graph)
    assert record.predict is not None
    slots = MODEL.embed(params["model"], batch.inputs, batch.present)
    found = record.predict({}, hyper, MODEL, params, slots, MODEL.encode(params["model"], slots))
    total, direct, _ = by_hand(params, batch, **graph)
    np.testing.assert_allclose(found, total - direct, atol=1e-5)
    assert not np.asarray(batch.present["right"]).all()


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_loss_is_the_papers(graph):
    record, hyper, params, batch = make_case(**graph)
    loss, _ = evaluate(record, hyper, params, batch)
    total, direct, z = by_hand(params, batch, **graph)
    branches = sum(mean(nll(logits, batch), WEIGHT * np.asarray(batch.present[m])) for m, logits in z.items())
    assert loss == pytest.approx(mean(nll(total, batch)) + 0.7 * branches + between(total, direct), abs=1e-5)


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_constant_is_trained_by_the_direct_effect_alone_which_trains_nothing_else(graph):
    record, hyper, params, batch = make_case(**graph)
    _, gradient = evaluate(record, hyper, params, batch)
    total, _, _ = by_hand(params, batch, **graph)
    high, low = (between(total, by_hand(params, batch, C + step, **graph)[1]) for step in (1e-4, -1e-4))
    assert float(gradient["method"]["constant"]) == pytest.approx((high - low) / 2e-4, rel=1e-3, abs=1e-6)
    assert abs(high - low) / 2e-4 > 5e-4

    def classified(p):  # the loss without that term
        out = base.forward(MODEL, p, batch, None)
        paths = {m: (p["method"]["branches"][m], jax.lax.stop_gradient(out.codes[m])) for m in p["method"]["branches"]}
        z = {m: jax.nn.relu(x @ h["inner"] + h["inner_bias"]) @ h["outer"] + h["outer_bias"] for m, (h, x) in paths.items()}
        parts = [out.logits, *(jnp.where(batch.present[m][:, None], z[m], C) for m in z)]
        p_all = jnp.prod(jax.nn.sigmoid(jnp.stack(parts)), axis=0)
        y = jax.nn.log_sigmoid(sum(parts)) if graph["fusion"] == "sum" else jnp.log(p_all / (1 + p_all))

        def ce(logits, weight):
            picked = jax.nn.log_softmax(logits)[jnp.arange(len(WEIGHT)), batch.label]
            return -jnp.sum(picked * weight) / jnp.sum(weight)

        return ce(y, batch.weight) + sum(0.7 * ce(z[m], batch.weight * batch.present[m]) for m in z)

    expected = jax.jit(jax.grad(classified))(params)
    for part in (("model",), ("method", "branches")):
        ours, theirs = gradient, expected
        for name in part:
            ours, theirs = ours[name], theirs[name]
        tiny.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("detach", [True, False])
def test_branches_train_the_encoders_only_if_asked_to(detach):
    record, _, params, batch = make_case(detach=detach)
    gradients = [evaluate(record, {"branch_weight": jnp.float32(weight)}, params, batch)[1]["model"]["inward"] for weight in (0.0, 1.0)]
    moved = max(np.abs(x - y).max() for x, y in zip(*map(tiny.arrays, gradients), strict=True))
    assert (moved < 1e-7) if detach else (moved > 1e-3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"branches": ("lift",)}, r"branches names 'lift', .* did you mean 'left'\?"),
        ({"branches": ("left",), "biased": ("right",)}, r"biased names 'right', which is no modality of this data set with a branch"),
    ],
)
def test_a_modality_without_a_branch_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        tiny.method("cf_vqa", **options).init(jax.random.key(0), spec())
