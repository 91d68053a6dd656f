"""A recording of any length as blocks of samples at 16 kHz, in memory that does not grow with its length.

Resampling block by block gives what resampling the whole would give. An output sample depends on the input a few
hundredths of a second around it, so each block is resampled together with `CONTEXT` seconds on both sides, and what
comes out of these margins is left away. Blocks begin where a whole number of input samples and a whole number of
output samples have passed, so that the phase of the resampling kernel is that of the whole recording.

Symbols: T samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import torch
from torch import Tensor

from adapterbank.audio.clips import floats, mono, one_clip
from adapterbank.audio.containers import checked
from adapterbank.audio.mel import SAMPLE_RATE, check_sample_rate, resample
from adapterbank.audio.opened import AGAIN
from adapterbank.audio.read import UNKNOWN_FRAMES, Forward, as_path, check_header, existing, undecodable
from adapterbank.audio.rows import RATE_KEYS, audio_key, is_array, is_number
from adapterbank.errors import AudioFileError, WaveformError
from adapterbank.numbers import plain

BLOCK_SECONDS = 10  # of one block: 3.5 MB of 44.1 kHz stereo in float32
CONTEXT = 0.25  # seconds: more than any kernel that we resample with reaches, from 1 kHz on


@dataclass(frozen=True)
class Recording:
    """Where samples come from, before any of them is read.

    Iterating gives blocks (T,) in float32 on the CPU, at 16 kHz and with the channels averaged. It works once if the
    recording is a stream, and any number of times otherwise.

    Attributes:
        name: of the file, or what kind of object it is.
        seconds: how long it is; None if nobody knows before its end.
        rate: of the source, in Hz.
        raw: makes the blocks of the source, (T,) at its own rate.

    Raises, while it is iterated:
        AudioFileError: the source breaks; the blocks of all samples before have been given.
        WaveformError: a block of a stream is no waveform.
    """

    name: str
    seconds: float | None
    rate: int
    raw: Iterable[Tensor] = field(repr=False)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.raw) if self.rate == SAMPLE_RATE else _resampled(self.raw, self.rate)


def open_recording(source: Any, sample_rate: int = SAMPLE_RATE) -> Recording:
    """What a user calls a recording, ready to be read in blocks.

    Args:
        source: a path; a waveform (T,), or with an axis of channels; `(waveform, sample_rate)`; an iterator of blocks
            (T,), such as a generator that reads a microphone; or anything else that is a clip, as `clips.py` lists
            them, such as an audio dict of Hugging Face. Of these only a path and an iterator need no memory for the
            whole.
        sample_rate: in Hz, of a waveform or stream that does not say it itself. A file states its own.

    Raises:
        AudioFileError: the file is absent, or no audio. A file that is damaged further on is opened all the same: what
            comes before is read.
        WaveformError: an object that is no recording.
        ConfigError: the sample rate is none.
    """
    if isinstance(source, (str, PathLike)):
        return _open_file(as_path(source))
    if isinstance(source, Mapping) and source.get("bytes") is None and (key := audio_key(source)) is not None:
        rate = next((source[name] for name in RATE_KEYS if source.get(name) is not None), sample_rate)
        value = source[key]
        return open_recording(np.asarray(value, np.float32) if isinstance(value, list) else value, rate)
    if isinstance(source, (tuple, list)) and len(source) > 1 and is_array(source[0]) and is_number(source[1]):
        return open_recording(source[0], source[1])
    rate = plain(sample_rate)
    check_sample_rate(rate)
    if isinstance(source, (Tensor, np.ndarray)):
        samples = _samples(source)
        return Recording("waveform", len(samples) / rate, rate, _Slices(samples, BLOCK_SECONDS * rate))
    if isinstance(source, Iterator) and not hasattr(source, "read"):
        return Recording("stream", None, rate, map(_samples, source))
    if isinstance(source, (tuple, list)):
        raise WaveformError(
            f"got {type(source).__name__} of {len(source)} as a recording, expected a path, a waveform (T,) or "
            "(waveform, sample_rate). For several recordings, call it once for each."
        )
    wave, rate = one_clip(source, rate)
    return Recording(type(source).__name__, len(wave) / rate, rate, _Slices(wave, BLOCK_SECONDS * rate))


def _samples(waveform: Any) -> Tensor:
    """(T,), the mean of the channels if there are several; NaN and loud samples are let pass. Raises WaveformError."""
    if not isinstance(waveform, (Tensor, np.ndarray)):
        raise WaveformError(f"got a block of type {type(waveform).__name__}, expected a 1-D float array or tensor.")
    waveform = floats(waveform)
    if not waveform.numel():
        raise WaveformError("got a recording or block without samples, expected at least one.")
    return mono(waveform)


@dataclass(frozen=True)
class _Slices:
    """A waveform in memory, in views of `step` samples."""

    samples: Tensor
    step: int

    def __iter__(self) -> Iterator[Tensor]:
        for block in self.samples.split(self.step):
            yield block.to("cpu", torch.float32)


def _open_file(file: Path) -> Recording:
    """Looks at the header. Raises AudioFileError if no sample of it could be read."""
    with existing(file).open("rb") as handle, _sound(file, handle)[0] as sound:
        frames, rate = sound.frames, int(sound.samplerate)
    seconds = None if frames >= UNKNOWN_FRAMES else frames / rate
    return Recording(str(file), seconds, rate, _FileBlocks(file))


def _sound(file: Path, handle: BinaryIO) -> tuple[Forward, AudioFileError | None]:
    """The decoder of a file, and what is already known to be wrong with it further on. Raises AudioFileError."""
    source, fault = handle, None
    try:
        source = checked(file, handle)
    except AudioFileError as error:
        fault = error
        handle.seek(0)
    try:
        sound = Forward(source)
        check_header(file, sound)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a ".raw" that `checked` refuses
        raise fault or undecodable(file, error) from error
    except AudioFileError as error:
        raise fault or error from error
    return sound, fault


@dataclass(frozen=True)
class _FileBlocks:
    """The samples of a file at its own rate, decoded when they are asked for."""

    file: Path

    def __iter__(self) -> Iterator[Tensor]:
        with self.file.open("rb") as handle:
            sound, fault = _sound(self.file, handle)
            with sound:
                promised, rate, found = sound.frames, int(sound.samplerate), 0
                try:
                    while len(block := sound.read(BLOCK_SECONDS * rate, dtype="float32", always_2d=True)):
                        found += len(block)
                        yield torch.from_numpy(block.mean(axis=1))
                except soundfile.SoundFileError as error:
                    raise AudioFileError(
                        f"{self.file} cannot be decoded beyond {found / rate:.1f} s ({error}). {AGAIN}"
                    ) from error
        if fault is not None:
            raise AudioFileError(f"{fault} Its sound ends at {found / rate:.1f} s.") from fault
        if found < promised < UNKNOWN_FRAMES:
            raise AudioFileError(
                f"{self.file} is cut: its sound ends at {found / rate:.1f} s, its header says {promised / rate:.1f} s. "
                f"{AGAIN}"
            )
        if not found:
            raise AudioFileError(f"{self.file} holds no samples; expected at least one. {AGAIN}")


def _resampled(raw: Iterable[Tensor], rate: int) -> Iterator[Tensor]:
    """Blocks at `rate` -> blocks at 16 kHz. If the source breaks, all that came before is given first."""
    resampler = _Resampler(rate)
    try:
        for block in raw:
            yield from resampler.push(block)
    except AudioFileError:
        yield from resampler.finish()
        raise
    yield from resampler.finish()


class _Resampler:
    """Blocks at `rate` -> blocks at 16 kHz, equal to resampling all of them as one waveform.

    A unit is the shortest time that is a whole number of samples at both rates: one second at most.
    """

    def __init__(self, rate: int):
        common = math.gcd(rate, SAMPLE_RATE)
        self.rate = rate
        self.unit_in, self.unit_out = rate // common, SAMPLE_RATE // common  # samples of a unit
        self.margin = math.ceil(CONTEXT * common)  # units on each side, whose answer is left away
        self.least = max(2 * self.margin, common)  # units that are answered at a time: a second or more
        self.kept: list[Tensor] = []  # what the next answers need
        self.count = 0  # its samples
        self.done = 0  # its first units, which are answered already

    def push(self, block: Tensor) -> Iterator[Tensor]:
        """What can be answered now."""
        self.kept.append(block)
        self.count += len(block)
        units = self.count // self.unit_in - self.margin  # so far the answer depends on nothing that is still to come
        if units < self.done + self.least:
            return
        yield self._answer(units * self.unit_out)
        rest = max(0, units - self.margin)
        (samples,) = self.kept
        self.kept = [samples[rest * self.unit_in :].clone()]  # a copy, so that the memory before it is freed
        self.count, self.done = len(self.kept[0]), units - rest

    def finish(self) -> Iterator[Tensor]:
        """The end, after the last block."""
        end = -(-self.count * self.unit_out // self.unit_in)
        if end > self.done * self.unit_out:
            yield self._answer(end)

    def _answer(self, end: int) -> Tensor:
        """From the end of what is answered to sample `end` at 16 kHz of what is kept."""
        self.kept = [torch.cat(self.kept)]
        (found,) = resample(self.kept, self.rate)
        return found[self.done * self.unit_out : end]
