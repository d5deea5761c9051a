"""The command line: what it parses, its exit codes, and a help that says everything without importing JAX."""

from __future__ import annotations

import ast
import dataclasses
import pathlib
import re
import subprocess
import sys

import pytest

import cimrl_jax
from cimrl_jax import help as help_text
from cimrl_jax.config import Config, load, to_yaml
from cimrl_jax.errors import UserError
from cimrl_jax.main import main, parse, split
from cimrl_jax.options import field_types

ROOT = pathlib.Path(cimrl_jax.__file__).parent


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "quick.py"
    path.write_text(f"config = {{'methods': ('erm',), 'workdir': {str(tmp_path / 'run')!r}, 'data': {{'name': 'digits'}}}}")
    return path


@pytest.fixture
def runs(monkeypatch):
    """What `experiment.run` was called with, instead of a run."""
    from cimrl_jax import experiment

    calls = []
    monkeypatch.setattr(experiment, "run", lambda config, parts: calls.append((config, parts)))
    return calls


@pytest.mark.parametrize(
    ("line", "words", "values"),
    [
        ("--config a.py", [], {"config": "a.py"}),
        ("train --a-b.c 1", ["train"], {"a_b.c": "1"}),
        ("--a=1 report", ["report"], {"a": "1"}),
        ("--a -1 --b=-2", [], {"a": "-1", "b": "-2"}),
        ("--flag --a 1", [], {"flag": True, "a": "1"}),
        ("--a 1 --flag", [], {"a": "1", "flag": True}),
        ("--a=x=y --b=", [], {"a": "x=y", "b": ""}),
        ("--a 1 --a 2", [], {"a": "2"}),
    ],
)
def test_splitting(line, words, values):
    assert split(line.split()) == (words, values)


@pytest.mark.parametrize("argument", ["-x", "--", "--=3", "--a..b=1", "--.a=1"])
def test_splitting_refuses_what_is_no_key(argument):
    with pytest.raises(UserError, match="unknown argument"):
        split([argument])


@pytest.mark.parametrize(
    ("words", "parts"),
    [([], ("train", "evaluate", "report")), (["train"], ("train",)), (["report", "evaluate"], ("evaluate", "report"))],
)
def test_commands_choose_the_parts(file, words, parts):
    assert parse([*words, "--config", str(file)])[1] == parts


def test_arguments_reach_the_config(file, runs, tmp_path):
    line = ["train", "--config", str(file), "--methods", "group_dro,erm", "--seeds=3,", "--train.batch-size", "8", "--data.augment", "--workdir", "w"]
    assert main(line) == 0
    [(config, parts)] = runs
    assert parts == ("train",)
    assert (config.methods, config.seeds, config.train.batch_size, config.data.augment, config.workdir) == (("group_dro", "erm"), (3,), 8, True, "w")


def test_a_workdir_alone_is_read_from_where_it_is_now(file, runs, tmp_path):
    config = load(file)
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "config.yaml").write_text(to_yaml(config))
    assert main(["report", "--workdir", str(moved)]) == 0
    assert runs == [(dataclasses.replace(config, workdir=str(moved)), ("report",))]


@pytest.mark.parametrize(
    ("line", "name", "data"),
    [
        (["--data.name", "synthetic"], "synthetic", "synthetic"),
        (["--data.name", "synthetic", "--workdir", "new"], "synthetic", "synthetic"),
        (["--data.path", "photos/birds.csv", "--data.image-columns", "photo"], "birds", "table"),
        (["--data.path", "birds.jsonl.gz"], "birds.jsonl", "table"),
    ],
)
def test_a_data_set_alone_is_run_with_defaults(runs, line, name, data):
    assert main(line) == 0
    [(config, _)] = runs
    assert (config.name, config.data.name, config.methods) == (name, data, Config.methods)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ([], "nothing to run: expected --config FILE"),
        (["trian", "--config", "{file}"], "unknown command 'trian'; did you mean 'train'?"),
        (["--config"], "--config: expected a file"),
        (["--config", "{file}", "--workdir"], "--workdir: expected a folder"),
        (["--config", "{file}x"], "there is no config file {file}x; did you mean '{file}'?"),
        (["--config", "{file}", "--train.stpes", "3"], "command line: train.stpes: unknown key; did you mean 'train.steps'?"),
        (["--config", "{file}", "--train.steps"], "command line: train.steps: got True (bool), expected an integer"),
        (["report", "--workdir", "/nowhere"], "--workdir: there is no /nowhere/config.yaml"),
        (["--help", "cimlr"], "--help: no section 'cimlr'; did you mean 'cimrl'?"),
        (["-q"], "unknown argument '-q'"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(file, capsys, line, expected):
    assert main([word.format(file=file) for word in line]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"error: {expected.format(file=file)}")


def test_errors_inside_the_run_are_one_line_too_and_an_interrupt_is_130(file, monkeypatch, capsys):
    from cimrl_jax import experiment

    def fail(config, parts):
        raise UserError("data.path: there is\nno such folder")

    def interrupt(config, parts):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run", fail)
    assert main(["--config", str(file)]) == 2
    assert capsys.readouterr().err == "error: data.path: there is no such folder\n"
    monkeypatch.setattr(experiment, "run", interrupt)
    assert main(["--config", str(file)]) == 130


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cimrl_jax {cimrl_jax.__version__}\n"


def test_help_in_its_own_process_needs_no_jax_and_exits_0():
    code = "import sys; from cimrl_jax.main import main; code = main(['--help']); print(*sys.modules, file=sys.stderr); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT.parent)
    assert done.returncode == 0
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert "yaml" in loaded
    assert not loaded & {"jax", "jaxlib", "flax", "numpy", "grain", "optax"}
    assert done.stdout.startswith("usage: ") and max(map(len, done.stdout.splitlines())) <= 100


def test_the_package_reaches_run_and_load_only_when_asked():
    from cimrl_jax import experiment

    assert (cimrl_jax.run, cimrl_jax.load) == (experiment.run, experiment.load)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        cimrl_jax.lod  # noqa: B018
    code = "import sys, cimrl_jax; assert cimrl_jax.__version__; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, timeout=60).returncode == 0


def test_help_shows_every_key_with_its_type_default_and_docstring():
    shown = help_text.render()
    assert "  --train.steps  int, at least 1  [800]\n      Optimiser updates, per method and seed." in shown
    assert "  --train.schedule  cosine|linear|constant  [cosine]\n" in shown
    assert "  --seeds  list of int, at least 0  [0,1,2,3,4]\n" in shown
    for section, record in field_types(Config).items():
        for key in field_types(record) if dataclasses.is_dataclass(record) else ():
            if key not in ("options", "modalities"):
                assert f"--{section}.{key}" in shown


RECORDS = [path for path in sorted(ROOT.rglob("*.py")) if re.search(r"^class \w*(Options|Config)\b", path.read_text(), re.MULTILINE)]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_field_that_a_user_can_set_is_documented(path):
    wanted = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Options"))]
    assert wanted
    for record in wanted:
        bare = [
            name
            for name, annotation, _, text in help_text._entries(record)
            if not text and not ast.unparse(annotation).endswith(("Config", "Options"))
        ]
        assert not bare


def test_help_of_one_component_is_its_section_only():
    shown = help_text.render("group-dro")
    assert shown.startswith("method group_dro\n") and "--method.group_dro." in shown and "--train" not in shown
    assert "--data.name" in help_text.render("data") and "--model" not in help_text.render("data")


def test_help_reads_sources_it_never_ran(tmp_path):
    for folder in ("data/datasets", "nn/encoders", "methods"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "config.py").write_text("class DataConfig:\n    a: int = 1\n    'A.'\nclass Config:\n    data: DataConfig = DataConfig()\n")
    (tmp_path / "data" / "kinds.py").write_text(
        "from typing import Literal\nSide = Literal['left', 'right']\nclass Crop:\n    low: float = 0.5\n    'Low.'\n"
    )
    (tmp_path / "data" / "views.py").write_text("class Inner:\n    x: float = 2.0\n    'X.'\nclass ViewOptions:\n    deep: Inner = Inner()\n")
    (tmp_path / "methods" / "new.py").write_text(
        '"""A new one.\n\nMore."""\nfrom cimrl_jax.data import kinds\nraise SystemExit\n'
        "from cimrl_jax.data.kinds import Side\nSize = Annotated[int, Range(low=1)]\n"
        "class Options:\n    side: kinds.Side = 'left'\n    'Which.'\n    sides: tuple[Side, ...] = ()\n    'All.'\n"
        "    size: Size | None = None\n    'How many.'\n    crop: kinds.Crop = kinds.Crop()\n"
    )
    (tmp_path / "methods" / "_draft.py").write_text("not python")
    assert help_text.render("new", root=tmp_path).splitlines() == [
        "method new",
        "----------",
        "A new one.",
        "  --method.new.side  left|right  [left]",
        "      Which.",
        "  --method.new.sides  list of left|right  [empty]",
        "      All.",
        "  --method.new.size  int, at least 1, or none  [none]",
        "      How many.",
        "  --method.new.crop.low  float  [0.5]",
        "      Low.",
    ]
    assert help_text.render("views", root=tmp_path).splitlines()[2:] == ["  --data.views.deep.x  float  [2.0]", "      X."]
    assert help_text.render("data", root=tmp_path).splitlines()[2:4] == ["  --data.a  int  [1]", "      A."]
