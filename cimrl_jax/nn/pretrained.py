"""Hugging Face directories (config.json + safetensors) to Flax parameters and back, without torch. Nothing is ever unpickled."""

from __future__ import annotations

import collections
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Float

from cimrl_jax.errors import UserError
from cimrl_jax.files import write_whole
from cimrl_jax.nn import tensor_files
from cimrl_jax.nn.model_folder import CONFIG, PREPROCESSOR, WEIGHTS, Checkpoint, model_type, open_checkpoint
from cimrl_jax.nn.tuning import stacked

if TYPE_CHECKING:
    from cimrl_jax.nn.encoders.base import Pretrained

__all__ = ["Checkpoint", "Tensor", "export", "model_type", "open_checkpoint", "read", "unused"]

Path = tuple[str, ...]
BESIDE = (
    PREPROCESSOR,
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt"),
)
"""What an exported model needs besides its weights: the files that prepare its inputs."""
EPS = 1e-5
"""Of every batch norm, in torch as in `transformers`."""


class Tensor(NamedTuple):
    """How one parameter stands in a checkpoint's files."""

    path: tuple[str, ...]
    """Below "backbone". A parameter of a segment (tuning.py) is stacked `[blocks, ...]`, no other is."""
    names: tuple[str, ...]
    """Of the tensors in the files: one, or one for each block of a stacked parameter. Without the prefix of the base model ("vit.", "bert.")."""
    form: Literal["same", "transposed", "patches", "convolution", "scale", "shift"]
    """same; torch linear [out, in] -> kernel [in, out]; torch convolution [out, in, h, w] -> [h * w * in, out] (rows, columns, channels: the order of
    a slot's pixels), or -> [h, w, in, out]; batch norm, by the name that its weight, bias, running_mean and running_var begin with, -> what its
    frozen statistics and its weights come to together: a factor per channel, and what is added after it."""


def read(checkpoint: Checkpoint, tensors: Sequence[Tensor], shapes: Mapping[Path, tuple[int, ...]]) -> dict[Path, Float[np.ndarray, "*shape"]]:
    """The parameters that a checkpoint holds.

    Args:
      shapes: of all parameters under "backbone" by path. LoRA's (named lora_...) are in no checkpoint: they are left out.

    Raises:
      UserError: tensors missing, of another shape, or not finite; all of them in one line.
    """
    strange = {path for path in shapes if not path[-1].startswith("lora_")} ^ {tensor.path for tensor in tensors}
    if strange:
        raise ValueError(f"an encoder's parameters and its `tensors` differ in {sorted(strange)}")
    prefix = _prefix(checkpoint, tensors)
    names = {tensor: [[prefix + name for name in _sources(tensor, name)] for name in tensor.names] for tensor in tensors}
    missing = [name for group in names.values() for sources in group for name in sources if name not in checkpoint.entries]
    if missing:
        total = sum(len(sources) for group in names.values() for sources in group)
        raise UserError(f"{checkpoint.folder} lacks {len(set(missing))} of the {total} tensors that it should have: {_some(missing)}")
    wrong = []
    for tensor in tensors:
        whole = shapes[tensor.path]
        if stacked(tensor.path) and whole[0] != len(tensor.names) or not stacked(tensor.path) and len(tensor.names) != 1:
            raise ValueError(f"parameter {tensor.path} of shape {whole} cannot be made of {len(tensor.names)} tensors")
        for name in (name for sources in names[tensor] for name in sources):
            own, wanted = checkpoint.entries[name].shape, whole[1:] if stacked(tensor.path) else whole
            if _shape(tensor.form, own) != wanted:
                wrong.append(f"{name} is {list(own)}, expected {_expected(tensor.form, own, wanted)}")
    if wrong:
        raise UserError(f"{checkpoint.folder}: {_some(wrong, '; ')}; its config.json or the encoder's options tell of another architecture")
    found = {}
    for tensor in tensors:
        parts = [_inward(tensor.form, [checkpoint.load(name) for name in sources]) for sources in names[tensor]]
        for sources, part in zip(names[tensor], parts, strict=True):
            if not np.isfinite(part).all():
                raise UserError(f"{checkpoint.folder}: tensor {sources[0]!r} holds numbers that are not finite; fetch it again")
        found[tensor.path] = np.stack(parts) if stacked(tensor.path) else parts[0]
    return found


def unused(checkpoint: Checkpoint, tensors: Sequence[Tensor]) -> tuple[str, ...]:
    """The tensors in the files that become no parameter, such as a pooler or a classifier; counters and tables of indices are not named."""
    prefix = _prefix(checkpoint, tensors)
    used = {prefix + source for tensor in tensors for name in tensor.names for source in _sources(tensor, name)}
    return tuple(sorted(name for name, entry in checkpoint.entries.items() if name not in used and entry.dtype != "I64"))


def export(folder: str | pathlib.Path, params: Mapping[str, Any], encoder: Pretrained) -> None:
    """Writes an encoder's backbone as a folder that `transformers` and `open_checkpoint` read. LoRA stands merged into the kernels; the files that
    prepare inputs (tokeniser, preprocessor) are copied from the checkpoint that the encoder started from, if it did.

    An old config.json goes first and the new one comes last: a folder that can be loaded is whole.

    Args:
      params: the tree under "backbone", of one member.

    Raises:
      UserError: the folder cannot be written, or is the one that the weights came from, or that one is gone.
    """
    from cimrl_jax.nn.backbone import merge  # it builds on this module's records

    folder = pathlib.Path(folder).expanduser()
    origin = open_checkpoint(encoder.tuning.pretrained) if encoder.tuning.pretrained else None
    if origin is not None and folder.resolve() == origin.folder.resolve():
        raise UserError(f"{folder} is the checkpoint that the model started from; export to another folder")
    leaves = flatten_dict(merge(params, encoder.tuning))
    found: dict[str, np.ndarray] = {}
    for tensor in encoder.tensors():
        leaf = np.asarray(leaves.pop(tensor.path), np.float32)
        for name, part in zip(tensor.names, leaf if stacked(tensor.path) else [leaf], strict=True):
            found |= _outward(tensor, name, part, encoder)
    if leaves:
        raise ValueError(f"an encoder's `tensors` lack its parameters {sorted(leaves)}")
    try:
        (folder / CONFIG).unlink(missing_ok=True)
        extra = {name: (origin.folder / name).read_bytes() for name in BESIDE if (origin.folder / name).is_file()} if origin else {}
    except OSError as error:
        raise UserError(f"cannot export to {folder}: {error}; choose another folder") from error
    if origin is not None and origin.preprocessor:  # timm keeps it in config.json
        extra.setdefault(PREPROCESSOR, json.dumps(origin.preprocessor, indent=2).encode())
    tensor_files.write(folder / WEIGHTS, found)
    for name, content in extra.items():
        write_whole(folder / name, content)
    write_whole(folder / CONFIG, json.dumps(encoder.architecture(), indent=2) + "\n")


def _prefix(checkpoint: Checkpoint, tensors: Sequence[Tensor]) -> str:
    """What the files put before the names: the beginning under which most of the wanted tensors are found."""
    wanted = {source for tensor in tensors for name in tensor.names for source in _sources(tensor, name)}
    found: collections.Counter[str] = collections.Counter({"": 0})
    for name in checkpoint.entries:
        parts = name.split(".")
        found.update(name.removesuffix(rest) for rest in (".".join(parts[i:]) for i in range(len(parts))) if rest in wanted)
    return max(found, key=lambda prefix: (found[prefix], -len(prefix)))


def _sources(tensor: Tensor, name: str) -> tuple[str, ...]:
    norm = {"scale": ("weight", "running_var"), "shift": ("weight", "running_var", "bias", "running_mean")}
    return tuple(f"{name}.{part}" for part in norm[tensor.form]) if tensor.form in norm else (name,)


def _shape(form: str, own: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that a tensor's `own` becomes; None: it cannot be put into this form."""
    rank = {"same": len(own), "transposed": 2, "patches": 4, "convolution": 4, "scale": 1, "shift": 1}[form]
    if len(own) != rank:
        return None
    match form:
        case "transposed":
            return own[::-1]
        case "patches":
            return (math.prod(own[1:]), own[0])
        case "convolution":
            return (own[2], own[3], own[1], own[0])
    return own


def _expected(form: str, own: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """What shape a tensor in the file should have had, to become one of shape `wanted`."""
    match form:
        case "transposed":
            return str(list(wanted[::-1]))
        case "patches":
            return f"[{wanted[1]}, ...] of {math.prod(wanted)} numbers"
        case "convolution":
            return str([wanted[3], wanted[2], *wanted[:2]])
    return str(list(wanted))


def _inward(form: str, parts: Sequence[np.ndarray]) -> np.ndarray:
    match form:
        case "transposed":
            return parts[0].T
        case "patches":
            return parts[0].transpose(2, 3, 1, 0).reshape(-1, len(parts[0]))
        case "convolution":
            return parts[0].transpose(2, 3, 1, 0)
        case "scale" | "shift":
            weight, variance, *more = (part.astype(np.float64) for part in parts)
            with np.errstate(invalid="ignore", divide="ignore"):  # a damaged variance: what comes of it is not finite, and refused
                factor = weight / np.sqrt(variance + EPS)
            return (more[0] - more[1] * factor if more else factor).astype(np.float32)
    return parts[0]


def _outward(tensor: Tensor, name: str, leaf: np.ndarray, encoder: Pretrained) -> dict[str, np.ndarray]:
    """The inverse of `_inward`, by the names of the files."""
    match tensor.form:
        case "transposed":
            return {name: leaf.T}
        case "patches":
            channels = encoder.slot_spec().element
            side = math.isqrt(len(leaf) // channels)
            return {name: leaf.reshape(side, side, channels, -1).transpose(3, 2, 0, 1)}
        case "convolution":
            return {name: leaf.transpose(3, 2, 0, 1)}
        case "scale":
            # The variance that a norm's eps makes 1: nothing is lost on the way back.
            own = {"weight": leaf, "running_var": np.full_like(leaf, 1 - EPS), "num_batches_tracked": np.zeros((), np.int64)}
        case "shift":
            own = {"bias": leaf, "running_mean": np.zeros_like(leaf)}
        case _:
            return {name: leaf}
    return {f"{name}.{part}": value for part, value in own.items()}


def _some(items: Sequence[str], between: str = ", ") -> str:
    items = list(dict.fromkeys(items))
    return between.join(items[:4]) + (f" and {len(items) - 4} more" if len(items) > 4 else "")
