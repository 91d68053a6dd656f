"""The one table of metrics, and the functions in it.

A metric is an entry of `METRICS`: its name, which tasks it is for, and the function that computes it. Adding one is one
call of `register_metric`; evaluation, training, trackers and plots then know it. The best epoch of a training is still
chosen by the task's primary metric: its accuracy, or the mAP of a multi-label task.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from adapterbank.errors import ConfigError
from adapterbank.task.task import Task

# A function of logits (B, C) and targets, (B,) class indices or (B, C) of 0 and 1, that gives one number.
Measure: TypeAlias = "Callable[[Tensor, Tensor], Tensor | float]"


@dataclass(frozen=True)
class Metric:
    """A number that says how good the logits of a task are.

    Args:
        name: the key in `bank.evaluate()`. `History.epochs` has it as "val/<name>", trackers as "test/<name>" as well.
        single_label: computes it where each clip has one label; None if the metric is not for such tasks.
        multilabel: computes it where each clip has any number of labels; None if the metric is not for such tasks.
        higher_is_better: False for a loss or an error rate.
    """

    name: str
    single_label: Measure | None = None
    multilabel: Measure | None = None
    higher_is_better: bool = True

    def measure(self, multilabel: bool) -> Measure | None:
        """The function for this kind of task, if the metric has one."""
        return self.multilabel if multilabel else self.single_label


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of clips whose highest logit is that of their class. (B, C), (B,) -> ()."""
    return (logits.argmax(dim=1) == targets).sum() / len(targets)


def macro_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the classes that occur of the share of their clips that is found. (B, C), (B,) -> ()."""
    classes = logits.shape[1]
    found = targets[logits.argmax(dim=1) == targets].bincount(minlength=classes)
    there = targets.bincount(minlength=classes)
    return (found / there)[there > 0].mean()


def binary_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of right answers, a label counting as given above a probability of one half. (B, C), (B, C) -> ()."""
    return ((logits.sigmoid() > 0.5) == targets.long()).sum() / targets.numel()


def mean_average_precision(probabilities: Tensor, targets: Tensor) -> Tensor:
    """mAP over the classes that occur; NaN if none does. (B, C) in [0, 1], (B, C) zeros and ones -> ()."""
    occurring = targets.any(0).nonzero().flatten()
    average = [_average_precision(probabilities[:, c], targets[:, c]) for c in occurring]
    return torch.stack(average).mean() if average else torch.tensor(math.nan)


def _average_precision(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Area under the precision-recall curve as a sum of steps, as scikit-learn defines it. (B,), (B,) -> ()."""
    ranked, order = probabilities.sort(descending=True)
    last = F.pad(ranked.diff().nonzero().flatten(), (0, 1), value=len(ranked) - 1)  # of each run of equal probabilities
    hits = targets[order].cumsum(0)[last]
    precision, recall = hits / (last + 1), hits / hits[-1]
    steps = recall.diff(prepend=recall.new_zeros(1))
    return (steps * precision).flip(0).sum()  # from the highest recall down: the order decides the last bit in fp32


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy, in fp32. (B, C), (B,) -> ()."""
    return F.cross_entropy(logits.float(), targets)


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy over clips and labels, in fp32. (B, C), (B, C) -> ()."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())


# Everything that reports metrics reads this table: evaluation, training, trackers and plots, in this order.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("map", multilabel=lambda logits, targets: mean_average_precision(logits.sigmoid(), targets.long())),
        Metric("accuracy", single_label=accuracy, multilabel=binary_accuracy),
        Metric("macro_accuracy", single_label=macro_accuracy),
        Metric("loss", single_label=cross_entropy, multilabel=binary_cross_entropy, higher_is_better=False),
    )
}


def register_metric(metric: Metric) -> None:
    """Adds a metric to the table, for every evaluation and training from now on.

        def macro_f1(logits, targets):
            return sklearn.metrics.f1_score(targets, logits.argmax(dim=1), average="macro")

        register_metric(Metric("macro_f1", single_label=macro_f1))

    Raises:
        ConfigError: no metric, a name that cannot stand in "val/<name>", one that the table has, or no function.
    """
    if not isinstance(metric, Metric) or not isinstance(metric.name, str) or not metric.name.isidentifier():
        raise ConfigError(f"got {metric!r}, expected a Metric whose name has letters, digits and underscores only.")
    if metric.name in METRICS:
        raise ConfigError(f"the metric {metric.name!r} exists. Known: {', '.join(METRICS)}. Choose another name.")
    functions = [measure for measure in (metric.single_label, metric.multilabel) if measure is not None]
    if not functions or not all(map(callable, functions)):
        raise ConfigError(f"the metric {metric.name!r} has no function; pass single_label=, multilabel= or both.")
    METRICS[metric.name] = metric


def score(task: Task, logits: Tensor, targets: Tensor) -> dict[str, float]:
    """All metrics of the table that are for this kind of task. (B, C), (B,) or (B, C) -> {name: value}.

    The mAP and the macro-accuracy are over the classes that occur in the targets.

    Raises:
        ConfigError: a registered metric failed, or gave no single number.
    """
    measures = {name: metric.measure(task.spec.multilabel) for name, metric in METRICS.items()}
    return {name: _number(name, measure, logits, targets) for name, measure in measures.items() if measure is not None}


def _number(name: str, measure: Measure, logits: Tensor, targets: Tensor) -> float:
    """What a metric says, with its name in the error if it fails: it may be somebody's own function."""
    try:
        return float(measure(logits, targets))
    except Exception as error:  # of whatever kind somebody's function raises
        raise ConfigError(
            f"the metric {name!r} failed on logits {tuple(logits.shape)} and targets {tuple(targets.shape)}: "
            f"{type(error).__name__}: {error}. It has to give one number; `evaluation.METRICS` is the table of metrics."
        ) from error


def loss_function(task: Task, logits: Tensor, targets: Tensor) -> Tensor:
    """What training minimises, in fp32: cross-entropy, or binary cross-entropy for multi-label tasks."""
    return (binary_cross_entropy if task.spec.multilabel else cross_entropy)(logits, targets)
