"""The data sets of this package as builders of TFDS: importing this module makes each known to TFDS as cimrl_NAME.

  import tensorflow_datasets as tfds
  import cimrl_jax.data.tfds_builders

  builder = tfds.builder("cimrl_waterbirds", path="/where/it/lies", options={"size": 224}, data_dir="/records")
  builder.download_and_prepare()          # ArrayRecord files, without TensorFlow
  builder.as_data_source("train")[0]      # {"image": ..., "text": ..., "label": ..., "group": ..., "present": ..., "regions": ...}

`path` is data.path and `options` are the data set's own. Prepared with others than the defaults, it is a configuration of its own, whose name is made
of them; `path` is no part of it, and need not be given to read what is prepared.

In an example stand, for each modality, what the data set hands over (pictures as PNG files, all else as numbers; of a text also its words, as
TEXT_words) and, in `present`, whether it is there; `label`; `group`, -1 where unknown; and, if any are known, `regions`: cause and shortcut by
modality, all False in splits without. Splits and the order of examples are the data set's. `builder.info.metadata` has the rest: what `types.Feature`
says of the modalities (vocabularies, columns, means), names, and the attribute of each group.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import io
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cimrl_jax.data import tfds_records, tokenise
from cimrl_jax.data.source import Dataset, Source
from cimrl_jax.errors import UserError
from cimrl_jax.options import component, known, make_options

PREFIX = "cimrl_"
DEFAULT = "default"
AT_ONCE = 64
"""Examples that are loaded at a time."""


def register() -> dict[str, Any]:
    """The builder class of each file in data/datasets, by its name in TFDS, which knows it from then on.

    Raises:
      UserError: TFDS is not installed.
    """
    tfds = tfds_records.require(__name__)

    @dataclasses.dataclass(eq=False)
    class Config(tfds.core.BuilderConfig):
        options: dict[str, Any] = dataclasses.field(default_factory=dict)

    return {PREFIX + name: _builder(tfds, Config, name) for name in known("data")}


def _builder(tfds: Any, make_config: Any, component_name: str) -> Any:
    class Builder(tfds.core.GeneratorBasedBuilder):
        """A data set of this package; its file in data/datasets says what it is."""

        name = PREFIX + component_name
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [make_config(name=DEFAULT, description="All options as they are by default.")]
        code_path = None  # beside it TFDS looks for checksums of downloads, with a package that it may lack

        def __init__(
            self,
            *,
            path: str | pathlib.Path | None = None,
            options: Mapping[str, Any] | None = None,
            config: Any = None,
            file_format: Any = "array_record",
            **rest: Any,
        ):
            if options and config is not None:
                raise UserError(f"{self.name}: options and config are both given, but a configuration is a set of options; leave one of them out")
            self.path = path
            super().__init__(config=_config(make_config, component_name, options) if options else config, file_format=file_format, **rest)

        @functools.cached_property
        def dataset(self) -> Dataset:
            """What is to be written."""
            module = component("data", component_name)
            given = {} if self.path is None else {"path": pathlib.Path(self.path).expanduser()}
            if given and "path" not in inspect.signature(module.build).parameters:
                raise UserError(f"{self.name}: it reads no files; leave path out")
            return module.build(make_options(module.Options, self.builder_config.options, "options"), **given)

        def _info(self) -> Any:
            if (self.data_path / tfds_records.INFO).exists():  # what is prepared is read without the data set's own files
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeatureConnector.from_config(self.data_dir), metadata=tfds.core.MetadataDict()
                )
            names = [field.name for field in dataclasses.fields(Dataset) if field.name not in ("features", "splits", "answers", "keys")]
            about = {name: getattr(self.dataset, name) for name in names}
            modalities = {name: dataclasses.asdict(feature) for name, feature in self.dataset.features.items()}
            images = [name for name, feature in self.dataset.features.items() if feature.kind == "image"]
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{component('data', component_name).__doc__}\n{self.dataset.notes}",
                features=tfds.features.FeaturesDict(_connectors(tfds.features, self.dataset)),
                supervised_keys=(images[0], "label") if images else None,
                disable_shuffling=True,
                metadata=tfds.core.MetadataDict(json.loads(json.dumps({**about, "features": modalities}))),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {name: self._generate_examples(source) for name, source in self.dataset.splits.items()}

        def _generate_examples(self, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
            return _examples(self.dataset, source)

    Builder.__name__ = Builder.__qualname__ = "".join(part.title() for part in Builder.name.split("_"))
    return Builder


def _config(make_config: Any, component_name: str, options: Mapping[str, Any]) -> Any:
    """The configuration that options other than the defaults are; None if there are none."""
    record = component("data", component_name).Options
    chosen, usual = (dataclasses.asdict(make_options(record, own, "options")) for own in (dict(options), {}))
    changed = {name: value for name, value in chosen.items() if value != usual[name]}
    if not changed:
        return None
    written = json.dumps(changed, sort_keys=True, default=str)
    return make_config(name=f"options-{hashlib.sha256(written.encode()).hexdigest()[:12]}", description=written, options=changed)


def _regions(dataset: Dataset) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shape of each mask that some split has, by target and modality."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for source in dataset.splits.values():
        for target, masks in (source.regions or {}).items():
            found.setdefault(target, {}).update({name: tuple(mask.shape[1:]) for name, mask in masks.items()})
    return found


def _connectors(features: Any, dataset: Dataset) -> dict[str, Any]:
    """TFDS's records of what is in an example."""
    found: dict[str, Any] = {}
    for name, feature in dataset.features.items():
        if feature.kind == "image":
            found[name] = features.Image(shape=feature.shape, encoding_format="png")
        else:
            found[name] = features.Tensor(shape=feature.shape, dtype=np.dtype(feature.dtype), encoding="none" if feature.kind == "text" else "bytes")
        if feature.kind == "text":
            found[f"{name}_words"] = features.Text()
    found["label"] = features.ClassLabel(names=list(dataset.class_names))
    found["group"] = features.ClassLabel(names=list(dataset.group_names)) if dataset.group_names else features.Scalar(np.int32)
    found["present"] = {name: features.Scalar(np.bool_) for name in dataset.features}
    if regions := _regions(dataset):
        found["regions"] = {
            target: {name: features.Tensor(shape=shape, dtype=np.bool_, encoding="zlib") for name, shape in masks.items()}
            for target, masks in regions.items()
        }
    return found


def _examples(dataset: Dataset, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, example) of a split."""
    tokenisers = {name: tokenise.of(feature) for name, feature in dataset.features.items() if feature.kind == "text"}
    shapes, known_here = _regions(dataset), source.regions or {}
    for start in range(0, len(source), AT_ONCE):
        rows = np.arange(start, min(start + AT_ONCE, len(source)))
        records = source.load(rows)
        masks = {
            target: {
                name: known_here[target][name][rows] if name in known_here.get(target, {}) else np.zeros((len(rows), *shape), bool)
                for name, shape in own.items()
            }
            for target, own in shapes.items()
        }
        for place, row in enumerate(rows.tolist()):
            example: dict[str, Any] = {"label": int(source.label[row]), "group": int(source.group[row])}
            for name, feature in dataset.features.items():
                value = records["inputs"][name][place]
                example[name] = io.BytesIO(_png(value)) if feature.kind == "image" else value
                if feature.kind == "text":
                    example[f"{name}_words"] = tokenisers[name].decode(value)
            example["present"] = {name: bool(records["present"][name][place]) for name in dataset.features}
            if masks:
                example["regions"] = {target: {name: mask[place] for name, mask in own.items()} for target, own in masks.items()}
            yield row, example


def _png(picture: UInt8[np.ndarray, "h w c"]) -> bytes:
    # TFDS would ask TensorFlow to encode an array.
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(f"{__name__}: writing pictures needs Pillow, which is not installed; run: pip install 'cimrl_jax[data]'") from error
    content = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(content, "PNG")
    return content.getvalue()


BUILDERS = register()
"""By name in TFDS."""
