"""Modes, the router's choices and pair consistency as tables: every number is the mean over seeds of what the runs hold."""

from __future__ import annotations

import numpy as np
import pytest

from cimrl_jax.report import modes, results, routing, tables


def test_every_mode_stands_beside_the_default_with_its_own_spread(sample):
    lines = sample.mediated()
    found = modes.mode_tables(sample.results(lines))
    assert list(found) == ["cimrl"]
    splits, rows = found["cimrl"]
    assert splits == [("test", ["accuracy", "worst group"]), ("test_balanced", ["accuracy", "worst group"])] + [
        ("test_flipped", ["accuracy", "worst group", "both right"])
    ]
    assert [(row.name, row.default) for row in rows] == [("tie", True), ("uniform", False), ("bias_only", False)]
    own = [run["modes"]["uniform"]["test_flipped"]["worst_group_accuracy"] for run in lines if run["method"] == "cimrl"]
    cell, pairs = rows[1].cells[5], rows[0].cells[6]
    assert cell is not None and pairs is not None
    low, high = sample.normal(np.asarray(own))
    assert (cell.mean, cell.std, cell.low, cell.high, cell.n) == pytest.approx((np.mean(own), np.std(own, ddof=1), low, high, 5))
    assert rows[1].cells[6] is None and pairs.n == 5
    text = modes.modes_markdown(sample.results(lines))
    assert "| **tie** |" in text and "| uniform |" in text and tables.spread(cell) in text and "test\\_flipped" not in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {9}


def test_a_default_that_is_no_mode_stands_first_with_its_own_numbers(sample):
    lines = sample.mediated()
    for run in lines:
        run.pop("mode", None)
    whole = sample.results(lines)
    rows = modes.mode_tables(whole)["cimrl"].rows
    assert [(row.name, row.default) for row in rows][:2] == [(modes.OWN, True), ("tie", False)]
    assert rows[0].cells[0] == whole.cell("cimrl", "test", "accuracy")


def test_modes_survive_the_file_and_others_have_no_table(sample, tmp_path):
    whole = sample.results(sample.mediated())
    whole.save(tmp_path / "results.json")
    read = results.read(tmp_path / "results.json")
    assert modes.mode_tables(read) == modes.mode_tables(whole) and routing.routing_tables(read) == routing.routing_tables(whole)
    plain = sample.results()
    assert (
        modes.mode_tables(plain) == {} == routing.routing_tables(plain) and modes.modes_markdown(plain) == "" and tables.pair_rows(plain) == ([], [])
    )


def test_pair_consistency_is_told_of_every_method_on_the_splits_that_have_it(sample):
    lines = sample.mediated()
    splits, rows = tables.pair_rows(sample.results(lines))
    assert splits == ["test_flipped"] and [method for method, _ in rows] == ["erm", "cimrl", "ceiling"]
    own = [run["splits"]["test_flipped"]["both_right"] for run in lines if run["method"] == "cimrl"]
    cell = rows[1][1][0]
    assert cell is not None and cell.mean == pytest.approx(np.mean(own))


def test_the_router_is_a_mean_over_seeds_and_shades_with_the_gate(sample):
    lines = sample.mediated()
    own = [run["routing"] for run in lines if run["method"] == "cimrl"]
    for shift, told in zip((-0.2, -0.1, 0.0, 0.1, 0.2), own, strict=True):
        told["groups"][sample.GROUPS[1]] = {"n": 50.0, "gates": {"none": 0.4 + shift, "all": None}, "top": {"none": 0.1, "all": 0.9}}
    found = routing.routing_tables(sample.results(lines))["cimrl"]
    assert (found.split, found.of, found.experts, found.left_out) == ("test_balanced", "groups", ["none", "all"], 0)
    assert [(name, n) for name, n, _ in found.rows] == [("all", 200.0), *((name, 50.0) for name in sample.GROUPS)]
    none, both = found.rows[2][2]
    assert none.gate is not None and none.gate.mean == pytest.approx(0.4) and none.gate.n == 5
    assert both.gate is None and both.top is not None and both.top.mean == pytest.approx(0.9)
    assert none.style == "background: rgb(0, 114, 178, 0.20)" and both.style.endswith("0.00)")


def test_of_many_groups_the_largest_are_shown(sample):
    lines = sample.mediated()
    for run in lines:
        if run["method"] == "cimrl":
            run["routing"]["groups"] = {f"g{i:02d}": {**run["routing"]["all"], "n": float(i)} for i in range(1, 21)}
    found = routing.routing_tables(sample.results(lines))["cimrl"]
    assert [name for name, *_ in found.rows] == ["all", *(f"g{i:02d}" for i in range(9, 21))] and found.left_out == 8
