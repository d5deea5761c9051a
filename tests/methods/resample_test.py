"""Resampling: what is drawn, and that the rest is plain training."""

from __future__ import annotations

import numpy as np
import pytest

from tests import tiny


def make_source():
    """37 rows of one class, three of the other; of the four groups one is empty."""
    own = tiny.source(40)
    own.label[:] = np.arange(40) >= 37
    own.group[:] = np.where(own.label == 1, 3, np.arange(40) >= 35)
    assert np.bincount(own.group).tolist() == [35, 2, 0, 3]
    return own


@pytest.mark.parametrize(("by", "expected"), [("group", [1 / 3, 1 / 3, 0, 1 / 3]), ("class", [35 / 74, 2 / 74, 0, 1 / 2])])
def test_batches_hold_every_group_or_class_equally_often(by, expected):
    own = make_source()
    program = tiny.program(tiny.method("resample", by=by), own, batch_size=50, chunk=40, seeds=(0,))
    _, rows = tiny.feed(program)(0, 40)
    drawn = np.asarray(rows).ravel()
    np.testing.assert_allclose(np.bincount(own.group[drawn], minlength=4) / len(drawn), expected, atol=0.04)
    assert len(set(drawn)) == 40  # every row of a group comes


def test_rows_of_one_group_are_equally_likely():
    own = make_source()
    program = tiny.program(tiny.method("resample"), own, batch_size=50, chunk=60, seeds=(0,))
    _, rows = tiny.feed(program)(0, 60)
    counts = np.bincount(np.asarray(rows).ravel())[own.group == 3]
    np.testing.assert_allclose(counts / counts.sum(), 1 / 3, atol=0.05)


def test_on_the_same_rows_it_is_erm():
    record, plain = tiny.method("resample"), tiny.method("erm")
    assert [stage.loss for stage in record.stages] == [stage.loss for stage in plain.stages]
    assert record.hyper == {}


def test_only_groups_need_groups():
    assert tiny.method("resample").needs_groups and not tiny.method("resample", by="class").needs_groups
