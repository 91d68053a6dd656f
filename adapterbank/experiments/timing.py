"""Two ways of doing the same thing, timed in turn.

A time alone says little on a machine that others use too. The ratio of two times that were taken one right after the
other says more, because a busy machine slows both.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.training.meter import Meter

WARM_UP = 3  # untimed calls of each way: the first ones allocate memory and build what the backend keeps
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
    """A function that calls the step and returns its wall-clock seconds, until the device is done.

    Args:
        settle: call it once before, untimed, as in a training, where a step follows one of its own kind.
    """

    def measured() -> float:
        if settle:
            step()
        with Meter(device) as meter:
            step()
        return meter.seconds

    return measured


def alternate(ours: Callable[[], float], theirs: Callable[[], float], pairs: int, warm_up: int = WARM_UP) -> Pairs:
    """Calls two ways in turn, each of which returns its own seconds; garbage is collected between pairs, never within.

    Args:
        pairs: how many times both are called.
        warm_up: how many times both are called before, without being counted.
    """
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
