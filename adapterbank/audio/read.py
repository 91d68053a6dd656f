"""From an audio file to a waveform. A file that is no audio, or that was cut short, is refused with a reason.

What stands around the sound, tags and lengths, is checked by `containers.py` before libsndfile decodes anything.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import soundfile
import torch
from torch import Tensor

from adapterbank.audio.containers import checked
from adapterbank.audio.kinds import what_it_is
from adapterbank.audio.mel import HIGHEST_RATE, LOUDEST, LOWEST_RATE, SAMPLE_RATE, check_sample_rate
from adapterbank.audio.opened import AGAIN
from adapterbank.audio.resampling import DEFAULT_KERNEL, check_kernel, resample_clip
from adapterbank.audio.suffixes import CONVERT_HINT, READABLE_SUFFIXES, UNREADABLE_SUFFIXES
from adapterbank.errors import AudioFileError
from adapterbank.numbers import is_whole

__all__ = [
    "CONVERT_HINT",
    "READABLE_SUFFIXES",
    "UNKNOWN_FRAMES",
    "UNREADABLE_SUFFIXES",
    "Forward",
    "as_path",
    "check_header",
    "existing",
    "mono_blocks",
    "open_checked",
    "read_audio",
    "undecodable",
]

UNKNOWN_FRAMES = 2**62  # libsndfile's answer for a FLAC stream without a length is 2**63 - 1
_BLOCK = 1 << 20  # samples of all channels that are decoded at a time: 4 MB


def read_audio(path: str | PathLike[str], sample_rate: int = SAMPLE_RATE, resampling: str = DEFAULT_KERNEL) -> Tensor:
    """Decodes a file, averages its channels and resamples it.

    Args:
        path: WAV, FLAC, Ogg, MP3 or whatever else libsndfile reads; `READABLE_SUFFIXES` lists them.
        sample_rate: of the result, in Hz, from 1,000 to 768,000.
        resampling: how a file of another rate is resampled: "sox", as sox does it, or "kaiser_best" or "hann", as
            resampy and torchaudio do; docs/features.md says how far they are apart.

    Returns:
        (T,) float32 on the CPU.

    Raises:
        AudioFileError: the file is absent, no audio, empty, cut, has a sample rate outside 1,000 to 768,000 Hz, or
            holds samples that are NaN, infinite, or louder than `LOUDEST`.
        ConfigError: the sample rate is none. UnknownNameError: there is no such resampling.
    """
    check_sample_rate(sample_rate)
    check_kernel(resampling)
    file = as_path(path)
    with open_checked(file) as sound:
        rate = int(sound.samplerate)
        waveform = torch.from_numpy(np.concatenate(list(mono_blocks(file, sound))))
    return resample_clip(waveform, rate, sample_rate, resampling)


class Forward(soundfile.SoundFile):
    """A sound file that is read from its start to its end.

    Behind each block soundfile seeks to where it is anyway, unless it is told that it cannot. GSM and G.721 cannot be
    wound back, and in an MP3 a seek costs the decoder what it remembers of the frames before.
    """

    def seekable(self) -> bool:
        return False


@contextmanager
def open_checked(path: str | PathLike[str]) -> Iterator[soundfile.SoundFile]:
    """Opens an audio file of which nothing is missing, for reading its samples piece by piece.

    Read it with `mono_blocks`, or with `sound.read(frames)`, which takes the next frames, fewer at the end. An error of
    libsndfile inside the `with` block becomes an AudioFileError too.

    Raises:
        AudioFileError: the file is absent, no audio, empty, cut, or has a sample rate outside 1,000 to 768,000 Hz.
    """
    file = existing(path)
    try:
        with file.open("rb") as handle, Forward(checked(file, handle)) as sound:
            check_header(file, sound)
            yield sound
    except soundfile.SoundFileError as error:
        raise undecodable(file, error) from error


def existing(path: str | PathLike[str]) -> Path:
    """A file that is there and not empty. Raises AudioFileError."""
    file = as_path(path)
    try:
        there = file.is_file()
    except (OSError, ValueError) as error:  # a name that is too long, or holds what no name can hold
        raise AudioFileError(f"{str(file)[:80]!r} cannot be the name of a file ({error.args[-1]}).") from error
    if not there:
        raise _absent(file)
    if file.stat().st_size == 0:
        raise AudioFileError(f"{file} is empty (0 bytes); expected audio. {AGAIN}")
    return file


def as_path(path: str | PathLike[str]) -> Path:
    """The path of a file that may be given as a `file://` URL, or from a home folder on. Raises AudioFileError."""
    text = os.fspath(path)
    if isinstance(path, str) and (found := re.match(r"([A-Za-z][\w+.-]+)://", text)):
        if found[1].lower() != "file":
            raise AudioFileError(
                f"{text} is an address on the network; expected a file on this machine. Download it first."
            )
        return Path(url2pathname(urlsplit(text).path))
    if text.startswith("~") and not Path(text).exists():
        try:
            return Path(text).expanduser()
        except RuntimeError:  # a user that there is not
            return Path(text)
    return Path(text)


def _absent(file: Path) -> AudioFileError:
    """What to say of a path at which no file is, and which one may be meant."""
    if file.is_dir():
        return AudioFileError(
            f"{file} is a folder; expected an audio file. Its files are sorted(Path({str(file)!r}).glob('*.wav')), and "
            "load_folder reads a folder with labels."
        )
    text = str(file)
    if re.search(r"[*?]", text):
        told = f"It looks like a pattern: pass sorted(glob.glob({text!r}))."
    elif (bare := text.strip().strip("\"'")) != text and Path(bare).is_file():
        told = f"There is one without the blanks or quotes around it: {bare!r}."
    else:
        near = difflib.get_close_matches(file.name.lower(), names := _names_in(file.parent), n=1)
        told = f"Did you mean {names[near[0]]!r} there? " if near else ""
        told += f"Check the path, relative to {Path.cwd()}."
    return AudioFileError(f"{text} does not exist; expected an audio file. {told}")


def _names_in(folder: Path, most: int = 1000) -> dict[str, str]:
    """{name in small letters: name} of the first files of a folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name.lower(): entry.name for entry in itertools.islice(entries, most)}
    except OSError:
        return {}


def undecodable(file: Path, error: Exception) -> AudioFileError:
    """What to say of a file that libsndfile refuses."""
    told = str(getattr(error, "error_string", error))
    kind, advice = what_it_is(file) or ("", CONVERT_HINT if file.suffix.lower() in UNREADABLE_SUFFIXES else AGAIN)
    looks = f"by its first bytes it is {kind}; " if kind else ""
    return AudioFileError(
        f"{file} cannot be decoded ({looks}{told.rstrip('.')}); expected WAV, FLAC, Ogg, MP3 or another format that "
        f"libsndfile reads. {advice}"
    )


def mono_blocks(file: Path, sound: soundfile.SoundFile, frames: int | None = None) -> Iterator[np.ndarray]:
    """The samples of an open file from where it stands to its end, a block at a time, so that memory stays bounded.

    Args:
        file: for messages.
        sound: as `open_checked` opens it.
        frames: of a block; the last may be shorter. None: what takes 4 MB.

    Returns:
        (T,) float32 each, the mean of all channels.

    Raises:
        AudioFileError: there are fewer samples than promised, or some are NaN, infinite, or louder than `LOUDEST`.
    """
    frames = max(1, _BLOCK // sound.channels) if frames is None else frames
    promised, found = sound.frames, 0
    while found < promised:
        block = sound.read(min(frames, promised - found), dtype="float32", always_2d=True)
        if not len(block):
            if found and promised >= UNKNOWN_FRAMES:  # it was streamed: the end is where the last packet ends
                return
            raise AudioFileError(f"{file} is cut: it decodes to {found} samples, its header says {promised}. {AGAIN}")
        _check_samples(file, block, found / sound.samplerate, sound.samplerate)
        found += len(block)
        yield block.mean(axis=1)


def check_header(file: Path, sound: soundfile.SoundFile) -> None:
    """Raises AudioFileError: it is no sound, its rate is none of a recording, or it has no samples."""
    if sound.format in ("MAT4", "MAT5"):
        raise AudioFileError(
            f"{file} is a table of Matlab; expected audio. Load it with scipy.io.loadmat and pass its array."
        )
    if not is_whole(sound.samplerate, LOWEST_RATE, HIGHEST_RATE):
        raise AudioFileError(
            f"{file} says that its sample rate is {sound.samplerate} Hz; expected {LOWEST_RATE} to {HIGHEST_RATE}. "
            "Its header is wrong: write the file again with the rate at which it was recorded."
        )
    if sound.frames == 0:
        raise AudioFileError(f"{file} holds no samples; expected at least one. {AGAIN}")


def _check_samples(file: Path, block: np.ndarray, start: float, rate: int) -> None:
    """Raises AudioFileError: (T, channels) samples that no sound has. `start`: of the block, in seconds."""
    peaks = np.abs(block).max(axis=1)
    if not np.isfinite(peaks).all():
        bad = int(np.flatnonzero(~np.isfinite(peaks))[0])
        raise AudioFileError(
            f"{file} holds NaN or infinite samples (the first at {start + bad / rate:.3f} s); expected finite ones. "
            "Write the file again from its source, or leave it out."
        )
    if (peak := float(peaks.max())) > LOUDEST:
        raise AudioFileError(
            f"{file} holds samples of {peak:.6g}; expected floating point in [-1, 1], and at most {LOUDEST:g}. They "
            "look like integers that were stored as floats: divide them by 32768 (of 16 bits) and write the file again."
        )
