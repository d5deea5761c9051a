"""A whole data set as a folder of fast arrays: decoded, cut into words and resized once, and read back exactly as it was.

<folder>/made_of.json   what it is made of: written first; a folder that is half made has only this
<folder>/dataset.json   everything but the rows: written last
<folder>/examples/      of every example of every split: label, group, and where in the other arrays its parts are
<folder>/inputs.image/  the distinct rows of a modality, and likewise of its regions (cause.image, one bit an element): see `data/shards.py`
                        and `data/records.py`

The names of an array's files hold their checksums: damage is found when the folder is opened, and `write` mends it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped

import cimrl_jax
from cimrl_jax.data import distinct, pipeline, records, shards
from cimrl_jax.data.columns import in_parallel
from cimrl_jax.data.manifest import DATASET, KIND, LAYOUT, MADE_OF, MEND, Array, Form, Manifest, claim, fitting, load, made_of
from cimrl_jax.data.source import Answers, Dataset, Mask, Records, Regions, Source
from cimrl_jax.errors import UserError
from cimrl_jax.files import write_whole
from cimrl_jax.options import field_types
from cimrl_jax.types import Expected

SHARD_BYTES = 64 << 20
"""Of a shard, about: what a kill costs."""
SHARDS = 512
"""At most, of one array: open files are few, so shards are larger where there is more."""
HELD_BYTES = 2 << 30
"""A split up to this size may be held in memory."""
AT_ONCE = 16
"""Rows that a thread reads at a time."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The source of a split."""

    label: Int[np.ndarray, " n"]
    group: Int[np.ndarray, " n"]
    columns: Mapping[str, shards.Column]
    regions: Regions | None
    held: int
    """`arrays` holds the inputs in memory if they have at most so many bytes."""

    def __len__(self) -> int:
        return len(self.label)

    @property
    def arrays(self) -> Records | None:
        return self._everything

    @functools.cached_property
    def _everything(self) -> Records | None:
        if sum(column.nbytes for column in self.columns.values()) > self.held:
            return None
        found = {m: np.empty((len(self), *column.shards[0].shape[1:]), column.shards[0].dtype) for m, column in self.columns.items()}

        def fill(start: int) -> None:
            rows = np.arange(start, min(start + distinct.READ, len(self)))
            for m, column in self.columns.items():
                found[m][rows] = column[rows]

        for _ in in_parallel(fill, range(0, len(self), distinct.READ)):
            pass
        return {"inputs": found, "present": {m: column.present for m, column in self.columns.items()}}

    def load(self, rows: Int[np.ndarray, " b"]) -> Records:
        return {
            "inputs": {m: column[rows] for m, column in self.columns.items()},
            "present": {m: column.present[rows] for m, column in self.columns.items()},
        }


@dataclasses.dataclass(frozen=True)
class Packed:
    """A region, one bit an element: a `source.Mask`."""

    files: tuple[shards.Shard, ...]
    rows: Int[np.ndarray, " n"]
    row_shape: tuple[int, ...]
    dtype: np.dtype = np.dtype(bool)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.rows), *self.row_shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> Bool[np.ndarray, "..."]:
        places = self.rows[rows]
        bits = shards.gather(self.files, places.reshape(-1))
        return np.unpackbits(bits, axis=1, count=int(np.prod(self.row_shape))).view(bool).reshape(*places.shape, *self.row_shape)


def write(
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    form: Form = "map",
    picture: records.Picture = "raw",
    about: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], Any] | None = None,
    say: Callable[[str], Any] | None = None,
) -> None:
    """The data set in a folder, for `read`. What is there and whole is left as it is: a second start goes on where the first was.

    Args:
      form: pictures as memory maps, or as ArrayRecord files; everything else is always mapped.
      picture: raw bytes, or (in records) JPEG of quality 95, which is smaller, loses detail, and is decoded again and again.
      about: see `made_of`.
      progress: called with (name of an array, distinct rows that are there, all of them).
      say: called with a line of text if another process must be waited for; if None, it goes to standard error.

    Raises:
      UserError: JPEG where it cannot be, a folder that cannot be written or holds something else, no room.
    """
    wanted = made_of(about or {}, form=form, picture=picture)
    claim(folder, wanted)
    parts = {part.name: part for part in _parts(dataset)}
    labels = [np.concatenate([getattr(source, what) for source in dataset.splits.values()]) for what in ("label", "group")]
    present = [part.present for part in parts.values() if part.name.startswith("inputs.")]
    examples = np.stack([*labels, *present, *(part.places for part in parts.values())], axis=1).astype(np.int64)
    sizes = json.dumps({name: len(source) for name, source in dataset.splits.items()}).encode()
    told = [sizes, examples.tobytes(), *(f"{part.name} {part.digest} ".encode() for part in parts.values())]
    wanted["rows"] = hashlib.sha256(b"".join(told)).hexdigest()
    if not claim(folder, wanted):
        _write(folder, MADE_OF, wanted)
    arrays = {"examples": Array(examples.shape[1:], "int64", len(examples), _shard_rows(examples[:1], len(examples)))}
    makers: dict[str, Callable[[Int[np.ndarray, " b"]], np.ndarray]] = {"examples": lambda rows: examples[rows]}
    if dataset.answers:
        answers = _answers(dataset)
        arrays["answers"] = Array(answers.shape[1:], "int64", len(answers), _shard_rows(answers[:1], len(answers)))
        makers["answers"] = lambda rows: answers[rows]
    for name, part in parts.items():
        makers[name], row = part.make, part.make(np.zeros(1, int))
        is_picture = name.startswith("inputs.") and dataset.features[name.removeprefix("inputs.")].kind == "image"
        kept: dict[str, Any] = {"form": form, "picture": picture} if is_picture else {}
        arrays[name] = Array(row.shape[1:], str(row.dtype), len(part.first), _shard_rows(row, len(part.first)), **kept)
    for name, array in arrays.items():
        array.folder(folder, name).fill(
            makers[name],
            step=AT_ONCE * 4 * pipeline.cores(),
            about={"array": name, **dataclasses.asdict(array)},
            progress=functools.partial(progress or (lambda name, done, total: None), name),
            say=say or functools.partial(print, file=sys.stderr, flush=True),
        )
    own = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(Dataset) if field.name in field_types(Manifest)}
    manifest = Manifest(
        **own
        | {
            "kind": KIND,
            "layout": LAYOUT,
            "splits": {name: len(source) for name, source in dataset.splits.items()},
            "masks": {name: {key: mask.shape[1:] for key, mask in _masks(source).items()} for name, source in dataset.splits.items()},
            "arrays": arrays,
            "answers_of": {name: {"left_out": own.left_out.tolist(), "kinds": own.kinds} for name, own in dataset.answers.items()},
            "keys": {name: tuple(keys.tolist()) for name, keys in dataset.keys.items()},
            "made_of": wanted,
            "versions": {"cimrl_jax": cimrl_jax.__version__, "numpy": np.__version__},
        }
    )
    _write(folder, DATASET, dataclasses.asdict(manifest))


def _write(folder: pathlib.Path, name: str, content: Mapping[str, Any]) -> None:
    with shards.writing("the data set", folder, MEND):
        write_whole(folder / name, json.dumps(content, indent=1) + "\n")


@dataclasses.dataclass(frozen=True)
class _Part:
    """What becomes an array."""

    name: str
    loads: list[distinct.Load]
    ends: Int[np.ndarray, " s"]
    first: Int[np.ndarray, " k"]
    """Of each distinct row the first place where it is, counted through all splits."""
    places: Int[np.ndarray, " n"]
    """Of each example of all splits its row among these, -1 in splits that have no such part."""
    present: Bool[np.ndarray, " n"]
    digest: str
    """Of all rows."""

    def make(self, numbers: Int[np.ndarray, " b"]) -> Shaped[np.ndarray, "b ..."]:
        cuts = [numbers[start : start + AT_ONCE] for start in range(0, len(numbers), AT_ONCE)]
        return np.concatenate(list(in_parallel(lambda own: distinct.read(self.loads, self.first[own], self.ends)[0], cuts)))


def _parts(dataset: Dataset) -> Iterator[_Part]:
    lengths = [len(source) for source in dataset.splits.values()]
    for m in dataset.features:
        loads = [distinct.loader(source, m) for source in dataset.splits.values()]
        known = [_digests(source, m, load) for source, load in zip(dataset.splits.values(), loads, strict=True)]
        yield _part(f"inputs.{m}", loads, known, lengths)
    masks = [_masks(source) for source in dataset.splits.values()]
    for name in sorted({name for own in masks for name in own}):
        loads = [functools.partial(_packed, own.get(name)) for own in masks]
        counts = [length if name in own else 0 for own, length in zip(masks, lengths, strict=True)]
        known = [distinct.digests(load, count, absent_alike=False) for load, count in zip(loads, counts, strict=True)]
        yield _part(name, loads, known, lengths)


def _part(name: str, loads: list[distinct.Load], known: list[tuple[np.ndarray, np.ndarray]], lengths: list[int]) -> _Part:
    keys = np.concatenate([own for own, _ in known])
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)  # as they come, so that the rows of a split lie together
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    ends = np.cumsum([len(own) for own, _ in known])
    counted = np.split(rank[inverse], ends[:-1])
    places = [own if len(own) == length else np.full(length, -1) for own, length in zip(counted, lengths, strict=True)]
    present = np.concatenate([own for _, own in known])
    return _Part(name, loads, ends, first[order], np.concatenate(places), present, hashlib.sha256(keys.tobytes()).hexdigest())


def _digests(source: Source, modality: str, load: distinct.Load) -> tuple[Shaped[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    keys = source.keys(modality) if isinstance(source, distinct.Keyed) else None
    return keys or distinct.digests(load, len(source), absent_alike=False)


def _answers(dataset: Dataset) -> Int[np.ndarray, "n most"]:
    """Of every example of every split the kind of its answers and what they are, filled up with -1."""
    most = max(own.classes.shape[1] for own in dataset.answers.values())
    found = []
    for name, source in dataset.splits.items():
        table = np.full((len(source), 1 + most), -1)
        if name in dataset.answers:
            own = dataset.answers[name]
            table[:, 0], table[:, 1 : 1 + own.classes.shape[1]] = own.kind, own.classes
        found.append(table)
    return np.concatenate(found).astype(np.int64)


def _masks(source: Source) -> dict[str, Mask]:
    return {f"{target}.{m}": mask for target, masks in (source.regions or {}).items() for m, mask in masks.items()}


def _packed(mask: Any, rows: Int[np.ndarray, " b"]) -> tuple[Shaped[np.ndarray, "b bytes"], Bool[np.ndarray, " b"]]:
    return np.packbits(mask[rows].reshape(len(rows), -1), axis=1), np.ones(len(rows), bool)


def _shard_rows(row: np.ndarray, count: int) -> int:
    return max(1, SHARD_BYTES // max(row.nbytes, 1), -(-count // SHARDS))


def read(folder: pathlib.Path, *, expected: Mapping[str, Expected] | None = None, held: int = HELD_BYTES) -> Dataset:
    """The data set that `write` got. Every byte is read once, to see that it is whole; nothing is kept in memory that is not asked for.

    Args:
      expected: what the pretrained encoders of these modalities read; it must be what it was prepared for.
      held: see `Prepared.held`; 0 always reads from disk.

    Raises:
      UserError: the folder is damaged, half made, of another version, or prepared for other encoders.
    """
    own = load(folder)
    features = fitting(own, expected or {}, folder)
    opened = {name: _opened(array, folder, name) for name, array in own.arrays.items()}
    examples = shards.gather(opened.pop("examples"), np.arange(own.arrays["examples"].count))
    ends = np.cumsum(list(own.splits.values()))
    answers: dict[str, Answers] = {}
    if own.answers_of:
        said = np.split(shards.gather(opened.pop("answers"), np.arange(len(examples))), ends[:-1])
        for name, table in zip(own.splits, said, strict=True):
            if name in own.answers_of:
                told = own.answers_of[name]
                answers[name] = Answers(table[:, 1:], table[:, 0].astype(np.int32), np.array(told["left_out"]), tuple(told["kinds"]))
    width = 2 + len(features)
    splits: dict[str, Source] = {}
    for split, table in zip(own.splits, np.split(examples, ends[:-1]), strict=True):
        rows = dict(zip(opened, table[:, width:].T, strict=True))
        present = dict(zip(features, table[:, 2:width].T.astype(bool), strict=True))
        regions: dict[str, dict[str, Mask]] = {}
        for name, shape in own.masks[split].items():
            target, _, m = name.partition(".")
            regions.setdefault(target, {})[m] = Packed(opened[name], rows[name], shape)
        columns = {m: shards.Column(opened[f"inputs.{m}"], rows[f"inputs.{m}"], present[m]) for m in features}
        label, group = table[:, :2].T.astype(np.int32)
        splits[split] = Prepared(label, group, columns, regions or None, held)
    lossy = [name for name, array in own.arrays.items() if array.picture == "jpeg"]
    notes = "; ".join([own.notes, *(f"{name.removeprefix('inputs.')} is kept as JPEG of quality {records.QUALITY}" for name in lossy)])
    kept = {field.name: getattr(own, field.name) for field in dataclasses.fields(Dataset) if field.name in field_types(Manifest)}
    keys = {name: np.array(row_keys, np.int64) for name, row_keys in own.keys.items()}
    return Dataset(**kept | {"features": features, "splits": splits, "notes": notes, "answers": answers, "keys": keys})


def _opened(array: Array, folder: pathlib.Path, name: str) -> tuple[shards.Shard, ...]:
    own = array.folder(folder, name)
    found = own.whole()
    lost = [number for number in own.numbers if number not in found]
    if lost:
        many = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        mend = "run the same `prepare` again, it makes anew only what is damaged"
        raise UserError(f"data.path: shard {lost[0]} of {own.path}{many} is missing or damaged; {mend}")
    return tuple(found[number] for number in own.numbers)
