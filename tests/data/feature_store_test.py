"""Features on disk: the numbers that computing gives, computed once, and never believed when they are not whole."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest

from cimrl_jax.data import feature_store, shards
from cimrl_jax.data.source import ArraySource, Dataset, Source
from cimrl_jax.errors import UserError
from cimrl_jax.types import Feature

ROOT = pathlib.Path(__file__).parents[2]
COUNT, WIDTH, BATCH, DISTINCT = 2, 3, 4, 18
IMAGE, TEXT = Feature("image", (4, 2, 1), "uint8"), Feature("text", (3,), "int32", vocabulary=("", "?", "a", "b"))
WAIT = 60


@dataclasses.dataclass(frozen=True)
class Lazy:
    """A source whose inputs are not in memory."""

    own: ArraySource
    arrays: None = None

    def __len__(self) -> int:
        return len(self.own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def load(self, rows):
        return self.own.load(rows)


def data(*, lazy: bool = False, seed: int = 0) -> Dataset:
    """20 rows with pictures of which one occurs twice, and two without one; train_randomised repeats rows of train."""
    rng = np.random.default_rng(seed)
    image, text = rng.integers(0, 256, (22, *IMAGE.shape), np.uint8), rng.integers(0, 4, (22, *TEXT.shape), np.int32)
    image[15] = image[3]
    present = ~np.isin(np.arange(22), (5, 18))
    rows = {"train": np.arange(12), "validation": np.arange(12, 16), "test": np.arange(16, 20), "train_randomised": np.array([2, 2, 11, 0, 5])}

    def source(own: np.ndarray) -> Source:
        found = ArraySource(
            {"image": image[own], "text": text[own]},
            (own % 2).astype(np.int32),
            (own % 4).astype(np.int32),
            {"image": present[own]},
            {"cause": {"image": image[own][..., 0] > 99}},
        )
        return Lazy(found) if lazy else found  # type: ignore[return-value]

    return Dataset("toy", {"image": IMAGE, "text": TEXT}, ("x", "y"), ("a", "b", "c", "d"), {name: source(own) for name, own in rows.items()})


def project(inputs: np.ndarray, present: np.ndarray, *, views: int = 1) -> np.ndarray:
    """A fixed random projection in whole numbers, exact in any order of summation."""
    flat = inputs.reshape(len(inputs), -1).astype(np.float32)
    matrix = np.random.default_rng(7).integers(-5, 6, (flat.shape[1], views * COUNT * WIDTH)).astype(np.float32)
    return np.where(present[:, None], flat @ matrix, 0).reshape(len(flat), views * COUNT, WIDTH)


class Compute:
    """`project` that keeps account."""

    def __init__(self, views: int = 1):
        self.views, self.calls = views, 0

    def __call__(self, inputs, present):
        assert len(inputs) == len(present) == BATCH
        self.calls += 1
        return project(inputs, present, views=self.views)


def never(*_: Any) -> Any:
    raise AssertionError("nothing is left to compute")


def build(cache: pathlib.Path, compute: Any = None, own: Dataset | None = None, *, views: int = 1, dtype: str = "float32", **changes: Any) -> Dataset:
    feature = Feature("slots", (views * COUNT, WIDTH), dtype, views=views)
    options = {"feature": feature, "weights": "w", "cache": cache, "batch_size": BATCH, **changes}
    return feature_store.build(own or data(), "image", compute or Compute(views), **options)


def files(cache: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.glob("*/*") if path.name != ".lock"}


@pytest.fixture
def small_shards(monkeypatch):
    """One call a shard: five of them."""
    monkeypatch.setattr(feature_store, "SHARD_BYTES", 1)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(("views", "dtype", "shard_bytes"), [(1, "float32", 1 << 20), (3, "float16", 1), (1, "float32", 8 * COUNT * WIDTH * 4)])
def test_what_is_read_is_what_is_computed(tmp_path, monkeypatch, views, dtype, shard_bytes, lazy):
    monkeypatch.setattr(feature_store, "SHARD_BYTES", shard_bytes)
    raw = data(lazy=lazy)
    stored = build(tmp_path, own=raw, views=views, dtype=dtype)
    assert stored.features["image"] == Feature("slots", (views * COUNT, WIDTH), dtype, raw=IMAGE, views=views) and stored.features["text"] == TEXT
    for name, source in stored.splits.items():
        own = raw.splits[name]
        assert isinstance(source, Source) and isinstance(source, feature_store.Stored) and source.raw is own and len(source) == len(own)
        assert source.label is own.label and source.group is own.group and source.regions is own.regions
        rows = np.array([len(own) - 1, 0, 2, 0])
        expected, found = own.load(rows), source.load(rows)
        direct = project(expected["inputs"]["image"], expected["present"]["image"], views=views).astype(dtype)
        np.testing.assert_array_equal(found["inputs"]["image"], direct)
        assert found["inputs"]["image"].dtype == dtype and set(found["inputs"]) == set(found["present"]) == {"image", "text"}
        np.testing.assert_array_equal(found["inputs"]["text"], expected["inputs"]["text"])
        np.testing.assert_array_equal(found["present"]["image"], expected["present"]["image"])
        assert (source.arrays is None) == lazy
        if source.arrays is not None:
            for part, columns in found.items():
                assert all((source.arrays[part][m][rows] == values).all() for m, values in columns.items())


def test_each_distinct_row_is_computed_once_and_a_second_time_none(tmp_path):
    compute, seen = Compute(), []
    first = build(tmp_path, compute, progress=lambda done, total: seen.append((done, total)))
    # 20 rows, of which two are alike and two are absent, which is alike too.
    assert compute.calls == -(-DISTINCT // BATCH)
    assert seen[0] == (0, DISTINCT) and seen[-1] == (DISTINCT, DISTINCT) and len(seen) == 1 + compute.calls
    column = first.splits["train"].columns["image"]  # type: ignore[attr-defined]
    assert sum(map(len, column.shards)) == DISTINCT
    again, rows = build(tmp_path, never, progress=never), np.arange(4)
    np.testing.assert_array_equal(again.splits["test"].load(rows)["inputs"]["image"], first.splits["test"].load(rows)["inputs"]["image"])
    # The same rows, cut into splits otherwise.
    other = data().splits
    moved = dataclasses.replace(data(), splits={"train": other["test"], "validation": other["validation"], "test": other["train"]})
    assert build(tmp_path, never, moved).splits["train"].raw is other["test"]  # type: ignore[attr-defined]
    about = json.loads(next(tmp_path.glob("*/index.json")).read_text())
    assert (about["modality"], about["dataset"], about["weights"], about["count"]) == ("image", "toy", "w", DISTINCT)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "v"},
        {"settings": {"crop": 0.5}},
        {"batch_size": BATCH, "own": data(seed=1)},
        {"own": dataclasses.replace(data(), features={"image": dataclasses.replace(IMAGE, mean=(0.4,)), "text": TEXT})},
        {"dtype": "float16"},
        {"views": 2},
    ],
    ids=["weights", "settings", "pixels", "preprocessing", "type", "views"],
)
def test_whatever_the_features_depend_on_changes_the_key(tmp_path, change):
    build(tmp_path)
    compute = Compute(change.get("views", 1))
    build(tmp_path, compute, **change)
    assert compute.calls == -(-DISTINCT // BATCH) and len(list(tmp_path.iterdir())) == 2
    build(tmp_path, never)


def test_two_modalities_are_read_from_disk_and_the_raw_source_is_left_alone(tmp_path, monkeypatch):
    own = data(lazy=True)
    both = feature_store.build(
        build(tmp_path, own=own),
        "text",
        lambda inputs, present: project(inputs, present),
        feature=Feature("slots", (COUNT, WIDTH), "float32"),
        weights="t",
        cache=tmp_path,
        batch_size=BATCH,
    )
    monkeypatch.setattr(Lazy, "load", never)
    for name, source in both.splits.items():
        assert source.raw is own.splits[name]  # type: ignore[attr-defined]
        found, expected = source.load(np.arange(len(source))), own.splits[name].own.arrays  # type: ignore[attr-defined]
        for m in ("image", "text"):
            np.testing.assert_array_equal(found["inputs"][m], project(expected["inputs"][m], expected["present"][m]))
        assert source.arrays is not None
    assert {feature.kind for feature in both.features.values()} == {"slots"}


def test_features_are_mapped_and_not_held(tmp_path):
    raw = np.random.default_rng(0).integers(0, 256, (64, *IMAGE.shape), np.uint8)
    nothing = np.zeros(64, np.int32)
    own = dataclasses.replace(data(), features={"image": IMAGE}, splits={"train": ArraySource({"image": raw}, nothing, nothing)})
    wide = {"feature": Feature("slots", (COUNT, 1 << 14), "float32"), "held": 0}

    def compute(inputs, present):
        return np.broadcast_to(inputs.reshape(BATCH, -1)[:, :1, None].astype(np.float32) + 1, (BATCH, COUNT, 1 << 14))

    whole = 64 * COUNT * (1 << 14) * 4
    build(tmp_path, compute, own, **wide)
    tracemalloc.start()
    try:
        source: Any = build(tmp_path, never, own, **wide).splits["train"]
        found = source.load(np.array([3, 60]))["inputs"]["image"]
        assert tracemalloc.get_traced_memory()[1] < whole / 2
    finally:
        tracemalloc.stop()
    assert source.arrays is None and (found[:, 0, 0] == raw.reshape(64, -1)[[3, 60], 0].astype(np.float32) + 1).all()
    assert all(isinstance(part, np.memmap) and not part.flags.writeable for part in source.columns["image"].shards)


def work(cache: str, log: str, *, kill: str = "", after: int = 0, together: bool = False) -> None:
    """A process that builds; every computed row number is a line of `log`. It is killed in its `after`-th call, or while it writes that shard; or it
    computes only once `together` another waits for it."""
    feature_store.SHARD_BYTES = 1
    calls, waits = 0, pathlib.Path(f"{log}.waits")

    def die(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            os.kill(os.getpid(), signal.SIGKILL)

    def compute(inputs, present):
        if kill == "compute":
            die()
        while together and not waits.exists():
            time.sleep(0.02)
        with pathlib.Path(log).open("a") as file:
            file.write("once\n")
        return project(inputs, present)

    if kill == "write":
        os.fsync = die
    build(pathlib.Path(cache), compute, say=waits.write_text)


def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
    code = f"from tests.data.feature_store_test import work; work(*{tuple(map(str, arguments))!r}, **{options!r})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("kill", ["compute", "write"])
def test_a_killed_build_goes_on_where_it_was(tmp_path, small_shards, kill):
    process = start(tmp_path / "killed", tmp_path / "log", kill=kill, after=3)
    _, errors = process.communicate(timeout=WAIT)
    assert process.returncode == -signal.SIGKILL, errors
    left = files(tmp_path / "killed")
    assert sum(shards.NAME.fullmatch(name) is not None for name in left) == 2 and "index.json" not in left
    assert any(name.startswith(".0") for name in left) == (kill == "write")
    compute = Compute()
    build(tmp_path / "killed", compute)
    assert compute.calls == 3
    build(tmp_path / "straight")
    assert files(tmp_path / "killed") == files(tmp_path / "straight")


def test_two_processes_at_once_compute_once(tmp_path, small_shards):
    log = tmp_path / "log"
    pair = [start(tmp_path / "cache", log, together=True) for _ in range(2)]
    told = [process.communicate(timeout=WAIT) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], told
    assert log.read_text().split() == ["once"] * 5
    assert "waiting for it" in pathlib.Path(f"{log}.waits").read_text()
    build(tmp_path / "cache", never)


@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "other shape", "pickle", "index"])
def test_what_is_damaged_is_computed_again_and_nothing_else(tmp_path, small_shards, damage):
    build(tmp_path)
    expected = files(tmp_path)
    path = next(tmp_path.glob("*/00001-*.npy"))
    content, calls = bytearray(path.read_bytes()), 1
    match damage:
        case "bit":
            content[-2] ^= 1
            path.write_bytes(content)
        case "cut":
            path.write_bytes(content[:-5])
        case "gone":
            path.unlink()
        case "other shape" | "pickle":  # their checksums are right
            path.unlink()
            bad = np.zeros((1, COUNT, WIDTH), np.float32) if damage == "other shape" else np.array([Poison()] * BATCH)
            np.save(path, bad, allow_pickle=True)
            path.rename(path.with_name(f"00001-{zlib.crc32(path.read_bytes()):08x}.npy"))
        case "index":
            (path.parent / "index.json").unlink()
            calls = 0
    compute = Compute()
    build(tmp_path, compute)
    assert compute.calls == calls and files(tmp_path) == expected


class Poison:
    """Fails the test if anyone unpickles it."""

    def __reduce__(self):
        return pickle.loads, (b"unpickled",)


def test_a_full_disk_is_told_and_leaves_only_what_is_whole(tmp_path, monkeypatch, small_shards):
    calls = 0

    def fsync(_):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(UserError, match="cannot write features to .*No space left on device; free some space or set data.cache"):
            build(tmp_path)
    assert sorted(name[:6] for name in files(tmp_path)) == ["00000-", "00001-"]
    compute = Compute()
    build(tmp_path, compute)
    assert compute.calls == 3
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"no room for features in .*: 4.32e-07 GB are needed, 1e-07 GB are free; free some space"):
        build(tmp_path / "other")


def test_a_folder_that_cannot_be_written_is_named_but_a_complete_one_is_read(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write features to .*file/.*: Not a directory; free some space or set data.cache to another folder"):
        build(tmp_path / "file")
    cache = tmp_path / "cache"
    build(cache)
    for path in [*cache.glob("*/*"), *cache.glob("*"), cache]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        monkeypatch.setattr(shards, "_locked", never)
        build(cache, never)
        monkeypatch.undo()
        if os.geteuid():  # root may write anywhere
            with pytest.raises(UserError, match="Permission denied"):
                build(cache, weights="other")
    finally:
        for path in [cache, *cache.glob("*")]:
            path.chmod(0o755)


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float32"), (np.inf, "float32"), (1e6, "float16")])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value, dtype):
    with pytest.raises(UserError, match=f"encoder of 'image' gives numbers not finite in {dtype}; mend"):
        build(tmp_path, lambda inputs, present: project(inputs, present) + value, dtype=dtype)
    assert not files(tmp_path)


def test_features_of_another_layout_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"features of image are \(2, 3\), declared as \(4, 3\)"):
        build(tmp_path, Compute(1), views=2)


def test_the_cache_lies_where_the_system_keeps_such_things(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert feature_store.default_cache() == pathlib.Path("/somewhere/cimrl_jax/features")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert feature_store.default_cache() == pathlib.Path.home() / ".cache/cimrl_jax/features"
