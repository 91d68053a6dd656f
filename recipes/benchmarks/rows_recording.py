"""Row 16 of recipes/benchmark.py: four tasks along a recording of an hour, with the shipped ast-mini-2.

    python recipes/benchmark.py row=16           # starts this with what it needs

The recording is a 16-bit WAV file of white noise at 16 kHz, which is read, turned into a spectrogram and answered in
windows of 5 s side by side. Nothing is computed beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import soundfile
import torch
from omegaconf import DictConfig
from sidebyside import MEASURED, Bench, Claim, as_if_trained, claim, script

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.training.meter import Meter

BLOCK = 10  # seconds
TASKS = 4


def recording(folder: Path, seconds: int) -> Path:
    """A file of white noise; made once."""
    file = folder / "recordings" / f"noise-{seconds}.wav"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(0)
        unfinished = file.with_suffix(".part")
        with soundfile.SoundFile(unfinished, "w", SAMPLE_RATE, 1, format="WAV", subtype="PCM_16") as sound:
            for start in range(0, seconds, BLOCK):
                length = SAMPLE_RATE * min(BLOCK, seconds - start)
                sound.write((0.1 * torch.randn(length, generator=generator)).numpy())
        unfinished.rename(file)
    return file


def long_recording(cfg: DictConfig, bench: Bench) -> Iterator[Claim]:
    """16: faster than real time, in the memory of a minute."""
    seconds = cfg.recording_seconds
    long, short = recording(Path(cfg.out), seconds), recording(Path(cfg.out), min(60, seconds))
    for precision in reversed(MEASURED):  # bf16 first: the heap that fp32 leaves behind would hide what it needs
        bank = bench.open("ast-mini-2", precision)
        for number in range(TASKS):
            as_if_trained(bank.add_task(f"t{number}", "aat_ms", num_classes=cfg.classes), number)
        names = [f"t{number}" for number in range(TASKS)]
        with Meter(bench.device) as before:
            bank.scan(short, names, window=5.0, progress=False)
        with Meter(bench.device) as meter:
            bank.scan(long, names, window=5.0, progress=False)
        what = f"{seconds} s of recording, {TASKS} aat_ms tasks, windows of 5 s, ast-mini-2, {precision}"
        found = {
            "precision": precision,
            "ours": meter.seconds,
            "theirs": float(seconds),
            "cpu_seconds": meter.cpu_seconds,
        }
        yield claim(f"{what} / real time", seconds / meter.seconds, 60, **found)
        added = meter.peak_memory_mb - before.peak_memory_mb
        yield claim(f"{what}: MB beyond those of a minute", added, 50, at_most=True, precision=precision)


ROWS = {16: long_recording}


if __name__ == "__main__":
    script(ROWS)()
