"""A source of notes: the instruments of soundfonts, played by FluidSynth alone, in chords and phrases, and together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.errors import ConfigError
from adapterbank.pretraining.sources import Sound, register
from adapterbank.pretraining.sources.midi import (
    ALL_SOUND_OFF,
    BANK,
    CHORUS,
    DRUM_CHANNEL,
    REVERB,
    Message,
    bend,
    control,
    note,
    program,
    to_bytes,
)
from adapterbank.pretraining.sources.soundfonts import DRUM_BANK, PACKAGES, Preset, play, presets
from adapterbank.text import amount

FOLDER = Path("/usr/share/sounds/sf2")
DRUM_FONTS = ("Black_Pearl_4_LV2.sf2", "Red_Zeppelin_4_LV2.sf2")  # their drum kit is not in the bank of drum kits
# MuseScore's General soundfont is not among them: it is made from FluidR3, as the instruments of the demo are.
SOUNDFONTS = tuple(FOLDER / name for name in ("TimGM6mb.sf2", "OPL-3_FM_128M.sf2", "sf_GMbank.sf2", *DRUM_FONTS))
KIT_PARTS = 4  # a drum kit has many instruments
CLIPS_IN_PART = 30
MT32_BANK = 127  # the instruments of the other banks again, in the order of another synthesiser
SHORTEST, LONGEST = 0.3, 5.0  # seconds
TYPICAL = (0.1, 0.7)  # mean and spread of the logarithm of the seconds of a single note
# Seconds between clips, in which the room falls silent. With 0.6 a tenth of all clips began with an echo of the one
# before, louder than -26 dB; with 2 the loudest hundredth of echoes is at -51 dB. Silence costs little to play.
GAP = 2.0
SILENT = 1e-3  # of full scale: the peak of what no instrument plays
QUIET = 1e-3  # of the peak: what is below it at the end of a clip is cut off

# Lowest and highest pitch of each of the 128 instruments of General MIDI: of a family of eight, and those that differ
FAMILIES = (
    *((21, 108), (53, 98), (36, 96), (40, 84), (26, 60), (36, 88), (36, 84), (40, 82)),
    *((44, 86), (60, 96), (36, 96), (36, 84), (36, 84), (43, 84), (40, 84), (36, 84)),
)
RANGES = {
    40: (55, 103),
    41: (48, 91),
    42: (36, 76),
    43: (28, 60),
    46: (24, 103),
    47: (36, 57),
    56: (52, 84),
    57: (40, 72),
    58: (28, 58),
    59: (52, 84),
    60: (34, 77),
    61: (36, 84),
    64: (56, 88),
    65: (49, 81),
    66: (44, 76),
    67: (36, 69),
    68: (58, 91),
    69: (52, 81),
    70: (34, 75),
    71: (50, 91),
    72: (74, 108),
    77: (55, 84),
}
CHORDS = (
    *((0, 4, 7), (0, 3, 7), (0, 4, 7, 10), (0, 4, 7, 11), (0, 3, 7, 10)),
    *((0, 3, 6), (0, 4, 8), (0, 5, 7), (0, 7, 12)),
)
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9), (0, 3, 5, 7, 10), (0, 2, 3, 5, 7, 8, 11))
KICKS, SNARES, HATS = (35, 36), (37, 38, 39, 40), (42, 44, 46, 51, 70)
KEYS = (35, 81)  # of a drum kit, each another instrument


@dataclass
class _Take:
    """One clip while it is written: who plays, from when, for how long."""

    rng: np.random.Generator
    start: float
    seconds: float
    preset: Preset
    channel: int = 0
    messages: list[Message] = field(default_factory=list)

    def add(self, pitch: int, after: float, length: float, velocity: int | None = None) -> None:
        """A note `after` seconds into the clip that ends with it at the latest."""
        loud = int(self.rng.integers(25, 128)) if velocity is None else velocity
        length = min(length, self.seconds - after)
        if length > 0:
            self.messages += note(self.channel, int(np.clip(pitch, 0, 127)), loud, self.start + after, length)

    def pitch(self, reach: int = 0) -> int:
        """One within the instrument's range, `reach` semitones below its upper end, the middle more often."""
        low, high = RANGES.get(self.preset.program, FAMILIES[self.preset.program // 8])
        return low + round(float(self.rng.beta(1.6, 1.6)) * max(0, high - low - reach))


@register("notes")
class Notes:
    """Notes, chords, phrases and drums; a part is an instrument, or a drum kit, of a soundfont.

    About half of an instrument's clips are single notes, of all pitches, lengths and velocities that it has; the others
    are intervals, chords, phrases, trills, bends, and mixtures of two or three instruments of the same soundfont. Each
    is near or far in a room, with chorus or without. The soundfonts of the defaults give 15,788 clips in 531 parts, 7.1
    hours, in five minutes of one core.

    Args:
        soundfonts: files of the format SF2 or SF3; a link counts as the file that it leads to, and once.
        clips: tried for each part; those in which nothing sounds are left out.
        drum_fonts: names of files whose instruments all are drum kits.
        seed: of all that is drawn.

    Raises:
        ConfigError: no soundfont, no file there, or one without instruments.
    """

    def __init__(
        self,
        soundfonts: str | Path | Sequence[str | Path] = SOUNDFONTS,
        clips: int = CLIPS_IN_PART,
        drum_fonts: Sequence[str] = DRUM_FONTS,
        seed: int = 0,
    ):
        files = [soundfonts] if isinstance(soundfonts, (str, Path)) else soundfonts
        self.soundfonts = list(dict.fromkeys(Path(file).resolve() for file in files))
        if not self.soundfonts or clips < 1:
            raise ConfigError(
                f"got {amount(len(self.soundfonts), 'soundfont')} and clips={clips}, expected at least one of both; "
                f"known soundfonts: {', '.join(sorted(PACKAGES))}."
            )
        self.seed, self.clips = seed, clips
        self.presets = {file: [one for one in presets(file) if one.bank != MT32_BANK] for file in self.soundfonts}
        self.kits = {
            (file, preset)
            for file in self.soundfonts
            for preset in self.presets[file]
            if preset.bank == DRUM_BANK or file.name in drum_fonts
        }
        self._parts = [
            (file, preset)
            for file in self.soundfonts
            for preset in self.presets[file]
            for _ in range(KIT_PARTS if (file, preset) in self.kits else 1)
        ]
        self.parts = len(self._parts)

    def describe(self) -> dict[str, Any]:
        files = [[file.name, file.stat().st_size] for file in self.soundfonts]
        return {"soundfonts": files, "parts": self.parts, "clips": self.clips, "seed": self.seed}

    def part(self, number: int) -> Iterator[Sound]:
        file, preset = self._parts[number]
        rng = np.random.default_rng((self.seed, number))
        messages, takes, now = [], [], GAP
        for _ in range(self.clips):
            take = self._take(file, preset, rng, now)
            takes.append(take)
            messages += take.messages
            now = take.start + take.seconds + GAP
        room = {"synth.reverb.room-size": rng.uniform(0.1, 0.7), "synth.reverb.damp": rng.uniform(0, 0.8)}
        audio = play(file, to_bytes(messages, now), room)
        for take in takes:
            first = round(take.start * SAMPLE_RATE)
            samples = audio[first : first + round(take.seconds * SAMPLE_RATE)]
            if (placed := _placed(samples, rng)) is not None:
                yield Sound(placed)

    def _take(self, file: Path, preset: Preset, rng: np.random.Generator, start: float) -> _Take:
        """One clip of an instrument, and of its partners where they play together."""
        kit = (file, preset) in self.kits
        playing, shapes = [preset], [_drawn(DRUMS if kit else TUNES, rng)]
        if not kit and rng.random() < TOGETHER:
            playing += self._partners(file, preset, rng)
            shapes = [_loop if (file, one) in self.kits else ACCOMPANY[rng.integers(len(ACCOMPANY))] for one in playing]
        seconds = float(np.clip(rng.lognormal(*TYPICAL), SHORTEST, LONGEST))
        if len(playing) > 1 or shapes[0] in LONG:
            seconds = float(rng.uniform(1.0, LONGEST))
        whole = _Take(rng, start, seconds, preset)
        for channel, (one, shape) in enumerate(zip(playing, shapes, strict=True)):
            take = _Take(rng, start, seconds, one, DRUM_CHANNEL if one.bank == DRUM_BANK else channel)
            _set_up(take)
            shape(take)
            whole.messages += [*take.messages, control(take.channel, ALL_SOUND_OFF, 0, start + seconds + GAP / 4)]
        return whole

    def _partners(self, file: Path, preset: Preset, rng: np.random.Generator) -> list[Preset]:
        """One or two other instruments of the file; one of them may be a drum kit, for which there is one channel."""
        others = [one for one in self.presets[file] if one != preset]
        count = min(len(others), int(rng.integers(1, 3)))
        drawn = [others[index] for index in rng.choice(len(others), count, replace=False)] if count else []
        kits = [one for one in drawn if one.bank == DRUM_BANK]
        return [one for one in drawn if one not in kits[1:]]


def _set_up(take: _Take) -> None:
    """The channel's instrument, how much of it goes into the room and the chorus, and how far it is out of tune."""
    rng, channel, before = take.rng, take.channel, take.start - GAP / 4
    if channel != DRUM_CHANNEL:
        take.messages.append(control(channel, BANK, take.preset.bank, before))
    reverb = int(rng.integers(10, 128)) if rng.random() < 0.5 else 0
    chorus = int(rng.integers(10, 128)) if rng.random() < 0.2 else 0
    detuned = rng.uniform(-0.5, 0.5) if rng.random() < 0.3 else 0.0
    take.messages += [
        program(channel, take.preset.program, before),
        control(channel, REVERB, reverb, before),
        control(channel, CHORUS, chorus, before),
        bend(channel, detuned, before),
    ]


# --- what an instrument plays ----------------------------------------------------------------------------------------


def _single(take: _Take) -> None:
    take.add(take.pitch(), 0, take.seconds * take.rng.uniform(0.3, 1))


def _interval(take: _Take) -> None:
    low, step = take.pitch(12), int(take.rng.integers(1, 13))
    after = take.rng.uniform(0.1, 0.5) * take.seconds if take.rng.random() < 0.4 else 0.0  # together, or in turn
    length = take.seconds * take.rng.uniform(0.4, 0.9)
    take.add(low, 0, length)
    take.add(low + step, after, length)


def _chord(take: _Take) -> None:
    chord = CHORDS[take.rng.integers(len(CHORDS))]
    low, loud, strum = take.pitch(12), int(take.rng.integers(30, 120)), take.rng.uniform(0, 0.04)
    turn = int(take.rng.integers(len(chord)))  # inversion
    for index, step in enumerate((*chord[turn:], *(step + 12 for step in chord[:turn]))):
        take.add(low + step - chord[turn], index * strum, take.seconds * take.rng.uniform(0.5, 0.95), loud)


def _phrase(take: _Take) -> None:
    """A walk on a scale, or a broken chord up and down."""
    rng, now, step = take.rng, 0.0, 0
    root, loud, pace = take.pitch(14), int(take.rng.integers(40, 115)), take.rng.uniform(0.09, 0.5)
    scale = SCALES[rng.integers(len(SCALES))]
    broken = CHORDS[rng.integers(len(CHORDS))] if rng.random() < 0.4 else None
    while now < take.seconds - 0.05:
        length = pace * (1 if broken else rng.choice((0.5, 1, 1, 1, 2)))
        steps = broken or scale
        height = abs((step + len(steps)) % (2 * len(steps)) - len(steps)) if broken else step
        octave, degree = divmod(height, len(steps))
        velocity = int(np.clip(loud + rng.integers(-12, 13), 1, 127))
        take.add(root + 12 * octave + steps[degree], now, length * rng.choice((0.5, 0.9, 1.1)), velocity)
        now += length
        step += 1 if broken else int(rng.integers(-2, 3))


def _trill(take: _Take) -> None:
    low, step, pace = take.pitch(2), int(take.rng.integers(1, 3)), take.rng.uniform(0.06, 0.14)
    loud = int(take.rng.integers(50, 115))
    for index in range(int(take.seconds / pace)):
        take.add(low + step * (index % 2), index * pace, pace, loud)


def _bent(take: _Take) -> None:
    """A note that slides by up to two semitones, or one with vibrato."""
    _single(take)
    depth, times = take.rng.uniform(-2, 2), np.arange(0, take.seconds, 0.02)
    if take.rng.random() < 0.5:
        curve = depth * (1 - times / take.seconds) if take.rng.random() < 0.5 else depth * times / take.seconds
    else:
        curve = 0.4 * depth * np.sin(2 * np.pi * take.rng.uniform(3, 8) * times)
    take.messages += [bend(take.channel, float(b), take.start + t) for b, t in zip(curve, times.tolist(), strict=True)]


def _hit(take: _Take) -> None:
    take.add(int(take.rng.integers(KEYS[0], KEYS[1] + 1)), 0, take.seconds)


def _roll(take: _Take) -> None:
    """One drum again and again, growing or fading."""
    key, pace = int(take.rng.integers(KEYS[0], KEYS[1] + 1)), take.rng.uniform(0.04, 0.3)
    ends = take.rng.integers(30, 128, 2)
    count = max(1, int(take.seconds * take.rng.uniform(0.4, 1) / pace))
    for index, loud in enumerate(np.linspace(ends[0], ends[1], count)):
        take.add(key, index * pace, pace, int(loud))


def _loop(take: _Take) -> None:
    """Kick, snare, a hat or shaker, and sometimes something else, in sixteenths of a tempo."""
    rng, pace = take.rng, 60 / take.rng.uniform(70, 170) / 4
    kick, snare, hat = (int(rng.choice(keys)) for keys in (KICKS, SNARES, HATS))
    every, swing, other = int(rng.choice((1, 2, 4))), rng.uniform(0, 0.3), int(rng.integers(*KEYS))
    for index in range(int(take.seconds / pace)):
        after = (index + swing * (index % 2)) * pace
        beat = index % 16
        if beat % 8 == 0 or rng.random() < 0.12:
            take.add(kick, after, pace, int(rng.integers(80, 128)))
        if beat % 8 == 4 or rng.random() < 0.04:
            take.add(snare, after, pace, int(rng.integers(70, 128)))
        if beat % every == 0:
            take.add(hat, after, pace, int(rng.integers(40, 110)))
        if rng.random() < 0.08:
            take.add(other, after, pace)


Shape = Callable[[_Take], None]
TUNES: dict[Shape, float] = {_single: 0.55, _interval: 0.1, _chord: 0.12, _phrase: 0.15, _trill: 0.03, _bent: 0.05}
DRUMS: dict[Shape, float] = {_hit: 0.6, _roll: 0.15, _loop: 0.25}
LONG: tuple[Shape, ...] = (_phrase, _loop)
ACCOMPANY: tuple[Shape, ...] = (_single, _chord, _phrase)
TOGETHER = 0.09  # share of an instrument's clips in which others play as well


def _drawn(shares: dict[Shape, float], rng: np.random.Generator) -> Shape:
    return list(shares)[rng.choice(len(shares), p=list(shares.values()))]


def _placed(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Without the silence at the end, at a level of -3 to -23 dB; None where nothing sounds."""
    level = 10 ** (rng.uniform(-23, -3) / 20)
    peak = np.abs(samples).max()
    if peak < SILENT:
        return None
    end = np.flatnonzero(np.abs(samples) > QUIET * peak)[-1] + 1
    shortest = min(len(samples), round(SHORTEST * SAMPLE_RATE))
    return (samples[: max(end, shortest)] * (level / peak)).astype(np.float32)
