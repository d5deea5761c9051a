"""Resampling (RWG and RWY of Idrissi et al. 2022, arXiv 2110.14503): ERM on batches in which every group, or class, is equally likely.

Rows are drawn with replacement, each in proportion to 1 / n of its group (class). Sees group labels, or with `by="class"` only labels.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from cimrl_jax.methods import base
from cimrl_jax.types import Method, Stage


@dataclasses.dataclass(frozen=True)
class Options:
    """What is balanced."""

    by: Literal["group", "class"] = "group"
    """Whether batches are balanced over groups (RWG) or over classes (RWY)."""


def build(options: Options) -> Method:
    """The method record."""
    return Method(
        init=base.stateless,
        stages=(Stage(share=1.0, loss=base.erm_loss, draw=base.balanced(options.by)),),
        hyper=base.swept(options),
        explain=base.explain,
        needs_groups=options.by == "group",
    )
