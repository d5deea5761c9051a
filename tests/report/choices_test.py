"""Rules and settings that were not chosen are told beside the one that was."""

from __future__ import annotations

import numpy as np
import pytest

from cimrl_jax.report import choices


def test_every_rule_is_told_with_the_one_that_was_used(sample):
    lines = sample.runs()
    results = sample.results(lines)
    rules, rows = choices.selection_rows(results)
    assert rules == ["worst_class", "last", "oracle"] and [method for method, _ in rows] == ["erm", "cimrl", "ceiling"]
    for place, rule in enumerate(rules):
        own = [run["selection"][rule]["splits"]["test_balanced"]["worst_group_accuracy"] for run in lines if run["method"] == "cimrl"]
        cell, used = rows[1][1][place]
        assert cell is not None
        np.testing.assert_allclose([cell.mean, cell.std or 0.0], [np.mean(own), np.std(own, ddof=1)])
        assert used == (rule == "worst_class")


def test_rules_stand_in_one_order_and_a_rule_that_a_method_lacks_is_open(sample):
    lines = sample.runs(methods=("erm", "cimrl"))
    for run in lines:
        run["selection"] = dict(reversed(run["selection"].items()))
        if run["method"] == "erm":
            run["selection"].pop("last")
            run["selection"]["worst_group"] = {"step": 3, "splits": {"test_balanced": {"worst_group_accuracy": None}}}
    rules, rows = choices.selection_rows(sample.results(lines))
    assert rules == ["worst_class", "last", "oracle"] and rows[0][1][1].cell is None and rows[1][1][1].cell is not None


def test_without_a_balanced_split_the_test_split_is_told(sample):
    lines = sample.runs(methods=("erm",))
    for run in lines:
        for record in (run, *run["selection"].values()):
            record["splits"] = {"test": record["splits"]["test"]}
    results = sample.results(lines)
    mean = results.cell("erm", "test", "worst_group_accuracy").mean
    cell = choices.selection_rows(results)[1][0][1][0].cell
    assert cell is not None and cell.mean == pytest.approx(mean)
    assert "accuracy on test," in choices.selection_note(results)


def test_the_markdown_marks_the_used_rule_and_says_what_the_oracle_reads(sample):
    lines = sample.runs()
    for run in lines:
        run["method"] = {"cimrl": "a|<b>"}.get(run["method"], run["method"])
    results = sample.results(lines)
    rows = [line for line in choices.selection_table(results).splitlines() if line.startswith("|")]
    assert len(rows) == 5 and {row.replace("\\|", "").count("|") for row in rows} == {5}
    assert "oracle (reads the test groups)" in rows[0] and rows[3].startswith(r"| a\|\<b\> | **") and rows[3].count("**") == 2
    for run in lines:
        run["selection"] = {}
    assert choices.selection_table(sample.results(lines)) == "" and choices.selection_rows(sample.results(lines)) == ([], [])


def test_settings_are_told_by_method_with_the_best_score_first(sample):
    settings = sample.settings((0.1, 0.25, 1e-5))
    settings[2] |= {"score": None, "splits": {}}
    settings += [{"method": "erm", "setting": {}, "score": 800.0, "rule": "last", "chosen": True}]
    found = choices.settings_rows(sample.results(settings=settings))
    assert list(found) == ["erm", "cimrl"]
    first, second, third = found["cimrl"]
    assert [setting.text for setting in found["cimrl"]] == [f"method.cimrl.rate={value}" for value in ("0.25", "0.1", "1e-05")]
    assert (first.score, first.rule, first.seeds, first.chosen, second.chosen) == ("80.0", "worst class", 5, True, False)
    assert first.worst is not None and (first.worst.mean, first.worst.std) == (0.61, 0.02) and (third.score, third.worst) == ("–", None)
    assert (found["erm"][0].text, found["erm"][0].score) == ("as configured", "800")
