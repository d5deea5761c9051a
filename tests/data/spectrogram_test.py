"""Log-mel spectrograms agree with SciPy's transform and keep the laws of mel filters; WAV files are read as they are."""

from __future__ import annotations

import io
import wave

import numpy as np
import pytest
import scipy.signal

from cimrl_jax.data import spectrogram
from cimrl_jax.errors import UserError


def _wav(samples: np.ndarray, *, rate: int = 8000, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def test_it_agrees_with_scipy():
    waves = np.random.default_rng(0).normal(0, 0.1, (300, 700)).astype(np.float32)
    ours = spectrogram.log_mel(waves, rate=8000, bands=20, window=128, hop=50)
    # Without boundary or padding, scaled so that a sine's peak is half its height.
    _, _, bins = scipy.signal.stft(waves.astype(np.float64), window="hann", nperseg=128, noverlap=78, nfft=256, boundary=None, padded=False)  # pyright: ignore[reportArgumentType] -- a gap in the stubs
    filters = spectrogram.mel_filters(rate=8000, bands=20, size=256)
    expected = np.log(np.swapaxes(np.abs(bins) ** 2, 1, 2) @ filters + spectrogram.FLOOR)
    assert ours.shape == (300, 12, 20) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=2e-3)


def test_a_tone_is_loudest_in_its_band_and_silence_is_the_floor():
    rate, bands = 8000, 32
    time = np.arange(2000) / rate
    centres = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), bands + 2)[1:-1] / 2595) - 1)
    tones = np.sin(2 * np.pi * centres[8:, None] * time).astype(np.float32)
    values = spectrogram.log_mel(tones, rate=rate, bands=bands, window=256, hop=160)
    assert (values.argmax(-1) == np.arange(8, bands)[:, None]).all()
    silence = spectrogram.log_mel(np.zeros((1, 2000), np.float32), rate=rate, bands=bands, window=256, hop=160)
    np.testing.assert_allclose(silence, np.log(1e-8), rtol=1e-6)


def test_neighbouring_filters_sum_to_one_and_none_is_empty():
    filters = spectrogram.mel_filters(rate=8000, bands=32, size=512)
    assert (filters.max(0) > 0.2).all() and filters.max() <= 1
    inner = slice(filters[:, 0].argmax() + 1, filters[:, -1].argmax())
    np.testing.assert_allclose(filters[inner].sum(1), 1, atol=1e-12)


def test_span_is_the_length_that_gives_so_many_frames():
    for frames in (1, 7, 32):
        length = spectrogram.span(frames, window=64, hop=24)
        counts = [spectrogram.log_mel(np.zeros((1, n), np.float32), rate=8000, bands=4, window=64, hop=24).shape[1] for n in (length, length + 23)]
        assert counts == [frames, frames]


def test_samples_survive_the_file():
    samples = np.array([-32768, -1, 0, 1, 16384, 32767])
    np.testing.assert_allclose(spectrogram.read_wav(_wav(samples), rate=8000, where="it"), samples / 32768, atol=1e-9)


def test_lengths_are_cut_or_padded_with_silence():
    samples = np.arange(1, 4, dtype=np.float32)
    assert spectrogram.of_length(samples, 2).tolist() == [1, 2]
    assert spectrogram.of_length(samples, 5).tolist() == [1, 2, 3, 0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there.wav is no WAV file"),
        (b"RIFF1234WAVEjunk", "there.wav is no WAV file"),
        (_wav(np.zeros(8), rate=16000), "16000 Hz; expected one of 16 bits at 8000 Hz"),
        (_wav(np.zeros(8), channels=2), "2 channels"),
    ],
)
def test_other_files_are_refused(content, message):
    with pytest.raises(UserError, match=message):
        spectrogram.read_wav(content, rate=8000, where="there.wav")
