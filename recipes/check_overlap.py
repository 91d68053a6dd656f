"""Looks for test recordings in the pretraining audio: nearest neighbours by log-mels, then by waveforms.

    python recipes/check_overlap.py                             # ast-mini-2's pool against ../shared/data and the demo
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
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from torch import Tensor

from adapterbank import load_folder, plots
from adapterbank.data import demo_tasks
from adapterbank.errors import DatasetError, exit_on_error
from adapterbank.pretraining.overlap import (
    POOL_HOP,
    QUERY_HOP,
    STEP_SECONDS,
    descriptors,
    likeness,
    low_band,
    sketch,
    wave_correlation,
)
from adapterbank.pretraining.pool import Pool

console = Console()


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


@hydra.main(version_base=None, config_path="conf", config_name="check_overlap")
@exit_on_error()
def main(cfg: DictConfig) -> None:
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
            matches.append(
                Match(value, sound, name, int(pool.numbers[clip]), start * STEP_SECONDS, place * STEP_SECONDS, pieces)
            )
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


if __name__ == "__main__":
    main()
