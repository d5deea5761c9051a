"""A data set checked row by row, and written as a folder of fast arrays: `python -m cimrl_jax.main prepare --config FILE`; see `--help prepare`."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cimrl_jax import assembly
from cimrl_jax.config import Config, load
from cimrl_jax.data import back_translation, listing, manifest, prepared, shards, translators
from cimrl_jax.data.listing import Fault, Listing
from cimrl_jax.data.manifest import Form
from cimrl_jax.data.records import Picture
from cimrl_jax.data.source import Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.files import write_whole
from cimrl_jax.options import component, make_options, plain
from cimrl_jax.report.progress import Bar, Progress, duration

SHOWN = 20
"""Bad rows on the screen; all are in the file."""
FAULTS, TRANSLATIONS = manifest.BESIDE
LISTED = 30
"""Classes, or groups, that are told one by one."""


def run(
    source: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    to: str | os.PathLike[str] = "",
    form: Form = "map",
    picture: Picture = "raw",
    back_translate: str = "",
    check: bool = False,
    quiet: bool = False,
) -> pathlib.Path:
    """Examines every row of a config's data set, and writes the data set unless only to `check` is asked for.

    Args:
      source: of the config, as `config.load` takes it, with the `overrides`.
      to: the folder; by default data.path with .prepared behind it, or the data set's name if it has no path.
      form, picture: see `prepared.write`.
      back_translate: a route, for a second version of every training text: see `back_translation.add`.
      quiet: print nothing.

    Returns:
      The folder.

    Raises:
      UserError: bad rows with data.on_bad_row=fail, a bad config, a folder that cannot be written or holds something else.
    """
    config, began = load(source, overrides), time.monotonic()
    path = config.data.path
    if path and manifest.is_prepared(path):
        raise UserError(f"data.path: {path} is prepared already; set it to the folder that the data set's authors distribute")
    if back_translate:
        translators.route(back_translate, back_translation.SECONDS)  # told before minutes of examination
    folder = pathlib.Path(to or f"{path.rstrip('/') or config.data.name}.prepared")
    about = {
        "data": {"name": config.data.name, "path": os.path.abspath(path) if path else "", "options": plain(config.data.options)},
        "expected": {m: dataclasses.asdict(own) for m, own in assembly.expected(config).items()},
        "back_translate": back_translate,
    }
    resumed = manifest.claim(folder, manifest.made_of(about, form=form, picture=picture)) and not check
    with Progress(quiet) as progress:
        dataset = _examined(config, folder, progress)
        if check:
            progress.say("checked; the data set was not written")
            return folder
        for m, feature in dataset.features.items() if back_translate else ():
            if feature.kind == "text":
                dataset = _translated(dataset, m, back_translate, folder / TRANSLATIONS, progress)
        written = _written(dataset, folder, form, picture, about, progress, resumed)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9
        what = "prepared" if written else "prepared already, and whole"
        words = ["python", "-m", "cimrl_jax.main", *(["--config", os.fspath(source)] if isinstance(source, str | os.PathLike) else [])]
        words += [word for key, value in (overrides or {}).items() if key != "data.path" for word in _typed(key, value)]
        progress.say(f"{what}: {folder}, {size:.3g} GB, in {duration(time.monotonic() - began)}; train on it with:")
        progress.say(f"  {shlex.join([*words, '--data.path', str(folder)])}")
    return folder


def _examined(config: Config, folder: pathlib.Path, progress: Progress) -> Dataset:
    """The data set without its bad rows, after all that is to be said of it was said."""
    module = component("data", config.data.name)
    reads = issubclass(module.Options, listing.Options) and hasattr(module, "read") and config.data.path
    if not reads:
        dataset = assembly.official(config)
        labels = {name: (source.label, source.group) for name, source in dataset.splits.items()}
        _tell(dataset.name, labels, dataset.class_names, dataset.group_names, {}, {}, progress)
        return dataset
    options = make_options(module.Options, config.data.options, "data")
    found: Listing = module.read(options, pathlib.Path(config.data.path))
    listing.short_of_published(found, f"data set {found.name!r}")  # what is more than was published is told before files are read
    bars: list[Bar] = []

    def show(done: int, total: int) -> None:
        bars[:] = bars or [progress.task("examined", total=total, unit="files")]
        if done == total or not done % 64:
            bars[0].update(completed=done)

    faults = listing.examine(found, deep=True, progress=show)
    bad = {fault.row for fault in faults}
    good = {name: rows[~np.isin(rows, list(bad))] for name, rows in found.splits.items()}
    group = np.full(len(found.label), -1) if found.group is None else found.group
    labels = {name: (found.label[rows], group[rows]) for name, rows in good.items()}
    left_out = {name: len(rows) - len(good[name]) for name, rows in found.splits.items()} if bad else {}
    _tell(found.name, labels, found.class_names, found.group_names, left_out, found.published, progress)
    _list(found, faults, folder, progress)
    if faults and options.on_bad_row == "fail":
        plural = "s" if len(bad) > 1 else ""
        raise UserError(f"{len(bad)} bad row{plural} (listed in {folder / FAULTS}); mend them or set --data.on-bad-row skip")
    wanted = assembly.expected(config)
    return listing.assemble(dataclasses.replace(found, faults=tuple(faults)), options, expected=wanted)


def _list(found: Listing, faults: list[Fault], folder: pathlib.Path, progress: Progress) -> None:
    """Bad rows, the first on the screen and all in a file."""
    path = folder / FAULTS
    if not faults:
        progress.say("no bad row")
        path.unlink(missing_ok=True)
        return
    kinds = collections.Counter(fault.kind for fault in faults)
    progress.say(f"bad rows: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}")
    for fault in faults[:SHOWN]:
        progress.say(f"  {found.origins[fault.row]}: {fault.kind}: {fault.detail}")
    if len(faults) > SHOWN:
        progress.say(f"  ... and {len(faults) - SHOWN} more")
    splits = {name: set(rows.tolist()) for name, rows in found.splits.items()}
    lines = [
        {
            "row": found.origins[fault.row],
            "kind": fault.kind,
            "detail": fault.detail,
            "splits": [name for name, rows in splits.items() if fault.row in rows],
        }
        for fault in faults
    ]
    with shards.writing("the list of bad rows", path, manifest.MEND):
        write_whole(path, "".join(f"{json.dumps(line)}\n" for line in lines))


def _tell(
    name: str,
    labels: Mapping[str, tuple[np.ndarray, np.ndarray]],
    class_names: Sequence[str],
    group_names: Sequence[str],
    left_out: Mapping[str, int],
    published: Mapping[str, Mapping[str, int]],
    progress: Progress,
) -> None:
    """The table: how many rows each split has, of each class and of each group, and whether these are as many as published."""

    def cell(split: str, key: str, have: int) -> str:
        count = published.get(split, {}).get(key)
        return f"{have}" if count is None else f"{have} as published" if have == count else f"{have} of {count}"

    lines = [[name, *labels], ["rows", *(cell(split, "rows", len(label)) for split, (label, _) in labels.items())]]
    lines += [["bad rows", *(f"{left_out.get(split, 0)}" for split in labels)]] if left_out else []
    for what, names, part in (("class", class_names, 0), ("group", group_names, 1)):
        counts = {split: np.bincount(own[part][own[part] >= 0], minlength=len(names)) for split, own in labels.items()}
        if len(names) > LISTED:
            lines.append([f"{what}es" if what == "class" else f"{what}s", *(f"{(own > 0).sum()} of {len(names)}" for own in counts.values())])
            continue
        for number, own in enumerate(names):
            lines.append([f"{what} {own}", *(cell(split, own if part else "", int(count[number])) for split, count in counts.items())])
        unknown = [int((own[1] < 0).sum()) for own in labels.values()]
        lines += [["group unknown", *map(str, unknown)]] if part and names and any(unknown) else []
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        progress.say("  ".join(text.ljust(width) if not i else text.rjust(width) for i, (text, width) in enumerate(zip(line, widths, strict=True))))


def _translated(dataset: Dataset, modality: str, spec: str, cache: pathlib.Path, progress: Progress) -> Dataset:
    bars: list[Bar] = []

    def show(done: int, total: int) -> None:
        bars[:] = bars or [progress.task(f"translated {modality}", total=total, unit="texts")]
        bars[0].update(completed=done)

    return back_translation.add(dataset, modality, spec, cache, show)


def _written(
    dataset: Dataset, folder: pathlib.Path, form: Form, picture: Picture, about: Mapping[str, Any], progress: Progress, resumed: bool
) -> bool:
    """Writes what is not there; whether there was anything to write."""
    bars: dict[str, Bar] = {}

    def show(name: str, done: int, total: int) -> None:
        if name not in bars:
            if resumed:
                progress.say(f"going on where an earlier start was: {done} of {total} rows of {name} are there")
            bars[name] = progress.task(name, total=total, completed=done, unit="rows")
        bars[name].update(completed=done)

    prepared.write(dataset, folder, form=form, picture=picture, about=about, progress=show, say=progress.say)
    return bool(bars)


def _typed(key: str, value: Any) -> list[str]:
    return [f"--{key}"] if value is True else [f"--{key}", str(value)]
