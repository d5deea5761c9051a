"""What training is fed: the rows of the order, and no group label that was not asked for."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from cimrl_jax.data.pipeline import Order
from cimrl_jax.data.source import ArraySource
from cimrl_jax.methods import base
from cimrl_jax.train import feed as feeding
from tests import tiny


@dataclasses.dataclass(frozen=True)
class OnDisk:
    """The same rows, to be loaded on demand."""

    whole: ArraySource
    regions: None = None
    arrays: None = None

    @property
    def label(self):
        return self.whole.label

    @property
    def group(self):
        return self.whole.group

    def __len__(self):
        return len(self.whole)

    def load(self, rows):
        return self.whole.load(rows)


@pytest.mark.parametrize("name", ["erm", "group_dro"])
@pytest.mark.parametrize("resident", ["yes", "no"])
def test_members_are_fed_the_rows_of_their_order_and_groups_only_where_declared(name, resident):
    source = tiny.source()
    program = tiny.program(tiny.method(name), source, seeds=(0, 5), resident=resident)
    data = tiny.feed(program)(4, 2)
    if resident == "yes":
        columns, rows = data
        batches = jax.tree.map(lambda x: np.asarray(x)[np.asarray(rows)], columns)
    else:
        batches = jax.tree.map(np.asarray, data)
    weights = 1 / np.bincount(source.group)[source.group] if name == "group_dro" else None
    for member, seed in enumerate(program.seeds):
        expected = Order(len(source), 4, seed, weights=weights).rows(4, 2)
        np.testing.assert_array_equal(batches.index[:2, member], expected)
        np.testing.assert_array_equal(batches.label[:2, member], source.label[expected])
        np.testing.assert_array_equal(batches.group[:2, member], source.group[expected] if name == "group_dro" else -1)
        np.testing.assert_array_equal(batches.weight[:2, member], 1)
        for m in source.inputs:
            np.testing.assert_array_equal(batches.inputs[m][:2, member], source.inputs[m][expected])
            np.testing.assert_array_equal(batches.present[m][:2, member], source.present[m][expected])


def test_streamed_and_resident_data_train_the_same(tmp_path):
    own = tiny.source()
    program = tiny.program(tiny.method("erm"), own)
    ways = {"resident": program, "streamed": dataclasses.replace(program, resident="no")}
    ways["loaded"] = dataclasses.replace(program, source=OnDisk(own))
    found = {name: tiny.train(own, tmp_path / name) for name, own in ways.items()}
    assert not ways["loaded"].feed().resident
    for name in ("streamed", "loaded"):
        tiny.assert_close(found[name].final.params, found["resident"].final.params, rtol=1e-6, atol=1e-7)


def test_data_that_is_too_large_is_not_held_on_the_device(monkeypatch):
    program = tiny.program(tiny.method("erm"))
    assert program.feed().resident
    monkeypatch.setattr(feeding, "RESIDENT_BYTES", 100)
    assert not program.feed().resident
    assert dataclasses.replace(program, resident="yes").feed().resident


def test_class_balanced_sampling_draws_the_classes_equally_often():
    own = tiny.source(40)
    own.label[:] = np.arange(40) < 4
    erm = tiny.method("erm")
    stage = erm.stages[0]._replace(draw=base.balanced("class"))
    program = tiny.program(erm._replace(stages=(stage,)), own, batch_size=50, chunk=20, seeds=(0,))
    columns, rows = tiny.feed(program)(0, 20)
    assert np.mean(np.asarray(columns.label)[np.asarray(rows)]) == pytest.approx(0.5, abs=0.05)
