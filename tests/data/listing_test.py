from __future__ import annotations

import dataclasses
import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from cimrl_jax.data import listing as listings
from cimrl_jax.data import recordings
from cimrl_jax.data.listing import Fault, Lines, Listing, Numbers, Options, Pictures, Recordings, Texts
from cimrl_jax.data.source import Source, class_counts
from cimrl_jax.errors import UserError

OPTIONS = Options(size=8)


def picture(seed: int, size: tuple[int, int] = (12, 10)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(content := io.BytesIO(), "PNG")
    return content.getvalue()


def wave_file(seed: int) -> bytes:
    import wave

    samples = (np.random.default_rng(seed).normal(size=8000) * 3000).astype("<i2")
    with wave.open(content := io.BytesIO(), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.tobytes())
    return content.getvalue()


@pytest.fixture
def made(tmp_path) -> Listing:
    """Twelve rows of four modalities: six in train, three each in validation and test; row 5 has no picture, row 7 no text, row 8 no recording."""
    for row in range(12):
        (tmp_path / f"{row}.png").write_bytes(picture(row))
        (tmp_path / f"{row}.wav").write_bytes(wave_file(row))
    files = [tmp_path / f"{row}.png" if row != 5 else None for row in range(12)]
    sounds = [tmp_path / f"{row}.wav" if row != 8 else None for row in range(12)]
    texts = [f"bird number w{row} by the water" if row != 7 else None for row in range(12)]
    numbers = np.arange(24, dtype=float).reshape(12, 2)
    numbers[3] = np.nan
    numbers[4, 0] = np.nan
    boxes = [((0.0, 0.0, 0.5, 1.0),) if row % 2 else () for row in range(12)]
    label = np.arange(12) % 2
    return Listing(
        name="made",
        columns={
            "photo": Pictures(files, boxes={"cause": boxes}),
            "sound": Recordings(sounds, recordings.Options(seconds=0.2, rate=8000, bands=8)),
            "caption": Texts(texts, marks={"shortcut": lambda word: word == "water"}),
            "numbers": Numbers(numbers, ("age", "weight")),
        },
        label=label,
        class_names=("land", "water"),
        splits={"train": np.arange(6), "validation": np.arange(6, 9), "test": np.arange(9, 12), "train_randomised": np.array([0, 0, 3])},
        origins=Lines("made.csv", range(2, 14)),
        ids=[f"id{row}" for row in range(12)],
        notes="made for a test",
        group=label * 2 + np.arange(12) % 2,
        group_names=("a", "b", "c", "d"),
    )


def damaged(made: Listing, name: str, row: int, content: bytes | None) -> Listing:
    column = made.columns[name]
    assert isinstance(column, Pictures | Recordings)
    file = column.files[row]
    assert file is not None
    file.unlink() if content is None else file.write_bytes(content)
    return made


def with_faults(**options: object) -> Options:
    return dataclasses.replace(OPTIONS, **options)


def same(first: Source, second: Source) -> None:
    rows = np.arange(len(first))
    for part, columns in first.load(rows).items():
        for name, values in columns.items():
            np.testing.assert_array_equal(values, second.load(rows)[part][name])


def test_rows_become_a_data_set(made):
    dataset = listings.assemble(made, OPTIONS)
    assert {m: (f.kind, f.shape) for m, f in dataset.features.items()} == {
        "photo": ("image", (8, 8, 3)),
        "sound": ("spectrogram", recordings.shape(made.columns["sound"].options)),
        "caption": ("text", (8,)),
        "numbers": ("table", (2,)),
    }
    train = dataset.splits["train"]
    assert isinstance(train, Source) and class_counts(train, 2) == (3, 3)
    found = train.load(np.arange(6))
    assert {m: present.tolist().count(False) for m, present in found["present"].items()} == {"photo": 1, "sound": 0, "caption": 0, "numbers": 1}
    assert not found["inputs"]["photo"][5].any() and not found["present"]["photo"][5]
    assert np.isnan(found["inputs"]["numbers"][4, 0]) and not np.isnan(found["inputs"]["numbers"][4, 1])
    vocabulary = dataset.features["caption"].vocabulary
    assert [vocabulary[i] for i in found["inputs"]["caption"][0] if i] == ["bird", "number", "w0", "by", "the", "water"]
    assert "w9" not in vocabulary, "the vocabulary is that of the training split"
    assert "caption is absent in 1 of 12 rows" in dataset.notes and not dataset.skipped


def test_pictures_are_those_of_the_files_and_recordings_have_mean_0_and_deviation_1(made):
    dataset = listings.assemble(made, OPTIONS)
    found = dataset.splits["train"].load(np.arange(6))["inputs"]
    whole = np.asarray(Image.open(io.BytesIO(picture(2))).resize((8, 8), Image.Resampling.BOX, box=(1, 0, 11, 10)), np.float64)
    assert abs(found["photo"][2].astype(float) - whole).mean() < 2
    np.testing.assert_allclose(found["sound"].mean((0, 1)), 0, atol=1e-4)
    np.testing.assert_allclose(found["sound"].std((0, 1)), 1, atol=1e-3)
    pixels = found["photo"][:5] / 255.0
    np.testing.assert_allclose(dataset.features["photo"].mean, pixels.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(dataset.features["photo"].std, pixels.std((0, 1, 2)), atol=1e-3)


def test_read_as_asked_for_is_the_same_as_held_in_memory(made):
    held, lazy = listings.assemble(made, OPTIONS), listings.assemble(made, OPTIONS, held=0)
    assert lazy.features == held.features
    assert held.splits["train"].arrays is not None and lazy.splits["train"].arrays is None
    for name in held.splits:
        same(held.splits[name], lazy.splits[name])


def test_regions_are_boxes_and_words(made):
    regions = listings.assemble(made, OPTIONS).splits["train"].regions
    assert regions is not None and set(regions) == {"cause", "shortcut"}
    boxes, words = regions["cause"]["photo"], regions["shortcut"]["caption"]
    assert boxes.shape == (6, 8, 8) and boxes.dtype == bool and len(boxes) == 6
    assert not boxes[np.array([0])].any() and boxes[np.array([1])].mean() == pytest.approx(0.5, abs=0.15)
    assert words.shape == (6, 8) and words[np.arange(6)].sum(1).tolist() == [1] * 6


BAD = {
    "missing picture": (lambda own: damaged(own, "photo", 2, None), 2, "missing file"),
    "empty picture": (lambda own: damaged(own, "photo", 2, b""), 2, "undecodable picture"),
    "truncated picture": (lambda own: damaged(own, "photo", 2, picture(2)[:60]), 2, "undecodable picture"),
    "text for a picture": (lambda own: damaged(own, "photo", 2, b"<html>404</html>"), 2, "undecodable picture"),
    "missing recording": (lambda own: damaged(own, "sound", 3, None), 3, "missing file"),
    "damaged recording": (lambda own: damaged(own, "sound", 3, b"RIFF1234"), 3, "undecodable recording"),
    "empty text": (lambda own: _replaced(own, "caption", Texts(["a"] * 4 + [" \t"] + ["a"] * 7)), 4, "empty text"),
    "duplicate id": (lambda own: dataclasses.replace(own, ids=["a", "b", "c", "b", *"defghijk"]), 3, "duplicate id"),
    "found by the reader": (lambda own: dataclasses.replace(own, faults=(Fault(1, "unknown label", "got 'fish'"),)), 1, "unknown label"),
}  # fmt: skip


def _replaced(made: Listing, name: str, column: listings.Column) -> Listing:
    return dataclasses.replace(made, columns={**made.columns, name: column})


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_or_left_out(made, name):
    change, row, kind = BAD[name]
    bad = change(made)
    assert [(fault.row, fault.kind) for fault in listings.examine(bad, deep=True)] == [(row, kind)]
    with pytest.raises(UserError, match=rf"data set 'made': made.csv, line {row + 2}: {kind}: .*on-bad-row skip") as error:
        listings.assemble(bad, OPTIONS)
    assert "\n" not in str(error.value)
    dataset = listings.assemble(bad, with_faults(on_bad_row="skip"))
    assert len(dataset.skipped) == 1 and dataset.skipped[0].startswith(f"made.csv, line {row + 2}: {kind}: ")
    train = dataset.splits["train"]
    assert isinstance(train, listings.Files) and len(train) == 5 and row not in train.rows


def test_all_bad_rows_are_counted(made):
    bad = damaged(damaged(made, "photo", 1, None), "photo", 2, None)
    with pytest.raises(UserError, match=r"line 3: missing file: .*1\.png \(and 1 more bad rows\)"):
        listings.assemble(bad, OPTIONS)


def test_a_picture_in_two_splits_is_found_only_by_looking_deep(made):
    damaged(made, "photo", 1, picture(10))  # row 10 is in test
    assert not listings.examine(made)
    seen: list[tuple[int, int]] = []
    (fault,) = listings.examine(made, deep=True, progress=lambda done, total: seen.append((done, total)))
    assert (fault.row, fault.kind) == (1, "picture in two splits") and "made.csv, line 12" in fault.detail
    assert seen[-1] == (22, 22)
    column = made.columns["photo"]
    assert isinstance(column, Pictures)
    assert not listings.examine(_replaced(made, "photo", dataclasses.replace(column, shared=True)), deep=True)


def test_two_rows_of_a_split_may_share_a_picture_and_then_it_is_held_once(made):
    column = made.columns["photo"]
    assert isinstance(column, Pictures)
    files = list(column.files)
    files[1] = files[0]
    shared = _replaced(made, "photo", Pictures(files))
    assert not listings.examine(shared, deep=True)
    found = listings.assemble(shared, OPTIONS).splits["train"].load(np.array([0, 1]))["inputs"]["photo"]
    np.testing.assert_array_equal(found[0], found[1])


def test_a_split_without_a_good_row_is_refused(made):
    for row in (6, 7, 8):
        damaged(made, "photo", row, None)
    with pytest.raises(UserError, match="all 3 rows of validation are bad, the first: there is no"):
        listings.assemble(made, with_faults(on_bad_row="skip"))


@pytest.mark.parametrize(("count", "outcome"), [(3, None), (4, "train has 3 rows of 'a' of 4 as published"), (2, "error")])
def test_published_counts(made, count, outcome):
    published = dataclasses.replace(made, published={"train": {"a": count, "rows": 6}})
    if outcome == "error":
        with pytest.raises(UserError, match="train has 3 rows of 'a' of 2 as published; the files are not those"):
            listings.assemble(published, OPTIONS)
    else:
        notes = listings.assemble(published, OPTIONS).notes
        assert (outcome in notes) if outcome else "published" not in notes


@pytest.mark.parametrize("name", ["../x.png", "/etc/passwd", "a/../../x.png", "..", "a\0b", "."])
def test_names_do_not_climb_out(tmp_path, name):
    assert listings.inside(tmp_path, name) is None


@pytest.mark.parametrize("name", ["x.png", "a/b.png", "a/../x.png", "./x.png", "...png", "a b/ü.png"])
def test_names_inside_are_found(tmp_path, name):
    found = listings.inside(tmp_path, name)
    assert found is not None and found.is_relative_to(tmp_path)


def test_a_folder_may_be_where_one_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = pathlib.Path(".")
    assert listings.inside(here, "a/b.png") == pathlib.Path("a/b.png") and listings.inside(here, "../b.png") is None


@pytest.mark.parametrize(("lengths", "expected"), [([3] * 6, 8), ([9] * 6, 16), ([8] * 6, 8), ([1, 1, 1, 1, 1, 17], 24)])
def test_the_length_of_texts_fits_99_of_100(made, lengths, expected):
    texts = [" ".join(["word"] * count) for count in [*lengths, *[40] * 6]]
    dataset = listings.assemble(_replaced(made, "caption", Texts(texts)), OPTIONS)
    assert dataset.features["caption"].shape == (expected,)
