"""Progress: bars on a terminal, lines elsewhere, silence when quiet."""

from __future__ import annotations

import io

from rich.console import Console

from cimrl_jax.report import progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_lines_come_at_intervals_and_at_the_end():
    stream, clock = io.StringIO(), Clock()
    with progress.Progress(every=10, console=Console(file=stream, width=40), clock=clock) as shown:
        bar = shown.task("cimrl x 5 seeds", total=400, batch_size=64)
        for step in range(50, 401, 50):
            clock.now += 5
            bar.update(completed=step, loss=1 / step, worst_class=None)
        shown.say("[done] with it")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "cimrl x 5 seeds: 100/400  10 steps/s  640 examples/s  30 s left  loss 0.01  worst_class –"
    assert [line.split()[4] for line in lines[:-1]] == ["100/400", "200/400", "300/400", "400/400"]
    assert "left" not in lines[-2] and lines[-1] == "[done] with it"


def test_quiet_prints_nothing(capsys):
    with progress.Progress(quiet=True) as shown:
        shown.task("erm", total=1).update(completed=1, loss=0.1)
        shown.say("text")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar():
    stream = io.StringIO()
    with progress.Progress(console=Console(file=stream, force_terminal=True, width=120)) as shown:
        bar = shown.task("[b]erm", total=10)
        bar.update(completed=10, loss=0.25)
        shown.say("a line above")
    text = stream.getvalue()
    assert "[b]erm" in text and "10/10" in text and "loss 0.25" in text and "a line above" in text


def test_the_rate_of_a_resumed_run_counts_only_what_it_did():
    clock = Clock()
    with progress.Progress(quiet=True, clock=clock) as shown:
        bar = shown.task("erm", total=800, completed=600)
        assert bar.rate is None and bar.remaining is None
        clock.now = 10
        bar.update(completed=700)
    assert bar.rate == 10 and bar.remaining == 10


def test_durations_read_well():
    assert [progress.duration(seconds) for seconds in (4.6, 59.6, 200, 7500)] == ["5 s", "1 min 00 s", "3 min 20 s", "2 h 05 min"]
