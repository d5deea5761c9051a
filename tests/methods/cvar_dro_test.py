"""CVaR against its linear program, solved by SciPy, and against the package `dro`."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from cimrl_jax.errors import UserError
from cimrl_jax.losses import cross_entropy
from cimrl_jax.methods import base
from cimrl_jax.methods.cvar_dro import worst_mean
from cimrl_jax.train.step import init_params
from tests import tiny

ALPHAS = [0.03, 0.1, 0.25, 0.5, 0.77, 1.0]


def solve(values, share, alpha):
    """`min_eta eta + sum_i share_i max(values_i - eta, 0) / alpha` (Rockafellar & Uryasev 2000): the optimum, and its derivative by the values."""
    n = len(values)
    cost = np.concatenate([[1.0], share / alpha])  # eta, then the excesses u_i >= values_i - eta
    above = np.concatenate([-np.ones((n, 1)), -np.eye(n)], axis=1)
    found = scipy.optimize.linprog(cost, A_ub=above, b_ub=-values, bounds=[(None, None)] + [(0, None)] * n)
    assert found.status == 0
    return found.fun, -found.ineqlin.marginals


@pytest.mark.parametrize("alpha", ALPHAS)
def test_value_and_gradient_are_those_of_the_linear_program(alpha):
    rng, differentiated = np.random.default_rng(0), jax.jit(jax.value_and_grad(worst_mean))
    for _ in range(20):
        values, weight = rng.exponential(size=13), rng.uniform(0.2, 3.0, 13)
        weight[rng.random(13) < 0.2] = 0.0
        value, q = differentiated(jnp.float32(values), jnp.float32(weight), jnp.float32(alpha))
        expected, worst = solve(values, weight / weight.sum(), alpha)
        assert value == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(q, worst, atol=1e-5)
        assert (np.asarray(q)[weight == 0] == 0).all()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_equal_weights_agree_with_the_package_dro(alpha):
    torch, package = pytest.importorskip("torch"), importlib.util.find_spec("dro")
    if package is None or package.origin is None:
        pytest.skip("dro is not installed")
    # The package's __init__ imports solvers and boosted trees; the one file needs torch only.
    loader = importlib.machinery.SourceFileLoader("fdro_utils", str(pathlib.Path(package.origin).parent / "neural_model" / "fdro_utils.py"))
    module = types.ModuleType(loader.name)
    loader.exec_module(module)
    reference = module.RobustLoss(size=alpha, reg=0.0, geometry="cvar")
    rng = np.random.default_rng(1)
    for _ in range(10):
        logits, label = rng.normal(size=(13, 3)).astype(np.float32), rng.integers(0, 3, 13)
        outputs = torch.tensor(logits, requires_grad=True)
        expected = reference(outputs, torch.tensor(label))
        expected.backward()
        own = jax.value_and_grad(lambda z, y=label: worst_mean(cross_entropy(z, jnp.asarray(y)), jnp.ones(13), alpha))
        value, gradient = own(jnp.asarray(logits))
        assert value == pytest.approx(expected.item(), rel=1e-5)
        np.testing.assert_allclose(gradient, outputs.grad.numpy(), atol=1e-5)


def loss_of(batch, **options):
    record, model = tiny.method("cvar_dro", **options), tiny.shallow(2)
    params, state = init_params(jax.random.key(0), model=model, method=record, spec=tiny.spec(tiny.source()))
    hyper = {name: jnp.float32(value) for name, value in record.hyper.items()}
    stage_loss = record.stages[0].loss
    assert stage_loss
    loss, _ = stage_loss(state, hyper, model, params, batch, jax.random.key(1))
    return loss, cross_entropy(base.forward(model, params, batch, None).logits, batch.label)


def test_the_method_takes_the_worst_of_the_batch():
    batch = tiny.batch(rows=slice(8))
    for alpha, count in ((0.1, 1), (0.25, 2), (0.5, 4), (1.0, 8)):
        loss, losses = loss_of(batch, alpha=alpha)
        assert loss == pytest.approx(np.sort(losses)[-count:].mean(), rel=1e-5)
    three, losses = loss_of(batch, alpha=0.3)  # 2.4 examples
    worst = np.sort(losses)[::-1]
    assert three == pytest.approx((worst[0] + worst[1] + 0.4 * worst[2]) / 2.4, rel=1e-5)


def test_a_batch_without_weight_costs_nothing():
    assert worst_mean(jnp.full(4, jnp.nan), jnp.zeros(4), 0.1) == 0


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_a_share_that_is_none_is_refused(alpha):
    with pytest.raises(UserError, match=r"method\.cvar_dro\.alpha: got .*above 0 and at most 1"):
        tiny.method("cvar_dro", alpha=alpha)
