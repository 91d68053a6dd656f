"""An audio file that is being looked at before it is decoded: its bytes, numbers in it, and views of parts of it."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from adapterbank.errors import AudioFileError

AGAIN = "Copy or download the file again, or re-encode it."
_STRAY = 4_096  # bytes behind the sound, of no known kind, that some programs leave there
_TAG = re.compile(rb"TAG|ID3|APETAGEX|LYRICSBEGIN|\0{16}")  # what tools append behind a sound file
SEARCHED = 65_536  # bytes in which a sound file behind something unknown is looked for
# What a sound file starts with, strict enough not to be met by chance.
START = re.compile(
    rb"(RIFF|RF64|BW64)....WAVE|FORM....(AIF[FC]|8SVX|16SV)|fLaC\0\0\0\x22|OggS\0|caff\0\x01\0\0|riff\x2e\x91\xcf\x11"
    rb"|\.snd\0\0..|NIST_1A\n|Creative Voice File\x1a|2BIT.{8}(\0\0|\xff\xff)|ALawSoundFile\*\*\0",
    re.DOTALL,
)

_NAMES = {
    b"RIFF": "WAV",
    b"RF64": "RF64",
    b"BW64": "BW64",
    b"FORM": "AIFF",
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"caff": "CAF",
    b"riff": "W64",
    b".snd": "AU",
    b"NIST": "NIST SPHERE",
    b"Crea": "VOC",
    b"2BIT": "AVR",
    b"ALaw": "WVE",
}


def tag_size(head: bytes) -> int:
    """Bytes of the ID3v2, APE or ID3v1 tag that begins with `head`, of 32 bytes or more; 0 for anything else."""
    if re.match(rb"ID3[\x02-\x04].{6}", head, re.DOTALL) and all(byte < 128 for byte in head[6:10]):
        size = 0
        for byte in head[6:10]:  # seven bits of each byte count
            size = size << 7 | byte
        return 10 + size + (10 if head[5] & 0x10 else 0)  # the flag: a footer repeats the header
    if head.startswith(b"APETAGEX") and len(head) > 15:
        return 32 + int(struct.unpack("<I", head[12:16])[0])
    return 128 if head.startswith(b"TAG") else 0


class View(io.RawIOBase):
    """A file from one of its bytes on, with some bytes replaced, as a file of its own. Nothing is copied.

    Args:
        handle: the file.
        start: its byte that the view counts as 0.
        patches: what is read in place of the file's own bytes, by their position in the view.
        end: the byte of the file at which the view ends; None for the file's end.
    """

    def __init__(
        self, handle: BinaryIO, start: int = 0, patches: Mapping[int, bytes] | None = None, end: int | None = None
    ):
        super().__init__()
        self._handle, self._start, self._patches = handle, start, dict(patches or {})
        self._end = handle.seek(0, io.SEEK_END) if end is None else end
        self.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._handle.tell() - self._start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_CUR:
            offset += self._start if whence == io.SEEK_SET else self._end
            whence = io.SEEK_SET
        self._handle.seek(offset, whence)
        return self.tell()

    def readinto(self, buffer: object) -> int:
        into = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        first = self.tell()
        content = bytearray(self._handle.read(max(0, min(len(into), self._end - self._start - first))))
        for position, patch in self._patches.items():
            for place, byte in enumerate(patch, position - first):
                if 0 <= place < len(content):
                    content[place] = byte
        into[: len(content)] = content
        return len(content)


class Opened(NamedTuple):
    """What a check reads: the file (for messages), its bytes, and how many there are."""

    file: Path
    handle: BinaryIO
    total: int

    def at(self, position: int, count: int) -> bytes:
        self.handle.seek(position)
        return self.handle.read(count)

    def number(self, form: str, position: int) -> int:
        """A number of the header, written as `struct` names it. Raises AudioFileError: the file ends before it."""
        content = self.at(position, struct.calcsize(form))
        if len(content) < struct.calcsize(form):
            raise AudioFileError(f"{self.file} is cut: it ends before its sound begins. {AGAIN}")
        return int(struct.unpack(form, content)[0])

    def claim(self, start: int, size: int) -> None:
        """Raises AudioFileError unless `size` bytes are there, from `start` on."""
        if size > self.total - start:
            raise AudioFileError(
                f"{self.file} is cut: its header claims {size} bytes of sound, {max(0, self.total - start)} are there. "
                f"{AGAIN}"
            )

    def sound(self, start: int, size: int) -> Found:
        """Sound of `size` bytes from `start` on, behind which only tags may stand. Raises AudioFileError."""
        self.claim(start, size)
        self.alone(start + size)
        self.no_more(start + size, size)
        return Found(end=start + size if size > 0 else None)

    def no_more(self, end: int, size: int) -> None:
        """Raises AudioFileError: behind the sound of `size` bytes stands much more, which begins as no tag does.

        A recorder that writes a length now and then, and dies, leaves such a file.
        """
        rest = self.total - end
        if size > 0 and rest > max(_STRAY, size // 10) and not _TAG.match(self.at(end, 32)):
            raise AudioFileError(
                f"{self.file} says that it holds {size} bytes of sound, but {rest} bytes more stand behind them. "
                "If its recorder stopped before it could write the length, repair it: "
                "`ffmpeg -ignore_length 1 -i clip.wav repaired.wav`."
            )

    def behind_tags(self, position: int) -> int:
        """The first byte that belongs to no tag, from `position` on."""
        while size := tag_size(self.at(position, 32)):
            position += size
        return position

    def alone(self, end: int) -> None:
        """Raises AudioFileError: behind the sound, which ends before byte `end`, stands another sound file."""
        end = self.behind_tags(end)
        if found := START.match(self.at(end, 64)):
            raise one_behind_another(self.file, end, _NAMES[found[0][:4]])


class Found(NamedTuple):
    """What a check found.

    Attributes:
        patches: bytes that are to be read in place of the file's own, by their position.
        end: the byte behind the last one that belongs to the sound, if libsndfile would go on beyond it; else None.
    """

    patches: Mapping[int, bytes] = {}
    end: int | None = None


Check = Callable[[Opened], Found]


def one_behind_another(file: Path, position: int, kind: str) -> AudioFileError:
    """What to say of a file that holds several sound files, of which a decoder hears the first only."""
    return AudioFileError(
        f"{file} holds one {kind} stream after another (a second begins at byte {position}), as web radios send them "
        "and as files are that were joined byte by byte; only the first would be heard. Join their sound in place of "
        "their bytes: `ffmpeg -i clip.ogg joined.flac`, or split them."
    )
