"""Configs are strict: whatever is wrong gives one line with the full key and the nearest known one; whatever is right comes back the same."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import runpy
from typing import Annotated, Any, Literal

import hypothesis
import hypothesis.strategies as st
import pytest
import yaml

from cimrl_jax import config as config_module
from cimrl_jax import options as options_module
from cimrl_jax.config import OPTIMISED, Config, DataConfig, ModelConfig, fingerprint, load, settings, to_dict, to_yaml
from cimrl_jax.errors import UserError
from cimrl_jax.options import Range, component, convert, field_types, known, make_options

ROOT = pathlib.Path(__file__).parent.parent
HEAD = "from __future__ import annotations\nimport dataclasses\nfrom cimrl_jax.errors import UserError\n@dataclasses.dataclass(frozen=True)\n"
PARTS = {
    "sets/moons.py": f"{HEAD}class Options:\n    size: int = 10\n    share: float | None = None\n    sides: tuple[int, ...] = (1, 2)\n",
    "sets/base.py": "",
    "sets/_draft.py": "",
    "encoders/conv.py": f"{HEAD}class Options:\n    depth: int = 2\n    norm: str = 'layer'\n",
    "methods/plain.py": f"{HEAD}class Options:\n    pass\n",
    "methods/robust.py": f"{HEAD}class Options:\n    eta: float = 0.1\n    warmup: int = 3\n"
    "    def __post_init__(self):\n        if self.eta > 1:\n            raise UserError(f'eta is {self.eta}, expected at most 1')\n",
    "views.py": f"{HEAD}class Crop:\n    low: float = 0.5\n{HEAD.split(chr(10), 3)[3]}class ViewOptions:\n"
    "    crop: Crop = dataclasses.field(default_factory=Crop)\n    flip: bool = True\n",
}
SMALL = {"name": "small", "methods": ["plain", "robust"], "data": {"name": "moons", "size": 20}, "model": {"image": {"encoder": "conv"}}}


@pytest.fixture(autouse=True)
def parts(tmp_path_factory, monkeypatch):
    """Components of the tests' own, so that no test depends on what the real ones are called."""
    folder = tmp_path_factory.mktemp("parts")
    package = folder.name.replace("-", "_") + "_house"
    for name, text in PARTS.items():
        path = folder / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(options_module, "PACKAGES", {"data": f"{package}.sets", "encoder": f"{package}.encoders", "method": f"{package}.methods"})
    monkeypatch.setattr(config_module, "VIEWS", f"{package}.views")


def message(source: Any, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load(source, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.stpes", "5", "train.stpes: unknown key; did you mean 'train.steps'?"),
        ("train.xyz", "5", "train.xyz: unknown key; known: batch_size, checkpoint_every, chunk"),
        ("tarin.steps", "5", "tarin: unknown key; did you mean 'train.steps'?"),
        ("steps", "5", "steps: unknown key; did you mean 'train.steps'?"),
        ("robust.eta", "1", "robust: unknown key; did you mean 'method.robust.eta'?"),
        ("data.sise", "5", "data.sise: unknown key; did you mean 'data.size'?"),
        ("data.options", "5", "data.options: unknown key"),
        ("data.dim", "5", "data.dim: unknown key; did you mean 'model.dim'?"),
        ("data.views.crop.lwo", "1", "data.views.crop.lwo: unknown key; did you mean 'data.views.crop.low'?"),
        ("data.views.crop", "1", "data.views.crop: got '1', expected a section with the keys low"),
        ("data.name", "mooons", "data.name: there is no data set 'mooons'; did you mean 'moons'?"),
        ("data.name", "base", "data.name: there is no data set 'base'; known: moons"),
        ("data.name", "_draft", "data.name: there is no data set '_draft'"),
        ("data.name", 3, "data.name: got 3, expected the name of a data set"),
        ("data.sides", "1,two", "data.sides[1]: got 'two', expected an integer"),
        ("data.share", "much", "data.share: got 'much', expected a number or none"),
        ("model.dmi", "5", "model.dmi: unknown key; did you mean 'model.dim'?"),
        ("model.modalities", {"image": {}}, "model.modalities: unknown key"),
        ("model.image.dpeth", "5", "model.image.dpeth: unknown key; did you mean 'model.image.depth'?"),
        ("model.image.encoder", "cnov", "model.image.encoder: there is no encoder 'cnov'; did you mean 'conv'?"),
        ("model.dim", "50", "model.dim: got 50, expected a multiple of model.heads (4)"),
        ("method.robst.eta", "1", "method.robst: there is no method 'robst'; did you mean 'robust'?"),
        ("method.robust.eat", "1", "method.robust.eat: unknown key; did you mean 'method.robust.eta'?"),
        ("method.robust.eta", "2", "method.robust: eta is 2.0, expected at most 1"),
        ("method.robust", "2", "method.robust: got '2', expected a section with the keys eta, warmup"),
        ("method", "2", "method: expected a section"),
        ("methods", "plain,robst", "methods: there is no method 'robst'; did you mean 'robust'?"),
        ("methods", "plain,plain", "methods: got plain, plain; expected at least one, each once"),
        ("methods", "", "methods: got none; expected at least one"),
        ("seeds", "1,1", "seeds: got 1, 1; expected at least one, each once"),
        ("seeds", "0", "seeds: got none; expected at least one"),
        ("seeds", "-1", "seeds[0]: got '-1', expected an integer, at least 0"),
        ("seeds", True, "seeds: got True (bool), expected a list, each an integer"),
        ("train.steps", "0", "train.steps: got '0', expected an integer, at least 1"),
        ("train.steps", "1.5", "train.steps: got '1.5', expected an integer, at least 1"),
        ("train.steps", 800.0, "train.steps: got 800.0 (float), expected an integer"),
        ("train.steps", True, "train.steps: got True (bool), expected an integer"),
        ("train.steps", None, "train.steps: got None (NoneType), expected an integer"),
        ("train.select_from", "1", "train.select_from: got '1', expected a number, at least 0 and below 1"),
        ("train.learning_rate", "nan", "train.learning_rate: got 'nan', expected a number, above 0"),
        ("train.schedule", "cosin", "train.schedule: got 'cosin', expected one of cosine, linear, constant; did you mean 'cosine'?"),
        ("train.compile_cache", "maybe", "train.compile_cache: got 'maybe', expected true or false"),
        ("train", "3", "train: got '3', expected a section with the keys steps"),
        ("report.title", 3, "report.title: got 3 (int), expected text"),
        ("report.title", "a\0b", "report.title: got 'a\\x00b', expected text"),
        ("data.path", "a\0b", "data.path: got 'a\\x00b', expected text"),
    ],
)
def test_bad_input_gives_one_line_with_the_key(tmp_path, key, value, expected):
    assert message(SMALL, {key: value}).startswith(f"command line: {expected}")
    tree = yaml.safe_load(yaml.safe_dump(SMALL))
    config_module._put(tree, key, value)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tree))
    assert message(file).startswith(f"{file}: {expected}"), "the same mistake in a file names the file"


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "run.py"
    file.write_text("config = {'methods': ('plain', 'robust'), 'data': {'name': 'moons', 'size': 20, 'sides': (3, 4)}, 'train': {'steps': 5}}")
    config = load(file, {"train.steps": "7", "data.size": "30", "method.robust.eta": ".5"})
    assert (config.train.steps, config.train.batch_size, config.name, config.workdir) == (7, Config().train.batch_size, "run", "runs/run")
    assert config.data.options == {"size": 30, "share": None, "sides": (3, 4)}
    assert config.method == {"plain": {}, "robust": {"eta": 0.5, "warmup": 3}}


@pytest.mark.parametrize(("text", "seeds"), [("5", (0, 1, 2, 3, 4)), (5, (0, 1, 2, 3, 4)), ("3,", (3,)), ("0,3,7", (0, 3, 7)), ([5], (5,))])
def test_a_number_of_seeds_is_a_count_and_a_list_is_a_list(text, seeds):
    assert load(SMALL, {"seeds": text}).seeds == seeds


@pytest.mark.parametrize(
    ("text", "expected", "value"),
    [
        ("5", int, 5),
        ("-3", int, -3),
        (5, float, 5.0),
        ("1e-3", float, 1e-3),
        ("true", bool, True),
        ("FALSE", bool, False),
        ("none", int | None, None),
        (None, float | None, None),
        ("4", int | None, 4),
        ("none", str, "none"),
        ("a, b", tuple[str, ...], ("a", "b")),
        ("", tuple[str, ...], ()),
        ("[1,2]", tuple[int, int], (1, 2)),
        ([1, 2.5], tuple[float, ...], (1.0, 2.5)),
        ("1,2", list[int], [1, 2]),
        (0, tuple[int, ...], (0,)),
        (0, Literal["none"] | tuple[int, ...], (0,)),
        ("2", Literal[1, 2], 2),
        (True, Literal["auto", "yes", "no"], "yes"),  # what YAML makes of a bare yes
        (False, Literal["auto", "yes", "no"], "no"),
        ("{a: 1}", dict[str, int], {"a": 1}),
        ({"a": "1"}, dict[str, float], {"a": 1.0}),
        (pathlib.Path("a/b"), str, "a/b"),
        ("0.5", Annotated[float, Range(above=0, high=0.5)], 0.5),
    ],
)
def test_values_are_read_by_the_type_of_their_key(text, expected, value):
    result = convert(text, expected, "key")
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x", int),
        (True, int),
        (True, float),
        (1, bool),
        (1.0, int),
        (1, str),
        ("1,2,3", tuple[int, int]),
        ("3", Literal[1, 2]),
        (1, Literal[True]),
        (float("nan"), float),
        ([1], dict[str, int]),
        ("x", int | None),
        ("0", Annotated[float, Range(above=0)]),
        ("1", Annotated[float, Range(below=1)]),
        ("2", tuple[Annotated[int, Range(low=3)], ...]),
    ],
)
def test_a_wrong_type_is_refused_with_key_and_expectation(value, expected):
    with pytest.raises(UserError, match=r"^key(\[0\])?: got .*, expected "):
        convert(value, expected, "key")


def test_nested_options_need_what_has_no_default():
    @dataclasses.dataclass(frozen=True)
    class Options:
        path: str
        size: int = 1

    assert make_options(Options, {"path": "here"}, "data") == Options("here", 1)
    with pytest.raises(UserError, match=r"^data\.path: missing; expected text$"):
        make_options(Options, {}, "data")


def test_a_modality_without_encoder_waits_for_its_kind():
    config = load(SMALL, {"model.text.depth": "3", "model.text.norm": "none"})
    assert config.model.modalities == {"image": {"encoder": "conv", "depth": 2, "norm": "layer"}, "text": {"depth": 3, "norm": "none"}}


VALUES = {
    "train.steps": st.integers(1, 10**6),
    "train.learning_rate": st.floats(1e-9, 1e3),
    "train.schedule": st.sampled_from(["cosine", "linear", "constant"]),
    "seeds": st.lists(st.integers(0, 2**31), min_size=1, unique=True),
    "methods": st.permutations(["plain", "robust"]),
    "data.share": st.none() | st.floats(0, 1),
    "data.sides": st.lists(st.integers()),
    "data.resident": st.sampled_from(["auto", "yes", "no"]),
    "data.views.crop.low": st.floats(0, 1),
    "data.path": st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    "report.title": st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"])),
    "model.text.sizes": st.lists(st.integers(0, 9)),
    "method.robust.eta": st.floats(0, 1),
}


@hypothesis.settings(max_examples=30, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(values=st.fixed_dictionaries({}, optional=VALUES))
def test_a_config_written_and_read_back_is_the_same(tmp_path, values):
    config = load(SMALL, values)
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load(file) == config
    assert load(to_dict(config)) == config
    assert load(config) == config
    assert fingerprint(load(file)) == fingerprint(config)


def test_the_fingerprint_follows_the_numbers_only():
    def print_of(overrides: dict[str, Any], method: str | None = None) -> str:
        return fingerprint(load(SMALL, overrides), method)

    base, plain = print_of({}), print_of({}, "plain")
    for key, value in {
        "name": "x",
        "workdir": "elsewhere",
        "report.title": "x",
        "data.resident": "yes",
        "train.chunk": "7",
        "method.plain": {},
    }.items():
        assert print_of({key: value}) == base, key
    for key, value in {"train.steps": "7", "seeds": "2", "data.size": "7", "data.views.flip": "no", "model.image.depth": "7"}.items():
        assert print_of({key: value}) != base, key
    for key, value in {"method.robust.eta": ".7", "methods": "plain", "sweep.method.robust.eta": ".7", "evaluate.bootstrap": "9"}.items():
        assert print_of({key: value}) != base, key
        assert print_of({key: value}, "plain") == plain, key
    others = ({"train.steps": "7"}, {"seeds": "2"}, {"sweep.train.learning_rate": "1"})
    assert len({plain, print_of({}, "robust"), *(print_of(own, "plain") for own in others)}) == 5


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("run.py", "x = 1", "{file}: expected a variable `config`"),
        ("run.py", "config = {\n  'a': 1,\n  1 / 0: 2}", "{file}, line 3: ZeroDivisionError: division by zero"),
        ("run.py", "config = {", "{file}, line 1: SyntaxError: "),
        ("run.py", "config = 5", "{file}: expected a nested mapping of keys to values, got int"),
        ("run.yaml", "train:\n  steps: 1\n  steps: 2\n", "{file}, line 3: not valid YAML: the key 'steps' is given twice"),
        ("run.yaml", "train: [1\n", "{file}, line 2: not valid YAML: "),
        ("run.yaml", "- 1\n", "{file}: expected a nested mapping of keys to values, got list"),
        ("run.yaml", "methods: [plain]\n1: 2\n", "{file}: 1: unknown key"),
        ("run.json", "{}", "{file}: expected a config file that ends in .py or .yaml"),
    ],
)
def test_a_file_that_is_no_config_says_why(tmp_path, name, text, expected):
    file = tmp_path / name
    file.write_text(text)
    assert message(file).startswith(expected.format(file=file))


def test_a_missing_file_names_the_one_beside_it(tmp_path):
    (tmp_path / "digits.py").write_text("config = {}")
    assert message(tmp_path / "digit.py") == f"there is no config file {tmp_path / 'digit.py'}; did you mean '{tmp_path / 'digits.py'}'?"


def test_a_python_file_may_hold_a_config(tmp_path):
    file = tmp_path / "run.py"
    file.write_text(
        "from cimrl_jax.config import OPTIMISED, Config, DataConfig, TrainConfig\n"
        "config = Config(methods=('plain',), data=DataConfig(name='moons', options={'size': 4}), train=TrainConfig(steps=9))"
    )
    config = load(file)
    assert (config.train.steps, config.data.options["size"], config.data.options["sides"]) == (9, 4, (1, 2))


def test_loading_changes_nothing_that_it_was_given():
    tree = {"methods": ["plain"], "data": {"name": "moons"}, "model": {"image": {"encoder": "conv"}}}
    before = yaml.safe_dump(tree)
    load(tree, {"model.image.depth": "4", "data.size": "3"})
    assert yaml.safe_dump(tree) == before


@pytest.fixture
def real(parts, monkeypatch):
    monkeypatch.undo()


def test_no_component_option_hides_behind_a_key_of_its_section(real):
    for name in known("data"):
        assert not field_types(component("data", name).Options).keys() & field_types(DataConfig).keys(), name
    for name in known("encoder"):
        assert "encoder" not in field_types(component("encoder", name).Options), name
    assert not field_types(ModelConfig).keys() & {"image", "text", "audio", "table"}, "modalities of the data sets"


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_of_the_project_loads_and_says_what_it_yields(real, file):
    assert load(file).name == file.stem
    about = file.read_text().split('"""')[1]
    assert f"python -m cimrl_jax.main --config configs/{file.name}" in about
    assert "Cost" in about and "Result" in about


OVERLAYS = [file for file in sorted((ROOT / "configs" / "studies").glob("*.py")) if "\nconfig = " in file.read_text()]


@pytest.mark.parametrize("file", OVERLAYS, ids=lambda path: path.stem)
def test_every_overlay_of_methods_fits_a_data_set_and_its_methods_build_whose_methods_build(real, file):
    config = load(f"{ROOT / 'configs' / 'digits.py'},{file}")
    assert config.name == f"digits-{file.stem}" and f"--config configs/digits.py,configs/studies/{file.name}" in file.read_text()
    for name in config.methods:
        assert settings(config, name)


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "papers").glob("*.py")), ids=lambda path: path.stem)
def test_every_published_setting_names_its_source_and_builds(real, file):
    entries = runpy.run_path(str(file))["settings"]
    assert entries
    for name, entry in entries.items():
        assert re.search(r" et al\. \d{4}|& \w+ \d{4}", entry["source"]), f"{name} does not say who published it"
        config = load(f"{ROOT / 'configs' / 'digits.py'},{file}:{name}")
        assert config.methods == tuple(entry["methods"])
        for method in config.methods:
            module = component("method", method)
            own = {key: value for key, value in config.method[method].items() if key not in OPTIMISED}
            assert module.build(module.Options(**own)).stages
        for key, value in entry["train"].items():
            assert getattr(config.train, key) == value


def test_a_sweep_reads_dotted_and_nested_keys_as_their_own_types():
    nested = load({**SMALL, "sweep": {"method": {"robust": {"eta": [0, "0.5"], "warmup": [4]}}, "train": {"learning_rate": (1e-3,)}}})
    typed = load(SMALL, {"sweep.method.robust.eta": "0,0.5", "sweep.method.robust.warmup": "4", "sweep.train.learning_rate": "0.001"})
    expected = {"method.robust.eta": (0.0, 0.5), "method.robust.warmup": (4,), "train.learning_rate": (0.001,)}
    assert nested.sweep == typed.sweep == expected
    assert load(to_dict(nested)) == nested and fingerprint(nested) != fingerprint(load(SMALL))
    first = {"method.robust.eta": 0.0, "method.robust.warmup": 4, "train.learning_rate": 0.001}
    assert settings(nested, "robust") == [first, first | {"method.robust.eta": 0.5}]
    assert settings(nested, "plain") == [{"train.learning_rate": 0.001}]
    assert settings(load(SMALL), "plain") == [{}]
    assert load(nested, {"sweep": "none"}).sweep == {}


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("method.robust.eat", "1,2", r"sweep.method.robust.eat.*did you mean.*eta"),
        ("method.robst.eta", "1,2", r"there is no method 'robst'"),
        ("method.robust.eta", "1,heavy", r"sweep.method.robust.eta\[1\]: got 'heavy', expected"),
        ("method.robust.eta", "1,1", r"got 1.0, 1.0; expected at least one value, each once"),
        ("train.steps", "5,6", r"sweep.train.steps: cannot be swept; expected method.<name>.<option>, train.learning_rate or train.weight_decay"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(key, values, message):
    with pytest.raises(UserError, match=message):
        load(SMALL, {f"sweep.{key}": values})


def test_of_several_files_the_later_win_key_by_key(tmp_path):
    first, second = tmp_path / "data.yaml", tmp_path / "paper.py"
    first.write_text(to_yaml(load(SMALL, {"name": "", "train.steps": 7, "train.learning_rate": 0.5})))
    second.write_text("config = {'methods': ['robust'], 'train': {'learning_rate': 0.25}, 'method': {'robust': {'eta': 0.5}}}")
    config = load(f"{first},{second}")
    assert (config.methods, config.train.steps, config.train.learning_rate, config.data.options["size"]) == (("robust",), 7, 0.25, 20)
    assert config.method["robust"] == {"eta": 0.5, "warmup": 3}
    assert load(f"{second},{first}").train.learning_rate == 0.5


def test_an_entry_of_a_files_settings_is_an_overlay(tmp_path):
    file = tmp_path / "paper.py"
    file.write_text("settings = {'robust': {'methods': ('robust',), 'train': {'steps': 3}, 'source': 'A. Author 2020, table 1'}}")
    base = tmp_path / "base.yaml"
    base.write_text(to_yaml(load(SMALL)))
    assert load(f"{base},{file}:robust").train.steps == 3
    with pytest.raises(UserError, match=r"no entry 'robst' in its `settings`; did you mean 'robust'"):
        load(f"{file}:robst")
    with pytest.raises(UserError, match=r"expected a variable `config`.*or .*paper.py:ENTRY to read one of robust"):
        load(str(file))
    with pytest.raises(UserError, match="there is no config file"):
        load(f"{tmp_path / 'other.py'}:robust")
