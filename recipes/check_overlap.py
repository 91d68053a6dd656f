"""Looks for test recordings in the pretraining audio: nearest neighbours by cross-correlation of log-mels.

    python recipes/check_overlap.py                               # ast-mini's pool against ../shared/data and the demo
    python recipes/check_overlap.py pool=my/audio data=my/benchmarks pairs=20

For every test clip: (1) its 0.64 s windows are compared with all windows of the pool by mean and spread of each band,
which finds candidates whatever their offset; (2) its loudest second slides over each candidate, and the highest
normalised correlation counts. Copies correlate above 0.95 even after another codec; so do some steady notes and tones
that are not copies: look at the picture of the closest pairs, and listen.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import hydra
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from torch import Tensor

from adapterbank import load_folder
from adapterbank.backbone.frontend import log_mel
from adapterbank.data import demo_tasks
from adapterbank.errors import AdapterBankError
from adapterbank.training.views import Pool

BANDS, STEP = 32, 4  # steps of 40 ms
WINDOW, QUERY_HOP, POOL_HOP = 16, 8, 4  # steps: 0.64 s, every 0.32 and 0.16 s
EXCERPT = 25  # steps: one second
FLOOR = 8.0  # nats below a clip's maximum: quieter is silence
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


def loudest(steps: Tensor) -> tuple[Tensor, int]:
    """The second with the most energy, and where it begins."""
    size = min(EXCERPT, len(steps))
    start = int(steps.exp().sum(1).unfold(0, size, 1).sum(1).argmax())
    return steps[start : start + size], start


def correlation(excerpt: Tensor, other: Tensor) -> tuple[float, int]:
    """Highest normalised correlation of an excerpt with a piece of `other`, and where that piece begins."""
    other = F.pad(other, (0, 0, 0, max(0, len(excerpt) - len(other))), value=-FLOOR)
    centred = excerpt - excerpt.mean()
    pieces = other.unfold(0, len(excerpt), 1).transpose(1, 2)  # (places, steps, BANDS)
    pieces = pieces - pieces.mean(dim=(1, 2), keepdim=True)
    products = (pieces * centred).sum((1, 2)) / (pieces.norm(dim=(1, 2)) * centred.norm()).clamp_min(1e-6)
    best = int(products.argmax())
    return float(products[best]), best


def recordings(cfg: DictConfig) -> Iterator[tuple[str, Tensor]]:
    folders = list(demo_tasks().values()) if cfg.demo else []
    if cfg.data is not None:
        folders += sorted(entry for entry in Path(cfg.data).iterdir() if entry.is_dir())
    for folder in folders:
        dataset = load_folder(folder, cache_bytes=0)
        for index, file in track(list(enumerate(dataset.files)), folder.name):
            yield f"{folder.name}/{file.name}", dataset[index][0]


def picture(pairs: list[tuple[float, str, int, Tensor, Tensor]]) -> Figure:
    """Each test excerpt above the piece of the pool that is most like it."""
    figure = Figure(figsize=(2.1 * len(pairs), 4.2), dpi=110, layout="constrained")
    panels = figure.subplots(2, len(pairs), squeeze=False)
    for column, (value, name, clip, excerpt, piece) in enumerate(pairs):
        for row, steps in enumerate((excerpt, piece)):
            axes = panels[row][column]
            axes.imshow(steps.T, origin="lower", aspect="auto", vmin=-FLOOR, vmax=0)
            axes.set_xticks([])
            axes.set_yticks([])
        folder, _, file = name.partition("/")
        panels[0][column].set_title(f"{folder}\n{file[:22]}", fontsize=7)
        panels[1][column].set_title(f"pool clip {clip}: {value:.3f}", fontsize=8)
    panels[0][0].set_ylabel("test recording")
    panels[1][0].set_ylabel("pretraining audio")
    return figure


def run(cfg: DictConfig) -> None:
    pool = Pool(cfg.pool, cfg.cache)
    sketches = [sketch(pool.read(clip)).half() for clip in track(range(len(pool)), "sketching the pool")]
    windows = [descriptors(steps.float(), POOL_HOP) for steps in sketches]
    owner = torch.cat([torch.full((len(w),), clip) for clip, w in enumerate(windows)])
    table = torch.cat(windows)
    found = []
    for name, wave in recordings(cfg):
        steps = sketch(wave)
        likeness = (descriptors(steps, QUERY_HOP) @ table.T).amax(0)
        near = owner[likeness.topk(min(len(owner), 4 * cfg.candidates)).indices].unique_consecutive().tolist()
        excerpt, start = loudest(steps)
        scores = [(*correlation(excerpt, sketches[clip].float()), clip) for clip in dict.fromkeys(near)]
        value, place, clip = max(scores[: cfg.candidates])
        found.append((value, name, clip, start, place, excerpt))
    found.sort(key=lambda entry: -entry[0])
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "closest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["correlation", "test_clip", "pool_clip", "test_second", "pool_second"])
        second = 160 * STEP / 16_000
        writer.writerows([f"{v:.4f}", n, c, f"{s * second:.2f}", f"{p * second:.2f}"] for v, n, c, s, p, _ in found)
    pairs = [(v, n, c, e, sketches[c].float()[p : p + len(e)]) for v, n, c, _, p, e in found[: cfg.pairs]]
    picture(pairs).savefig(out / "closest.png")
    for value, name, clip, *_ in found[: cfg.pairs]:
        console.print(f"{value:.3f}  {name}  ~  pool clip {clip}", highlight=False)
    console.print(f"{len(found)} test clips against {len(pool)}: {out / 'closest.csv'}, {out / 'closest.png'}")


@hydra.main(version_base=None, config_path="conf", config_name="check_overlap")
def main(cfg: DictConfig) -> None:
    try:
        run(cfg)
    except AdapterBankError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    main()
