"""The PyTorch twin does the same work: from our parameters, batches and random numbers it comes to our losses, metrics, memories and parameters."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="the twin is PyTorch's; install the extra 'parity'")
ROOT = pathlib.Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(ROOT))  # a benchmark is a script beside its own modules
twin: Any = importlib.import_module("twin.sides")

STEPS = 3
SIZE = twin.Size("tiny", batch=8, dim=16, heads=2, depth=1, text_depth=0, image=16, patch=8, words=8, vocabulary=40)
RECIPE = twin.twin_step.Recipe(learning_rate=3e-3, weight_decay=1e-2, steps=8, warmup=0.25, clip_norm=0.5)
HYPER = {"skill": -2.0, "warmup": 0.1}
"""Edits count from the first step on, the losses on them from the second."""


@pytest.fixture(scope="module")
def steps():
    """Our jitted step of each method, compiled once."""
    made = {}

    def get(method):
        if method not in made:
            hyper = HYPER if method == "cimrl" else {}
            side = twin.ours(method, SIZE, RECIPE, **hyper)
            made[method] = side, jax.jit(side.step)
        return made[method]

    return get


def favour(state, kind):
    """The state in which every modality that has this edit uses it."""
    first = {"image": ("donor", "reflect", "exchange", "mix"), "text": ("rewrite", "splice", "mix")}
    quality = {m: jnp.asarray([4.0 * (own == kind) for own in kinds]) for m, kinds in first.items()}
    return {**state, "editor": {**state["editor"], "quality": quality}}


def meaning(name, rows):
    """Which rows of a parameter have a gradient: not a key's bias, which softmax cancels. AdamW would make steps of its rounding errors."""
    parts = {"query_key_value.bias": (1, 3), "key_value.bias": (0, 2)}
    part, of = next((own for end, own in parts.items() if name.endswith(f".{end}")), (-1, 1))
    return np.arange(rows) // (rows // of) != part


@pytest.mark.parametrize("method, kind", [("erm", ""), *(("cimrl", kind) for kind in ("rewrite", "splice", "donor", "reflect", "exchange", "mix"))])
def test_three_steps_come_to_the_same_losses_and_parameters(steps, method, kind):
    side, step = steps(method)
    state = dataclasses.replace(side.state, method=favour(side.state.method, kind)) if kind else side.state
    side = side._replace(state=state)
    trainer, twin_state = twin.twin(method, SIZE, side, RECIPE, **(HYPER if method == "cimrl" else {}))
    made = twin.batches(SIZE)
    for _ in range(STEPS):
        batch = next(made)
        draws = jax.tree.map(lambda x: torch.tensor(np.asarray(x)), twin.our_draws(state, SIZE)) if method == "cimrl" else {}
        state, metrics = step(state, batch)
        twin_state, theirs = trainer.step(*twin.as_torch(batch), draws, twin_state)
        for name, value in theirs.items():
            np.testing.assert_allclose(value, metrics[name], atol=1e-4, rtol=1e-4, err_msg=name)
    before = list(twin.carried(side.state.params, trainer.loss))
    for old, new, (name, own) in zip(before, twin.carried(state.params, trainer.loss), trainer.loss.named_parameters(), strict=True):
        means = meaning(name, len(new))
        assert np.linalg.norm((own.detach().numpy() - new)[means]) <= 1e-3 * np.linalg.norm(new[means]), name
        assert method == "erm" or (new != old).any(), f"{name} was not trained"
