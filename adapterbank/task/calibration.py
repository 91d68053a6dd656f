"""What is fitted on validation data so that a task's probabilities mean what they say: temperature and thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterbank.errors import ConfigError, StorageError, UnknownNameError
from adapterbank.numbers import is_real
from adapterbank.text import amount

HALF = 0.5  # the threshold of a label that nobody has fitted one for


@dataclass(frozen=True)
class Calibration:
    """How logits become probabilities, and probabilities answers.

    Attributes:
        temperature: the logits are divided by it before softmax or sigmoid (Guo et al., 2017). Above 1 the task was too
            sure of itself. The order of the classes of a clip stays.
        thresholds: of a multi-label task, one per label in the order of the logits: the label is given above it. None
            for tasks with one label per clip, where the highest probability wins.

    Raises:
        ConfigError: a temperature that is not positive, or a threshold outside [0, 1].
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not is_real(self.temperature) or self.temperature <= 0:
            raise ConfigError(f"got temperature={self.temperature!r}, expected a positive number.")
        for value in self.thresholds or ():
            check_threshold(value)

    def to_json(self) -> dict[str, Any]:
        """As a dict of what JSON knows."""
        thresholds = None if self.thresholds is None else list(self.thresholds)
        return {"temperature": self.temperature, "thresholds": thresholds}

    @classmethod
    def from_json(cls, content: Any, classes: int, multilabel: bool) -> Calibration | None:
        """The inverse of `to_json`, for a task of C classes; None gives None, which is what older files have.

        Raises:
            StorageError: something else than what `to_json` writes, or for another number of classes.
        """
        if content is None:
            return None
        try:
            thresholds = content["thresholds"]
            found = cls(content["temperature"], None if thresholds is None else tuple(thresholds))
        except (KeyError, TypeError, ConfigError) as error:
            raise StorageError(f"got the calibration {str(content)[:80]!r}, which is damaged: {error}.") from error
        if (found.thresholds is None) is multilabel or (multilabel and len(found.thresholds or ()) != classes):
            expected = amount(classes, "threshold") if multilabel else "none"
            raise StorageError(f"the calibration has the thresholds {found.thresholds}, expected {expected}.")
        return found


def check_threshold(value: Any) -> float:
    """The value itself, if it is a number in [0, 1]. Raises ConfigError."""
    if not is_real(value) or not 0 <= value <= 1:
        raise ConfigError(f"got the threshold {value!r}, expected a probability: a number from 0 to 1.")
    return float(value)


def thresholds_of(given: float | Mapping[str, float], labels: Sequence[str], own: Sequence[float]) -> tuple[float, ...]:
    """A threshold per label, from what somebody passed.

    Args:
        given: one for all labels, or {label: threshold}; labels that it does not have keep their own.
        own: those of the task, one per label.

    Raises:
        ConfigError: no probability. UnknownNameError: a label that the task does not have.
    """
    if not isinstance(given, Mapping):
        return (check_threshold(given),) * len(labels)
    for label in given:
        if label not in labels:
            raise UnknownNameError("label", str(label), labels, "threshold= takes {label: probability}.")
    return tuple(check_threshold(given.get(label, value)) for label, value in zip(labels, own, strict=True))
