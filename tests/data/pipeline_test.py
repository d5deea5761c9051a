"""The order of reading is a law of (seed, batch number), and what is gathered is what the source holds."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import operator
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cimrl_jax.data.pipeline import Order, Rooms, evaluation_batches, evaluation_rows, gather, share, take
from cimrl_jax.data.source import ArraySource
from cimrl_jax.errors import UserError

ENGINES = ("grain", "numpy")


def _source(n: int = 23) -> ArraySource:
    rng = np.random.default_rng(0)
    inputs = {"image": rng.integers(0, 256, (n, 4, 4, 3), np.uint8), "text": rng.integers(0, 9, (n, 5), np.int32)}
    label = rng.integers(0, 2, n).astype(np.int32)
    return ArraySource(inputs=inputs, label=label, group=label * 2, present={"text": rng.random(n) < 0.5})


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=8, deadline=None)
@given(n=st.integers(1, 60), batch=st.integers(1, 11), seed=st.integers(0, 2**32 - 1))
def test_every_row_comes_once_an_epoch(engine, n, batch, seed):
    epochs = 3
    rows = Order(n, batch, seed, engine=engine).rows(0, -(-n * epochs // batch)).ravel()[: n * epochs].reshape(epochs, n)
    assert (np.sort(rows, 1) == np.arange(n)).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_epochs_and_seeds_differ_in_order(engine):
    epochs = {seed: Order(50, 10, seed, engine=engine).rows(0, 20).reshape(4, 50) for seed in (0, 1, 2)}
    flat = [tuple(epoch) for order in epochs.values() for epoch in order]
    assert len(set(flat)) == len(flat), "an epoch of one seed repeats another epoch, of it or of another seed"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("weighted", [False, True])
def test_resuming_at_any_batch_equals_the_straight_run(engine, weighted):
    weights = np.arange(1.0, 18.0) if weighted else None
    straight = Order(17, 4, 5, weights=weights, engine=engine).rows(0, 20)
    for first in range(0, 20, 3):
        assert (Order(17, 4, 5, weights=weights, engine=engine).rows(first, 20 - first) == straight[first:]).all()
    assert Order(17, 4, 5, weights=weights, engine=engine).rows(3, 0).shape == (0, 4)


def test_shuffling_is_uniform():
    # Where row 0 lands over 600 epochs of 6 rows: chi-square with 5 degrees of freedom, 99.9 % point 20.5.
    rows = Order(6, 6, 11).rows(0, 600)
    counts = np.bincount((rows == 0).argmax(1), minlength=6)
    assert ((counts - 100) ** 2 / 100).sum() < 20.5


def test_any_number_of_processes_sees_the_same_global_batches():
    rows = Order(31, 12, 1).rows(2, 5)
    for processes in (1, 2, 3, 4, 6, 12):
        shares = [share(rows, process, processes) for process in range(processes)]
        assert (np.concatenate(shares, -1) == rows).all()
        assert {part.shape for part in shares} == {(5, 12 // processes)}
    with pytest.raises(UserError, match="multiple of 5"):
        share(rows, 0, 5)


def test_weighted_rows_come_in_proportion():
    weights = np.array([0.0, 1.0, 2.0, 5.0, 0.0])
    rows = Order(5, 100, 3, weights=weights).rows(0, 200).ravel()
    observed = np.bincount(rows, minlength=5) / len(rows)
    expected = weights / weights.sum()
    assert (observed[weights == 0] == 0).all()
    # Four standard errors.
    assert (np.abs(observed - expected) <= 4 * np.sqrt(expected * (1 - expected) / len(rows))).all()


def test_the_orders_of_the_engines_are_frozen():
    # A checkpoint of an earlier version must go on with the same rows: these numbers may not change.
    assert Order(10, 5, 7, engine="numpy").rows(0, 2).tolist() == FROZEN["numpy"]
    assert Order(10, 5, 7, engine="grain").rows(0, 2).tolist() == FROZEN["grain"]
    assert Order(10, 5, 7, weights=np.arange(10.0)).rows(0, 2).tolist() == FROZEN["weights"]


FROZEN = {"numpy": [[8, 0, 7, 1, 3], [6, 2, 4, 5, 9]], "grain": [[7, 9, 0, 8, 4], [2, 5, 6, 3, 1]], "weights": [[8, 9, 8, 5, 5], [8, 3, 4, 4, 6]]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "0 rows"),
        ({"batch_size": 0}, "by 0"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**32}, "seed 4294967296"),
        ({"weights": np.ones(3)}, "4 finite numbers"),
        ({"weights": np.array([1, 1, -1, 1.0])}, "4 finite numbers"),
        ({"weights": np.zeros(4)}, "4 finite numbers"),
        ({"weights": np.array([1, np.nan, 1, 1])}, "4 finite numbers"),
    ],
)
def test_bad_orders_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Order(**({"n": 4, "batch_size": 2, "seed": 0} | arguments))


def test_without_grain_the_order_still_works_and_gathering_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    assert Order(10, 5, 7).rows(0, 2).tolist() == FROZEN["numpy"]
    with pytest.raises(UserError, match="pip install grain"):
        gather(_source(), np.arange(2), size=2)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [1, 16, 37])
def test_gathering_equals_taking_and_ends_in_zeros(threads, count):
    source = _source()
    rows = Order(23, count, 0).rows(0, 1)[0]
    found, expected = gather(source, rows, size=count + 5, threads=threads), take(source, rows)
    for path in (("inputs", "image"), ("inputs", "text"), ("present", "image"), ("present", "text"), ("label",), ("group",), ("index",), ("weight",)):
        whole, own = (np.asarray(functools.reduce(operator.getitem, path, tree)) for tree in (found, expected))
        assert whole.dtype == own.dtype and (whole[:count] == own).all() and not whole[count:].any() and len(whole) == count + 5
        assert not whole.ctypes.data % 64


def test_rooms_are_used_again_once_no_one_looks_at_them():
    source, rooms = _source(), Rooms()
    first = gather(source, np.arange(20), size=22, rooms=rooms)
    kept = first["inputs"]["image"][3:5, 1]  # a view of a view
    copy, place = kept.copy(), kept.ctypes.data
    on_device = jnp.asarray(first["label"])
    before = {"image": first["inputs"]["image"].ctypes.data, "text": first["inputs"]["text"].ctypes.data, "label": first["label"].ctypes.data}
    del first
    second = gather(source, np.arange(20)[::-1], size=22, rooms=rooms)
    assert second["inputs"]["text"].ctypes.data == before["text"]
    assert second["inputs"]["image"].ctypes.data != before["image"] and kept.ctypes.data == place and (kept == copy).all()
    assert (np.asarray(on_device)[:20] == source.label[:20]).all()
    assert (second["inputs"]["text"][:20] == source.inputs["text"][19::-1]).all() and not second["inputs"]["text"][20:].any()


def test_gathering_can_be_stopped():
    calls = itertools.count()
    with pytest.raises(concurrent.futures.CancelledError):
        gather(_source(), np.zeros(16 * 50, int), size=16 * 50, stopped=lambda: next(calls) == 3)
    assert next(calls) == 4


@pytest.mark.parametrize(("n", "size"), [(23, 8), (24, 8), (3, 8), (1, 1)])
def test_evaluation_sees_every_row_once_at_weight_one(n, size):
    source = _source(n)
    batches = list(evaluation_batches(source, size))
    index, weight = (np.concatenate([batch[key] for batch in batches]) for key in ("index", "weight"))
    assert index[weight == 1].tolist() == list(range(n))
    assert set(weight.tolist()) <= {0.0, 1.0} and weight.dtype == np.float32
    assert {len(batch["label"]) for batch in batches} == {size}
    assert len(batches) == -(-n // size)
    assert index.max() < n


def test_processes_evaluate_the_same_number_of_batches():
    source = _source(17)
    whole = list(evaluation_batches(source, 6))
    halves = [list(evaluation_batches(source, 6, process=process, processes=2)) for process in range(2)]
    assert len(halves[0]) == len(halves[1]) == len(whole)
    for batch, left, right in zip(whole, *halves, strict=True):
        assert (np.concatenate([left["index"], right["index"]]) == batch["index"]).all()
        assert (np.concatenate([left["weight"], right["weight"]]) == batch["weight"]).all()


def test_no_rows_no_batches():
    assert evaluation_rows(0, 4)[0].shape == (0, 4)


def test_taking_rows_keeps_weights():
    batch = take(_source(), np.array([3, 3, 0]), np.array([1.0, 0.5, 0.0]))
    assert batch["weight"].tolist() == [1, 0.5, 0] and batch["index"].tolist() == [3, 3, 0]
