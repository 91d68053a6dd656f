"""Evaluation of a task, by torchmetrics, and the numbers of continual learning over a sequence of tasks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import binary_accuracy, binary_average_precision, multiclass_accuracy

from adapterbank.backbone.backbone import Backbone
from adapterbank.errors import ConfigError, DatasetError
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


def score(task: Task, logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Metrics of logits (B, C) against targets (B,) or (B, C); mAP and macro-accuracy are over classes that occur."""
    classes = len(task.labels)
    loss = loss_function(task, logits, targets)
    if task.spec.multilabel:
        probabilities, truth = logits.sigmoid(), targets.long()
        found = {
            "map": mean_average_precision(probabilities, truth),
            "accuracy": binary_accuracy(probabilities.flatten(), truth.flatten()),
        }
    elif classes == 1:
        found = {"accuracy": torch.tensor(1.0), "macro_accuracy": torch.tensor(1.0)}
    else:
        recalls = multiclass_accuracy(logits, targets, classes, average="none")
        found = {
            "accuracy": multiclass_accuracy(logits, targets, classes, average="micro"),
            "macro_accuracy": recalls[targets.unique()].mean(),
        }
    return {**{name: float(value) for name, value in found.items()}, "loss": float(loss)}


def mean_average_precision(probabilities: Tensor, targets: Tensor) -> Tensor:
    """mAP over the classes that occur; NaN if none does. (B, C) in [0, 1], (B, C) zeros and ones -> ()."""
    # Class by class: torchmetrics' multi-label form warns of classes without a positive and refuses a single class.
    occurring = targets.any(0).nonzero().flatten()
    average = [binary_average_precision(probabilities[:, c], targets[:, c]) for c in occurring]
    return torch.stack(average).mean() if average else torch.tensor(math.nan)


def loss_function(task: Task, logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, or binary cross-entropy for multi-label tasks; in fp32."""
    if task.spec.multilabel:
        return F.binary_cross_entropy_with_logits(logits.float(), targets.float())
    return F.cross_entropy(logits.float(), targets)


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
