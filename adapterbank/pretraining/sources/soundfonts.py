"""Soundfonts: which instruments a file has, and how FluidSynth plays them."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.audio.resampling import resample_clip
from adapterbank.errors import ConfigError

# FluidSynth reads a recording at another speed without a filter, so that at 16 kHz all that is above 8 kHz would come
# back as a wrong frequency. It plays at 48 kHz, and the filter follows.
RENDER_RATE = 48_000
DRUM_BANK = 128
PACKAGES = {  # of Debian, by file
    "TimGM6mb.sf2": "timgm6mb-soundfont",
    "OPL-3_FM_128M.sf2": "opl3-soundfont",
    "sf_GMbank.sf2": "csound-soundfont",
    "Black_Pearl_4_LV2.sf2": "avldrums.lv2-soundfont",
    "Red_Zeppelin_4_LV2.sf2": "avldrums.lv2-soundfont",
    "MuseScore_General.sf3": "musescore-general-soundfont",
    "MuseScore_General_Lite.sf3": "musescore-general-soundfont-small",
}


class Preset(NamedTuple):
    """An instrument of a soundfont; those of DRUM_BANK are drum kits."""

    bank: int
    program: int
    name: str


def presets(soundfont: Path) -> list[Preset]:
    """The instruments of a file, by bank and program.

    A soundfont is a RIFF file. Its chunk `phdr` has 38 bytes a preset: 20 of the name, then program and bank; the last
    one only marks the end (SoundFont 2.04, 7.2).

    Raises:
        ConfigError: no such file, with the package that brings it, or no soundfont.
    """
    if not soundfont.is_file():
        package = PACKAGES.get(soundfont.name)
        advice = f"apt install {package}" if package else "check the path"
        raise ConfigError(f"no soundfont at {soundfont}; {advice}, or leave it out of soundfonts.")
    with soundfont.open("rb") as file:
        riff, _, kind = struct.unpack("<4sI4s", file.read(12).ljust(12, b"\0"))
        if (riff, kind) != (b"RIFF", b"sfbk"):
            raise ConfigError(f"{soundfont} is no soundfont; expected a file of the format SF2 or SF3.")
        while len(head := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", head)
            if name == b"LIST":
                if file.read(4) != b"pdta":
                    file.seek(size - 4, os.SEEK_CUR)
            elif name == b"phdr":
                content = file.read(size)
                found = [struct.unpack_from("<20sHH", content, start) for start in range(0, len(content) - 38, 38)]
                return sorted(Preset(bank, program, _text(label)) for label, program, bank in found)
            else:
                file.seek(size + size % 2, os.SEEK_CUR)
    raise ConfigError(f"{soundfont} has no instruments; it may be cut off, so install its package again.")


def _text(label: bytes) -> str:
    return label.split(b"\0")[0].decode("latin-1").strip()


def play(soundfont: Path, midi: bytes, settings: Mapping[str, float] | None = None) -> np.ndarray:
    """A MIDI file by the instruments of one soundfont: (T,) float32 at 16 kHz, the same whenever it is asked.

    Args:
        settings: of FluidSynth, for example {"synth.reverb.room-size": 0.5}.

    Raises:
        ConfigError: no FluidSynth, or it refused.
    """
    if (program := shutil.which("fluidsynth")) is None:
        raise ConfigError("notes are played by the program fluidsynth: apt install fluidsynth.")
    own = {"synth.dynamic-sample-loading": 1, "synth.gain": 0.4, **(settings or {})}
    with tempfile.TemporaryDirectory() as folder:
        score, out = Path(folder) / "score.mid", Path(folder) / "out.wav"
        score.write_bytes(midi)
        options = [word for key, value in own.items() for word in ("-o", f"{key}={value:g}")]
        # -f: no configuration file of the user's, which might load another soundfont
        options += ["-ni", "-q", "-f", os.devnull, "-r", str(RENDER_RATE), "-T", "wav", "-O", "float", "-F", str(out)]
        done = subprocess.run([program, *options, str(soundfont), str(score)], capture_output=True, text=True)
        if done.returncode or not out.is_file():
            raise ConfigError(f"fluidsynth could not play {soundfont}: {done.stderr.strip() or done.returncode}.")
        samples, rate = soundfile.read(out, dtype="float32", always_2d=True)
    return resample_clip(torch.from_numpy(samples.mean(1)), rate, SAMPLE_RATE).numpy()
