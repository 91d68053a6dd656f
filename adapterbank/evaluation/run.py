"""Runs a task over data, in the data's order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapterbank.backbone.backbone import Backbone
from adapterbank.errors import ConfigError, DatasetError
from adapterbank.evaluation.metrics import score
from adapterbank.routing.run import mels_of, run_rows
from adapterbank.task.task import Task


@dataclass(frozen=True)
class Evaluation:
    """Metrics with what they were computed from: logits (B, C) in the data's order and targets (B,) or (B, C)."""

    metrics: dict[str, float]
    logits: Tensor
    targets: Tensor


def evaluate_task(backbone: Backbone, task: Task, data: Any, *, batch_size: int = 32) -> Evaluation:
    """Runs a task in eval mode over data that yields (waveform at 16 kHz, label).

    Raises:
        DatasetError: there is no clip. LabelsError: a label that the task does not have.
    """
    was_training = task.training
    task.eval()
    logits, targets = [], []
    try:
        with torch.no_grad():
            for waveforms, labels in batches(data, batch_size):
                mels = mels_of(backbone, waveforms)
                logits.append(torch.stack(run_rows(backbone, [task] * len(mels), mels)).float().cpu())
                targets.append(task.targets(labels))
    finally:
        task.train(was_training)
    if not logits:
        raise DatasetError(f"got no clips to evaluate {task.name!r} on, expected (waveform, label) pairs.")
    together, truth = torch.cat(logits), torch.cat(targets)
    return Evaluation(score(task, together, truth), together, truth)


def batches(data: Any, size: int) -> Iterator[tuple[list[Tensor], list[Any]]]:
    """Lists of waveforms and of labels, `size` at a time, in the data's order."""
    if not isinstance(size, int) or size < 1:
        raise ConfigError(f"got batch_size={size!r}, expected a positive integer.")
    waveforms: list[Tensor] = []
    labels: list[Any] = []
    for waveform, label in items(data):
        waveforms.append(waveform)
        labels.append(label)
        if len(waveforms) == size:
            yield waveforms, labels
            waveforms, labels = [], []
    if waveforms:
        yield waveforms, labels


def items(data: Any) -> Iterator[tuple[Tensor, Any]]:
    """The pairs of a map-style dataset, a list or any iterable."""
    return (data[index] for index in range(len(data))) if _is_map_style(data) else iter(data)


def map_style(data: Any) -> Any:
    """Data that gives pairs by index: itself, or its pairs as a list, read once."""
    return data if _is_map_style(data) else list(data)


def _is_map_style(data: Any) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")
