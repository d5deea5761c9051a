"""Empirical risk minimisation: the mean cross entropy. Standard training and fine-tuning; sees labels only."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Array, Key

from cimrl_jax.methods import base
from cimrl_jax.types import Method, Params, Spec, Stage


@dataclasses.dataclass(frozen=True)
class Options:
    """None of its own."""


def build(options: Options) -> Method:
    """The method record."""
    return Method(init=_init, stages=(Stage(share=1.0, loss=base.erm_loss),), hyper=base.swept(options), explain=base.explain)


def _init(key: Key[Array, ""], spec: Spec) -> tuple[Params, Any]:
    return {}, {}
