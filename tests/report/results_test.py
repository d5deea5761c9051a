"""The results file: what goes in comes out, nothing in it is NaN, and its statistics are numpy's."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from cimrl_jax.errors import UserError
from cimrl_jax.report import results


def test_what_is_saved_is_read(sample, tmp_path):
    saved = sample.results(warnings=["careful"])
    saved.save(tmp_path / "results.json")
    found = results.read(tmp_path / "results.json")
    assert found.to_json() == saved.to_json()
    assert found.warnings == ["careful"] and found.schema == 1
    assert found.cell("cimrl", "test_balanced", "worst_group_accuracy") == saved.cell("cimrl", "test_balanced", "worst_group_accuracy")


def test_a_file_from_before_sweeps_is_read(sample, tmp_path):
    saved = sample.results(settings=sample.settings())
    saved.save(tmp_path / "results.json")
    assert results.read(tmp_path / "results.json").settings == sample.settings()
    content = saved.to_json()
    for absent in ({}, {"settings": None}):
        (tmp_path / "results.json").write_text(json.dumps({name: value for name, value in content.items() if name != "settings"} | absent))
        assert list(results.read(tmp_path / "results.json").settings) == []


def test_methods_are_compared_on_the_balanced_split_if_there_is_one(sample):
    lines = sample.runs()
    assert sample.results(lines).headline_split() == "test_balanced"
    for run in lines:
        del run["splits"]["test_balanced"]
    assert sample.results(lines).headline_split() == "test"


def test_a_cell_is_of_what_is_finite():
    cell = results.cell_of([0.2, None, float("nan"), "0.9", 0.4])
    assert cell is not None and (cell.n, cell.low) == (2, None)
    np.testing.assert_allclose([cell.mean, cell.std or 0.0], [0.3, float(np.std([0.2, 0.4], ddof=1))])
    assert results.cell_of([0.5]) == results.Cell(0.5) and results.cell_of([None]) is None


def test_nothing_that_json_lacks_is_written(sample, tmp_path):
    lines = sample.runs()
    lines[0]["splits"]["test"] |= {"ece": float("nan"), "f1": np.float32(0.5), "auroc": np.float64("inf")}
    lines[0]["train"]["seconds"] = np.asarray(3)
    found = sample.results(lines, config={"workdir": pathlib.Path("runs/a"), "seeds": (0, 1)}, gap_closed={"cimrl": float("-inf")})
    found.save(tmp_path / "results.json")

    def refuse(name):
        raise AssertionError(f"{name} in the file")

    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    test = content["runs"][0]["splits"]["test"]
    assert (test["ece"], test["f1"], test["auroc"], content["runs"][0]["train"]["seconds"]) == (None, 0.5, None, 3)
    assert content["config"] == {"workdir": "runs/a", "seeds": [0, 1]} and content["gap_closed"] == {"cimrl": None}
    with pytest.raises(TypeError, match="object"):
        results.plain({"a": object()})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "no results at"),
        ('{"schema": 1, "config', "broken at line 1"),
        ('{"schema": 2}', "schema 2, expected 1"),
        ("[]", "schema 'list'"),
        ('{"schema": 1, "config": {}, "environment": {}, "summary": [], "gap_closed": {}}', "lacks runs"),
        ('{"schema": 1, "config": {}, "environment": {}, "runs": [], "summary": [], "gap_closed": {}, "settings": [3]}', r"settings\[0\] must be"),
        ('{"schema": 1, "config": {}, "environment": {}, "runs": [{"seed": 0}], "summary": [], "gap_closed": {}}', r"runs\[0\] must be"),
    ],
)
def test_a_file_that_is_no_results_is_refused_in_one_line(tmp_path, text, told):
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=told) as caught:
        results.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_summary_is_that_of_numpy(sample):
    lines = sample.runs()
    summary = {(line["method"], line["split"], line["metric"]): line for line in results.summarise(lines, interval=sample.normal)}
    worst = [run["splits"]["test_flipped"]["worst_group_accuracy"] for run in lines if run["method"] == "cimrl"]
    line = summary["cimrl", "test_flipped", "worst_group_accuracy"]
    np.testing.assert_allclose([line["mean"], line["std"]], [np.mean(worst), np.std(worst, ddof=1)])
    assert line["ci95"] == list(sample.normal(np.asarray(worst))) and line["n"] == 5
    group = [run["splits"]["test"]["groups"]["one, red"]["accuracy"] for run in lines if run["method"] == "erm"]
    np.testing.assert_allclose(summary["erm", "test", "group_accuracy/one, red"]["mean"], np.mean(group))
    assert ("erm", "test", "groups") not in summary


def test_what_was_not_measured_does_not_count(sample):
    lines = sample.runs(methods=("erm",), seeds=(0, 1, 2))
    for run, value in zip(lines, (None, float("nan"), 0.4), strict=True):
        run["splits"]["test"]["f1"] = value
    summary = {line["metric"]: line for line in results.summarise(lines, interval=sample.normal) if line["split"] == "test"}
    assert summary["f1"] == {"method": "erm", "split": "test", "metric": "f1", "mean": 0.4, "std": None, "ci95": [None, None], "n": 1}
    assert summary["auroc"]["mean"] is None and summary["auroc"]["n"] == 0


def test_the_interval_of_the_metrics_is_the_default(sample):
    lines = sample.runs()
    worst = np.asarray([run["splits"]["test"]["accuracy"] for run in lines if run["method"] == "cimrl"])
    bounds = {}
    for level in (0.5, 0.95):
        line = next(
            line for line in results.summarise(lines, level=level, resamples=200) if (line["method"], line["metric"]) == ("cimrl", "accuracy")
        )
        bounds[level] = line["ci95"]
        assert worst.min() <= bounds[level][0] < worst.mean() < bounds[level][1] <= worst.max()
    assert bounds[0.95][0] < bounds[0.5][0] and bounds[0.5][1] < bounds[0.95][1]


def test_the_baseline_comes_first_and_the_ceiling_last(sample):
    assert sample.results(sample.runs(methods=("ceiling", "cimrl", "erm"))).methods() == ["erm", "cimrl", "ceiling"]


@pytest.mark.parametrize(("value", "mean"), [(0.4, 0.4), ({"mean": 0.4, "ci95": None}, 0.4), ({"mean": None}, None), (None, None)])
def test_a_gap_may_be_a_number_a_record_or_nothing(sample, value, mean):
    gap = sample.results(gap_closed={"cimrl": value}).gap("cimrl")
    assert (gap and gap.mean) == mean


def test_the_environment_names_versions_and_devices_but_no_machine():
    import getpass
    import pathlib
    import platform

    import jax

    found = results.environment()
    assert found["jax"] == jax.__version__ and found["device_count"] == jax.device_count() and found["device_kind"] == jax.devices()[0].device_kind
    text = json.dumps(found)
    words = set(text.replace('"', " ").replace(",", " ").split())
    assert not {platform.node(), getpass.getuser()} & words and str(pathlib.Path.home()) not in text
