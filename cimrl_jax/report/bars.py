"""What methods of causal mediation tell of an example, as bars that the page's own style draws: effects, gates, quality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cimrl_jax.report.tables import ABSENT


class Bar(NamedTuple):
    name: str
    number: str
    kind: str
    """CSS class."""
    style: str
    """CSS for where it lies on its line; empty where there is no number."""


class Bars(NamedTuple):
    title: str
    signed: bool
    """Whether 0 is in the middle of the line; otherwise it is at its left end, and 1 at its right."""
    bars: list[Bar]


def bars(entry: Mapping[str, Any]) -> list[Bars]:
    """Of an entry of the gallery: "effects" {name: logits}, "gates" {expert: weight} and "quality" {modality: 0..1}, as far as it has them."""
    effects, gates, quality = (entry.get(key) or {} for key in ("effects", "gates", "quality"))
    largest = max((abs(value) for value in effects.values() if value is not None), default=0.0)
    found = []
    if effects:
        found.append(Bars(f"effects on “{entry.get('predicted')}”, logits", True, [_signed(name, value, largest) for name, value in effects.items()]))
    for title, shares in (("the router's gates", gates), ("quality of the counterfactual", quality)):
        if shares:
            highest = max((value for value in shares.values() if value is not None), default=None) if shares is gates else None
            found.append(Bars(title, False, [_share(name, value, value == highest) for name, value in shares.items()]))
    return found


def _signed(name: str, value: float | None, largest: float) -> Bar:
    if value is None:
        return Bar(name, ABSENT, "", "")
    width = 50 * abs(value) / max(largest, 1e-12)
    number = f"{value:+z.2f}".replace("-", "\N{MINUS SIGN}")
    return Bar(name, number, "towards" if value >= 0 else "against", f"left: {50 - width if value < 0 else 50:.1f}%; width: {width:.1f}%")


def _share(name: str, value: float | None, highest: bool) -> Bar:
    if value is None:
        return Bar(name, ABSENT, "", "")
    return Bar(name, f"{value:.2f}", "highest" if highest else "share", f"left: 0; width: {100 * min(max(value, 0.0), 1.0):.1f}%")
