"""Data that lacks something never gives NaN, whatever the method: a group that training lacks, batches without some group, a class with one example."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cimrl_jax import options
from tests import tiny


def make_source():
    """13 examples of class 0, 10 of class 1, one of class 2; four of the six groups are empty in training, or nearly."""
    own = tiny.source(24, classes=3)
    own.label[:] = np.where(np.arange(24) == 7, 2, np.arange(24) > 12)
    own.group[:] = 2 * own.label + (np.arange(24) % 9 == 0)
    assert np.bincount(own.label).tolist() == [12, 11, 1]
    assert np.bincount(own.group, minlength=6).tolist() == [10, 2, 10, 1, 1, 0]
    return own


@pytest.mark.parametrize("name", options.known("method"))
def test_scarce_data_leaves_all_finite(name, tmp_path):
    trained = tiny.train(tiny.program(tiny.method(name), make_source(), classes=3, steps=12), tmp_path)  # batches of 4
    assert all(np.isfinite(x).all() for x in tiny.arrays((trained.final.params, trained.final.opt_state, trained.final.method)))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses and np.isfinite(losses).all()
