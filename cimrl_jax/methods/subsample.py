"""Subsampling (SUBG and SUBY of Idrissi et al. 2022, arXiv 2110.14503): ERM on a part of the data in which all groups, or classes, are equally large.

Every group (class) is cut at random to the size of the smallest that training has; the rest is never seen. Each seed cuts anew. Sees group labels, or
with `by="class"` only labels.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from cimrl_jax.methods import base
from cimrl_jax.types import Method, Population, Rows, Stage

STREAM = 0x5AB
"""Sets these random numbers apart from others of the same seed."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is balanced."""

    by: Literal["group", "class"] = "group"
    """Whether groups (SUBG) or classes (SUBY) are cut to one size."""


def build(options: Options) -> Method:
    """The method record."""

    def draw(population: Population) -> Rows:
        key = population.group if options.by == "group" else population.label
        sizes = np.bincount(key)
        # Every row has its number before it is asked for its group: no row's chance depends on what the groups are called.
        number = np.random.default_rng([population.seed, STREAM]).permutation(len(key))
        order = np.lexsort((number, key))  # group by group, inside a group by number
        place = np.arange(len(key)) - (np.cumsum(sizes) - sizes)[key[order]]
        return Rows(np.sort(order[place < sizes[sizes > 0].min()]))

    return Method(
        init=base.stateless,
        stages=(Stage(share=1.0, loss=base.erm_loss, draw=draw),),
        hyper=base.swept(options),
        explain=base.explain,
        needs_groups=options.by == "group",
    )
