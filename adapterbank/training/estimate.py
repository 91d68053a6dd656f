"""How long a training will take and how much memory it needs: said before its first step, corrected while it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass

from adapterbank.text import amount

FEWEST = 8  # steps of a training that is worth an estimate
WARM_UP = 1  # steps that are slower than the others, because kernels are chosen and memory is asked for


@dataclass(frozen=True)
class Costs:
    """What the parts of one training cost, measured on a few of its clips.

    Attributes:
        before: seconds from now to the first step: what a cache computes, and where a new head starts.
        step: seconds of one optimiser step, with reading and preparing its clips.
        validation: seconds of one validation.
        memory_mb: the highest memory in use, in MiB.
    """

    before: float
    step: float
    validation: float
    memory_mb: float


class Estimate:
    """The time of one training.

    Args:
        begun: when the training began, as `time.perf_counter` counts.
        steps: that it will make if nothing stops it, in `validations` epochs.
        clips: of a step, of which `at_once` run through the model together.
    """

    def __init__(self, costs: Costs, begun: float, steps: int, validations: int, clips: int, at_once: int):
        self._costs, self._steps, self._validations = costs, steps, validations
        self._clips, self._at_once = clips, at_once
        self._made: list[float] = []  # seconds of the steps that were made
        self._validated: list[float] = []
        now = time.perf_counter()
        self.memory_mb = costs.memory_mb
        self.seconds = now - begun + costs.before + steps * costs.step + validations * costs.validation

    def after_step(self, seconds: float) -> None:
        """A step was made in so many seconds."""
        self._made.append(seconds)

    def after_validation(self, seconds: float) -> None:
        """An epoch was validated in so many seconds."""
        self._validated.append(seconds)

    def left(self) -> float:
        """Seconds that are left, by what steps and validations took so far; by the estimate where none was made."""
        made = self._made[WARM_UP:]
        step = sum(made) / len(made) if made else self._costs.step
        validated = self._validated
        validation = sum(validated) / len(validated) if validated else self._costs.validation
        return (self._steps - len(self._made)) * step + (self._validations - len(validated)) * validation

    def __str__(self) -> str:
        memory = f"{self.memory_mb / 1024:.1f} GiB" if self.memory_mb >= 1024 else f"{self.memory_mb:.0f} MiB"
        clips = amount(self._clips, "clip")
        if self._at_once < self._clips:
            clips += f", {self._at_once} at a time"
        return f"about {duration(self.seconds)} for {amount(self._steps, 'step')} of {clips}, and {memory} of memory"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
