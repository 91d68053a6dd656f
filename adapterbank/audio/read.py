"""From an audio file to a waveform. A file that is no audio, or that was cut short, is refused with a reason.

libsndfile decodes a truncated WAV, AIFF or Ogg file without a warning, so a half-finished download would be trained on
as if it were a shorter clip. For this reason the chunks of WAV and AIFF files and the pages of Ogg files are walked
here before libsndfile decodes them. FLAC and MP3 files need no such check: decoding a cut one fails, or gives fewer
samples than its header promises.
"""

from __future__ import annotations

import io
import struct
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from torch import Tensor
from torchaudio.functional import resample

from adapterbank.audio.mel import SAMPLE_RATE, check_sample_rate
from adapterbank.audio.suffixes import CONVERT_HINT, READABLE_SUFFIXES, UNREADABLE_SUFFIXES
from adapterbank.errors import AudioFileError

__all__ = ["CONVERT_HINT", "READABLE_SUFFIXES", "UNREADABLE_SUFFIXES", "read_audio"]

# A program that writes to a pipe cannot go back and fill in the length. It leaves 0 there, all ones, or (sox, arecord)
# a number just below or at 2 GiB; from this number on a length says nothing.
_OPEN_LENGTH = 0x7FFF_F000
_UNKNOWN_FRAMES = 2**62  # libsndfile's answer for a FLAC stream without a length is 2**63 - 1
_AGAIN = "Copy or download the file again, or re-encode it."


def read_audio(path: str | PathLike[str], sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Decodes a file, averages its channels and resamples it.

    Args:
        path: WAV, FLAC, Ogg, MP3 or whatever else libsndfile reads.
        sample_rate: of the result, in Hz.

    Returns:
        (T,) float32 on the CPU.

    Raises:
        AudioFileError: the file is absent, no audio, empty, cut, or holds NaN or infinite samples.
        ConfigError: the sample rate is not a positive int.
    """
    check_sample_rate(sample_rate)
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise AudioFileError(f"{file} {what}; expected an audio file. Check the path, relative to {Path.cwd()}.")
    if file.stat().st_size == 0:
        raise AudioFileError(f"{file} is empty (0 bytes); expected audio. {_AGAIN}")
    samples, rate = _decode(file)
    if not np.isfinite(samples).all():
        bad = int(np.flatnonzero(~np.isfinite(samples).all(axis=1))[0])
        raise AudioFileError(
            f"{file} holds NaN or infinite samples (the first at {bad / rate:.3f} s); expected finite ones. "
            "Write the file again from its source, or leave it out."
        )
    waveform = torch.from_numpy(samples.mean(axis=1))
    return waveform if rate == sample_rate else resample(waveform, rate, sample_rate)


def _decode(file: Path) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], int]:
    """The samples (T, channels) in float32 and their rate in Hz, as many as promised. Raises AudioFileError."""
    try:
        with file.open("rb") as handle, soundfile.SoundFile(_checked(file, handle)) as sound:
            promised = sound.frames
            if promised >= _UNKNOWN_FRAMES:
                raise AudioFileError(f"{file} does not state its length (it was streamed). Re-encode it to a file.")
            samples = sound.read(dtype="float32", always_2d=True)
            rate = int(sound.samplerate)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: ".raw", which has no header to read
        raise AudioFileError(
            f"{file} cannot be decoded ({error}); expected WAV, FLAC, Ogg, MP3 or another format that libsndfile "
            f"reads. {CONVERT_HINT if file.suffix.lower() in UNREADABLE_SUFFIXES else _AGAIN}"
        ) from error
    if len(samples) < promised:
        raise AudioFileError(
            f"{file} is cut: it decodes to {len(samples)} samples, its header says {promised}. {_AGAIN}"
        )
    if promised == 0:
        raise AudioFileError(f"{file} holds no samples; expected at least one. {_AGAIN}")
    return samples, rate


def _checked(file: Path, handle: BinaryIO) -> BinaryIO:
    """What libsndfile shall read, at its first byte: the file itself, or a copy in memory with its length filled in.

    Raises:
        AudioFileError: the container is cut.
    """
    magic = handle.read(12)
    source: BinaryIO = handle
    if magic[:4] in (b"RIFF", b"RF64", b"BW64") and magic[8:] == b"WAVE":
        source = _check_chunks(file, handle, sound_chunk=b"data", sizes="<I")
    elif magic[:4] == b"FORM" and magic[8:] in (b"AIFF", b"AIFC"):
        source = _check_chunks(file, handle, sound_chunk=b"SSND", sizes=">I")
    elif magic[:4] == b"OggS":
        _check_ogg(file, handle)
    source.seek(0)
    return source


def _check_chunks(file: Path, handle: BinaryIO, sound_chunk: bytes, sizes: str) -> BinaryIO:
    """Walks the chunks of a WAV or AIFF file up to the one that holds the sound.

    Args:
        sound_chunk: its name.
        sizes: how chunk sizes are written, as `struct` names it.

    Raises:
        AudioFileError: it has fewer bytes than it claims, or is not there.
    """
    total = file.stat().st_size
    long_size = None
    handle.seek(12)
    while len(header := handle.read(8)) == 8:
        kind, (size,) = header[:4], struct.unpack(sizes, header[4:])
        start = handle.tell()
        if kind == b"ds64" and len(body := handle.read(16)) == 16:
            long_size = struct.unpack("<Q", body[8:])[0]  # RF64: the data chunk's length past 4 GiB
        if kind == sound_chunk:
            if size == 0xFFFF_FFFF and long_size is not None:
                size = long_size
            elif size == 0 and total > start:
                return _with_length(file, start, total - start, sizes)
            elif size >= _OPEN_LENGTH > total - start:
                return handle
            if size > total - start:
                raise AudioFileError(
                    f"{file} is cut: its header claims {size} bytes of sound, {total - start} are there. {_AGAIN}"
                )
            return handle
        handle.seek(start + size + size % 2)  # chunks start at even offsets
    raise AudioFileError(f"{file} is cut: it ends before its sound begins. {_AGAIN}")


def _with_length(file: Path, start: int, length: int, sizes: str) -> BinaryIO:
    """A copy of the file with the length of its sound filled in, because libsndfile takes a length of 0 for silence.

    The length is filled in only where the length of the whole file was left open too. A file that was closed properly
    and holds no samples stays empty.
    """
    content = bytearray(file.read_bytes())
    if struct.unpack(sizes, content[4:8])[0] in (0, 0xFFFF_FFFF):
        content[start - 4 : start] = struct.pack(sizes, min(length, 0xFFFF_FFFF))
    return io.BytesIO(content)


def _check_ogg(file: Path, handle: BinaryIO) -> None:
    """Walks the pages of an Ogg file.

    Raises:
        AudioFileError: one is damaged, the last is incomplete, or it is not marked as the end of its stream.
    """
    total = file.stat().st_size
    position, ended = 0, False
    while position < total:
        handle.seek(position)
        header = handle.read(27)
        if header[:4] != b"OggS"[: len(header)]:
            if ended:  # tags that some tools append after the stream
                return
            raise AudioFileError(f"{file} is damaged: no Ogg page at byte {position} of {total}. {_AGAIN}")
        segments = handle.read(header[26]) if len(header) == 27 else b""
        end = position + 27 + sum(segments) + len(segments)
        if len(header) < 27 or len(segments) < header[26] or end > total:
            raise AudioFileError(
                f"{file} is cut: the Ogg page at byte {position} is incomplete at byte {total}. {_AGAIN}"
            )
        ended = bool(header[5] & 4)
        position = end
    if not ended:
        raise AudioFileError(f"{file} is cut: its last Ogg page, at the end of {total} bytes, ends no stream. {_AGAIN}")
