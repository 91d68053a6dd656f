"""Temperature and thresholds from validation data, so that probabilities mean what they say.

Guo et al. (2017): a network that is trained to the end is surer than it is right. One number, the temperature that the
logits are divided by, mends most of that and never changes which class is the most likely.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapterbank.backbone.backbone import Backbone
from adapterbank.errors import CalibrationWarning, DatasetError, warn_outside
from adapterbank.evaluation.metrics import classes_of, given
from adapterbank.evaluation.run import evaluate_task
from adapterbank.task.calibration import HALF, Calibration
from adapterbank.task.task import Task
from adapterbank.text import amount, verb

COLDEST, HOTTEST = 0.05, 20.0  # temperatures beyond say that the data cannot tell: all clips right, or none told apart


def calibrate_task(backbone: Backbone, task: Task, data: Any, **reading: Any) -> Calibration:
    """Fits temperature and thresholds to validation data and gives them to the task.

    Of the metrics that it had, the primary one stays: it does not depend on the calibration.

    Args:
        data: clips that the task was not trained on. reading: how they are read, as in `evaluate_task`.

    Raises:
        DatasetError: no clip. LabelsError: a label that the task does not have. The task is then as it was.
    """
    found = evaluate_task(backbone, task, data, each_epoch=True, **reading)
    there = ~found.logits.isnan().any(dim=1)
    if not there.any():
        raise DatasetError(
            f"none of the {amount(len(there), 'clip')} to calibrate {task.name!r} on gave logits without NaN."
        )
    task.calibration = fitted(task, found.logits[there], found.targets[there])
    task.record({name: value for name, value in task.metrics.items() if name == task.primary_metric})
    return task.calibration


def fitted(task: Task, logits: Tensor, targets: Tensor) -> Calibration:
    """The calibration of a task by its logits (B, C) and targets, (B,) or (B, C), of validation clips.

    Warns:
        CalibrationWarning: the clips cannot tell a temperature, which stays 1; or a label never or always occurs, and
            its threshold stays one half.
    """
    multilabel = task.spec.multilabel
    temperature = fit_temperature(logits, targets, multilabel)
    if temperature is None:
        temperature = 1.0
        warn_outside(
            f"the {amount(len(logits), 'clip')} {verb(len(logits), 'tell')} no temperature for {task.name!r}: on them "
            "the task is always right, or its logits say nothing. It stays 1. Pass more validation clips, none of "
            "which it was trained on.",
            CalibrationWarning,
        )
    if not multilabel:
        return Calibration(temperature)
    truth = given(targets)
    thresholds = best_thresholds((logits / temperature).sigmoid(), truth)
    kept = [label for label, mine in zip(task.labels, truth.T, strict=True) if mine.all() or not mine.any()]
    if kept:
        names = ", ".join(kept[:8]) + (", …" if len(kept) > 8 else "")
        warn_outside(
            f"no clip, or every clip, has {len(kept)} of the {amount(len(task.labels), 'label')} of {task.name!r}: "
            f"{names}. {'Its threshold stays' if len(kept) == 1 else 'Their thresholds stay'} 0.5.",
            CalibrationWarning,
        )
    return Calibration(temperature, thresholds)


@torch.inference_mode(False)  # LBFGS needs gradients, whatever the caller's mode
@torch.enable_grad()
def fit_temperature(logits: Tensor, targets: Tensor, multilabel: bool) -> float | None:
    """The temperature of the least cross-entropy, by LBFGS in fp64. (B, C), (B,) or (B, C) -> a number.

    Returns:
        None if it lies outside of `COLDEST` to `HOTTEST`.
    """
    scores, truth = logits.detach().double().clone(), targets.detach().clone()
    log = scores.new_zeros((), requires_grad=True)  # of the temperature, so that it stays positive

    def loss() -> Tensor:
        scaled = scores / log.exp()
        if multilabel:
            return F.binary_cross_entropy_with_logits(scaled, truth.double())
        return F.cross_entropy(scaled, classes_of(truth))

    def slope(temperature: float) -> float:
        with torch.no_grad():
            log.fill_(math.log(temperature))
        (found,) = torch.autograd.grad(loss(), log)
        return float(found)

    with torch.autocast(scores.device.type, enabled=False):
        # The loss is convex in 1 / temperature, so that it has its minimum between two slopes of different signs.
        if not slope(COLDEST) < 0 < slope(HOTTEST):
            return None
        with torch.no_grad():
            log.zero_()
        optimizer = torch.optim.LBFGS(
            [log], max_iter=100, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        optimizer.step(closure)
    return min(HOTTEST, max(COLDEST, float(log.detach().exp())))


def best_thresholds(probabilities: Tensor, truth: Tensor) -> tuple[float, ...]:
    """The threshold of each label with the best F1. (B, C) in [0, 1], (B, C) bool -> C numbers.

    It lies halfway between the lowest probability that is above it and the highest that is not. Of several with the
    same F1 it is the highest. A label that no clip or every clip has keeps one half: F1 would say "always" or nothing.
    """
    return tuple(
        _best_threshold(mine, truth[:, c]) if truth[:, c].any() and not truth[:, c].all() else HALF
        for c, mine in enumerate(probabilities.double().T)
    )


def _best_threshold(probabilities: Tensor, truth: Tensor) -> float:
    ranked, order = probabilities.sort(descending=True)
    ends = F.pad((ranked[1:] != ranked[:-1]).nonzero().flatten(), (0, 1), value=len(ranked) - 1)
    hits = truth[order].cumsum(0)[ends].double()
    f1 = 2 * hits / (ends + 1 + truth.sum())
    best = int(f1.argmax())  # the first of equals has the highest threshold
    above = ranked[ends[best]]
    below = ranked[ends[best] + 1] if best + 1 < len(ends) else torch.zeros_like(above)
    return float((above + below) / 2)
