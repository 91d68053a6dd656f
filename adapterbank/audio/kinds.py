"""What a file is that cannot be decoded, by its first bytes, and what to do about it.

A download that failed leaves a page of HTML under the name of a clip, and a clone without Git LFS leaves a text of
three lines. "Format not recognised" says neither.
"""

from __future__ import annotations

import re
from pathlib import Path

from adapterbank.audio.suffixes import CONVERT_HINT

_UNPACK = "Unpack it, and pass what comes out."
_FETCH = "Download the clip again."
# What a file begins with, what it is, and what to do; the first that fits counts.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (rb"version https://git-lfs", "a pointer of Git LFS to the sound, not the sound", "Run `git lfs pull` there."),
    (rb"\s*(<!doctype|<html|<\?xml|<head|<error)", "a web page or an answer of a server (HTML or XML)", _FETCH),
    (rb"\s*[{\[]\s*[\"{\[\]}]", "JSON", _FETCH),
    (rb"HTTP/\d", "the answer of a web server", _FETCH),
    (rb"....ftyp", "MP4 (M4A, AAC or video)", CONVERT_HINT),
    (rb"\x1a\x45\xdf\xa3", "WebM or Matroska", CONVERT_HINT),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA or WMV", CONVERT_HINT),
    (rb"\xff[\xf0\xf1\xf8\xf9]", "AAC", CONVERT_HINT),
    (rb"#!AMR|#!SILK|.#!SILK", "a telephone's recording (AMR or SILK)", CONVERT_HINT),
    (rb"wvpk|MAC |TTA1|MPCK|MP\+|tBaK|DSD |FRM8|ajkg|\.RMF|\x0b\x77", "another audio format", CONVERT_HINT),
    (rb"RIFF....AVI |FLV\x01|\0\0\x01[\xb3\xba]", "a video", CONVERT_HINT),
    (rb"MThd", "MIDI, which holds notes and no sound", "Render it to audio first."),
    (rb"\x93NUMPY", "an array of NumPy", "Pass np.load(path), with its sample rate."),
    (rb"PK\x03\x04", "a ZIP archive, or what torch.save or np.savez writes", _UNPACK),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd", "a compressed archive", _UNPACK),
    (rb"\x89HDF", "a table in HDF5", "Read it with h5py and pass its arrays."),
    (rb"PAR1", "a table in Parquet", "Read it with the library that made it, and pass its audio."),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|BM....\0\0\0\0", "an image", _FETCH),
    (rb"%PDF", "a PDF", _FETCH),
    (rb"UklGR|T2dnU|ZkxhQ|SUQz|/\+[MNP]", "text in Base64", "Decode it with base64.b64decode, and pass the bytes."),
    (rb"\0{512}", "zeros", "Copy or download it again: the disk or the download left it unwritten."),
    (rb"[\t\n\r -~]{512}|[\t\n\r -~]+$", "text", _FETCH),
)


def what_it_is(file: Path) -> tuple[str, str] | None:
    """What kind of file it is, and what to do; None if its first bytes do not say it, or it cannot be read."""
    try:
        with file.open("rb") as handle:
            head = handle.read(512)
    except OSError:
        return None
    head = head.removeprefix(b"\xef\xbb\xbf")
    found = (kind for kind in _KINDS if re.match(kind[0], head, re.DOTALL | re.IGNORECASE))
    return next(((name, advice) for _, name, advice in found), None)


# What a sound file that `read_audio` decodes begins with.
_SOUND = re.compile(
    rb"(RIFF|RF64|BW64|RIFX)....WAVE|FORM....(AIF[FC]|8SVX|16SV)|fLaC|OggS|caff\0\x01|riff\x2e\x91\xcf\x11|\.snd\0\0"
    rb"|NIST_1A\n|Creative Voice File|ID3[\x02-\x04]|\xff[\xf2\xf3\xfa\xfb]",
    re.DOTALL,
)


def holds_sound(file: Path) -> bool:
    """Whether a file begins as a sound file does that can be decoded. False of a pipe, and of what cannot be opened."""
    if not file.is_file():  # a pipe would wait for somebody who writes into it
        return False
    try:
        with file.open("rb") as handle:
            return _SOUND.match(handle.read(32)) is not None
    except OSError:
        return False
