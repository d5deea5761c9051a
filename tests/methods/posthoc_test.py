"""The model is ERM's to the bit of its gradient, and the heads' say is subtracted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cimrl_jax.methods import base
from tests import tiny

CLASSES = 3
MODEL = tiny.shallow(CLASSES)


def make_case():
    record = tiny.method("posthoc", hidden=4)
    own, state = record.init(jax.random.key(1), tiny.spec(tiny.source(classes=CLASSES), classes=CLASSES))
    batch = tiny.batch(tiny.source(classes=CLASSES), weight=np.array([1, 2, 0.5, 1, 1, 3, 0, 0], np.float32))
    return record, state, {"model": MODEL.init(jax.random.key(0)), "method": jax.tree.map(lambda x: 3 * x, own)}, batch


def test_the_model_moves_as_under_erm_and_the_heads_move_too():
    record, state, params, batch = make_case()
    hyper = {"strength": jnp.float32(1.0)}

    def gradient(loss):
        return jax.jit(jax.grad(lambda p: loss(state, hyper, MODEL, p, batch, jax.random.key(0))[0]))(params)

    ours, erm = gradient(record.stages[0].loss), gradient(base.erm_loss)
    tiny.assert_close(ours["model"], erm["model"], rtol=1e-6, atol=1e-8)
    assert max(np.abs(x).max() for x in tiny.arrays(ours["method"])) > 1e-2


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_prediction_is_the_models_less_the_heads(strength):
    record, state, params, batch = make_case()
    slots = MODEL.embed(params["model"], batch.inputs, batch.present)
    codes = MODEL.encode(params["model"], slots)
    own = (state, {"strength": jnp.float32(strength)}, MODEL, params, slots, codes)
    z, told = np.asarray(MODEL.decide(params["model"], codes).logits), np.zeros((8, CLASSES))
    for m, head in params["method"].items():
        b = np.maximum(codes[m] @ head["inner"] + head["inner_bias"], 0) @ head["outer"] + head["outer_bias"]
        told += np.where(np.asarray(batch.present[m])[:, None], b, 0.0)
    told = scipy.special.log_softmax(told, axis=1)
    assert not np.asarray(batch.present["right"]).all() and record.predict is not None
    np.testing.assert_allclose(record.predict(*own), scipy.special.log_softmax(z, axis=1) - strength * told, atol=1e-4)
    np.testing.assert_allclose(record.modes["factual"](*own), z, atol=1e-6)
    np.testing.assert_allclose(record.modes["bias_only"](*own), told, atol=1e-4)
