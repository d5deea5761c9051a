"""Results written by hand: ERM, CIMRL and the ceiling, five seeds each."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

from cimrl_jax.report.results import Results, summarise, summarise_modes

SEEDS = (0, 1, 2, 3, 4)
WORST = {
    "erm": {"test": 0.95, "test_balanced": 0.28, "test_flipped": 0.15},
    "cimrl": {"test": 0.91, "test_balanced": 0.72, "test_flipped": 0.66},
    "ceiling": {"test": 0.88, "test_balanced": 0.84, "test_flipped": 0.83},
}
GROUPS = ("zero, red", "zero, green", "one, red", "one, green")


def normal(values: np.ndarray) -> tuple[float, float]:
    """An interval that needs no resampling."""
    half = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def split(worst: float, groups: tuple[str, ...] = GROUPS) -> dict[str, Any]:
    accuracies = {name: min(1.0, worst + 0.08 * place) for place, name in enumerate(groups)}
    mean = float(np.mean(list(accuracies.values())))
    return {
        "accuracy": mean,
        "accuracy_train_weighted": mean + 0.01,
        "accuracy_group_mean": mean,
        "worst_group_accuracy": worst,
        "worst_class_accuracy": worst + 0.02,
        "f1": mean,
        "auroc": None,
        "ece": 0.08,
        "groups": {name: {"accuracy": accuracy, "n": 500, "ece": 0.07} for name, accuracy in accuracies.items()},
    }


def runs(methods: tuple[str, ...] = ("erm", "cimrl", "ceiling"), seeds: tuple[int, ...] = SEEDS) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    lines = []
    for method in methods:
        for seed in seeds:
            shift = float(generator.normal(0, 0.025))
            record: dict[str, Any] = {
                "method": method,
                "seed": seed,
                "hyper": {"rate": 1.0},
                "selected_by": "worst_class",
                "selected_step": 700,
                "needs": "none",
                "setting": {},
                "splits": {name: split(min(0.99, worst + shift)) for name, worst in WORST[method].items()},
                "identification": {},
                "train": {"steps": 800, "seconds": {"cimrl": 150.0}.get(method, 50.0), "compile_seconds": 9.5, "examples_per_second": 1024.0},
            }
            record["selection"] = {
                rule: {"step": 100 * place, "splits": {name: split(min(0.99, worst + shift + better)) for name, worst in WORST[method].items()}}
                for place, (rule, better) in enumerate({"worst_class": 0.0, "last": -0.02, "oracle": 0.01}.items())
            }
            if method == "cimrl":
                hit = 0.9 + shift
                record["identification"] = {
                    "image": {"hit_rate": hit, "precision": hit - 0.2, "recall": 0.5},
                    "text": {"hit_rate": 1.0, "precision": 0.9, "recall": None},
                }
            lines.append(record)
    return lines


MANY = (
    "erm", "group_dro", "reweight_group", "clip_contrastive", "mediation_moe", "counterfactual_gradient_supervision", "irm", "jtt", "lff",
    "cvar_dro", "dfr", "afr", "ccr", "mixup", "cimrl", "poe", "cf_vqa", "css", "lisa", "ceiling",
)  # fmt: skip


MODES = {"tie": 0.0, "uniform": -0.1, "bias_only": -0.2}
"""What each mode of the sample's CIMRL adds to its worst group; the first is the default."""


def mediated(lines: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """The runs, those of CIMRL with other predictions, a router, and versions of the test examples."""
    lines = runs() if lines is None else lines
    for run in lines:
        run["splits"]["test_flipped"]["both_right"] = run["splits"]["test_flipped"]["worst_group_accuracy"] - 0.1
    for run in lines:
        if run["method"] != "cimrl":
            continue
        worst = {name: report["worst_group_accuracy"] for name, report in run["splits"].items()}
        run["modes"] = {mode: {name: split(value + added) for name, value in worst.items()} for mode, added in MODES.items()}
        run["modes"]["tie"]["test_flipped"]["both_right"], run["mode"] = run["splits"]["test_flipped"]["both_right"], "tie"
        chosen = {name: {"none": 0.5 - 0.1 * place, "all": 0.5 + 0.1 * place} for place, name in enumerate(GROUPS)}
        groups = {name: {"n": 50.0, "gates": gates, "top": {"none": 0.1, "all": 0.9}} for name, gates in chosen.items()}
        run["routing"] = {"split": "test_balanced", "of": "groups", "all": {**groups[GROUPS[0]], "n": 200.0}, "groups": groups}
    return lines


def many() -> list[dict[str, Any]]:
    """Runs of twenty methods, with the longest texts and numbers that a table may have to hold."""
    generator = np.random.default_rng(3)
    lines = []
    for place, method in enumerate(MANY):
        own = runs(methods=(method if method in WORST else "erm",))
        needs = ("none", "attribute names", "groups", "validation groups")[place % 4]
        better, cost = float(generator.uniform(0, 0.55)), float(generator.choice([1, 1.02, 1.1, 2, 4, 30]))
        for run in own:
            run |= {"method": method, "needs": needs, "selected_by": "worst_group" if place % 3 else "worst_class"}
            if method not in WORST:
                run["train"]["seconds"] *= cost
                for name in run["splits"]:
                    run["splits"][name] = split(min(1.0, run["splits"][name]["worst_group_accuracy"] + better))
        lines += own
    return lines


def results(lines: list[dict[str, Any]] | None = None, **changes: Any) -> Results:
    lines = runs() if lines is None else lines
    fields: dict[str, Any] = {
        "config": {
            "name": "coloured digits",
            "methods": ["erm", "cimrl"],
            "seeds": list(SEEDS),
            "data": {"name": "digits", "path": None},
            "model": {"dim": 48, "image": {"encoder": "vit", "depth": 2}},
            "evaluate": {"level": 0.95},
        },
        "environment": {"python": "3.11.9", "cimrl_jax": "0.1.0", "jax": "0.10.2", "device_kind": "cpu", "device_count": 1},
        "runs": lines,
        "summary": summarise(lines, interval=normal),
        "modes": summarise_modes(lines, interval=normal),
        "gap_closed": {"cimrl": {"mean": 0.79, "ci95": [0.73, 0.85], "n": 5}},
        "data": {
            "name": "digits",
            "notes": "made of digits",
            "skipped": ["rows.csv, line 7: missing file: there is no 7.png"],
            "splits": {"train": {"rows": 5, "classes": {"low": 3, "high": 2}, "groups": {"low on red": 3, "high on red": 2}}},
        },
    }
    return Results(**{**fields, **changes})


def settings(values: tuple[float, ...] = (0.1, 1.0, 10.0)) -> list[dict[str, Any]]:
    """A sweep of CIMRL's rate: the middle one wins."""
    return [
        {
            "method": "cimrl",
            "setting": {"method.cimrl.rate": value},
            "score": 0.8 - 0.05 * abs(place - len(values) // 2),
            "rule": "worst_class",
            "n": 5,
            "chosen": place == len(values) // 2,
            "splits": {"test_balanced": {"worst_group_accuracy": {"mean": 0.6 + 0.01 * place, "std": 0.02}}},
        }
        for place, value in enumerate(values)
    ]


def metrics() -> list[dict[str, Any]]:
    generator = np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    for method, worst in WORST.items():
        for seed in SEEDS:
            for step in range(50, 801, 50):
                wave = float(generator.normal(0, 0.02))
                rows.append({"method": method, "seed": seed, "step": step, "loss": 0.1 + 0.6 * float(np.exp(-step / 250)) + abs(wave)})
                reached = worst["test_balanced"] * (1 - float(np.exp(-step / 200))) + wave
                rows.append({"method": method, "seed": seed, "step": step, "split": "validation", "worst_class_accuracy": reached, "accuracy": None})
    return rows


def entries(count: int = 4) -> list[dict[str, Any]]:
    """What the experiment hands to `gallery.save`."""
    generator = np.random.default_rng(2)
    made = []
    for number in range(count):
        y, x = np.mgrid[:28, :28]
        ring = np.abs(np.hypot(y - 14, x - 14) - 8) < 2.5
        image = np.where(ring[..., None], [230, 60, 60] if number % 2 else [60, 200, 90], [20, 20, 24]).astype(np.uint8)
        text = ["the", "figure", "in", "this", "picture", "was", "drawn", "in", "bright", "red", "ink"]
        evidence = np.zeros((7, 7)) + generator.uniform(-0.1, 0.1, (7, 7))
        evidence[2:5, 1:6] += generator.uniform(0.3, 1, (3, 5))
        signs = [0.02, 0.1, 0.0, -0.2, 0.1, 0.0, 0.1, 0.0, 0.7, 1.0, -0.3, 0.0, 0.0]
        made.append(
            {
                "id": 100 + number,
                "label": "zero",
                "predicted": "zero" if number % 2 else "one",
                "edited_predicted": "zero",
                "group": GROUPS[number % 4],
                "split": "test_flipped",
                "method": "cimrl",
                "pictures": {"image": image},
                "edited_pictures": {"image": image[..., [1, 0, 2]]},
                "evidence": {"image": evidence.ravel(), "text": np.asarray(signs), "table": generator.normal(0, 1, 9)},
                "chosen": {"image": (evidence > 0.4).ravel(), "text": np.asarray(signs) > 0.5, "table": np.arange(9) == 3},
                "words": {"text": text},
                "edited_words": {"text": [{"bright": "pale", "red": "green"}.get(word, word) for word in text]},
                "grid": {"image": (7, 7)},
            }
        )
    return made


@pytest.fixture
def sample() -> types.SimpleNamespace:
    return types.SimpleNamespace(
        SEEDS=SEEDS,
        GROUPS=GROUPS,
        normal=normal,
        split=split,
        runs=runs,
        mediated=mediated,
        results=results,
        settings=settings,
        many=many,
        metrics=metrics,
        entries=entries,
    )
