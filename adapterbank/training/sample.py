"""Some clips of a training, read once, that stand for all of it when its time and memory are estimated."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from adapterbank.audio.clips import as_waveforms
from adapterbank.data.folder import FolderDataset
from adapterbank.data.pairs import Pairs

LONGEST = 4  # clips whose files are the largest of their format: one of them is taken to be the longest clip
TWICE = 2  # clips that are read a second time
SPREAD = 8  # clips of a data set whose lengths cannot be seen from outside


class Sample:
    """Clips of one data set. Each is read when it is first asked for, and kept.

    Args:
        data: map-style, of (waveform (T,) at 16 kHz, label).
    """

    def __init__(self, data: Any):
        self._data = data
        self._read: dict[int, tuple[Tensor, Any]] = {}
        self._seconds: list[float] = []

    def __len__(self) -> int:
        return len(self._data)

    def clips(self, count: int) -> list[tuple[Tensor, Any]]:
        """So many clips, evenly over the data set: folders are sorted by class, and classes differ in length."""
        return [self._pair(index) for index in spread(len(self._data), count)]

    def forget(self) -> None:
        """Gives back the memory of the clips that were read."""
        self._read.clear()

    def seconds_to_read(self) -> float:
        """How long a clip took to be read for the first time, on average; 0 if none was read."""
        return sum(self._seconds) / max(1, len(self._seconds))

    def seconds_to_read_again(self) -> float:
        """How long a clip takes to be read a second time: next to nothing where the data set keeps what it decoded."""
        again = list(self._read)[:TWICE]
        start = time.perf_counter()
        for index in again:
            self._data[index]
        return (time.perf_counter() - start) / max(1, len(again))

    def longest(self) -> int:
        """Samples at 16 kHz of the longest clip, as far as that can be known without reading all of them.

        Of files the largest of each format are read. Of arrays in memory all lengths are known. Of any other data set
        it is the longest of a few clips, so that a rare longer one is not foreseen.
        """
        sizes = _sizes(self._data)
        if sizes is None:
            looked_at = spread(len(self._data), SPREAD)
        else:
            looked_at = []
            for kind in sorted({kind for kind, _ in sizes}):
                alike = [index for index, (of, _) in enumerate(sizes) if of == kind]
                looked_at += sorted(alike, key=lambda index: -sizes[index][1])[:LONGEST]
        return max(len(self._pair(index)[0]) for index in {*looked_at, *self._read})

    def _pair(self, index: int) -> tuple[Tensor, Any]:
        if index not in self._read:
            start = time.perf_counter()
            self._read[index] = self._data[index]
            self._seconds.append(time.perf_counter() - start)
        return self._read[index]


def reads_alike(data: Any, clips: int = 3) -> bool:
    """Whether the first clips are the same when they are read again.

    A dataset that augments its clips by itself gives others, and what was kept of them would freeze the first draw.
    """
    first = range(min(clips, len(data)))
    once, again = ([as_waveforms([data[index][0]])[0] for index in first] for _ in range(2))
    return all(map(torch.equal, once, again))


def spread(length: int, count: int) -> list[int]:
    """`count` numbers below `length`, as far apart as they can be; all of them if there are no more."""
    count = min(length, count)
    return [(2 * place + 1) * length // (2 * count) for place in range(count)]


def _sizes(data: Any) -> list[tuple[str, int]] | None:
    """A format and a size for each clip, which grow with its length; None where reading is the only way to know."""
    if isinstance(data, Pairs):
        return _sizes(data.dataset)
    if isinstance(data, Subset):
        every = _sizes(data.dataset)
        return None if every is None else [every[index] for index in data.indices]
    if isinstance(data, FolderDataset):
        return _each_size(data.files)
    if isinstance(data, (list, tuple)):
        return _each_size([item[0] if isinstance(item, (list, tuple)) and item else item for item in data])
    return None


def _each_size(clips: Sequence[Any]) -> list[tuple[str, int]] | None:
    found = [_size(clip) for clip in clips]
    return None if None in found else [size for size in found if size is not None]


def _size(clip: Any) -> tuple[str, int] | None:
    if isinstance(clip, (str, os.PathLike)):
        path = Path(clip)
        return (path.suffix.lower(), path.stat().st_size) if path.is_file() else None
    shape = getattr(clip, "shape", None)
    return None if not shape else ("array", int(shape[-1]))
