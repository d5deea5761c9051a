"""A long array on disk, written shard by shard so that neither a kill nor a second process nor a full disk leaves behind what would be believed.

<folder>/00000-5b1e2f0a.npy   some rows; after the number the checksum of the whole file (`data/records.py` writes another kind of file)
<folder>/index.json           what they are; written last
<folder>/.lock                held by the process that writes
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import io
import json
import pathlib
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Bool, Int, Shaped

from cimrl_jax.data import pipeline
from cimrl_jax.errors import UserError
from cimrl_jax.files import write_whole

NAME = re.compile(r"(\d{5,})-([0-9a-f]{8})\.[a-z]+")
MEND = "free some space or set data.cache to another folder"
COPIED = 4096
"""Bytes from which a row is quicker copied by itself than gathered with others and then put in its place."""


class Shard(Protocol):
    """Some rows of an array, in a file."""

    @property
    def filename(self) -> Any: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> np.ndarray: ...


def gather(shards: Sequence[Shard], rows: Int[np.ndarray, " b"]) -> Shaped[np.ndarray, "b ..."]:
    """Rows counted through shards, of which all but the last have as many rows as the first."""
    number, place = np.divmod(rows, len(shards[0]))
    found = np.empty((len(rows), *shards[0].shape[1:]), shards[0].dtype)
    for own in np.unique(number):
        there = np.flatnonzero(number == own)
        if isinstance(shards[own], np.memmap) and found[:1].nbytes >= COPIED:
            values = np.asarray(shards[own])
            for row in there:
                found[row] = values[place[row]]
        else:
            found[there] = shards[own][place[there]]
    return found


@dataclasses.dataclass(frozen=True)
class Column:
    """One modality of one split, on disk."""

    shards: tuple[Shard, ...]
    """Of all splits; all but the last have as many rows as the first."""
    rows: Int[np.ndarray, " n"]
    """Where each example of the split stands in them."""
    present: Bool[np.ndarray, " n"]

    @property
    def nbytes(self) -> int:
        """In memory."""
        return len(self.rows) * int(np.prod(self.shards[0].shape[1:])) * self.shards[0].dtype.itemsize

    def __getitem__(self, rows: Int[np.ndarray, " b"]) -> Shaped[np.ndarray, "b ..."]:
        return gather(self.shards, self.rows[rows])


@dataclasses.dataclass(frozen=True)
class Folder:
    """Where the shards of one array lie."""

    suffix: ClassVar[str] = "npy"

    path: pathlib.Path
    shape: tuple[int, ...]
    """Of one row."""
    dtype: str
    count: int
    """Rows."""
    size: int
    """Rows of a shard."""
    what: str = "features"
    """What is kept, for messages."""
    mend: str = MEND
    """What to do where it cannot be, for messages."""

    @property
    def numbers(self) -> range:
        return range(-(-self.count // self.size))

    def rows(self, number: int) -> range:
        return range(number * self.size, min((number + 1) * self.size, self.count))

    @property
    def row_bytes(self) -> int:
        """Of a row on disk, about."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def whole(self) -> dict[int, Shard]:
        """The shards that are what their names say. Every byte is looked at; nothing is kept in memory."""

        def open_sound(path: pathlib.Path) -> tuple[int, Shard] | None:
            name = NAME.fullmatch(path.name)
            # Another process may take a damaged one away meanwhile.
            with contextlib.suppress(OSError, ValueError):
                if name and int(name[1]) in self.numbers and checksum(path) == name[2]:
                    found = self._open(path)
                    if found.shape == (len(self.rows(int(name[1]))), *self.shape) and found.dtype == self.dtype:
                        return int(name[1]), found
            return None

        with concurrent.futures.ThreadPoolExecutor(pipeline.cores()) as pool:
            return dict(own for own in pool.map(open_sound, sorted(self.path.glob(f"*.{self.suffix}"))) if own)

    def fill(
        self,
        make: Callable[[Int[np.ndarray, " b"]], np.ndarray],
        *,
        step: int,
        about: Mapping[str, Any],
        progress: Callable[[int, int], Any],
        say: Callable[[str], Any],
    ) -> tuple[Shard, ...]:
        """All shards; those that are missing or damaged are written, from what `make` gives for up to `step` rows at a time.

        Args:
          about: what index.json tells people.
          progress: called with (rows that are there, all of them).
          say: called with a line of text if another process must be waited for.

        Raises:
          UserError: the folder cannot be written, or there is no room.
        """
        index = self.path / "index.json"
        found = self.whole() if index.exists() else {}  # without the lock: what is complete may lie where nothing can be written
        if len(found) < len(self.numbers):
            with _locked(self, say):
                found = self.whole()
                self._clean(found)
                missing = [number for number in self.numbers if number not in found]
                self._expect_room(sum(len(self.rows(number)) for number in missing))
                done = sum(map(len, found.values()))
                progress(done, self.count)
                for number in missing:
                    values = np.empty((len(self.rows(number)), *self.shape), self.dtype)
                    for start in range(0, len(values), step):
                        part = values[start : start + step]
                        part[:] = make(self.rows(number)[0] + start + np.arange(len(part)))
                        done += len(part)
                        progress(done, self.count)
                    found[number] = self._write(number, values)
                names = [_name(found[number]) for number in self.numbers]
                with self.writing():
                    write_whole(index, json.dumps({**about, "count": self.count, "shards": names}, indent=1) + "\n")
        return tuple(found[number] for number in self.numbers)

    def writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(self.what, self.path, self.mend)

    def _open(self, path: pathlib.Path) -> Shard:
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def _write(self, number: int, values: np.ndarray) -> Shard:
        content = io.BytesIO()
        np.save(content, values, allow_pickle=False)
        path = self.path / f"{number:05d}-{zlib.crc32(content.getbuffer()):08x}.npy"
        with self.writing():
            write_whole(path, content.getvalue())
            return self._open(path)

    def _clean(self, found: Mapping[int, Shard]) -> None:
        """Away with damaged shards and with what a killed process was writing: only called by who holds the lock."""
        keep = {_name(values) for values in found.values()} | {".lock", "index.json"}
        with self.writing():
            for path in self.path.iterdir():
                if path.name not in keep:
                    path.unlink()

    def _expect_room(self, rows: int) -> None:
        needed, free = rows * self.row_bytes, shutil.disk_usage(self.path).free
        if needed > free:
            raise UserError(f"no room for {self.what} in {self.path}: {needed / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB are free; {self.mend}")


@contextlib.contextmanager
def writing(what: str, where: pathlib.Path, mend: str) -> Iterator[None]:
    """Whatever the system refuses is a `UserError` in the words of this place."""
    try:
        yield
    except (OSError, UserError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        told = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
        raise UserError(f"cannot write {what} to {where}: {told}; {mend}") from error


@contextlib.contextmanager
def _locked(folder: Folder, say: Callable[[str], Any]) -> Iterator[None]:
    import fcntl

    with contextlib.ExitStack() as held:
        with folder.writing():
            folder.path.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context((folder.path / ".lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process makes the {folder.what} in {folder.path}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _name(values: Shard) -> str:
    return pathlib.Path(str(values.filename)).name


def checksum(path: pathlib.Path) -> str:
    """Of a file, as it stands in its name: CRC-32, eight hex digits."""
    found = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found = zlib.crc32(part, found)
    return f"{found:08x}"
