"""What one audio file is like: its length, its level, and a digest that two copies of a sound share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adapterbank.audio.read import mono_blocks, open_checked
from adapterbank.errors import AudioFileError

RUN = 4  # equal samples at the highest level, one after another: a wave whose top was cut off
LOUD = 0.5  # below it, few levels are left in 8 bit, and a quiet wave may rest on one


@dataclass(frozen=True)
class Heard:
    """One file, decoded.

    Attributes:
        error: why it cannot be decoded; the rest then says nothing.
        peak: the largest distance of a sample from the mean, 1 being full scale.
        clipped: the share of samples in runs of RUN or more at the highest or lowest level, 0 to 1.
        digest: of the samples in 16 bit at the file's own rate, without the digital silence before and after them. A
            copy has the same one, also in another lossless container, with a silence added, or under another name. ""
            for digital silence.
    """

    seconds: float = 0.0
    peak: float = 0.0
    clipped: float = 0.0
    digest: str = ""
    error: str = ""


def listen(file: Path) -> Heard:
    """Decodes a file at its own sample rate."""
    try:
        with open_checked(file) as sound:
            rate = int(sound.samplerate)
            samples = np.concatenate(list(mono_blocks(file, sound)))
    except AudioFileError as error:
        return Heard(error=str(error))
    peak = float(np.abs(samples - samples.mean(dtype=np.float64)).max())
    return Heard(len(samples) / rate, peak, _clipped(samples), _digest(samples, rate))


def _clipped(samples: npt.NDArray[np.float32]) -> float:
    highest, lowest = samples.max(), samples.min()
    if max(highest, -lowest) < LOUD or highest == lowest:
        return 0.0
    return float(_in_runs(samples == highest) + _in_runs(samples == lowest)) / len(samples)


def _in_runs(there: npt.NDArray[np.bool_]) -> int:
    """How many True stand in runs of RUN or more."""
    edges = np.flatnonzero(np.diff(there.astype(np.int8), prepend=0, append=0))
    lengths = edges[1::2] - edges[::2]
    return int(lengths[lengths >= RUN].sum())


def _digest(samples: npt.NDArray[np.float32], rate: int) -> str:
    whole = np.clip(np.rint(samples.astype(np.float64) * 32768), -32768, 32767).astype("<i2")
    sound = np.flatnonzero(whole)
    if not len(sound):
        return ""
    return hashlib.sha256(f"{rate} ".encode() + whole[sound[0] : sound[-1] + 1].tobytes()).hexdigest()
