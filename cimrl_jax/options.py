"""Options of components, checked strictly: which components there are, and how a plain mapping becomes their `Options`.

The module path is the registry: `methods/cimrl.py` is the method "cimrl", because it is there. Its options are the dataclass `Options` in that file.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import math
import os
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

import yaml

from cimrl_jax.errors import UserError, nearest

Kind = Literal["data", "encoder", "method"]
T = TypeVar("T")

PACKAGES: dict[str, str] = {"data": "cimrl_jax.data.datasets", "encoder": "cimrl_jax.nn.encoders", "method": "cimrl_jax.methods"}
"""Where the components of each kind live: one file each."""

WORDS = {"data": "data set"}
TRUE, FALSE, NONE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}, {"none", "null", "~"}


class OptionError(UserError):
    """A wrong key or value; `key` is its full dotted name, so that the caller can say which file or argument it came from."""

    def __init__(self, key: str, message: str):
        super().__init__(f"{key}: {message}" if key else message)
        self.key, self.message = key, message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """Bounds of a number: `steps: Annotated[int, Range(low=1)]`. `low` and `high` are allowed themselves, `above` and `below` are not."""

    low: float | None = None
    above: float | None = None
    high: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = {"low": "at least", "above": "above", "high": "at most", "below": "below"}
        return " and ".join(f"{word} {getattr(self, name):g}" for name, word in words.items() if getattr(self, name) is not None)


def modules(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The components in a folder by name: its files, except `base` and what starts with an underscore."""
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "base" and not path.stem.startswith("_")}


def known(kind: Kind) -> list[str]:
    """The names of all components of one kind."""
    spec = importlib.util.find_spec(PACKAGES[kind])
    return sorted({name for folder in (spec.submodule_search_locations or () if spec else ()) for name in modules(pathlib.Path(folder))})


def component(kind: Kind, name: str, *, where: str = "") -> types.ModuleType:
    """The module of a component: it has `Options` and `build`.

    Raises:
      UserError: there is no such component; the message names the nearest one.
    """
    if name not in known(kind):
        raise OptionError(where, f"there is no {WORDS.get(kind, kind)} {name!r}; {nearest(name, known(kind))}")
    return importlib.import_module(f"{PACKAGES[kind]}.{name}")


def make_options(options_class: type[T], mapping: Any, where: str, everywhere: Iterable[str] = ()) -> T:
    """An instance of a dataclass from a plain mapping; nested dataclasses are made from nested mappings.

    Args:
      options_class: a dataclass; its annotations say how each value is read (see `convert`).
      mapping: values by field name; what is missing takes its default.
      where: the dotted name of the section, such as "method.cimrl", for messages.
      everywhere: all dotted keys that exist, to point at one in another section.

    Raises:
      UserError: an unknown or missing key, or a wrong value; one line with the dotted key.
    """
    prefix = f"{where}." if where else ""
    if not isinstance(mapping, Mapping):
        raise OptionError(where, f"got {_show(mapping)}, expected a section with the keys {', '.join(field_types(options_class))}")
    hints = field_types(options_class)
    for key, value in mapping.items():
        if key not in hints:
            raise unknown_key(key, value, prefix, hints, everywhere)
    missing = [name for name, field in _fields(options_class).items() if name not in mapping and _required(field)]
    if missing:
        raise OptionError(f"{prefix}{missing[0]}", f"missing; expected {describe(hints[missing[0]])}")
    values = {key: convert(value, hints[key], f"{prefix}{key}") for key, value in mapping.items()}
    try:
        return options_class(**values)
    except OptionError:
        raise
    except UserError as error:  # from the dataclass's own `__post_init__`, which does not know where it stands
        raise OptionError(where, str(error)) from error


@functools.cache
def field_types(options_class: type) -> dict[str, Any]:
    """The type of each field of a dataclass, `Annotated` bounds included."""
    hints = typing.get_type_hints(options_class, include_extras=True)
    return {name: hints[name] for name in _fields(options_class)}


def convert(value: Any, expected: Any, key: str) -> Any:
    """`value` as the annotation `expected` wants it. Text is read by that type, so "5" is 5 where a number belongs, whether typed or from a file.

    Understands bool, int (also where a float belongs), float, str, Literal, Optional and unions, tuple and list (comma lists: "a,b"), dict,
    dataclasses, `Annotated[number, Range(...)]` and Any.

    Raises:
      UserError: the value does not fit; the message says the key, what it got and what was expected.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    text = value.strip().lower() if isinstance(value, str) else None
    wrong = OptionError(key, f"got {_show(value)}, expected {describe(expected)}")
    if expected is Any:
        return value
    if origin is typing.Annotated:
        try:
            result = convert(value, arguments[0], key)
        except OptionError as error:
            raise (wrong if error.key == key else error) from None  # the bound belongs in the message
        for bound in arguments[1:]:
            if isinstance(bound, Range) and result is not None and result not in bound:
                raise wrong
        return result
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, wrong, key)
    if origin is Literal:
        return _convert_literal(value, arguments, wrong)
    if dataclasses.is_dataclass(expected) and isinstance(expected, type):
        return make_options(expected, dataclasses.asdict(value) if isinstance(value, expected) else value, key)
    if expected in (tuple, list) or origin in (tuple, list):
        return _convert_sequence(value, tuple if tuple in (origin, expected) else list, arguments, wrong, key)
    if expected in (dict, Mapping) or isinstance(origin, type) and issubclass(origin, Mapping):
        value = _read_yaml(value, wrong) if text is not None else value
        if not isinstance(value, Mapping):
            raise wrong
        inner = arguments[1] if arguments else Any
        return {name: convert(item, inner, f"{key}.{name}") for name, item in value.items()}
    return _convert_scalar(value, text, expected, wrong)


def _convert_scalar(value: Any, text: str | None, expected: Any, wrong: UserError) -> Any:
    if expected is type(None):
        if value is None or text in NONE:
            return None
    elif expected is bool:
        if isinstance(value, bool) or text in TRUE | FALSE:
            return value if text is None else text in TRUE
    elif expected in (int, float):
        if text is not None:
            try:
                value = expected(text)
            except ValueError:
                raise wrong from None
        if isinstance(value, int) and not isinstance(value, bool) or expected is float and isinstance(value, float) and not math.isnan(value):
            return expected(value)
    elif expected is str or isinstance(expected, type) and issubclass(expected, pathlib.PurePath):
        if isinstance(value, str | os.PathLike) and "\0" not in os.fspath(value):  # no file's name and no text has one
            return expected(os.fspath(value))
    else:
        raise TypeError(f"options cannot hold {expected!r} (asked for: {wrong})")
    raise wrong


def _convert_union(value: Any, members: tuple[Any, ...], wrong: UserError, key: str) -> Any:
    # None first, so that "none" is nothing and not a text; then the members as written.
    for member in sorted(members, key=lambda member: member is not type(None)):
        try:
            return convert(value, member, key)
        except OptionError as error:
            if len([m for m in members if m is not type(None)]) == 1 and member is not type(None) and error.key != key:
                raise  # inside a nested section: the finer message
    raise wrong


def _convert_literal(value: Any, choices: tuple[Any, ...], wrong: OptionError) -> Any:
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return choice
        if isinstance(value, str) and not isinstance(choice, bool) and value.strip() == str(choice):
            return choice
        # YAML reads a bare yes, no, on, off as a bool.
        if isinstance(value, bool) and isinstance(choice, str) and choice in (TRUE if value else FALSE):
            return choice
    if isinstance(value, str) and all(isinstance(choice, str) for choice in choices):
        raise OptionError(wrong.key, f"{wrong.message}; {nearest(value, choices)}" if _close(value, choices) else wrong.message)
    raise wrong


def _convert_sequence(value: Any, kind: type, arguments: tuple[Any, ...], wrong: UserError, key: str) -> Any:
    if isinstance(value, str):
        value = [part.strip() for part in value.strip().strip("[]()").split(",") if part.strip()]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]  # as the text "0" is a list of one
    if not isinstance(value, list | tuple):
        raise wrong
    if kind is tuple and arguments and Ellipsis not in arguments:
        if len(value) != len(arguments):
            raise wrong
        return tuple(convert(item, inner, f"{key}[{i}]") for i, (item, inner) in enumerate(zip(value, arguments, strict=True)))
    inner = arguments[0] if arguments else Any
    return kind(convert(item, inner, f"{key}[{i}]") for i, item in enumerate(value))


def describe(expected: Any) -> str:
    """An annotation in words, for messages."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is typing.Annotated:
        return ", ".join([describe(arguments[0]), *(str(bound) for bound in arguments[1:] if isinstance(bound, Range))])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(member) for member in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (tuple, list) and arguments:
        if origin is tuple and Ellipsis not in arguments:
            return f"a list of {len(arguments)}: {', '.join(describe(inner) for inner in arguments)}"
        return f"a list, each {describe(arguments[0])}"
    if dataclasses.is_dataclass(expected) and isinstance(expected, type):
        return f"a section with the keys {', '.join(field_types(expected))}"
    words = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "none"}
    return words.get(expected, "a section" if dict in (origin, expected) else getattr(expected, "__name__", str(expected)))


def plain(value: Any, sequence: type = list) -> Any:
    """A nested value with dicts for mappings, their keys as text, and `sequence` for lists and tuples."""
    if isinstance(value, Mapping):
        return {str(key): plain(item, sequence) for key, item in value.items()}
    return sequence(plain(item, sequence) for item in value) if isinstance(value, list | tuple) else value


def unknown_key(key: Any, value: Any, prefix: str, siblings: Iterable[str], everywhere: Iterable[str] = ()) -> OptionError:
    """The error for a key that does not exist, with the nearest that does: one of the same name elsewhere first, then a similar one beside it."""
    leaf = str(key)
    while isinstance(value, Mapping) and value:
        inner, value = next(iter(value.items()))
        leaf = f"{leaf}.{inner}"
    full = [name for name in everywhere if name.endswith(f".{leaf}")] or [name for name in everywhere if name.endswith(f".{leaf.split('.')[-1]}")]
    close = _close(str(key), siblings)
    hint = f"did you mean {(full or [prefix + name for name in close])[0]!r}?" if full or close else nearest(str(key), siblings)
    return OptionError(f"{prefix}{key}", f"unknown key; {hint}")


def _close(word: str, names: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(word, list(names), n=1, cutoff=0.5)


def _read_yaml(text: str, wrong: UserError) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise wrong from None


def _fields(options_class: Any) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(options_class) if field.init}


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _show(value: Any) -> str:
    text = " ".join(repr(value).split())
    text = text if len(text) <= 60 else text[:57] + "..."
    return text if isinstance(value, str) else f"{text} ({type(value).__name__})"
