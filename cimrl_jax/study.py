"""Many runs and one table: `python -m cimrl_jax.main study --config FILE`, where the file says which runs; see `--help study`."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from cimrl_jax import experiment, readers
from cimrl_jax.config import Config, fingerprint, load, settings
from cimrl_jax.errors import UserError, nearest
from cimrl_jax.files import write_whole
from cimrl_jax.options import plain
from cimrl_jax.report import results, study_page
from cimrl_jax.report.comparison import Column, Comparison, pool
from cimrl_jax.report.progress import Progress, duration
from cimrl_jax.report.results import BASELINE, Results
from cimrl_jax.report.study_text import markdown

KEYS = ("base", "runs", "pool", "table", "plots")
NOT_RUN = "not run with these settings"


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study file says, its runs resolved."""

    name: str
    workdir: pathlib.Path
    runs: dict[str, Config]
    pools: dict[str, list[str]]
    """{data set: its folds' runs}; no run is in two of them."""
    table: list[str]
    """Runs and pools that are the columns of the first table; by default those that no plot shows."""
    plots: dict[str, dict[str, str]]
    """{what varies: {a number, as text: the run or pool measured there}}."""

    def columns(self) -> dict[str, list[str]]:
        """{data set: its runs}, in the order of the file; a pool where its first run stands."""
        owner = {run: name for name, folds in self.pools.items() for run in folds}
        columns: dict[str, list[str]] = {}
        for run in self.runs:
            columns.setdefault(owner.get(run, run), []).append(run)
        return columns


def run(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    workdir: str = "",
    only: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Comparison:
    """Runs what is not there yet and writes study.json, study.md and study.html to the workdir.

    Args:
      source: a study file or what it holds, see `read`.
      workdir: of the whole; a run's is the folder of its name in it. By default runs/<name of the file>.
      only: runs and pools to run now; the table also has what others left there before, with the same settings.
      overrides: values by dotted key, for every run; `runs.NAME.key` is for one run, or for one pool's.
      quiet: print nothing.

    Raises:
      UserError: a bad study, before anything runs; or a run failed, after the others ran and everything was written.
    """
    study = read(source, workdir=workdir, overrides=overrides)
    columns = study.columns()
    unknown = [name for name in only if name not in {*columns, *study.runs}]
    if unknown:
        raise UserError(f"--only: there is no run {unknown[0]!r}; {nearest(unknown[0], {*columns, *study.runs})}")
    chosen = [name for column, runs in columns.items() for name in runs if not only or name in only or column in only]
    say, failed = Progress(quiet).say, {}
    found = {name: own for name, config in study.runs.items() if (own := finished(config))}
    left = {name: _work(study.runs[name]) for name in chosen if name not in found}
    spent = worked = 0.0
    for number, name in enumerate(chosen, 1):
        head = f"{number} of {len(chosen)}: {name}"
        if name in found:
            say(f"{head}: done before")
            continue
        say(f"{head}, about {duration(spent / worked * sum(left.values()))} left" if worked else head)
        began = time.monotonic()
        try:
            own = experiment.run(study.runs[name], quiet=quiet)
        except UserError as error:
            failed[name] = " ".join(str(error).split())
            say(f"{head}: {failed[name]}")
        else:
            assert own is not None  # all parts were asked for
            found[name] = own
            spent, worked = spent + time.monotonic() - began, worked + left[name]
            _write(study, compare(study, found, failed), page=False)  # if what follows is stopped, this is there
        left.pop(name)
        jax.clear_caches()  # a program holds dozens of memory mappings, of which a process may have only so many
    comparison = compare(study, found, failed)
    page = any(config.report.html for config in study.runs.values())
    _write(study, comparison, page=page)
    say(markdown(comparison))
    say(f"table: {study.workdir / 'study.md'}" + f", page: {study.workdir / 'study.html'}" * page)
    if failed:
        first = next(iter(failed))
        raise UserError(f"{len(failed)} of {len(chosen)} runs failed, the others are in {study.workdir / 'study.md'}; {first}: {failed[first]}")
    return comparison


def finished(config: Config) -> Results | None:
    """What a run left in its workdir, if it is whole and was made with this config; else None."""
    try:
        found = results.read(pathlib.Path(config.workdir) / "results.json")
        return found if fingerprint(load(found.config)) == fingerprint(config) else None
    except UserError:  # none, broken off, or of options that are no more
        return None


def compare(study: Study, found: Mapping[str, Results], failed: Mapping[str, str]) -> Comparison:
    """The study's table of what was found; a column without a whole run says why."""
    columns = {}
    for name, runs in study.columns().items():
        own = [found[run] for run in runs if run in found]
        notes = [
            f"{run}: {failed.get(run, NOT_RUN)}" if len(runs) > 1 or run != name else failed.get(run, NOT_RUN) for run in runs if run not in found
        ]
        if notes and own:
            notes = [f"{len(own)} of {len(runs)} folds are pooled", *notes]
        columns[name] = Column(name, (pool(own) if name in study.pools else own[0]) if own else None, tuple(notes))
    return Comparison(study.name, columns, study.table, study.plots)


def _write(study: Study, comparison: Comparison, *, page: bool) -> None:
    write_whole(study.workdir / "study.json", json.dumps(comparison.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    write_whole(study.workdir / "study.md", markdown(comparison))
    if page:
        write_whole(study.workdir / "study.html", study_page.render(comparison))


def _work(config: Config) -> float:
    """Examples that the run trains on, as a measure of how long it takes."""
    members = len(config.seeds) * sum(len(settings(config, method)) for method in config.methods)
    members += len(config.seeds) * (config.evaluate.ceiling and BASELINE in config.methods)
    return float(members * config.train.steps * config.train.batch_size)


def read(source: str | os.PathLike[str] | Mapping[str, Any], *, workdir: str = "", overrides: Mapping[str, Any] | None = None) -> Study:
    """A checked study: {"runs": {name: {"config": file, overlay}}, "base": {overlay}, "pool": {data set: [run, ...]}, "plots": {what: {x: run}},
    "table": [run, ...]}.

    Each run is its "config" (a file, or several with commas between them), then the base, then its own overlay, then the overrides, of which the
    later win key by key. `config` may also stand in the base, and be left out.

    Raises:
      UserError: one line that names the file, the key, and what was expected.
    """
    named = isinstance(source, str | os.PathLike)
    where, name = (os.fspath(source), pathlib.Path(source).stem) if named else ("study", "study")
    tree = readers.read(pathlib.Path(source), "study") if named else source
    tree = plain(_section(tree, where, "a dict with the key runs"))
    for key in tree:
        if key not in KEYS:
            raise UserError(f"{where}: {key}: unknown key; {nearest(key, KEYS)}")
    sections = {key: _section(tree.get(key, {}), f"{where}: {key}", "a section") for key in KEYS if key != "table"}
    if not sections["runs"]:
        raise UserError(f"{where}: runs: there are none; expected at least one, such as {{'digits': {{'config': 'configs/digits.py'}}}}")
    folder = pathlib.Path(workdir or f"runs/{name}")
    shared, own = _divided(overrides or {}, list(sections["runs"]), sections["pool"])
    for run in sections["runs"]:
        _check_name(run, list(sections["runs"]), where)
    study = Study(name, folder, {}, _pools(sections, where), [], {})
    for run, overlay in sections["runs"].items():
        overlay = _section(overlay, f"{where}: runs.{run}", "a section of keys and values")
        study.runs[run] = _config(sections["base"], overlay, {**shared, **own[run], "workdir": str(folder / run)}, run, where)
    columns = study.columns()
    study.plots.update(_plots(sections["plots"], columns, where))
    plotted = {name for points in study.plots.values() for name in points.values()}
    study.table.extend(_table(tree["table"], columns, where) if "table" in tree else [name for name in columns if name not in plotted])
    return study


def _config(base: Mapping[str, Any], overlay: Mapping[str, Any], overrides: Mapping[str, Any], run: str, where: str) -> Config:
    own = f"{where}: runs.{run}"
    if any("workdir" in section for section in (base, overlay)):
        raise UserError(f"{own}: workdir: a run's folder has its name in the study's; expected --workdir of the whole, and no such key here")
    file = overlay.get("config", base.get("config", ""))
    if not isinstance(file, str):
        raise UserError(f"{own}: config: got {file!r}, expected the path of a config file")
    tree: dict[str, Any] = {}
    for path in file.split(",") if file else ():
        tree = over(tree, plain(_section(readers.read(pathlib.Path(path)), path, "a nested mapping of keys to values")))
    for section in (base, overlay):
        tree = over(tree, {key: value for key, value in section.items() if key != "config"})
    try:
        return load({**tree, "name": run}, overrides)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith("command line") else f"{own}: {str(error).removeprefix('config: ')}") from error


def over(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """`second` on top of `first`, section by section."""
    both = {key: over(first[key], value) for key, value in second.items() if isinstance(value, Mapping) and isinstance(first.get(key), Mapping)}
    return {**first, **second, **both}


def _section(value: Any, where: str, expected: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected {expected}, got {value!r}")
    return dict(value)


def _check_name(name: str, names: Sequence[str], where: str) -> None:
    parts = name.split("/")
    if not all(part.strip() and not part.startswith((".", "-")) and part.isprintable() and "\\" not in part for part in parts):
        raise UserError(
            f"{where}: runs: {name!r} is no name of a folder; expected letters, digits and _ with / between them, such as covid_cxr/fold0"
        )
    inside = [other for other in names if other.startswith(f"{name}/")]
    if inside:
        raise UserError(f"{where}: runs: {inside[0]!r} would lie in the folder of {name!r}; rename one of them")


def _is_one(name: Any, names: Mapping[str, Any]) -> bool:
    return isinstance(name, str) and name in names


def _pools(sections: Mapping[str, dict[str, Any]], where: str) -> dict[str, list[str]]:
    runs, pools = sections["runs"], sections["pool"]
    taken: set[str] = set()
    for name, folds in pools.items():
        if not isinstance(folds, list) or not folds:
            raise UserError(f"{where}: pool.{name}: got {folds!r}, expected a list of runs")
        if name in runs:
            raise UserError(f"{where}: pool.{name}: there is a run of that name too; rename one of them")
        for fold in folds:
            if not _is_one(fold, runs):
                raise UserError(f"{where}: pool.{name}: there is no run {fold!r}; {nearest(str(fold), runs)}")
            if fold in taken:
                raise UserError(f"{where}: pool.{name}: the run {fold!r} is pooled twice; expected each once")
            taken.add(fold)
    return pools


def _table(names: Any, columns: Mapping[str, Any], where: str) -> list[str]:
    if not isinstance(names, list) or len(set(map(str, names))) < len(names):
        raise UserError(f"{where}: table: got {names!r}, expected a list of runs and pools, each once")
    for name in names:
        if not _is_one(name, columns):
            raise UserError(f"{where}: table: there is no run or pool {name!r}; {nearest(str(name), columns)}")
    return names


def _plots(plots: Mapping[str, Any], columns: Mapping[str, Any], where: str) -> dict[str, dict[str, str]]:
    for title, points in plots.items():
        for value, name in _section(points, f"{where}: plots.{title}", "a section {number: run}").items():
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if not math.isfinite(number):
                raise UserError(f"{where}: plots.{title}: got {value!r}, expected a number, the value at which the run was made")
            if not _is_one(name, columns):
                raise UserError(f"{where}: plots.{title}.{value}: there is no run or pool {name!r}; {nearest(str(name), columns)}")
    return dict(plots)


def _divided(overrides: Mapping[str, Any], runs: Sequence[str], pools: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(what is for every run, {run: what is for it alone}). The command line writes - as _, so a name is found either way."""
    shared: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {run: {} for run in runs}
    for key, value in overrides.items():
        if not key.startswith("runs."):
            shared[key] = value
            continue
        rest = key.removeprefix("runs.").replace("-", "_")
        meant = [name for name in (*runs, *pools) if rest.startswith(f"{name.replace('-', '_')}.")]
        if not meant:
            names = ", ".join([*pools, *runs])
            raise UserError(f"command line: {key}: expected runs.NAME.KEY with the name of a run or pool: {names}")
        name = max(meant, key=len)
        for run in pools.get(name, [name]):
            own[run][rest[len(name) + 1 :]] = value
    return shared, own
