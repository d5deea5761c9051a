"""What is saved comes back bit for bit, the newest two are kept, and a damaged folder is named."""

from __future__ import annotations

import errno

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.errors import UserError
from cimrl_jax.train.checkpoint import Checkpoints
from tests import tiny


def make_tree(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "key": jax.random.key(seed),
        "step": jnp.int32(seed),
        "params": {"kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), "held": jnp.array([True, False])},
        "empty": {},
        "limit": jnp.float32(-jnp.inf),
    }


@pytest.fixture
def saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(step, make_tree(step), clock={"seconds": step / 2})
    return tmp_path


def steps(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_the_newest_comes_back_bit_for_bit_with_its_clock(saved):
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.latest == 6
        step, tree, clock = checkpoints.restore(make_tree())
    assert (step, clock) == (6, {"seconds": 3.0})
    tiny.assert_equal(tree, make_tree(6))
    assert tree["key"].dtype == jax.random.key(0).dtype


def test_two_are_kept(saved):
    assert steps(saved) == [4, 6]


def test_the_same_step_is_not_written_twice(saved):
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(6, make_tree(1), clock={})
        tiny.assert_equal(checkpoints.restore(make_tree())[1], make_tree(6))


def test_without_a_checkpoint_training_is_asked_for(tmp_path):
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.latest is None
        with pytest.raises(UserError, match=r"no checkpoint in .*none; run `train` first"):
            checkpoints.restore(make_tree())


def test_a_damaged_one_is_named_and_without_it_the_one_before_serves(saved):
    for path in (saved / "6").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Checkpoints(saved) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore(make_tree())
    message = str(caught.value)
    assert f"{saved / '6'}" in message and "delete that folder" in message and "\n" not in message
    for path in sorted((saved / "6").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (saved / "6").rmdir()
    with Checkpoints(saved) as checkpoints:
        step, tree, _ = checkpoints.restore(make_tree())
    assert step == 4
    tiny.assert_equal(tree, make_tree(4))


def test_one_of_another_model_is_refused(saved):
    other = make_tree() | {"params": {"kernel": jnp.zeros((5, 2)), "held": jnp.array([True, False])}}
    with Checkpoints(saved) as checkpoints, pytest.raises(UserError, match="cannot read"):
        checkpoints.restore(other)


def test_one_of_another_version_is_refused_in_a_line_one_can_read(saved):
    other = make_tree() | {"method": {f"part_{k}": jnp.zeros((3, 4)) for k in range(100)}}
    with Checkpoints(saved) as checkpoints, pytest.raises(UserError, match="of another version or model .* to train anew") as caught:
        checkpoints.restore(other)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


def test_what_was_being_written_when_the_process_died_is_swept_away(saved):
    (saved / "8.orbax-checkpoint-tmp").mkdir()
    (saved / "8.orbax-checkpoint-tmp" / "half").write_text("x")
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.latest == 6
    assert steps(saved) == [4, 6]


def test_a_full_disk_is_a_user_error(saved, monkeypatch):
    with Checkpoints(saved) as checkpoints:

        def fail(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(checkpoints._checkpointer, "save_checkpointables_async", fail)
        with pytest.raises(UserError, match=f"cannot write a checkpoint to {saved}: .*No space left.*; free some space, then start again to resume"):
            checkpoints.save(8, make_tree(), clock={})


def test_a_folder_that_is_a_file_is_a_user_error(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot write checkpoints to .*taken"):
        Checkpoints(tmp_path / "taken")
