"""The product-of-experts family against the papers' equations in NumPy, and what may and may not move the bias heads."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cimrl_jax.errors import UserError
from cimrl_jax.losses import cross_entropy, masked_mean
from cimrl_jax.methods import base
from tests import tiny

CLASSES = 3
MODEL = tiny.shallow(CLASSES)
WEIGHT = np.array([1, 2, 0.5, 1, 1, 3, 0, 0], np.float32)
FORMS = ["poe", "lmh", "rubi"]


def spec():
    return tiny.spec(tiny.source(classes=CLASSES), classes=CLASSES)


def make_case(**options):
    """(method, traced numbers, parameters none of which is 0, batch with weights in which "right" is absent now and then)."""
    record = tiny.method("poe", hidden=4, **options)
    own, _ = record.init(jax.random.key(1), spec())
    leaves, tree = jax.tree.flatten(own)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    own = jax.tree.unflatten(tree, [x + 0.5 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)])
    hyper = {name: jnp.float32(value) for name, value in {**record.hyper, "bias_weight": 0.7}.items()}
    batch = tiny.batch(tiny.source(classes=CLASSES), weight=WEIGHT)
    return record, hyper, {"model": MODEL.init(jax.random.key(0)), "method": own}, batch


def evaluate(record, hyper, params, batch):
    """(loss, gradient)."""
    run = jax.value_and_grad(lambda p: record.stages[0].loss({}, hyper, MODEL, p, batch, jax.random.key(0)), has_aux=True)
    (loss, _), gradient = jax.jit(run)(params)
    return float(loss), gradient


def mean(values, weight):
    return (values * weight).sum() / weight.sum()


def nll(logits, label):
    return -scipy.special.log_softmax(logits, axis=1)[np.arange(len(label)), label]


def loss_by_hand(form, names, hyper, params, batch):
    out = jax.tree.map(lambda x: np.asarray(x, np.float64), base.forward(MODEL, params, batch, None))
    own, label = jax.tree.map(lambda x: np.asarray(x, np.float64), params["method"]), np.asarray(batch.label)
    joint, learned, penalty = scipy.special.log_softmax(out.logits, axis=1), 0.0, 0.0
    masked = out.logits.copy()
    for m in names:
        head, here = own["heads"][m], np.asarray(batch.present[m])
        bias = np.maximum(out.codes[m] @ head["inner"] + head["inner_bias"], 0) @ head["outer"] + head["outer_bias"]
        bias[~here] = 0.0
        said = scipy.special.log_softmax(bias, axis=1)
        if form == "lmh":
            features = np.concatenate([out.codes["left"], out.codes["right"], out.codes["shared"]], axis=1)
            said = np.log1p(np.exp(features @ own["gates"][m]["kernel"] + own["gates"][m]["bias"])) * said
            p = scipy.special.softmax(said, axis=1)
            penalty += mean(-(p * np.log(p)).sum(1), WEIGHT * here)
        joint += said
        masked[here] *= 1 / (1 + np.exp(-bias[here]))
        told = bias @ own["classifiers"][m]["kernel"] + own["classifiers"][m]["bias"] if form == "rubi" else bias
        learned += mean(nll(told, label), WEIGHT * here)
    main = nll(masked if form == "rubi" else joint, label)
    return mean(main, WEIGHT) + float(hyper["bias_weight"]) * learned + float(hyper["entropy_weight"]) * penalty


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("biased", [(), ("right",)])
def test_the_loss_is_the_papers(form, biased):
    record, hyper, params, batch = make_case(form=form, biased=biased)
    loss, _ = evaluate(record, hyper, params, batch)
    assert not np.asarray(batch.present["right"]).all()
    assert loss == pytest.approx(loss_by_hand(form, biased or ("left", "right"), hyper, params, batch), abs=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_heads_own_loss_moves_no_encoder_and_only_rubi_teaches_them_by_the_other(form):
    record, hyper, params, batch = make_case(form=form)
    _, with_own = evaluate(record, hyper, params, batch)
    _, without = evaluate(record, {**hyper, "bias_weight": jnp.float32(0.0)}, params, batch)
    tiny.assert_close(with_own["model"], without["model"], rtol=1e-5, atol=1e-7)
    assert max(np.abs(x).max() for x in tiny.arrays(with_own["model"])) > 1e-2
    moved = max(np.abs(x).max() for x in tiny.arrays(without["method"]["heads"]))
    assert (moved > 1e-3) if form == "rubi" else moved == 0
    assert min(np.abs(x).max() for x in tiny.arrays(with_own["method"])) > 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_heads_that_know_nothing_leave_plain_cross_entropy(form):
    record, hyper, params, batch = make_case(form=form, biased=("left",))
    head = params["method"]["heads"]["left"]
    flat = {"outer": jnp.zeros_like(head["outer"]), "outer_bias": jnp.full(CLASSES, 40.0)}  # sigmoid(40) = 1, softmax uniform
    silent = {**params, "method": {**params["method"], "heads": {"left": {**head, **flat}}}}
    _, gradient = evaluate(record, {**hyper, "entropy_weight": jnp.float32(0.0)}, silent, batch)

    def plain(model):
        logits = base.forward(MODEL, {**silent, "model": model}, batch, None).logits
        return masked_mean(cross_entropy(logits, batch.label), batch.weight)

    tiny.assert_close(gradient["model"], jax.grad(plain)(silent["model"]), rtol=1e-4, atol=1e-6)


def test_what_a_bias_head_is_sure_of_teaches_the_model_nothing():
    record, hyper, params, batch = make_case(biased=("left",))
    head = params["method"]["heads"]["left"]
    sure = {"outer": jnp.zeros_like(head["outer"]), "outer_bias": jnp.array([60.0, 0.0, 0.0])}
    params = {**params, "method": {"heads": {"left": {**head, **sure}}}}
    batch = dataclasses.replace(batch, label=jnp.zeros_like(batch.label))
    _, gradient = evaluate(record, hyper, params, batch)
    assert max(np.abs(x).max() for x in tiny.arrays(gradient["model"])) < 1e-8


def test_a_modality_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"biased names 'lift', which is no modality of this data set; did you mean 'left'\?"):
        tiny.method("poe", biased=("lift",)).init(jax.random.key(0), spec())
