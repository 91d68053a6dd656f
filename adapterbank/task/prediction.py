"""What a task says of one clip: its classes by probability, and which of them the clip has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from adapterbank.task.calibration import thresholds_of


@dataclass(frozen=True)
class Prediction:
    """What a task says of one clip.

    Attributes:
        task: its name.
        labels: all classes, the most likely first.
        probabilities: in the order of `labels`; they sum to 1 unless the task is multi-label.
        confidence: the highest of them.
        present: the labels that the clip has, the most likely first. Of a multi-label task those above their
            thresholds; else the most likely class, or nothing if a threshold was passed and is not exceeded.
        label: the first of `present`; None if there is none.
    """

    task: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    confidence: float
    present: tuple[str, ...] = ()

    @property
    def label(self) -> str | None:
        return self.present[0] if self.present else None


def predicted(
    task: str,
    classes: Sequence[str],
    probabilities: Tensor,
    own: Sequence[float] | None,
    threshold: float | Mapping[str, float] | None,
) -> Prediction:
    """The prediction of a task for one clip.

    Args:
        classes: C class names. probabilities: (C,).
        own: the thresholds of a multi-label task, one per class; None for a task with one label per clip.
        threshold: in place of those, for all classes or as {class: probability}; None: what the task says.

    Raises:
        ConfigError: no probability. UnknownNameError: a class that the task does not have.
    """
    values, order = probabilities.sort(descending=True, stable=True)
    ranked, places = tuple(values.tolist()), order.tolist()
    labels = tuple(classes[i] for i in places)
    limits = own
    if threshold is not None:
        limits = thresholds_of(threshold, classes, (0.0,) * len(labels) if own is None else own)
    candidates = len(labels) if own is not None else 1  # without thresholds of its own a clip has one class at most
    present = (
        labels[:1]
        if limits is None
        else tuple(classes[i] for i, p in zip(places[:candidates], ranked, strict=False) if p > limits[i])
    )
    return Prediction(task, labels, ranked, ranked[0], present)
