"""What an evaluation found: the metrics as a dict, and behind them the classes, the confusions and the clips."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from torch import Tensor

from adapterbank.errors import ConfigError
from adapterbank.evaluation.interval import bootstrapped_map, paired_interval, paired_map_interval, wilson
from adapterbank.evaluation.metrics import (
    RENAMED,
    classes_of,
    current_name,
    decisions,
    f1_of,
    given,
    mean_average_precision,
    one_hot,
    score,
)
from adapterbank.evaluation.ranking import average_precisions, roc_areas
from adapterbank.files import write_atomically
from adapterbank.task.task import Task
from adapterbank.text import amount

SHOWN = 50  # classes in a table; of more, only the worst are shown


class ClassScore(NamedTuple):
    """How good a task is at one of its classes. What cannot be computed is NaN.

    Attributes:
        label: the class.
        clips: how many of the clips have it.
        precision: share of the clips that were given the label that have it; NaN if none was given it.
        recall: share of the clips that have the label that were given it; NaN if none has it.
        f1: harmonic mean of both; NaN if no clip has the label and none was given it.
        average_precision: area under its precision-recall curve; NaN if no clip has it.
        auc: area under its ROC curve; NaN if no clip has it, or every clip.
    """

    label: str
    clips: int
    precision: float
    recall: float
    f1: float
    average_precision: float
    auc: float


class Evaluation(dict[str, float]):
    """The metrics of a task on some clips, {name: value}, and what they were computed from.

    It is a dict of numbers: `evaluation["accuracy"]`, `json.dumps(evaluation)`. A name that a metric had before, such
    as "macro_accuracy", still reads it.

    Args:
        metrics: by name.
        logits: (B, C) in the data's order.
        targets: (B,) or, for a multi-label task, (B, C).
        given_labels: (B, C) bool, which labels the task gives; None: those of the highest or of positive logits.
        scaled: (B, C), the logits over the task's temperature; None: the logits.
        task: its name. labels: its C classes. primary_metric: by which it is compared.
        skipped: how many items of the data were left out because they could not be used.
    """

    def __init__(
        self,
        metrics: Mapping[str, float],
        logits: Tensor,
        targets: Tensor,
        *,
        given_labels: Tensor | None = None,
        scaled: Tensor | None = None,
        task: str = "",
        labels: Sequence[str] = (),
        primary_metric: str | None = None,
        skipped: int = 0,
    ):
        super().__init__(metrics)
        self.logits, self.targets = logits, targets
        self.task, self.labels = task, tuple(labels)
        self.primary_metric = primary_metric or ("map" if targets.ndim == 2 else "accuracy")
        self.skipped = skipped
        self._given, self._scaled = given_labels, scaled
        self._there = ~logits.isnan().any(dim=1) if logits.ndim == 2 else torch.zeros(0, dtype=torch.bool)

    @classmethod
    def of(
        cls, task: Task, logits: Tensor, targets: Tensor, *, skipped: int = 0, each_epoch: bool = False
    ) -> Evaluation:
        """Scores the answers of a task.

        Args:
            logits: (B, C). targets: (B,) or (B, C).
            skipped: how many items of the data were left out because they could not be used.
            each_epoch: only the metrics that are computed after each epoch of a training.
        """
        return cls(
            score(task, logits, targets, each_epoch=each_epoch),
            logits,
            targets,
            given_labels=decisions(task, logits),
            scaled=task.calibrated(logits),
            task=task.name,
            labels=task.labels,
            primary_metric=task.primary_metric,
            skipped=skipped,
        )

    def __missing__(self, name: str) -> float:
        if name in RENAMED:
            return self[current_name(name)]
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of any dict, also for a name that the metric had before."""
        return super().get(current_name(name), default)

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers alone, as a plain dict."""
        return dict(self)

    @property
    def multilabel(self) -> bool:
        """Whether a clip may have any number of labels."""
        return self.primary_metric == "map"

    @property
    def clips(self) -> int:
        """How many clips the task answered."""
        return int(self._there.sum())

    @cached_property
    def interval(self) -> tuple[float, float]:
        """(low, high), the 95 % interval of the primary metric.

        Of the accuracy it is Wilson's score interval; of the mAP the percentile bootstrap over clips. Both take the
        clips for independent of each other.
        """
        value = self.get(self.primary_metric, math.nan)
        if not self.clips or math.isnan(value):
            return math.nan, math.nan
        if self.multilabel:
            return bootstrapped_map(self.logits[self._there].cpu(), given(self.targets[self._there]).cpu())
        return wilson(value, self.clips)

    @cached_property
    def per_class(self) -> tuple[ClassScore, ...]:
        """A row per class, in the order of the logits."""
        if not self.clips:
            return ()
        truth, guess = self._truth(), self._guess()
        hits = (truth & guess).sum(dim=0).double()
        scaled = (self.logits if self._scaled is None else self._scaled)[self._there]
        scores = scaled if self.multilabel else scaled.double().softmax(dim=1)  # sigmoids rank as logits do
        columns = (
            truth.sum(dim=0),
            hits / guess.sum(dim=0),
            hits / truth.sum(dim=0),
            f1_of(guess, truth),
            average_precisions(scores, truth),
            roc_areas(scores, truth),
        )
        names = self.labels or [str(index) for index in range(truth.shape[1])]
        return tuple(
            ClassScore(name, int(count), *numbers)
            for name, count, *numbers in zip(names, *(column.tolist() for column in columns), strict=True)
        )

    @cached_property
    def confusion(self) -> Tensor:
        """(C, C) int64: how many clips of class i (rows) were called class j (columns).

        Of a multi-label task a clip counts once for each of its labels, in the column of every label that it was given.
        """
        if not self.clips:
            return torch.zeros(len(self.labels), len(self.labels), dtype=torch.int64)
        return (self._truth().double().T @ self._guess().double()).round().to(torch.int64)

    def _truth(self) -> Tensor:
        """Which labels the scored clips have: (B', C) bool."""
        targets = self.targets[self._there]
        return given(targets) if self.multilabel else one_hot(targets, self.logits.shape[1])

    def _guess(self) -> Tensor:
        """Which labels they were given: (B', C) bool."""
        if self._given is not None:
            return self._given[self._there]
        logits = self.logits[self._there]
        return logits > 0 if self.multilabel else one_hot(logits, logits.shape[1])

    def to_json(self) -> dict[str, Any]:
        """All of it as a dict of what JSON knows, without the logits; a number that is not known is None."""
        rows = [{key: _known(value) for key, value in row._asdict().items()} for row in self.per_class]
        return {
            "task": self.task,
            "clips": self.clips,
            "skipped": self.skipped,
            "metrics": {name: _known(value) for name, value in self.items()},
            "primary_metric": self.primary_metric,
            "interval": [_known(end) for end in self.interval],
            "per_class": rows,
        }

    def to_csv(self, path: str | Path) -> None:
        """Writes `per_class` as a table with a heading, atomically; a number that is not known is an empty cell.

        Raises:
            OSError: it cannot be written.
        """
        write_atomically(Path(path).expanduser(), self.as_csv().encode())

    def as_csv(self) -> str:
        """What `to_csv` writes."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(ClassScore._fields)
        for row in self.per_class:
            writer.writerow(["" if _known(value) is None else value for value in row])
        return text.getvalue()

    def table(self, classes: int = SHOWN) -> Table:
        """For a terminal: `rich.print(evaluation.table())`. The title has the metrics, and a class has a row.

        Args:
            classes: how many rows at most. Of more classes the worst by F1 are shown, and the last line says so.
        """
        rows = [row for row in self.per_class if row.clips or not math.isnan(row.f1)]
        absent, shown = len(self.per_class) - len(rows), rows
        if len(rows) > classes:
            shown = sorted(rows, key=lambda row: row.f1)[:classes]
        notes = (
            [f"The {len(shown)} worst of {amount(len(rows), 'class')}; per_class has all."]
            if len(shown) < len(rows)
            else []
        )
        notes += [f"Not shown: {amount(absent, 'class')} without a clip."] if absent else []
        table = Table(title=Text(self._headline()), caption=Text(" ".join(notes)) if notes else None, box=SIMPLE_HEAD)
        table.add_column("class", overflow="fold")
        for heading in ("clips", "precision", "recall", "F1", "AP", "AUC"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in shown:
            numbers = ("-" if math.isnan(value) else f"{value:.3f}" for value in row[2:])
            table.add_row(Text(row.label), str(row.clips), *numbers)
        return table

    def _headline(self) -> str:
        """Task, clips and metrics in a line or two."""
        low, high = self.interval
        primary = self.get(self.primary_metric, math.nan)
        first = f"{self.task}: " if self.task else ""
        first += (
            f"{self.primary_metric} {primary:.3f} (95 % interval {low:.3f} to {high:.3f}) on "
            f"{amount(self.clips, 'clip')}"
        )
        first += f", {self.skipped} left out" if self.skipped else ""
        others = [f"{name} {value:.3f}" for name, value in self.items() if name != self.primary_metric]
        return f"{first}\n{', '.join(others)}"

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in self.items())
        left_out = f", {self.skipped} left out" if self.skipped else ""
        return f"Evaluation of {self.task!r} on {amount(self.clips, 'clip')}{left_out}: {numbers}"


def difference(first: Evaluation, second: Evaluation) -> tuple[float, float, float]:
    """The primary metric of `first` less that of `second` on the same clips, and the ends of its 95 % interval.

    Both are scored on the same draws of clips (paired percentile bootstrap), so that clips which are hard for both do
    not widen the interval. Clips that one of the two did not answer count for neither.

    Raises:
        ConfigError: the two are not of the same clips, or of different kinds of task.
    """
    alike = first.multilabel == second.multilabel and sorted(first.labels) == sorted(second.labels)
    if len(first.targets) != len(second.targets) or not alike:
        raise ConfigError(f"got {first!r} and {second!r}, expected two of the same clips and classes.")
    both = first._there & second._there
    if not both.any():
        return math.nan, math.nan, math.nan
    if not first.multilabel:
        mine, best = (_right(each)[both].tolist() for each in (first, second))
        return paired_interval(mine, best)
    order = [second.labels.index(label) for label in first.labels]  # the same classes may stand in another order
    truth = given(first.targets[both]).cpu()
    scores, others = first.logits[both].cpu(), second.logits[both][:, order].cpu()
    value, other = (float(mean_average_precision(each, truth.long())) for each in (scores, others))
    return value - other, *paired_map_interval(scores, others, truth)


def _right(evaluation: Evaluation) -> Tensor:
    """(B,) float: 1 where the highest logit is that of the clip's class."""
    return (evaluation.logits.argmax(dim=1) == classes_of(evaluation.targets)).float()


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
