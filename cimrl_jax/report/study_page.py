"""A study as one HTML file that needs no network: the tables, and a figure for everything that was varied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cimrl_jax.report import page
from cimrl_jax.report.canvas import PLAIN, Picture, dashes, legend, look, new_figure, style, to_svg, whisker
from cimrl_jax.report.comparison import DUELS, OURS, WORST, Comparison, about, closed, duels, footnote, settings
from cimrl_jax.report.results import BASELINE, CEILING, Cell
from cimrl_jax.report.tables import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE = 8.0
"""Values whose largest is more than this many times the smallest stand on a logarithmic axis."""


def render(found: Comparison) -> str:
    """The page as text.

    Raises:
      UserError: jinja2 or matplotlib is not installed.
    """
    template = page.template("study.html")
    with style():
        pictures = page.drawn({title: made for i, title in enumerate(found.plots) if (made := _plot(found, title, f"plot-{i}"))})
    sections = []
    for title, heads, plot in found.sections():
        entries = [found.columns[name].entries() for name in heads.values()]
        rows = []
        for method in found.methods(heads.values()):
            own = [column.get(method) for column in entries]
            rows.append({"method": method, "entries": own, "about": about(entry for entry in own if entry)})
        splits = ", ".join(dict.fromkeys(column.split for name in heads.values() if (column := found.columns[name]).results))
        sections.append({"title": title, "heads": list(heads), "rows": rows, "splits": splits, "picture": plot and pictures.get(plot)})
    return template.render(
        title=found.name,
        methods=[method for method in found.methods() if method != CEILING],
        columns=len(found.columns),
        measured=sum(column.results is not None for column in found.columns.values()),
        notes=found.notes(),
        sections=sections,
        ceiling=CEILING,
        ours=OURS,
        duels=duels(found),
        duels_note=DUELS,
        settings=settings(found),
        note=footnote(found),
    )


def _plot(found: Comparison, title: str, name: str) -> Picture | None:
    """Worst group and gap closed of every method against the number that varies."""
    points = {float(value): column for value, key in found.plots[title].items() if (column := found.columns[key]).results}
    methods = found.methods(found.plots[title].values())
    if not methods:
        return None
    points = dict(sorted(points.items()))
    worst = {method: {x: own for x, at in points.items() if at.results and (own := at.results.cell(method, at.split, WORST))} for method in methods}
    gaps = {x: closed(at.results) for x, at in points.items() if at.results}
    shares = {method: {x: own[method] for x, own in gaps.items() if method in own} for method in methods if method not in (BASELINE, CEILING)}
    panels = [("worst group (%)", worst)] + [("gap closed (%)", shares)] * any(shares.values())
    figure, axes = new_figure(panels=len(panels), height=3.2, grid="both")
    for own, (label, curves) in zip(axes, panels, strict=True):
        _curves(own, curves, found.methods())
        _ticks(own, list(points))
        own.set_xlabel(title)
        own.set_title(label)
    axes[0].set_ylim(0, 102)
    if len(axes) > 1:
        for height, method in ((0, BASELINE), (100, CEILING)):
            axes[1].axhline(height, color=PLAIN, linewidth=1.0, linestyle=dashes(method), zorder=1)
    legend(axes[0], methods, lines=True, known=found.methods())
    told = "".join(f" {method}: " + "; ".join(f"{x:g}: {spread(cell)}" for x, cell in own.items()) + "." for method, own in worst.items())
    caption = f"Mean over seeds, whiskers: {100 * found.level():g} % interval. Gap closed: 0 is ERM, 100 the ceiling."
    return Picture(name, to_svg(figure, name), f"Worst group in percent against {title}.{told}", caption)


def _curves(axes: Axes, curves: Mapping[str, Mapping[float, Cell]], methods: list[str]) -> None:
    for method, own in curves.items():
        colour, marker = look(methods, method)
        heights = [100 * cell.mean for cell in own.values()]
        face = "none" if method == CEILING else colour
        line = {"linestyle": dashes(method, methods), "linewidth": 1.6, "markersize": 4.5, "markerfacecolor": face}
        axes.plot(list(own), heights, color=colour, marker=marker, zorder=3, **line)
        for x, cell in own.items():
            whisker(axes, x, cell, colour)


def _ticks(axes: Axes, values: list[float]) -> None:
    """A tick at every value."""
    if min(values) > 0 and max(values) > WIDE * min(values):
        axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(values, [f"{value:g}" for value in values])
