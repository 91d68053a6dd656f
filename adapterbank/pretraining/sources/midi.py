"""Writes Standard MIDI Files: as much of the format as playing an instrument needs.

A file is a header and one track. The track is a list of messages, each with the time since the message before it, in
ticks (MIDI 1.0, RP-001).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

TICKS_PER_BEAT = 480
TICKS_PER_SECOND = 960  # without a tempo message a beat takes half a second
BANK, REVERB, CHORUS, ALL_SOUND_OFF = 0, 91, 93, 120  # controllers
DRUM_CHANNEL = 9  # General MIDI: the tenth of sixteen channels plays drum kits
BEND_RANGE = 2.0  # semitones up and down, which a synthesiser has without further messages


class Message(NamedTuple):
    """What a channel is told, and when.

    Attributes:
        seconds: from the beginning of the file.
        content: a status byte, whose lower half is the channel, and one or two bytes below 128.
    """

    seconds: float
    content: bytes


def note(channel: int, pitch: int, velocity: int, seconds: float, length: float) -> list[Message]:
    """A key that is pressed at `seconds` and let go `length` seconds later; pitch 69 is A4, velocity 1 to 127."""
    return [
        Message(seconds, bytes((0x90 | channel, pitch, velocity))),
        Message(seconds + length, bytes((0x80 | channel, pitch, 0))),
    ]


def control(channel: int, controller: int, value: int, seconds: float) -> Message:
    return Message(seconds, bytes((0xB0 | channel, controller, value)))


def program(channel: int, number: int, seconds: float) -> Message:
    """The instrument of a channel, from the bank that the controller BANK chose before."""
    return Message(seconds, bytes((0xC0 | channel, number)))


def bend(channel: int, semitones: float, seconds: float) -> Message:
    """How far all notes of a channel are from their pitch, within BEND_RANGE: 14 bits, the lower seven first."""
    value = min(16383, max(0, round(8192 + 8192 * semitones / BEND_RANGE)))
    return Message(seconds, bytes((0xE0 | channel, value & 0x7F, value >> 7)))


def to_bytes(messages: Iterable[Message], seconds: float) -> bytes:
    """A file that ends at `seconds`. Of messages at one time, keys that are let go come first, in the order given."""
    order = {0x80: 0, 0x90: 2}  # other messages, which set a channel up, between them
    timed = [(round(m.seconds * TICKS_PER_SECOND), order.get(m.content[0] & 0xF0, 1), m.content) for m in messages]
    track, now = bytearray(), 0
    for ticks, _, content in sorted(timed, key=lambda one: one[:2]):
        track += _quantity(ticks - now) + content
        now = ticks
    track += _quantity(max(0, round(seconds * TICKS_PER_SECOND) - now)) + b"\xff\x2f\x00"  # end of the track
    header = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, TICKS_PER_BEAT)
    return header + struct.pack(">4sI", b"MTrk", len(track)) + bytes(track)


def _quantity(number: int) -> bytes:
    """A number of variable length: seven bits a byte, the highest first; all bytes but the last have the top bit."""
    content = bytes((number & 0x7F,))
    while number := number >> 7:
        content = bytes((0x80 | number & 0x7F,)) + content
    return content
