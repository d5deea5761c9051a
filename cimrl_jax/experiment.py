"""Config -> running objects -> results: the only place that wires. `run` and `load` are the Python API."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from cimrl_jax import metrics
from cimrl_jax.config import Config, fingerprint, to_dict, to_yaml
from cimrl_jax.config import load as load_config
from cimrl_jax.data import source as sources
from cimrl_jax.data import synonyms, views
from cimrl_jax.data.source import Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.evaluate import explain, robustness
from cimrl_jax.evaluate.predict import Predict, make_predict
from cimrl_jax.files import write_whole
from cimrl_jax.nn.model import build_model
from cimrl_jax.options import component, make_options
from cimrl_jax.report import gallery, page, results
from cimrl_jax.report.progress import Progress
from cimrl_jax.report.results import BASELINE, CEILING, Results
from cimrl_jax.report.tables import console_table
from cimrl_jax.train import loop
from cimrl_jax.train.mesh import make_mesh
from cimrl_jax.train.optimizer import make_optimizer
from cimrl_jax.types import Model, Spec

PARTS = ("train", "evaluate", "report")
HEADLINE = ("test_balanced", "worst_group_accuracy")
"""What the gap between ERM and the ceiling is measured in."""
RANDOMISED = "train_randomised"


def run(
    config: Config | Mapping[str, Any] | str | os.PathLike[str], *, parts: tuple[str, ...] = PARTS, quiet: bool = False, **overrides: Any
) -> Results | None:
    """Trains, evaluates and reports every method of `config`, going on where an earlier start left off.

    Args:
      config: a Config, a nested mapping, or the path of a config file; `overrides` are further keys ("workdir": ...).
      parts: which of "train", "evaluate", "report" to do.
      quiet: print nothing.

    Returns:
      The results; None if only "train" was asked for.

    Raises:
      UserError: bad input, a full disk, or a workdir that holds another run.
    """
    config = load_config(config, overrides)
    workdir = pathlib.Path(config.workdir)
    try:
        with _claimed(workdir, config):
            if "train" in parts or "evaluate" in parts:
                _work(config, workdir, parts, quiet)
            if "evaluate" not in parts and "report" not in parts:
                return None
            found = results.read(workdir / "results.json")
            if "report" in parts:
                _report(config, workdir, found, quiet)
            return found
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR):
            raise UserError(f"cannot write to {workdir}: {error.strerror}; free some space or choose another --workdir") from error
        raise


def load(run_dir: str | os.PathLike[str]) -> Results:
    """The results of an earlier run.

    Raises:
      UserError: there are none in that folder.
    """
    return results.read(pathlib.Path(run_dir) / "results.json")


@dataclasses.dataclass(frozen=True)
class Assembly:
    """The running objects of one config."""

    dataset: Dataset
    model: Model
    programs: tuple[loop.Program, ...]
    """One per method, the ceiling included."""


def assemble(config: Config) -> Assembly:
    """Builds data set, model and programs.

    Raises:
      UserError: options that do not fit the data set, or a method that needs groups on data that has none.
    """
    module = component("data", config.data.name)
    extra = {"path": pathlib.Path(config.data.path)} if config.data.path else {}
    dataset = module.build(make_options(module.Options, config.data.options, "data"), **extra)
    view_options = make_options(views.ViewOptions, config.data.views, "data.views")
    tables = {m: synonyms.synonym_table(dataset.synonyms, f.vocabulary) for m, f in dataset.features.items() if f.kind == "text" and dataset.synonyms}
    sizes = {field.name: getattr(config.model, field.name) for field in dataclasses.fields(config.model)}
    model = build_model(
        features=dataset.features,
        num_classes=len(dataset.class_names),
        perturb=views.make_perturb(dataset.features, view_options, synonyms=tables),
        **sizes,
    )
    programs = [program(config, dataset, model, name) for name in config.methods]
    if config.evaluate.ceiling and BASELINE in config.methods and RANDOMISED in dataset.splits:
        programs.append(program(config, dataset, model, BASELINE, label=CEILING, split=RANDOMISED))
    return Assembly(dataset, model, tuple(programs))


def program(config: Config, dataset: Dataset, model: Model, method: str, *, label: str = "", split: str = "train") -> loop.Program:
    """One method's members on one training split.

    Raises:
      UserError: the method needs groups and the split has rows without one, or its training split lacks a class.
    """
    train = config.train
    module = component("method", method)
    record = module.build(make_options(module.Options, config.method.get(method, {}), f"method.{method}"))
    source = dataset.split(split)
    if record.needs_groups and (source.group < 0).any():
        unknown = int((source.group < 0).sum())
        raise UserError(
            f"method {method!r} trains on group labels, but {unknown} of {len(source)} rows of {dataset.name!r} ({split}) have none; "
            "name a group or attribute column, or leave this method out of --methods"
        )
    classes = sources.class_counts(source, len(dataset.class_names))
    if 0 in classes:
        missing = dataset.class_names[classes.index(0)]
        raise UserError(f"data set {dataset.name!r} ({split}) has no example of class {missing!r}; every class needs one")
    spec = Spec(
        num_classes=len(dataset.class_names),
        num_groups=len(dataset.group_names),
        num_examples=len(source),
        steps=train.steps,
        slots=model.slots,
        class_counts=classes,
        group_counts=sources.group_counts(source, len(dataset.group_names)) if record.needs_groups else (),
    )
    mesh = make_mesh(members=len(config.seeds), batch_size=train.batch_size, mesh_member=train.mesh_member, mesh_data=train.mesh_data)
    hyper = {**record.hyper, "learning_rate": train.learning_rate, "weight_decay": train.weight_decay}
    return loop.Program(
        name=label or method,
        method=record,
        model=model,
        spec=spec,
        optimizer=make_optimizer(steps=train.steps, warmup=train.warmup, schedule=train.schedule, clip_norm=train.clip_norm),
        source=source,
        seeds=config.seeds,
        hyper=(hyper,) * len(config.seeds),
        mesh=mesh,
        batch_size=train.batch_size,
        chunk=train.chunk,
        augment=config.data.augment,
        resident=config.data.resident,
        together=train.members_together,
    )


def _work(config: Config, workdir: pathlib.Path, parts: tuple[str, ...], quiet: bool) -> None:
    if config.train.compile_cache:
        _use_compile_cache()
    built = assemble(config)
    predict = make_predict(built.model, batch_size=config.evaluate.batch_size)
    with Progress(quiet) as progress:
        if "train" in parts:
            for own in built.programs:
                bar = progress.task(_title(own), total=own.spec.steps, batch_size=own.batch_size * own.members)
                plan = _plan(config, built.dataset, own, predict)
                loop.train(own, plan, workdir / "checkpoints" / own.name, workdir / "metrics.jsonl", bar)
        if "evaluate" in parts:
            runs, shown = [], []
            for own in built.programs:
                done, trained = loop.restore(own, workdir / "checkpoints" / own.name)
                if done < own.spec.steps:
                    raise UserError(f"{own.name} is trained for {done} of {own.spec.steps} steps; run `train` with the same config to finish it")
                measured, cards = _evaluate(config, built, own, trained, predict)
                runs += measured
                shown += cards
            _results(config, runs, built).save(workdir / "results.json")
            gallery.save(workdir / "gallery.json", shown)


def _title(own: loop.Program) -> str:
    return f"{own.name} x {own.members} seed{'s' * (own.members > 1)}"


def _plan(config: Config, dataset: Dataset, own: loop.Program, predict: Predict) -> loop.Plan:
    validation = dataset.split("validation")
    rule = config.evaluate.selection

    def score(params: Any, step: int) -> tuple[np.ndarray, list[dict[str, float | None]]]:
        reports = [robustness.evaluate_split(own, validation, None, dataset.group_names) for own in predict(params, validation)]
        figures = [{k: report[k] for k in ("accuracy", "worst_class_accuracy", "worst_group_accuracy")} for report in reports]
        return np.array([robustness.select(rule, report, step=step) for report in reports]), figures

    train = config.train
    return loop.Plan(eval_every=train.eval_every, checkpoint_every=train.checkpoint_every, select_from=train.select_from, score=score)


def _evaluate(
    config: Config, built: Assembly, own: loop.Program, trained: loop.Trained, predict: Predict
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """results.json's entry of every member, and the examples to show."""
    dataset = built.dataset
    shares = metrics.group_shares(sources.group_counts(dataset.split("train"), len(dataset.group_names)))
    splits: list[dict[str, Any]] = [{} for _ in own.seeds]
    for name, source in dataset.splits.items():
        if name.startswith("train"):
            continue
        for measured, logits in zip(splits, predict(trained.params["model"], source), strict=True):
            measured[name] = robustness.evaluate_split(logits, source, shares, dataset.group_names)
    where = "test_balanced" if "test_balanced" in dataset.splits else "test"
    members = explain.Members(own.name, own.method, own.model, trained.params, trained.method, trained.hyper)
    found, cards = explain.examine(members, dataset, where, shown=config.report.examples)
    seconds, steps = trained.clock["seconds"], trained.clock["steps_timed"]
    train = {
        "steps": own.spec.steps,
        "seconds": seconds,
        "compile_seconds": trained.clock["compile_seconds"],
        "examples_per_second": steps * own.batch_size * own.members / seconds if seconds > 0 else None,
    }
    hyper = {name: np.asarray(value).tolist() for name, value in trained.hyper.items()}
    runs = [
        {
            "method": own.name,
            "seed": seed,
            "hyper": {name: value[i] for name, value in hyper.items()},
            "needs_groups": own.method.needs_groups,
            "selected_by": config.evaluate.selection,
            "selected_step": int(trained.selected_step[i]),
            "splits": splits[i],
            "identification": found[i],
            "train": train,
        }
        for i, seed in enumerate(own.seeds)
    ]
    return runs, cards


def _results(config: Config, runs: list[dict[str, Any]], built: Assembly) -> Results:
    level, resamples = config.evaluate.level, config.evaluate.bootstrap
    split, metric = HEADLINE

    def values(method: str) -> list[float]:
        own = [run["splits"].get(split, {}).get(metric) for run in runs if run["method"] == method]
        return [value for value in own if value is not None]

    erm, ceiling = values(BASELINE), values(CEILING)
    gaps: dict[str, Any] = {}
    warnings: list[str] = []
    for name in dict.fromkeys(run["method"] for run in runs if run["method"] not in (BASELINE, CEILING)):
        whole = len(erm) == len(ceiling) == len(values(name)) > 0
        gaps[name] = robustness.gap_closed(values(name), erm, ceiling, level=level, resamples=resamples) if whole else None
    if gaps and not ceiling:
        warnings.append(f"no ceiling run (it needs evaluate.ceiling, the method {BASELINE}, a split {RANDOMISED}), so no share of the gap is given")
    if erm:
        fall = robustness.fell_for_shortcut([run["splits"] for run in runs if run["method"] == BASELINE])
        warnings += [fall.warning] if fall.warning else []
    if len(config.seeds) < 5:
        warnings.append(f"{len(config.seeds)} seeds say little about the spread; use at least 5")
    return Results(
        config=to_dict(config),
        environment=results.environment(),
        runs=runs,
        summary=results.summarise(runs, level=level, resamples=resamples),
        gap_closed=gaps,
        warnings=warnings,
    )


def _report(config: Config, workdir: pathlib.Path, found: Results, quiet: bool) -> None:
    written = page.write_page(workdir) if config.report.html else None
    if not quiet:
        from rich.console import Console

        console = Console()
        console.print(console_table(found))
        for warning in found.warnings:
            console.print(f"warning: {warning}", markup=False)
        console.print(f"numbers: {workdir / 'results.json'}", markup=False, highlight=False)
        if written:
            console.print(f"report:  {written}", markup=False, highlight=False)


@contextlib.contextmanager
def _claimed(workdir: pathlib.Path, config: Config) -> Iterator[None]:
    """Holds the folder against a second process, and writes the resolved config, or checks that it is the one that is there."""
    import fcntl

    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir {workdir} is a file; expected a folder: choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.yaml"
    with (workdir / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"workdir {workdir} is in use by another process; wait for it or choose another --workdir") from error
        if path.exists() and fingerprint(load_config(path)) != fingerprint(config):
            key = _difference(to_dict(load_config(path)), to_dict(config))
            raise UserError(f"workdir {workdir} holds another run ({key}); choose another --workdir, or delete that one")
        write_whole(path, to_yaml(config))
        yield


def _difference(old: Any, new: Any, where: str = "") -> str:
    """The first key in which two configs differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *new]:
            if key not in ("workdir", "report") and old.get(key) != new.get(key):
                return _difference(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    return f"{where} is {old!r} there, {new!r} here"


def _use_compile_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that the next start takes seconds."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(pathlib.Path(base) / "cimrl_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # else the key holds the folder's path
