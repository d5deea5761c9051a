"""The text of `--help`: every key of the config with its type, default and docstring, read from the sources without importing them.

Importing a method or an encoder would import JAX; parsing the files takes a tenth of a second.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pathlib
import textwrap
from collections.abc import Iterator

from cimrl_jax.errors import UserError, nearest
from cimrl_jax.options import Range, modules

WIDTH = 100
ROOT = pathlib.Path(__file__).parent
USAGE = """\
usage: python -m cimrl_jax.main [COMMAND] --config FILE [--KEY VALUE ...]

Without a command: all three, one after another. A run that was stopped goes on where it was.
  train     trains every method with every seed, and saves checkpoints and metrics to the workdir
  evaluate  measures the trained models on all splits
  report    writes tables, figures and the page report.html
  study     does all three for many runs, and writes one table of them: see --help study
  export    writes a trained model's encoders as Hugging Face folders: see --help export
  prepare   checks every row of the data set, and writes it for fast reading: see --help prepare

  --config FILE        a .py file that defines `config`, or a .yaml file; may be left out where
                       --workdir is the folder of an earlier run, or --data.name names the data
  --methods erm,cimrl  methods to train and compare
  --seeds 5            seeds 0 to 4; --seeds 0,3,7: those three; --seeds 3, (mind the comma): only 3
  --workdir DIR        folder of everything that the run writes
  --KEY VALUE          any key below, such as --train.steps 100; --KEY=VALUE works too, - and _ are
                       the same, a true-or-false key alone means true, lists are written a,b,c
  --help [NAME]        this text, or one part of it: data, views, plant, resample, model, train,
                       evaluate, report, method, study, export, prepare, or the name of a data
                       set, an encoder or a method
  --version            the version
"""
EXPORT = """\
  python -m cimrl_jax.main export --workdir DIR --to FOLDER [--method NAME] [--seed N]

Writes FOLDER/<modality> for every encoder of a published architecture (hf_vit, hf_resnet, hf_bert)
that the run in DIR trained, LoRA merged: folders that transformers loads, and that
model.<modality>.pretrained reads. NAME: the run's last method if not given; N: its first seed.
"""
PREPARE = """\
  python -m cimrl_jax.main prepare --config FILE [--to DIR] [--KEY VALUE ...]

Checks every row of the config's data set: every file is there and can be decoded, no text is empty,
no id comes twice, no picture is in two of train, validation and test. Prints how many rows each
split has, of each class and group, whether these are as many as were published, and each bad row;
all bad rows are listed in DIR/faults.jsonl. With bad rows and --data.on-bad-row fail (the default)
it ends there with exit code 2. Otherwise it writes the data set to DIR: pictures decoded and
resized, texts as ids, recordings as spectrograms, each distinct row once. Training with --data.path
DIR gives the same numbers as on the original files (but for --picture jpeg), and reads much faster.

  --config FILE         a config of the runs that are to be trained
  --to DIR              by default <data.path>.prepared, or <data.name>.prepared
  --form map            pictures as memory maps, the fastest; records: as ArrayRecord files
  --picture raw         pictures as they are; jpeg (only in records): as JPEG of quality 95, much
                        smaller, but some detail is lost and they are decoded anew at each reading
  --back-translate SPEC a second version of every training text, from which perturbed views choose:
                        apertium:eng-spa, or hf:DIR,DIR (Marian models there and back)
  --check               only checks
  --KEY VALUE           any key of the config that says how the data is read: --data..., and
                        --model.<modality>.pretrained, whose checkpoint decides sizes and tokeniser

A start that was stopped goes on where it was. Damaged files are made anew by the same command. The
folder remembers data.name and the data set's options: they may be left out when training on it.
"""
STUDY = """\
  python -m cimrl_jax.main study --config FILE [--workdir DIR] [--only NAME,NAME] [--KEY VALUE ...]

Methods x data sets x seeds, and one table. The file is a .py file that defines `study`, or a .yaml
file that holds what it would be. Paths in it are relative to the folder that one works in.

  study = {
    "runs": {
      "digits": {"config": "configs/digits.py", "data": {"ground": "texture"}},
      "covid_cxr/fold0": {"config": "configs/covid_cxr.py", "data": {"fold": 0}},
      "covid_cxr/fold1": {"config": "configs/covid_cxr.py", "data": {"fold": 1}},
      ...
    },
    "base": {"seeds": 5},
    "pool": {"covid_cxr": ["covid_cxr/fold0", "covid_cxr/fold1"]},
    "plots": {"correlation": {"0.8": "digits_80", "0.95": "digits"}},
  }

  runs   by name: a config file (or several, with commas between them) and what is other than in it;
         the run's folder is DIR/NAME, with everything that a run leaves behind
  base   what holds for every run; its own keys win over these, the command line over both
  pool   runs on folds of one data set, which become one column: for each seed the examples of all
         folds are counted together, group by group
  plots  by what is varied: a number and the run or pool made there, with a table and a figure each
  table  runs and pools that are the columns of the first table; if left out, those in no plot

  --config FILE           the study
  --workdir DIR           folder of the whole; by default runs/<name of the file>
  --only NAME,NAME        runs and pools to run now
  --KEY VALUE             any key of a run, for all of them
  --runs.NAME.KEY VALUE   the same for one run, or a pool's: --runs.mmsd.data.path /where/it/lies

It writes study.md, study.html and study.json to DIR: worst group and gap closed of every method on
every data set, accuracy, labels used, selection and cost, and on how many data sets cimrl is above
each method. A run that is done, with the same config, is not repeated; one that was stopped goes
on. A run that fails by what can be mended is named with its reason, the others go on, and the exit
code is 2.
"""
PLACES = {
    "data.views": "data.views.<option>",
    "data.plant": "data.plant.<option>",
    "data.resample": "data.resample.<option>",
    "data.options": "data.<option>",
    "model.modalities": "model.<modality>.<option>",
    "method": "method.<name>.<option>",
}
"""How the fields of the config that are open sections are written."""
PARTS = (("views", "views", "ViewOptions"), ("plant", "planted", "PlantOptions"), ("resample", "resampled", "ResampleOptions"))
"""Sections under data: name, the module in data/ whose options they are, and these options."""


@dataclasses.dataclass(frozen=True)
class Section:
    """One part of the help; `--help NAME` shows it for each of its `names`."""

    names: tuple[str, ...]
    title: str
    body: str


def render(name: str | None = None, *, root: pathlib.Path = ROOT) -> str:
    """The whole help, or the sections that go by `name`; plain text, at most 100 columns.

    Raises:
      UserError: no section goes by that name.
    """
    found = list(sections(root))
    if name is not None:
        wanted = name.replace("-", "_")
        chosen = [section for section in found if wanted in section.names]
        if not chosen:
            raise UserError(f"--help: no section {name!r}; {nearest(wanted, {known for section in found for known in section.names})}")
    else:
        chosen = found
    text = "\n\n".join(f"{section.title}\n{'-' * len(section.title)}\n{section.body}" for section in chosen)
    return text if name is not None else f"{USAGE}\n{text}"


def sections(root: pathlib.Path = ROOT) -> Iterator[Section]:
    """The sections in the order of the help: the config's own, then data sets, encoders and methods."""
    config = _File(root / "config.py", root)
    yield Section(("config", "run"), "run", _fields(config, "Config", ""))
    yield Section(("study",), "study", STUDY.rstrip("\n"))
    yield Section(("export",), "export", EXPORT.rstrip("\n"))
    yield Section(("prepare",), "prepare", PREPARE.rstrip("\n"))
    for field, record in _sections_of(config.classes["Config"]):
        yield Section((field,), field, _fields(config, record, f"{field}."))
        if field == "data":
            for part, module, options in PARTS:
                if (path := root / "data" / f"{module}.py").is_file():
                    yield _section((part, "data"), f"data.{part}", config.at(path), options, f"data.{part}.")
    for group, folder, title, prefix in (
        ("data", root / "data" / "datasets", "data.name {}", "data."),
        ("model", root / "nn" / "encoders", "model.<modality>.encoder {}", "model.<modality>."),
        ("method", root / "methods", "method {}", "method.{}."),
    ):
        for name, path in modules(folder).items():
            yield _section((name, group), title.format(name), config.at(path), "Options", prefix.format(name))


def _section(names: tuple[str, ...], title: str, file: _File, record: str, prefix: str) -> Section:
    body = _fields(file, record, prefix) or "  (no options)"
    return Section(names, title, f"{_fold(file.about)}\n{body}" if file.about else body)


class _File:
    """One parsed source: its docstring's first paragraph, and what its annotations name, here or in the modules of this package that it imports."""

    def __init__(self, path: pathlib.Path, root: pathlib.Path, parsed: dict[pathlib.Path, _File] | None = None):
        self.root, self.tree = root, ast.parse(path.read_text(encoding="utf-8"))
        self.parsed = {} if parsed is None else parsed
        self.about = (ast.get_docstring(self.tree) or "").split("\n\n")[0]
        self.classes = {node.name: node for node in self.tree.body if isinstance(node, ast.ClassDef)}
        assigned = [(node.targets[0], node.value) for node in self.tree.body if isinstance(node, ast.Assign)]
        self.aliases = {target.id: value for target, value in assigned if isinstance(target, ast.Name)}

    def at(self, path: pathlib.Path) -> _File:
        """Another file, parsed once however many name it."""
        if path not in self.parsed:
            self.parsed[path] = _File(path, self.root, self.parsed)
        return self.parsed[path]

    def find(self, annotation: ast.expr) -> tuple[_File, str]:
        """(file, name) where `Share`, or `editor.Identify` of an imported module, is defined; this file if it is none of the package's."""
        if isinstance(annotation, ast.Attribute) and isinstance(annotation.value, ast.Name):
            path = self._imported(annotation.value.id)
            return (self.at(path), annotation.attr) if path else (self, "")
        name = annotation.id if isinstance(annotation, ast.Name) else ""
        path = self._imported(name, inside=True)
        return (self.at(path), name) if path else (self, name)

    def _imported(self, name: str, *, inside: bool = False) -> pathlib.Path | None:
        """The file of the imported module `name` (`inside`: of the module that it was imported from)."""
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
                module = self.root.joinpath(*(node.module or "").split(".")[1:])
                path = module.with_suffix(".py") if inside else module / f"{name}.py"
                return path if (node.module or "").startswith("cimrl_jax") and path.exists() else None
        return None


class _Expand(ast.NodeTransformer):
    """Type aliases, as what they stand for."""

    def __init__(self, file: _File):
        self.file = file

    def _expand(self, node: ast.expr) -> ast.AST:
        file, name = self.file.find(node)
        return _Expand(file).visit(file.aliases[name]) if isinstance(file.aliases.get(name), ast.Subscript | ast.BinOp) else node

    visit_Name = visit_Attribute = _expand


def _sections_of(record: ast.ClassDef) -> list[tuple[str, str]]:
    """The fields of the config whose type is another record of the same file."""
    return [
        (name, annotation.id) for name, annotation, _, _ in _entries(record) if isinstance(annotation, ast.Name) and annotation.id.endswith("Config")
    ]


def _entries(record: ast.ClassDef) -> Iterator[tuple[str, ast.expr, ast.expr | None, str]]:
    """(name, annotation, default, docstring) of each field."""
    for i, node in enumerate(record.body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            after = record.body[i + 1] if i + 1 < len(record.body) else None
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
            text = inspect.cleandoc(after.value.value) if documented else ""  # pyright: ignore
            yield node.target.id, node.annotation, node.value, text


def _fields(file: _File, record: str, prefix: str) -> str:
    lines: list[str] = []
    for name, annotation, default, text in _entries(file.classes[record]) if record in file.classes else ():
        place, inner = file.find(annotation)
        if inner in place.classes:
            if record != "Config":  # the config's sections have their own place
                lines += [_fields(place, inner, f"{prefix}{name}.")]
            continue
        value = _default(default)
        key = f"{prefix}{name}"
        head = f"--{key}  {_type(_Expand(file).visit(annotation))}" + (f"  [{value}]" if value else "")
        head = f"--{PLACES[key]}" if key in PLACES else head
        lines += textwrap.wrap(head, WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
        for paragraph in text.split("\n\n") if text else ():
            indent = "      "
            lines += textwrap.wrap(" ".join(paragraph.split()), WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    for base in file.classes[record].bases if record in file.classes else ():  # fields that are inherited come last
        place, inner = file.find(base)
        lines += [_fields(place, inner, prefix)]
    return "\n".join(line for line in lines if line)


def _default(value: ast.expr | None) -> str:
    """A field's default as one would type it; empty for sections and what has none."""
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        value = next((keyword.value for keyword in value.keywords if keyword.arg == "default"), None)
    if value is None:
        return ""
    if isinstance(value, ast.Tuple):
        return ",".join(_default(item) for item in value.elts) or "empty"
    if isinstance(value, ast.Constant):
        word = value.value
        return str(word).lower() if isinstance(word, bool) or word is None else str(word) or "empty"
    return ast.unparse(value)


def _type(annotation: ast.expr) -> str:
    """An annotation in words: `Annotated[int, Range(low=1)]` is "int, at least 1"."""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        left = _type(annotation.left)
        return f"{left}{',' if ',' in left else ''} or {_type(annotation.right)}"
    if isinstance(annotation, ast.Constant):
        return "none" if annotation.value is None else str(annotation.value)
    if not isinstance(annotation, ast.Subscript):
        return ast.unparse(annotation)
    origin = ast.unparse(annotation.value).split(".")[-1]
    inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    if origin == "Literal":
        return "|".join(str(item.value) if isinstance(item, ast.Constant) else ast.unparse(item) for item in inner)
    if origin == "Annotated":
        return ", ".join([_type(inner[0]), *filter(None, map(_bounds, inner[1:]))])
    if origin in ("tuple", "list"):
        items = [item for item in inner if not (isinstance(item, ast.Constant) and item.value is Ellipsis)]
        return f"list of {_type(items[0])}" if len(items) < len(inner) or origin == "list" else ",".join(map(_type, items))
    return "section" if origin in ("dict", "Mapping") else f"{_type(inner[0])} or none" if origin == "Optional" else ast.unparse(annotation)


def _bounds(item: ast.expr) -> str:
    if isinstance(item, ast.Call) and ast.unparse(item.func).endswith("Range"):
        return str(Range(**{keyword.arg: ast.literal_eval(keyword.value) for keyword in item.keywords if keyword.arg}))
    return ""


def _fold(text: str) -> str:
    """Lines longer than the page, folded; the others as they are."""
    return "\n".join(part for line in text.splitlines() for part in textwrap.wrap(line, WIDTH, break_on_hyphens=False) or [""])
