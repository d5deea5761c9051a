"""What training is fed: the rows of the order, and no group label that was not asked for."""

from __future__ import annotations

import dataclasses
import threading

import jax
import numpy as np
import pytest

from cimrl_jax.data import pipeline
from cimrl_jax.data.pipeline import Order
from cimrl_jax.data.source import ArraySource
from cimrl_jax.errors import UserError
from cimrl_jax.methods import base
from cimrl_jax.train import feed as feeding
from cimrl_jax.types import Rows
from tests import tiny


@dataclasses.dataclass(frozen=True)
class OnDisk:
    """The same rows, to be loaded on demand."""

    whole: ArraySource
    regions: None = None
    arrays: None = None
    read: list = dataclasses.field(default_factory=list)
    """The rows of every call, and the thread that it came from."""

    @property
    def label(self):
        return self.whole.label

    @property
    def group(self):
        return self.whole.group

    def __len__(self):
        return len(self.whole)

    def load(self, rows):
        if (rows < 0).any():
            raise UserError("no such picture")
        self.read.append((rows.tolist(), threading.current_thread()))
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


def _on_disk(**how) -> tuple[OnDisk, feeding.Feed]:
    source = OnDisk(tiny.source())
    return source, dataclasses.replace(tiny.program(tiny.method("erm"), source.whole, **how), source=source).feed()


def test_the_next_chunk_is_read_in_the_background_and_is_what_it_would_be(monkeypatch):
    monkeypatch.setattr(pipeline, "PIECE", 3)  # batches of 4 and several members: pieces end where no batch does
    (_, straight), (source, ahead) = _on_disk(), _on_disk()
    for first, count in ((0, 2), (2, 1), (3, 2)):
        ahead.prepare(first, count)
        tiny.assert_equal(ahead(first, count), straight(first, count))
    source.read.clear()
    ahead.prepare(5, 2)
    ahead._ready[1].result()  # pyright: ignore[reportOptionalSubscript]
    seen = len(source.read)
    assert seen and threading.main_thread() not in {thread for _, thread in source.read}
    ahead(5, 2)
    assert len(source.read) == seen, "what was read ahead was read again"
    ahead.prepare(7, 2)
    tiny.assert_equal(ahead(7, 1), straight(7, 1))  # the loop changed its mind


@pytest.mark.parametrize(("seeds", "different"), [((0, 0, 0), 1), ((3, 0, 3), 2), ((3, 3, 0), 2), ((5, 1, 2), 3)])
def test_what_several_members_see_is_read_once(seeds, different):
    source, feed = _on_disk(seeds=seeds)
    index = np.asarray(feed(0, 2).index)
    assert sum(len(rows) for rows, _ in source.read) == 1 + 2 * 4 * different  # one, to see how they look
    for member, seed in enumerate(seeds):
        np.testing.assert_array_equal(index[:2, member], Order(len(source), 4, seed).rows(0, 2))


def test_an_example_that_cannot_be_read_ends_the_run_in_one_line():
    source, feed = _on_disk(seeds=(0,))
    feed.enter(lambda population: Rows(np.full(len(source), -1)), [None], [{}])
    feed.prepare(0, 2)
    with pytest.raises(UserError, match="no such picture"):
        feed(0, 2)


def test_a_closed_feed_gives_up_what_it_reads():
    source, feed = _on_disk(seeds=(0,))
    gate = threading.Event()

    class Slow(OnDisk):
        def load(self, rows):
            gate.wait(20)
            return super().load(rows)

    feed._source = Slow(source.whole)
    feed.prepare(0, 2)
    ready = feed._ready
    feed.close()
    gate.set()
    assert ready is not None and (ready[1].cancelled() or isinstance(ready[1].exception(20), BaseException))
