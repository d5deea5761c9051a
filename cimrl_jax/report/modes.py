"""The other predictions of a trained model beside its own: what each comes to on every test split."""

from __future__ import annotations

from typing import NamedTuple

from cimrl_jax.report.results import Cell, Results
from cimrl_jax.report.tables import as_markdown, escaped, spread

METRICS = {"accuracy": "accuracy", "worst_group_accuracy": "worst group", "both_right": "both right"}
"""What is shown, and how the tables call it; results.json has every metric."""
OWN = "own prediction"
NOTE = (
    "Percent: mean ± standard deviation and {level} % bootstrap interval over seeds. The rows are the same trained models, read in different ways; "
    "the default is what all other tables report. It was not chosen by these numbers."
)


class Mode(NamedTuple):
    name: str
    default: bool
    cells: list[Cell | None]
    """One per column."""


class Modes(NamedTuple):
    """One method's table."""

    splits: list[tuple[str, list[str]]]
    """(test split, the names of its columns)."""
    rows: list[Mode]


def mode_tables(results: Results) -> dict[str, Modes]:
    """By method, for those that have modes; the columns are those in which something was measured. A default that is no mode stands first."""
    found = {}
    for method in results.methods():
        names = list(dict.fromkeys(str(line["mode"]) for line in results.modes if line["method"] == method))
        runs = results.runs_of(method)
        default = next((str(run["mode"]) for run in runs if run.get("mode")), "")
        columns = [
            (split, metric)
            for split in dict.fromkeys(split for run in runs for split in run["splits"] if split.partition("_")[0] == "test")
            for metric in METRICS
            if any(results.mode_cell(method, name, split, metric) for name in names)
        ]
        if columns:
            rows = [Mode(name, name == default, [results.mode_cell(method, name, *column) for column in columns]) for name in names]
            if default not in names:
                rows.insert(0, Mode(OWN, True, [results.cell(method, *column) for column in columns]))
            splits = dict.fromkeys(split for split, _ in columns)
            found[method] = Modes([(split, [METRICS[metric] for own, metric in columns if own == split]) for split in splits], rows)
    return found


def note(results: Results) -> str:
    return NOTE.format(level=f"{100 * results.level():g}")


def modes_markdown(results: Results) -> str:
    """The same as Markdown, a table for each method, the default in bold; empty if no method has modes."""
    parts = []
    for method, (splits, rows) in mode_tables(results).items():
        names = [f"{split}, {metric}" for split, metrics in splits for metric in metrics]
        lines = [[f"**{escaped(row.name)}**" if row.default else escaped(row.name), *(spread(cell) for cell in row.cells)] for row in rows]
        parts.append(as_markdown([escaped(method), *names], lines, note(results)))
    return "\n".join(parts)
