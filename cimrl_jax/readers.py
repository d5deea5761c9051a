"""A config file as a plain nested dict: a `.py` file's variable `config` or one entry of its `settings`, or a `.yaml` file; a study's likewise."""

from __future__ import annotations

import functools
import pathlib
import runpy
import traceback
from typing import Any

import yaml

from cimrl_jax.errors import UserError, nearest


def read(path: pathlib.Path, variable: str = "config") -> Any:
    """What the file holds.

    A `.py` file is executed by itself, like a script, and must define `config`, or another `variable`; `file.py:entry` reads that entry of its dict
    `settings`, without the entry's `source`. A `.yaml` file is read safely and may not give a key twice.

    Raises:
      UserError: there is no such file, it ends otherwise, or it does not parse; with the line, where there is one.
    """
    entry = ""
    if not path.is_file() and ".py:" in path.name:
        name, _, entry = path.name.rpartition(":")
        path = path.with_name(name)
    readers = {".py": functools.partial(_read_python, variable=variable), ".yaml": _read_yaml, ".yml": _read_yaml}
    if not path.is_file():
        beside = [str(other) for other in path.parent.glob("*") if other.suffix in readers]
        raise UserError(f"there is no config file {path}; {nearest(str(path), beside)}")
    if path.suffix not in readers:
        raise UserError(f"{path}: expected a config file that ends in .py or .yaml")
    return _entry(path, entry) if entry else readers[path.suffix](path)


def _read_python(path: pathlib.Path, variable: str) -> Any:
    names = _run(path)
    if variable in names:
        return names[variable]
    if variable == "study":
        raise UserError(f"{path}: expected a variable `study`, a dict such as {{'runs': {{'digits': {{'config': 'configs/digits.py'}}}}}}")
    if "study" in names:
        raise UserError(f"{path} is a study of several runs; expected the command `study` before --config")
    also = f", or {path}:ENTRY to read one of {', '.join(names['settings'])}" if "settings" in names else ""
    raise UserError(f"{path}: expected a variable `config`, a nested dict such as {{'train': {{'steps': 800}}}}{also}")


def _entry(path: pathlib.Path, entry: str) -> Any:
    entries = _run(path).get("settings", {})
    if entry not in entries:
        raise UserError(f"{path}: no entry {entry!r} in its `settings`; {nearest(entry, entries)}")
    return {key: value for key, value in entries[entry].items() if key != "source"}


def _run(path: pathlib.Path) -> dict[str, Any]:
    try:
        return runpy.run_path(str(path))
    except Exception as error:
        inside = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = inside[-1] if inside else error.lineno if isinstance(error, SyntaxError) else 1
        raise UserError(f"{path}, line {line}: {type(error).__name__}: {' '.join(str(error).split())}") from error


class _Loader(yaml.SafeLoader):
    """YAML without its silent trap: a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # pyright: ignore[reportArgumentType]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.value[i][0].start_mark)
        return super().construct_mapping(node, deep=deep)


def _read_yaml(path: pathlib.Path) -> Any:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    return {} if tree is None else tree
