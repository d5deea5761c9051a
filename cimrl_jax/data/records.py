"""Shards of an array as ArrayRecord files (github.com/google/array_record): a record is a row, its bytes as they are or a picture as JPEG."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from cimrl_jax.data import pictures
from cimrl_jax.data.columns import in_parallel
from cimrl_jax.data.shards import Folder, checksum
from cimrl_jax.errors import UserError

QUALITY = 95
"""Of JPEG; no chroma subsampling."""
WRITER = "group_size:1,uncompressed,max_parallelism:1"
"""One record a chunk, for random access; always the same bytes."""
READER = "readahead_buffer_size:0"
Picture = Literal["raw", "jpeg"]


@dataclasses.dataclass(frozen=True)
class RecordShard:
    """Some rows, in one file."""

    filename: pathlib.Path
    row_shape: tuple[int, ...]
    dtype: np.dtype
    picture: Picture

    def __len__(self) -> int:
        return self._reader.num_records()

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), *self.row_shape

    @functools.cached_property
    def _reader(self) -> Any:
        return library().ArrayRecordReader(str(self.filename), READER)

    def __getitem__(self, rows: Int[np.ndarray, " b"]) -> Shaped[np.ndarray, "b ..."]:
        try:
            contents = self._reader.read(rows.tolist()) if len(rows) else []
        except RuntimeError as error:
            raise UserError(f"cannot read {self.filename} ({error}); run `prepare` again, it makes anew what is damaged") from error
        found = np.empty((len(rows), *self.row_shape), self.dtype)
        for values, content in zip(found, contents, strict=True):
            values[...] = self._row(content)
        return found

    def _row(self, content: bytes) -> np.ndarray:
        if self.picture == "raw":
            return np.frombuffer(content, self.dtype).reshape(self.row_shape)
        height, width, channels = self.row_shape
        return pictures.decode(content, height=height, width=width, channels=channels, where=str(self.filename))


@dataclasses.dataclass(frozen=True)
class Records(Folder):
    """Where the record files of one array lie."""

    suffix: ClassVar[str] = "arrayrecord"

    picture: Picture = "raw"
    """How a row is written. jpeg is for uint8 `[h, w, 1 or 3]` and loses detail."""

    @property
    def row_bytes(self) -> int:
        return super().row_bytes // (1 if self.picture == "raw" else 2)  # of a photograph a quarter, of noise half

    def _open(self, path: pathlib.Path) -> RecordShard:
        try:
            found = RecordShard(path, self.shape, np.dtype(self.dtype), self.picture)
            len(found)
            return found
        except RuntimeError as error:
            raise ValueError(str(error)) from error

    def _write(self, number: int, values: np.ndarray) -> RecordShard:
        module, temporary = library(), None
        contents: Sequence[bytes] = [own.tobytes() for own in values] if self.picture == "raw" else list(in_parallel(_encode, values))
        with self.writing():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(dir=self.path, prefix=f".{number:05d}.", delete=False) as file:
                    temporary = pathlib.Path(file.name)
                writer = module.ArrayRecordWriter(str(temporary), WRITER)
                for content in contents:
                    writer.write(content)
                writer.close()
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                temporary.chmod(0o644)
                return self._open(temporary.rename(self.path / f"{number:05d}-{checksum(temporary)}.{self.suffix}"))
            except RuntimeError as error:  # the library's word for whatever the system refuses
                raise OSError(0, " ".join(str(error).split(";")[0].split())) from error
            finally:
                if temporary is not None:
                    temporary.unlink(missing_ok=True)


def library() -> Any:
    try:
        from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise UserError(
            "ArrayRecord files need array_record, which is not installed; run: pip install array-record, or prepare --form map"
        ) from error
    return array_record_module


def _encode(values: UInt8[np.ndarray, "h w c"]) -> bytes:
    grey = values.shape[-1] == 1
    try:
        import simplejpeg

        if grey:
            return simplejpeg.encode_jpeg(np.ascontiguousarray(values), quality=QUALITY, colorspace="GRAY", colorsubsampling="Gray")
        return simplejpeg.encode_jpeg(np.ascontiguousarray(values), quality=QUALITY, colorspace="RGB", colorsubsampling="444")
    except ImportError:
        from PIL import Image

        content = io.BytesIO()
        Image.fromarray(values[..., 0] if grey else values).save(content, "JPEG", quality=QUALITY, subsampling=0)
        return content.getvalue()
