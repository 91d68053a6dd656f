"""The one table of metrics, and the functions in it.

A metric is an entry of `METRICS`: its name, which tasks it is for, and the function that computes it. Adding one is one
call of `register_metric`; evaluation, training, trackers and plots then know it. The best epoch of a training is still
chosen by the task's primary metric: its accuracy, or the mAP of a multi-label task.

Where targets are shares between 0 and 1, a label counts as given from one half on; a clip of a single-label task
belongs to the class with the highest share. Only the losses look at the shares themselves.
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
from adapterbank.evaluation.ranking import average_precisions, mean_over_known, roc_areas
from adapterbank.task.task import Task

BINS = 15  # of the expected calibration error: what Guo et al. (2017) use

RENAMED = {"macro_accuracy": "balanced_accuracy"}  # what a metric was called before -> its name

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
        each_epoch: also computed on the validation data after each epoch of a training; False for what costs time. A
            task's primary metric always is.
        decides: of a multi-label task it asks only which labels are given. Its logits are then 1 where the probability
            is above the label's threshold (one half, or what `bank.calibrate` found) and -1 elsewhere.
    """

    name: str
    single_label: Measure | None = None
    multilabel: Measure | None = None
    higher_is_better: bool = True
    each_epoch: bool = True
    decides: bool = False

    def measure(self, multilabel: bool) -> Measure | None:
        """The function for this kind of task, if the metric has one."""
        return self.multilabel if multilabel else self.single_label


def current_name(key: str) -> str:
    """A metric's name of today: "val/macro_accuracy" is "val/balanced_accuracy". Other keys are given back."""
    prefix, slash, name = key.rpartition("/")
    return f"{prefix}{slash}{RENAMED.get(name, name)}"


def given(targets: Tensor) -> Tensor:
    """Which labels the clips of a multi-label task have. (B, C) in [0, 1] -> (B, C) bool."""
    return targets >= 0.5


def classes_of(targets: Tensor) -> Tensor:
    """The class of each clip. (B,) indices, or (B, C) shares of which the highest counts -> (B,)."""
    return targets.argmax(dim=1) if targets.ndim == 2 else targets


def one_hot(targets: Tensor, classes: int) -> Tensor:
    """Which class each clip has, as for a multi-label task. (B,) or (B, C) -> (B, C) bool."""
    return F.one_hot(classes_of(targets), classes).bool()


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of clips whose highest logit is that of their class. (B, C), (B,) -> ()."""
    return (logits.argmax(dim=1) == classes_of(targets)).sum() / len(targets)


def top3_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of clips whose class has one of the three highest logits; 1 for up to three classes. (B, C), (B,) -> ().

    Of equal logits the first counts as higher, as for the accuracy.
    """
    wanted = classes_of(targets)[:, None]
    own = logits.gather(1, wanted)
    earlier = torch.arange(logits.shape[1], device=logits.device) < wanted
    before = (logits > own) | ((logits == own) & earlier)
    return (before.sum(dim=1) < 3).sum() / len(targets)


def balanced_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the classes that occur of the share of their clips that is found. (B, C), (B,) -> ()."""
    classes, truth = logits.shape[1], classes_of(targets)
    found = truth[logits.argmax(dim=1) == truth].bincount(minlength=classes)
    there = truth.bincount(minlength=classes)
    return (found / there)[there > 0].mean()


def binary_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of right answers, a label counting as given above a probability of one half. (B, C), (B, C) -> ()."""
    return ((logits.sigmoid() > 0.5) == given(targets)).sum() / targets.numel()


def macro_f1(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean F1 over the classes that occur or are guessed. (B, C), (B,) -> ()."""
    guess = F.one_hot(logits.argmax(dim=1), logits.shape[1]).bool()
    return mean_over_known(f1_of(guess, one_hot(targets, logits.shape[1])))


def multilabel_macro_f1(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean F1 over the labels that occur or are guessed, by a logit above 0. (B, C), (B, C) -> ()."""
    return mean_over_known(f1_of(logits > 0, given(targets)))


def f1_of(guess: Tensor, truth: Tensor) -> Tensor:
    """F1 of each class, 2 TP / (2 TP + FP + FN); NaN where it neither occurs nor is guessed. (B, C) bool -> (C,)."""
    return 2 * (guess & truth).sum(dim=0).double() / (guess.sum(dim=0) + truth.sum(dim=0))


def mean_average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """mAP over the classes that occur; NaN if none does. (B, C) probabilities or logits, (B, C) in [0, 1] -> ()."""
    return mean_over_known(average_precisions(scores, given(targets)))


def single_label_map(logits: Tensor, targets: Tensor) -> Tensor:
    """mAP of the probabilities, each class against all others, over the classes that occur. (B, C), (B,) -> ()."""
    truth = one_hot(targets, logits.shape[1])
    return mean_over_known(average_precisions(logits.double().softmax(dim=1), truth))


def auc(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean area under the ROC curve of the probabilities, each class against all others. (B, C), (B,) -> ().

    The mean is over the classes that have both clips of their own and others; NaN if none has.
    """
    truth = one_hot(targets, logits.shape[1])
    return mean_over_known(roc_areas(logits.double().softmax(dim=1), truth))


def multilabel_auc(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean area under the ROC curve over the labels that some clips have and others lack. (B, C), (B, C) -> ()."""
    return mean_over_known(roc_areas(logits, given(targets)))


def calibration_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Expected calibration error of the highest probability (Guo et al., 2017). (B, C), (B,) -> ()."""
    confidence, guess = logits.double().softmax(dim=1).max(dim=1)
    return _calibration_error(confidence, guess == classes_of(targets))


def multilabel_calibration_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Expected calibration error of every probability, over all pairs of a clip and a label. (B, C), (B, C) -> ()."""
    return _calibration_error(logits.double().sigmoid().flatten(), given(targets).flatten())


def _calibration_error(probabilities: Tensor, happened: Tensor) -> Tensor:
    """Mean over `BINS` bins of equal width of |share that happened - mean probability|, weighted by their counts.

    (P,) float64 in [0, 1], (P,) bool -> ().
    """
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=probabilities.device)[1:-1]
    which = torch.bucketize(probabilities, edges)
    surplus = happened.double() - probabilities
    return torch.bincount(which, weights=surplus, minlength=BINS).abs().sum() / len(probabilities)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy, in fp32. (B, C), (B,) -> ()."""
    return F.cross_entropy(logits.float(), targets)


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy over clips and labels, in fp32. (B, C), (B, C) -> ()."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())


# Everything that reports metrics reads this table: evaluation, training, trackers and plots, in this order. Only a
# task's primary metric goes before all others.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", single_label=accuracy, multilabel=binary_accuracy, decides=True),
        Metric("balanced_accuracy", single_label=balanced_accuracy),
        Metric("macro_f1", single_label=macro_f1, multilabel=multilabel_macro_f1, decides=True),
        Metric("top3_accuracy", single_label=top3_accuracy, each_epoch=False),
        Metric("map", single_label=single_label_map, multilabel=mean_average_precision, each_epoch=False),
        Metric("auc", single_label=auc, multilabel=multilabel_auc, each_epoch=False),
        Metric(
            "ece",
            single_label=calibration_error,
            multilabel=multilabel_calibration_error,
            higher_is_better=False,
            each_epoch=False,
        ),
        Metric("loss", single_label=cross_entropy, multilabel=binary_cross_entropy, higher_is_better=False),
    )
}


def register_metric(metric: Metric) -> None:
    """Adds a metric to the table, for every evaluation and training from now on.

        def kappa(logits, targets):
            return sklearn.metrics.cohen_kappa_score(targets, logits.argmax(dim=1))

        register_metric(Metric("kappa", single_label=kappa))

    Raises:
        ConfigError: no metric, a name that cannot stand in "val/<name>", one that the table has, or no function.
    """
    if not isinstance(metric, Metric) or not isinstance(metric.name, str) or not metric.name.isidentifier():
        raise ConfigError(f"got {metric!r}, expected a Metric whose name has letters, digits and underscores only.")
    if metric.name in METRICS or metric.name in RENAMED:
        raise ConfigError(f"the metric {metric.name!r} exists. Known: {', '.join(METRICS)}. Choose another name.")
    functions = [measure for measure in (metric.single_label, metric.multilabel) if measure is not None]
    if not functions or not all(map(callable, functions)):
        raise ConfigError(f"the metric {metric.name!r} has no function; pass single_label=, multilabel= or both.")
    METRICS[metric.name] = metric


def score(task: Task, logits: Tensor, targets: Tensor, *, each_epoch: bool = False) -> dict[str, float]:
    """The metrics of the table that are for this kind of task, of what `predict` answers.

    So the probabilities are those at the task's temperature, and labels are given by its thresholds.

    Args:
        logits: (B, C). If one of them is NaN, so are all metrics: nothing can be said of such an answer.
        targets: (B,), or (B, C) for a multi-label task.
        each_epoch: only those that are computed after each epoch; the task's primary metric always is.

    Raises:
        ConfigError: a registered metric failed, or gave no single number.
    """
    multilabel = task.spec.multilabel
    chosen = [
        (metric, measure)
        for metric in METRICS.values()
        if (measure := metric.measure(multilabel)) is not None
        and (not each_epoch or metric.each_epoch or metric.name == task.primary_metric)
    ]
    chosen.sort(key=lambda pair: pair[0].name != task.primary_metric)  # what the task is compared by comes first
    if logits.isnan().any():
        return {metric.name: math.nan for metric, _ in chosen}
    scaled = task.calibrated(logits)
    decided = decisions(task, logits) * 2.0 - 1 if multilabel else scaled
    return {
        metric.name: _number(metric.name, measure, decided if metric.decides else scaled, targets)
        for metric, measure in chosen
    }


def decisions(task: Task, logits: Tensor) -> Tensor:
    """Which labels `predict` gives: for a multi-label task those above their thresholds, else the most likely class.

    (B, C) -> (B, C) bool.
    """
    if not task.spec.multilabel:
        return F.one_hot(logits.argmax(dim=1), logits.shape[1]).bool()
    thresholds = torch.tensor(task.thresholds, dtype=torch.float64, device=logits.device)
    return task.probabilities(logits).double() > thresholds


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
