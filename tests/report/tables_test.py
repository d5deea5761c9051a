"""The tables say what the results hold."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cimrl_jax.report import tables


def _console(results, width=80):
    stream = io.StringIO()
    Console(file=stream, width=width).print(tables.console_table(results))
    return stream.getvalue()


def test_a_row_holds_the_method_s_numbers(sample):
    results = sample.results()
    erm, cimrl, ceiling = tables.rows(results)
    assert [row.method for row in (erm, cimrl, ceiling)] == ["erm", "cimrl", "ceiling"]
    assert cimrl.balanced == results.cell("cimrl", "test_balanced", "worst_group_accuracy")
    assert cimrl.flipped == results.cell("cimrl", "test_flipped", "worst_group_accuracy")
    assert cimrl.gap is not None and cimrl.gap.mean == 0.79
    assert (erm.cost, cimrl.cost) == (1.0, 3.0)
    assert [row.best for row in (erm, cimrl, ceiling)] == [False, True, False]  # the ceiling is higher, but cannot be had


def test_a_ceiling_that_is_reached_is_still_not_the_best(sample):
    lines = sample.runs(methods=("cimrl", "ceiling"))
    for run in lines:
        run["splits"]["test_balanced"]["worst_group_accuracy"] = 0.5
    assert [row.best for row in tables.rows(sample.results(lines))] == [True, False]


@pytest.mark.parametrize(
    ("told", "rule", "labels"),
    [
        ({"needs": "none"}, "worst_class", "none"),
        ({"needs": "none"}, "worst_group", "to select"),
        ({"needs": "attribute names"}, "average", "attribute names"),
        ({"needs": "attribute names"}, "worst_group", "attribute names + to select"),
        ({"needs": "groups"}, "worst_group", "groups"),
        ({"needs": "validation groups"}, "worst_group", "validation groups"),
        ({"needs_groups": True}, "worst_group", "groups"),
        ({"needs_groups": False}, "worst_class", "none"),
        ({"needs": None}, "last", "–"),
        ({}, "worst_group", "to select"),
    ],
)
def test_labels_are_told_from_what_the_runs_say(sample, told, rule, labels):
    lines = [{name: value for name, value in run.items() if name != "needs"} | told | {"selected_by": rule} for run in sample.runs(methods=("erm",))]
    assert [row.labels for row in tables.rows(sample.results(lines))] == [labels]


def test_twenty_methods_fit_80_columns_whole_in_the_order_given(sample):
    lines = sample.many()
    names = list(dict.fromkeys(run["method"] for run in lines))
    gaps = {name: {"mean": -1.5, "ci95": [-2.504, -1.001]} for name in names[1:-1]}
    text = _console(sample.results(lines, gap_closed=gaps))
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    rows = text.partition("─\n")[2].partition("Percent:")[0].splitlines()
    told = [row[:14].strip() for row in rows]
    assert "".join(told) == "".join(names) and ("clip_", "contrastive") in zip(told, told[1:], strict=False)
    assert text.count("-250..-100") == 18 and text.count("30.0×") >= 1 and "100 ± 0.0" in text
    assert "Selected by: worst_class (erm, clip_contrastive" in text and "Selected by: worst_class." in " ".join(_console(sample.results()).split())


def test_the_console_table_fits_80_columns_whole(sample):
    text = _console(sample.results())
    assert "…" not in text
    row = next(line for line in text.splitlines() if line.startswith("cimrl"))
    cell = sample.results().cell("cimrl", "test_balanced", "worst_group_accuracy")
    assert f"{100 * cell.mean:.1f} ± {100 * cell.std:.1f}" in row and "3.00×" in row
    assert f"{100 * cell.low:.1f}..{100 * cell.high:.1f}" in text and "73..85" in text and "over 5 seeds" in text


def test_brackets_in_a_name_are_not_markup(sample):
    lines = sample.runs(methods=("erm",))
    for run in lines:
        run["method"] = "[red]erm[/red]"
    assert "[red]erm[/red]" in _console(sample.results(lines), width=120)


def test_the_markdown_table_is_a_table(sample):
    lines = sample.runs()
    for run in lines:
        run["selected_by"] = "a|b\nc"
    rows = [line for line in tables.markdown_table(sample.results(lines)).splitlines() if line.startswith("|")]
    assert len(rows) == 5 and {row.replace("\\|", "").count("|") for row in rows} == {9}
    assert "**cimrl**" in rows[3] and "**erm**" not in rows[2] and "a\\|b c" in rows[2]
    assert tables.escaped("<b>*x*</b> `y` [z](w)\\") == r"\<b\>\*x\*\</b\> \`y\` \[z\](w)\\"


def test_null_metrics_become_dashes(sample):
    lines = sample.runs()
    for run in lines:
        run["train"] = {"steps": 800, "seconds": None}
        for split in run["splits"].values():
            split.update(dict.fromkeys(("accuracy", "worst_group_accuracy")))
    row = tables.rows(sample.results(lines, gap_closed={"cimrl": None}))[1]
    assert (row.accuracy, row.balanced, row.flipped, row.gap, row.cost, row.best) == (None, None, None, None, None, False)
    assert "–" in _console(sample.results(lines, gap_closed={}))


def test_identification_is_averaged_by_modality_and_region(sample):
    lines = sample.runs(methods=("cimrl",), seeds=(0, 1))
    for run, recall in zip(lines, (0.2, 0.4), strict=True):
        run["identification"] = {"image": {"shortcut": {"recall": recall, "n": 500.0}, "cause": {"recall": None, "kl": 2.5}}}
    names, found = tables.identification_rows(sample.results(lines))
    assert names == ["recall", "kl"]
    (method, where, cells), (_, other, others) = found
    assert (method, where, other) == ("cimrl", "image, shortcut", "image, cause")
    assert tables.measure(cells[0], "recall") == "30.0 ± 14.1" and cells[1] is None
    assert others[0] is None and tables.measure(others[1], "kl") == "2.5 ± 0"


def test_what_edits_leave_has_rows_of_its_own(sample):
    lines = sample.runs(methods=("erm", "cimrl"), seeds=(0, 1))
    for run, left in zip(lines[2:], (-0.2, -0.4), strict=True):
        probe = {"label": 0.5, "attribute": None, "attribute_edited": left, "edited": 0.0, "n": 500.0}
        run["identification"] = {"image": {"shortcut": {"recall": 1.0}, "probe": probe}, "text": {"verdict": {"edits refused": 0.0}}}
    results = sample.results(lines)
    [(method, modality, cells)] = tables.probe_rows(results)
    assert (method, modality) == ("cimrl", "image") and [cell is None for cell in cells] == [False, True, True, True, False, True, False]
    assert tables.spread(cells[tables.PROBED.index("attribute_edited")]) == "-30.0 ± 14.1"
    assert [place for _, place, _ in tables.identification_rows(results)[1]] == ["image, shortcut", "text, verdict"]


def test_costs_are_means_relative_to_erm(sample):
    lines = sample.runs()
    lines[0]["train"]["seconds"] = 100.0  # one of ERM's five; the others took 50
    costs = {cost.method: cost for cost in tables.cost_rows(sample.results(lines))}
    assert costs["erm"].seconds == 60.0 and costs["cimrl"].relative == 2.5
    assert tables.cost_rows(sample.results(sample.runs(methods=("cimrl",))))[0].relative is None


def test_a_ratio_has_three_digits():
    assert [tables.ratio(value) for value in (1.0, 9.994, 9.996, 30.25, 99.96, 250.4, None)] == [
        "1.00×",
        "9.99×",
        "10.0×",
        "30.2×",
        "100×",
        "250×",
        "–",
    ]
