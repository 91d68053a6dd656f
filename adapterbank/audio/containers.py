"""What stands in an audio file around its sound: tags before it, and the length that its header promises.

libsndfile decodes a cut WAV, AU, CAF or Ogg file without a warning, so a half-finished download would be trained on as
if it were a shorter clip. It also counts bytes from the first of the file, so that a tag before a WAV costs the end of
its sound. For this reason `checked` looks at every container that states a length, and hands on a view that begins
where the sound file begins.

| container | where its length stands |
|---|---|
| WAV, RF64, BW64, AIFF, 8SVX, W64, CAF | in the size of the chunk that holds the sound |
| AU, AVR, NIST SPHERE, MPC 2000, SDS, WVE | in a header of fixed form |
| VOC | in each of its blocks |
| Ogg | in its pages, the last of which is marked |
| FLAC, MP3, HTK | libsndfile finds a cut one: decoding fails, or gives fewer samples than promised |
| IRCAM, PAF, PVF, MP3 without a Xing header | nowhere: a cut one cannot be told from a shorter one |
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from adapterbank.errors import AudioFileError

AGAIN = "Copy or download the file again, or re-encode it."
# A program that writes to a pipe cannot go back and fill in the length. It leaves 0 there, all ones, or (sox, arecord)
# a number just below or at 2 GiB; from this number on a length says nothing.
_OPEN_LENGTH = 0x7FFF_F000
_ALL_ONES = 0xFFFF_FFFF
_ID3V1 = 128  # bytes of such a tag
# Of these libsndfile takes whatever stands behind the sound for sound.
_TO_THE_END = rb"riff\x2e\x91\xcf\x11|NIST_1A|Creative Voice|FORM....(8SVX|16SV)|2BIT|ALawSound| paf|fap |PVF1|\x64\xa3"
_STRAY = 4_096  # bytes behind the sound, of no known kind, that some programs leave there
_SEARCHED = 65_536  # bytes in which a sound file behind something unknown is looked for
_TAG = re.compile(rb"TAG|ID3|APETAGEX|LYRICSBEGIN|\0{16}")  # what tools append behind a sound file
# What a sound file starts with, strict enough not to be met by chance.
_START = re.compile(
    rb"(RIFF|RF64|BW64)....WAVE|FORM....(AIF[FC]|8SVX|16SV)|fLaC\0\0\0\x22|OggS\0|caff\0\x01\0\0|riff\x2e\x91\xcf\x11"
    rb"|\.snd\0\0..|NIST_1A\n|Creative Voice File\x1a",
    re.DOTALL,
)


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


def checked(file: Path, handle: BinaryIO) -> BinaryIO:
    """What libsndfile shall read, at its first byte: the file itself, or a view of it.

    The view begins behind tags and other bytes that stand before the sound file, and has the length filled in where a
    program left it open.

    Raises:
        AudioFileError: the container is cut.
    """
    start = _first_byte(file, handle)
    # soundfile asks for the sample rate of what is named .raw, whatever it holds; a view has no name.
    nameless = file.suffix.lower() == ".raw"
    end = _last_byte(handle, start)
    source: BinaryIO = View(handle, start, end=end) if start or nameless or end else handle  # type: ignore[assignment]
    total = source.seek(0, io.SEEK_END)
    source.seek(0)
    magic = source.read(64)
    check = next((check for kind, check in _CHECKS.items() if re.match(kind, magic, re.DOTALL)), None)
    patches = check(_Opened(file, source, total)) if check else {}
    if patches:
        source = View(handle, start, patches, end)  # type: ignore[assignment]
    source.seek(0)
    return source


def _first_byte(file: Path, handle: BinaryIO) -> int:
    """Where the sound file begins: behind ID3v2 and APE tags, and behind anything else that is not too long.

    Raises:
        AudioFileError: a tag says that it is longer than the file.
    """
    total = handle.seek(0, io.SEEK_END)
    start = 0
    while True:
        handle.seek(start)
        head = handle.read(32)
        if re.match(rb"ID3[\x02-\x04].", head, re.DOTALL) and all(byte < 128 for byte in head[6:10]):
            size = 0
            for byte in head[6:10]:  # seven bits of each byte count
                size = size << 7 | byte
            end = start + 10 + size + (10 if head[5] & 0x10 else 0)  # the flag: a footer repeats the header
        elif head.startswith(b"APETAGEX"):
            end = start + 32 + struct.unpack("<I", head[12:16])[0]
        else:
            break
        if end >= total:
            raise AudioFileError(
                f"{file} is cut: the tag before its sound ends at byte {end}, the file at byte {total}. {AGAIN}"
            )
        start = end
    handle.seek(start)
    head = handle.read(_SEARCHED)
    if any(re.match(kind, head, re.DOTALL) for kind in _CHECKS):
        return start
    # A frame of an MP3 starts with so many ones that only blanks before it can be told from its sound.
    found = re.match(rb"[\0\r\n ]*(?=\xff[\xe2-\xff])", head)
    if found is not None:
        return start + found.end()
    found = _START.search(head)
    return start + found.start() if found else start


def _last_byte(handle: BinaryIO, start: int) -> int | None:
    """Where the sound file ends, if an ID3v1 tag stands behind one that libsndfile reads to the end; else None."""
    total = handle.seek(0, io.SEEK_END)
    handle.seek(start)
    if total - start < _ID3V1 or not re.match(_TO_THE_END, handle.read(64), re.DOTALL):
        return None
    handle.seek(total - _ID3V1)
    return total - _ID3V1 if handle.read(3) == b"TAG" else None


class _Opened(NamedTuple):
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


Check = Callable[[_Opened], Mapping[int, bytes]]


class _Chunks(NamedTuple):
    """A container that is a list of chunks, each of which says its name and its size.

    Attributes:
        sound: the beginning of the name of the chunk that holds the sound.
        first: the byte of the first chunk.
        name: bytes of a name.
        size: how a size is written, as `struct` names it.
        align: chunks start at multiples of it.
        whole: whether a size counts the chunk's own header too.
    """

    sound: bytes
    first: int = 12
    name: int = 4
    size: str = "<I"
    align: int = 2
    whole: bool = False

    @property
    def header(self) -> int:
        return self.name + struct.calcsize(self.size)

    def at(self, opened: _Opened, position: int) -> tuple[bytes, int, int] | None:
        """Name, first byte and size of a chunk's content; None at the end of the file."""
        head = opened.at(position, self.header)
        if len(head) < self.header:
            return None
        (size,) = struct.unpack(self.size, head[self.name :])
        return head[: self.name], position + self.header, size - self.header if self.whole else size

    def after(self, start: int, size: int) -> int:
        """Where the chunk behind one begins."""
        return start + size + (-size % self.align)

    def check(self, opened: _Opened) -> Mapping[int, bytes]:
        """Walks to the sound. Raises AudioFileError: it is cut, or not there."""
        position, long_size = self.first, None
        while (chunk := self.at(opened, position)) is not None:
            name, start, size = chunk
            if name == b"ds64":
                long_size = start + 8  # RF64: where the sound's length past 4 GiB stands
            if name.startswith(self.sound):
                return self._sound(opened, start, size, long_size)
            if size < 0:
                break
            position = self.after(start, size)
        raise AudioFileError(f"{opened.file} is cut: it ends before its sound begins. {AGAIN}")

    def _sound(self, opened: _Opened, start: int, size: int, long_size: int | None) -> Mapping[int, bytes]:
        there = opened.total - start
        if size == _ALL_ONES and long_size is not None:
            size = opened.number("<Q", long_size)
            if size == 0 and there and not self._are_chunks(opened, start):
                return {long_size: struct.pack("<Q", there)}
        elif size <= 0 and there and not self._are_chunks(opened, start):
            # Left open, or the recorder died before it could fill the length in. The rest is sound, as no chunk is it.
            length = there + self.header if self.whole else there
            most = _ALL_ONES if self.size.endswith("I") else length
            return {start - self.header + self.name: struct.pack(self.size, min(length, most))}
        if size == -1 or size >= _OPEN_LENGTH > there:
            return {}
        opened.claim(start, size)
        self._check_rest(opened, self.after(start, size), size)
        return {}

    def _are_chunks(self, opened: _Opened, position: int) -> bool:
        """Whether chunks with readable names, or nothing, stand from `position` to the end."""
        while (chunk := self.at(opened, position)) is not None:
            name, start, size = chunk
            if not re.fullmatch(rb"[ -~]{4}", name[:4]) or not 0 <= size <= opened.total - start:
                return False
            position = self.after(start, size)
        return True

    def _check_rest(self, opened: _Opened, position: int, size: int) -> None:
        """Raises AudioFileError: behind the sound stands much more, and it is neither chunks nor tags.

        A recorder that writes a length now and then, and dies, leaves such a file.
        """
        rest = opened.total - position
        if (
            size > 0
            and rest > max(_STRAY, size // 10)
            and not self._are_chunks(opened, position)
            and not _TAG.match(opened.at(position, 32))
        ):
            raise AudioFileError(
                f"{opened.file} says that it holds {size} bytes of sound, but {rest} bytes more stand behind them. "
                "If its recorder stopped before it could write the length, repair it: "
                "`ffmpeg -ignore_length 1 -i clip.wav repaired.wav`."
            )


def _au(opened: _Opened) -> Mapping[int, bytes]:
    order = ">" if opened.at(0, 4) == b".snd" else "<"
    start, size = opened.number(f"{order}I", 4), opened.number(f"{order}I", 8)
    if size == 0 and opened.total > start:
        return {8: struct.pack(f"{order}I", _ALL_ONES)}  # to the end
    if size != _ALL_ONES:
        opened.claim(start, size)
    return {}


def _avr(opened: _Opened) -> Mapping[int, bytes]:
    channels = 2 if opened.number(">H", 12) else 1
    opened.claim(128, opened.number(">I", 26) * channels * (opened.number(">H", 14) // 8))
    return {}


def _mpc2000(opened: _Opened) -> Mapping[int, bytes]:
    opened.claim(42, opened.number("<I", 30) * 2 * (opened.number("<B", 21) + 1))
    return {}


def _wve(opened: _Opened) -> Mapping[int, bytes]:
    opened.claim(32, opened.number(">I", 18))
    return {}


def _nist(opened: _Opened) -> Mapping[int, bytes]:
    found = re.match(rb"NIST_1A\n\s*(\d+)\n", opened.at(0, 64))
    start = int(found[1]) if found else 1024
    header = opened.at(0, min(start, _SEARCHED))
    fields = dict(re.findall(rb"^(sample_count|channel_count|sample_n_bytes) -\w+ (\d+)", header, re.MULTILINE))
    if b"sample_count" in fields:
        frame = int(fields.get(b"channel_count", 1)) * int(fields.get(b"sample_n_bytes", 2))
        opened.claim(start, int(fields[b"sample_count"]) * frame)
    return {}


def _sds(opened: _Opened) -> Mapping[int, bytes]:
    """Packets of 120 bytes of sound, in 127; a sample takes 2, 3 or 4 bytes of seven bits each."""
    bits = opened.number("<B", 6)
    per_packet = 120 // max(2, -(-bits // 7))
    low, middle, high = (opened.number("<B", place) for place in (10, 11, 12))
    packets = -(-(low | middle << 7 | high << 14) // per_packet)
    opened.claim(21, packets * 127)
    return {}


def _voc(opened: _Opened) -> Mapping[int, bytes]:
    """Walks blocks: a kind, and a size of three bytes. Kind 0 ends the file, and some writers leave it out."""
    position = opened.number("<H", 20)
    while position < opened.total:
        head = opened.at(position, 4)
        if head[:1] == b"\0":
            break
        size = int.from_bytes(head[1:], "little")
        if len(head) < 4:
            size = _ALL_ONES
        opened.claim(position + 4, size)
        position += 4 + size
    return {}


def _ogg(opened: _Opened) -> Mapping[int, bytes]:
    """Walks pages.

    Raises:
        AudioFileError: one is damaged, the last is incomplete, or it is not marked as the end of its stream.
    """
    file, handle, total = opened
    position, ended = 0, False
    while position < total:
        handle.seek(position)
        header = handle.read(27)
        if ended and header[:4] == b"OggS" and len(header) == 27 and header[5] & 2:
            raise AudioFileError(
                f"{file} holds one Ogg stream after another (a second begins at byte {position}), as web radios send "
                "them; only the first would be heard. Join them into one: `ffmpeg -i clip.ogg joined.flac`."
            )
        if header[:4] != b"OggS"[: len(header)]:
            if ended:  # tags that some tools append after the stream
                return {}
            raise AudioFileError(f"{file} is damaged: no Ogg page at byte {position} of {total}. {AGAIN}")
        segments = handle.read(header[26]) if len(header) == 27 else b""
        end = position + 27 + sum(segments) + len(segments)
        if len(header) < 27 or len(segments) < header[26] or end > total:
            raise AudioFileError(
                f"{file} is cut: the Ogg page at byte {position} is incomplete at byte {total}. {AGAIN}"
            )
        ended = bool(header[5] & 4)
        position = end
    if not ended:
        raise AudioFileError(f"{file} is cut: its last Ogg page, at the end of {total} bytes, ends no stream. {AGAIN}")
    return {}


# What a file starts with, and who knows its length.
_CHECKS: Mapping[bytes, Check] = {
    rb"(RIFF|RF64|BW64)....WAVE": _Chunks(b"data").check,
    rb"RIFX....WAVE": _Chunks(b"data", size=">I").check,
    rb"FORM....AIF[FC]": _Chunks(b"SSND", size=">I").check,
    rb"FORM....(8SVX|16SV)": _Chunks(b"BODY", size=">I").check,
    rb"caff": _Chunks(b"data", first=8, size=">q", align=1).check,
    rb"riff\x2e\x91\xcf\x11": _Chunks(b"data", first=40, name=16, size="<q", align=8, whole=True).check,
    rb"\.snd|dns\.": _au,
    rb"2BIT": _avr,
    rb"\x01\x04.{17}[\0-\x64]\0[\0\x01]": _mpc2000,
    rb"\xf0\x7e.\x01": _sds,
    rb"ALawSoundFile\*\*\0": _wve,
    rb"NIST_1A\n": _nist,
    rb"Creative Voice File\x1a": _voc,
    rb"OggS": _ogg,
    rb"fLaC": lambda opened: {},
}
