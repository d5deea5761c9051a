"""What a prepared folder says of itself (see `data/prepared.py`), and whether it fits what is asked of it."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import urllib.parse
from collections.abc import Mapping
from typing import Any, Literal

from cimrl_jax.data import records, shards, tokenise
from cimrl_jax.errors import UserError
from cimrl_jax.options import OptionError, component, field_types, make_options, plain
from cimrl_jax.types import Expected, Feature

KIND = "cimrl_jax prepared data set"
"""Both files begin with it: another's dataset.json is not taken for one."""
LAYOUT = 1
MADE_OF, DATASET = "made_of.json", "dataset.json"
BESIDE = ("faults.jsonl", "translations.jsonl")
"""What may lie in a folder before it is made."""
MEND = "free some space or choose another folder by --to"
Form = Literal["map", "records"]


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of the folder."""

    shape: tuple[int, ...]
    """Of a row."""
    dtype: str
    count: int
    size: int
    """Rows of a shard."""
    form: Form = "map"
    picture: records.Picture = "raw"

    def folder(self, base: pathlib.Path, name: str) -> shards.Folder:
        where = base / urllib.parse.quote(name, safe=" ")
        fields: dict[str, Any] = {"shape": self.shape, "dtype": self.dtype, "count": self.count, "size": self.size, "what": name, "mend": MEND}
        return records.Records(where, **fields, picture=self.picture) if self.form == "records" else shards.Folder(where, **fields)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """dataset.json. Not described is what `Dataset` has."""

    kind: str
    layout: int
    name: str
    notes: str
    features: dict[str, Feature]
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    group_attribute: tuple[int, ...]
    synonyms: tuple[tuple[str, ...], ...]
    skipped: tuple[str, ...]
    splits: dict[str, int]
    """How many rows of `examples` are of each, one split after the other."""
    masks: dict[str, dict[str, tuple[int, ...]]]
    """By split and name of the array: the shape of a region before it was packed."""
    answers_of: dict[str, dict[str, Any]]
    """By split that has `answers`, "left_out" and "kinds" of these."""
    arrays: dict[str, Array]
    """examples (int64: label, group, for each modality whether it is there, and the row in each of the others), answers (the kind
    and the classes) if there are any, inputs.<modality>, and
    cause.<modality> and shortcut.<modality> of splits that have regions."""
    made_of: dict[str, Any]
    versions: dict[str, str]
    """For people only."""
    keys: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)


def made_of(about: Mapping[str, Any], *, form: Form = "map", picture: records.Picture = "raw") -> dict[str, Any]:
    """What decides what a folder holds, but for the rows. `about`: what the data set was built from; {"data": {"name", "path", "options"},
    "expected": {m: an Expected as a dict}} are what `adopt` and `fitting` compare.

    Raises:
      UserError: JPEG where it cannot be.
    """
    if picture == "jpeg" and form != "records":
        raise UserError("pictures are kept as JPEG in records only; set --form records, or leave --picture out")
    return json.loads(json.dumps({"kind": KIND, "layout": LAYOUT, "form": form, "picture": picture, **about}, default=str))


def claim(folder: pathlib.Path, wanted: Mapping[str, Any]) -> bool:
    """Whether an earlier start left something in the folder to go on from.

    Raises:
      UserError: it is no folder, holds something else, or the same prepared otherwise.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; expected a folder, or nothing: choose another by --to")
    known = _ours(folder / MADE_OF)
    if known is None:
        strange = sorted(path.name for path in folder.iterdir() if path.name not in BESIDE and path.name[0] != ".") if folder.exists() else []
        if strange:
            raise UserError(f"{folder} holds something else ({strange[0]}); choose another folder by --to")
        return False
    if "rows" in wanted and known["rows"] != wanted["rows"]:
        raise UserError(f"{folder} was prepared from other files, or their content has changed; choose another folder by --to, or delete it")
    for key, value in wanted.items():
        if known.get(key) != value:
            difference = _difference(known.get(key), value, key)
            raise UserError(f"{folder} was prepared otherwise ({difference}); choose another folder by --to, or delete it")
    return True


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """Whether the folder is one that `write` made, whole or not."""
    return any(_ours(pathlib.Path(path) / name) is not None for name in (DATASET, MADE_OF))


def load(folder: pathlib.Path) -> Manifest:
    """What a folder holds.

    Raises:
      UserError: it is damaged, half made, or of another version.
    """
    known = _ours(folder / DATASET)
    if known is None:
        raise UserError(f"data.path: {folder} is not prepared to its end; run the same `prepare` again, it goes on where it was")
    if known.get("layout") != LAYOUT:
        raise UserError(f"data.path: {folder} was prepared by another version (layout {known.get('layout')}, expected {LAYOUT}); prepare it anew")
    try:
        return make_options(Manifest, known, DATASET)
    except OptionError as error:
        raise UserError(f"data.path: {folder / DATASET} is damaged ({error}); run `prepare` again") from error


def fitting(own: Manifest, expected: Mapping[str, Expected], folder: pathlib.Path) -> dict[str, Feature]:
    """The features, with a tokeniser where it lies now.

    Raises:
      UserError: pretrained encoders expect something else than what they were prepared for.
    """
    before, features = own.made_of.get("expected", {}), dict(own.features)
    mend = "set model.<modality>.pretrained as it was for `prepare`, or prepare again into another folder"
    for m in [*before, *expected]:
        now = plain(dataclasses.asdict(expected[m])) if m in expected else None
        then = before.get(m)
        if now is None or then is None:
            difference = "without a pretrained encoder of {}, but the config has one" if then is None else "for a pretrained encoder of {}"
            raise UserError(f"data.path: {folder} was prepared {difference.format(m)}; {mend}")
        if now | {"tokeniser": ""} != then | {"tokeniser": ""}:
            difference = _difference(then, now, f"what the encoder of {m} expects")
            raise UserError(f"data.path: {folder} was prepared for another pretrained encoder ({difference}); {mend}")
        if now["tokeniser"]:
            feature = dataclasses.replace(features[m], tokeniser=now["tokeniser"])
            found = tokenise.of(feature).feature()
            if (found.vocabulary, found.special) != (feature.vocabulary, feature.special):
                raise UserError(f"data.path: {folder} was prepared with another tokeniser than that in {now['tokeniser']}; {mend}")
            features[m] = feature
    return features


def adopt(section: Mapping[str, Any]) -> dict[str, Any]:
    """A config's section `data`. Where its path is a prepared folder, the name and the options that are not given are those it was prepared with.

    Raises:
      UserError: one that is given is another; the folder cannot be read.
    """
    path = section.get("path")
    if not isinstance(path, str | os.PathLike) or not os.fspath(path) or "\0" in os.fspath(path) or not is_prepared(path):
        return dict(section)  # whatever is wrong with it is said by who reads it
    own = load(pathlib.Path(path))
    if "data" not in own.made_of:
        return dict(section)
    name, kept = own.made_of["data"]["name"], own.made_of["data"]["options"]
    if section.get("name", name) != name:
        raise OptionError("data.name", f"is {section['name']!r}, but {path} holds {name!r}, prepared; leave data.name out or change data.path")
    options = component("data", name, where="data.name").Options
    unknown = [key for key in kept if key not in field_types(options)]
    if unknown:
        raise OptionError("data.path", f"{path} was prepared by another version, with data.{unknown[0]}; prepare it anew")
    then, now = (
        plain(dataclasses.asdict(make_options(options, tree, "data")))
        for tree in (kept, _on_top(kept, {key: value for key, value in section.items() if key in field_types(options)}))
    )
    same = {field.name for field in dataclasses.fields(options) if not field.metadata.get("numbers", True)}
    same |= set() if own.skipped else {"on_bad_row"}  # either way the same rows
    for key in then.keys() - same:
        if now[key] != then[key]:
            where, there, here = _first_difference(then[key], now[key], f"data.{key}")
            raise OptionError(where, f"is {here!r}, but {path} was prepared with {there!r}; leave it out, or prepare again into another folder")
    return {**section, "name": name, **kept}


def _on_top(kept: Any, given: Any) -> Any:
    """What is given in the place of what was kept, key by key."""
    if isinstance(kept, Mapping) and isinstance(given, Mapping):
        return {**kept, **{key: _on_top(kept.get(key), value) for key, value in given.items()}}
    return given


def _ours(path: pathlib.Path) -> dict[str, Any] | None:
    """What a file says if `write` wrote it."""
    try:
        with path.open(encoding="utf-8") as file:
            beginning = file.read(len(KIND) + 20)
            if f'"{KIND}"' not in beginning:
                return None
            return json.loads(beginning + file.read())
    except UnicodeDecodeError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged; delete it and run `prepare` again") from error
    except OSError:
        return None


def _difference(then: Any, now: Any, where: str) -> str:
    where, then, now = _first_difference(then, now, where)
    return f"{where} is {then!r} there, {now!r} here"


def _first_difference(then: Any, now: Any, where: str) -> tuple[str, Any, Any]:
    """(the first key in which two values differ, its value in both)."""
    if isinstance(then, dict) and isinstance(now, dict):
        key = next(key for key in [*then, *now] if then.get(key) != now.get(key))
        return _first_difference(then.get(key), now.get(key), f"{where}.{key}")
    return where, then, now
