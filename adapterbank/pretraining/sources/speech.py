"""A source of spoken words: each word of a list by several synthetic speakers, in English and in other languages."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.audio.resampling import resample_clip
from adapterbank.errors import ConfigError
from adapterbank.pretraining.sources import Sound, register, voices

SCOWL = "/usr/share/dict/scowl"  # word lists by how common a word is; 10 and 20 are the most common twelve thousand
WORDS = tuple(f"{SCOWL}/{kind}-words.{size}" for size in (10, 20) for kind in ("english", "american"))
SHARES = {"hibari": 0.6, "espeak": 0.2, "flite": 0.1, "festival": 0.1}
WORDS_IN_PART = 100
TRIES = 3  # other voices, where one says nothing
QUIET = 1e-3  # of the peak: what is below it before and after a word is cut off
SILENCE = 0.35  # seconds at most before the word, and after it
LONGEST_LETTERS = 14


@register("speech")
class Speech:
    """Single words by synthetic speakers; `said` is the word. A part is 100 words by all their speakers.

    Args:
        words: files with a word or a line of hunspell (`word/flags`) a line. Only words of 2 to 14 letters are taken.
        most: of the words, drawn evenly; None: all.
        speakers: how often each word is said, every time by a speaker of its own.
        shares: {voice: how often it is drawn}.
        foreign: {language of eSpeak: file of words}; each is spoken in that language.
        foreign_words: drawn from each of these files, each said by three timbres.
        seed: of all that is drawn.

    Raises:
        ConfigError: no such file, no word in it, or an unknown voice.
    """

    def __init__(
        self,
        words: str | Path | Sequence[str | Path] = WORDS,
        most: int | None = None,
        speakers: int = 8,
        shares: Mapping[str, float] | None = None,
        foreign: Mapping[str, str] | None = None,
        foreign_words: int = 500,
        seed: int = 0,
    ):
        self.shares = {name: float(share) for name, share in (shares or SHARES).items()}
        if unknown := sorted(self.shares.keys() - voices.VOICES.keys()):
            raise ConfigError(f"got the voices {unknown}, expected some of {sorted(voices.VOICES)}.")
        self.seed, self.speakers = seed, speakers
        files = [words] if isinstance(words, (str, Path)) else list(words)
        found = sorted({word for file in files for word in _words(Path(file))})
        rng = np.random.default_rng((seed, 0))
        self.said: list[tuple[str, str | None]] = [(word, None) for word in _some(found, most, rng)]
        for language, file in (foreign or {}).items():
            self.said += [(word, language) for word in _some(_words(Path(file)), foreign_words, rng)]
        self.parts = -(-len(self.said) // WORDS_IN_PART)

    def describe(self) -> dict[str, Any]:
        content = zlib.crc32("\n".join(f"{language}:{word}" for word, language in self.said).encode())
        return {"words": len(self.said), "crc32": content, "speakers": self.speakers, **self.shares, "seed": self.seed}

    def part(self, number: int) -> Iterator[Sound]:
        first = number * WORDS_IN_PART
        for index, (word, language) in enumerate(self.said[first : first + WORDS_IN_PART], first):
            for speaker in range(self.speakers if language is None else 3):
                rng = np.random.default_rng((self.seed, 1, index, speaker))
                if (samples := self._speak(word, language, rng)) is not None:
                    yield Sound(samples, word if language is None else f"{language}:{word}")

    def _speak(self, word: str, language: str | None, rng: np.random.Generator) -> np.ndarray | None:
        """A word by one speaker, with silence around it, at 16 kHz; None where no voice could say it."""
        names, shares = list(self.shares), np.array(list(self.shares.values()))
        for _ in range(TRIES):
            if language is None:
                voice = names[rng.choice(len(names), p=shares / shares.sum())]
                samples, rate = voices.VOICES[voice](word, rng)
            else:
                samples, rate = voices.espeak(word, rng, language)
            loud = np.flatnonzero(np.abs(samples) > QUIET * np.abs(samples).max(initial=0))
            if len(loud) > rate // 20:
                return _placed(samples[loud[0] : loud[-1] + 1], rate, rng)
        return None


def _placed(samples: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """At 16 kHz, at a level of -3 to -23 dB, with up to a third of a second of silence at either end."""
    at = resample_clip(torch.from_numpy(np.ascontiguousarray(samples)), rate, SAMPLE_RATE).numpy()
    level = 10 ** (rng.uniform(-23, -3) / 20) / np.abs(at).max()
    before, after = (int(SAMPLE_RATE * SILENCE * rng.random() * (rng.random() < 0.7)) for _ in range(2))
    return np.pad((at * level).astype(np.float32), (before, after))


def _words(file: Path) -> list[str]:
    """The words of a list or of a hunspell dictionary, in small letters, each once, in their order."""
    if not file.is_file():
        raise ConfigError(f"no word list at {file}; apt install scowl, or pass words=<a file with a word a line>.")
    lines = file.read_bytes().decode("utf-8", errors="ignore").splitlines()
    plain = (line.split("/")[0].split("\t")[0].strip() for line in lines)
    fits = re.compile(rf"[^\W\d_]{{2,{LONGEST_LETTERS}}}")
    words = [word for word in plain if fits.fullmatch(word) and word == word.lower()]
    if not words:
        raise ConfigError(f"{file} holds no word of 2 to {LONGEST_LETTERS} small letters; expected one a line.")
    return list(dict.fromkeys(words))


def _some(words: Sequence[str], most: int | None, rng: np.random.Generator) -> list[str]:
    if most is None or most >= len(words):
        return list(words)
    return [words[index] for index in sorted(rng.choice(len(words), most, replace=False))]
