"""Recordings on the host: WAV, FLAC and what else libsndfile reads, as log-mel spectrograms of one length (`data/spectrogram.py` has the formula)."""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import pathlib
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float

from cimrl_jax.data import spectrogram
from cimrl_jax.errors import UserError
from cimrl_jax.options import Range

RATES = range(1000, 384001)
"""Sample rates, in Hz, that are believed: beyond them a file's head is damaged."""
CHANNELS = 64
"""Most channels that are believed."""
LOUDEST = 1e4
"""Full scale is 1; what is beyond this (or no number) is damage."""


@dataclasses.dataclass(frozen=True)
class Options:
    seconds: Annotated[float, Range(above=0, high=3600)] = 2.0
    """How much of a recording is heard, from its beginning; silence follows a shorter one. It has seconds / hop frames."""
    rate: Annotated[int, Range(low=1000, high=192000)] = 16000
    """Samples per second, in Hz; recordings at another rate are resampled. Half of it is the highest frequency."""
    bands: Annotated[int, Range(low=1)] = 64
    """Mel bands."""
    window: Annotated[float, Range(above=0, high=1000)] = 25.0
    """Length of a frame, in milliseconds."""
    hop: Annotated[float, Range(above=0, high=1000)] = 10.0
    """From one frame to the next, in milliseconds; at most the window."""

    def __post_init__(self) -> None:
        if self.hop > self.window:
            raise UserError(f"hop is {self.hop:g} ms, but a window is only {self.window:g} ms long; make hop smaller")
        if min(_samples(self.hop, self), _frames(self)) < 1:
            raise UserError(f"{self.seconds:g} s at {self.rate} Hz with a hop of {self.hop:g} ms is not even one frame; choose a longer time or hop")
        if not (spectrogram.mel_filters(rate=self.rate, bands=self.bands, size=2 * _samples(self.window, self)).max(0) > 0).all():
            raise UserError(f"{self.bands} mel bands are too many for windows of {self.window:g} ms; choose fewer or longer ones")


def shape(options: Options) -> tuple[int, int]:
    """(frames, mel bands) of what `read` gives."""
    return _frames(options), options.bands


def read(path: pathlib.Path, options: Options, *, where: str) -> Float[np.ndarray, "time mel"]:
    """A recording file as ln(power + 1e-8), float32: its channels averaged, resampled to `rate`, cut or followed by silence. Of a long file only what
    is heard is read. Without soundfile only WAV files of 16 bits can be read. `where` begins messages.

    Raises:
      UserError: there is no such recording, it is damaged, holds no samples, or soundfile is needed and not installed.
    """
    try:
        with path.open("rb") as file:
            return _log_mel(file, options, f"{where}: cannot read the recording {path}")
    except OSError as error:
        raise UserError(f"{where}: cannot read the recording {path} ({error.strerror or error}); mend its name or fetch it again") from error


def decode(content: bytes, options: Options, *, where: str) -> Float[np.ndarray, "time mel"]:
    """The same of a file's bytes."""
    return _log_mel(io.BytesIO(content), options, f"{where}: cannot read the recording")


def _log_mel(file: Any, options: Options, where: str) -> Float[np.ndarray, "time mel"]:
    window, hop = _samples(options.window, options), _samples(options.hop, options)
    length = spectrogram.span(_frames(options), window=window, hop=hop)
    samples, rate = _read(file, length / options.rate, where)
    if not len(samples):
        raise UserError(f"{where}: it holds no samples; fetch it again")
    if not np.abs(samples).max() <= LOUDEST:
        raise UserError(f"{where}: its samples are no numbers in the range of sound (1 is full scale); fetch it again")
    mono = resample(samples.mean(1, dtype=np.float32), rate, options.rate)
    waves = spectrogram.of_length(mono, length)[None]
    return spectrogram.log_mel(waves, rate=options.rate, bands=options.bands, window=window, hop=hop)[0]


def _read(file: Any, seconds: float, where: str) -> tuple[Float[np.ndarray, "samples channels"], int]:
    """(the samples of so many seconds and a little more, the sample rate)."""
    if (missing := _missing(file)) > 0:
        raise UserError(f"{where}: it was cut short, {missing} bytes are missing; fetch it again")
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there, its library is not
        try:
            samples, rate = spectrogram.decode_wav(file.read(), where=where)
        except UserError as wav:
            raise UserError(f"{wav}; without soundfile only WAV files of 16 bits can be read: run: pip install 'cimrl_jax[data]'") from error
        _believe(rate, samples.shape[1], where)
        return samples, rate
    try:
        # By its descriptor, where it has one: a name would decide the format, whatever the file holds.
        with soundfile.SoundFile(file if isinstance(file, io.BytesIO) else file.fileno(), closefd=False) as sound:
            _believe(sound.samplerate, sound.channels, where)
            count = min(sound.frames, math.ceil((seconds + 0.1) * sound.samplerate))
            samples = sound.read(count, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, OSError, ValueError, TypeError) as error:
        raise UserError(f"{where} ({error}); expected WAV or FLAC: convert it or fetch it again") from error
    if len(samples) < count:
        raise UserError(f"{where}: it ends after {len(samples)} of {sound.frames} samples; fetch it again")
    return samples, sound.samplerate


def _missing(file: Any) -> int:
    """How many bytes a WAV file lacks of what its head says; libsndfile would take what is left for all of it."""
    head, size = file.read(12), file.seek(0, io.SEEK_END)
    file.seek(0)
    said = int.from_bytes(head[4:8], "little") + 8
    # Writers that do not know the length when they begin leave a number near 2**31 or 2**32. Some count the head twice.
    return said - size if head[:4] == b"RIFF" and head[8:] == b"WAVE" and size + 8 < said < 0x7FFF0000 else 0


def _believe(rate: int, channels: int, where: str) -> None:
    if rate not in RATES or channels > CHANNELS:
        limits = f"{RATES[0]} to {RATES[-1]} Hz and at most {CHANNELS} channels"
        raise UserError(f"{where}: it says {rate} Hz and {channels} channels; expected {limits}: fetch it again")


def resample(samples: Float[np.ndarray, " samples"], have: int, want: int) -> Float[np.ndarray, " resampled"]:
    """ceil(samples * want / have) samples at the rate `want`. What the lower of both rates cannot carry is taken out by a sinc under a Kaiser window
    (beta 5, 10 zero crossings to each side), evaluated at the new samples only (a polyphase filter; Crochiere and Rabiner 1983)."""
    if have == want:
        return samples
    common = math.gcd(have, want)
    up, down = want // common, have // common
    phases = _phases(up, down)
    taps = phases.shape[1]
    before = taps // 2
    count = -(-len(samples) * up // down)
    padded = np.pad(samples, (before, taps))
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps)
    out = np.empty(count, np.float32)
    for start in range(0, count, AT_ONCE):
        where = np.arange(start, min(start + AT_ONCE, count)) * down
        out[start : start + AT_ONCE] = np.einsum("nt,nt->n", windows[where // up], phases[where % up])
    return out


AT_ONCE = 1 << 14
"""New samples computed at a time, which bounds the memory."""


@functools.lru_cache(maxsize=4)
def _phases(up: int, down: int) -> Float[np.ndarray, "{up} taps"]:
    """The weights of the samples around a new one that lies p / up of a sample after its middle one, for p = 0 .. up - 1."""
    slower, half = max(up, down), 10 * max(up, down)
    before = half // up + 1
    at = np.arange(up)[:, None] - (np.arange(2 * before + 1) - before) * up  # of the filter, whose unit is 1 / up of a sample
    weights = np.sinc(at / slower) * np.i0(5 * np.sqrt(np.maximum(1 - (at / half) ** 2, 0))) * (abs(at) <= half)
    weights = (weights * up / weights.sum()).astype(np.float32)
    weights.flags.writeable = False
    return weights


def _samples(milliseconds: float, options: Options) -> int:
    return round(options.rate * milliseconds / 1000)


def _frames(options: Options) -> int:
    return round(options.seconds * options.rate / max(_samples(options.hop, options), 1))
