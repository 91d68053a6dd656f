"""Synthetic speakers for the source `speech`: hibari, eSpeak NG, Flite and Festival, each with what makes many of it.

A voice says a text: float32 samples and their rate. All that is drawn comes from the generator that is handed over.
Texts are English, but for eSpeak, which takes a language.
"""

from __future__ import annotations

import atexit
import functools
import io
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import soundfile

from adapterbank.errors import ConfigError

Spoken: TypeAlias = "tuple[np.ndarray, int]"  # (T,) float32, Hz
Voice: TypeAlias = "Callable[[str, np.random.Generator], Spoken]"

# (share, lowest and highest formant shift, lowest and highest pitch against the one voice of hibari): low, high, small
SPEAKERS = ((0.45, 0.78, 0.93, 0.42, 0.72), (0.40, 0.93, 1.10, 0.75, 1.25), (0.15, 1.08, 1.28, 1.1, 1.6))
WHISPERED = 0.03  # share of what hibari says that has no pitch
ESPEAK_ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
ESPEAK_TIMBRES = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "Andy", "Annie", "Lee")
FLITE_VOICES = ("kal16", "awb", "rms", "slt")
FESTIVAL_VOICES = ("kal_diphone", "ked_diphone", "cmu_us_slt_arctic_hts")


def needs(program: str, package: str) -> str:
    """The path of a program. Raises ConfigError with the package that brings it."""
    found = shutil.which(program)
    if found is None:
        raise ConfigError(f"this voice needs the program {program}: apt install {package}; or leave it out of shares.")
    return found


# --- hibari: one voice, of which many speakers are made --------------------------------------------------------------


@functools.cache
def _hibari() -> Any:
    try:
        from hibari import Hibari
    except ImportError as error:
        raise ConfigError(
            "the voice hibari needs its package: pip install hibari-tts; or leave it out of shares."
        ) from error
    return Hibari()


@functools.lru_cache(maxsize=256)
def _spectra(text: str, speed: float) -> tuple[np.ndarray, ...]:
    """What hibari's network says of a text: five arrays (601 bins, F frames of 12.5 ms) and the pitch (F,) in Hz."""
    hibari = _hibari()
    parts = []
    for phonemes in hibari.phonemize(text):
        numbers = np.asarray([hibari.ids(phonemes)], np.int64)
        answer = hibari.sess.run(None, {"ids": numbers, "speed": np.asarray([speed], np.float32)})
        parts.append([out[0] for out in answer])
    return tuple(np.concatenate(outs, axis=-1) for outs in zip(*parts, strict=True)) if parts else ()


def hibari(text: str, rng: np.random.Generator) -> Spoken:
    """hibari (Apache-2.0): its network's spectra, moved in frequency (formants), and its pitch, scaled and bent.

    A long vocal tract has low formants and mostly a low pitch, so both are drawn together (`SPEAKERS`).
    """
    from hibari import dsp

    outs = _spectra(text, round(float(rng.choice([0.75, 0.9, 1.0, 1.15, 1.35])), 2))
    if not outs:
        return np.zeros(0, np.float32), dsp.SR
    shares = np.array([share for share, *_ in SPEAKERS])
    _, low, high, deep, shrill = SPEAKERS[rng.choice(len(SPEAKERS), p=shares / shares.sum())]
    shift, scale = rng.uniform(low, high), np.exp(rng.uniform(np.log(deep), np.log(shrill)))
    tilt = rng.uniform(-0.5, 0.5) * np.linspace(0, 1, outs[0].shape[0], dtype=np.float32)[:, None]  # nats at 12 kHz
    breath = rng.uniform(-0.5, 1.2)
    harmonic, phase, noise, free, turn = (_moved(out, shift) for out in outs[:5])
    pitch = outs[5]
    voiced = pitch > 40
    if voiced.any():
        middle = np.median(pitch[voiced])
        bend = rng.uniform(0.4, 1.6) * (pitch - middle) + middle  # monotonous to lively
        slope = 1 + rng.uniform(-0.15, 0.15) * np.linspace(-1, 1, len(pitch))
        pitch = np.where(voiced, np.clip(bend * scale * slope, 45, 500), 0).astype(np.float32)
    if rng.random() < WHISPERED:
        pitch, noise = np.zeros_like(pitch), np.logaddexp(noise, harmonic - 1.0)
        harmonic = np.full_like(harmonic, -20.0)
        free = free - 6.0
    parts = (harmonic + tilt, phase, noise + tilt + breath, free + tilt, turn, pitch)
    return dsp.synth(*(np.ascontiguousarray(part, np.float32) for part in parts), rng), dsp.SR


def _moved(spectrum: np.ndarray, shift: float) -> np.ndarray:
    """(bins, F), its content at `shift` times the frequency."""
    where = np.arange(len(spectrum)) / shift
    low = np.minimum(where.astype(int), len(spectrum) - 1)
    high = np.minimum(low + 1, len(spectrum) - 1)
    share = (where - np.floor(where)).astype(np.float32)[:, None]
    return spectrum[low] * (1 - share) + spectrum[high] * share


# --- programs --------------------------------------------------------------------------------------------------------


def espeak(text: str, rng: np.random.Generator, language: str | None = None) -> Spoken:
    """eSpeak NG (GPL-3+): formant synthesis; an accent or another language, and one of 16 timbres."""
    spoken_by = language or rng.choice(ESPEAK_ACCENTS)
    voice = f"{spoken_by}+{rng.choice(ESPEAK_TIMBRES)}"
    options = ["-v", voice, "-s", str(rng.integers(110, 230)), "-p", str(rng.integers(5, 95)), "--stdout", text]
    said = subprocess.run([needs("espeak-ng", "espeak-ng"), *options], check=True, capture_output=True).stdout
    return _wav(said)


def flite(text: str, rng: np.random.Generator) -> Spoken:
    """Flite (BSD-like): diphones and statistical voices of four speakers, at three tempos."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        stretch = f"duration_stretch={rng.uniform(0.8, 1.4):.2f}"
        options = ["-voice", rng.choice(FLITE_VOICES), "--setf", stretch, "-t", text, "-o", file.name]
        subprocess.run([needs("flite", "flite"), *options], check=True, capture_output=True)
        return _wav(Path(file.name).read_bytes())


class Festival:
    """Festival (BSD-like): one process per voice, which says one text after another.

    Args:
        voices: as Festival names them.
    """

    def __init__(self, voices: Sequence[str] = FESTIVAL_VOICES):
        self.voices = voices
        self._running: dict[str, subprocess.Popen[str]] = {}

    def __call__(self, text: str, rng: np.random.Generator) -> Spoken:
        voice = str(rng.choice(list(self.voices)))
        stretch = rng.uniform(0.85, 1.35)
        plain = re.sub(r'["\\\n]', " ", text)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "said.wav"
            program = self._process(voice)
            stdin, stdout = program.stdin, program.stdout
            assert stdin is not None
            assert stdout is not None
            stdin.write(f"(Parameter.set 'Duration_Stretch {stretch:.3f})\n")
            stdin.write(
                f'(utt.save.wave (utt.synth (Utterance Text "{plain}")) "{out}")\n(format t "done\\n") (fflush nil)\n'
            )
            stdin.flush()
            while (line := stdout.readline()) and "done" not in line:
                pass
            if not out.is_file():
                raise ConfigError(f"Festival's voice {voice} said nothing; apt install its festvox package.")
            return _wav(out.read_bytes())

    def _process(self, voice: str) -> subprocess.Popen[str]:
        running = self._running.get(voice)
        if running is None or running.poll() is not None:
            command = [needs("festival", "festival"), "--pipe"]
            quiet = subprocess.DEVNULL
            running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True)
            assert running.stdin is not None
            assert running.stdout is not None
            known = f'(if (member \'{voice} (voice.list)) (format t "known\\n") (format t "absent\\n"))'
            running.stdin.write(f"{known}\n(fflush nil)\n(voice_{voice})\n")
            running.stdin.flush()
            if running.stdout.readline().strip() != "known":  # Festival would go on with another voice
                running.communicate()
                raise ConfigError(f"Festival has no voice {voice}; apt install its festvox package, or leave it out.")
            atexit.register(running.communicate)  # closes its input, upon which it ends
            self._running[voice] = running
        return running


def _wav(content: bytes) -> Spoken:
    """A WAV file's samples. eSpeak writes a header that does not know the length; then all that follows is sound."""
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        return file.read(dtype="float32", always_2d=True).mean(1), file.samplerate


VOICES: dict[str, Voice] = {"hibari": hibari, "espeak": espeak, "flite": flite, "festival": Festival()}
