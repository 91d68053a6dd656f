"""Spoken words: what is said, by whom, and that it follows from the number of the part alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.pretraining import sources
from adapterbank.pretraining.sources import voices


def tone(text: str, rng: np.random.Generator) -> voices.Spoken:
    """A voice without a program: the longer the word the longer the tone, between two silences."""
    seconds = np.arange(800 * len(text)) / 8_000
    return np.pad(np.sin(2 * np.pi * rng.uniform(200, 900) * seconds), 500).astype(np.float32), 8_000


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(voices.VOICES, "tone", tone)
    file = tmp_path / "words.dic"
    file.write_text("4\nhouse/SM\ntree\nHouse\nI\nit's\nümlaut\ntree\n", encoding="utf-8")
    return file


def test_words_of_a_hunspell_dictionary_are_each_taken_once_without_names_and_contractions(words: Path) -> None:
    source = sources.build("speech", words=words, speakers=2, shares={"tone": 1})
    assert sorted({sound.said for sound in source.part(0)}) == ["house", "tree", "ümlaut"]
    assert source.parts == 1


def test_every_speaker_says_every_word_in_the_loudness_that_was_promised(words: Path) -> None:
    found = list(sources.build("speech", words=words, speakers=5, shares={"tone": 1}).part(0))
    assert [sound.said for sound in found].count("tree") == 5
    levels = [20 * np.log10(np.abs(sound.samples).max()) for sound in found]
    assert -23.1 < min(levels) < max(levels) < -2.9
    assert len({sound.samples.tobytes() for sound in found}) == len(found)


def test_a_word_keeps_its_length_and_gets_at_most_a_third_of_a_second_of_silence_at_either_end(words: Path) -> None:
    for sound in sources.build("speech", words=words, speakers=5, shares={"tone": 1}).part(0):
        loud = np.flatnonzero(np.abs(sound.samples) > 0.01 * np.abs(sound.samples).max())
        assert abs(loud[-1] - loud[0] - 1_600 * len(sound.said)) < 60
        assert loud[0] < 5_700
        assert len(sound.samples) - loud[-1] < 5_700


def test_a_part_follows_from_its_number_alone_and_another_seed_gives_another(words: Path) -> None:
    def heard(seed: int) -> bytes:
        source = sources.build("speech", words=words, speakers=2, shares={"tone": 1}, seed=seed)
        return b"".join(sound.samples.tobytes() for sound in source.part(0))

    assert heard(0) == heard(0) != heard(1)


def test_words_drawn_are_as_many_as_asked_and_differ_in_what_the_pool_is_made_of(words: Path) -> None:
    few = sources.build("speech", words=words, most=2, shares={"tone": 1})
    every = sources.build("speech", words=words, shares={"tone": 1})
    assert len({sound.said for sound in few.part(0)}) == 2
    assert few.describe() != every.describe()


def test_unknown_voices_sources_and_word_lists_say_what_there_is(words: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tone2"):
        sources.build("speech", words=words, shares={"tone2": 1})
    with pytest.raises(ConfigError, match="scowl"):
        sources.build("speech", words=tmp_path / "none")
    with pytest.raises(UnknownNameError, match="folder, notes, speech"):
        sources.build("speach")
    with pytest.raises(ConfigError, match="speed"):
        sources.build("speech", words=words, speed=2)


@pytest.mark.parametrize(("voice", "program"), [("espeak", "espeak-ng"), ("flite", "flite"), ("festival", "festival")])
def test_a_program_that_is_not_there_is_named_with_its_package(
    voice: str, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=f"apt install {program}"):
        voices.VOICES[voice]("house", np.random.default_rng(0))


@pytest.mark.parametrize(("voice", "program"), [("espeak", "espeak-ng"), ("flite", "flite"), ("festival", "festival")])
def test_a_longer_word_takes_longer_to_say(voice: str, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    say = voices.VOICES[voice]
    short, rate = say("no", np.random.default_rng(0))
    long, other = say("extraordinary", np.random.default_rng(0))
    assert rate == other
    assert len(long) > 1.3 * len(short)
    assert 0.01 < np.abs(long).max() <= 1.01


def test_hibari_makes_low_and_high_speakers_of_one_voice() -> None:
    pytest.importorskip("hibari")
    import torch
    from torchaudio.functional import detect_pitch_frequency

    found = []
    for seed in range(12):
        samples, rate = voices.hibari("wonderful morning", np.random.default_rng(seed))
        pitch = detect_pitch_frequency(torch.from_numpy(samples[None]), rate, freq_low=50)
        found.append(float(pitch.median()))
    assert min(found) < 130
    assert max(found) > 200


def test_a_voice_that_festival_lacks_does_not_speak_with_another() -> None:
    if shutil.which("festival") is None:
        pytest.skip("festival is not installed")
    with pytest.raises(ConfigError, match="no voice no_such"):
        voices.Festival(("no_such",))("hello", np.random.default_rng(0))
