"""Decoded audio of a dataset, kept in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from adapterbank.audio.read import read_audio
from adapterbank.audio.resampling import DEFAULT_KERNEL, check_kernel


class WaveformCache:
    """Decoded audio in RAM up to a number of bytes; what does not fit is decoded each time. Safe between threads."""

    def __init__(self, budget: int, sample_rate: int, resampling: str = DEFAULT_KERNEL):
        check_kernel(resampling)
        self.budget = budget
        self.sample_rate = sample_rate  # Hz
        self.resampling = resampling
        self._kept: dict[Path, Tensor] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def read(self, file: Path) -> Tensor:
        """(T,) float32, the caller's own copy: an augmentation in place must not reach the next epoch."""
        kept = self._kept.get(file)
        if kept is not None:
            return kept.clone()
        waveform = read_audio(file, self.sample_rate, self.resampling)
        size = waveform.numel() * waveform.element_size()
        with self._lock:
            if file not in self._kept and self._bytes + size <= self.budget:
                self._kept[file] = waveform.clone()
                self._bytes += size
        return waveform

    def __reduce__(self) -> tuple[Callable[..., WaveformCache], tuple[int, int, str]]:
        # A spawned DataLoader worker starts with an empty cache: decoding is quicker than gigabytes through a pipe.
        return WaveformCache, (self.budget, self.sample_rate, self.resampling)
