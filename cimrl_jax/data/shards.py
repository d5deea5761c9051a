"""A long array on disk, written shard by shard so that neither a kill nor a second process nor a full disk leaves behind what would be believed.

<folder>/00000-5b1e2f0a.npy   some rows; after the number the checksum of the whole file
<folder>/index.json           what they are; written last
<folder>/.lock                held by the process that writes
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import pathlib
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from cimrl_jax.errors import UserError
from cimrl_jax.files import write_whole

NAME = re.compile(r"(\d{5,})-([0-9a-f]{8})\.npy")
MEND = "free some space or set data.cache to another folder"


@dataclasses.dataclass(frozen=True)
class Folder:
    """Where the shards of one array lie."""

    path: pathlib.Path
    shape: tuple[int, ...]
    """Of one row."""
    dtype: str
    count: int
    """Rows."""
    size: int
    """Rows of a shard."""

    @property
    def numbers(self) -> range:
        return range(-(-self.count // self.size))

    def rows(self, number: int) -> range:
        return range(number * self.size, min((number + 1) * self.size, self.count))

    def whole(self) -> dict[int, np.memmap]:
        """The shards that are what their names say. Every byte is looked at; nothing is kept in memory."""
        found = {}
        for path in self.path.glob("*.npy"):
            name = NAME.fullmatch(path.name)
            # Another process may take a damaged one away meanwhile.
            with contextlib.suppress(OSError, ValueError):
                if name and int(name[1]) in self.numbers and _checksum(path) == name[2]:
                    values = np.load(path, mmap_mode="r", allow_pickle=False)
                    if values.shape == (len(self.rows(int(name[1]))), *self.shape) and values.dtype == self.dtype:
                        found[int(name[1])] = values
        return found

    def fill(
        self,
        make: Callable[[Int[np.ndarray, " b"]], np.ndarray],
        *,
        step: int,
        about: Mapping[str, Any],
        progress: Callable[[int, int], Any],
        say: Callable[[str], Any],
    ) -> tuple[np.memmap, ...]:
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
            with _locked(self.path, say):
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
                with _writing(self.path):
                    write_whole(index, json.dumps({**about, "count": self.count, "shards": names}, indent=1) + "\n")
        return tuple(found[number] for number in self.numbers)

    def _write(self, number: int, values: np.ndarray) -> np.memmap:
        content = io.BytesIO()
        np.save(content, values, allow_pickle=False)
        path = self.path / f"{number:05d}-{zlib.crc32(content.getbuffer()):08x}.npy"
        with _writing(self.path):
            write_whole(path, content.getvalue())
            return np.load(path, mmap_mode="r", allow_pickle=False)

    def _clean(self, found: Mapping[int, np.memmap]) -> None:
        """Away with damaged shards and with what a killed process was writing: only called by who holds the lock."""
        keep = {_name(values) for values in found.values()} | {".lock", "index.json"}
        with _writing(self.path):
            for path in self.path.iterdir():
                if path.name not in keep:
                    path.unlink()

    def _expect_room(self, rows: int) -> None:
        needed, free = rows * int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize, shutil.disk_usage(self.path).free
        if needed > free:
            raise UserError(f"no room for features in {self.path}: {needed / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB are free; {MEND}")


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
    """Whatever the system refuses is a `UserError` in the words of this place."""
    try:
        yield
    except (OSError, UserError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        what = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
        raise UserError(f"cannot write features to {folder}: {what}; {MEND}") from error


@contextlib.contextmanager
def _locked(folder: pathlib.Path, say: Callable[[str], Any]) -> Iterator[None]:
    import fcntl

    with contextlib.ExitStack() as held:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context((folder / ".lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process computes the features in {folder}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _name(values: np.memmap) -> str:
    return pathlib.Path(str(values.filename)).name


def _checksum(path: pathlib.Path) -> str:
    found = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found = zlib.crc32(part, found)
    return f"{found:08x}"
