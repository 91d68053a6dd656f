"""Two ways of doing the same thing, timed in turn: a time alone says little on a machine that others use too."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.training.meter import Meter

WARM_UP = 3  # of each way: the first runs allocate, and build what the backend keeps; the third packs matrices


Step = Callable[[], Any]


@dataclass(frozen=True)
class Pairs:
    """Seconds of two ways; `ours[i]` and `theirs[i]` ran one after the other."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    def speedups(self) -> list[float]:
        """How many times as fast ours is, pair by pair."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]


def timed(step: Step, device: torch.device, settle: bool = False) -> Callable[[], float]:
    """Runs the step and gives its wall-clock seconds, until the device is done.

    Args:
        settle: run it once before, as in a training, where a step follows one of its own kind.
    """

    def run() -> float:
        if settle:
            step()
        with Meter(device) as meter:
            step()
        return meter.seconds

    return run


def alternate(ours: Callable[[], float], theirs: Callable[[], float], pairs: int, warm_up: int = WARM_UP) -> Pairs:
    """Alternating runs of two ways that tell their own seconds; garbage is collected between pairs, never within."""
    for _ in range(warm_up):
        ours(), theirs()
    collected = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        times = []
        for _ in range(pairs):
            times.append((ours(), theirs()))
            gc.collect()
    finally:
        if collected:
            gc.enable()
    return Pairs(tuple(mine for mine, _ in times), tuple(other for _, other in times))


def noise(clips: int, seconds: float) -> list[Tensor]:
    """The same clips of white noise every time, (T,) each."""
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(round(seconds * SAMPLE_RATE), generator=generator) for _ in range(clips)]
