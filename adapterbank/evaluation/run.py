"""Runs a task over data, in the data's order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapterbank.audio.clips import read_clips
from adapterbank.backbone.backbone import Backbone
from adapterbank.data.pairs import read_pairs, warn_of_failed
from adapterbank.errors import DatasetError, LabelsError
from adapterbank.evaluation.result import Evaluation
from adapterbank.numbers import whole
from adapterbank.routing.run import logits_of
from adapterbank.task.task import Task


def evaluate_task(
    backbone: Backbone,
    task: Task,
    data: Any,
    *,
    batch_size: int = 32,
    on_error: str = "raise",
    each_epoch: bool = False,
) -> Evaluation:
    """Runs a task in eval mode over a data set of any form that `adapterbank.data.pairs` lists.

    Args:
        on_error: "raise", or "skip": items that cannot be used are left out of the metrics, and one
            `SkippedClipsWarning` counts and names them.
        each_epoch: only the metrics that are computed after each epoch of a training, which cost next to no time.

    Raises:
        DatasetError: there is no clip. LabelsError: a label that the task does not have, or one between yes and no.
    """
    was_training = task.training
    task.eval()
    logits, targets = [], []
    failed: dict[int, Exception] = {}
    try:
        with torch.no_grad():
            for batch in numbered_batches(data, batch_size, task=task, on_error=on_error, failed=failed):
                clips = read_clips(batch.waveforms)
                rows = [row for row in logits_of(backbone, [task] * len(clips), clips) if row is not None]
                logits.append(torch.stack(rows).float().cpu())
                targets.append(task.targets(batch.labels, numbers=batch.numbers, soft=False))
    finally:
        task.train(was_training)
    clips_seen = sum(map(len, logits))
    warn_of_failed(failed, clips_seen + len(failed))
    if not logits:
        raise DatasetError(f"got no clips to evaluate {task.name!r} on, expected (waveform, label) pairs.")
    together, truth = torch.cat(logits), torch.cat(targets)
    return Evaluation.of(task, together, truth, skipped=len(failed), each_epoch=each_epoch)


class Numbered(NamedTuple):
    """Some items of a data set: their numbers in it, waveforms (T,) at 16 kHz, and labels."""

    numbers: list[int]
    waveforms: list[Tensor]
    labels: list[Any]


def numbered_batches(
    data: Any,
    size: int,
    *,
    task: Task | None = None,
    on_error: str = "raise",
    failed: dict[int, Exception] | None = None,
) -> Iterator[Numbered]:
    """The items of a data set of any form, `size` at a time, in its order.

    Args:
        task: whose labels the items must have, where on_error is "skip".
        on_error, failed: as in `read_pairs`.
    """
    whole("batch_size", size)
    failed = {} if failed is None else failed
    batch = Numbered([], [], [])
    for number, waveform, label in read_pairs(data, on_error, failed):
        if task is not None and on_error == "skip":
            try:
                task.targets([label], soft=False)
            except LabelsError as error:
                failed[number] = error
                continue
        batch.numbers.append(number)
        batch.waveforms.append(waveform)
        batch.labels.append(label)
        if len(batch.numbers) == size:
            yield batch
            batch = Numbered([], [], [])
    if batch.numbers:
        yield batch


def batches(data: Any, size: int) -> Iterator[tuple[list[Tensor], list[Any]]]:
    """Lists of waveforms at 16 kHz and of labels of a data set of any form, `size` at a time, in its order."""
    for batch in numbered_batches(data, size):
        yield batch.waveforms, batch.labels
