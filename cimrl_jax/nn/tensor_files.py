"""Files in the safetensors format, read and written without its package, whose numpy loader knows no bfloat16.

A file is 8 bytes (the header's length, little endian), the header (JSON: for each tensor its type, shape and place) and the tensors' bytes, one after
the other without gaps. Nothing in it can be executed. Source: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from jaxtyping import Float

from cimrl_jax.errors import UserError
from cimrl_jax.files import write_whole

FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
BITS = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "F16": 16,
    "BF16": 16,
    "I16": 16,
    "U16": 16,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
}
WRITTEN = {"float32": "F32", "int64": "I64"}
LONGEST_HEADER = 100_000_000


class Entry(NamedTuple):
    """Where a tensor's bytes are."""

    file: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def scan(path: pathlib.Path) -> dict[str, Entry]:
    """The tensors of a file by name; reads its header alone.

    Raises:
      UserError: the file is missing, truncated or damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            lead = file.read(8)
            length = struct.unpack("<Q", lead)[0] if len(lead) == 8 else size
            if length > min(size - 8, LONGEST_HEADER):
                raise _damaged(
                    path, f"its header would be longer than its {size} bytes" if length <= LONGEST_HEADER else "its first 8 bytes are no length"
                )
            header = json.loads(file.read(length).decode(), object_pairs_hook=_once)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; fetch it again") from error
    except (ValueError, RecursionError) as error:  # neither UTF-8 nor JSON, or nested without end
        raise _damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no table of tensors")
    found = {name: _entry(path, name, value, 8 + length) for name, value in header.items() if name != "__metadata__"}
    at = 8 + length
    for name, entry in sorted(found.items(), key=lambda item: item[1][3:]):
        if entry.start != at:
            raise _damaged(path, f"tensor {name!r} begins at byte {entry.start}, where {at} was expected")
        at = entry.stop
    if at != size:
        raise _damaged(path, f"it has {size} bytes, where its header says {at}")
    return found


def load(name: str, entry: Entry) -> Float[np.ndarray, "*shape"]:
    """The tensor as float32, whatever float type it is kept in.

    Raises:
      UserError: it holds no floats (a quantised checkpoint), or the file has changed since it was scanned.
    """
    if entry.dtype not in FLOATS:
        raise UserError(
            f"{entry.file}: tensor {name!r} is of type {entry.dtype}, expected one of {', '.join(FLOATS)}; use a checkpoint that is not quantised"
        )
    try:
        with entry.file.open("rb") as file:
            file.seek(entry.start)
            data = file.read(entry.stop - entry.start)
    except OSError as error:
        raise UserError(f"cannot read {entry.file}: {error.strerror or error}; fetch it again") from error
    if len(data) != entry.stop - entry.start:
        raise _damaged(entry.file, f"tensor {name!r} ends too early")
    values = np.frombuffer(data, FLOATS[entry.dtype]).reshape(entry.shape)
    if entry.dtype == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # a float64 that is too large becomes infinite, and is refused as such
        return values.astype(np.float32)


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes float32 and int64 tensors, whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, at = [], 0
    for name, values in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):  # the widest first keeps all of them aligned
        parts.append(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())
        header[name] = {"dtype": WRITTEN[values.dtype.name], "shape": values.shape, "data_offsets": (at, at + len(parts[-1]))}
        at += len(parts[-1])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_whole(path, b"".join([struct.pack("<Q", len(text)), text, *parts]))


def _entry(path: pathlib.Path, name: str, value: Any, base: int) -> Entry:
    dtype, shape, place = (value.get(key) if isinstance(value, dict) else None for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(dtype, str) and _naturals(shape) and _naturals(place) and len(place) == 2):
        raise _damaged(path, f"its header has no type, shape and place of tensor {name!r}")
    start, stop = place
    if start > stop or dtype in BITS and (stop - start) * 8 != math.prod(shape) * BITS[dtype]:
        raise _damaged(path, f"tensor {name!r} of shape {shape} and type {dtype} lies at bytes {start} to {stop}")
    return Entry(path, dtype, tuple(shape), base + start, base + stop)


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is given twice")
    return table


def _damaged(path: pathlib.Path, how: str) -> UserError:
    return UserError(f"{path} is truncated or damaged: {how}; fetch it again")
