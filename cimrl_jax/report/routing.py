"""The router's choices as a table: experts over groups, the mean gate and how often it is the highest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cimrl_jax.report.results import Cell, Results, cell_of

MOST_GROUPS = 12
"""Of more groups only those with most examples are shown."""
SHADE = (0, 114, 178)


class Choice(NamedTuple):
    """One expert in one group, over seeds. None: not measured."""

    gate: Cell | None
    top: Cell | None
    style: str
    """CSS: the shade goes with the gate."""


class Routing(NamedTuple):
    """One method's table."""

    split: str
    of: str
    """Whether the rows are "groups" or "classes"."""
    experts: list[str]
    rows: list[tuple[str, float, list[Choice]]]
    """(group, its examples, a choice per expert); the first row is that of all examples."""
    left_out: int
    """Groups that are not shown."""


def routing_tables(results: Results) -> dict[str, Routing]:
    """By method, for those that have a router."""
    found = {}
    for method in results.methods():
        told = [run["routing"] for run in results.runs_of(method) if run.get("routing")]
        if not told:
            continue
        experts = list(dict.fromkeys(expert for own in told for expert in own["all"]["gates"]))
        sizes = {name: float(group["n"]) for own in told for name, group in own["groups"].items()}
        names = sorted(sizes, key=lambda name: -sizes[name])[:MOST_GROUPS]
        rows = [("all", float(told[0]["all"]["n"]), _choices([own["all"] for own in told], experts))]
        for name in sizes:
            if name in names:
                rows.append((name, sizes[name], _choices([own["groups"][name] for own in told if name in own["groups"]], experts)))
        found[method] = Routing(str(told[0]["split"]), str(told[0]["of"]), experts, rows, len(sizes) - len(names))
    return found


def _choices(told: list[Mapping[str, Any]], experts: list[str]) -> list[Choice]:
    cells = [[cell_of((own.get(part) or {}).get(expert) for own in told) for part in ("gates", "top")] for expert in experts]
    return [Choice(gate, top, _shade(gate)) for gate, top in cells]


def _shade(gate: Cell | None) -> str:
    share = min(max(gate.mean, 0.0), 1.0) if gate else 0.0
    return f"background: rgb({', '.join(map(str, SHADE))}, {0.5 * share:.2f})"  # paler than the text on it in either theme
