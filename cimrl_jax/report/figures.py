"""The figures of the page: what each one shows. How they look is the canvas's matter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from cimrl_jax.report.canvas import INK, PLAIN, dashes, legend, look, new_figure, short, slant, style, to_svg, whisker
from cimrl_jax.report.results import BASELINE, CEILING, GROUP, Results

MOST_GROUPS = 12


class Picture(NamedTuple):
    """One figure: `svg` is markup made here (user text in it is escaped), `alt` and `caption` are plain text."""

    name: str
    title: str
    svg: str
    alt: str
    caption: str


def figures(results: Results, metrics: Iterable[Mapping[str, Any]]) -> dict[str, Picture]:
    """All figures for which there are numbers: "groups", "seeds", "gap", "curves", "reliability".

    Args:
      results: of the run.
      metrics: the rows of metrics.jsonl.

    Raises:
      UserError: matplotlib is not installed.
    """
    with style():
        pictures = [maker(results) for maker in (_groups, _seeds, _gap, _reliability)] + [_curves(results, list(metrics))]
    return {picture.name: picture for picture in pictures if picture is not None}


def _groups(results: Results) -> Picture | None:
    """Accuracy of every group, per method, with intervals."""
    split = _first_split(results, lambda split: any(line["metric"].startswith(GROUP) for line in results.summary if line["split"] == split))
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
    figure, (axes,) = new_figure(height=2.9 + 0.08 * len(methods))
    width = 0.8 / len(methods)
    for place, method in enumerate(methods):
        colour, _ = look(methods, method)
        for at, name in enumerate(names):
            cell = table[name][place]
            if cell is None:
                continue
            x = at + (place - (len(methods) - 1) / 2) * width
            hollow = method == CEILING
            axes.bar(x, 100 * cell.mean, width * 0.86, color="none" if hollow else colour, edgecolor=colour, linewidth=1.0 if hollow else 0)
            whisker(axes, x, cell, INK)
    labels = [short(name.removeprefix(GROUP)) for name in names]
    axes.set_xticks(range(len(names)), labels, **slant(len(labels)))
    axes.set_ylabel(f"accuracy on {split} (%)")
    axes.set_ylim(0, 102)
    legend(axes, methods)
    told = ""
    for place, method in enumerate(methods):
        cells = [(cell.mean, name.removeprefix(GROUP)) for name in names if (cell := table[name][place])]
        if cells:
            told += f" {method}: worst {min(cells)[1]}, {100 * min(cells)[0]:.1f}."
    some = f"The {MOST_GROUPS} hardest of {total} groups. " if total > MOST_GROUPS else ""
    caption = f"{some}Mean over seeds; whiskers: {100 * results.level():g} % interval. The ceiling is ERM trained where the shortcut is randomised."
    return Picture("groups", "Accuracy of each group", to_svg(figure, "groups"), f"Bars of the accuracy of each group in percent.{told}", caption)


def _seeds(results: Results) -> Picture | None:
    """Worst-group accuracy of every seed, with lines for ERM and the ceiling."""
    metric = "worst_group_accuracy"
    splits = [split for split in ("test_balanced", "test_flipped") if any(results.cell(method, split, metric) for method in results.methods())]
    if not splits:
        return None
    methods = results.methods()
    figure, panels = new_figure(panels=len(splits), height=3.0)
    for axes, split in zip(panels, splits, strict=True):
        for name in (BASELINE, CEILING):
            if cell := results.cell(name, split, metric):
                axes.axhline(100 * cell.mean, color=PLAIN, linewidth=1.0, linestyle=dashes(name), zorder=1)
        for at, method in enumerate(methods):
            colour, marker = look(methods, method)
            values = _values(results.runs_of(method), split, metric)
            # Spread by order, not by chance: the same figure every time.
            shift = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(len(values))
            face = "none" if method == CEILING else colour
            heights = [100 * value for value in values]
            axes.scatter(at + shift, heights, s=26, marker=marker, facecolors=face, edgecolors=colour, linewidths=1.0, zorder=3)
            if cell := results.cell(method, split, metric):
                axes.plot([at - 0.28, at + 0.28], [100 * cell.mean] * 2, color=INK, linewidth=1.6, zorder=4)
        labels = [short(method) for method in methods]
        axes.set_xticks(range(len(methods)), labels, **slant(len(labels)))
        axes.set_xlim(-0.6, len(methods) - 0.4)
        axes.set_ylim(0, 102)
        axes.set_title(split)
    panels[0].set_ylabel("worst-group accuracy (%)")
    told = ""
    for split in splits:
        for method in methods:
            values = _values(results.runs_of(method), split, metric)
            told += f" {method} on {split}: {', '.join(f'{100 * value:.1f}' for value in values) or 'not measured'}."
    caption = "A mark is one seed, a bar the mean. Dotted line: ERM. Dashed line: the ceiling."
    return Picture("seeds", "Worst group, seed by seed", to_svg(figure, "seeds"), f"Worst-group accuracy of every seed in percent.{told}", caption)


def _gap(results: Results) -> Picture | None:
    """The share of the gap between ERM and the ceiling that each method closed."""
    cells = [(method, cell) for method in results.methods() if (cell := results.gap(method)) is not None]
    if not cells:
        return None
    figure, (axes,) = new_figure(height=0.9 + 0.36 * len(cells))
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
    return Picture("gap", "Gap closed", to_svg(figure, "gap"), f"Bars of the gap that each method closed: {told}.", caption)


def _curves(results: Results, metrics: Sequence[Mapping[str, Any]]) -> Picture | None:
    """Training loss and validation worst-class accuracy by step: mean over seeds, and a band from the lowest to the highest."""
    losses = [row for row in metrics if row.get("split") in (None, "train")]
    checks = [row for row in metrics if row.get("split") == "validation"]
    measure = next((name for name in ("worst_class_accuracy", "accuracy") if any(_finite(row.get(name)) for row in checks)), "")
    parts = [(losses, "loss", "training loss", 1), (checks, measure, f"validation {measure.replace('_', ' ')} (%)", 100)]
    parts = [part for part in parts if any(_finite(row.get(part[1])) for row in part[0])]
    if not parts:
        return None
    methods = results.methods()
    methods += [name for name in dict.fromkeys(str(row.get("method")) for row in metrics) if name not in methods]
    figure, panels = new_figure(panels=len(parts), height=2.7 + 0.08 * len(methods))
    for axes, (rows, key, label, scale) in zip(panels, parts, strict=True):
        for method in methods:
            by_step: dict[int, dict[Any, float]] = {}
            for row in rows:
                if row.get("method") == method and _finite(row.get(key)) and _finite(row.get("step")):
                    # By seed, so that a step told twice (before and after a resume) counts once.
                    by_step.setdefault(int(row["step"]), {})[row.get("seed")] = scale * float(row[key])
            steps = sorted(by_step)
            if not steps:
                continue
            colour, marker = look(methods, method)
            values = [list(by_step[step].values()) for step in steps]
            alone = marker if len(steps) == 1 else None
            axes.plot(steps, [np.mean(value) for value in values], color=colour, linewidth=1.6, linestyle=dashes(method), marker=alone)
            axes.fill_between(steps, [min(value) for value in values], [max(value) for value in values], color=colour, alpha=0.15, linewidth=0)
        axes.set_xlabel("step")
        axes.set_title(label)
    legend(panels[-1], methods, lines=True)
    told = " and ".join(label for _, _, label, _ in parts)
    caption = "Mean over seeds; the band reaches from the lowest seed to the highest."
    return Picture("curves", "Training", to_svg(figure, "curves"), f"Curves by training step of {told}, for {', '.join(methods)}.", caption)


def _reliability(results: Results) -> Picture | None:
    """Accuracy against confidence, where a split holds "bins": [{"confidence", "accuracy", "n"}]; weighted over seeds."""
    split = _first_split(results, lambda split: any((run["splits"].get(split) or {}).get("bins") for run in results.runs))
    if split is None:
        return None
    figure, (axes,) = new_figure(height=3.3, width=4.4)
    axes.plot([0, 100], [0, 100], color=PLAIN, linewidth=1.0, linestyle=dashes(BASELINE))
    methods, drawn = results.methods(), []
    for method in methods:
        sums: dict[int, np.ndarray] = {}
        for run in results.runs_of(method):
            for place, part in enumerate((run["splits"].get(split) or {}).get("bins") or ()):
                if all(_finite(part.get(key)) for key in ("confidence", "accuracy", "n")) and part["n"] > 0:
                    weighted = np.asarray([part["n"], part["n"] * part["confidence"], part["n"] * part["accuracy"]], np.float64)
                    sums[place] = sums.get(place, np.zeros(3)) + weighted
        if sums:
            colour, marker = look(methods, method)
            points = np.asarray([sums[place][1:] / sums[place][0] for place in sorted(sums)])
            axes.plot(100 * points[:, 0], 100 * points[:, 1], color=colour, marker=marker, markersize=4, linewidth=1.4)
            drawn.append(method)
    if not drawn:
        return None
    axes.set_xlabel("confidence (%)")
    axes.set_ylabel(f"accuracy on {split} (%)")
    legend(axes, drawn, lines=True, known=methods)
    told = f"Accuracy against confidence on {split}, for {', '.join(drawn)}."
    caption = "On the dotted line, confidence is what accuracy turns out to be."
    return Picture("reliability", "Calibration", to_svg(figure, "reliability"), told, caption)


def _first_split(results: Results, fits: Callable[[str], bool]) -> str | None:
    known = dict.fromkeys(["test_balanced", "test", *(split for run in results.runs for split in run["splits"])])
    return next((split for split in known if fits(split)), None)


def _values(runs: Sequence[Mapping[str, Any]], split: str, metric: str) -> list[float]:
    found = [(run["splits"].get(split) or {}).get(metric) for run in runs]
    return [float(value) for value in found if _finite(value)]


def _finite(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and math.isfinite(value)
