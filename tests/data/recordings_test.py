"""Recordings of any rate, width and number of channels become the same spectrogram; resampling is SciPy's; damage is refused in one line."""

from __future__ import annotations

import io
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cimrl_jax.data import recordings, spectrogram
from cimrl_jax.data.recordings import Options
from cimrl_jax.errors import UserError
from cimrl_jax.options import make_options
from tests.data.damage import hurt

soundfile = pytest.importorskip("soundfile")
SHORT = Options(seconds=0.1, rate=8000, bands=16)


def _content(samples: np.ndarray, rate: int = 8000, *, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def _noise(samples: int = 900, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (samples, channels))


@pytest.mark.parametrize(("have", "want"), [(44100, 16000), (8000, 16000), (16000, 8000), (22050, 8000), (11025, 44100), (2003, 1999), (8000, 8000)])
@pytest.mark.parametrize("samples", [0, 1, 700, 40000])
def test_resampling_agrees_with_scipy(have, want, samples):
    signal = pytest.importorskip("scipy.signal")
    values = np.random.default_rng(0).normal(size=samples).astype(np.float32)
    ours, common = recordings.resample(values, have, want), math.gcd(have, want)
    theirs = signal.resample_poly(values.astype(np.float64), want // common, have // common) if samples else np.zeros(0)
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_a_tone_survives_resampling_if_the_new_rate_can_carry_it_and_vanishes_if_not():
    time = np.arange(44100) / 44100
    for tone, kept in ((1000, True), (9500, False), (15000, False)):
        new = recordings.resample(np.sin(2 * np.pi * tone * time).astype(np.float32), 44100, 16000)[200:-200]
        expected = np.sin(2 * np.pi * tone * np.arange(16000) / 16000)[200:-200] if kept else np.zeros(15600)
        assert np.abs(new - expected).max() < (2e-3 if kept else 1e-2)


@pytest.mark.parametrize(
    ("kind", "subtype", "atol"),
    [
        *[("WAV", subtype, 1e-3) for subtype in ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")],
        *[(kind, "PCM_16", 0.01) for kind in ("WAV", "WAVEX", "FLAC")],
        *[("WAV", "PCM_U8", 0.3), ("FLAC", "PCM_S8", 0.3), ("FLAC", "PCM_24", 1e-3)],
    ],
)
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_every_width_and_number_of_channels_gives_the_spectrogram_of_the_mean(tmp_path, kind, subtype, atol, channels):
    samples, path = _noise(channels=channels), tmp_path / "a.raw"  # the format is the content's, not the name's
    path.write_bytes(_content(samples, kind=kind, subtype=subtype))
    found = recordings.read(path, SHORT, where="it")
    mono = samples.mean(1).astype(np.float32)[: spectrogram.span(10, window=200, hop=80)]
    expected = spectrogram.log_mel(np.pad(mono, (0, 920 - len(mono)))[None], rate=8000, bands=16, window=200, hop=80)[0]
    assert found.shape == (10, 16) == recordings.shape(SHORT) and found.dtype == np.float32
    # The lowest values are near the silence of the window's end.
    loud = expected > -12
    assert loud.mean() > 0.5
    np.testing.assert_allclose(found[loud], expected[loud], atol=atol)
    assert (recordings.decode(path.read_bytes(), SHORT, where="it") == found).all()


def test_another_rate_is_the_same_sound():
    tones = {rate: np.sin(2 * np.pi * 700 * np.arange(rate // 5) / rate) * 0.5 for rate in (8000, 16000, 44100, 48000)}
    cells = {rate: recordings.decode(_content(own, rate), SHORT, where="it") for rate, own in tones.items()}
    for rate, own in cells.items():
        assert (own.argmax(1)[1:] == cells[8000].argmax(1)[1:]).all(), rate
        np.testing.assert_allclose(own[1:].max(1), cells[8000][1:].max(1), atol=0.02)


@pytest.mark.parametrize("rate", [8000, 11025])
def test_the_beginning_is_heard_and_silence_follows(tmp_path, rate):
    long, path = _noise(rate), tmp_path / "a.wav"
    path.write_bytes(_content(long, rate))
    whole = recordings.read(path, SHORT, where="it")
    long[rate // 4 :] = 0
    path.write_bytes(_content(long, rate))
    assert (recordings.read(path, SHORT, where="it") == whole).all()
    path.write_bytes(_content(_noise(rate // 20), rate))
    np.testing.assert_allclose(recordings.read(path, SHORT, where="it")[-3:], np.log(spectrogram.FLOOR))


@pytest.mark.parametrize("channels", [1, 2])
def test_wav_files_of_16_bits_need_no_soundfile(tmp_path, monkeypatch, channels):
    path, flac = tmp_path / "a.wav", tmp_path / "a.flac"
    path.write_bytes(_content(_noise(channels=channels), 11025))
    flac.write_bytes(_content(_noise(), kind="FLAC"))
    expected = recordings.read(path, SHORT, where="it")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    np.testing.assert_allclose(recordings.read(path, SHORT, where="it"), expected, atol=1e-5)
    with pytest.raises(UserError, match=r"it: cannot read the recording .*a.flac.*pip install 'cimrl_jax\[data\]'"):
        recordings.read(flac, SHORT, where="it")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected WAV or FLAC"),
        (b"no recording", "expected WAV or FLAC"),
        (_content(_noise())[:1000], "cut short, 844 bytes are missing"),
        (_content(_noise(0)), "no samples"),
        (_content(_noise() * np.nan, subtype="FLOAT"), "no numbers in the range of sound"),
        (_content(_noise() * 1e30, subtype="FLOAT"), "no numbers in the range of sound"),
        (_content(_noise(), 500), "500 Hz and 1 channels"),
        (_content(_noise(channels=80)), "8000 Hz and 80 channels"),
    ],
)
def test_bad_recordings_are_named(tmp_path, content, message):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UserError, match=f"^it: cannot read the recording .*a.wav.*{message}.*$"):
        recordings.read(tmp_path / "a.wav", SHORT, where="it")
    with pytest.raises(UserError, match=f"^it: cannot read the recording.*{message}.*$"):
        recordings.decode(content, SHORT, where="it")


def test_missing_recordings_are_named(tmp_path):
    for path in (tmp_path / "b.wav", tmp_path):
        with pytest.raises(UserError, match=f"it: cannot read the recording {path}"):
            recordings.read(path, SHORT, where="it")


GOOD = {name: _content(_noise(), kind=name) for name in ("WAV", "FLAC")}


@pytest.mark.parametrize("library", ["soundfile", "none"])
@pytest.mark.parametrize("kind", list(GOOD))
@settings(max_examples=40, deadline=2000)
@given(data=st.data())
def test_damaged_recordings_are_read_or_refused(kind, library, data):
    content = hurt(GOOD[kind], data)
    with pytest.MonkeyPatch.context() as patch:
        if library == "none":
            patch.setitem(sys.modules, "soundfile", None)
        try:
            found = recordings.decode(bytes(content), SHORT, where="it")
        except UserError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert found.shape == (10, 16) and found.dtype == np.float32 and np.isfinite(found).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seconds": 0}, "above 0"),
        ({"rate": 100}, "at least 1000"),
        ({"hop": 30.0}, "hop is 30 ms"),
        ({"seconds": 0.001}, "not even one frame"),
        ({"window": 1.0, "hop": 1.0}, "64 mel bands are too many"),
    ],
)
def test_bad_options_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        make_options(Options, given, "data.audio")


def test_the_default_suits_the_default_patches():
    assert recordings.shape(Options()) == (200, 64)
