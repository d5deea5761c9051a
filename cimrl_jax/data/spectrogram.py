"""Recordings as log-mel spectrograms, computed once on the host in NumPy: WAV in, `[time, mel]` out."""

from __future__ import annotations

import io
import wave

import numpy as np
from jaxtyping import Float

from cimrl_jax.errors import UserError

FLOOR = 1e-8
"""Added to the power before the logarithm: digital silence comes to -80 dB."""
AT_ONCE = 256
"""Recordings transformed at a time, which bounds the memory."""


def read_wav(content: bytes, *, rate: int, where: str) -> Float[np.ndarray, " samples"]:
    """The samples of a mono 16-bit WAV file, float32 in -1..1. `where` names the file in messages.

    Raises:
      UserError: not such a file, or another sample rate.
    """
    samples, found = decode_wav(content, where=where)
    if (samples.shape[1], found) != (1, rate):
        raise UserError(f"{where} has {samples.shape[1]} channels at {found} Hz; expected one of 16 bits at {rate} Hz: convert it")
    return samples[:, 0]


def decode_wav(content: bytes, *, where: str) -> tuple[Float[np.ndarray, "samples channels"], int]:
    """(the samples of a 16-bit WAV file, float32 in -1..1; its sample rate in Hz).

    Raises:
      UserError: not such a file.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            channels, bits, rate = file.getnchannels(), 8 * file.getsampwidth(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError, RuntimeError) as error:  # RuntimeError: a part longer than the file
        reason = str(error) or "damaged"
        raise UserError(f"{where} is no WAV file that can be read ({reason}); fetch it again from where the data set is distributed") from error
    if bits != 16:
        raise UserError(f"{where} has samples of {bits} bits; expected 16: convert it")
    whole = len(frames) // (2 * channels) * channels
    return np.frombuffer(frames, "<i2", whole).reshape(-1, channels).astype(np.float32) / 32768, rate


def of_length(samples: Float[np.ndarray, " samples"], length: int) -> Float[np.ndarray, " length"]:
    """The first `length` samples, silence put after those of a shorter recording."""
    return np.pad(samples[:length], (0, max(length - len(samples), 0)))


def span(frames: int, *, window: int, hop: int) -> int:
    """Samples that `frames` windows cover."""
    return window + (frames - 1) * hop


def log_mel(waves: Float[np.ndarray, "n samples"], *, rate: int, bands: int, window: int, hop: int) -> Float[np.ndarray, "n time {bands}"]:
    """ln(power + 1e-8) in `bands` mel bands from 0 to half the sample rate, float32.

    Frames are `window` samples under a Hann window, `hop` apart, as many as lie wholly within the recording. The transform is zero-padded to twice
    the window, so that the narrowest band holds a bin. A full-scale sine has power 1/4 at its bin.
    """
    size = 2 * window
    taper = np.hanning(window + 1)[:-1]
    taper = (taper / taper.sum()).astype(np.float32)
    filters = mel_filters(rate=rate, bands=bands, size=size).astype(np.float32)
    count = 1 + (waves.shape[1] - window) // hop
    out = np.empty((len(waves), count, bands), np.float32)
    for start in range(0, len(waves), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        frames = np.lib.stride_tricks.sliding_window_view(waves[rows], window, axis=1)[:, ::hop]
        power = np.abs(np.fft.rfft(frames * taper, size)) ** 2
        out[rows] = np.log(power.astype(np.float32) @ filters + FLOOR)
    return out


def mel_filters(*, rate: int, bands: int, size: int) -> Float[np.ndarray, "bins {bands}"]:
    """Triangles of height 1, equally spaced on the mel scale 2595 log10(1 + f / 700) (O'Shaughnessy 1987), each ending where its neighbours peak.
    `size`: samples in the Fourier transform, which has `size // 2 + 1` bins."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    bins = np.linspace(0, rate / 2, size // 2 + 1)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    return np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clip(0)
