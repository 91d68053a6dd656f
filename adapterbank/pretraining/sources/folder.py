"""A source of recordings: any tree of audio files, or shards with an `index.csv`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.audio.resampling import resample_clip
from adapterbank.audio.suffixes import READABLE_SUFFIXES
from adapterbank.errors import DatasetError
from adapterbank.pretraining.sources import Sound, register


@register("folder")
class Folder:
    """All clips of a folder; a part is a file.

    Args:
        path: shards with an `index.csv` (`shard,start_sample,num_samples`), or any tree of audio files.

    Raises:
        DatasetError: no audio there, or a shard that the index names is not.
    """

    def __init__(self, path: str | Path):
        self.folder = Path(path)
        self._rows: dict[str, list[tuple[int, int]]] = {}  # shard: first sample and number of samples of its clips
        index = self.folder / "index.csv"
        if index.is_file():
            with index.open(encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    where = (int(row["start_sample"]), int(row["num_samples"]))
                    self._rows.setdefault(row["shard"], []).append(where)
        self.shards = sorted(self._rows)
        self.files = self._found()
        self.parts = len(self.files)

    def _found(self) -> list[Path]:
        files = [next(self.folder.glob(f"{Path(s).stem}.*"), self.folder / s) for s in self.shards]
        files = files or sorted(p for p in self.folder.rglob("*") if p.suffix.lower() in READABLE_SUFFIXES)
        if absent := [path.name for path in files if not path.is_file()]:
            raise DatasetError(
                f"{self.folder / 'index.csv'} names {absent[0]}, which is not there; fetch the shards again."
            )
        if not files:
            raise DatasetError(f"no audio in {self.folder}; put audio files there, or shards with an index.csv.")
        return files

    def describe(self) -> dict[str, Any]:
        return {"files": [[path.name, path.stat().st_size] for path in self.files]}

    def part(self, number: int) -> Iterator[Sound]:
        audio = _read(self.files[number])
        if not self.shards:
            yield Sound(audio)
            return
        for first, count in self._rows[self.shards[number]]:
            yield Sound(audio[first : first + count])


def _read(path: Path) -> np.ndarray:
    """The audio of a file at 16 kHz, channels averaged: (T,) float32."""
    try:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise DatasetError(f"cannot read {path}: {error}. Remove it from the pool, or fetch it again.") from error
    return resample_clip(torch.from_numpy(audio.mean(1)), rate, SAMPLE_RATE).numpy()
