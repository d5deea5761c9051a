"""What every encoder of a published architecture can be told: where its weights are, what of it moves, and how it computes.

Such an encoder keeps its architecture's parameters under "backbone": `backbone/embeddings/...`, `backbone/segment_<i>/...` (runs of blocks, each leaf
stacked `[blocks, ...]`; a ResNet's stages) and `backbone/final/...` (what comes after the last block). What of it moves, and at which share of the
learning rate, follows from these names.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Annotated, Literal

import numpy as np

from cimrl_jax.errors import UserError
from cimrl_jax.options import Range


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Fields that the `Options` of these encoders share."""

    pretrained: str = ""
    """A folder with config.json and model.safetensors, or a Hugging Face model id. Empty: random weights of the sizes below."""
    freeze: Literal["none", "all"] | tuple[Annotated[int, Range(low=0)], ...] = "none"
    """What keeps the checkpoint's values: nothing, everything, or these blocks, counted from 0 (block 0 with the embeddings)."""
    layer_decay: Annotated[float, Range(above=0, high=1)] = 1.0
    """The learning rate of a block is this share of the next block's; 1: the same for all."""
    lora_rank: Annotated[int, Range(low=0)] = 0
    """Rank of trained low-rank additions to the blocks' linear maps (LoRA, Hu et al. 2021), which move whatever is frozen; 0: none."""
    lora_alpha: Annotated[float, Range(above=0)] = 16.0
    """The additions are scaled by lora_alpha / lora_rank."""
    lora_targets: tuple[str, ...] = ("query", "value")
    """The linear maps that get one: query, key, value, out, widen, narrow."""
    features: Literal["no", "step", "disk"] = "no"
    """Whether the frozen encoder's output takes the place of its input: computed in each step, once for all members that see the same examples, or
    once for ever and kept on disk. Slots are then the encoder's tokens, not pixels or words."""
    pool: Annotated[int, Range(low=1)] = 1
    """With features of a picture: each is the mean of so many by so many neighbouring places. What stands on the features costs with the square of
    their number; attribution gets coarser."""
    views: Annotated[int, Range(low=1)] = 1
    """With features=disk: versions of each example that are kept, the first as it is, the others perturbed as data.views says."""
    remat: bool = False
    """Whether activations within blocks are computed again in the backward pass instead of kept: slower, in less memory."""
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    """Who computes attention; cudnn is fused, on GPUs in bfloat16, and cannot be differentiated twice."""

    def __post_init__(self) -> None:
        if self.freeze != "none" and not self.pretrained:
            raise UserError(f"freeze={self.freeze} would keep random weights; name a checkpoint by pretrained, or set freeze=none")
        if self.features != "no" and (self.freeze != "all" or self.lora_rank):
            raise UserError(f"features={self.features} needs an encoder of which nothing moves; set freeze=all and lora_rank=0, or features=no")
        if self.pool > 1 and self.features == "no":
            raise UserError(f"pool={self.pool} is of features; set features=step or disk, or pool=1")
        if self.views > 1 and self.features != "disk":
            raise UserError(f"views={self.views} are kept on disk; set features=disk, or views=1")
        if self.lora_rank and not self.lora_targets:
            raise UserError(f"lora_rank={self.lora_rank} adds nothing where lora_targets names no map; name one, or set lora_rank=0")
        unknown = sorted(set(self.lora_targets) - {"query", "key", "value", "out", "widen", "narrow"})
        if unknown:
            raise UserError(f"lora_targets has {unknown[0]!r}; choose from query, key, value, out, widen, narrow")


def segments(tuning: Tuning, depth: int) -> tuple[range, ...]:
    """The runs of blocks that are scanned together: cut where frozen blocks meet moving ones.

    Raises:
      UserError: a frozen block that is not there.
    """
    frozen = tuning.freeze if isinstance(tuning.freeze, tuple) else ()
    if frozen and max(frozen) >= depth:
        raise UserError(f"freeze names block {max(frozen)}, but there are {depth}; choose from 0 to {depth - 1}")
    runs = [list(run) for _, run in itertools.groupby(range(depth), key=lambda block: block in frozen)]
    return tuple(range(run[0], run[-1] + 1) for run in runs)


def stacked(path: Iterable[str]) -> bool:
    """Whether the parameter at `path` has a leading axis of blocks."""
    return any(name.startswith("segment_") for name in path)


def moves(tuning: Tuning, path: tuple[str, ...], runs: tuple[range, ...]) -> bool:
    """Whether the parameter at `path` of the encoder's tree is trained. `runs`: see `segments`."""
    if path[0] != "backbone" or path[-1].startswith("lora_") or tuning.freeze == "none":
        return True
    if tuning.freeze == "all":
        return False
    first, last = _blocks(path, runs)
    return not (first in tuning.freeze if path[1] != "final" else last in tuning.freeze)


def rate(tuning: Tuning, path: tuple[str, ...], runs: tuple[range, ...]) -> np.ndarray | float:
    """The share of the learning rate that the parameter at `path` gets: a number, or one per block of its segment `[blocks]`.

    As in Clark et al. 2020 (ELECTRA) and Bao et al. 2021 (BEiT): layer_decay ** (blocks above it), the embeddings one more than block 0.
    """
    if path[0] != "backbone":
        return 1.0
    depth = sum(map(len, runs))
    if path[1] == "final":
        return 1.0
    if path[1] == "embeddings":
        return tuning.layer_decay**depth
    first, last = _blocks(path, runs)
    return np.array([tuning.layer_decay ** (depth - 1 - block) for block in range(first, last + 1)], np.float32)


def _blocks(path: tuple[str, ...], runs: tuple[range, ...]) -> tuple[int, int]:
    """The first and the last block of a parameter's segment; the embeddings count to the first, what comes after the blocks to the last."""
    depth = sum(map(len, runs))
    if path[1].startswith("segment_"):
        run = runs[int(path[1].removeprefix("segment_"))]
        return run[0], run[-1]
    return (0, 0) if path[1] == "embeddings" else (depth - 1, depth - 1)
