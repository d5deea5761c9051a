"""The results file: what a run measured, as JSON that never holds NaN, and the statistics over seeds."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from cimrl_jax.errors import UserError
from cimrl_jax.files import write_whole

SCHEMA = 1
GROUP = "group_accuracy/"
"""In the summary, one group's accuracy is the metric of this prefix and the group's name."""
BASELINE, CEILING = "erm", "ceiling"
Interval = Callable[[np.ndarray], tuple[float, float]]


class Cell(NamedTuple):
    """One number over seeds, as a share (0..1) or in its own unit. `low` and `high` are the interval; None where it cannot be had."""

    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 1


@dataclasses.dataclass(frozen=True)
class Results:
    """The content of `results.json`. Any number in it may be None: not measured, or not finite."""

    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]
    """One per method and seed. Needed are "method", "seed" and "splits" {split: {metric: number}}; the others are shown where they are there:
    "needs": the labels that the method reads: "none", "attribute names", "groups" or "validation groups" (older: "needs_groups": bool).
    "selected_by": the rule that chose the checkpoint; "selection": {rule: {"step", "splits": {split: {metric: number}}}}, under every rule.
    "setting": {dotted key: value}, what a sweep chose; "program", "member": the "method" and "member" of this run's rows in metrics.jsonl.
    "modes": {mode: {split: {metric: number}}}, the method's other predictions; "mode": the one of them that is its prediction.
    "train": {"steps", "seconds", "compile_seconds", "examples_per_second"} of all seeds in this setting; "identification".
    "routing": {"split", "of": "groups" or "classes", "all" and "groups": {name}: {"n", "gates": {expert: mean}, "top": {expert: share}}}."""
    summary: Sequence[Mapping[str, Any]]
    """See `summarise`."""
    gap_closed: Mapping[str, Any]
    """{method: {"mean", "ci95": [low, high], "n"} or a number or None}: the share of the way from ERM to the ceiling."""
    warnings: Sequence[str] = ()
    settings: Sequence[Mapping[str, Any]] = ()
    """Every setting that a sweep tried: {"method", "setting": {dotted key: value}, "score", "rule", "n", "chosen",
    "splits": {split: {metric: {"mean", "std"}}}}, where "score" is the validation score under "rule", a mean over "n" seeds."""
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the data set held: {"name", "notes", "skipped": [row, ...], "splits": {split: {"rows", "classes": {name: n}, "groups": {name: n}}}}."""
    modes: Sequence[Mapping[str, Any]] = ()
    """See `summarise_modes`."""
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """Plain values only (dict, list, str, int, float, bool, None); what is not finite becomes None."""
        fields = {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"schema": fields.pop("schema"), **fields}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file whole or not at all.

        Raises:
          UserError: it cannot be written.
        """
        write_whole(pathlib.Path(path), json.dumps(self.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")

    def methods(self) -> list[str]:
        """In order of appearance, but the baseline first and the ceiling last."""
        names = dict.fromkeys(str(run["method"]) for run in self.runs)
        return sorted(names, key=lambda name: {BASELINE: 0, CEILING: 2}.get(name, 1))

    def runs_of(self, method: str) -> list[Mapping[str, Any]]:
        return [run for run in self.runs if run["method"] == method]

    def cell(self, method: str, split: str, metric: str) -> Cell | None:
        """The summary's line, or None where nothing was measured."""
        return _find(self.summary, method=method, split=split, metric=metric)

    def mode_cell(self, method: str, mode: str, split: str, metric: str) -> Cell | None:
        """The same of one of the method's modes."""
        return _find(self.modes, method=method, mode=mode, split=split, metric=metric)

    def headline_split(self) -> str:
        """Where methods are compared: "test_balanced", or "test" where there is no such split."""
        return "test_balanced" if any("test_balanced" in run["splits"] for run in self.runs) else "test"

    def first_split(self, fits: Callable[[str], bool]) -> str | None:
        """Of the splits that fit, "test_balanced" or "test" before others."""
        known = dict.fromkeys(["test_balanced", "test", *(split for run in self.runs for split in run["splits"])])
        return next((split for split in known if fits(split)), None)

    def gap(self, method: str) -> Cell | None:
        """The share of the gap between ERM and the ceiling that the method closed."""
        value = self.gap_closed.get(method)
        if isinstance(value, Mapping):
            low, high = value.get("ci95") or (None, None)
            return None if value.get("mean") is None else Cell(value["mean"], value.get("std"), low, high, value.get("n") or 0)
        return None if value is None else Cell(float(value))

    def level(self) -> float:
        """Of the intervals, as the configuration had it."""
        evaluate = self.config.get("evaluate")
        level = evaluate.get("level") if isinstance(evaluate, Mapping) else None
        return float(level) if isinstance(level, int | float) else 0.95


def _find(lines: Iterable[Mapping[str, Any]], **keys: str) -> Cell | None:
    for line in lines:
        if line["mean"] is not None and all(line[key] == value for key, value in keys.items()):
            low, high = line.get("ci95") or (None, None)
            return Cell(line["mean"], line.get("std"), low, high, line.get("n") or 0)
    return None


def finite(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and math.isfinite(value)


def cell_of(values: Iterable[Any]) -> Cell | None:
    """Mean and standard deviation of those values that are finite numbers; None if none is."""
    known = [float(value) for value in values if finite(value)]
    return Cell(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None, n=len(known)) if known else None


def plain(value: Any) -> Any:
    """`value` with nothing left in it that JSON lacks: NaN and infinities become None, arrays become lists, paths become strings."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if (array := getattr(value, "tolist", None)) is not None:
        return plain(array())
    raise TypeError(f"{type(value).__name__} has no place in results.json")


def read(path: str | os.PathLike[str]) -> Results:
    """The results that `Results.save` wrote.

    Raises:
      UserError: the file is missing, broken off, or of another schema.
    """
    path = pathlib.Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except FileNotFoundError as error:
        raise UserError(f"no results at {path}; let the run finish first, or name the workdir that holds results.json") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; expected the results.json of a run") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is broken at line {error.lineno} ({error.msg}); expected whole JSON: evaluate the run again to rewrite it"
        ) from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} has schema {found!r}, expected {SCHEMA}; evaluate the run again with this version of cimrl_jax")
    fields = {field.name: field for field in dataclasses.fields(Results)}
    absent = [name for name in ("config", "environment", "runs", "summary", "gap_closed") if content.get(name) is None]
    if absent:
        raise UserError(f"{path} lacks {', '.join(absent)}; evaluate the run again to rewrite it")
    line = ("method", "split", "metric", "mean")
    wanted = {"runs": ("method", "seed", "splits"), "summary": line, "settings": ("method", "setting"), "modes": ("mode", *line)}
    for name, keys in wanted.items():
        for number, line in enumerate(content.get(name) or ()):
            if not isinstance(line, dict) or not set(keys) <= set(line):
                raise UserError(f"{path}: {name}[{number}] must be a mapping with {', '.join(keys)}; evaluate the run again to rewrite it")
    return Results(**{name: value for name, value in content.items() if name in fields and value is not None})


def summarise(
    runs: Iterable[Mapping[str, Any]], *, level: float = 0.95, resamples: int = 1000, interval: Interval | None = None
) -> list[dict[str, Any]]:
    """Statistics over seeds of every number in every split, and of every group's accuracy (metric `group_accuracy/<name>`).

    Args:
      runs: as in `Results.runs`.
      level: of the bootstrap interval, for instance 0.95. The key stays "ci95".
      resamples: of the bootstrap.
      interval: values [n] -> (low, high); `cimrl_jax.metrics.bootstrap_interval` at this level if None.

    Returns:
      {"method", "split", "metric", "mean", "std", "ci95": [low, high], "n"}: `std` divides by n - 1; `n` counts the seeds that have a finite value;
      what too few values leave open is None.
    """
    if interval is None:
        from cimrl_jax import metrics  # here, so that a page can be made again where there is no JAX

        interval = functools.partial(metrics.bootstrap_interval, level=level, resamples=resamples)
    values: dict[tuple[str, str, str], list[float]] = {}
    for run in runs:
        for split, measured in run["splits"].items():
            numbers = {name: number for name, number in measured.items() if not isinstance(number, Mapping | list | tuple | str)}
            numbers |= {GROUP + str(name): group.get("accuracy") for name, group in (measured.get("groups") or {}).items()}
            for metric, number in numbers.items():
                collected = values.setdefault((str(run["method"]), str(split), metric), [])
                if number is not None and math.isfinite(number):
                    collected.append(float(number))
    lines = []
    for (method, split, metric), collected in values.items():
        array = np.asarray(collected, np.float64)
        mean = float(array.mean()) if len(array) else None
        std = float(array.std(ddof=1)) if len(array) > 1 else None
        low, high = interval(array) if len(array) > 1 else (None, None)
        lines.append({"method": method, "split": split, "metric": metric, "mean": mean, "std": std, "ci95": plain([low, high]), "n": len(array)})
    return lines


def summarise_modes(runs: Sequence[Mapping[str, Any]], **how: Any) -> list[dict[str, Any]]:
    """The lines of `summarise`, whose keywords it takes, for each of the runs' "modes", named in "mode"."""
    names = dict.fromkeys(mode for run in runs for mode in run.get("modes") or ())
    return [
        {"mode": mode, **line}
        for mode in names
        for line in summarise([{**run, "splits": run["modes"][mode]} for run in runs if mode in (run.get("modes") or ())], **how)
    ]


def environment() -> dict[str, Any]:
    """Versions and devices, and nothing that names a machine or a person."""
    import jax

    devices = jax.devices()
    versions = {}
    for package in ("cimrl_jax", "jax", "flax", "optax", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        **versions,
        "backend": jax.default_backend(),
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
    }
