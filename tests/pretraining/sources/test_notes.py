"""Notes from soundfonts: what is written is what sounds, and a part is the same whenever it is asked."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from adapterbank.errors import ConfigError
from adapterbank.pretraining import sources
from adapterbank.pretraining.pool import Pool
from adapterbank.pretraining.sources import midi, notes, soundfonts
from adapterbank.pretraining.sources.notes import Notes

RATE = 16_000
TIM = Path("/usr/share/sounds/sf2/TimGM6mb.sf2")
ORGAN = 19  # steady, without vibrato
with_fluidsynth = pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not TIM.is_file(), reason="needs fluidsynth and timgm6mb-soundfont"
)


def test_a_midi_file_is_byte_for_byte_what_the_standard_says():
    content = midi.to_bytes(midi.note(0, 69, 100, 0.0, 0.5), seconds=1.0)
    # A beat is half a second: a key down at once, up after 480 ticks (83 60), the end 480 ticks later.
    header = bytes.fromhex("4d546864 00000006 0000 0001 01e0")
    track = bytes.fromhex("00 90 45 64  83 60 80 45 00  83 60 ff 2f 00")
    assert content == header + b"MTrk" + struct.pack(">I", len(track)) + track


@pytest.mark.parametrize(
    ("number", "content"),  # the examples of the MIDI standard
    [
        (0, "00"),
        (0x7F, "7f"),
        (0x80, "8100"),
        (0x2000, "c000"),
        (0x3FFF, "ff7f"),
        (0x4000, "818000"),
        (0x1FFFFF, "ffff7f"),
    ],
)
def test_times_are_written_in_the_standards_variable_length(number, content):
    track = midi.to_bytes([], number / midi.TICKS_PER_SECOND)[22:]
    assert track.hex() == content + "ff2f00"


def test_a_key_is_let_go_before_it_is_pressed_again_at_the_same_time():
    twice = midi.note(0, 60, 90, 0.5, 0.5) + midi.note(0, 60, 90, 0.0, 0.5)
    statuses = [m[0] & 0xF0 for m in _messages(midi.to_bytes(twice, 1.0))]
    assert statuses == [0x90, 0x80, 0x90, 0x80]


@pytest.mark.parametrize(("semitones", "value"), [(0.0, 8192), (-2.0, 0), (2.0, 16383), (5.0, 16383), (1.0, 12288)])
def test_a_bend_is_fourteen_bits_around_the_middle(semitones, value):
    low, high = midi.bend(3, semitones, 0.0).content[1:]
    assert low + 128 * high == value


@with_fluidsynth
@pytest.mark.parametrize(("pitch", "semitones"), [(69, 0.0), (57, 0.0), (81, 0.0), (69, 1.0), (69, -0.5)])
def test_a_note_sounds_at_its_pitch(pitch, semitones):
    score = [midi.program(0, ORGAN, 0.0), midi.bend(0, semitones, 0.0), *midi.note(0, pitch, 100, 0.25, 2.0)]
    audio = soundfonts.play(TIM, midi.to_bytes(score, 2.5))
    assert np.abs(audio[: RATE // 5]).max() < 1e-4 < np.abs(audio[RATE:]).max()
    expected = 440 * 2 ** ((pitch - 69 + semitones) / 12)
    assert _fundamental(audio[RATE : 2 * RATE], near=expected) == pytest.approx(expected, rel=0.006)  # ten cents


@with_fluidsynth
def test_what_is_above_half_the_rate_does_not_come_back_as_another_frequency():
    whole = 2**17
    score = [midi.program(0, 80, 0.0), *midi.note(0, 108, 100, 0.1, 2.0)]  # a square wave at 4186 Hz
    audio = soundfonts.play(TIM, midi.to_bytes(score, 2.2))[RATE // 2 : 3 * RATE // 2]
    power = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), whole)) ** 2
    hertz = np.arange(len(power)) * RATE / whole
    harmonic = np.abs(hertz - 4186) < 150
    assert power[~harmonic & (hertz > 200) & (hertz < 7000)].sum() < 0.01 * power[harmonic].sum()


@with_fluidsynth
def test_a_part_is_the_same_whenever_it_is_asked_and_unlike_the_others():
    first, again = (list(Notes(TIM, clips=6).part(40)) for _ in range(2))
    other, seeded = list(Notes(TIM, clips=6).part(41)), list(Notes(TIM, clips=6, seed=1).part(40))
    assert len(first) == len(again) > 3
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(first, again, strict=True))
    for different in (other, seeded):
        lengths = [[len(sound.samples) for sound in part] for part in (first, different)]
        assert lengths[0] != lengths[1]


@with_fluidsynth
def test_clips_are_short_loud_enough_and_begin_with_their_note():
    source = Notes(TIM, clips=20)
    for number in (0, 48, 128):  # a piano, strings, a drum kit
        for sound in source.part(number):
            samples = sound.samples
            assert samples.dtype == np.float32
            assert sound.said == ""
            assert 0.3 * RATE - 1 <= len(samples) <= 5 * RATE + 1
            assert 10 ** (-23 / 20) - 1e-3 <= np.abs(samples).max() <= 10 ** (-3 / 20) + 1e-3
            if number != 48:  # strings swell
                assert np.abs(samples[: RATE // 4]).max() > 0.1 * np.abs(samples).max()


@with_fluidsynth
def test_what_a_loud_clip_leaves_in_the_largest_room_is_silent_when_the_next_begins():
    end = 1.0 + notes.GAP / 4
    score = [midi.program(0, ORGAN, 0.0), midi.control(0, midi.REVERB, 127, 0.0), *midi.note(0, 60, 127, 0.0, 9.0)]
    score.append(midi.control(0, midi.ALL_SOUND_OFF, 0, end))
    audio = soundfonts.play(TIM, midi.to_bytes(score, 4.0), {"synth.reverb.room-size": 0.7, "synth.reverb.damp": 0.0})
    left = audio[round((1.0 + notes.GAP) * RATE) :]
    assert np.abs(left).max() < 0.01 * np.abs(audio).max()  # -40 dB


@with_fluidsynth
def test_every_instrument_is_a_part_and_kits_are_several():
    source = Notes(TIM)
    melodic = [preset for preset in soundfonts.presets(TIM.resolve()) if preset.bank != soundfonts.DRUM_BANK]
    assert [preset.program for preset in melodic] == list(range(128))
    kits = len(soundfonts.presets(TIM.resolve())) - 128
    assert kits > 0
    assert source.parts == 128 + notes.KIT_PARTS * kits


def test_instruments_are_read_by_bank_and_program_and_the_mt32s_are_not_played_again(tmp_path):
    rows = [
        (b"Flute", 73, 0),
        (b"Kit", 0, 128),
        (b"Flute", 72, notes.MT32_BANK),
        (b"Slow Flute", 73, 8),
        (b"EOP", 0, 0),
    ]
    phdr = b"".join(struct.pack("<20sHHHIII", name, program, bank, 0, 0, 0, 0) for name, program, bank in rows)
    pdta = b"pdta" + struct.pack("<4sI", b"phdr", len(phdr)) + phdr
    info = b"INFO" + struct.pack("<4sI", b"isng", 3) + b"emu\0"
    lists = b"".join(struct.pack("<4sI", b"LIST", len(content)) + content for content in (info, pdta))
    file = tmp_path / "mine.sf2"
    file.write_bytes(struct.pack("<4sI4s", b"RIFF", 4 + len(lists), b"sfbk") + lists)
    found = [(0, 73, "Flute"), (8, 73, "Slow Flute"), (notes.MT32_BANK, 72, "Flute"), (128, 0, "Kit")]
    assert soundfonts.presets(file) == found
    assert Notes(file).parts == 2 + notes.KIT_PARTS


@with_fluidsynth
def test_a_link_counts_as_the_file_it_leads_to_and_once(tmp_path):
    link = tmp_path / "default-GM.sf2"
    link.symlink_to(TIM)
    assert Notes([TIM, link]).describe() == Notes(TIM).describe()


@with_fluidsynth
def test_a_pool_is_made_of_notes_and_opened_again(tmp_path):
    class TwoParts(Notes):
        parts = 2

        def __init__(self):
            super().__init__(TIM, clips=3)
            self.parts = 2

    pool = Pool(TwoParts(), tmp_path)
    assert len(pool) == len(Pool(TwoParts(), tmp_path)) >= 4
    assert float(pool.read(0).abs().max()) > 0.05


def test_a_soundfont_that_is_not_there_names_the_package_that_brings_it(tmp_path):
    with pytest.raises(ConfigError, match="apt install timgm6mb-soundfont"):
        sources.build("notes", soundfonts=tmp_path / "TimGM6mb.sf2")
    with pytest.raises(ConfigError, match="check the path"):
        sources.build("notes", soundfonts=[tmp_path / "my_own.sf2"])


def test_a_file_that_is_no_soundfont_and_one_that_is_cut_off_are_refused(tmp_path):
    wave = tmp_path / "piano.sf2"
    soundfile.write(wave, np.zeros(100), RATE, format="WAV")
    with pytest.raises(ConfigError, match="no soundfont"):
        Notes(wave)
    wave.write_bytes(b"RIFF\x10\0\0\0sfbkLIST\4\0\0\0INFO")
    with pytest.raises(ConfigError, match="no instruments"):
        Notes(wave)


def test_no_soundfont_or_no_clip_is_refused():
    with pytest.raises(ConfigError, match="expected at least one"):
        Notes([])


def test_without_fluidsynth_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="apt install fluidsynth"):
        soundfonts.play(TIM, midi.to_bytes([], 1.0))


def _messages(content: bytes) -> list[bytes]:
    """The channel messages of a file of note messages, read on their own."""
    track, found, at = content[22:], [], 0
    while at < len(track):
        while track[at] & 0x80:
            at += 1
        at += 1
        size = 3
        if track[at] != 0xFF:
            found.append(track[at : at + size])
        at += size
    return found


def _fundamental(audio: np.ndarray, near: float) -> float:
    """The frequency of the highest peak of the spectrum within a tone of `near`, in Hz."""
    size = 2**18
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), size))
    hertz = np.arange(len(spectrum)) * RATE / size
    spectrum[(hertz < near / 1.12) | (hertz > near * 1.12)] = 0
    return float(hertz[spectrum.argmax()])
