"""Sources give their rows, and count them."""

from __future__ import annotations

import numpy as np
import pytest

from cimrl_jax.data.source import ArraySource, Dataset, Source, class_counts, group_counts
from cimrl_jax.errors import UserError
from cimrl_jax.types import Feature


def _source() -> ArraySource:
    label, group = np.array([0, 1, 1, 2], np.int32), np.array([0, 3, -1, 4], np.int32)
    return ArraySource(inputs={"a": np.arange(8, dtype=np.float32).reshape(4, 2), "b": np.arange(4, dtype=np.int32)}, label=label, group=group)


def test_rows_are_loaded_in_the_order_asked_for_and_repeats_are_allowed():
    source = _source()
    assert isinstance(source, Source)
    records = source.load(np.array([3, 0, 3]))
    assert records["inputs"]["a"].tolist() == [[6, 7], [0, 1], [6, 7]] and records["inputs"]["b"].tolist() == [3, 0, 3]
    assert records["present"]["a"].tolist() == [True] * 3
    every = source.load(np.arange(4))
    for part, columns in source.arrays.items():
        for name, values in columns.items():
            assert (every[part][name] == values).all()


def test_counts():
    assert class_counts(_source(), 4) == (1, 2, 1, 0)
    assert group_counts(_source(), 6) == (1, 0, 0, 1, 1, 0), "unknown groups are not counted"


def test_columns_of_unequal_length_are_refused():
    label = np.zeros(3, np.int32)
    with pytest.raises(UserError, match="3 labels but 2 rows of a"):
        ArraySource(inputs={"a": np.zeros((2, 2), np.float32)}, label=label, group=label)
    with pytest.raises(UserError, match="2 rows of present of a"):
        ArraySource(inputs={"a": np.zeros((3, 2), np.float32)}, label=label, group=label, present={"a": np.ones(2, bool)})


def test_a_missing_split_is_named_with_those_there_are():
    dataset = Dataset("toy", {"b": Feature("table", (), "int32")}, ("x", "y", "z"), ("g",), {"train": _source(), "test": _source()})
    assert dataset.split("train") is dataset.splits["train"]
    with pytest.raises(UserError, match="no split 'val'; it has train, test"):
        dataset.split("val")
