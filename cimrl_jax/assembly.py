"""Config -> the running objects: data set, model, and one program for each method (more where a sweep changes what is compiled)."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from cimrl_jax.config import OPTIMISED, Config, settings
from cimrl_jax.data import feature_store, manifest, planted, prepared, resampled, synonyms, tokenise, views
from cimrl_jax.data import source as sources
from cimrl_jax.data.feature_store import Compute
from cimrl_jax.data.source import Dataset, Source
from cimrl_jax.errors import UserError
from cimrl_jax.nn import model as model_of
from cimrl_jax.nn.model import build_model
from cimrl_jax.options import OptionError, component, make_options
from cimrl_jax.report.progress import Bar, Progress
from cimrl_jax.report.results import BASELINE, CEILING
from cimrl_jax.train import loop
from cimrl_jax.train.mesh import make_mesh
from cimrl_jax.train.optimizer import make_optimizer
from cimrl_jax.types import Expected, Method, Model, Prompts, Spec

RANDOMISED = "train_randomised"
HELD = {"auto": feature_store.HELD_BYTES, "yes": sys.maxsize, "no": 0}
"""By data.resident, the most bytes of features that are held in memory."""


@dataclasses.dataclass(frozen=True)
class Assembly:
    """The running objects of one config."""

    dataset: Dataset
    model: Model
    programs: tuple[loop.Program, ...]
    """In the order of the methods, the ceiling last."""
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """By modality a hash of the checkpoint's weights that its encoder or its features are made of."""


def assemble(config: Config, progress: Progress | None = None) -> Assembly:
    """Builds data set, model and programs; features that are to be kept on disk and are not there are computed, and `progress` shown.

    Raises:
      UserError: options that do not fit the data set, or a method that needs what the data set lacks.
    """
    progress = progress or Progress(quiet=True)
    dataset = _dataset(config)
    own = config.model
    model_of.check(dataset.features, own.modalities, own.dtype, own.dim, own.heads, own.query)  # before features are computed
    view_options = make_options(views.ViewOptions, config.data.views, "data.views")
    tables = _synonyms(dataset, view_options.text.wordnet)
    perturbed = functools.partial(views.make_perturb, options=view_options, synonyms=tables)
    dataset, stored = _stored(config, dataset, perturbed, tables, progress)
    computed = {m: found.compute for m, found in stored.items()}
    sizes = {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
    model = build_model(features=dataset.features, num_classes=len(dataset.class_names), views=perturbed, **sizes)
    for note in model.notes:
        progress.say(note)
    found = [own for name in config.methods for own in programs(config, dataset, model, name, computed=computed)]
    if config.evaluate.ceiling and BASELINE in config.methods and RANDOMISED in dataset.splits:
        found += programs(config, dataset, model, BASELINE, label=CEILING, split=RANDOMISED, computed=computed)
    return Assembly(dataset, model, tuple(found), {**model.weights, **{m: own.digest for m, own in stored.items()}})


def _dataset(config: Config) -> Dataset:
    """The data set, resampled and planted as asked for."""
    dataset = official(config)
    seed = config.data.options.get("data_seed", 0)
    dataset = resampled.resample(dataset, make_options(resampled.ResampleOptions, config.data.resample, "data.resample"), seed=seed)
    return planted.plant(dataset, make_options(planted.PlantOptions, config.data.plant, "data.plant"), seed=seed)


def official(config: Config) -> Dataset:
    """The data set as its files say, its raw inputs as the model's checkpoints were trained to read them."""
    wanted = expected(config)
    if config.data.path and manifest.is_prepared(config.data.path):
        return prepared.read(pathlib.Path(config.data.path), expected=wanted, held=HELD[config.data.resident])
    module = component("data", config.data.name)
    given: dict[str, Any] = {"path": pathlib.Path(config.data.path)} if config.data.path else {}
    return module.build(make_options(module.Options, config.data.options, "data"), **given, **({"expected": wanted} if wanted else {}))


def expected(config: Config) -> dict[str, Expected]:
    """What the model's checkpoints were trained to read.

    Raises:
      UserError: a checkpoint that cannot be read, or for which the data set cannot be read.
    """
    found = model_of.expected(config.model.modalities)
    if found and "expected" not in inspect.signature(component("data", config.data.name).build).parameters:
        name = next(iter(found))
        raise UserError(f"model.{name}.pretrained: data set {config.data.name!r} cannot be read as a checkpoint wants it; leave pretrained out")
    return found


def _synonyms(dataset: Dataset, wordnet: str) -> dict[str, Int[np.ndarray, "v k"]]:
    """The table of each text modality, where there is something to make one of."""
    texts = {m: feature for m, feature in dataset.features.items() if feature.kind == "text"}
    if not dataset.synonyms and not wordnet:
        return {}
    folder = pathlib.Path(wordnet).expanduser() if wordnet else None
    try:
        return {m: synonyms.synonym_table(dataset.synonyms, feature.vocabulary, wordnet=folder) for m, feature in texts.items()}
    except UserError as error:
        raise OptionError("data.views.text.wordnet", str(error)) from error


def _stored(
    config: Config, dataset: Dataset, perturbed: Callable[..., Any], tables: Mapping[str, Int[np.ndarray, "v k"]], progress: Progress
) -> tuple[Dataset, dict[str, model_of.Frozen]]:
    """(the data set with features in the place of what frozen encoders read, where they are kept on disk; each such modality's encoder)."""
    stored = {}
    for name, feature in dataset.features.items():
        found = model_of.frozen(name, feature, config.model.modalities.get(name, {}), dtype=config.model.dtype, views=perturbed)
        if found is not None:
            bars: list[Bar] = []
            words = hashlib.sha256(tables[name].tobytes()).hexdigest() if name in tables else None

            def show(done: int, total: int, bars: list[Bar] = bars, title: str = f"features of {name}") -> None:
                bars[:] = bars or [progress.task(title, total=total, batch_size=1)]
                bars[0].update(completed=done)

            dataset = feature_store.build(
                dataset,
                name,
                found.compute,
                feature=found.feature,
                weights=found.digest,
                settings={"dtype": config.model.dtype, "views": (config.data.views, words) if found.feature.views > 1 else None},
                cache=pathlib.Path(config.data.cache) if config.data.cache else None,
                held=HELD[config.data.resident],
                progress=show,
                say=progress.say,
            )
            stored[name] = found
            progress.say(found.note)
    return dataset, stored


def programs(
    config: Config,
    dataset: Dataset,
    model: Model,
    method: str,
    *,
    label: str = "",
    split: str = "train",
    computed: Mapping[str, Compute] | None = None,
) -> list[loop.Program]:
    """One method's members on one training split: seeds x settings of the sweep. Settings that differ only in traced numbers share a program.
    `computed`: how the features of modalities that are read as such are made.

    Raises:
      UserError: the method needs what the data set lacks, or its training split lacks a class.
    """
    module, source = component("method", method), dataset.split(split)
    together: dict[str, list[_Setting]] = {}
    for setting in settings(config, method):
        prefix = f"method.{method}."
        options = config.method.get(method, {}) | {key.removeprefix(prefix): value for key, value in setting.items() if key.startswith(prefix)}
        swept = {key.removeprefix("train."): value for key, value in setting.items() if key.startswith("train.")}
        optimised = {key: swept.get(key, options.pop(key, getattr(config.train, key))) for key in OPTIMISED}
        record = module.build(make_options(module.Options, options, f"method.{method}"))
        static = {key: value for key, value in options.items() if key not in record.hyper}
        together.setdefault(repr(static), []).append(_Setting(record, {**record.hyper, **optimised}, setting))
    for first, *_ in together.values():
        _check(dataset, source, split, method, first.method)
    found = [_program(config, dataset, model, source, members, computed or {}) for members in together.values()]
    names = [label or method] if len(found) == 1 else [f"{label or method}-{i + 1}" for i in range(len(found))]
    return [dataclasses.replace(own, name=name, label=label or method) for own, name in zip(found, names, strict=True)]


class _Setting(NamedTuple):
    method: Method
    hyper: Mapping[str, float]
    swept: Mapping[str, Any]


def _program(
    config: Config, dataset: Dataset, model: Model, source: Source, members: list[_Setting], computed: Mapping[str, Compute]
) -> loop.Program:
    """Seeds x these settings, whose methods differ in traced numbers only."""
    train, record = config.train, members[0].method
    spec = Spec(
        num_classes=len(dataset.class_names),
        num_groups=len(dataset.group_names),
        num_examples=len(source),
        steps=train.steps,
        slots=model.slots,
        dim=config.model.dim,
        class_counts=sources.class_counts(source, len(dataset.class_names)),
        group_counts=sources.group_counts(source, len(dataset.group_names)) if record.needs_groups else (),
        group_attribute=dataset.group_attribute if record.needs_groups else (),
        prompts=prompts(dataset, model, computed) if record.needs_attribute_names else None,
        init_model=model.init,
    )
    count = len(config.seeds) * len(members)
    return loop.Program(
        name="",
        label="",
        method=record,
        model=model,
        spec=spec,
        optimizer=functools.partial(
            make_optimizer,
            warmup=train.warmup,
            schedule=train.schedule,
            clip_norm=train.clip_norm,
            kind=train.optimizer,
            momentum=train.momentum,
        ),
        source=source,
        seeds=config.seeds * len(members),
        hyper=tuple(own.hyper for own in members for _ in config.seeds),
        settings=tuple(own.swept for own in members for _ in config.seeds),
        mesh=make_mesh(members=count, batch_size=train.batch_size, mesh_member=train.mesh_member, mesh_data=train.mesh_data),
        batch_size=train.batch_size,
        chunk=train.chunk,
        augment=config.data.augment,
        resident=config.data.resident,
        together=train.members_together,
    )


def _check(dataset: Dataset, source: Source, split: str, method: str, record: Method) -> None:
    """Whether the data set has what the method needs."""
    mend = "name a group or attribute column, or leave this method out of --methods"
    if record.needs_groups and (source.group < 0).any():
        unknown = int((source.group < 0).sum())
        raise UserError(
            f"method {method!r} trains on group labels, but {unknown} of {len(source)} rows of {dataset.name!r} ({split}) have none; {mend}"
        )
    if record.needs_validation_groups and (dataset.split("validation").group < 0).all():
        raise UserError(f"method {method!r} is fitted to the groups of the validation split, but {dataset.name!r} has none there; {mend}")
    if record.needs_attribute_names and not dataset.attribute_names:
        raise UserError(f"method {method!r} reads the names of the spurious attribute's values, but {dataset.name!r} has none; {mend}")
    classes = sources.class_counts(source, len(dataset.class_names))
    if 0 in classes:
        missing = dataset.class_names[classes.index(0)]
        raise UserError(f"data set {dataset.name!r} ({split}) has no example of class {missing!r}; every class needs one")


def prompts(dataset: Dataset, model: Model, computed: Mapping[str, Compute]) -> Prompts:
    """The names of classes and attributes as the data set's first text modality reads them.

    Raises:
      UserError: there is no text modality, or it knows no word of some name.
    """
    raw = {m: feature.raw or feature for m, feature in dataset.features.items()}
    texts = [m for m, feature in raw.items() if feature.kind == "text"]
    if not texts:
        raise UserError(f"data set {dataset.name!r} has no text modality that could read the names of classes and attributes")
    text = texts[0]
    tokeniser = tokenise.of(raw[text])

    def read(names: tuple[str, ...]) -> dict[str, np.ndarray]:
        ids = np.tile(tokeniser.encode([tokenise.words_of(name) for name in names]), raw[text].views)
        for name, row in zip(names, ids, strict=True):
            if not (row > tokenise.UNKNOWN).any():
                raise UserError(f"no text of data set {dataset.name!r} has a word of the name {name!r}; rename it in words that its texts use")
        inputs = {m: np.zeros((len(names), *feature.shape), feature.dtype) for m, feature in dataset.features.items()} | {text: ids}
        present = {m: np.full(len(names), m == text) for m in inputs}
        if text in computed:
            inputs[text] = computed[text](ids, present[text])
        return inputs if model.prepare is None else jax.tree.map(np.asarray, model.prepare(inputs, present))

    return Prompts(text, read(dataset.class_names), read(dataset.attribute_names))
