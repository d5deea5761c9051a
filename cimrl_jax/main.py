"""The command line: `python -m cimrl_jax.main [train|evaluate|report|study|prepare] --config FILE [--a.b VALUE ...]`; see `--help`."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from cimrl_jax import __version__
from cimrl_jax.config import Config, load
from cimrl_jax.errors import UserError, nearest
from cimrl_jax.help import render

PARTS = ("train", "evaluate", "report")
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
"""What a file of the data set `table` ends in."""
STUDY, EXPORT, PREPARE = "study", "export", "prepare"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 2 for what the user can mend (one line on stderr), 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        for i, argument in enumerate(arguments):
            flag, _, attached = argument.partition("=")
            if flag in ("--help", "-h"):
                following = [word for word in arguments[i + 1 : i + 2] if not word.startswith("-")]
                return _print(render(attached or (following[0] if following else None)))
            if flag == "--version":
                return _print(f"cimrl_jax {__version__}")
        for command, own in {STUDY: _study, EXPORT: _export, PREPARE: _prepare}.items():
            if command in split(arguments)[0]:
                return own(arguments)
        config, parts = parse(arguments)
        from cimrl_jax import experiment  # imports JAX

        experiment.run(config, parts=parts)
        return 0
    except UserError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return getattr(stop, "code", 130)


def parse(arguments: Sequence[str]) -> tuple[Config, tuple[str, ...]]:
    """(config, parts to run) of the command line's words.

    Raises:
      UserError: an unknown command or key, a wrong value, or no config to start from.
    """
    commands, values = split(arguments)
    unknown = [command for command in commands if command not in PARTS]
    if unknown:
        raise UserError(f"unknown command {unknown[0]!r}; {nearest(unknown[0], (*PARTS, STUDY, EXPORT, PREPARE))}")
    _check_given(values, {"config": "a file, such as configs/digits.py", "workdir": "a folder"})
    source = _source(values)
    if source is None:
        if "workdir" not in values:
            expected = "--config FILE (try configs/digits.py), --data.name NAME, or --workdir DIR of an earlier run"
            raise UserError(f"nothing to run: expected {expected}; see --help")
        raise UserError(f"--workdir: there is no {_saved(values)}; expected --config FILE, --data.name NAME, or the folder of an earlier run")
    parts = tuple(part for part in PARTS if part in commands) or PARTS
    return load(source, values), parts


def _source(values: dict[str, Any]) -> str | dict[str, Any] | None:
    """What --config names, taken out of the values; without it the config of an earlier run in --workdir; else, where a data set is named, one of
    nothing but defaults."""
    if "config" in values:
        return values.pop("config")
    if "workdir" in values and _saved(values).is_file():
        return str(_saved(values))
    if pathlib.PurePath(str(values.get("data.path", "")).removesuffix(".gz")).suffix in TABLES:
        values.setdefault("data.name", "table")
    named = pathlib.PurePath(str(values.get("data.path", ""))).stem or str(values.get("data.name", ""))
    return {"name": named} if named else None


def _saved(values: dict[str, Any]) -> pathlib.Path:
    return pathlib.Path(str(values["workdir"])) / "config.yaml"


def split(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Plain words, and values by key: `--a-b.c 1` and `--a_b.c=1` give {"a_b.c": "1"}; a key without a value is True; the last one wins.

    Raises:
      UserError: an argument begins with a single dash, or a key is empty.
    """
    words: list[str] = []
    values: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-"):
            words.append(argument)
            continue
        key, equals, value = argument[2:].partition("=")
        if not argument.startswith("--") or not all(key.split(".")):
            raise UserError(f"unknown argument {argument!r}; keys are written --train.steps 100; see --help")
        if not equals and rest and not rest[0].startswith("--"):
            equals, value = "=", rest.pop(0)
        values[key.replace("-", "_")] = value if equals else True
    return words, values


def _check_given(values: dict[str, Any], expected: dict[str, str]) -> None:
    for key, what in expected.items():
        if values.get(key) in (True, ""):
            raise UserError(f"--{key}: expected {what}")


def _study(arguments: Sequence[str]) -> int:
    commands, values = split(arguments)
    others = [command for command in commands if command != STUDY]
    if others:
        raise UserError(f"{STUDY} trains, evaluates and reports; expected it without {others[0]!r}")
    _check_given(values, {"config": "a study file, such as configs/studies/recipe.py", "workdir": "a folder", "only": "names of runs, a,b"})
    if "config" not in values:
        raise UserError(f"nothing to run: expected {STUDY} --config FILE (try configs/studies/recipe.py); see --help {STUDY}")
    from cimrl_jax import study  # imports JAX

    source, workdir, only = values.pop("config"), values.pop("workdir", ""), values.pop("only", "")
    study.run(source, workdir=workdir, only=[name.strip() for name in only.split(",") if name.strip()], overrides=values)
    return 0


def _export(arguments: Sequence[str]) -> int:
    commands, values = split(arguments)
    expected = {"workdir": "the folder of an earlier run", "to": "a folder", "method": "a method of that run", "seed": "a seed of that run"}
    _check_given(values, expected)
    strange = [command for command in commands if command != EXPORT] + [f"--{key}" for key in values if key not in expected]
    if strange:
        raise UserError(f"{EXPORT} knows no {strange[0]!r}; expected {', '.join(f'--{key}' for key in expected)}; see --help {EXPORT}")
    for key in ("workdir", "to"):
        if key not in values:
            raise UserError(f"--{key}: missing; expected {expected[key]}; see --help {EXPORT}")
    seed = values.get("seed")
    if seed is not None and not seed.isdecimal():
        raise UserError(f"--seed: got {seed!r}, expected an integer, at least 0")
    from cimrl_jax import export  # imports JAX

    for folder in export.run(values["workdir"], values["to"], method=values.get("method", ""), seed=None if seed is None else int(seed)):
        _print(f"written: {folder}")
    return 0


def _prepare(arguments: Sequence[str]) -> int:
    commands, values = split(arguments)
    others = [command for command in commands if command != PREPARE]
    if others:
        raise UserError(f"{PREPARE} stands alone; expected it without {others[0]!r}; see --help {PREPARE}")
    expected = {"config": "a file, such as configs/digits.py", "to": "a folder", "back_translate": "a route, such as apertium:eng-spa"}
    choices = {"form": ("map", "records"), "picture": ("raw", "jpeg"), "check": ("true", "false")}
    _check_given(values, expected)
    source = _source(values)
    if source is None:
        raise UserError(f"nothing to prepare: expected {PREPARE} --config FILE (try configs/digits.py); see --help {PREPARE}")
    own = {key: values.pop(key) for key in ("to", "back_translate", *choices) if key in values}
    for key in choices.keys() & own.keys():
        value = str(own[key]).lower()
        if value not in choices[key]:
            raise UserError(f"--{key}: got {own[key]!r}, expected {' or '.join(choices[key])}")
        own[key] = value == "true" if key == "check" else value
    from cimrl_jax import prepare  # imports JAX

    prepare.run(source, values, **own)
    return 0


def _print(text: str) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
