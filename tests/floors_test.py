"""The house's law: a module imports only from lower floors or its own folder's base, and heavy optional packages only where they are used."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

import pytest

import cimrl_jax

ROOT = pathlib.Path(cimrl_jax.__file__).parent
FLOORS = (
    ("errors", "types"),  # floor 0, in the order in which its modules build on one another
    ("files", "options", "readers", "vocabulary"),
    ("config",),
    ("losses", "metrics"),  # floor 1: its two modules of plain formulas, then
    ("counterfactual", "nn", "data", "help"),  # its packages, which do not import one another
    ("methods",),  # 2
    ("train", "evaluate"),  # 3
    ("report",),  # 4
    ("assembly",),  # 4 too: from a config to running objects,
    ("selection",),  # how their models are looked at and chosen,
    ("experiment",),  # and all of it wired, the report included;
    ("study", "export", "prepare"),  # many of them and one table; what is taken out of one; what it is trained on
    ("main", ""),  # 5; "" is the package's own __init__.py
)
FAMILIES = ("data.datasets", "nn.encoders", "methods")
"""Folders of components: one file each, none imports another."""
OPTIONAL = {
    "PIL", "array_record", "fairlearn", "flatbuffers", "grain", "huggingface_hub", "jinja2", "matplotlib", "mlxtend", "onnx", "pandas", "pyarrow",
    "safetensors", "simplejpeg", "sklearn", "soundfile", "submitit", "tensorboardX", "tensorflow", "tensorflow_datasets", "tokenizers", "torch",
    "transformers", "wandb",
}  # fmt: skip
VAGUE = {"utils.py", "common.py", "helpers.py", "misc.py"}


def violations(root: pathlib.Path, package: str = "cimrl_jax") -> list[str]:
    """One line for each broken rule in the package whose folder is `root`."""
    files = {_module(path, root): path for path in sorted(root.rglob("*.py"))}
    found = []
    for module, path in files.items():
        where = str(path.relative_to(root))
        if path.name in VAGUE:
            found.append(f"{where}: a name that says nothing about what is inside")
        if _floor(module) is None:
            found.append(f"{where}: stands on no floor")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name in _imports(tree):
            if name.split(".")[0] == package and (problem := _judge(module, _nearest_file(name, package, files))):
                found.append(f"{where}: {problem}")
        for name in _imports(tree, at_import=True):
            if name.split(".")[0] in OPTIONAL:
                found.append(f"{where}: {name.split('.')[0]} is imported when the module is")
    return list(dict.fromkeys(found))


def _judge(module: str, target: str) -> str:
    if target in ("", module):  # a name of the package itself, such as its version
        return ""
    for family in FAMILIES:
        if all(name.startswith(f"{family}.") or name == family for name in (module, target)) and target not in (family, f"{family}.base"):
            return f"imports its sibling {target}"
    if module.split(".")[0] == target.split(".")[0]:
        return ""
    here, there = _floor(module), _floor(target)
    return "" if here is not None and there is not None and there < here else f"imports {target}, which is not on a lower floor"


def _module(path: pathlib.Path, root: pathlib.Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def _floor(module: str) -> int | None:
    return next((i for i, units in enumerate(FLOORS) if module.split(".")[0] in units), None)


def _nearest_file(name: str, package: str, files: dict[str, pathlib.Path]) -> str:
    """The module that an imported name comes from: `package.methods.base.forward` is in `methods.base`."""
    inner = name.removeprefix(package).removeprefix(".")
    while inner and inner not in files:
        inner = inner.rpartition(".")[0]
    return inner or (name.split(".")[1] if _floor(name.removeprefix(f"{package}.")) is not None and "." in name else "")


def _imports(tree: ast.AST, *, at_import: bool = False) -> Iterator[str]:
    """Full dotted names of what is imported; with `at_import`, only by statements that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the floor: write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not at_import or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not _type_checking(node):
            yield from _imports(node, at_import=at_import)


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def test_the_package_keeps_to_its_floors():
    assert violations(ROOT) == []


SOUND = {
    "__init__.py": "def __getattr__(name):\n    from cimrl_jax import experiment\n",
    "errors.py": "",
    "types.py": "import jax\n",
    "options.py": "from cimrl_jax.errors import UserError\n",
    "config.py": "from cimrl_jax.options import component\n",
    "losses.py": "from cimrl_jax import types\n",
    "data/__init__.py": "",
    "data/pipeline.py": "def read():\n    import grain\n",
    "data/datasets/digits.py": "from cimrl_jax.data import pipeline\nfrom cimrl_jax.types import Feature\n",
    "methods/__init__.py": "",
    "methods/base.py": "from cimrl_jax.losses import cross_entropy\n",
    "methods/erm.py": "from cimrl_jax.methods import base\nfrom cimrl_jax.methods.base import forward\n",
    "train/step.py": "from cimrl_jax.methods import base\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import grain\n",
    "report/tables.py": "def plot():\n    import matplotlib.pyplot as plt\n",
    "experiment.py": "from cimrl_jax import report\nfrom cimrl_jax.report.tables import plot\nfrom cimrl_jax.train import step\n",
    "main.py": "from cimrl_jax import __version__, experiment\n",
}


def _write(folder: pathlib.Path, tree: dict[str, str]) -> pathlib.Path:
    for name, text in tree.items():
        path = folder / "cimrl_jax" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "cimrl_jax"


def test_a_sound_tree_passes(tmp_path):
    assert violations(_write(tmp_path, SOUND)) == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("methods/jtt.py", "from cimrl_jax.methods import erm\n", "methods/jtt.py: imports its sibling methods.erm"),
        ("methods/jtt.py", "from cimrl_jax.methods.erm import build\n", "methods/jtt.py: imports its sibling methods.erm"),
        ("methods/__init__.py", "import cimrl_jax.methods.erm\n", "methods/__init__.py: imports its sibling methods.erm"),
        ("methods/jtt.py", "from cimrl_jax.train import step\n", "methods/jtt.py: imports train.step, which is not on a lower floor"),
        ("methods/jtt.py", "def f():\n    from cimrl_jax import experiment\n", "methods/jtt.py: imports experiment, which is not on a lower floor"),
        ("losses.py", "from cimrl_jax.data.pipeline import read\n", "losses.py: imports data.pipeline, which is not on a lower floor"),
        ("evaluate/predict.py", "import cimrl_jax.train.step\n", "evaluate/predict.py: imports train.step, which is not on a lower floor"),
        ("types.py", "from cimrl_jax import config\n", "types.py: imports config, which is not on a lower floor"),
        ("report/page.py", "from cimrl_jax.experiment import run\n", "report/page.py: imports experiment, which is not on a lower floor"),
        ("data/pipeline.py", "import grain\n", "data/pipeline.py: grain is imported when the module is"),
        ("report/page.py", "if True:\n    from matplotlib import pyplot\n", "report/page.py: matplotlib is imported when the module is"),
        ("train/utils.py", "", "train/utils.py: a name that says nothing about what is inside"),
        ("plots.py", "", "plots.py: stands on no floor"),
    ],
)  # fmt: skip
def test_each_broken_rule_is_found_alone(tmp_path, name, text, expected):
    assert violations(_write(tmp_path, SOUND | {name: text})) == [expected]
