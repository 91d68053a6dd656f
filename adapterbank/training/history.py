"""The record of one training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """What a training did, how its epochs went and what it cost.

    Attributes:
        task: name of the task that was trained.
        options: the value of every option of `fit`, by its name.
        precision: "bf16" or "fp16" if the frozen part was cast to it; "fp32" if nothing was cast, also on a backbone
            that is stored in bf16 or int8.
        epochs: one record per epoch, with the keys "train/loss", "lr" and, if there was validation data,
            "val/<metric>" for each metric.
        best_epoch: the epoch whose weights the task has now, counted from 0: the best by validation, else the last.
        steps: optimiser steps that were made.
        seconds: of wall clock. For a task of `fit_many` it is the task's share, by steps, of the whole.
        cpu_seconds: of processor time, of all threads together, shared out in the same way: four busy cores spend four
            of them in a second.
        gpu_seconds: time on the GPU, shared out in the same way; 0.0 without a GPU.
        peak_memory_mb: the highest memory in use, in MiB, as `Meter` measures it.
        estimate: what was said of "seconds" and "memory_mb" before the first step; empty for a training of few steps.
        error: why `fit_many` stopped this task and gave it back as it was; empty if it did not.
    """

    task: str
    options: dict[str, Any]
    precision: str
    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    steps: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    peak_memory_mb: float = 0.0
    estimate: dict[str, float] = field(default_factory=dict)
    error: str = ""
