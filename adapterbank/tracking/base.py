"""What a tracker is, as Protocols that any experiment tracker can fill.

A tracker opens one run for a sequence of tasks, and inside it one run for each task. `train_sequence` and `fit_many`
call the methods below and nothing else. A tracker is three classes (`Tracker`, `SequenceRun`, `TaskRun`), which inherit
from nothing; the two other Protocols say what they may read. The tracker for MLflow is `adapterbank.tracking.Tracker`.

An error in a tracker is a warning that names the call, and the training goes on.

    with tracker.sequence("my tasks") as sequence:
        train_sequence(bank, stages, tracker=sequence)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from adapterbank.bank import AdapterBank
from adapterbank.evaluation import Evaluation


class TrainingHistory(Protocol):
    """What a tracker may read of a finished training. `adapterbank.History` has all of it.

    Attributes:
        options: of the training, by the names of the keywords of `fit`.
        precision: in which it computed: "fp32", "bf16" or "fp16".
        epochs: one record per epoch: "train/loss", "lr", and with validation data "val/<metric>".
        best_epoch: whose weights were kept, counted from 0.
        steps: optimiser steps that were made.
        seconds: of wall clock. cpu_seconds: of processor time, of all threads together.
        gpu_seconds: by CUDA events; 0.0 without a GPU.
        peak_memory_mb: the highest memory in use, in MiB.
    """

    @property
    def options(self) -> Mapping[str, Any]: ...
    @property
    def precision(self) -> str: ...
    @property
    def epochs(self) -> Sequence[Mapping[str, float]]: ...
    @property
    def best_epoch(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def cpu_seconds(self) -> float: ...
    @property
    def gpu_seconds(self) -> float: ...
    @property
    def peak_memory_mb(self) -> float: ...


class SequenceOutcome(Protocol):
    """What a tracker may read of a finished sequence. `adapterbank.sequence.SequenceResult` has all of it.

    Attributes:
        strategy: "bank" or "naive".
        tasks: in the order of their training.
        matrix: R[i][j], the score on task j after training task i; None above the diagonal, where nothing was measured.
    """

    @property
    def strategy(self) -> str: ...
    @property
    def tasks(self) -> Sequence[str]: ...
    @property
    def matrix(self) -> Sequence[Sequence[float | None]]: ...

    def numbers(self) -> Mapping[str, float | None]:
        """The numbers of continual learning by name; None where a single task leaves nothing to compare."""

    def to_json(self) -> dict[str, Any]:
        """Tasks, matrix, numbers and the definitions of the numbers."""


class TaskRun(Protocol):
    """The run of one task, from the start of its training until it is tested."""

    def log_epoch(self, epoch: int, record: Mapping[str, float], /) -> None:
        """Called after each epoch, counted from 0, with its record of `History.epochs`."""

    def log_training(self, history: TrainingHistory, /) -> None:
        """Called once, when the training is over."""

    def log_test(self, evaluation: Evaluation, step: int = 0) -> None:
        """Called with the task's test metrics, logits and targets; `step` is its place in the sequence, from 0."""

    def log_adapter(self) -> None:
        """Called when the task is final, so that its tensors may be stored."""


@runtime_checkable
class LogsData(TaskRun, Protocol):
    """What a task's run has beside `TaskRun` if it can be told of its data after it was opened. It is optional."""

    def log_data(self, facts: Mapping[str, Any], /) -> None:
        """Called with more of what `adapterbank.data.digest.data_facts` says of the data."""


class SequenceRun(Protocol):
    """The run of a whole sequence, in which the runs of its tasks are nested."""

    def task(
        self,
        bank: AdapterBank,
        task: str,
        *,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> AbstractContextManager[TaskRun]:
        """The run of one task. It ends with the block, and has failed if the block raises.

        Args:
            params, tags: what the caller knows beside the task itself, such as numbers of clips and the strategy.
        """

    def log_scores(self, evaluations: Mapping[str, Evaluation], bank: AdapterBank, step: int) -> None:
        """Called after the training of task number `step` (from 0), with the test metrics of all tasks so far."""

    def log_result(self, result: SequenceOutcome, /) -> None:
        """Called once, when all tasks are trained and tested."""


class Tracker(Protocol):
    """Where runs are kept: a server, a database, a folder."""

    def sequence(
        self, name: str, *, params: Mapping[str, Any] | None = None, tags: Mapping[str, Any] | None = None
    ) -> AbstractContextManager[SequenceRun]:
        """A new run for a sequence of tasks. It ends with the block, and has failed if the block raises."""
