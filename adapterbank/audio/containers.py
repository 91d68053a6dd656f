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
| Ogg | in its pages, the last of which is marked; each has a checksum |
| FLAC, MP3, HTK | libsndfile finds a cut one: decoding fails, or gives fewer samples than promised |
| IRCAM, PAF, PVF, MP3 without a Xing header | nowhere: a cut one cannot be told from a shorter one |
Several sound files one behind the other, as `cat` joins them, are refused: a decoder hears the first of them only, or
takes the header of the second for sound.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from adapterbank.audio.coded import first_frame, flac, mp3, ogg
from adapterbank.audio.opened import AGAIN, SEARCHED, START, Check, Found, Opened, View, tag_size
from adapterbank.errors import AudioFileError

# A program that writes to a pipe cannot go back and fill in the length. It leaves 0 there, all ones, or (sox, arecord)
# a number just below or at 2 GiB; from this number on a length says nothing.
_OPEN_LENGTH = 0x7FFF_F000
_ALL_ONES = 0xFFFF_FFFF
_ID3V1 = 128  # bytes of such a tag
# Of these libsndfile takes whatever stands behind the sound for sound.
_TO_THE_END = rb"riff\x2e\x91\xcf\x11|NIST_1A|Creative Voice|FORM....(8SVX|16SV)|2BIT|ALawSound| paf|fap |PVF1|\x64\xa3"


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
    found = check(Opened(file, source, total)) if check else Found()
    if found.patches or (found.end is not None and found.end < total):
        source = View(handle, start, found.patches, end if found.end is None else start + found.end)  # type: ignore[assignment]
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
        size = tag_size(handle.read(32))
        if not size:
            break
        end = start + size
        if end >= total:
            raise AudioFileError(
                f"{file} is cut: the tag before its sound ends at byte {end}, the file at byte {total}. {AGAIN}"
            )
        start = end
    handle.seek(start)
    head = handle.read(SEARCHED)
    if any(re.match(kind, head, re.DOTALL) for kind in _CHECKS):
        return start
    # A frame of an MP3 starts with so many ones that only blanks before it can be told from its sound.
    found = re.match(rb"[\0\r\n ]*(?=\xff[\xe2-\xff])", head)
    if found is not None:
        return start + found.end()
    if found := START.search(head):
        return start + found.start()
    # The recording of a stream begins in the middle of a frame.
    return start + (first_frame(head, within=len(head)) or 0)


def _last_byte(handle: BinaryIO, start: int) -> int | None:
    """Where the sound file ends, if an ID3v1 tag stands behind one that libsndfile reads to the end; else None."""
    total = handle.seek(0, io.SEEK_END)
    handle.seek(start)
    if total - start < _ID3V1 or not re.match(_TO_THE_END, handle.read(64), re.DOTALL):
        return None
    handle.seek(total - _ID3V1)
    return total - _ID3V1 if handle.read(3) == b"TAG" else None


class _Chunks(NamedTuple):
    """A container that is a list of chunks, each of which says its name and its size.

    Attributes:
        sound: the beginning of the name of the chunk that holds the sound.
        first: the byte of the first chunk.
        name: bytes of a name.
        size: how a size is written, as `struct` names it.
        align: chunks start at multiples of it.
        whole: whether a size counts the chunk's own header too.
        to_the_end: whether libsndfile takes whatever stands behind the sound for sound.
    """

    sound: bytes
    first: int = 12
    name: int = 4
    size: str = "<I"
    align: int = 2
    whole: bool = False
    to_the_end: bool = False

    @property
    def header(self) -> int:
        return self.name + struct.calcsize(self.size)

    def at(self, opened: Opened, position: int) -> tuple[bytes, int, int] | None:
        """Name, first byte and size of a chunk's content; None at the end of the file."""
        head = opened.at(position, self.header)
        if len(head) < self.header:
            return None
        (size,) = struct.unpack(self.size, head[self.name :])
        return head[: self.name], position + self.header, size - self.header if self.whole else size

    def after(self, start: int, size: int) -> int:
        """Where the chunk behind one begins."""
        return start + size + (-size % self.align)

    def check(self, opened: Opened) -> Found:
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

    def _sound(self, opened: Opened, start: int, size: int, long_size: int | None) -> Found:
        there = opened.total - start
        if size == _ALL_ONES and long_size is not None:
            size = opened.number("<Q", long_size)
            if size == 0 and there and not self._are_chunks(opened, start):
                return Found({long_size: struct.pack("<Q", there)})
        elif size <= 0 and there and not self._are_chunks(opened, start):
            # Left open, or the recorder died before it could fill the length in. The rest is sound, as no chunk is it.
            length = there + self.header if self.whole else there
            most = _ALL_ONES if self.size.endswith("I") else length
            return Found({start - self.header + self.name: struct.pack(self.size, min(length, most))})
        if size == -1 or size >= _OPEN_LENGTH > there:
            return Found()
        opened.claim(start, size)
        end = self.after(start, size)
        opened.alone(end)
        if (behind := self.at(opened, end)) is not None and behind[0] == opened.at(start - self.header, self.name):
            raise AudioFileError(
                f"{opened.file} holds two chunks of sound, one of {size} bytes and one of {behind[2]}; expected one. "
                "Write the file again: `ffmpeg -i clip.wav whole.wav`."
            )
        chunks = self._are_chunks(opened, end)
        if not chunks:
            opened.no_more(end, size)
        return Found(end=end if self.to_the_end and not (chunks and behind) else None)

    def _are_chunks(self, opened: Opened, position: int) -> bool:
        """Whether chunks with readable names, or nothing, stand from `position` to the end."""
        while (chunk := self.at(opened, position)) is not None:
            name, start, size = chunk
            if not re.fullmatch(rb"[ -~]{4}", name[:4]) or not 0 <= size <= opened.total - start:
                return False
            position = self.after(start, size)
        return True


def _au(opened: Opened) -> Found:
    order = ">" if opened.at(0, 4) == b".snd" else "<"
    start, size = opened.number(f"{order}I", 4), opened.number(f"{order}I", 8)
    if size == 0 and opened.total > start:
        return Found({8: struct.pack(f"{order}I", _ALL_ONES)})  # to the end
    return Found() if size == _ALL_ONES else opened.sound(start, size)


def _avr(opened: Opened) -> Found:
    channels = 2 if opened.number(">H", 12) else 1
    return opened.sound(128, opened.number(">I", 26) * channels * (opened.number(">H", 14) // 8))


def _mpc2000(opened: Opened) -> Found:
    return opened.sound(42, opened.number("<I", 30) * 2 * (opened.number("<B", 21) + 1))


def _wve(opened: Opened) -> Found:
    return opened.sound(32, opened.number(">I", 18))


def _nist(opened: Opened) -> Found:
    found = re.match(rb"NIST_1A\n\s*(\d+)\n", opened.at(0, 64))
    start = int(found[1]) if found else 1024
    header = opened.at(0, min(start, SEARCHED))
    fields = dict(re.findall(rb"^(sample_count|channel_count|sample_n_bytes) -\w+ (\d+)", header, re.MULTILINE))
    if b"sample_count" not in fields:
        return Found()
    frame = int(fields.get(b"channel_count", 1)) * int(fields.get(b"sample_n_bytes", 2))
    return opened.sound(start, int(fields[b"sample_count"]) * frame)


def _sds(opened: Opened) -> Found:
    """Packets of 120 bytes of sound, in 127; a sample takes 2, 3 or 4 bytes of seven bits each."""
    bits = opened.number("<B", 6)
    per_packet = 120 // max(2, -(-bits // 7))
    low, middle, high = (opened.number("<B", place) for place in (10, 11, 12))
    packets = -(-(low | middle << 7 | high << 14) // per_packet)
    return opened.sound(21, packets * 127)


def _voc(opened: Opened) -> Found:
    """Walks blocks: a kind, and a size of three bytes. Kind 0 ends the file, and some writers leave it out."""
    position = opened.number("<H", 20)
    while position < opened.total:
        head = opened.at(position, 4)
        if head[:1] == b"\0":
            opened.alone(position + 1)
            return Found(end=position + 1)
        size = int.from_bytes(head[1:], "little")
        if len(head) < 4:
            size = _ALL_ONES
        opened.claim(position + 4, size)
        position += 4 + size
    return Found()


# What a file starts with, and who knows its length.
_CHECKS: Mapping[bytes, Check] = {
    rb"(RIFF|RF64|BW64)....WAVE": _Chunks(b"data").check,
    rb"RIFX....WAVE": _Chunks(b"data", size=">I").check,
    rb"FORM....AIF[FC]": _Chunks(b"SSND", size=">I").check,
    rb"FORM....(8SVX|16SV)": _Chunks(b"BODY", size=">I", to_the_end=True).check,
    rb"caff": _Chunks(b"data", first=8, size=">q", align=1).check,
    rb"riff\x2e\x91\xcf\x11": _Chunks(
        b"data", first=40, name=16, size="<q", align=8, whole=True, to_the_end=True
    ).check,
    rb"\.snd|dns\.": _au,
    rb"2BIT": _avr,
    rb"\x01\x04.{17}[\0-\x64]\0[\0\x01]": _mpc2000,
    rb"\xf0\x7e.\x01": _sds,
    rb"ALawSoundFile\*\*\0": _wve,
    rb"NIST_1A\n": _nist,
    rb"Creative Voice File\x1a": _voc,
    rb"OggS": ogg,
    rb"fLaC": flac,
    rb"\xff[\xe2-\xff]": mp3,
}
