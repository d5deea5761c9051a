"""The figures of the page: what each one shows. How they look is the canvas's matter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cimrl_jax.report.canvas import (
    INK,
    PLAIN,
    SERIES,
    Picture,
    dashes,
    legend,
    lines,
    look,
    name_points,
    new_figure,
    short,
    slant,
    style,
    to_svg,
    whisker,
)
from cimrl_jax.report.curves import curves, reliability
from cimrl_jax.report.results import BASELINE, CEILING, GROUP, Cell, Results, finite
from cimrl_jax.report.tables import cost_rows, ratio, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_GROUPS, MOST_BARS = 12, 6
"""Of more groups only the hardest are shown; of more methods every accuracy is a tile, since the bars would be too thin to see."""
WORST = "worst_group_accuracy"


def figures(results: Results, metrics: Iterable[Mapping[str, Any]]) -> dict[str, Picture]:
    """All figures for which there are numbers: "groups", "seeds", "gap", "tradeoff", "curves", "reliability".

    Args:
      results: of the run.
      metrics: the rows of metrics.jsonl.

    Raises:
      UserError: matplotlib is not installed.
    """
    with style():
        pictures = [maker(results) for maker in (_groups, _seeds, _gap, _tradeoff, reliability)] + [curves(results, metrics)]
    return {picture.name: picture for picture in pictures if picture is not None}


def _groups(results: Results) -> Picture | None:
    """Accuracy of every group, per method, with intervals."""
    split = results.first_split(lambda split: any(line["metric"].startswith(GROUP) for line in results.summary if line["split"] == split))
    if split is None:
        return None
    methods = results.methods()
    names = list(dict.fromkeys(line["metric"] for line in results.summary if line["split"] == split and line["metric"].startswith(GROUP)))
    table = {name: [results.cell(method, split, name) for method in methods] for name in names}
    names = [name for name in names if any(table[name])]
    if not names:
        return None
    total = len(names)
    if total > MOST_GROUPS:
        first = {name: next(cell.mean for cell in table[name] if cell) for name in names}
        hardest = sorted(names, key=lambda name: first[name])[:MOST_GROUPS]
        names = [name for name in names if name in hardest]
    tiles = len(methods) > MOST_BARS
    figure = (_group_tiles if tiles else _group_bars)(methods, {name.removeprefix(GROUP): table[name] for name in names}, split)
    told = ""
    for place, method in enumerate(methods):
        cells = [(cell.mean, name.removeprefix(GROUP)) for name in names if (cell := table[name][place])]
        if cells:
            told += f" {method}: worst {min(cells)[1]}, {100 * min(cells)[0]:.1f}."
    some = f"The {MOST_GROUPS} hardest of {total} groups. " if total > MOST_GROUPS else ""
    marks = f"accuracy on {split} in percent, the lower the stronger the colour." if tiles else f"whiskers: {100 * results.level():g} % interval."
    ceiling = " The ceiling is ERM trained where the shortcut is randomised." if CEILING in methods else ""
    caption = f"{some}Mean over seeds; {marks}{ceiling}"
    shapes = "Tiles" if tiles else "Bars"
    return Picture("groups", to_svg(figure, "groups"), f"{shapes} of the accuracy of each group in percent.{told}", caption)


def _group_bars(methods: Sequence[str], table: Mapping[str, Sequence[Cell | None]], split: str) -> Figure:
    figure, (axes,) = new_figure(height=2.9 + 0.08 * len(methods))
    width = 0.8 / len(methods)
    for place, method in enumerate(methods):
        colour, _ = look(methods, method)
        for at, cells in enumerate(table.values()):
            cell = cells[place]
            if cell is None:
                continue
            x = at + (place - (len(methods) - 1) / 2) * width
            hollow = method == CEILING
            axes.bar(x, 100 * cell.mean, width * 0.86, color="none" if hollow else colour, edgecolor=colour, linewidth=1.0 if hollow else 0)
            whisker(axes, x, cell, INK)
    axes.set_xticks(range(len(table)), [lines(name) for name in table], **slant(len(table)))
    axes.set_ylabel(f"accuracy on {split} (%)")
    axes.set_ylim(0, 102)
    legend(axes, methods)
    return figure


def _group_tiles(methods: Sequence[str], table: Mapping[str, Sequence[Cell | None]], split: str) -> Figure:
    from matplotlib.patches import Rectangle

    figure, (axes,) = new_figure(height=0.9 + 0.26 * len(methods))
    for at, cells in enumerate(table.values()):
        for place, cell in enumerate(cells):
            if cell is not None:
                # Paler than the text on it in either theme.
                shade = 0.65 * (1 - min(max(cell.mean, 0.0), 1.0))
                axes.add_patch(Rectangle((at - 0.48, place - 0.46), 0.96, 0.92, facecolor=SERIES[1], alpha=shade, linewidth=0))
                axes.text(at, place, f"{100 * cell.mean:.0f}", ha="center", va="center")
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(-0.5, len(table) - 0.5)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_xticks(range(len(table)), [lines(name) for name in table], **slant(len(table)))
    axes.set_yticks(range(len(methods)), [short(method) for method in methods])
    return figure


def _seeds(results: Results) -> Picture | None:
    """Worst-group accuracy of every method, the highest first: seeds, mean and interval, with lines for ERM and the ceiling."""
    known = [[split for split in splits if _worst_cells(results, split)] for splits in (("test_balanced", "test_flipped"), ("test",))]
    splits = known[0] or known[1]
    if not splits:
        return None
    cells = {split: _worst_cells(results, split) for split in splits}
    methods = sorted(results.methods(), key=lambda method: -cell.mean if (cell := cells[splits[0]].get(method)) else 1.0)
    figure, panels = new_figure(panels=len(splits), height=0.9 + 0.28 * len(methods), grid="x")
    for axes, split in zip(panels, splits, strict=True):
        for name in (BASELINE, CEILING):
            if cell := cells[split].get(name):
                axes.axvline(100 * cell.mean, color=PLAIN, linewidth=1.0, linestyle=dashes(name), zorder=1)
        for at, method in enumerate(methods):
            colour, marker = look(results.methods(), method)
            values = [100 * value for run in results.runs_of(method) if finite(value := (run["splits"].get(split) or {}).get(WORST))]
            # Spread by order, not by chance: the same figure every time.
            shift = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(len(values))
            face = "none" if method == CEILING else colour
            axes.scatter(values, at + shift, s=16, marker=marker, facecolors=face, edgecolors=colour, linewidths=0.8, zorder=3)
            if cell := cells[split].get(method):
                axes.plot([100 * cell.mean] * 2, [at - 0.34, at + 0.34], color=INK, linewidth=1.6, zorder=4)
                whisker(axes, at, cell, INK, flat=True)
        axes.set_yticks(range(len(methods)), [short(method) for method in methods] if axes is panels[0] else [])
        axes.set_ylim(len(methods) - 0.4, -0.6)
        axes.set_xlim(0, 102)
        axes.set_title(split)
        axes.set_xlabel("worst-group accuracy (%)")
    told = "".join(f" {method} on {split}: {spread(cells[split].get(method))}." for split in splits for method in methods)
    caption = (
        f"The highest on {splits[0]} first. A mark is one seed, the upright bar the mean, the line across it the "
        f"{100 * results.level():g} % interval."
    )
    caption += "".join(text for name, text in {BASELINE: " Dotted line: ERM.", CEILING: " Dashed line: the ceiling."}.items() if name in methods)
    return Picture("seeds", to_svg(figure, "seeds"), f"Worst-group accuracy in percent.{told}", caption)


def _gap(results: Results) -> Picture | None:
    """The share of the gap between ERM and the ceiling that each method closed."""
    cells = [(method, cell) for method in results.methods() if (cell := results.gap(method)) is not None]
    if not cells:
        return None
    cells.sort(key=lambda found: -found[1].mean)
    figure, (axes,) = new_figure(height=0.9 + 0.3 * len(cells))
    for at, (method, cell) in enumerate(cells):
        axes.barh(at, 100 * cell.mean, 0.56, color=look(results.methods(), method)[0])
        whisker(axes, at, cell, INK, flat=True)
    for x, name, method in ((0, "ERM", BASELINE), (100, "ceiling", CEILING)):
        axes.axvline(x, color=PLAIN, linewidth=1.0, linestyle=dashes(method), zorder=0)
        axes.annotate(name, (x, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points", ha="center", color=PLAIN)
    axes.set_yticks(range(len(cells)), [short(method) for method, _ in cells])
    axes.set_ylim(len(cells) - 0.4, -0.6)
    bounds = [100 * bound for _, cell in cells for bound in (cell.mean, cell.low, cell.high) if bound is not None]
    axes.set_xlim(min(-5.0, *bounds) - 3, max(105.0, *bounds) + 3)
    axes.set_xlabel("gap closed (%)")
    axes.grid(axis="y", visible=False)
    told = "; ".join(f"{method} {100 * cell.mean:.0f} percent" for method, cell in cells)
    caption = f"0 is ERM, 100 is ERM trained where the shortcut is randomised. Whiskers: {100 * results.level():g} % interval over seeds."
    return Picture("gap", to_svg(figure, "gap"), f"Bars of the gap that each method closed: {told}.", caption)


def _tradeoff(results: Results) -> Picture | None:
    """Worst group against the time of training."""
    split = results.headline_split()
    cells, methods = _worst_cells(results, split), results.methods()
    costs = {cost.method: cost.relative for cost in cost_rows(results) if cost.relative is not None and cost.relative > 0 and cost.method in cells}
    if len(costs) < 2:
        return None
    figure, (axes,) = new_figure(height=2.6 + 0.1 * len(costs), grid="both")
    for method, cost in costs.items():
        colour, marker = look(methods, method)
        axes.scatter(
            cost, 100 * cells[method].mean, s=34, marker=marker, facecolors="none" if method == CEILING else colour, edgecolors=colour, zorder=5
        )
        whisker(axes, cost, cells[method], colour)
    least, most = min(costs.values()), max(costs.values())
    if most > 4 * least:
        axes.set_xscale("log")
        axes.set_xlim(least / 2, most * 2)
        axes.minorticks_off()
        ticks = [step * 10.0**power for power in range(-3, 5) for step in (1, 2, 5) if least / 2 <= step * 10.0**power <= most * 2]
        axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    else:
        axes.set_xlim(least - 0.25 * most, 1.25 * most)
        axes.xaxis.set_major_formatter("{x:g}×")
    axes.set_ylim(0, 102)
    axes.set_xlabel("training time, relative to ERM")
    axes.set_ylabel(f"worst group on {split} (%)")
    name_points(axes, [(cost, 100 * cells[method].mean, short(method)) for method, cost in costs.items()])
    told = "; ".join(f"{method} {100 * cells[method].mean:.1f} percent at {ratio(cost)}" for method, cost in costs.items())
    caption = f"Better is up, cheaper is left. Mean over seeds; whiskers: {100 * results.level():g} % interval."
    return Picture("tradeoff", to_svg(figure, "tradeoff"), f"Worst group against training time: {told}.", caption)


def _worst_cells(results: Results, split: str) -> dict[str, Cell]:
    return {method: cell for method in results.methods() if (cell := results.cell(method, split, WORST))}
