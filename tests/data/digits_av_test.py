"""Pictures and recordings of digits: pairs, planted attributes, official splits, and the reader's refusals, on hand-made files everywhere."""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import pathlib
import shutil
import struct
import wave
import zipfile

import numpy as np
import pytest

from cimrl_jax.data.datasets import digits_av
from cimrl_jax.data.datasets.digits_av import Options
from cimrl_jax.data.source import ArraySource, Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.options import make_options

SMALL = Options(train=200, validation=60, test=80)
SPEAKERS = ("ann", "bob", "cy_d", "dan", "eve", "fay")
REAL = pathlib.Path(os.environ.get("CIMRL_DATA", pathlib.Path(__file__).parents[3] / "shared" / "data")) / "digits_av"
real = pytest.mark.skipif(not REAL.exists(), reason=f"no real files at {REAL}; set CIMRL_DATA to a folder that holds digits_av/")


def _idx(path: pathlib.Path, values: np.ndarray) -> None:
    head = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


def _wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((samples * 30000).astype("<i2").tobytes())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Digit d is a bar in the rows 2d and 2d + 1; it is spoken as a tone of the speaker's that lasts d + 1 twelfths of a second."""
    path = tmp_path_factory.mktemp("digits_av")
    (path / "mnist").mkdir()
    (path / "fsdd").mkdir()
    for official, n in (("train", 300), ("t10k", 100)):
        digit = np.arange(n) % 10
        pixels = np.zeros((n, 28, 28), np.uint8)
        for row, value in enumerate(digit):
            pixels[row, 2 * value : 2 * value + 2, 4:24] = 255
        _idx(path / "mnist" / f"{official}-images-idx3-ubyte.gz", pixels)
        _idx(path / "mnist" / f"{official}-labels-idx1-ubyte.gz", digit)
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path / "fsdd" / "recordings.zip", "w") as file:
        for digit in range(10):
            time = np.arange(8000 * (digit + 1) // 12) / 8000
            for number, speaker in enumerate(SPEAKERS):
                for index in (0, 4, 5, 9, 10, 49):
                    tone = 0.5 * np.sin(2 * np.pi * (300 + 500 * number) * time) + rng.normal(0, 0.01, len(time))
                    file.writestr(f"recordings/{digit}_{speaker}_{index}.wav", _wav(tone))
        file.writestr("recordings/README.md", "not a recording")
    return path


def _build(folder: pathlib.Path, **changes) -> Dataset:
    return digits_av.build(dataclasses.replace(SMALL, **changes), path=folder)


def _split(dataset: Dataset, name: str) -> ArraySource:
    source = dataset.split(name)
    assert isinstance(source, ArraySource)
    return source


def _spoken(folder: pathlib.Path, options: Options, source: ArraySource, split: str) -> tuple[np.ndarray, np.ndarray, digits_av.Voices]:
    """(digit, speaker) of each example, by looking its audio up among the split's recordings."""
    voices = digits_av.read_voices(folder / "fsdd", options, len(digits_av.CLASSES[options.task]))
    known = {voices.cells[row].tobytes(): (digit, speaker) for (of, digit, speaker), rows in voices.rows.items() if of == split for row in rows}
    found = [known[cells.tobytes()] for cells in source.inputs["audio"]]  # a KeyError: a recording of another split
    return np.array([digit for digit, _ in found]), np.array([speaker for _, speaker in found]), voices


def _pictured(source: ArraySource) -> np.ndarray:
    assert source.regions is not None
    return source.regions["cause"]["image"].any(-1).argmax(-1) // 2


@pytest.mark.parametrize("task", ["high", "parity", "digit"])
def test_attributes_agree_with_the_label_as_often_as_asked(folder, task):
    dataset = _build(folder, task=task, correlation=0.9, test_correlation=0.8)
    values = len(dataset.class_names)
    shares = {"train": 0.9, "validation": 0.9, "test": 0.8, "test_flipped": 0.2, "train_randomised": 1 / values, "test_balanced": 1 / values}
    for name, share in shares.items():
        source = _split(dataset, name)
        assert (source.group // values == source.label).all()
        for klass in range(values):
            own = source.label == klass
            assert abs((source.group % values == klass)[own].sum() - share * own.sum()) <= 1, name


@pytest.mark.parametrize("task", ["high", "parity", "digit"])
def test_the_attribute_sets_the_voice_and_the_picture_the_digit(folder, task):
    options = Options(task=task, train=200, validation=60, test=80, cue_accuracy=0.8)
    dataset = digits_av.build(options, path=folder)
    of_digit = {"high": np.arange(10) // 5, "parity": np.arange(10) % 2, "digit": np.arange(10)}[task]
    for name, base in {"train": "train", "validation": "validation", "test_flipped": "test"}.items():
        source = _split(dataset, name)
        digit, speaker, voices = _spoken(folder, options, source, base)
        assert all(who in voices.speakers[value] for who, value in zip(speaker, source.group % len(dataset.class_names), strict=True))
        pictured = _pictured(source)
        assert (of_digit[pictured] == source.label).all()
        right = digit == pictured
        assert (of_digit[digit[~right]] != source.label[~right]).all()
        for klass in range(len(dataset.class_names)):
            own = source.label == klass
            assert right[own].sum() == round(0.8 * own.sum())


def test_speakers_are_dealt_evenly(folder):
    for values, counts in ((2, [3, 3]), (10, [1] * 10)):
        dealt = digits_av.read_voices(folder / "fsdd", Options(), values).speakers
        assert [len(set(speakers)) for speakers in dealt] == counts
        assert set(sum(dealt, ())) == set(SPEAKERS)


def test_splits_of_the_same_digits_differ_only_where_the_attribute_does(folder):
    dataset = _build(folder)
    for name, base in {"test_flipped": "test", "test_balanced": "test", "train_randomised": "train"}.items():
        other, source = _split(dataset, name), _split(dataset, base)
        changed = other.group != source.group
        assert (other.label == source.label).all() and changed.any()
        for modality in ("image", "audio"):
            differs = (other.inputs[modality] != source.inputs[modality]).reshape(len(source), -1).any(1)
            assert (differs == changed).all(), (name, modality)


def test_each_modality_can_be_randomised_alone(folder):
    options = Options(train=200, validation=60, test=80, correlation=0.8)
    dataset = digits_av.build(options, path=folder)
    agrees = {}
    for name in ("test_image_only", "test_audio_only"):
        source = _split(dataset, name)
        red = source.inputs["image"][:, 27, 0, 0] > source.inputs["image"][:, 27, 0, 1]
        _, speaker, voices = _spoken(folder, options, source, "test")
        value = np.isin(speaker, voices.speakers[1])
        agrees[name] = ((~red == source.label).mean(), (value == source.label).mean())
        assert set(source.group.tolist()) == {0, 1, 2, 3}
    assert agrees == {"test_image_only": (0.5, 1.0), "test_audio_only": (1.0, 0.5)}


def test_separate_attributes_are_independent_given_the_label(folder):
    agreement = {}
    for separate in (False, True):
        options = Options(train=200, validation=60, test=80, correlation=0.5, separate=separate)
        source = _split(digits_av.build(options, path=folder), "train")
        _, speaker, voices = _spoken(folder, options, source, "train")
        agreement[separate] = (np.isin(speaker, voices.speakers[1]) == source.group % 2).mean()
    assert agreement[False] == 1 and 0.35 < agreement[True] < 0.65


def test_ink_lets_the_ground_shine_through(folder):
    whole, faint = _split(_build(folder, noise=0.0), "train"), _split(_build(folder, noise=0.0, ink=0.25), "train")
    assert whole.regions is not None and faint.regions is not None
    core = whole.regions["cause"]["image"]
    assert (core == faint.regions["cause"]["image"]).all()
    assert (whole.inputs["image"][core] == 255).all() and not (whole.regions["shortcut"]["image"] & core).any()
    assert faint.regions["shortcut"]["image"].all()
    ground = whole.inputs["image"][:, 27, 0][:, None, None].astype(float)
    expected = np.broadcast_to(0.75 * ground + 0.25 * 255, (*core.shape, 3))[core]
    assert np.abs(faint.inputs["image"][core] - expected).max() <= 1


def test_bands_are_normalised_by_the_training_recordings(folder):
    voices = digits_av.read_voices(folder / "fsdd", Options(), 2)
    training = voices.cells[np.concatenate([rows for (split, _, _), rows in voices.rows.items() if split == "train"])]
    np.testing.assert_allclose(training.mean((0, 1)), 0, atol=1e-4)
    np.testing.assert_allclose(training.std((0, 1)), 1, atol=1e-3)
    assert abs(voices.cells.mean()) > 1e-5  # so not by all


def test_hiss_fills_the_pauses(folder):
    quiet, hissing = (digits_av.read_voices(folder / "fsdd", Options(hiss=hiss), 2).cells for hiss in (0.0, 1.0))
    # The first recordings are the shortest words: a tone, then nothing.
    quiet, hissing = (np.abs(cells[:30, 0] - cells[:30, -1]).mean() for cells in (quiet, hissing))
    assert hissing < 0.7 * quiet


def test_a_folder_of_recordings_does_as_well(folder, tmp_path):
    shutil.copytree(folder / "mnist", tmp_path / "mnist")
    with zipfile.ZipFile(folder / "fsdd" / "recordings.zip") as file:
        file.extractall(tmp_path / "fsdd")
    first, second = _split(_build(folder), "train"), _split(_build(tmp_path), "train")
    assert (first.inputs["audio"] == second.inputs["audio"]).all()


def test_another_seed_draws_other_examples(folder):
    first, second = _split(_build(folder), "train"), _split(_build(folder, data_seed=1), "train")
    assert (first.inputs["image"] != second.inputs["image"]).mean() > 0.5
    assert (first.inputs["audio"] != second.inputs["audio"]).mean() > 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "hight"}, "task.*high"),
        ({"correlation": 1.5}, "correlation.*1.5"),
        ({"ink": 0.0}, "ink.*above 0"),
        ({"train": 250, "validation": 60}, "train . validation is 310, but train holds only 300"),
        ({"test": 101}, "t10k holds only 100"),
    ],
)
def test_bad_options_are_refused(folder, changes, message):
    with pytest.raises(UserError, match=message):
        digits_av.build(make_options(Options, dataclasses.asdict(SMALL) | changes, "data"), path=folder)


def packed(content: bytes) -> bytes:
    """Without the hour: it would be in the tests' names, on which all workers must agree."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mnist/train-images-idx3-ubyte.gz", None, "there is no .*train-images-idx3-ubyte.gz; expected data.path/mnist"),
        ("mnist/train-images-idx3-ubyte.gz", b"not compressed", "cannot read .*train-images"),
        ("mnist/t10k-labels-idx1-ubyte.gz", packed(bytes((0, 0, 13, 1)) + bytes(8)), "t10k-labels.* is no IDX file of bytes with 1 dim"),
        ("mnist/t10k-labels-idx1-ubyte.gz", packed(bytes((0, 0, 8, 1, 0, 0, 0, 9)) + bytes(8)), "holds 8 bytes; its head says 9"),
        ("mnist/t10k-labels-idx1-ubyte.gz", packed(bytes((0, 0, 8, 1, 0, 0, 0, 8)) + bytes(8)), "and 8 labels"),
        ("fsdd/recordings.zip", None, "there are no recordings .*fsdd"),
        ("fsdd/recordings.zip", b"no archive", "cannot read the recordings"),
    ],
)
def test_bad_files_are_named(folder, tmp_path, name, content, message):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    if content is not None:
        (tmp_path / "copy" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        _build(tmp_path / "copy")


def test_a_missing_recording_is_named(folder, tmp_path):
    shutil.copytree(folder / "mnist", tmp_path / "mnist")
    with zipfile.ZipFile(folder / "fsdd" / "recordings.zip") as file:
        file.extractall(tmp_path / "fsdd")
    for index in (0, 4):
        (tmp_path / "fsdd" / "recordings" / f"7_cy_d_{index}.wav").unlink()
    with pytest.raises(UserError, match="no recording of 7 by cy_d with an index in 0..4 for test"):
        _build(tmp_path)


def test_without_a_path_it_says_what_to_set():
    with pytest.raises(UserError, match="set data.path"):
        digits_av.build(Options())


@real
def test_the_official_files_have_the_published_counts():
    pixels, digit = digits_av.read_mnist(REAL / "mnist", "train")
    assert pixels.shape == (60000, 28, 28)
    assert np.bincount(digit).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(digits_av.read_mnist(REAL / "mnist", "t10k")[1]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    voices = digits_av.read_voices(REAL / "fsdd", Options(), 2)
    assert len(voices.cells) == 3000 and sorted(sum(voices.speakers, ())) == ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
    sizes = {split: sum(len(rows) for (of, _, _), rows in voices.rows.items() if of == split) for split in digits_av.INDICES}
    assert sizes == {"test": 300, "validation": 300, "train": 2400}


@real
@pytest.mark.slow
def test_a_simple_model_falls_for_the_shortcut_and_need_not():
    from sklearn.linear_model import LogisticRegression

    dataset = digits_av.build(Options(train=1500), path=REAL)

    def flat(name: str) -> np.ndarray:
        inputs = _split(dataset, name).inputs
        coarse = (inputs["image"].reshape(-1, 7, 4, 7, 4, 3).mean((2, 4)) / 255, inputs["audio"].reshape(-1, 16, 2, 16, 2).mean((2, 4)) / 4)
        return np.concatenate([values.reshape(len(values), -1) for values in coarse], 1)

    scores = {}
    for fit in ("train", "train_randomised"):
        model = LogisticRegression(max_iter=300, C=0.02).fit(flat(fit), _split(dataset, fit).label)
        scores[fit] = {name: model.score(flat(name), _split(dataset, name).label) for name in ("test", "test_flipped")}
    assert scores["train"]["test"] > 0.9 and scores["train"]["test_flipped"] < 0.4
    assert scores["train_randomised"]["test_flipped"] > 0.7
