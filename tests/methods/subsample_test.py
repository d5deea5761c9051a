"""Subsampling: which rows are left, and that they train as ERM does."""

from __future__ import annotations

import numpy as np
import pytest

from cimrl_jax.types import Population
from tests import tiny


def make_source():
    """Groups of 20, 6, 0 and 4 rows; classes of 26 and 4."""
    own = tiny.source(30)
    own.group[:] = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [20, 6, 4]))
    own.label[:] = own.group // 2
    return own


def drawn(own, by, seed, group=None):
    record = tiny.method("subsample", by=by)
    draw = record.stages[0].draw
    assert draw is not None
    return draw(Population(seed, own.label, own.group if group is None else group, {}, {}))


@pytest.mark.parametrize(("by", "sizes"), [("group", [4, 4, 0, 4]), ("class", [4, 4])])
def test_every_group_or_class_is_as_large_as_the_smallest(by, sizes):
    own = make_source()
    for seed in range(5):
        rows, weights = drawn(own, by, seed)
        assert weights is None and len(set(rows)) == len(rows)
        assert np.bincount((own.group if by == "group" else own.label)[rows]).tolist() == sizes


def test_each_row_of_a_group_is_kept_equally_often():
    own = make_source()
    kept = np.mean([np.isin(np.arange(30), drawn(own, "group", seed).rows) for seed in range(600)], axis=0)
    for group, share in ((0, 4 / 20), (1, 4 / 6), (3, 1.0)):
        np.testing.assert_allclose(kept[own.group == group], share, atol=0.08)


def test_the_seed_decides_and_the_groups_names_do_not():
    own, names = make_source(), np.array([2, 3, 1, 0], np.int32)
    first = drawn(own, "group", 7).rows
    np.testing.assert_array_equal(drawn(own, "group", 7).rows, first)
    np.testing.assert_array_equal(drawn(own, "group", 7, group=names[own.group]).rows, first)
    assert set(drawn(own, "group", 8).rows) != set(first)


def test_an_epoch_shows_every_row_of_a_members_own_subset_once():
    own = make_source()
    program = tiny.program(tiny.method("subsample"), own, chunk=3, seeds=(0, 1))
    _, rows = tiny.feed(program)(0, 3)  # 3 batches of 4 are an epoch of 12 rows
    for member in (0, 1):
        assert sorted(np.asarray(rows)[:, member].ravel()) == drawn(own, "group", member).rows.tolist()


def test_a_class_with_one_example_leaves_one_of_each():
    own = make_source()
    own.label[:] = np.arange(30) == 17
    rows = drawn(own, "class", 0).rows
    assert len(rows) == 2 and 17 in rows


def test_on_the_same_rows_it_is_erm_and_only_groups_need_groups():
    record, plain = tiny.method("subsample"), tiny.method("erm")
    assert [stage.loss for stage in record.stages] == [stage.loss for stage in plain.stages]
    assert record.needs_groups and not tiny.method("subsample", by="class").needs_groups
