"""How figures look: inline SVG whose colours follow the reader's light or dark theme.

matplotlib is used through `Figure` objects only: no pyplot, no window, no state that outlives a call.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

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


def dashes(method: str) -> Any:
    """The line of ERM is dotted and the ceiling's is dashed, wherever they appear."""
    return {BASELINE: (0, (1, 1.4)), CEILING: (0, (5, 2.5))}.get(method, "-")


def short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def look(methods: Sequence[str], method: str) -> tuple[str, str]:
    """(colour, marker), the same in every figure."""
    if method in (BASELINE, CEILING):
        return PLAIN, "o"
    place = [name for name in methods if name not in (BASELINE, CEILING)].index(method)
    return SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]


def whisker(axes: Axes, at: float, cell: Cell, colour: str, flat: bool = False) -> None:
    if cell.low is not None and cell.high is not None:
        bounds = [100 * cell.low, 100 * cell.high]
        axes.plot(bounds if flat else [at, at], [at, at] if flat else bounds, color=colour, linewidth=1.2, solid_capstyle="butt", zorder=4)


def legend(axes: Axes, methods: Sequence[str], lines: bool = False, known: Sequence[str] | None = None) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = []
    for method in methods:
        colour, marker = look(known or methods, method)
        hollow = method == CEILING
        if lines:
            handles.append(Line2D([], [], color=colour, linestyle=dashes(method), linewidth=1.6, label=short(method)))
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


def new_figure(*, panels: int = 1, height: float, width: float = 7.6) -> tuple[Figure, list[Axes]]:
    """A row of panels. Sizes in inches; the page stretches the whole to its own width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    row = figure.subplots(1, panels, squeeze=False)[0]
    for axes in row:
        axes.grid(axis="y", color=FAINT, linewidth=0.6, alpha=0.6)
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
