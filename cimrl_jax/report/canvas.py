"""How figures look: inline SVG whose colours follow the reader's light or dark theme.

matplotlib is used through `Figure` objects only: no pyplot, no window, no state that outlives a call.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cimrl_jax.errors import UserError
from cimrl_jax.report.results import BASELINE, CEILING, Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, PLAIN = "#1b1f24", "#b5bac1", "#7d838c"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#999933")
"""Okabe and Ito's colours, which the colour-blind tell apart, then two darker ones; the baseline and the ceiling are grey."""
MARKERS = "osD^vPX<"
THEME = {INK: "--ink", FAINT: "--rule", PLAIN: "--plain"} | {colour: f"--series-{place}" for place, colour in enumerate(SERIES)}
"""The page's variable for each colour, so that one drawing suits both themes."""


class Picture(NamedTuple):
    """One figure: `svg` is markup made here (user text in it is escaped), `alt` and `caption` are plain text."""

    name: str
    svg: str
    alt: str
    caption: str


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Every figure is made inside.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("the page needs matplotlib; pip install 'cimrl_jax[report]'") from error
    settings: dict[str, Any] = {
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.edgecolor": FAINT,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "text.parse_math": False,  # a dollar in a name is a dollar
        "text.usetex": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "cimrl_jax",
    }
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]  # its keys are a closed list of names
        yield


def dashes(method: str, methods: Sequence[str] = ()) -> Any:
    """The line of ERM is dotted and the ceiling's is dashed, wherever they appear; others are broken only where the colours come round again."""
    if method in (BASELINE, CEILING) or not methods:
        return {BASELINE: (0, (1, 1.4)), CEILING: (0, (5, 2.5))}.get(method, "-")
    return ("-", (0, (9, 1.5)), (0, (9, 1.5, 2, 1.5)))[_place(methods, method) // len(SERIES) % 3]


def short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def lines(name: str) -> str:
    """A group's name with each of its parts on a line, so that what tells groups apart is not what is cut off."""
    return "\n".join(short(part) for part in name.split(", "))


def look(methods: Sequence[str], method: str) -> tuple[str, str]:
    """(colour, marker), the same in every figure."""
    if method in (BASELINE, CEILING):
        return PLAIN, "o"
    place = _place(methods, method)
    return SERIES[place % len(SERIES)], MARKERS[(place + place // len(SERIES)) % len(MARKERS)]


def _place(methods: Sequence[str], method: str) -> int:
    return [name for name in methods if name not in (BASELINE, CEILING)].index(method)


def whisker(axes: Axes, at: float, cell: Cell, colour: str, flat: bool = False) -> None:
    if cell.low is not None and cell.high is not None:
        bounds = [100 * cell.low, 100 * cell.high]
        axes.plot(bounds if flat else [at, at], [at, at] if flat else bounds, color=colour, linewidth=1.2, solid_capstyle="butt", zorder=4)


def legend(axes: Axes, methods: Sequence[str], lines: bool = False, known: Sequence[str] | None = None) -> None:
    """Puts the methods' colours beside the axes, as lines or patches; their looks are those that they have among `known`, so that figures agree."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = []
    for method in methods:
        colour, marker = look(known or methods, method)
        hollow = method == CEILING
        if lines:
            handles.append(Line2D([], [], color=colour, linestyle=dashes(method, known or methods), linewidth=1.6, label=short(method)))
        else:
            handles.append(Patch(facecolor="none" if hollow else colour, edgecolor=colour, linewidth=1.0 if hollow else 0, label=short(method)))
    figure = axes.get_figure(root=True)
    assert figure is not None
    # In inches: a handle with its gaps, and the longest label at nine points.
    columns = int(figure.get_figwidth() / (0.55 + 0.09 * max(len(short(method)) for method in methods)))
    columns = max(1, min(len(handles), columns))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False, handlelength=1.6, borderpad=0)


def slant(count: int) -> dict[str, Any]:
    """How the labels below an axis stand: aslant when there are many."""
    return {} if count <= 5 else {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}


def name_points(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Writes each (x, y, name) beside its point where it covers least of what is there already; a thin line leads to a name that stands apart."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the layout is made, so that data have their places
    scale = 72 / figure.dpi
    places = [scale * axes.transData.transform((x, y)) for x, y, _ in points]
    left, low, right, high = (scale * number for number in axes.bbox.extents)
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    tries = [(dx, dy, side) for dy in (0, 7, -7, 14, -14, 22, -22, 30, -30, 40, -40) for dx, side in ((7, "left"), (-7, "right"))]
    # From the top down, so that a name that must give way goes where there is no name yet.
    for (x, y), (at, height, name) in sorted(zip(places, points, strict=True), key=lambda found: -found[1][1]):
        wide = 4.9 * len(name)  # nine-point letters
        best = (float("inf"), tries[0], taken[0])
        for dx, dy, side in tries:
            start = x + dx - (wide if side == "right" else 0)
            box = (start, y + dy - 5, start + wide, y + dy + 5)
            cover = sum(max(0, min(box[2], b[2]) - max(box[0], b[0])) * max(0, min(box[3], b[3]) - max(box[1], b[1])) for b in taken)
            cover += 10 * sum(max(0, over) for over in (left - box[0], box[2] - right, low - box[1], box[3] - high))
            best = min(best, (cover, (dx, dy, side), box), key=lambda found: found[0])
        _, (dx, dy, side), box = best
        taken.append(box)
        lead = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4} if abs(dy) > 7 else None
        axes.annotate(name, (at, height), xytext=(dx, dy), textcoords="offset points", ha=side, va="center", arrowprops=lead)


def new_figure(*, panels: int = 1, height: float, width: float = 7.6, grid: Literal["x", "y", "both"] = "y") -> tuple[Figure, list[Axes]]:
    """A row of panels with grid lines at the ticks of one axis or both. Sizes in inches; the page stretches the whole to its own width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    row = figure.subplots(1, panels, squeeze=False)[0]
    for axes in row:
        axes.grid(axis=grid, color=FAINT, linewidth=0.6, alpha=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
    return figure, list(row)


def to_svg(figure: Figure, name: str) -> str:
    """The drawing without what a page does not need: declaration, metadata, fixed size; ids begin with `name`, so that two drawings do not clash."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], count=1, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)  # it would hold for the whole page; the page's own has it
    head, rest = svg.split(">", 1)
    # Only inside tags: in the text of an SVG every "<" is escaped, so a tag is what stands between "<" and ">".
    rest = re.sub(r"<[^<>]*>", lambda tag: _themed(tag.group(), name), rest)
    box = re.search(r'viewBox="[^"]*"', head)
    return f'<svg {box.group() if box else ""} aria-hidden="true" focusable="false">{rest}'


def _themed(tag: str, name: str) -> str:
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag)
    return re.sub(r"(fill|stroke): ?(#[0-9a-f]{6})", lambda found: f"{found[1]}: {_variable(found[2])}", tag)


def _variable(colour: str) -> str:
    return f"var({THEME[colour]}, {colour})" if colour in THEME else colour
