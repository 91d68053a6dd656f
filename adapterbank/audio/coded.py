"""Formats whose sound is a row of packets: Ogg, FLAC and MP3. Whether the row is whole, and whether it is the only one.

libsndfile stops at the first damaged page of an Ogg file, and behind the first stream of several, as if the sound ended
there. What it decodes of FLAC and MP3 it checks itself.
"""

from __future__ import annotations

import struct
import zlib

from adapterbank.audio.opened import AGAIN, SEARCHED, START, Found, Opened, one_behind_another
from adapterbank.errors import AudioFileError

_ALL_ONES = 0xFFFF_FFFF
_BLOCK = 1 << 20  # bytes that are searched at a time
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
# Of the versions 2.5, (none), 2 and 1 of MPEG audio, layer III: kbit/s by the header's index, and samples per second.
_KBITS = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_FRAMES = 4  # of an MP3, one behind the other, that no chance makes


def ogg(opened: Opened) -> Found:
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
            raise one_behind_another(file, position, "Ogg")
        if header[:4] != b"OggS"[: len(header)]:
            if ended:  # tags that some tools append after the stream
                opened.alone(position)
                return Found(end=position)
            raise AudioFileError(f"{file} is damaged: no Ogg page at byte {position} of {total}. {AGAIN}")
        segments = handle.read(header[26]) if len(header) == 27 else b""
        end = position + 27 + sum(segments) + len(segments)
        if len(header) < 27 or len(segments) < header[26] or end > total:
            raise AudioFileError(
                f"{file} is cut: the Ogg page at byte {position} is incomplete at byte {total}. {AGAIN}"
            )
        page = header[:22] + bytes(4) + header[26:] + segments + handle.read(sum(segments))
        handle.seek(end)
        aligned = end == total or handle.read(4) == b"OggS"  # else bytes are missing, which the next turn says
        if aligned and _checksum(page) != struct.unpack("<I", header[22:26])[0]:
            raise AudioFileError(f"{file} is damaged: the Ogg page at byte {position} fails its checksum. {AGAIN}")
        ended = bool(header[5] & 4)
        position = end
    if not ended:
        raise AudioFileError(f"{file} is cut: its last Ogg page, at the end of {total} bytes, ends no stream. {AGAIN}")
    return Found()


def _checksum(page: bytes) -> int:
    """Ogg's CRC-32 of a page (RFC 3533): the polynomial is that of zlib, but bits count from the other end."""
    crc = zlib.crc32(page.translate(_REVERSED), _ALL_ONES) ^ _ALL_ONES
    return int(f"{crc:032b}"[::-1], 2)


def flac(opened: Opened) -> Found:
    """Raises AudioFileError: a second FLAC stream stands behind the first, whose length says nothing in bytes."""
    position, last = 42, b""  # behind the block that every stream begins with
    while block := opened.at(position, _BLOCK):
        searched = last + block
        place = searched.find(b"fLaC\0\0\0\x22")
        if place >= 0:
            raise one_behind_another(opened.file, position - len(last) + place, "FLAC")
        last, position = searched[-7:], position + len(block)
    return Found()


def mp3(opened: Opened) -> Found:
    """Raises AudioFileError: behind the bytes that the Xing header of the first frame counts stand frames of another.

    Without such a header libsndfile reads to the end.
    """
    head = opened.at(0, 64)
    place = max(head.find(b"Xing"), head.find(b"Info"))
    if place < 0 or len(head) < place + 16:
        return Found()
    flags, _, count = struct.unpack(">III", head[place + 4 : place + 16])
    if flags & 3 != 3:  # the second number counts bytes only if both are there
        return Found()
    position = opened.behind_tags(count)
    found = START.match(opened.at(position, 64))
    if found or (0 < position < opened.total and first_frame(opened.at(position, SEARCHED)) is not None):
        raise one_behind_another(opened.file, position, "MP3")
    return Found()


def first_frame(content: bytes, within: int = 4096) -> int | None:
    """Where the frames of an MP3 begin, in the first `within` bytes; None if they do not.

    That may be soon behind the place where an encoder says it, and in the recording of a stream anywhere.
    """
    place = content.find(b"\xff", 0, within)
    while place >= 0:
        end, frames = place, 0
        while frames < _FRAMES and (size := _frame_size(content[end : end + 4])):
            end, frames = end + size, frames + 1
        if frames == _FRAMES:
            return place
        place = content.find(b"\xff", place + 1, within)
    return None


def _frame_size(header: bytes) -> int:
    """Bytes of the frame of MPEG layer III that begins with this header; 0 if it is none."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, kbits, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or rate == 3 or kbits in (0, 15):
        return 0
    per_frame = 144 if version == 3 else 72
    bits = _KBITS[3 if version == 3 else 2][kbits]
    return per_frame * 1000 * bits // _RATES[version][rate] + (header[2] >> 1 & 1)
