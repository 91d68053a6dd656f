"""Whatever people call a clip -> a waveform at 16 kHz. What cannot be used is an error that says which clip, and why.

One clip is any of

    "dog.wav", Path("dog.wav")                 a file
    a 1-D array or tensor of floats            samples in [-1, 1] at the call's `sample_rate`; also a list of floats or
                                               a pandas.Series
    (waveform, 44100), (waveform, 44100, ...)  what torchaudio.load, soundfile.read and torchaudio's data sets give
    {"array": ..., "sampling_rate": 44100}     audio of Hugging Face; also {"path": ..., "bytes": ...}, and a whole row
                                               of a data set, {"audio": ..., "label": ...}
    bytes, open("dog.wav", "rb")               the content of a file
    an AudioDecoder                            audio of a `datasets.Dataset` from version 4 on

Several clips are an array (B, T), a list or generator of clips, a data set, a DataLoader or one of its batches, whose
labels are not looked at. A clip that brings its own sample rate has that one, whatever the call says.

Symbols: B clips, T samples.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from adapterbank.audio.mel import LOUDEST, SAMPLE_RATE, WINDOW, check_sample_rate, resample
from adapterbank.audio.read import read_audio
from adapterbank.audio.rows import RATE_KEYS, audio_key, is_array, is_number, is_one_clip, is_samples, rows
from adapterbank.errors import (
    AdapterBankError,
    AudioFileError,
    ConfigError,
    UnknownNameError,
    WaveformError,
    warn_outside,
)
from adapterbank.numbers import is_whole, plain
from adapterbank.text import amount, verb

CHANNELS = 8  # an axis of at most so many entries, beside a longer one, is that of the channels
LONGEST_SECONDS = 60.0  # of a clip that runs as a whole: attention costs the square of its length
_SCALES = {"int16": "divide by 32768", "int32": "divide by 2147483648", "uint8": "subtract 128, then divide by 128"}
_ACCEPTED = (
    "a path, a 1-D float array or tensor, (waveform, sample_rate), {'array': ..., 'sampling_rate': ...}, or several of "
    "them as (B, T), a list or a data set"
)


@dataclass
class Clips:
    """The clips of a call, each at its own rate and on the device on which it was given.

    Attributes:
        waveforms: one 1-D fp32 tensor per clip; None for one that was left out.
        rates: of each, in Hz.
        failed: why clips were left out, by their places.
    """

    waveforms: list[Tensor | None] = field(default_factory=list)
    rates: list[int] = field(default_factory=list)
    failed: dict[int, Exception] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.waveforms)


@overload
def as_waveforms(x: Any, sample_rate: int | Sequence[int] = ..., on_error: Literal["raise"] = ...) -> list[Tensor]: ...
@overload
def as_waveforms(x: Any, sample_rate: int | Sequence[int] = ..., on_error: str = ...) -> list[Tensor | None]: ...
def as_waveforms(
    x: Any, sample_rate: int | Sequence[int] = SAMPLE_RATE, on_error: str = "raise"
) -> list[Tensor] | list[Tensor | None]:
    """What a user passed as clips, checked, as one-dimensional fp32 tensors at 16 kHz.

    Args:
        x: one clip or several, as the head of this file lists them.
        sample_rate: in Hz, of clips that do not bring their own; one for all, or one per clip.
        on_error: "raise" the first error; or "skip": a clip that cannot be used is None in the result, and one
            `SkippedClipsWarning` counts and names all of them.

    Returns:
        One tensor (T,) per clip; one clip is a list of one.

    Raises:
        WaveformError: no clip at all; or one of an unknown form, empty, shorter than a window of 25 ms, with NaN or
            Inf, of integers, or louder than `LOUDEST`.
        AudioFileError: a file that is no audio, or cut. ConfigError: a sample rate that is none.
    """
    clips = read_clips(x, sample_rate, on_error)
    there = [(wave, rate) for wave, rate in zip(clips.waveforms, clips.rates, strict=True) if wave is not None]
    at_16_khz = iter(resample([wave for wave, _ in there], [rate for _, rate in there]))
    return [None if wave is None else next(at_16_khz) for wave in clips.waveforms]


def read_clips(x: Any, sample_rate: int | Sequence[int] = SAMPLE_RATE, on_error: str = "raise") -> Clips:
    """As `as_waveforms`, but with each clip at its own rate: it can then be resampled on the device that it runs on."""
    check_on_error(on_error)
    if (quick := _plain_tensors(x, sample_rate)) is not None:
        return quick
    rates = _Rates(sample_rate)
    clips = Clips()
    several, readers = rows(x)
    for place, read in enumerate(readers):
        wave, rate = None, SAMPLE_RATE
        try:
            wave, rate = one_clip(read(), rates.of(place))
        except Exception as error:  # of any kind: reading may be the work of somebody's own data set
            if on_error == "raise" and several and isinstance(error, AdapterBankError):
                raise about(error, f"clip {place}") from error
            if on_error == "raise":
                raise
            clips.failed[place] = error
        clips.waveforms.append(wave)
        clips.rates.append(rate)
    if not clips.waveforms:
        raise WaveformError(f"got no waveform, expected at least one: {_ACCEPTED}.")
    rates.check(len(clips))
    if clips.failed:
        warn_of_skipped(clips.failed, len(clips))
    return clips


def _plain_tensors(x: Any, sample_rate: Any) -> Clips | None:
    """The quick way for (B, T) and lists of 1-D tensors in floats; None for all else and where anything is wrong."""
    if not is_whole(sample_rate):
        return None
    if isinstance(x, Tensor):
        if not _is_dense(x) or x.ndim != 2 or not x.is_floating_point() or not len(x):
            return None
        together = x.detach().to(torch.float32)
        waves, loudest, shortest = list(together), [_loudest(together)] if x.shape[1] else [], x.shape[1]
    elif isinstance(x, (list, tuple)) and x:
        if not all(
            isinstance(clip, Tensor) and _is_dense(clip) and clip.ndim == 1 and clip.is_floating_point() for clip in x
        ):
            return None
        waves = [clip.detach().to(torch.float32) for clip in x]
        shortest = min(map(len, waves))
        loudest = [_loudest(wave) for wave in waves] if shortest else []
    else:
        return None
    check_sample_rate(sample_rate)
    if shortest * SAMPLE_RATE < WINDOW * sample_rate or not all(peak <= LOUDEST for peak in loudest):
        return None
    return Clips(list(waves), [sample_rate] * len(waves))


def one_clip(given: Any, sample_rate: Any = SAMPLE_RATE) -> tuple[Tensor, int]:
    """One clip of any form -> (T,) fp32 and its rate in Hz; see the head of this file.

    Args:
        sample_rate: of a clip that does not bring its own.

    Raises:
        WaveformError, AudioFileError, ConfigError: as `as_waveforms`.
    """
    if is_samples(given):
        return _checked(_array(given), sample_rate)
    if isinstance(given, (Tensor, np.ndarray)):
        return _checked(given, sample_rate)
    if isinstance(given, (str, os.PathLike)):
        try:
            return _checked(read_audio(given), SAMPLE_RATE)
        except WaveformError as error:
            raise about(error, os.fspath(given)) from error
    if isinstance(given, (bytes, bytearray, memoryview)):
        return _checked(_decoded(bytes(given)), SAMPLE_RATE)
    if isinstance(given, Mapping):
        return _of_dict(given, sample_rate)
    if isinstance(given, (tuple, list)):
        return _with_rate(given)
    if callable(getattr(given, "get_all_samples", None)):
        return _of_decoder(given)
    if callable(getattr(given, "read", None)):
        content = given.read()
        if isinstance(content, np.ndarray) and hasattr(given, "samplerate"):  # an open soundfile.SoundFile
            return _checked(content, given.samplerate)
        if isinstance(content, (bytes, str)) and not content:
            raise AudioFileError(
                f"got a {type(given).__name__} that has nothing left to read, expected the content of an audio file. "
                "If it was read or written before, wind it back: file.seek(0)."
            )
        if isinstance(content, bytes):
            return _checked(_decoded(content), SAMPLE_RATE)
    raise WaveformError(f"got {type(given).__name__} as a clip, expected {_ACCEPTED}.")


def _with_rate(given: Sequence[Any]) -> tuple[Tensor, int]:
    """(waveform, sample_rate, ...), or with these two in the order of scipy.io.wavfile."""
    if len(given) < 2:
        raise WaveformError(f"got {type(given).__name__} of {len(given)} as a clip, expected {_ACCEPTED}.")
    wave, rate = given[0], plain(given[1])
    if is_number(wave) and is_array(rate):
        wave, rate = rate, plain(wave)
    wave = _array(wave) if is_samples(wave) else wave
    if is_array(wave) and is_number(rate):
        try:
            check_sample_rate(rate)
        except ConfigError as error:
            hint = "If it is a label, pass the clip alone; bank.evaluate takes clips with labels."
            raise ConfigError(f"{error} {hint}") from error
        return _checked(wave, rate)
    what = ", ".join(type(part).__name__ for part in given[:4])
    raise WaveformError(
        f"got ({what}{', ...' * (len(given) > 4)}) as a clip, expected (waveform, sample_rate) or the clip alone. "
        "A call takes clips without labels: [clip for clip, label in data]; bank.evaluate takes pairs."
    )


def _of_dict(given: Mapping[str, Any], sample_rate: Any) -> tuple[Tensor, int]:
    """Hugging Face's dict of audio, or a row that has one."""
    if given.get("bytes") is not None:
        return one_clip(given["bytes"])
    key = audio_key(given)
    if key is None:
        raise WaveformError(
            f"got a dict with {', '.join(map(repr, given)) or 'nothing'}, expected 'array' and 'sampling_rate', "
            "'path', 'bytes', or 'audio' with one of these in it."
        )
    rate = next((given[name] for name in RATE_KEYS if given.get(name) is not None), sample_rate)
    value = given[key]
    if isinstance(value, (list, tuple)) and not is_one_clip(value):
        value = np.asarray(value, dtype=np.float32)
    return one_clip(value, rate)


def _of_decoder(decoder: Any) -> tuple[Tensor, int]:
    """An AudioDecoder of torchcodec: all its samples (channels, T)."""
    try:
        samples = decoder.get_all_samples()
    except RuntimeError as error:
        raise AudioFileError(f"a clip cannot be decoded by {type(decoder).__name__}: {error}") from error
    return _checked(samples.data, samples.sample_rate)


def _decoded(content: bytes) -> Tensor:
    """The content of a file -> (T,) at 16 kHz."""
    if not content:
        raise AudioFileError("got 0 bytes as a clip, expected the content of an audio file.")
    handle, name = tempfile.mkstemp(prefix="adapterbank-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        return read_audio(name)
    except AudioFileError as error:
        raise AudioFileError(str(error).replace(name, f"a file of {len(content)} bytes in memory")) from error
    finally:
        Path(name).unlink(missing_ok=True)


def _checked(clip: Tensor | np.ndarray[Any, Any], sample_rate: Any) -> tuple[Tensor, int]:
    """Samples in floats, of one or several channels -> (T,) fp32, which the front end can hear; and the rate."""
    rate = plain(sample_rate)
    check_sample_rate(rate)
    wave = mono(floats(clip))
    if not len(wave):
        raise WaveformError("got an empty clip, expected at least one sample.")
    peak = float(_loudest(wave))
    if not np.isfinite(peak):
        raise WaveformError("got a clip that holds NaN or Inf, expected finite samples; look at how it was read.")
    if peak > LOUDEST:
        raise WaveformError(
            f"got samples up to {peak:.4g}, expected them in [-1, 1] (up to {LOUDEST:g} is let pass). "
            "Samples of 16 bits are divided by 32768."
        )
    if len(wave) * SAMPLE_RATE < WINDOW * rate:
        raise WaveformError(
            f"got a clip of {amount(len(wave), 'sample')} at {rate} Hz, {1000 * len(wave) / rate:.3g} ms; expected at "
            f"least one window of {1000 * WINDOW / SAMPLE_RATE:g} ms. Several clips of one length are rows of (B, T), "
            "and (T, channels), as soundfile gives it, is passed as (waveform, sample_rate)."
        )
    return wave, rate


def floats(clip: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """Samples of any floating-point type as an fp32 tensor of the same shape. Raises WaveformError for integers."""
    kind = str(clip.dtype).removeprefix("torch.")
    if isinstance(clip, Tensor) and not _is_dense(clip):
        raise WaveformError(
            f"got a tensor of layout {clip.layout} on {clip.device}, expected one that holds its samples one after "
            "another; clip.to_dense() makes one of a sparse tensor."
        )
    if isinstance(clip, np.ma.MaskedArray) and np.ma.getmaskarray(clip).any():
        raise WaveformError(
            "got an array some of whose samples are masked, expected all of them; clip.filled(0) makes them silent."
        )
    if not (clip.dtype.kind == "f" if isinstance(clip, np.ndarray) else clip.is_floating_point()):
        scale = _SCALES.get(kind, "divide by the largest value that the type of the recording can hold")
        raise WaveformError(f"got samples of type {kind}, expected floating point in [-1, 1]; {scale}.")
    if isinstance(clip, np.ndarray):
        # Copied, because torch takes no reversed or byte-swapped array and warns of a read-only one.
        clip = torch.from_numpy(clip.astype(np.float32))
    return clip.detach().to(torch.float32)


def mono(clip: Tensor) -> Tensor:
    """(T,), (channels, T) as torchaudio gives or (T, channels) as soundfile does -> (T,), the mean of the channels."""
    if clip.ndim == 1:
        return clip
    if clip.ndim == 2 and 1 in clip.shape:
        return clip.flatten()
    if clip.ndim == 2:
        first, second = clip.shape
        if first <= CHANNELS < second:
            return clip.mean(dim=0)
        if second <= CHANNELS < first:
            return clip.mean(dim=1)
    raise WaveformError(
        f"got one clip of shape {tuple(clip.shape)}, expected (T,), or (channels, T) with at most {CHANNELS} channels. "
        "Average the channels first, or pass several clips as (B, T)."
    )


def _array(samples: Any) -> np.ndarray[Any, Any]:
    """Plain numbers as an array; whole ones stay whole, so that they are refused as samples that were not divided."""
    try:
        found = np.asarray(samples)
    except ValueError as error:
        raise WaveformError(f"got a list of numbers and of other things, expected samples: {error}.") from error
    return found.astype(np.float32) if found.dtype == object else found


def _is_dense(clip: Tensor) -> bool:
    """Whether a tensor holds its values one by one: not sparse, nested or quantized, and not without any."""
    return clip.layout is torch.strided and not (clip.is_meta or clip.is_nested)


def _loudest(wave: Tensor) -> Tensor:
    """The largest absolute value, NaN if one is in there: one pass, and nothing of the clip's size is made."""
    low, high = wave.aminmax()
    return torch.maximum(-low, high)


class _Rates:
    """The sample rate of each place of a call: one for all, or one per clip."""

    def __init__(self, given: Any):
        several = isinstance(given, Sequence) and not isinstance(given, str)
        self.all = [plain(rate) for rate in given] if several else None
        self.one = plain(given)
        for rate in [self.one] if self.all is None else self.all:
            check_sample_rate(rate)

    def of(self, place: int) -> Any:
        return self.one if self.all is None else self.all[min(place, len(self.all) - 1)]

    def check(self, clips: int) -> None:
        if self.all is not None and len(self.all) != clips:
            raise ConfigError(
                f"got {amount(len(self.all), 'sample rate')} for {amount(clips, 'clip')}, expected one, or one per "
                "clip."
            )


# -- long clips -------------------------------------------------------------------------------------------------------


def is_long(wave: Tensor, rate: int) -> bool:
    """Whether a clip is too long to run as a whole."""
    return len(wave) > LONGEST_SECONDS * rate


def windows(wave: Tensor, rate: int) -> list[Tensor]:
    """A clip in as few pieces of equal length as keep each within `LONGEST_SECONDS`, side by side: views of it."""
    return list(wave.tensor_split(max(1, math.ceil(len(wave) / (LONGEST_SECONDS * rate)))))


def check_length(wave: Tensor, rate: int) -> None:
    """Raises WaveformError for a clip that is too long to run as a whole."""
    if is_long(wave, rate):
        raise WaveformError(
            f"got a clip of {len(wave) / rate:.1f} s, expected at most {LONGEST_SECONDS:g} s. To train on it, pass "
            "crop_seconds=10 to fit, or cut it. bank(...), predict, ask, embed and evaluate take clips of any length, "
            "and bank.scan says what is heard when."
        )


# -- errors -----------------------------------------------------------------------------------------------------------


def check_on_error(on_error: Any) -> None:
    """Raises ConfigError for anything but "raise" and "skip"."""
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"got on_error={on_error!r}, expected 'raise' or 'skip'.")


def about(error: AdapterBankError, what: str) -> AdapterBankError:
    """The same error with what it is about in front, such as "item 17"."""
    if isinstance(error, UnknownNameError):  # its message is made of parts
        return error
    return type(error)(f"{what}: {error}")


def warn_of_skipped(failed: Mapping[int, Exception], total: int, what: str = "clip", most: int = 5) -> None:
    """One warning that counts and names what was left out, at the line outside this package that asked for it."""
    shown = [(f"{what} {place}: ", str(error)) for place, error in list(failed.items())[:most]]
    reasons = "; ".join(text if text.startswith(start) else start + text for start, text in shown)
    more = f"; and {len(failed) - most} more" if len(failed) > most else ""
    of = f"{len(failed)} of {amount(total, what)}"
    warn_outside(f"{of} {verb(len(failed), 'were')} left out. {reasons}{more}")
