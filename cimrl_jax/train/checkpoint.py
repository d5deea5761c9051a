"""Checkpoints, atomic and resharding on restore. The only module that knows orbax."""

from __future__ import annotations

import logging
import pathlib
import shutil
import textwrap
from typing import Any

import jax

from cimrl_jax.errors import UserError

SHOWN = 160
"""Letters of orbax's own message that are shown."""


class Checkpoints:
    """The checkpoints of one program in one folder; the newest two are kept. Use as a context manager: leaving waits for what is being written."""

    def __init__(self, folder: pathlib.Path):
        from orbax.checkpoint import v1 as ocp

        training: Any = ocp.training  # orbax's own annotations reject its documented arguments
        self._folder = folder
        self._log = logging.getLogger("absl")  # where orbax tells, in pages, what is a line's worth of UserError here
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._checkpointer = training.Checkpointer(
                folder.resolve(),
                save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=training.preservation_policies.LatestN(2),
                cleanup_tmp_directories=True,
            )
        except OSError as error:
            raise UserError(f"cannot write checkpoints to {folder}: {error.strerror or error}; choose another --workdir") from error

    def __enter__(self) -> Checkpoints:
        self._level = self._log.level
        self._log.setLevel(logging.CRITICAL)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._checkpointer.close()
        finally:
            self._log.setLevel(self._level)

    @property
    def latest(self) -> int | None:
        """The step of the newest whole checkpoint."""
        found = self._checkpointer.latest
        return None if found is None else found.step

    def save(self, step: int, tree: Any, *, clock: dict[str, float]) -> None:
        """Writes in the background, unless this step is there already; `clock` is what the training has taken so far.

        Raises:
          UserError: the disk is full.
        """
        if self.latest == step:
            return
        leaves = jax.tree.leaves(tree)
        needed, free = sum(x.nbytes for x in leaves) + 2048 * len(leaves) + (1 << 18), shutil.disk_usage(self._folder).free  # with orbax's own files
        if free < needed:  # asked first: a failing write leaves orbax's threads behind
            raise self._full(f"No space left on device ({needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free)")
        try:
            self._checkpointer.save_checkpointables_async(step, {"tree": tree}, custom_metadata=clock)
            self._checkpointer.wait()
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) or "No space" in str(error) or "RESOURCE_EXHAUSTED" in str(error):
                raise self._full("No space left on device" if "No space" in str(error) else str(error)) from error
            raise

    def _full(self, reason: str) -> UserError:
        return UserError(f"cannot write a checkpoint to {self._folder}: {reason}; free some space, then start again to resume")

    def restore(self, like: Any) -> tuple[int, Any, dict[str, float]]:
        """(step, tree, clock) of the newest checkpoint, with the structure, types and shardings of `like`.

        Raises:
          UserError: there is none, or it is damaged or of another model.
        """
        step = self.latest
        if step is None:
            raise UserError(f"no checkpoint in {self._folder}; run `train` first")
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        try:
            tree = self._checkpointer.load_checkpointables(step, {"tree": abstract})["tree"]
            clock: Any = self._checkpointer.checkpointables_metadata(step).custom_metadata
        except Exception as error:  # orbax raises many kinds for a damaged folder
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            reason = textwrap.shorten(line, SHOWN, placeholder=" ...")  # orbax may recite both trees
            raise UserError(
                f"cannot read checkpoint {self._folder / str(step)}: it is damaged, or of another version or model ({reason}); "
                f"delete that folder to go back to an earlier one, or {self._folder} to train anew"
            ) from error
        return step, tree, dict(clock or {})
