"""Looks for test recordings in the pretraining audio: nearest neighbours by log-mels, then by waveforms.

    python recipes/check_overlap.py                               # ast-mini's pool against ../shared/data and the demo
    python recipes/check_overlap.py pool=my/audio data=my/benchmarks pairs=20

For every test clip: (1) its 0.64 s windows are compared with all windows of the pool by mean and spread of each band,
which finds candidates whatever their offset; (2) its three loudest separate seconds slide over each candidate, and the
highest normalised correlation counts; a shorter candidate slides over the test clip. The second and third second are
left out where they are silent but for a few cells: any two of those agree. (3) the best of these are compared as
waveforms below 4 kHz, whole clips at every offset. Drums, notes and rain look alike whoever plays them, and two tones
of one pitch agree as waveforms; copies do both, even through a codec: pairs are sorted by the product. A copy at
another speed is not found. Look at the picture of the closest pairs, and listen.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hydra
import torch
import torch.nn.functional as F
import torchaudio.functional
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from torch import Tensor

from adapterbank import load_folder, plots
from adapterbank.backbone.frontend import log_mel
from adapterbank.data import demo_tasks
from adapterbank.errors import DatasetError, exit_on_error
from adapterbank.training.views import Pool

BANDS, STEP = 32, 4  # steps of 40 ms
WINDOW, QUERY_HOP, POOL_HOP = 16, 8, 4  # steps: 0.64 s, every 0.32 and 0.16 s
EXCERPT, EXCERPTS = 25, 3  # steps: one second; how many of them
SHORTEST = 8  # steps: a third of a second; shorter sounds are like many others
FLOOR = 8.0  # nats below a clip's maximum: quieter is silence
SOUNDING = 0.2  # share of an excerpt's cells above the floor; with fewer there is nothing to recognise
WAVE_RATE = 8_000  # Hz: codecs keep the waveform of low frequencies
LOWEST = 60.0  # Hz
WAVE_OVERLAP = 0.2  # seconds that two waveforms share at least, and either
WAVE_ENERGY = 0.1  # this share of the energy of both,
WAVE_LENGTH = 0.5  # or of the length of the shorter one

console = Console()


def sketch(wave: Tensor) -> Tensor:
    """(T,) -> (S, BANDS): log-mel in 40 ms steps, its level taken out."""
    mel = log_mel([F.pad(wave, (0, max(0, 160 * STEP * 2 + 400 - len(wave))))], BANDS)[0]
    mel = F.avg_pool1d(mel.T[None], STEP, STEP)[0].T
    return (mel - mel.max()).clamp_min(-FLOOR)


def descriptors(steps: Tensor, hop: int) -> Tensor:
    """(S, BANDS) -> (windows, 2 BANDS) of length 1."""
    steps = F.pad(steps, (0, 0, 0, max(0, WINDOW - len(steps))), value=-FLOOR)
    windows = steps.unfold(0, WINDOW, hop)  # (windows, BANDS, WINDOW)
    mean = windows.mean(2)
    both = torch.cat((mean - mean.mean(1, keepdim=True), windows.std(2)), dim=1)
    return F.normalize(both, dim=1)


def excerpts(steps: Tensor) -> list[tuple[int, Tensor]]:
    """Up to three seconds of a clip that do not overlap, the loudest first: where each begins, and its steps."""
    size = min(EXCERPT, len(steps))
    energy = steps.exp().sum(1).unfold(0, size, 1).sum(1)
    found = []
    for _ in range(EXCERPTS):
        start = int(energy.argmax())
        piece = steps[start : start + size]
        if not found or (energy[start] > 0 and float((piece > -FLOOR).float().mean()) >= SOUNDING):
            found.append((start, piece))
        energy[max(0, start - size + 1) : start + size] = 0
    return found


def correlation(excerpt: Tensor, other: Tensor) -> tuple[float, int]:
    """Highest normalised correlation of an excerpt with a piece of a longer sketch, and where that piece begins."""
    centred = excerpt - excerpt.mean()
    pieces = other.unfold(0, len(excerpt), 1).transpose(1, 2)  # (places, steps, BANDS)
    pieces = pieces - pieces.mean(dim=(1, 2), keepdim=True)
    products = (pieces * centred).sum((1, 2)) / (pieces.norm(dim=(1, 2)) * centred.norm()).clamp_min(1e-6)
    best = int(products.argmax())
    return float(products[best]), best


def likeness(steps: Tensor, other: Tensor) -> tuple[float, int, int, int]:
    """Correlation of the most alike pieces of a test clip and a pool clip, where both begin, and their steps."""
    if len(other) < EXCERPT:  # the shorter one slides over the longer
        shorter = other[: len(steps)]
        value, place = correlation(shorter, steps) if len(shorter) >= SHORTEST else (0.0, 0)
        return value, place, 0, len(shorter)
    found = [(*correlation(piece, other), start, len(piece)) for start, piece in excerpts(steps)]
    value, place, start, size = max(found)
    return value, start, place, size


def low_band(wave: Tensor) -> Tensor:
    """(T,) -> (T / 2,) between 60 Hz and 4 kHz."""
    wave = torchaudio.functional.resample(wave, 16_000, WAVE_RATE)
    return torchaudio.functional.highpass_biquad(wave, WAVE_RATE, LOWEST)


def wave_correlation(wave: Tensor, other: Tensor) -> float:
    """Highest normalised correlation, of either sign, of two waveforms where they overlap, over all offsets."""
    size = len(wave) + len(other)
    products = torch.fft.irfft(torch.fft.rfft(other, n=size) * torch.fft.rfft(wave, n=size).conj(), n=size).double()
    lags = torch.arange(1 - len(wave), len(other))  # where `wave` begins in `other`
    first, last = lags.clamp_min(0), (lags + len(wave)).clamp_max(len(other))
    loud = torch.ones(len(lags), dtype=torch.bool)
    energy = torch.ones(len(lags), dtype=torch.float64)
    for signal, shift in ((other, 0), (wave, lags)):
        sums = F.pad(signal.double().square().cumsum(0), (1, 0))
        shared = sums[last - shift] - sums[first - shift]
        loud &= shared >= WAVE_ENERGY * sums[-1]
        energy *= shared
    most = last - first >= WAVE_LENGTH * min(len(wave), len(other))
    counts = (last - first >= WAVE_OVERLAP * WAVE_RATE) & (loud | most)
    values = (products[lags % size] / energy.sqrt().clamp_min(1e-9)).abs()
    return float(values[counts].max()) if counts.any() else 0.0


@dataclass(frozen=True)
class Match:
    """A test clip and the clip of the pool that is most like it; seconds are where the pieces begin that are alike."""

    mel_correlation: float
    wave_correlation: float
    test_clip: str
    pool_clip: int
    test_second: float
    pool_second: float
    pieces: tuple[Tensor, Tensor]

    @property
    def score(self) -> float:
        return self.mel_correlation * self.wave_correlation


def recordings(cfg: DictConfig) -> Iterator[tuple[str, Tensor]]:
    folders = list(demo_tasks().values()) if cfg.demo else []
    if cfg.data is not None:
        folders += sorted(entry for entry in Path(cfg.data).iterdir() if entry.is_dir())
    for folder in folders:
        dataset = load_folder(folder, cache_bytes=0)
        for index, file in track(list(enumerate(dataset.files)), folder.name):
            yield f"{folder.name}/{file.name}", dataset[index][0]


def run(cfg: DictConfig) -> None:
    if cfg.data is not None and not Path(cfg.data).is_dir():
        raise DatasetError(f"no folder {cfg.data}; pass data=<a folder of folders of clips>, or data=null.")
    pool = Pool(cfg.pool, cfg.cache, exclude=list(cfg.exclude))
    sketches = [sketch(pool.read(clip)).half() for clip in track(range(len(pool)), "sketching the pool")]
    windows = [descriptors(steps.float(), POOL_HOP) for steps in sketches]
    owner = torch.cat([torch.full((len(w),), clip) for clip, w in enumerate(windows)])
    table = torch.cat(windows)
    found = []
    for name, wave in recordings(cfg):
        steps = sketch(wave)
        near = (descriptors(steps, QUERY_HOP) @ table.T).amax(0)
        by_clip = torch.full((len(pool),), -2.0).scatter_reduce(0, owner, near, "amax")
        clips = by_clip.topk(min(len(pool), cfg.candidates)).indices.tolist()
        alike = sorted((likeness(steps, sketches[clip].float()), clip) for clip in clips)[-cfg.exact :]
        low, matches = low_band(wave), []
        for (value, start, place, size), clip in alike:
            pieces = (steps[start : start + size], sketches[clip][place : place + size].float())
            sound = wave_correlation(low, low_band(pool.read(clip)))
            second = 160 * STEP / 16_000
            matches.append(Match(value, sound, name, int(pool.numbers[clip]), start * second, place * second, pieces))
        found.append(max(matches, key=lambda match: match.score))
    found.sort(key=lambda match: -match.score)
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "closest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["mel_correlation", "wave_correlation", "test_clip", "pool_clip", "test_second", "pool_second"])
        for m in found:
            row = [f"{m.mel_correlation:.4f}", f"{m.wave_correlation:.4f}", m.test_clip, m.pool_clip]
            writer.writerow([*row, f"{m.test_second:.2f}", f"{m.pool_second:.2f}"])
    pairs = []
    for m in found[: cfg.pairs]:
        values = f"{m.mel_correlation:.3f} {m.wave_correlation:.3f}"
        console.print(f"{values}  {m.test_clip}  ~  pool clip {m.pool_clip}", highlight=False)
        pairs.append((f"{m.test_clip}\npool clip {m.pool_clip}\n{values}", *m.pieces))
    plots.spectrogram_pairs(pairs, ("test recording", "pretraining audio")).savefig(out / "closest.png")
    console.print(f"{len(found)} test clips against {len(pool)}: {out / 'closest.csv'}, {out / 'closest.png'}")


@hydra.main(version_base=None, config_path="conf", config_name="check_overlap")
def main(cfg: DictConfig) -> None:
    with exit_on_error():
        run(cfg)


if __name__ == "__main__":
    main()
