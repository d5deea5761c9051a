"""A data set as a folder: exactly what was written comes back, once each, and what is not whole is never believed."""

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
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest

from cimrl_jax.data import columns, listing, manifest, prepared, records, shards
from cimrl_jax.data.datasets import vqa_cp
from cimrl_jax.data.source import ArraySource, Dataset, Source
from cimrl_jax.errors import UserError
from cimrl_jax.types import Expected, Feature
from tests.data import layouts

ROOT = pathlib.Path(__file__).parents[2]
IMAGE, WAIT = (6, 4, 3), 300
FORMS = [("map", "raw"), ("records", "raw")]


@dataclasses.dataclass(frozen=True)
class Lazy:
    """A source whose inputs are not in memory."""

    own: ArraySource
    arrays: None = None

    @property
    def label(self):
        return self.own.label

    @property
    def group(self):
        return self.own.group

    @property
    def regions(self):
        return self.own.regions

    def __len__(self) -> int:
        return len(self.own)

    def load(self, rows):
        return self.own.load(rows)


def data(*, lazy: bool = False, seed: int = 0) -> Dataset:
    """All kinds of modalities; a picture occurs twice, train_randomised repeats rows of train, absent rows hold something, test has other regions."""
    rng = np.random.default_rng(seed)
    image = np.kron(rng.integers(0, 256, (20, 3, 2, 3)), np.ones((1, 2, 2, 1))).astype(np.uint8)
    image[15] = image[3]
    values = {
        "image": image,
        "a text": rng.integers(0, 4, (20, 3)).astype(np.int32),
        "sound": rng.normal(size=(20, 5, 2)).astype(np.float32),
        "numbers": np.where(rng.random((20, 2)) < 0.2, np.nan, rng.normal(size=(20, 2))).astype(np.float32),
    }
    present = {"image": ~np.isin(np.arange(20), (5, 18)), "sound": rng.random(20) < 0.7}
    rows = {"train": np.arange(12), "validation": np.arange(12, 16), "test": np.arange(16, 20), "train_randomised": np.array([2, 2, 11, 0, 5])}

    def source(name: str, own: np.ndarray) -> Source:
        lit = {"cause": {"image": image[own][..., 0] > 99}, "shortcut": {"a text": values["a text"][own] == 3}}
        regions = {"train": None, "validation": {}, "test": {"cause": lit["cause"]}}.get(name, lit)
        parts = {m: column[own] for m, column in values.items()}
        found = ArraySource(
            parts, (own % 2).astype(np.int32), (own % 4 - 1).astype(np.int32), {m: there[own] for m, there in present.items()}, regions
        )
        return Lazy(found) if lazy else found  # type: ignore[return-value]

    features = {
        "image": Feature("image", IMAGE, "uint8", flip=False, mean=(0.1, 0.2, 1 / 3), std=(0.3, 0.2, 0.1)),
        "a text": Feature("text", (3,), "int32", vocabulary=("<pad>", "<unk>", "null", "yes\u2028é")),
        "sound": Feature("spectrogram", (5, 2), "float32"),
        "numbers": Feature("table", (2,), "float32", columns=("x", "y"), mean=(0.1, 0.0)),
    }
    return Dataset(
        "toy",
        features,
        ("no", "yes"),
        ("a", "b", "c", "d"),
        {name: source(name, own) for name, own in rows.items()},
        notes="of one's own",
        synonyms=(("big", "large"), ("none",)),
        attribute_names=("left", "right"),
        skipped=("metadata.csv, line 2: missing file",),
    )


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing is left to do")


@pytest.fixture
def small_shards(monkeypatch):
    """Five pictures a shard."""
    monkeypatch.setattr(prepared, "SHARD_BYTES", 5 * int(np.prod(IMAGE)))


def assert_same(found: Dataset, own: Dataset) -> None:
    for field in dataclasses.fields(Dataset):
        if field.name == "keys":
            np.testing.assert_equal(dict(found.keys), dict(own.keys))
        elif field.name != "splits":
            assert getattr(found, field.name) == getattr(own, field.name), field.name
    assert list(found.splits) == list(own.splits)
    for name, source in own.splits.items():
        other = found.splits[name]
        rows = np.array([len(source) - 1, 0, 2, 0]) % len(source)
        for mine, theirs in ((source.label, other.label), (source.group, other.group)):
            np.testing.assert_array_equal(mine, theirs)
            assert mine.dtype == theirs.dtype
        loaded, expected = other.load(rows), source.load(rows)
        for part, values in expected.items():
            assert set(loaded[part]) == set(values)
            for m, column in values.items():
                np.testing.assert_array_equal(loaded[part][m], column, strict=True)
                if other.arrays is not None:
                    np.testing.assert_array_equal(other.arrays[part][m][rows], column, strict=True)
        regions = {target: masks for target, masks in (source.regions or {}).items() if masks}
        assert {target: set(masks) for target, masks in (other.regions or {}).items()} == {target: set(masks) for target, masks in regions.items()}
        for target, masks in regions.items():
            for m, mask in masks.items():
                found_mask = (other.regions or {})[target][m]
                assert found_mask.shape == mask.shape and found_mask.dtype == bool and len(found_mask) == len(source)
                for chosen in (rows, rows[:0], slice(1, None)):
                    np.testing.assert_array_equal(found_mask[chosen], mask[chosen], strict=True)


@pytest.mark.parametrize(("form", "picture"), FORMS)
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("shard_bytes", [300, 1 << 20])
def test_what_is_read_is_what_was_written(tmp_path, monkeypatch, form, picture, lazy, shard_bytes):
    monkeypatch.setattr(prepared, "SHARD_BYTES", shard_bytes)
    folder = tmp_path / "a folder, with % and é"
    prepared.write(data(lazy=lazy), folder, form=form, picture=picture)
    for held in (0, prepared.HELD_BYTES):
        found = prepared.read(folder, held=held)
        assert all(isinstance(source, Source) and (source.arrays is None) == (held == 0) for source in found.splits.values())
        assert_same(found, data())
    prepared.write(prepared.read(folder), tmp_path / "again", form=form, picture=picture)
    assert files(tmp_path / "again") == files(folder)


def test_each_distinct_row_is_kept_once_and_in_order(tmp_path):
    prepared.write(data(), tmp_path)
    kept = {name: array.count for name, array in manifest.load(tmp_path).arrays.items()}
    assert kept["inputs.image"] == 19 and kept["inputs.sound"] == 20 and kept["examples"] == 25 and kept["inputs.a text"] <= 20
    [path] = tmp_path.glob("inputs.image/*.npy")
    np.testing.assert_array_equal(np.load(path, allow_pickle=False)[:12], data().splits["train"].load(np.arange(12))["inputs"]["image"])


def test_a_second_start_has_nothing_to_do_and_says_nothing(tmp_path):
    seen: list[Any] = []
    prepared.write(data(), tmp_path, progress=lambda *told: seen.append(told))
    assert [told for told in seen if told[0] == "inputs.image"] == [("inputs.image", 0, 19), ("inputs.image", 19, 19)]
    before = files(tmp_path)
    prepared.write(data(lazy=True), tmp_path, progress=never, say=never)
    assert files(tmp_path) == before


def test_rows_are_mapped_and_not_held(tmp_path):
    raw = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), np.uint8)
    nothing = np.zeros(64, np.int32)
    own = Dataset("toy", {"image": Feature("image", (64, 64, 3), "uint8")}, ("x",), (), {"train": ArraySource({"image": raw}, nothing, nothing)})
    prepared.write(own, tmp_path)
    tracemalloc.start()
    try:
        source: Any = prepared.read(tmp_path, held=0).splits["train"]
        np.testing.assert_array_equal(source.load(np.array([3, 60]))["inputs"]["image"], raw[[3, 60]])
        assert tracemalloc.get_traced_memory()[1] < raw.nbytes / 2 + (2 << 20)
    finally:
        tracemalloc.stop()
    assert all(isinstance(part, np.memmap) and not part.flags.writeable for part in source.columns["image"].shards)


class File(type(pathlib.Path())):  # type: ignore[misc]
    """A file that counts how often it is read."""

    reads: dict[str, int] = {}

    def read_bytes(self):
        self.reads[self.name] = self.reads.get(self.name, 0) + 1
        return super().read_bytes()


def test_files_are_decoded_once_however_many_rows_and_splits_have_them(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="pip install 'cimrl_jax[data]'")
    rng, names = np.random.default_rng(0), [tmp_path / f"{i}.png" for i in range(5)]
    for name in names:
        image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(name)
    of_row = [File(names[i % 5]) if i != 6 else None for i in range(10)]
    rows = {"train": np.arange(6), "validation": np.arange(6, 8), "test": np.arange(8, 10), "train_randomised": np.array([0, 0, 1, 4])}
    own = listing.Listing(
        "toy",
        {"image": columns.Pictures(of_row), "text": columns.Texts([f"word{i % 3}" for i in range(10)])},
        np.arange(10) % 2,
        ("x", "y"),
        rows,
        listing.Lines("rows.csv", range(10)),
        "",
    )
    held = listing.assemble(own, listing.Options(size=8))
    lazy = listing.assemble(own, listing.Options(size=8), held=0)
    File.reads.clear()
    prepared.write(lazy, tmp_path / "out")
    # One more of the first tells the shape.
    assert File.reads == {f"{i}.png": 2 if i == 0 else 1 for i in range(5)}
    assert_same(prepared.read(tmp_path / "out"), held)
    os.utime(names[1], (1, 1))
    with pytest.raises(UserError, match="was prepared from other files, or their content has changed; choose another folder by --to, or delete it"):
        prepared.write(listing.assemble(own, listing.Options(size=8), held=0), tmp_path / "out")


def test_records_are_what_others_read(tmp_path, small_shards):
    source = pytest.importorskip("array_record.python.array_record_data_source")
    prepared.write(data(), tmp_path, form="records")
    reader = source.ArrayRecordDataSource([str(path) for path in sorted(tmp_path.glob("inputs.image/*.arrayrecord"))])
    assert len(reader) == 19
    images = data().splits["train"].load(np.arange(12))["inputs"]["image"]
    assert [reader[i] for i in range(12)] == [image.tobytes() for image in images]


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_close_says_that_it_is_not_the_same_and_others_decode_it(tmp_path, channels):
    image = pytest.importorskip("PIL.Image", reason="pip install 'cimrl_jax[data]'")
    down, across = np.mgrid[:32, :40] / 9
    smooth = np.stack([128 + 99 * np.stack([np.sin(down + i) * np.sin(across), np.cos(across), np.sin(down)], -1) for i in range(6)])
    smooth = smooth[..., :channels].astype(np.uint8)
    split = ArraySource({"image": smooth}, np.zeros(6, np.int32), np.zeros(6, np.int32))
    own = Dataset("toy", {"image": Feature("image", smooth.shape[1:], "uint8")}, ("x",), (), {"train": split}, notes="n")
    prepared.write(own, tmp_path, form="records", picture="jpeg")
    found = prepared.read(tmp_path)
    assert found.notes == "n; image is kept as JPEG of quality 95"
    pixels = found.splits["train"].load(np.arange(6))["inputs"]["image"]
    assert pixels.shape == smooth.shape and 0 < np.abs(pixels.astype(int) - smooth).max() < 12
    [path] = tmp_path.glob("inputs.image/*.arrayrecord")
    content = records.library().ArrayRecordReader(str(path), "").read([2])[0]
    assert content[:2] == b"\xff\xd8"
    (tmp_path / "x.jpg").write_bytes(content)
    decoded = np.asarray(image.open(tmp_path / "x.jpg")).reshape(smooth.shape[1:])
    assert np.abs(decoded.astype(int) - pixels[2]).max() <= 2
    with pytest.raises(UserError, match="pictures are kept as JPEG in records only; set --form records"):
        prepared.write(own, tmp_path / "other", picture="jpeg")
    assert not (tmp_path / "other").exists()


def of_pictures(file: int) -> bool:
    return "inputs.image" in os.readlink(f"/proc/self/fd/{file}")


def work(folder: str, form: str, *, after: int = 0, together: str = "") -> None:
    """A process that writes, and is killed before its `after`-th shard of pictures is in place; or it begins only once another waits for it."""
    prepared.SHARD_BYTES = 5 * int(np.prod(IMAGE))
    calls, before = 0, os.fsync

    def fsync(file: int) -> None:
        nonlocal calls
        calls += of_pictures(file)
        if after and calls == after:
            os.kill(os.getpid(), signal.SIGKILL)
        before(file)

    def wait(name: str, done: int, total: int) -> None:
        import time

        stop = time.monotonic() + WAIT / 2
        while together and not pathlib.Path(together).exists() and time.monotonic() < stop:
            time.sleep(0.02)

    os.fsync = fsync
    prepared.write(data(), pathlib.Path(folder), form=form, progress=wait, say=pathlib.Path(together or os.devnull).write_text)  # type: ignore[arg-type]


def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
    code = f"from tests.data.prepared_test import work; work(*{tuple(map(str, arguments))!r}, **{options!r})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("form", ["map", "records"])
def test_a_killed_start_is_gone_on_from_and_ends_with_the_same_bytes(tmp_path, small_shards, form):
    process = start(tmp_path / "killed", form, after=3)
    _, errors = process.communicate(timeout=WAIT)
    assert process.returncode == -signal.SIGKILL, errors
    left = files(tmp_path / "killed")
    assert "dataset.json" not in left and sum(name.startswith("inputs.image/0") for name in left) == 2
    assert any(name.startswith("inputs.image/.0") for name in left)
    with pytest.raises(UserError, match="is not prepared to its end; run the same `prepare` again, it goes on where it was"):
        prepared.read(tmp_path / "killed")
    seen: list[Any] = []
    prepared.write(data(), tmp_path / "killed", form=form, progress=lambda *told: seen.append(told))
    assert seen[0] == ("inputs.image", 10, 19)
    prepared.write(data(), tmp_path / "straight", form=form)
    assert files(tmp_path / "killed") == files(tmp_path / "straight")


def test_two_processes_at_once_write_once(tmp_path):
    pair = [start(tmp_path / "out", "map", together=str(tmp_path / "waits")) for _ in range(2)]
    told = [process.communicate(timeout=WAIT) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], told
    assert "another process makes the" in (tmp_path / "waits").read_text()
    assert_same(prepared.read(tmp_path / "out"), data())


class Poison:
    """Fails the test if anyone unpickles it."""

    def __reduce__(self):
        return pickle.loads, (b"unpickled",)


@pytest.mark.parametrize("form", ["map", "records"])
@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "pickle", "other shape"])
def test_damage_is_refused_by_who_reads_and_mended_by_who_writes(tmp_path, small_shards, form, damage):
    prepared.write(data(), tmp_path, form=form)
    expected = files(tmp_path)
    path = next(tmp_path.glob("inputs.image/00001-*"))
    content = bytearray(path.read_bytes())
    match damage:
        case "bit":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "cut":
            path.write_bytes(content[:-5])
        case "gone":
            path.unlink()
        case "pickle" | "other shape":  # their checksums are right
            path.unlink()
            with path.open("wb") as file:
                np.save(file, np.array([Poison()] * 5) if damage == "pickle" else np.zeros((1, *IMAGE), np.uint8), allow_pickle=True)
            path.rename(path.with_name(f"00001-{zlib.crc32(path.read_bytes()):08x}{path.suffix}"))
    with pytest.raises(UserError, match=r"data.path: shard 1 of .*inputs.image is missing or damaged; run the same `prepare` again") as told:
        prepared.read(tmp_path)
    assert "\n" not in str(told.value)
    seen: list[Any] = []
    prepared.write(data(), tmp_path, form=form, progress=lambda *told: seen.append(told))
    assert {name for name, *_ in seen} == {"inputs.image"} and seen[0] == ("inputs.image", 14, 19)
    assert files(tmp_path) == expected
    assert_same(prepared.read(tmp_path), data())


def test_records_that_are_damaged_while_they_are_read_are_named(tmp_path):
    prepared.write(data(), tmp_path, form="records")
    source = prepared.read(tmp_path, held=0).splits["train"]
    [path] = tmp_path.glob("inputs.image/*.arrayrecord")
    content = bytearray(path.read_bytes())
    content[100:-100] = bytes(len(content) - 200)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*arrayrecord \(.*\); run `prepare` again"):
        source.load(np.arange(3))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("dataset.json", lambda text: text[: len(text) // 2], "dataset.json is damaged; delete it and run `prepare` again"),
        ("dataset.json", lambda text: text.replace('"layout": 1', '"layout": 2', 1), r"was prepared by another version \(layout 2, expected 1\)"),
        ("dataset.json", lambda text: text.replace('"kind": "image"', '"kind": "picture"'), r"is damaged \(dataset.json.features.image.kind: got"),
        ("dataset.json", lambda text: text.replace('"skipped"', '"skiped"'), r"is damaged \(dataset.json.skiped: unknown key"),
        ("dataset.json", None, "is not prepared to its end"),
    ],
)
def test_a_damaged_or_foreign_description_is_one_line(tmp_path, name, content, says):
    prepared.write(data(), tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content((tmp_path / name).read_text()))
    with pytest.raises(UserError, match=says) as told:
        prepared.read(tmp_path)
    assert "\n" not in str(told.value)


def test_what_is_something_else_is_left_alone(tmp_path):
    (tmp_path / "dataset.json").write_text('{"images": []}')
    (tmp_path / "file").write_text("")
    assert not manifest.is_prepared(tmp_path) and not manifest.is_prepared(tmp_path / "file") and not manifest.is_prepared(tmp_path / "nowhere")
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"holds something else \(dataset.json\); choose another folder by --to"):
        prepared.write(data(), tmp_path)
    with pytest.raises(UserError, match="file is a file; expected a folder, or nothing: choose another by --to"):
        prepared.write(data(), tmp_path / "file")
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"about": {"data": {"name": "toy", "options": {"size": 9}}}}, "data.options.size is 8 there, 9 here"),
        ({"form": "records"}, "form is 'map' there, 'records' here"),
        ({"own": data(seed=1)}, "other files, or their content has changed"),
    ],
)
def test_the_same_folder_is_not_prepared_otherwise(tmp_path, change, says):
    about = {"data": {"name": "toy", "options": {"size": 8}}}
    prepared.write(data(), tmp_path, about=about)
    before, own = files(tmp_path), change.pop("own", data())
    with pytest.raises(UserError, match=f"{says}.*; choose another folder by --to, or delete it"):
        prepared.write(own, tmp_path, **{"about": about, **change})
    assert files(tmp_path) == before


def test_a_full_disk_is_told_and_leaves_only_what_is_whole(tmp_path, monkeypatch, small_shards):
    calls = 0

    def fsync(file):
        nonlocal calls
        calls += of_pictures(file)
        if calls == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(UserError, match="cannot write inputs.image to .*No space left on device; free some space or choose another"):
            prepared.write(data(), tmp_path / "out")
    assert sorted(name[:18] for name in files(tmp_path / "out") if "image" in name) == ["inputs.image/00000", "inputs.image/00001"]
    prepared.write(data(), tmp_path / "out")
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"no room for examples in .*GB are free; free some space or choose another folder by --to"):
        prepared.write(data(), tmp_path / "other")
    monkeypatch.undo()
    if pathlib.Path("/dev/full").exists():
        folder = records.Records(pathlib.Path("/dev/full"), (2,), "uint8", 1, 1, what="x", mend="mend")
        with pytest.raises(UserError, match="cannot write x to"):
            folder.fill(lambda rows: np.zeros((len(rows), 2), np.uint8), step=1, about={}, progress=lambda *_: None, say=never)


EXPECTED = Expected(size=(6, 4), channels=3, mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize(
    ("then", "now", "says"),
    [
        ({}, {}, ""),
        ({"image": EXPECTED}, {"image": EXPECTED}, ""),
        ({}, {"image": EXPECTED}, "without a pretrained encoder of image, but the config has one"),
        ({"image": EXPECTED}, {}, "was prepared for a pretrained encoder of image; set model"),
        ({"image": EXPECTED}, {"image": dataclasses.replace(EXPECTED, mean=(0.4,))}, r"expects\.mean is \[0.5\] there, \[0.4\] here"),
    ],
)
def test_pretrained_encoders_get_what_they_expect_or_a_line(tmp_path, then, now, says):
    prepared.write(data(), tmp_path, about={"expected": {m: dataclasses.asdict(own) for m, own in then.items()}})
    if says:
        with pytest.raises(UserError, match=says):
            prepared.read(tmp_path, expected=now)
    else:
        assert_same(prepared.read(tmp_path, expected=now), data())


def test_numbers_are_what_json_says_of_them(tmp_path):
    """Means and standard deviations survive to the last bit."""
    prepared.write(data(), tmp_path)
    assert json.loads((tmp_path / "dataset.json").read_text())["features"]["image"]["mean"][2] == 1 / 3


def test_a_tokeniser_may_move_but_not_change(tmp_path):
    for name in ("tokenizers", "transformers"):
        pytest.importorskip(name, reason="pip install 'cimrl_jax[text]'")
    from cimrl_jax.data import tokenise
    from tests.tokenisers import bytes_of, word_pieces

    own = tokenise.Pretrained(str(word_pieces(tmp_path / "before")), 3)
    made = dataclasses.replace(data(), features={**data().features, "a text": own.feature()})
    expected = Expected(tokeniser=own.folder, length=9)
    prepared.write(made, tmp_path / "out", about={"expected": {"a text": dataclasses.asdict(expected)}})
    (tmp_path / "before").rename(tmp_path / "after")
    moved = dataclasses.replace(expected, tokeniser=str(tmp_path / "after"))
    found = prepared.read(tmp_path / "out", expected={"a text": moved}).features["a text"]
    assert found == dataclasses.replace(own.feature(), tokeniser=moved.tokeniser)
    other = dataclasses.replace(expected, tokeniser=str(bytes_of(tmp_path / "other")))
    with pytest.raises(UserError, match="was prepared with another tokeniser than that in .*other; set model"):
        prepared.read(tmp_path / "out", expected={"a text": other})


def test_keys_are_kept(tmp_path):
    layouts.vqa_cp(tmp_path / "files")
    dataset = vqa_cp.build(vqa_cp.Options(), path=tmp_path / "files")
    keys = {"test": 10**17 + np.arange(len(dataset.split("test")))}
    prepared.write(dataclasses.replace(dataset, keys=keys), tmp_path / "prepared")
    found = prepared.read(tmp_path / "prepared").keys
    assert found.keys() == keys.keys() and (found["test"] == keys["test"]).all()


def test_what_ten_people_answered_is_kept(tmp_path):
    layouts.vqa_cp(tmp_path / "files")
    dataset = vqa_cp.build(vqa_cp.Options(), path=tmp_path / "files")
    assert set(dataset.answers) == {"train", "validation", "test"}
    prepared.write(dataset, tmp_path / "prepared")
    found = prepared.read(tmp_path / "prepared").answers
    for name, own in dataset.answers.items():
        np.testing.assert_array_equal(found[name].classes, own.classes)
        np.testing.assert_array_equal(found[name].kind, own.kind)
        np.testing.assert_array_equal(found[name].left_out, own.left_out)
        assert found[name].kinds == own.kinds
