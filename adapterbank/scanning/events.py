"""From what a task says of each window to events: one label from its onset to its offset.

Symbols: W windows, C classes of a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adapterbank.errors import ConfigError
from adapterbank.numbers import is_real
from adapterbank.task.calibration import HALF, thresholds_of

_SAME = 1e-6  # seconds: times that are equal but for rounding

Threshold = float | Mapping[str, float] | None


class Event(NamedTuple):
    """One label of a task in one stretch of a recording.

    Attributes:
        onset, offset: in seconds from the start of the recording: where the first of its windows begins and where the
            last one ends.
        score: the highest probability among its windows.
    """

    task: str
    label: str
    onset: float
    offset: float
    score: float


class Track(NamedTuple):
    """What one task says of each window.

    Attributes:
        labels: C, in the order of the probabilities.
        multilabel: several labels, or none, may hold at a time.
        probabilities: (W, C); NaN where a window could not be heard.
        thresholds: C, those of a multi-label task; None: one half for each, as for a task that nobody calibrated.
    """

    task: str
    labels: tuple[str, ...]
    multilabel: bool
    probabilities: Tensor
    thresholds: Sequence[float] | None = None

    def found(self, threshold: Threshold = None) -> Tensor:
        """Which labels hold in which window: (W, C) of bool.

        Of a single-label task it is the likeliest label, if it exceeds the threshold; of a multi-label task it is
        every label that does. `predict` uses thresholds in the same way.

        Args:
            threshold: of all labels, or {label: threshold}. None: of a multi-label task its own; of a single-label
                task none, so that its likeliest label always holds.

        Raises:
            ConfigError: a threshold outside 0 to 1. UnknownNameError: a label that the task does not have.
        """
        scores = self.probabilities
        above = scores > self._limits(threshold).to(scores)  # False where a score is NaN
        if self.multilabel or not len(scores):
            return above
        top = torch.zeros_like(above)
        return top.scatter_(1, scores.nan_to_num().argmax(dim=1, keepdim=True), True) & above

    def _limits(self, threshold: Threshold) -> Tensor:
        """(C,)"""
        own = self.thresholds or ((HALF if self.multilabel else 0.0),) * len(self.labels)
        return torch.tensor(own if threshold is None else thresholds_of(threshold, self.labels, own))


def events_of(
    track: Track, starts: Tensor, ends: Tensor, threshold: Threshold, min_seconds: float, merge_gap: float
) -> list[Event]:
    """The events of one task in the order of their onsets.

    Args:
        starts, ends: (W,) of the windows, in seconds, in order.
        threshold: as `Track.found` takes it.
        min_seconds: shorter events are left out.
        merge_gap: seconds. Windows of one label that overlap, touch, or are no further apart than this are one event.

    Raises:
        ConfigError: a negative time, or as `Track.found`. UnknownNameError.
    """
    for name, value in (("min_seconds", min_seconds), ("merge_gap", merge_gap)):
        if not is_real(value) or value < 0:
            raise ConfigError(f"got {name}={value!r}, expected seconds from 0 on.")
    windows = list(zip(starts.tolist(), ends.tolist(), strict=True))
    merged: list[tuple[int, float, float, float]] = []  # label, onset, offset, score; label by label
    for window, label in track.found(threshold).T.nonzero().flip(1).tolist():
        (start, end), score = windows[window], float(track.probabilities[window, label])
        if merged and merged[-1][0] == label and start <= merged[-1][2] + merge_gap + _SAME:
            _, onset, offset, best = merged.pop()
            merged.append((label, onset, max(offset, end), max(best, score)))
        else:
            merged.append((label, start, end, score))
    events = [Event(track.task, track.labels[label], *rest) for label, *rest in merged]
    kept = [event for event in events if event.offset - event.onset >= min_seconds - _SAME]
    return sorted(kept, key=lambda event: (event.onset, event.offset))
