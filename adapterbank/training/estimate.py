"""How long a training will take and how much memory it needs, said as soon as its first steps were timed."""

from __future__ import annotations

import time

import torch

from adapterbank.training.meter import peak_memory_mb

WARM_UP, TIMED = 1, 2  # steps: the first is slow, because kernels are chosen and memory is asked for
FEWEST = 8  # steps of a training that is worth an estimate
VALIDATED = 0.5  # of the time of a training step: a forward pass, where the frozen part gets no gradients of weights


class Estimate:
    """Times the first steps of one training.

    Args:
        steps: that it will make if nothing stops it.
        validations: how often it is validated, times validation clips over clips of a step.
    """

    def __init__(self, device: torch.device, steps: int, validations: float):
        self._device, self._steps, self._validations = device, steps, validations
        self._begun = time.perf_counter()
        self._at: list[float] = []  # the ends of the first steps
        self.seconds = self.memory_mb = 0.0

    def after_step(self) -> bool:
        """Whether the estimate is known from this step on; true once."""
        if self._steps < FEWEST or len(self._at) > WARM_UP + TIMED - 1:
            return False
        self._at.append(time.perf_counter())
        if len(self._at) < WARM_UP + TIMED:
            return False
        step = (self._at[-1] - self._at[WARM_UP - 1]) / TIMED
        left = self._steps - len(self._at) + VALIDATED * self._validations
        self.seconds = self._at[-1] - self._begun + step * left
        self.memory_mb = peak_memory_mb(self._device)
        return True

    def __str__(self) -> str:
        memory = f"{self.memory_mb / 1024:.1f} GiB" if self.memory_mb >= 1024 else f"{self.memory_mb:.0f} MiB"
        return f"about {_duration(self.seconds)} for {self._steps} steps, {memory} of memory"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
