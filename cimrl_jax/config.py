"""What a run is: frozen dataclasses, read strictly from a `.py` or `.yaml` file, with the command line's `--a.b value` on top.

The options of a data set, an encoder or a method stand in the same tree, flattened: `data.<option>` of the data set that `data.name` names,
`model.<modality>.<option>` of the encoder that `model.<modality>.encoder` names, `method.<name>.<option>`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

import yaml

from cimrl_jax.errors import UserError
from cimrl_jax.options import OptionError, Range, component, convert, field_types, make_options, plain, unknown_key
from cimrl_jax.readers import read

SAME_NUMBERS = {"numbers": False}  # metadata of a field that changes where and how fast, not what comes out
VIEWS = "cimrl_jax.data.views"
PLANT = "cimrl_jax.data.planted"
RESAMPLE = "cimrl_jax.data.resampled"
MANIFEST = "cimrl_jax.data.manifest"
OPTIMISED = ("learning_rate", "weight_decay")
"""Traced numbers of the optimiser, which every method may set for itself."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    name: str = "digits"
    """The data set: the name of a file in cimrl_jax/data/datasets. Its own options stand beside this key."""
    path: str = ""
    """The folder that the data set's authors distribute, or one that `prepare` made of it: then data.name and the data set's options are those it was
    made with, if they are not given. Empty where a data set brings its own data."""
    resident: Literal["auto", "yes", "no"] = field(default="auto", metadata=SAME_NUMBERS)
    """Whether the splits are held on the device: auto where they fit, no to stream them from the host."""
    augment: bool = False
    """Whether training sees a perturbed view of each example (see data.views) instead of the original."""
    cache: str = field(default="", metadata=SAME_NUMBERS)
    """Folder where the features of frozen encoders are kept (model.<modality>.features=disk); empty: the user's cache folder."""
    views: dict[str, Any] = field(default_factory=dict)
    """How perturbed views are made (crops, colour jitter, word edits, masks): see the section data.views."""
    plant: dict[str, Any] = field(default_factory=dict)
    """A shortcut of one's own, planted in pictures, texts, recordings or numbers: see the section data.plant."""
    resample: dict[str, Any] = field(default_factory=dict)
    """What if the data set's own attribute agreed with the label more, less or not at all: see the section data.resample."""
    options: dict[str, Any] = field(default_factory=dict)
    """The data set's own options, written beside data.name."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    dim: Annotated[int, Range(low=1)] = 48
    """Width of tokens and codes; a multiple of model.heads."""
    heads: Annotated[int, Range(low=1)] = 4
    """Attention heads."""
    mlp_ratio: Annotated[float, Range(above=0)] = 2.0
    """Width of a block's hidden layer, as a multiple of model.dim."""
    dropout: Annotated[float, Range(low=0, below=1)] = 0.0
    """Share of activations dropped in training."""
    fusion_layers: Annotated[int, Range(low=1)] = 2
    """Blocks of co-attention that fuse the modalities."""
    connect_every: Annotated[int, Range(low=1)] = 2
    """Every so many fusion blocks, all modalities attend to one another at once."""
    query: str = ""
    """The modality whose tokens ask in the fusion; empty: the first text, else the first modality by name."""
    causal_layers: Annotated[int, Range(low=0)] = 1
    """Layers between the fused tokens and the codes, those that causal methods train for."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the activations; parameters, losses and the optimiser stay float32."""
    modalities: dict[str, dict[str, Any]] = field(default_factory=dict)
    """One section per modality, written model.<modality>: `encoder` names a file in cimrl_jax/nn/encoders, its options stand beside it."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    steps: Annotated[int, Range(low=1)] = 800
    """Optimiser updates, per method and seed."""
    batch_size: Annotated[int, Range(low=1)] = 64
    """Examples per update, over all devices together, per seed."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum whose weight decay is part of the gradient, as in the papers that fine-tune ResNets."""
    momentum: Annotated[float, Range(low=0, below=1)] = 0.9
    """SGD's momentum."""
    learning_rate: Annotated[float, Range(above=0)] = 1e-3
    """The highest learning rate of the schedule."""
    weight_decay: Annotated[float, Range(low=0)] = 1e-4
    """Weight decay: AdamW's is decoupled and spares biases and norms, SGD's is on everything."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up: to zero along a cosine or a line, or not at all."""
    warmup: Annotated[float, Range(low=0, below=1)] = 0.1
    """Share of the steps in which the learning rate rises from zero."""
    clip_norm: Annotated[float, Range(low=0)] = 1.0
    """Gradients are scaled down to this global norm; 0 leaves them as they are."""
    chunk: Annotated[int, Range(low=1)] = field(default=50, metadata=SAME_NUMBERS)
    """Steps per jitted call. Metrics are written once a chunk."""
    eval_every: Annotated[int, Range(low=0)] = 100
    """Steps between evaluations on the validation split, from which the model is selected; 0 evaluates once, at the end."""
    checkpoint_every: Annotated[int, Range(low=0)] = field(default=200, metadata=SAME_NUMBERS)
    """Steps between checkpoints from which a killed run resumes; 0 saves once, at the end."""
    select_from: Annotated[float, Range(low=0, below=1)] = 0.8
    """Share of the steps before which no model is selected by worst_class or average: where validation has the shortcut too, early models shine
    because they follow it. Rules that read groups may select any."""
    mesh_member: Annotated[int, Range(low=0)] = field(default=0, metadata=SAME_NUMBERS)
    """Devices along which the seeds of a sweep are spread; 0 chooses."""
    mesh_data: Annotated[int, Range(low=0)] = field(default=0, metadata=SAME_NUMBERS)
    """Devices along which each batch is spread; 0 chooses."""
    distributed: bool = field(default=False, metadata=SAME_NUMBERS)
    """Whether this process joins others that run the same command, on one host or many, to train together: as the scheduler says (SLURM, Open MPI,
    TPU pods) or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. The workdir must be a folder that all of them see."""
    members_together: Annotated[int, Range(low=0)] = field(default=0, metadata=SAME_NUMBERS)
    """Members (seeds and settings) that are vmapped at a time; the groups of them run one after the other. 0: all, or as many as fit the memory;
    on the CPU every member on its own, one to a core."""
    compile_cache: bool = field(default=True, metadata=SAME_NUMBERS)
    """Whether compiled programs are kept on disk, so that the next run starts in a second."""


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    selection: Literal["own", "worst_class", "worst_group", "average", "last"] = "own"
    """The validation accuracy that selects the model among those of train.eval_every, and the setting of a sweep; last takes the last. worst_group
    reads validation groups; own is each method's: worst_group for those that are told groups anyway, or whose authors select so
    and the data allows it; worst_class for all others."""
    ceiling: bool = True
    """Whether ERM is also trained on data without the shortcut, where the data set can make it: the accuracy to aim at."""
    batch_size: Annotated[int, Range(low=1)] = field(default=200, metadata=SAME_NUMBERS)
    """Examples per evaluation call."""
    bootstrap: Annotated[int, Range(low=1)] = 1000
    """Resamples of the seeds behind each interval."""
    level: Annotated[float, Range(above=0, below=1)] = 0.95
    """Confidence level of the intervals."""


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    title: str = ""
    """Heading of the report; empty: the run's name."""
    html: bool = True
    """Whether the one-file page report.html is written beside the tables."""
    examples: Annotated[int, Range(low=0)] = 8
    """Test examples shown with what each method looked at and edited."""


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = field(default="", metadata=SAME_NUMBERS)
    """Name of the run; empty: the name of the config file."""
    methods: tuple[str, ...] = ("erm", "cimrl")
    """Methods to train and compare: names of files in cimrl_jax/methods."""
    seeds: tuple[Annotated[int, Range(low=0)], ...] = (0, 1, 2, 3, 4)
    """Seeds, each a member of the sweep. 5 means 0,1,2,3,4; `3,` means the seed 3 alone."""
    workdir: str = field(default="", metadata=SAME_NUMBERS)
    """Folder of everything that the run writes; empty: runs/<name>."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig, metadata=SAME_NUMBERS)
    method: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of each method, written method.<name>.<option>; its learning_rate and weight_decay, if given, replace those of train."""
    sweep: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values to try, by dotted key: sweep.method.<name>.<option>, sweep.train.learning_rate, sweep.train.weight_decay. Each method is trained in
    every combination of its own; what evaluate.selection finds best on validation, over all seeds, is reported."""


def load(source: str | os.PathLike[str] | Mapping[str, Any] | Config, overrides: Mapping[str, Any] | None = None) -> Config:
    """A checked config with the options of its data set, views, methods and named encoders spelled out.

    Args:
      source: a `.py` file that defines `config` (a nested dict, or a Config), a `.yaml` file, several such files with commas between them, of which
        the later win key by key, a nested mapping, or a Config.
      overrides: values by dotted key ("train.steps": 100); text is read by the type of the key. They win over `source`.

    A model.<modality> section without `encoder` is kept as it is: only the data set's modality kinds decide its encoder, and with it, its check.

    Raises:
      UserError: an unknown key, a wrong value, a missing file; one line that names the key in full and where it came from.
    """
    files = os.fspath(source).split(",") if isinstance(source, str | os.PathLike) else []
    tree = functools.reduce(_merged, map(_read, files)) if files else _read(source)
    overrides = dict(overrides or {})
    for key, value in overrides.items():
        _put(tree, key, value)
    tree["name"] = tree.get("name") or "-".join(pathlib.Path(file).stem for file in files) or "run"
    try:
        return _resolve(tree)
    except OptionError as error:
        typed = any(error.key == key or error.key.startswith((f"{key}.", f"{key}[")) or key.startswith(f"{error.key}.") for key in overrides)
        origin = "command line" if typed else os.fspath(source) if isinstance(source, str | os.PathLike) else "config"
        raise UserError(f"{origin}: {error}") from error


def to_dict(config: Config) -> dict[str, Any]:
    """The nested plain dict that `load` reads back: component options beside their names, lists instead of tuples."""
    tree = dataclasses.asdict(config)
    tree["data"] |= tree["data"].pop("options")
    tree["model"] |= tree["model"].pop("modalities")
    return plain(tree)


def to_yaml(config: Config) -> str:
    """`to_dict` as text: written to a file, `load` gives back an equal config."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=120)


def numbers(config: Config, method: str | None = None) -> dict[str, Any]:
    """The plain tree of what determines the numbers (not where, how fast, or how they are shown).

    With `method`, of what determines the training of that method's members: neither the other methods nor the evaluation.
    """
    tree = _numbers(config)
    names = [method] if method else sorted(config.methods)
    tree["method"] = {name: tree["method"].get(name, {}) for name in names}
    tree["sweep"] = {key: list(values) for name in names for key, values in _swept(config, name).items()}
    if method:
        tree.pop("methods")
        tree.pop("evaluate")
    return plain(tree)


def fingerprint(config: Config, method: str | None = None) -> str:
    """Twelve hex digits that change if and only if something in `numbers` does."""
    return hashlib.sha256(json.dumps(numbers(config, method), sort_keys=True).encode()).hexdigest()[:12]


def _swept(config: Config, method: str) -> dict[str, tuple[Any, ...]]:
    return {key: values for key, values in config.sweep.items() if key.startswith(("train.", f"method.{method}."))}


def settings(config: Config, method: str) -> list[dict[str, Any]]:
    """The combinations of values that the sweep has for one method, by dotted key; [{}] without any."""
    own = _swept(config, method)
    return [dict(zip(own, combination, strict=True)) for combination in itertools.product(*own.values())]


def _numbers(record: Any) -> dict[str, Any]:
    kept = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.metadata.get("numbers", True)}
    return {name: _numbers(value) if dataclasses.is_dataclass(value) else value for name, value in kept.items()}


def _read(source: str | os.PathLike[str] | Mapping[str, Any] | Config) -> dict[str, Any]:
    tree = read(pathlib.Path(source)) if isinstance(source, str | os.PathLike) else source
    if not isinstance(tree, Mapping | Config):
        raise UserError(f"{source}: expected a nested mapping of keys to values, got {type(tree).__name__}")
    return plain(to_dict(tree) if isinstance(tree, Config) else tree)


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """`second` on top of `first`, section by section."""
    both = {key: _merged(first[key], value) for key, value in second.items() if isinstance(value, dict) and isinstance(first.get(key), dict)}
    return first | second | both


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for i, name in enumerate(sections):
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise UserError(f"command line: {key}: {'.'.join(sections[: i + 1])} is a value, not a section")
    tree[last] = value


def _resolve(tree: dict[str, Any]) -> Config:
    everywhere = list(_keys(Config, ""))
    for section in ("data", "model", "method"):
        if not isinstance(tree.setdefault(section, {}), Mapping):
            raise OptionError(section, f"expected a section of keys and values, got {tree[section]!r}")
    names = convert(tree.get("methods", Config.methods), field_types(Config)["methods"], "methods")
    classes = {name: component("method", name, where="methods").Options for name in names}
    everywhere += [f"method.{name}.{option}" for name, options in classes.items() for option in field_types(options)]
    for name, value in tree.items():
        if name not in field_types(Config):
            raise unknown_key(name, value, "", field_types(Config), everywhere)
    seeds = tree.get("seeds")
    if isinstance(seeds, int) and not isinstance(seeds, bool) or isinstance(seeds, str) and seeds.strip().isdecimal():
        tree["seeds"] = list(range(int(seeds)))
    tree["data"] = _resolve_data(tree["data"], everywhere)
    tree["model"] = _resolve_model(tree["model"], everywhere)
    tree["workdir"] = tree.get("workdir") or f"runs/{tree['name']}"
    tree["sweep"] = _resolve_sweep(tree.get("sweep", {}), everywhere)
    sections = tree.pop("method")
    config = make_options(Config, tree, "", everywhere)
    for key in ("methods", "seeds"):
        values = getattr(config, key)
        if not values or len(set(values)) < len(values):
            raise OptionError(key, f"got {', '.join(map(str, values)) or 'none'}; expected at least one, each once")
    for name in sections:
        classes[name] = component("method", name, where=f"method.{name}").Options
    method = {name: _resolve_method(options, sections.get(name, {}), f"method.{name}", everywhere) for name, options in classes.items()}
    if config.model.dim % config.model.heads:
        raise OptionError("model.dim", f"got {config.model.dim}, expected a multiple of model.heads ({config.model.heads})")
    return dataclasses.replace(config, method=method)


def _resolve_method(options: type, section: Any, where: str, everywhere: list[str]) -> dict[str, Any]:
    given = dict(section) if isinstance(section, Mapping) else {}
    own = {key: convert(given.pop(key), field_types(TrainConfig)[key], f"{where}.{key}") for key in OPTIMISED if key in given}
    return dataclasses.asdict(make_options(options, given if isinstance(section, Mapping) else section, where, everywhere)) | own


def _resolve_sweep(section: Any, everywhere: list[str]) -> dict[str, tuple[Any, ...]]:
    """Dotted keys, however they were nested, and each value as its key's type; the word none is an empty sweep."""
    found = {}
    if section is None or (isinstance(section, str) and section.strip().lower() == "none"):
        return found
    for key, values in _leaves(section, "sweep"):
        name, _, option = key.removeprefix("method.").partition(".")
        if key.startswith("method.") and option:
            types = field_types(component("method", name, where=f"sweep.method.{name}").Options)
            types |= {key: field_types(TrainConfig)[key] for key in OPTIMISED}
            if option not in types:
                raise unknown_key(option, values, f"sweep.method.{name}.", list(types), everywhere)
            expected = types[option]
        elif key in [f"train.{name}" for name in OPTIMISED]:
            expected = field_types(TrainConfig)[option]
        else:
            raise OptionError(f"sweep.{key}", "cannot be swept; expected method.<name>.<option>, train.learning_rate or train.weight_decay")
        found[key] = convert(values, tuple[expected, ...], f"sweep.{key}")
        if not found[key] or len(set(found[key])) < len(found[key]):
            raise OptionError(f"sweep.{key}", f"got {', '.join(map(str, found[key])) or 'nothing'}; expected at least one value, each once")
    return found


def _leaves(section: Any, where: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in a nested mapping that is no mapping."""
    if not isinstance(section, Mapping):
        raise OptionError(where, f"expected a section of keys and lists of values, got {section!r}")
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", leaf) for key, leaf in _leaves(value, f"{where}.{name}"))
        else:
            yield str(name), value


def _resolve_data(section: Mapping[str, Any], everywhere: list[str]) -> dict[str, Any]:
    section = importlib.import_module(MANIFEST).adopt(section)
    own = {key: value for key, value in section.items() if key in field_types(DataConfig) and key != "options"}
    name = own.get("name", DataConfig.name)
    if not isinstance(name, str):
        raise OptionError("data.name", f"got {name!r}, expected the name of a data set")
    options = component("data", name, where="data.name").Options
    rest = {key: value for key, value in section.items() if key not in own}
    for key, value in rest.items():
        if key not in field_types(options):
            siblings = [*field_types(options), *field_types(DataConfig)]
            raise unknown_key(key, value, "data.", [sibling for sibling in siblings if sibling != "options"], everywhere)
    own["options"] = dataclasses.asdict(make_options(options, rest, "data", everywhere))
    for key, module, record in (("views", VIEWS, "ViewOptions"), ("plant", PLANT, "PlantOptions"), ("resample", RESAMPLE, "ResampleOptions")):
        own[key] = dataclasses.asdict(make_options(getattr(importlib.import_module(module), record), own.get(key, {}), f"data.{key}", everywhere))
    return own


def _resolve_model(section: Mapping[str, Any], everywhere: list[str]) -> dict[str, Any]:
    own = {key: value for key, value in section.items() if key in field_types(ModelConfig) and key != "modalities"}
    modalities: dict[str, Any] = {}
    for name, rest in section.items():
        if name in own:
            continue
        if not isinstance(rest, Mapping) or name == "modalities":
            raise unknown_key(name, rest, "model.", [key for key in field_types(ModelConfig) if key != "modalities"], everywhere)
        if "encoder" in rest:
            options = component("encoder", str(rest["encoder"]), where=f"model.{name}.encoder").Options
            given = {key: value for key, value in rest.items() if key != "encoder"}
            rest = {"encoder": rest["encoder"], **dataclasses.asdict(make_options(options, given, f"model.{name}", everywhere))}
        modalities[name] = plain({key: _guess(value) for key, value in rest.items()}, tuple)
    return {**own, "modalities": modalities}


def _guess(value: Any) -> Any:
    """Typed text as the value it looks like, where no annotation is known yet."""
    for number in (int, float):
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = number(value)
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _keys(record: type, prefix: str) -> Iterator[str]:
    for name, expected in field_types(record).items():
        if dataclasses.is_dataclass(expected) and isinstance(expected, type):
            yield from _keys(expected, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
