"""Occlusion against a loop over slots, and what the scores say of a reader whose cause and shortcut are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.counterfactual import scores
from cimrl_jax.types import Slots, SlotSpec

RNG = np.random.default_rng(0)
COUNTS = {"a": 3, "b": 20}  # more than fit into one pass
BLANK = {m: jnp.asarray(RNG.normal(size=4), jnp.float32) for m in COUNTS}
WEIGHTS = {m: RNG.normal(size=(n, 4)).astype(np.float32) for m, n in COUNTS.items()}


def make_slots(rows=5):
    made = {}
    for m, n in COUNTS.items():
        mask = np.arange(n) < RNG.integers(1, n + 1, (rows, 1))
        made[m] = Slots(jnp.asarray(RNG.normal(size=(rows, n, 4)), jnp.float32), jnp.asarray(mask))
    return made


def measure(slots):
    parts = {m: jnp.sum(jnp.tanh(jnp.where(s.mask[..., None], s.values, 0.0) * WEIGHTS[m]), axis=(1, 2)) for m, s in slots.items()}
    return parts | {"both": parts["a"] * parts["b"]}


@pytest.mark.parametrize("together", [1, 4, 16, 100])
def test_occlusion_is_a_loop_over_slots(monkeypatch, together):
    monkeypatch.setattr(scores, "TOGETHER", together)
    slots = make_slots()
    whole, lost = jax.jit(lambda s: scores.occlude(measure, s, BLANK))(slots)
    for m, n in COUNTS.items():
        for j in (0, 1, n - 1):
            values = np.array(slots[m].values)
            values[:, j] = np.where(np.asarray(slots[m].mask)[:, j, None], np.asarray(BLANK[m]), values[:, j])
            changed = measure({**slots, m: Slots(jnp.asarray(values), slots[m].mask)})
            for part, before in whole.items():
                np.testing.assert_allclose(lost[m][part][:, j], before - changed[part], atol=1e-4)
        assert lost[m]["both"].shape == slots[m].mask.shape


def test_the_margin_is_the_targets_logit_less_the_others_mean():
    logits, target = RNG.normal(size=(4, 3)).astype(np.float32), np.array([0, 1, 2, 1])
    expected = [row[t] - np.delete(row, t).mean() for row, t in zip(logits, target, strict=True)]
    np.testing.assert_allclose(scores.margin(jnp.asarray(logits), jnp.asarray(target)), expected, atol=1e-6)


def test_what_speaks_through_the_bias_path_too_is_left_out():
    own, biased, mask = (
        jnp.asarray([[4.0, 4, 1, 9], [0, 0, 0, 0]]),
        jnp.asarray([[0.0, 30, 10, 7], [1, 1, 1, 1]]),
        jnp.asarray([[1, 1, 1, 0]] * 2, bool),
    )
    np.testing.assert_allclose(scores.beyond(own, biased, mask), [[4 / 9, 0, 0, 0], [0, 0, 0, 0]], atol=1e-6)


def test_attention_is_a_distribution_over_valid_slots():
    specs = {m: SlotSpec(kind="slots", count=n, width=4, element=4) for m, n in COUNTS.items()}
    params, slots = scores.init_attention(jax.random.key(0), specs, num_classes=3, dim=6), make_slots()
    masks = {"a": jnp.zeros_like(slots["a"].mask), "b": slots["b"].mask}  # "a" is absent
    logits, weights = scores.attend(params, jnp.asarray(RNG.normal(size=(5, 6)), jnp.float32), slots, masks)
    assert logits.shape == (5, 3) and not np.asarray(weights["a"]).any()
    np.testing.assert_allclose(weights["b"].sum(-1), 1.0, atol=1e-5)
    assert not np.asarray(weights["b"])[~np.asarray(masks["b"])].any()
    content = jnp.einsum("bn,bnd->bd", weights["b"], slots["b"].values)
    np.testing.assert_allclose(logits, content @ params["b"]["value"], atol=1e-4)
