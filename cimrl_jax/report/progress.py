"""What long work says while it runs: bars on a terminal, a line now and then elsewhere, nothing when quiet."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


class Bar:
    """One work's progress. `rate` is steps per second over the last updates, so that compiling does not spoil it for long."""

    def __init__(
        self, name: str, *, total: int, completed: int, batch_size: int, unit: str, changed: Callable[[Bar], None], clock: Callable[[], float]
    ):
        self.name, self.total, self.completed, self.batch_size, self.unit = name, total, completed, batch_size, unit
        self.figures: dict[str, Any] = {}
        self._changed, self._clock = changed, clock
        self._times = collections.deque([(clock(), completed)], maxlen=20)

    def update(self, *, completed: int, **figures: Any) -> None:
        """`completed`: steps done so far, of `total`. `figures`: what to show, for instance loss=0.7; they stay until replaced."""
        self.completed = completed
        self.figures.update(figures)
        self._times.append((self._clock(), completed))
        self._changed(self)

    @property
    def rate(self) -> float | None:
        """Steps per second; None before the first update."""
        (start, first), (end, last) = self._times[0], self._times[-1]
        return (last - first) / (end - start) if last > first and end > start else None

    @property
    def remaining(self) -> float | None:
        """Seconds."""
        return (self.total - self.completed) / self.rate if self.rate else None

    def describe(self) -> str:
        """Everything but the name and the count, in one line."""
        parts = []
        if self.rate:
            parts.append(f"{self.rate:.0f} {self.unit}/s" if self.rate >= 100 else f"{self.rate:.3g} {self.unit}/s")
            if self.batch_size:
                parts.append(f"{self.rate * self.batch_size:.0f} examples/s")
        if self.remaining is not None and self.completed < self.total:
            parts.append(f"{duration(self.remaining)} left")
        parts += [f"{name} {number(value)}" for name, value in self.figures.items()]
        return "  ".join(parts)


class Progress:
    """`with Progress() as progress: bar = progress.task("cimrl x 5 seeds", total=800); bar.update(completed=50, loss=0.7); progress.say("text")`.

    Args:
      quiet: print nothing at all.
      every: seconds between two lines of one bar where there is no terminal; the last step is always told.
      console: where to print; standard output if None.
    """

    def __init__(self, quiet: bool = False, *, every: float = 15.0, console: Console | None = None, clock: Callable[[], float] = time.monotonic):
        self._quiet, self._every, self._clock = quiet, every, clock
        self._bars: dict[Bar, Any] = {}
        self._told: dict[Bar, float] = {}
        self._live = None
        if not quiet:
            from rich.console import Console

            self._console = console or Console()

    def __enter__(self) -> Progress:
        if not self._quiet and self._console.is_terminal:
            from rich import progress
            from rich.table import Column

            self._live = progress.Progress(
                progress.TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=32)),
                progress.BarColumn(bar_width=24),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TextColumn("{task.fields[told]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
                console=self._console,
                expand=True,
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def task(self, name: str, *, total: int, completed: int = 0, batch_size: int = 0, unit: str = "steps") -> Bar:
        """A new bar. `completed`: where a resumed run starts; `batch_size`: examples per step, to tell examples/s; `unit`: what is counted."""
        bar = Bar(name, total=total, completed=completed, batch_size=batch_size, unit=unit, changed=self._changed, clock=self._clock)
        self._bars[bar] = self._live.add_task(name, total=total, completed=completed, told="") if self._live is not None else None
        self._told[bar] = self._clock()
        return bar

    def say(self, text: str) -> None:
        """One line above the bars."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _changed(self, bar: Bar) -> None:
        if self._quiet:
            return
        if self._live is not None:
            self._live.update(self._bars[bar], completed=bar.completed, told=bar.describe())
        elif bar.completed >= bar.total or self._clock() - self._told[bar] >= self._every:
            self._told[bar] = self._clock()
            self.say(f"{bar.name}: {bar.completed}/{bar.total}  {bar.describe()}".rstrip())


def duration(seconds: float) -> str:
    """ "45 s", "3 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def number(value: Any) -> str:
    """Four significant digits; text as it is; None as a dash."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{float(value):.4g}"
