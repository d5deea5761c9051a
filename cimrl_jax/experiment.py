"""Config -> running objects -> results: the only place that wires. `run` and `load` are the Python API."""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import os
import pathlib
import re
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from cimrl_jax.assembly import RANDOMISED, Assembly, assemble
from cimrl_jax.config import Config, numbers, to_dict, to_yaml
from cimrl_jax.config import load as load_config
from cimrl_jax.data import source as sources
from cimrl_jax.errors import UserError
from cimrl_jax.evaluate import explain, robustness
from cimrl_jax.files import write_whole
from cimrl_jax.report import gallery, page, results
from cimrl_jax.report.progress import Progress
from cimrl_jax.report.results import BASELINE, CEILING, Results
from cimrl_jax.report.tables import console_table
from cimrl_jax.selection import Finished, Look, choose, needs
from cimrl_jax.train import loop, mesh
from cimrl_jax.types import REFUSED

PARTS = ("train", "evaluate", "report")
WEIGHTS = "weights.json"
"""In a workdir: `Assembly.weights` of what was trained there."""
HEADLINE = "worst_group_accuracy"
"""What the gap between ERM and the ceiling is measured in, on the last of `Look.headlines`."""
BRIEF = ("accuracy", "worst_group_accuracy", "worst_class_accuracy")
"""What is kept of the models that other selection rules than the one used would have chosen."""


def run(
    config: Config | Mapping[str, Any] | str | os.PathLike[str], *, parts: tuple[str, ...] = PARTS, quiet: bool = False, **overrides: Any
) -> Results | None:
    """Trains, evaluates and reports every method of `config`, going on where an earlier start left off.

    Args:
      config: a Config, a nested mapping, or the path of a config file; `overrides` are further keys ("workdir": ...).
      parts: which of "train", "evaluate", "report" to do.
      quiet: print nothing.

    Returns:
      The results; None if only "train" was asked for, and in all but the first of several processes.

    Raises:
      UserError: bad input, a full disk, or a workdir that holds another run.
    """
    config = load_config(config, overrides)
    workdir = pathlib.Path(config.workdir)
    if config.train.distributed:
        mesh.join()
        with _ending_all():
            return _run(config, workdir, parts, quiet)
    return _run(config, workdir, parts, quiet)


@contextlib.contextmanager
def _ending_all() -> Iterator[None]:
    """Of several processes: what goes wrong in one ends it at once, so that the scheduler ends the others, which wait for it. What all agree on (a
    signal, a workdir that is refused) ends each in its own time."""
    try:
        yield
    except Refused:
        raise
    except UserError as error:
        mesh.abandon(2, f"error: {' '.join(str(error).splitlines())}")
        raise
    except Exception:
        mesh.abandon(1, traceback.format_exc())
        raise


def _run(config: Config, workdir: pathlib.Path, parts: tuple[str, ...], quiet: bool) -> Results | None:
    try:
        with _claimed(workdir, config):
            if "train" in parts or "evaluate" in parts:
                _work(config, workdir, parts, quiet)
            if "evaluate" not in parts and "report" not in parts:
                return None
            if not mesh.first():
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


def _work(config: Config, workdir: pathlib.Path, parts: tuple[str, ...], quiet: bool) -> None:
    if config.train.compile_cache:
        _use_compile_cache()
    with Progress(quiet or not mesh.first()) as progress:
        built = assemble(config, progress)
        if skipped := built.dataset.skipped:
            progress.say(f"{len(skipped)} bad rows left out; the first: {skipped[0]}")
        check_weights(workdir, built)
        if built.weights and mesh.first():
            write_whole(workdir / WEIGHTS, json.dumps(built.weights) + "\n")
        look = Look(config, built)
        if "train" in parts:
            for own in built.programs:
                bar = progress.task(_title(own), total=own.spec.steps, batch_size=own.batch_size * own.members)
                loop.train(own, look.plan(own), workdir / "checkpoints" / own.name, workdir / "metrics.jsonl", bar)
        if "evaluate" in parts:
            runs, tried, shown = [], [], []
            for label in dict.fromkeys(own.label for own in built.programs):
                trained = [finished(own, look, workdir) for own in built.programs if own.label == label]
                if mesh.first():
                    best, settings = choose(trained, look)
                    measured, cards = _evaluate(best, look, look.rule(trained[0].program.method))
                    runs += measured
                    tried += settings
                    shown += cards
            if mesh.first():
                _results(config, look, runs, tried).save(workdir / "results.json")
                gallery.save(workdir / "gallery.json", shown)


def check_weights(workdir: pathlib.Path, built: Assembly) -> None:
    """Refuses to go on with what was trained in a workdir on other weights: the path or id of a checkpoint does not tell what it holds.

    Raises:
      UserError: a checkpoint's files have changed since.
    """
    path = workdir / WEIGHTS
    known = json.loads(path.read_text()) if path.is_file() and any((workdir / "checkpoints").glob("*")) else {}
    other = [m for m, weights in built.weights.items() if known.get(m, weights) != weights]
    if other:
        mend = f"put the old ones back, choose another --workdir, or delete {workdir / 'checkpoints'} to train anew"
        raise UserError(f"workdir {workdir} was trained on other weights than those in model.{other[0]}.pretrained now; {mend}")


def _title(own: loop.Program) -> str:
    return f"{own.name} x {own.members} member{'s' * (own.members > 1)}"


def finished(own: loop.Program, look: Look, workdir: pathlib.Path) -> Finished:
    """What a program's training left in a workdir.

    Raises:
      UserError: it is not trained to its end.
    """
    done, trained = loop.restore(own, look.rules, workdir / "checkpoints" / own.name)
    if done < own.spec.steps:
        raise UserError(f"{own.name} is trained for {done} of {own.spec.steps} steps; run `train` with the same config to finish it")
    return Finished(own, trained, tuple(range(own.members)))


def _evaluate(best: Finished, look: Look, rule: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """results.json's entry of every member, as the rule selected it, and the examples to show."""
    own, trained, dataset = best.program, best.trained, look.built.dataset
    measured = look.measure_all(best, rule)
    modes = [{name: measured[name][k] for name in own.method.modes} for k in range(len(best.members))]
    default = next((name for name, mode in own.method.modes.items() if mode is own.method.predict), None)
    selection = [{} for _ in best.members]
    for other in look.rules:
        chosen = trained.selected[other]
        brief = {name: look.measure(best, other, name) for name in look.headlines}
        for entry, i, *reports in zip(selection, best.members, *brief.values(), strict=True):
            kept = {name: {key: report[key] for key in BRIEF} for name, report in zip(brief, reports, strict=True)}
            entry[other] = {"step": int(chosen.step[i]), "splits": kept}
    explained = explain.Explained(own.label, own.method, own.model, best.picked(rule))
    found = explain.examine(explained, dataset, look.headlines[-1], shown=look.config.report.examples)
    seconds, steps = trained.clock["seconds"], trained.clock["steps_timed"]
    train = {
        "steps": own.spec.steps,
        "seconds": seconds * len(best.members) / own.members,  # of all seeds in this setting
        "compile_seconds": trained.clock["compile_seconds"],
        "examples_per_second": steps * own.batch_size * own.members / seconds if seconds > 0 else None,
    }
    hyper = {name: np.asarray(value).tolist() for name, value in trained.hyper.items()}
    runs = [
        {
            "method": own.label,
            "program": own.name,
            "member": i,
            "seed": own.seeds[i],
            "setting": dict(own.settings[i]),
            "hyper": {name: value[i] for name, value in hyper.items()},
            "needs": needs(own.method),
            "selected_by": rule,
            "selected_step": int(trained.selected[rule].step[i]),
            "selection": selection[k],
            "splits": measured[""][k],
            **({"modes": modes[k], "mode": default} if modes[k] else {}),
            "identification": found.identification[k],
            **({"routing": routed} if (routed := found.routing[k]) else {}),
            "train": train,
        }
        for k, i in enumerate(best.members)
    ]
    return runs, found.cards


def refusals(runs: list[dict[str, Any]]) -> list[str]:
    """A warning for every method and modality whose edits were refused in some seeds."""
    count = collections.Counter(run["method"] for run in runs)
    refused = collections.Counter(
        (run["method"], m) for run in runs for m, found in run["identification"].items() if found.get("verdict", {}).get(REFUSED)
    )
    why = "they took away all that tells the label, so it has no shortcut there or none that is told apart from the cause"
    return [f"{name} gave up its edits of {m} in {n} of {count[name]} seeds: {why}" for (name, m), n in refused.items()]


def _results(config: Config, look: Look, runs: list[dict[str, Any]], tried: list[dict[str, Any]]) -> Results:
    level, resamples = config.evaluate.level, config.evaluate.bootstrap

    def values(method: str) -> list[float]:
        own = [run["splits"].get(look.headlines[-1], {}).get(HEADLINE) for run in runs if run["method"] == method]
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
    warnings += refusals(runs)
    if skipped := look.built.dataset.skipped:
        warnings.append(f"{len(skipped)} rows of the data could not be used and were left out; the first: {skipped[0]}")
    if len(config.seeds) < 5:
        warnings.append(f"{len(config.seeds)} seeds say little about the spread; use at least 5")
    return Results(
        config=to_dict(config),
        environment=results.environment(),
        runs=runs,
        summary=results.summarise(runs, level=level, resamples=resamples),
        modes=results.summarise_modes(runs, level=level, resamples=resamples),
        gap_closed=gaps,
        settings=tried,
        warnings=warnings,
        data=sources.summary(look.built.dataset),
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


class Refused(UserError):
    """What all processes end with."""


@contextlib.contextmanager
def _claimed(workdir: pathlib.Path, config: Config) -> Iterator[None]:
    """Holds the folder against another run, and writes the resolved config if nothing that was trained there would now be trained otherwise. Of
    several processes the first does it for all."""
    with contextlib.ExitStack() as held:
        refused = None
        if mesh.first():
            try:
                _claim(workdir, config, held)
            except UserError as error:
                refused = error
        if mesh.any_of(refused is not None):
            raise Refused(str(refused or f"the first process cannot use workdir {workdir}; it says why"))
        yield


def _claim(workdir: pathlib.Path, config: Config, held: contextlib.ExitStack) -> None:
    import fcntl

    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir {workdir} is a file; expected a folder: choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.yaml"
    lock = held.enter_context((workdir / ".lock").open("w"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"workdir {workdir} is in use by another process; wait for it or choose another --workdir") from error
    for folder in sorted((workdir / "checkpoints").glob("*")) if path.exists() else ():
        own = re.sub(r"-\d+$", "", folder.name)  # a sweep's programs are numbered
        old, new = (numbers(known, BASELINE if own == CEILING else own) for known in (load_config(path), config))
        if old != new:
            mend = f"choose another --workdir, or delete {folder} to train {own} anew"
            raise UserError(f"workdir {workdir} holds another run ({_difference(old, new)}); {mend}")
    write_whole(path, to_yaml(config))


def _difference(old: Any, new: Any, where: str = "") -> str:
    """The first key in which two configs differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *new]:
            if old.get(key) != new.get(key):
                return _difference(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    return f"{where} is {old!r} there, {new!r} here"


def _use_compile_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that the next start takes seconds."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(pathlib.Path(base) / "cimrl_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # else the key holds the folder's path
