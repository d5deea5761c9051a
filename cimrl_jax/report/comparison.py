"""Several runs side by side: methods on the rows, data sets in the columns, folds of one data set pooled."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cimrl_jax.report import choices
from cimrl_jax.report.results import BASELINE, CEILING, Cell, Results, finite, plain, summarise
from cimrl_jax.report.tables import cost_rows, labels_seen, mean_of, selected_by

OURS = "cimrl"
FIRST = "Method by method"
WORST = "worst_group_accuracy"
READS_GROUPS = ("group", "to select")
"""A method whose labels, as the tables call them, hold one of these has seen group labels."""


class Entry(NamedTuple):
    """One method on one data set. None: not measured."""

    worst: Cell | None
    """Worst group on the column's split."""
    gap: Cell | None
    accuracy: Cell | None
    """On "test", which has the training correlation."""
    labels: str
    selected_by: str
    cost: float | None
    """Training seconds, divided by ERM's."""
    best: bool
    """The highest worst-group mean among the methods that saw no group label; never the ceiling."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One data set: a run, or the folds of one."""

    name: str
    results: Results | None
    """None: nothing was measured, and `notes` say why."""
    notes: tuple[str, ...] = ()

    @property
    def split(self) -> str:
        return self.results.headline_split() if self.results else ""

    def entries(self) -> dict[str, Entry]:
        """By method, ERM first, the ceiling last."""
        if self.results is None:
            return {}
        found, gaps = self.results, closed(self.results)
        costs = {cost.method: cost.relative for cost in cost_rows(found)}
        worst = {method: found.cell(method, self.split, WORST) for method in found.methods()}
        labels = {method: labels_seen(found, method) for method in found.methods()}
        free = [method for method in found.methods() if method != CEILING and not any(word in labels[method] for word in READS_GROUPS)]
        best = max((cell.mean for method in free if (cell := worst[method])), default=None)
        return {
            method: Entry(
                worst=(cell := worst[method]),
                gap=gaps.get(method),
                accuracy=found.cell(method, "test", "accuracy"),
                labels=labels[method],
                selected_by=selected_by(found, method),
                cost=costs[method],
                best=method in free and cell is not None and cell.mean == best,
            )
            for method in found.methods()
        }


class Section(NamedTuple):
    title: str
    heads: Mapping[str, str]
    """{head: column}."""
    plot: str | None
    """Which of `Comparison.plots` it shows; None: the first table."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a study found."""

    name: str
    columns: Mapping[str, Column]
    table: Sequence[str]
    """The columns of the first table."""
    plots: Mapping[str, Mapping[str, str]]
    """{what varies: {its value: the column measured there}}."""

    def methods(self, names: Iterable[str] | None = None) -> list[str]:
        """Of these columns (of all by default), in order of appearance, but ERM first and the ceiling last."""
        own = [column.results for name, column in self.columns.items() if column.results and (names is None or name in names)]
        methods = dict.fromkeys(method for results in own for method in results.methods())
        return sorted(methods, key=lambda name: {BASELINE: 0, CEILING: 2}.get(name, 1))

    def sections(self) -> list[Section]:
        """The first table, then what each plot varies."""
        first = [Section(FIRST, {name: name for name in self.table}, None)] if self.table else []
        return first + [Section(title, points, title) for title, points in self.plots.items()]

    def notes(self) -> list[tuple[str, str]]:
        return [(name, note) for name, column in self.columns.items() for note in column.notes]

    def level(self) -> float:
        return next((column.results.level() for column in self.columns.values() if column.results), 0.95)

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        columns = {
            name: {
                "split": column.split,
                "notes": list(column.notes),
                "methods": {
                    method: {
                        key: value._asdict() if isinstance(value, Cell) else value
                        for key, value in entry._asdict().items()
                    }
                    for method, entry in column.entries().items()
                },
            }
            for name, column in self.columns.items()
        }  # fmt: skip
        against = [line._asdict() for line in duels(self)]
        return plain({"schema": 1, "name": self.name, "columns": columns, "table": self.table, "plots": self.plots, "against": {OURS: against}})


class Duel(NamedTuple):
    """CIMRL against another method."""

    method: str
    above: int
    """Columns where CIMRL's mean worst group is the higher one."""
    clear: int
    """Those of them where the interval of the difference, seed by seed, lies above 0."""
    of: int
    """Columns where both were measured."""
    difference: float | None
    """The mean over those."""


def pool(folds: Sequence[Results]) -> Results:
    """Folds of one data set as one run: each seed's group counts are added over the folds, and accuracies are taken of the sums.

    A fold so weighs by its test examples, and the worst group is that of all folds together, not a mean of small folds' worst groups. `accuracy`
    weighs the folds by their examples of known group (alike if none is known). Kept are the methods, the seeds and the splits that all folds have;
    training seconds are added up. The gap is `closed`'s.
    """
    first, *others = folds
    runs = []
    for run in first.runs:
        same = [run, *(own for fold in others for own in fold.runs if (own["method"], own["seed"]) == (run["method"], run["seed"]))]
        if len(same) < len(folds):
            continue
        splits = [name for name in run["splits"] if all(name in own["splits"] for own in same)]
        seconds = [value for own in same if finite(value := (own.get("train") or {}).get("seconds"))]
        rules = ", ".join(dict.fromkeys(str(own["selected_by"]) for own in same if own.get("selected_by")))
        runs.append(
            {key: run[key] for key in ("method", "seed", "needs", "needs_groups") if key in run}
            | {"selected_by": rules or None, "splits": {name: _pooled([own["splits"][name] for own in same]) for name in splits}}
            | {"train": {"seconds": sum(seconds) if len(seconds) == len(same) else None}}
        )
    level, resamples = first.level(), _resamples(first)
    return Results(
        config=first.config, environment=first.environment, runs=runs, summary=summarise(runs, level=level, resamples=resamples), gap_closed={}
    )


def _pooled(splits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts: dict[str, list[float]] = {}
    sizes = []
    for split in splits:
        groups = split.get("groups") or {}
        for name, group in groups.items():
            right, n = counts.setdefault(name, [0.0, 0.0])
            counts[name] = [right + (group.get("accuracy") or 0.0) * group["n"], n + group["n"]]
        sizes.append(sum(group["n"] for group in groups.values()))
    groups = {name: {"accuracy": right / n if n else None, "n": n} for name, (right, n) in counts.items()}
    known = [group["accuracy"] for group in groups.values() if group["accuracy"] is not None]
    accuracies = [split.get("accuracy") for split in splits]
    whole = all(finite(value) for value in accuracies)
    accuracy = float(np.average(accuracies, weights=sizes if sum(sizes) else None)) if whole else None  # type: ignore[arg-type]
    return {"accuracy": accuracy, WORST: min(known, default=None), "groups": groups}


def closed(results: Results) -> dict[str, Cell]:
    """The share of the gap between ERM and the ceiling that each method closed: the run's own, or, where it has none because there is no balanced
    split or because folds were pooled, that of the worst group on the headline split."""
    from cimrl_jax.evaluate import robustness  # here, so that this module is read without JAX

    split, own = results.headline_split(), {method: results.gap(method) for method in results.methods()}
    seeds: dict[str, dict[Any, float]] = {method: {} for method in results.methods()}
    for run in results.runs:
        if finite(value := (run["splits"].get(split) or {}).get(WORST)):
            seeds[run["method"]][run["seed"]] = value
    erm, ceiling = seeds.get(BASELINE, {}), seeds.get(CEILING, {})
    for method, values in seeds.items():
        same = erm.keys() == ceiling.keys() == values.keys() and erm
        if own[method] is None and method not in (BASELINE, CEILING) and same:
            three = ([known[seed] for seed in erm] for known in (values, erm, ceiling))
            share = robustness.gap_closed(*three, level=results.level(), resamples=_resamples(results))
            low, high = (share or {}).get("ci95") or (None, None)
            own[method] = Cell(share["mean"], None, low, high, share["n"]) if share else None
    return {method: cell for method, cell in own.items() if cell is not None}


def _resamples(results: Results) -> int:
    return int((results.config.get("evaluate") or {}).get("bootstrap") or 1000)


def duels(found: Comparison) -> list[Duel]:
    """CIMRL against each other method that can be had; none without CIMRL."""
    from cimrl_jax import metrics

    lines = []
    for method in found.methods() if OURS in found.methods() else ():
        differences, clear = [], 0
        for column in found.columns.values() if method not in (OURS, CEILING) else ():
            cells = [column.results.cell(name, column.split, WORST) for name in (OURS, method)] if column.results else [None]
            if column.results is None or None in cells:
                continue
            differences.append(cells[0].mean - cells[1].mean)  # type: ignore[union-attr]
            seeds = [{run["seed"]: run["splits"][column.split].get(WORST) for run in column.results.runs_of(name)} for name in (OURS, method)]
            pairs = [(seeds[0][seed], seeds[1][seed]) for seed in seeds[0] if finite(seeds[0][seed]) and finite(seeds[1].get(seed))]
            if pairs:
                ours, theirs = zip(*pairs, strict=True)
                difference = metrics.paired_difference(ours, theirs, level=column.results.level(), resamples=_resamples(column.results))
                clear += difference.clear and differences[-1] > 0
        if differences:
            lines.append(Duel(method, sum(value > 0 for value in differences), clear, len(differences), float(np.mean(differences))))
    return lines


class About(NamedTuple):
    """One method over several columns."""

    labels: str
    selected_by: str
    cost: float | None
    """The mean over the columns."""


def about(entries: Iterable[Entry]) -> About:
    entries = list(entries)
    labels, rules = (", ".join(dict.fromkeys(getattr(entry, key) for entry in entries)) for key in ("labels", "selected_by"))
    return About(labels, rules, mean_of([{"train": {"cost": entry.cost}} for entry in entries], "train", "cost"))


DUELS = (
    "Of all runs and pools above, each once, those where its mean worst group is above the other's; clearly: the interval of the difference, seed by "
    "seed, lies above 0. Difference in points."
)


def footnote(found: Comparison) -> str:
    counts = sorted({len(c.results.runs_of(method)) for c in found.columns.values() if c.results for method in c.results.methods()})
    count = " to ".join(str(number) for number in dict.fromkeys((counts[0], counts[-1]))) if counts else "no"
    return (
        f"Percent: mean ± standard deviation and {100 * found.level():g} % bootstrap interval over {count} seed{'' if counts == [1] else 's'}. "
        "With few seeds such intervals are too narrow. Gap closed: from ERM (0 %) to the ceiling (100 %). Bold: the best that saw no group label. "
        "Labels used: besides the class. Cost: training time relative to ERM, mean over the columns."
    )


def settings(found: Comparison) -> list[tuple[str, str, str, str, Cell | None, bool]]:
    """(column, method, setting, validation score, worst group, chosen) of every setting that a sweep tried."""
    return [
        (name, method, line.text, line.score, line.worst, line.chosen)
        for name, column in found.columns.items()
        for method, lines in (choices.settings_rows(column.results) if column.results else {}).items()
        for line in lines
    ]
