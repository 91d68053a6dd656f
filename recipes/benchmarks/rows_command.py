"""Rows 14 and 15 of recipes/benchmark.py: the command `adapterbank` beside transformers' pipeline.

    python recipes/benchmark.py row=[14,15]             # starts this with what it needs
    python recipes/benchmark.py row=15 files=200        # fewer files: the start of each program then counts for more

A shell starts both. They have models of the same size with random weights, on the device that the options name, and
read the same WAV files at 16 kHz. The pipeline is given samples that soundfile read, because by itself it starts ffmpeg
for each file. It pads every clip to the length of its model (10.24 s), which is what it is made for.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import soundfile
import torch
from omegaconf import DictConfig
from sidebyside import Bench, Claim, saved_bank, script

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.experiments.timing import alternate, timed

SECONDS = 5  # of a file
TASKS = 4
BATCH = 16  # clips in a batch of either side

PIPELINE = """
import csv, sys
import soundfile
from transformers import pipeline

folder, device, batch, out, *files = sys.argv[1:]
classify = pipeline("audio-classification", model=folder, device=device)

def clips():
    for file in files:
        samples, rate = soundfile.read(file, dtype="float32")
        yield {"raw": samples, "sampling_rate": rate}

with open(out, "w", newline="") as handle:
    rows = csv.writer(handle)
    for file, found in zip(files, classify(clips(), batch_size=int(batch), top_k=3), strict=True):
        rows.writerow([file, *(f"{one['label']} {one['score']:.4f}" for one in found)])
"""


def recordings(folder: Path, count: int) -> list[Path]:
    """`count` WAV files of noise, made once."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    files = [folder / f"{number:04}.wav" for number in range(count)]
    for file in files:
        if not file.is_file():
            samples = 0.1 * torch.randn(SECONDS * SAMPLE_RATE, generator=generator)
            soundfile.write(file, samples.numpy(), SAMPLE_RATE)
    return files


def program(*command: object) -> Callable[[], float]:
    """Seconds from the start of a Python with these arguments to its end."""
    words = [sys.executable, *map(str, command)]
    return timed(lambda: subprocess.run(words, check=True, capture_output=True), torch.device("cpu"))


def ours(
    cfg: DictConfig, bench: Bench, files: Sequence[Path], tasks: Sequence[str], precision: str = "fp32"
) -> Callable[[], float]:
    bank = saved_bank(Path(cfg.out), cfg.bank_geometry, TASKS, cfg.classes)
    named = [word for task in tasks for word in ("--task", task)]
    where = ["--bank", bank, "--device", bench.device, "--batch-size", BATCH, "--precision", precision]
    return program("-m", "adapterbank", "ask", *files, *named, *where, "-o", Path(cfg.out) / "ours.csv")


def pipeline(cfg: DictConfig, bench: Bench, files: Sequence[Path]) -> Callable[[], float]:
    model = Path(cfg.out) / "backbones" / f"{cfg.bank_geometry}-{cfg.classes}"
    return program("-c", PIPELINE, model, bench.device, BATCH, Path(cfg.out) / "theirs.csv", *files)


def first_answer(cfg: DictConfig, bench: Bench) -> Iterator[Claim]:
    """14: from the start of the program to the first answer about a file."""
    files = recordings(Path(cfg.out) / "recordings", 1)
    pairs = alternate(ours(cfg, bench, files, ["t0"]), pipeline(cfg, bench, files), bench.pairs, warm_up=1)
    yield bench.beside("start to the first answer: adapterbank / pipeline", pairs, 0.6, at_most=True)


def many_files(cfg: DictConfig, bench: Bench) -> Iterator[Claim]:
    """15: all files through four tasks at once. The pipeline runs once and is counted four times."""
    files = recordings(Path(cfg.out) / "recordings", cfg.files)
    tasks = [f"t{number}" for number in range(TASKS)]
    for precision in ("fp32", "bf16"):
        sides = ours(cfg, bench, files, tasks, precision), pipeline(cfg, bench, files)
        pairs = alternate(*sides, bench.pairs, warm_up=0)
        what = f"{len(files)} files of {SECONDS} s to CSV, {TASKS} tasks in {precision} / {TASKS} pipelines in fp32"
        yield bench.beside(what, pairs, 8.0, work=TASKS)


ROWS = {14: first_answer, 15: many_files}

if __name__ == "__main__":
    script(ROWS)()
