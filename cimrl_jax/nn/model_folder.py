"""A published model's folder as Hugging Face lays it out: config.json, weights as safetensors, and the files that prepare its inputs.

Nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from cimrl_jax.errors import UserError
from cimrl_jax.nn import tensor_files, torchvision
from cimrl_jax.options import component, known, make_options

T = TypeVar("T")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
PICKLES = (".bin", ".pth", ".pt", ".ckpt")
CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "save_file({{k: v.clone() for k, v in torch.load('{0}', weights_only=True).items()}}, '{1}')\""
)
OLD_NAMES = ((re.compile(r"LayerNorm\.gamma$"), "LayerNorm.weight"), (re.compile(r"LayerNorm\.beta$"), "LayerNorm.bias"))


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A folder's files, checked; the weights are read when they are asked for."""

    folder: pathlib.Path
    config: dict[str, Any]
    """config.json."""
    preprocessor: dict[str, Any]
    """preprocessor_config.json; empty without one."""
    entries: Mapping[str, tensor_files.Entry]
    """The tensors by name, as `transformers` names them today."""

    def load(self, name: str) -> Float[np.ndarray, "*shape"]:
        """One tensor as float32."""
        return tensor_files.load(name, self.entries[name])

    def sizes(self, record: type[T]) -> T:
        """The keys of config.json that are fields of the dataclass `record`, checked against its annotations (see `options.convert`).

        Raises:
          UserError: a value that does not fit; the message says the file and the key.
        """
        fields = {field.name for field in dataclasses.fields(record)}  # type: ignore[arg-type]
        try:
            return make_options(record, {key: value for key, value in self.config.items() if key in fields}, "")
        except UserError as error:
            raise UserError(f"{self.folder / CONFIG}: {error}") from error


def open_checkpoint(where: str) -> Checkpoint:
    """A checkpoint's files.

    Args:
      where: a folder that holds config.json, and model.safetensors or model.safetensors.index.json with the files it lists; or a Hugging Face
        model id, whose files are then fetched, or found in the local cache. For ResNets as torchvision and timm name them see torchvision.py.

    Raises:
      UserError: no such folder or id, no network, a file missing, truncated or damaged, pickled weights only, or a type that no encoder reads.
    """
    folder = folder_of(where)
    try:
        return _open(folder)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or folder}: {error.strerror or error}; mend its permissions or fetch it again") from error


def model_type(where: str) -> str:
    """config.json's model_type: which encoder reads the checkpoint (its `MODEL_TYPES`). Raises as `open_checkpoint`."""
    return open_checkpoint(where).config["model_type"]


def _open(folder: pathlib.Path) -> Checkpoint:
    found = {_today(name): entry for name, entry in _entries(folder).items()}
    extra = _json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
    foreign = torchvision.recognises(found)
    config = _json(folder / CONFIG) if (folder / CONFIG).is_file() or not foreign else {}
    if foreign and config.get("model_type", torchvision.MODEL_TYPE) == torchvision.MODEL_TYPE:
        extra = extra or torchvision.preprocessor(config)
        config = torchvision.config(folder, {name: entry.shape for name, entry in found.items()})
        found = {torchvision.rename(name): entry for name, entry in found.items()}
    kinds = {kind for name in known("encoder") for kind in getattr(component("encoder", name), "MODEL_TYPES", ())}
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(f"{folder / CONFIG}: model_type is {kind!r}, which no encoder reads; choose a checkpoint of type {', '.join(sorted(kinds))}")
    return Checkpoint(folder, config, extra, found)


def folder_of(where: str) -> pathlib.Path:
    """The folder of what `open_checkpoint` is given, fetched if need be."""
    path = pathlib.Path(where).expanduser()
    try:
        if where and path.is_dir():
            return path
        there = path.exists()
    except (OSError, ValueError):  # a name that no file can have
        there = False
    if there or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", where):
        raise UserError(f"{where!r} is no folder; give the folder that holds {CONFIG} and {WEIGHTS}, or a Hugging Face model id such as 'owner/name'")
    return _fetch(where)


@functools.cache
def _fetch(name: str) -> pathlib.Path:
    mend = f"if there is no network, fetch {CONFIG}, {WEIGHTS} and the preprocessor's or tokeniser's files elsewhere and give the folder they are in"
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"there is no folder {name}, and fetching one needs huggingface_hub (pip install huggingface_hub); {mend}") from error
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except Exception as error:  # its own errors, those of its client and of the system have no common ancestor
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"there is no folder {name}, and no model of that id could be fetched from huggingface.co ({reason}); {mend}") from error


def _entries(folder: pathlib.Path) -> dict[str, tensor_files.Entry]:
    """The tensors of a folder by the names in its files."""
    if (folder / WEIGHTS).is_file():
        return tensor_files.scan(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _sharded(folder)
    pickled = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if pickled:
        how = CONVERT.format(pickled[0], folder / WEIGHTS)
        raise UserError(f"{pickled[0]} is pickled, which is never opened here, and {folder} has no {WEIGHTS}; if you trust it, convert it: {how}")
    raise UserError(f"{folder} has neither {WEIGHTS} nor {INDEX}; put the weights there")


def _sharded(folder: pathlib.Path) -> dict[str, tensor_files.Entry]:
    places = _json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"{folder / INDEX} has no weight_map from tensors to files; fetch it again")
    files = sorted(set(places.values()))
    for file in files:
        plain = {pathlib.PurePosixPath(file).name, pathlib.PureWindowsPath(file).name}
        if plain != {file} or not file.endswith(".safetensors") or not file.isprintable():
            raise UserError(f"{folder / INDEX} names the file {file!r}, expected a .safetensors file beside it; do not use this checkpoint")
    shards = {file: tensor_files.scan(folder / file) for file in files}
    lost = [name for name, file in places.items() if name not in shards[file]]
    if lost:
        raise UserError(f"{folder / places[lost[0]]} lacks tensor {lost[0]!r}, which {INDEX} promises; fetch both again")
    return {name: shards[file][name] for name, file in places.items()}


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no {path.name}; it belongs beside the weights and says their architecture") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({' '.join(str(error).split())}); fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON table of keys and values; fetch it again")
    return content


def _today(name: str) -> str:
    """The name that `transformers` gives to what checkpoints of its early years call otherwise."""
    for old, new in OLD_NAMES:
        name = old.sub(new, name)
    return name
