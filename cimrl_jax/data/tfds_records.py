"""What TFDS has prepared on the disk, read without TensorFlow: which data sets there are, their features, and their records one by one.

Only ArrayRecord files can be read by row. A record is parsed, and of its features only those are decoded that are asked for; pictures stay encoded.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cimrl_jax.errors import UserError

INFO = "dataset_info.json"
TENSOR = "tensorflow_datasets.core.features.tensor_feature.Tensor"
AT_ONCE = 64
"""Records that are read at a time."""
Example = Mapping[str, Any]
Decode = Callable[[bytes], Example]


def require(where: str) -> Any:
    """The module of TFDS. `where` begins messages, here and below.

    Raises:
      UserError: it is not installed.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(f"{where}: it needs TFDS, which is not installed; run: pip install 'cimrl_jax[tfds]'") from error
    return tensorflow_datasets


def locate(name: str, path: pathlib.Path | None, *, download: bool, where: str) -> pathlib.Path:
    """The folder of a prepared data set, the newest version that fits; with `download` TFDS prepares it first if it is not there.

    Args:
      name: as TFDS writes it: name, name/configuration, name:version, name/configuration:version.
      path: TFDS's data_dir (None: its own), or the folder of one prepared data set.

    Raises:
      UserError: there is none, or it cannot be prepared.
    """
    if path is not None and (path / INFO).is_file():
        return path
    if not name:
        raise UserError(f"{where}: name one by --data.dataset (say caltech_birds2011), or set data.path to a folder with a data set's {INFO}")
    tfds = require(where)
    from tensorflow_datasets.core import constants, naming

    root = pathlib.Path(path or constants.DATA_DIR).expanduser()
    try:
        base, chosen = naming.parse_builder_name_kwargs(name)
    except ValueError as error:
        raise UserError(f"{where}: data.dataset is {name!r}; expected a name as TFDS writes it, such as glue/cola:2.0.0") from error
    found = _find(root / base.name, chosen.get("config"), str(chosen.get("version") or "*"), where)
    if found is not None:
        return found
    if not download:
        command = f"import tensorflow_datasets as tfds; tfds.builder('{name}', data_dir='{root}').download_and_prepare(file_format='array_record')"
        raise UserError(
            f"{where}: {name} is not prepared in {root}; set data.path to the folder where it is, or prepare it there by --data.download or by: "
            f'python -c "{command}"'
        )
    try:
        builder = tfds.builder(name, data_dir=root)
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # builders raise what they like
        raise UserError(f"{where}: TFDS cannot prepare {name} in {root} ({reason(error)}); prepare it by hand") from error
    return pathlib.Path(builder.data_dir)


def _find(folder: pathlib.Path, config: str | None, version: str, where: str) -> pathlib.Path | None:
    """In a data set's folder VERSION or CONFIG/VERSION."""
    if config is None and (found := _newest(folder, version)) is not None:
        return found
    configs = {place.name: found for place in _folders(folder) if (found := _newest(place, version)) is not None}
    if config is None and len(configs) > 1:
        raise UserError(f"{where}: {folder} has the configurations {', '.join(configs)}; name one, as in --data.dataset {folder.name}/{min(configs)}")
    return next(iter(configs.values()), None) if config is None else configs.get(config)


def _newest(folder: pathlib.Path, version: str) -> pathlib.Path | None:
    found = [place for place in _folders(folder) if (place / INFO).is_file() and fnmatch.fnmatch(place.name, version)]
    return max(found, key=lambda place: [int(part) if part.isdecimal() else -1 for part in place.name.split(".")], default=None)


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(place for place in folder.iterdir() if place.is_dir()) if folder.is_dir() else []


@dataclasses.dataclass(frozen=True, eq=False)
class Feature:
    """A feature that holds no others."""

    keys: tuple[str, ...]
    """Where in an example."""
    connector: Any
    """TFDS's own record of it."""
    listed: bool = False
    """Whether an example has a list of them."""
    rate: int | None = None
    """Of a recording, in Hz, 0 where unknown; None: TFDS does not call it a recording."""

    @property
    def name(self) -> str:
        return "/".join(self.keys)

    @property
    def kind(self) -> str:
        return "Audio" if self.rate is not None else type(self.connector).__name__

    @property
    def shape(self) -> tuple[int | None, ...]:
        return tuple(self.connector.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.connector.np_dtype)

    def of(self, example: Example) -> Any:
        return functools.reduce(lambda value, key: value[key], self.keys, example)


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """The records of a split, by row."""

    split: str
    """As TFDS writes splits."""
    folder: pathlib.Path
    source: Any
    """Their bytes."""
    connector: Any
    """TFDS's own record of all features."""
    pieces: Sequence[tuple[str, int, int]]
    """(file, its first record, the one after the last)."""
    where: str

    def __len__(self) -> int:
        return len(self.source)

    def decoder(self, features: Iterable[Feature]) -> Decode:
        """A record's bytes -> an example with these features."""
        tfds = require(self.where)
        wanted: dict[str, Any] = {}
        kept: dict[str, Any] = {}
        for feature in features:
            place, encoded = wanted, kept
            for key in feature.keys[:-1]:
                place, encoded = place.setdefault(key, {}), encoded.setdefault(key, {})
            place[feature.keys[-1]] = {}
            if isinstance(feature.connector, tfds.features.Image):
                encoded[feature.keys[-1]] = tfds.decode.SkipDecoding()
        some = _some(tfds, self.connector, wanted)
        return lambda record: some.deserialize_example_np(record, decoders=kept)

    def read(self, rows: Sequence[int], decode: Decode) -> list[Example]:
        """The examples of these rows.

        Raises:
          UserError: a file is missing or damaged.
        """
        try:
            if len(rows) == 1:  # half the time of a list of one
                return [decode(self.source[rows[0]])]
            return [decode(record) for record in self.source.__getitems__(list(rows))]
        except Exception as error:  # of the reader in C++, of protocol buffers, of TFDS
            which = f"record {rows[0]}" if len(rows) == 1 else f"records {rows[0]} to {rows[-1]}"
            raise UserError(f"{self.where}: cannot read {self.split}, {which}, in {self.folder} ({reason(error)}); prepare it again") from error

    def examples(self, features: Iterable[Feature]) -> Iterator[Example]:
        """These features of all rows."""
        decode = self.decoder(features)
        for start in range(0, len(self), AT_ONCE):
            yield from self.read(range(start, min(start + AT_ONCE, len(self))), decode)

    def shared(self, other: Records) -> int:
        """How many records both have."""
        pairs = ((own, its) for own in self.pieces for its in other.pieces if own[0] == its[0])
        return sum(max(min(own[2], its[2]) - max(own[1], its[1]), 0) for own, its in pairs)


@dataclasses.dataclass(frozen=True, slots=True)
class Content:
    """One feature of one record, which stands where a column of `data/columns.py` expects a file."""

    records: Records
    row: int
    feature: Feature
    decode: Decode
    encode: Callable[[Any], bytes]
    """The feature's value -> a file's bytes."""

    def __str__(self) -> str:
        return f"{self.feature.name} of {self.records.split}, record {self.row}"

    def is_file(self) -> bool:
        return True

    def read_bytes(self) -> bytes:
        return self.encode(self.feature.of(self.records.read([self.row], self.decode)[0]))


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A data set on the disk."""

    folder: pathlib.Path
    builder: Any
    features: Mapping[str, Feature]
    """By name, a / between that of a feature and that of one in it."""
    where: str

    @property
    def title(self) -> str:
        """Name, configuration and version."""
        return str(self.builder.info.full_name)

    @property
    def licence(self) -> str:
        return " ".join(str(self.builder.info.redistribution_info.license or "").split())

    @property
    def splits(self) -> list[str]:
        return list(self.builder.info.splits)

    def describe(self) -> str:
        """All features with their kinds, for messages."""
        return ", ".join(f"{name} ({self.features[name].kind})" for name in sorted(self.features))

    def feature(self, name: str, option: str) -> Feature:
        """The feature of that name, which `option` gave.

        Raises:
          UserError: there is none.
        """
        if name not in self.features:
            raise UserError(f"{self.where}: {self.title} has no feature {name!r}, which {option} names; it has {self.describe()}")
        return self.features[name]

    def records(self, split: str, option: str) -> Records:
        """The records of a split, as TFDS writes splits, which `option` gave.

        Raises:
          UserError: there is no such split, or its files are no ArrayRecord files.
        """
        tfds = require(self.where)
        try:
            source = self.builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
            pieces = self.builder.info.splits[split].file_instructions
        except NotImplementedError as error:
            form = self.builder.info.file_format.value
            raise UserError(
                f"{self.where}: {self.folder} holds {form} files, which cannot be read by row; prepare {self.title} again, in another folder, "
                "with file_format='array_record'"
            ) from error
        except Exception as error:  # a mistake in the expression, or a file that is not there
            known = ", ".join(self.splits)
            raise UserError(f"{self.where}: {option} is {split!r}, but {self.title} has the splits {known} ({reason(error)})") from error
        spans = [(str(own.filename), own.skip, own.examples_in_shard if own.take < 0 else own.skip + own.take) for own in pieces]
        return Records(split, self.folder, source, self.builder.info.features, spans, self.where)


def open_folder(folder: pathlib.Path, *, where: str) -> Prepared:
    """The data set that is prepared in a folder, without its builder's code.

    Raises:
      UserError: what describes it is missing or damaged.
    """
    tfds = require(where)
    from tensorflow_datasets.core import dataset_info, read_only_builder

    rates: dict[str, int] = {}
    try:
        content = json.loads((folder / "features.json").read_text(encoding="utf-8"))
        about = dataset_info.read_proto_from_builder_dir(folder)
        about.features.CopyFrom(tfds.features.FeatureConnector.from_json(_plain_audio(content, "", rates)).to_proto())
        builder = read_only_builder.builder_from_metadata(folder, about)
    except Exception as error:  # readers of JSON, of protocol buffers and of old formats, each with errors of its own
        raise UserError(f"{where}: cannot read {INFO} and features.json in {folder} ({reason(error)}); prepare the data set again") from error
    return Prepared(folder, builder, {own.name: own for own in _leaves(tfds, builder.info.features, (), rates)}, where)


def _plain_audio(node: Mapping[str, Any], name: str, rates: dict[str, int]) -> dict[str, Any]:
    """A description of features in which a recording is what it is on the disk, numbers or a file's bytes: TFDS's own class for recordings cannot be
    made without TensorFlow. Their sample rates go into `rates`."""
    audio = node.get("audio")
    if "pythonClassName" in node and isinstance(audio, Mapping):
        rates[name] = int(audio.get("sampleRate", 0))
        if audio.get("lazyDecode"):
            return {"pythonClassName": TENSOR, "tensor": {"shape": {}, "dtype": "string", "encoding": "none"}}
        encoding = str(audio.get("encoding", "none")).lower()
        return {"pythonClassName": TENSOR, "tensor": {"shape": audio["shape"], "dtype": audio["dtype"], "encoding": encoding}}
    found = {}
    for key, value in node.items():
        if key == "features" and isinstance(value, Mapping):
            found[key] = {inner: _plain_audio(child, f"{name}/{inner}".lstrip("/"), rates) for inner, child in value.items()}
        else:
            found[key] = _plain_audio(value, name, rates) if isinstance(value, Mapping) else value
    return found


def _leaves(tfds: Any, connector: Any, keys: tuple[str, ...], rates: Mapping[str, int], listed: bool = False) -> Iterator[Feature]:
    # Classes that inherit from these two, such as that of translations, are read as they are.
    if type(connector) is tfds.features.Sequence:
        yield from _leaves(tfds, connector.feature, keys, rates, listed=True)
    elif type(connector) is tfds.features.FeaturesDict:
        for key, inner in connector.items():
            yield from _leaves(tfds, inner, (*keys, key), rates, listed)
    else:
        yield Feature(keys, connector, listed, rates.get("/".join(keys)))


def _some(tfds: Any, connector: Any, wanted: Mapping[str, Any]) -> Any:
    """The features that are wanted; a list of features comes whole."""
    if type(connector) is not tfds.features.FeaturesDict:
        return connector
    return tfds.features.FeaturesDict({key: _some(tfds, connector[key], inner) for key, inner in wanted.items()})


def reason(error: BaseException) -> str:
    """An error in one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
