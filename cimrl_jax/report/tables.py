"""The summary as a table: on a terminal, as Markdown, and as the records that the page shows."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cimrl_jax.report.results import BASELINE, CEILING, Cell, Results, cell_of, finite

if TYPE_CHECKING:
    from rich.table import Table

ABSENT = "–"
SELECTED = "selected by"
PAIRS = "both_right"
NO_SHARES = ("kl", "p_value")
"""Numbers of the identification that are no share of anything."""
PROBE = "probe"
PROBED = ("label", "label_edited", "label_recovered", "attribute", "attribute_edited", "attribute_recovered", "edited")
"""The numbers of `evaluate.probe`, in the order in which they are shown."""


Identified = tuple[str, str, list[Cell | None]]
"""(method, modality, numbers over seeds)."""


class Row(NamedTuple):
    """One method's line of the summary. None: not measured."""

    method: str
    labels: str
    accuracy: Cell | None
    """On the split "test", which has the training correlation."""
    balanced: Cell | None
    """Worst group on "test_balanced", or on "test" where there is no such split."""
    flipped: Cell | None
    """Worst group on "test_flipped"."""
    gap: Cell | None
    selected_by: str
    cost: float | None
    """Training seconds, divided by ERM's."""
    best: bool
    """Highest mean of `balanced` among the methods that can be had, so not the ceiling."""


class Cost(NamedTuple):
    """Means over a method's runs. None: not measured."""

    method: str
    steps: float | None
    seconds: float | None
    compile_seconds: float | None
    examples_per_second: float | None
    relative: float | None
    """Seconds, divided by ERM's."""


def rows(results: Results) -> list[Row]:
    """One per method: ERM first, the ceiling last."""
    costs = {cost.method: cost.relative for cost in cost_rows(results)}
    balanced = {method: results.cell(method, results.headline_split(), "worst_group_accuracy") for method in results.methods()}
    best = max((cell.mean for method, cell in balanced.items() if cell and method != CEILING), default=None)
    return [
        Row(
            method=method,
            labels=labels_seen(results, method),
            accuracy=results.cell(method, "test", "accuracy"),
            balanced=(cell := balanced[method]),
            flipped=results.cell(method, "test_flipped", "worst_group_accuracy"),
            gap=results.gap(method),
            selected_by=selected_by(results, method),
            cost=costs[method],
            best=cell is not None and method != CEILING and cell.mean == best,
        )
        for method in results.methods()
    ]


def selected_by(results: Results, method: str) -> str:
    """The rules that selected the method's models."""
    return ", ".join(dict.fromkeys(str(run["selected_by"]) for run in results.runs_of(method) if run.get("selected_by"))) or ABSENT


def labels_seen(results: Results, method: str) -> str:
    """Which labels beside the class the method read: in training, and "to select" where only its selection rule reads groups."""
    runs = results.runs_of(method)
    needs = next((str(run["needs"]) for run in runs if run.get("needs")), "")
    if not needs:  # an older file
        needs = "groups" if any(run.get("needs_groups") for run in runs) else "none" if any("needs_groups" in run for run in runs) else ABSENT
    if "groups" in needs or not any("group" in str(run.get("selected_by") or "") for run in runs):
        return needs
    return "to select" if needs in ("none", ABSENT) else f"{needs} + to select"


def cost_rows(results: Results) -> list[Cost]:
    means = {method: {key: mean_of(results.runs_of(method), "train", key) for key in Cost._fields[1:5]} for method in results.methods()}
    base = means.get(BASELINE, {}).get("seconds")
    return [
        Cost(method=method, **numbers, relative=seconds / base if (seconds := numbers["seconds"]) is not None and base else None)
        for method, numbers in means.items()
    ]


def identification_rows(results: Results) -> tuple[list[str], list[Identified]]:
    """How well the chosen slots match the planted or annotated ones: the numbers' names, and each line's numbers in that order."""
    found = {key: numbers for key, numbers in _identified(results).items() if not key[1].endswith(f", {PROBE}")}
    names = list(dict.fromkeys(name for numbers in found.values() for name in numbers))
    return names, [(method, modality, [cell_of(numbers.get(name, ())) for name in names]) for (method, modality), numbers in found.items()]


def probe_rows(results: Results) -> list[Identified]:
    """What can be read off each modality's originals and edits: the numbers that `PROBED` names."""
    found = {key: numbers for key, numbers in _identified(results).items() if key[1].endswith(f", {PROBE}")}
    return [
        (method, place.removesuffix(f", {PROBE}"), [cell_of(numbers.get(name, ())) for name in PROBED]) for (method, place), numbers in found.items()
    ]


def _identified(results: Results) -> dict[tuple[str, str], dict[str, list[float]]]:
    """By method and place the runs' numbers of the identification."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for method in results.methods():
        for run in results.runs_of(method):
            for place, name, number in _leaves(run.get("identification") or {}):
                if name != "n" and finite(number):
                    found.setdefault((method, place), {}).setdefault(name, []).append(float(number))
    return found


def pair_rows(results: Results) -> tuple[list[str], list[tuple[str, list[Cell | None]]]]:
    """Pair consistency: the splits whose rows are versions of those of test, and by method the share of which both versions are right."""
    measured = {split for run in results.runs for split, report in run["splits"].items() if finite(report.get(PAIRS))}
    splits = [split for split in dict.fromkeys(split for run in results.runs for split in run["splits"]) if split in measured]
    return splits, [(method, [results.cell(method, split, PAIRS) for split in splits]) for method in results.methods()] if splits else []


def console_table(results: Results) -> Table:
    """For `rich.print`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title, *names = [name for name in header(results) if name != SELECTED]
    lines = rows(results)
    rules = {rule: [row.method for row in lines if row.selected_by == rule] for rule in dict.fromkeys(row.selected_by for row in lines)}
    told = "; ".join(rule if len(rules) == 1 else f"{rule} ({', '.join(methods)})" for rule, methods in rules.items())
    note = Text(f"{footnote(results)} Selected by: {told or ABSENT}.")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, caption=note, caption_justify="left", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(title, overflow="fold", min_width=4)
    for name in names:
        # Broken by hand, so that the whole fits into 80 columns.
        table.add_column(Text(name.replace(",", "").replace(" ", "\n")), justify="left" if name == names[0] else "right", no_wrap=True)
    for row in lines:
        style = "bold" if row.best else "dim" if row.method == CEILING else ""
        # Text, not str: a name that holds square brackets is not markup.
        table.add_row(*(Text(text, style=style) for text in _narrow_texts(row)))
    return table


def markdown_table(results: Results) -> str:
    """The same table, readable as plain text; the method with the best worst group in bold."""
    lines = []
    for row in rows(results):
        texts = [escaped(text) if place in (0, 1, 6) else text for place, text in enumerate(_texts(row))]
        lines.append([f"**{text}**" if row.best and place in (0, 3) else text for place, text in enumerate(texts)])
    return as_markdown(header(results), lines, footnote(results), left=(0, 1, 6))


def as_markdown(names: Sequence[str], lines: Sequence[Sequence[str]], note: str, left: Sequence[int] = (0,)) -> str:
    """A table and a note under it. `left`: the columns of text; numbers stand on the right."""
    sides = ["---" if place in left else "---:" for place in range(len(names))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [names, sides, *lines]) + f"\n\n{note}\n"


def escaped(text: str) -> str:
    """What a user wrote, as Markdown that shows it in one line of a table."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))


def header(results: Results) -> list[str]:
    return [
        "method",
        "labels used",
        "test accuracy",
        f"worst group, {results.headline_split().removeprefix('test_')}",
        "worst group, flipped",
        "gap closed",
        SELECTED,
        "cost",
    ]


def footnote(results: Results) -> str:
    seeds = sorted({len(results.runs_of(method)) for method in results.methods()})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}" if seeds else "no"
    return (
        f"Percent: mean ± standard deviation and {100 * results.level():g} % bootstrap interval over {count} seed{'' if seeds == [1] else 's'}. "
        "With few seeds such intervals are too narrow. Labels used: besides the class. "
        "Gap closed: from ERM (0 %) to the ceiling (100 %). Cost: training time relative to ERM."
    )


def percent(value: float | None, digits: int = 1) -> str:
    return ABSENT if value is None else f"{100 * value:z.{digits}f}"


def spread(cell: Cell | None, digits: int = 1) -> str:
    """ "71.2 ± 1.1 [70.1, 72.4]", in percent, as far as it is known."""
    if cell is None:
        return ABSENT
    text = percent(cell.mean, digits)
    if cell.std is not None:
        text += f" ± {percent(cell.std, digits)}"
    if cell.low is not None and cell.high is not None:
        text += f" [{percent(cell.low, digits)}, {percent(cell.high, digits)}]"
    return text


def measure(cell: Cell | None, name: str) -> str:
    """A number of the identification table: a share in percent, but what is no share as it is."""
    if cell is None or name not in NO_SHARES:
        return spread(cell)
    return f"{cell.mean:.3g}" + ("" if cell.std is None else f" ± {cell.std:.2g}")


def ratio(value: float | None) -> str:
    """Three digits: "3.02×", "30.2×"."""
    return ABSENT if value is None else f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}×"


def mean_of(runs: list[Mapping[str, Any]], record: str, key: str) -> float | None:
    cell = cell_of((run.get(record) or {}).get(key) for run in runs)
    return cell and cell.mean


def _leaves(record: Mapping[str, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[str, str, Any]]:
    """(where, name, number): {modality: {name: number}}, or one level deeper by region, {modality: {"shortcut": {name: number}}}."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*place, str(name)))
        else:
            yield ", ".join(place), str(name), value


def _texts(row: Row) -> list[str]:
    return [row.method, row.labels, *(spread(cell) for cell in (row.accuracy, row.balanced, row.flipped, row.gap)), row.selected_by, ratio(row.cost)]


def _narrow_texts(row: Row) -> list[str]:
    """The same but for the rule, with the interval under the mean: "70.1..72.4". A gap in whole percent, for it may be far below 0."""
    numbers = [spread(cell).replace("100.0", "100") for cell in (row.accuracy, row.balanced, row.flipped)] + [spread(row.gap, 0)]
    numbers = [text.replace(" [", "\n").replace(", ", "..").removesuffix("]") for text in numbers]
    return [_folded(row.method, 16), _folded(row.labels, 10), *numbers, ratio(row.cost)]


def _folded(text: str, width: int) -> str:
    """In lines of at most `width` letters, broken behind underscores and at spaces as far as there are any."""
    return "\n".join(line.replace("_ ", "_") for line in textwrap.wrap(text.replace("_", "_ "), width, break_on_hyphens=False))
