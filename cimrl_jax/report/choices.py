"""What else might have been chosen: the checkpoint under every selection rule, and the settings that a sweep tried."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from cimrl_jax.report.results import Cell, Results, cell_of, finite
from cimrl_jax.report.tables import ABSENT, as_markdown, escaped, percent, spread

RULES = {
    "worst_class": "worst class",
    "worst_group": "worst group (reads validation groups)",
    "average": "average",
    "last": "last step",
    "oracle": "oracle (reads the test groups)",
}
"""How the tables call them."""


class Choice(NamedTuple):
    """Worst group under one rule. None: not measured."""

    cell: Cell | None
    used: bool
    """Whether this rule chose the model that is reported."""


class Setting(NamedTuple):
    """One setting of a sweep, over its seeds."""

    text: str
    """ "method.cimrl.tau=0.1, train.learning_rate=0.001"."""
    score: str
    rule: str
    worst: Cell | None
    seeds: int | None
    chosen: bool


def selection_rows(results: Results) -> tuple[list[str], list[tuple[str, list[Choice]]]]:
    """The rules under which something was measured, and each method's worst group on the headline split under each of them; empty if none was."""
    split = results.headline_split()
    found: dict[str, dict[str, list[Any]]] = {method: {} for method in results.methods()}
    for run in results.runs:
        for rule, chosen in (run.get("selection") or {}).items():
            found[str(run["method"])].setdefault(rule, []).append(_worst(chosen, split))
    rules = [rule for rule in RULES if any(cell_of(own.get(rule, ())) for own in found.values())]
    used = {method: {run.get("selected_by") for run in results.runs_of(method)} for method in found}
    rows = [(method, [Choice(cell_of(own.get(rule, ())), rule in used[method]) for rule in rules]) for method, own in found.items()]
    return rules, rows if rules else []


def selection_table(results: Results) -> str:
    """The same as Markdown, the rule that was used in bold; empty if nothing was measured."""
    rules, rows = selection_rows(results)
    lines = [[escaped(method)] + [f"**{spread(cell)}**" if used else spread(cell) for cell, used in choices] for method, choices in rows]
    return as_markdown(["method", *(RULES[rule] for rule in rules)], lines, selection_note(results)) if rules else ""


def selection_note(results: Results) -> str:
    return (
        f"Worst-group accuracy on {results.headline_split()}, in percent, mean ± standard deviation over seeds, had that rule chosen the checkpoint. "
        "Bold: the rule that was used. The oracle chooses on the test groups themselves: an upper bound, never used."
    )


def settings_rows(results: Results) -> dict[str, list[Setting]]:
    """Every setting that was tried, by method, the highest validation score first."""
    split = results.headline_split()
    found: dict[str, list[Setting]] = {}
    for line in sorted(results.settings, key=_score, reverse=True):
        rule, worst = str(line.get("rule") or ""), _worst(line, split) or {}
        told = [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in (line["setting"] or {}).items()]
        own = Setting(
            text=", ".join(told) or "as configured",
            score=ABSENT if _score(line) == -math.inf else f"{_score(line):g}" if rule == "last" else percent(_score(line)),
            rule=RULES.get(rule, rule),
            worst=Cell(worst["mean"], worst.get("std"), n=line.get("n") or 0) if finite(worst.get("mean")) else None,
            seeds=line.get("n"),
            chosen=bool(line.get("chosen")),
        )
        found.setdefault(str(line["method"]), []).append(own)
    return {method: found[method] for method in sorted(found, key=[*results.methods(), *found].index)}


def _score(line: Mapping[str, Any]) -> float:
    score = line.get("score")
    return float(score) if finite(score) else -math.inf


def _worst(record: Mapping[str, Any], split: str) -> Any:
    return ((record.get("splits") or {}).get(split) or {}).get("worst_group_accuracy")
