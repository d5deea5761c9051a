"""What moves and at which rate, against the blocks counted by hand; and bad combinations."""

from __future__ import annotations

import numpy as np
import pytest

from cimrl_jax.errors import UserError
from cimrl_jax.nn.tuning import Tuning, moves, rate, segments

EMBEDDINGS, FINAL, HEAD = ("backbone", "embeddings", "position"), ("backbone", "final", "scale"), ("inward", "kernel")


def moving(tuning: Tuning, depth: int = 4):
    """(embeddings, block 0, ..., the last block, what comes after, what is no part of the architecture): whether each moves."""
    runs = segments(tuning, depth)
    blocks = {block: moves(tuning, ("backbone", f"segment_{i}", "query", "kernel"), runs) for i, run in enumerate(runs) for block in run}
    return [moves(tuning, EMBEDDINGS, runs), *(blocks[i] for i in range(depth)), moves(tuning, FINAL, runs), moves(tuning, HEAD, runs)]


@pytest.mark.parametrize(
    ("freeze", "expected", "runs"),
    [
        ("none", [1, 1, 1, 1, 1, 1, 1], [4]),
        ("all", [0, 0, 0, 0, 0, 0, 1], [4]),
        ((0, 1), [0, 0, 0, 1, 1, 1, 1], [2, 2]),
        ((1,), [1, 1, 0, 1, 1, 1, 1], [1, 1, 2]),
        ((3,), [1, 1, 1, 1, 0, 0, 1], [3, 1]),
        ((0, 1, 2, 3), [0, 0, 0, 0, 0, 0, 1], [4]),
        ((0, 2), [0, 0, 1, 0, 1, 1, 1], [1, 1, 1, 1]),
    ],
)
def test_what_is_frozen_stays_with_its_neighbours_outside_the_blocks_and_segments_are_cut_there(freeze, expected, runs):
    tuning = Tuning(pretrained="x", freeze=freeze)
    assert moving(tuning) == [bool(x) for x in expected]
    assert [len(run) for run in segments(tuning, 4)] == runs
    assert [block for run in segments(tuning, 4) for block in run] == [0, 1, 2, 3]


@pytest.mark.parametrize("freeze", ["all", (0, 2)])
def test_low_rank_additions_move_whatever_is_frozen(freeze):
    tuning = Tuning(pretrained="x", freeze=freeze, lora_rank=2)
    runs = segments(tuning, 3)
    assert all(moves(tuning, ("backbone", f"segment_{i}", "value", leaf), runs) for i in range(len(runs)) for leaf in ("lora_a", "lora_b"))


def test_the_rate_falls_by_the_decay_with_every_block_downwards():
    tuning = Tuning(pretrained="x", freeze=(1,), layer_decay=0.5)
    runs = segments(tuning, 4)
    blocks = np.concatenate([rate(tuning, ("backbone", f"segment_{i}", "query", "kernel"), runs) for i in range(len(runs))])
    np.testing.assert_allclose(blocks, [0.125, 0.25, 0.5, 1.0])
    assert [rate(tuning, path, runs) for path in (EMBEDDINGS, FINAL, HEAD)] == [0.0625, 1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"freeze": "all"}, "random weights"),
        ({"freeze": (0,)}, "random weights"),
        ({"pretrained": "x", "features": "disk"}, "freeze=all"),
        ({"pretrained": "x", "freeze": "all", "features": "disk", "lora_rank": 1}, "lora_rank=0"),
        ({"pretrained": "x", "freeze": (0,), "features": "step"}, "freeze=all"),
        ({"pretrained": "x", "freeze": "all", "views": 2}, "features=disk"),
        ({"lora_targets": ("query", "keys")}, "'keys'"),
        ({"lora_rank": 2, "lora_targets": ()}, "lora_rank=2 adds nothing"),
    ],
)
def test_options_that_contradict_one_another_are_refused_in_a_line_that_says_how_to_mend_them(options, says):
    with pytest.raises(UserError, match=says):
        Tuning(**options)


def test_a_frozen_block_that_is_not_there_is_named():
    with pytest.raises(UserError, match="block 4, but there are 3"):
        segments(Tuning(pretrained="x", freeze=(0, 4)), 3)
