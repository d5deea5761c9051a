"""Figures of lines: what training looked like, and how far confidence can be trusted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cimrl_jax.report.canvas import PLAIN, Picture, dashes, legend, look, new_figure, to_svg
from cimrl_jax.report.results import BASELINE, Results, finite

PARTS = (
    ((None, "train"), "loss", "training loss", 1),
    (("validation",), "worst_class_accuracy", "validation worst class accuracy (%)", 100),
    (("validation",), "accuracy", "validation accuracy (%)", 100),
)
"""(splits, number, title, scale) of the panels; the first two for which there are numbers are drawn."""
MOST_BANDS = 6
"""Of more methods, the bands would only hide one another."""


def curves(results: Results, metrics: Iterable[Mapping[str, Any]]) -> Picture | None:
    """Training loss and validation worst-class accuracy by step: mean over seeds, and a band from the lowest to the highest."""
    own = _rows_by_method(results, metrics)
    drawn = [row for rows in own.values() for row in rows if finite(row.get("step"))]
    parts = [part for part in PARTS if any(row.get("split") in part[0] and finite(row.get(part[1])) for row in drawn)][:2]
    if not parts:
        return None
    methods = list(own)
    figure, panels = new_figure(panels=len(parts), height=2.7 + 0.08 * len(methods))
    for axes, (splits, key, label, scale) in zip(panels, parts, strict=True):
        for method in methods:
            by_step: dict[int, dict[Any, float]] = {}
            for row in own[method]:
                if row.get("split") in splits and finite(row.get(key)) and finite(row.get("step")):
                    # By seed, so that a step told twice (before and after a resume) counts once.
                    by_step.setdefault(int(row["step"]), {})[row.get("seed")] = scale * float(row[key])
            steps = sorted(by_step)
            if not steps:
                continue
            colour, marker = look(methods, method)
            values = [list(by_step[step].values()) for step in steps]
            alone = marker if len(steps) == 1 else None
            axes.plot(steps, [np.mean(value) for value in values], color=colour, linewidth=1.6, linestyle=dashes(method, methods), marker=alone)
            if len(methods) <= MOST_BANDS:
                axes.fill_between(steps, [min(value) for value in values], [max(value) for value in values], color=colour, alpha=0.15, linewidth=0)
        axes.set_xlabel("step")
        axes.set_title(label)
    legend(panels[-1], methods, lines=True)
    told = " and ".join(label for _, _, label, _ in parts)
    caption = "Mean over seeds" + ("; the band reaches from the lowest seed to the highest." if len(methods) <= MOST_BANDS else ".")
    if results.settings:
        caption += " Of a sweep, the setting that was chosen."
    return Picture("curves", to_svg(figure, "curves"), f"Curves by training step of {told}, for {', '.join(methods)}.", caption)


def _rows_by_method(results: Results, metrics: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of metrics.jsonl that are drawn: of a sweep those of the chosen setting, whatever program trained it. Older runs name no program."""
    written: dict[str, list[Mapping[str, Any]]] = {}
    for row in metrics:
        written.setdefault(str(row.get("method")), []).append(row)
    found: dict[str, list[Mapping[str, Any]]] = {}
    for method in results.methods():
        members: dict[str, list[Any]] = {}
        for run in results.runs_of(method):
            members.setdefault(str(run.get("program", method)), []).append(run.get("member"))
        found[method] = [
            row for program, own in members.items() for row in written.get(program, ()) if None in own or row.get("member") in (None, *own)
        ]
    return found if any("program" in run for run in results.runs) else found | {name: rows for name, rows in written.items() if name not in found}


def reliability(results: Results) -> Picture | None:
    """Accuracy against confidence, where a split holds "bins": [{"confidence", "accuracy", "n"}]; weighted over seeds."""
    split = results.first_split(lambda split: any((run["splits"].get(split) or {}).get("bins") for run in results.runs))
    if split is None:
        return None
    figure, (axes,) = new_figure(height=3.3, width=4.4)
    axes.plot([0, 100], [0, 100], color=PLAIN, linewidth=1.0, linestyle=dashes(BASELINE))
    methods, drawn = results.methods(), []
    for method in methods:
        sums: dict[int, np.ndarray] = {}
        for run in results.runs_of(method):
            for place, part in enumerate((run["splits"].get(split) or {}).get("bins") or ()):
                if all(finite(part.get(key)) for key in ("confidence", "accuracy", "n")) and part["n"] > 0:
                    weighted = np.asarray([part["n"], part["n"] * part["confidence"], part["n"] * part["accuracy"]], np.float64)
                    sums[place] = sums.get(place, np.zeros(3)) + weighted
        if sums:
            colour, marker = look(methods, method)
            points = np.asarray([sums[place][1:] / sums[place][0] for place in sorted(sums)])
            axes.plot(
                100 * points[:, 0], 100 * points[:, 1], color=colour, linestyle=dashes(method, methods), marker=marker, markersize=4, linewidth=1.4
            )
            drawn.append(method)
    if not drawn:
        return None
    axes.set_xlabel("confidence (%)")
    axes.set_ylabel(f"accuracy on {split} (%)")
    legend(axes, drawn, lines=True, known=methods)
    told = f"Accuracy against confidence on {split}, for {', '.join(drawn)}."
    caption = "On the dotted line, confidence is what accuracy turns out to be."
    return Picture("reliability", to_svg(figure, "reliability"), told, caption)
