"""Empirical risk minimisation: the mean cross entropy. Standard training and fine-tuning; sees labels only."""

from __future__ import annotations

import dataclasses

from cimrl_jax.methods import base
from cimrl_jax.types import Method, Stage


@dataclasses.dataclass(frozen=True)
class Options:
    """None of its own."""


def build(options: Options) -> Method:
    """The method record."""
    return Method(init=base.stateless, stages=(Stage(share=1.0, loss=base.erm_loss),), hyper=base.swept(options), explain=base.explain)
