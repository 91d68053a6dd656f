"""A tracker that is told of trainings. What fails in a tracker is a warning: a lost log must not cost a training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError
from adapterbank.evaluation import Evaluation
from adapterbank.tracking.base import SequenceRun, TaskRun
from adapterbank.training.callbacks import BaseCallback, State
from adapterbank.training.history import History


def check_tracker(tracker: object, *calls: str) -> None:
    """Raises ConfigError unless the tracker is None or has the methods that will be called."""
    missing = [call for call in calls if not callable(getattr(tracker, call, None))]
    if tracker is not None and missing:
        raise ConfigError(
            f"got tracker={tracker!r}, which has no {', '.join(missing)}; expected the run of a sequence, as "
            "adapterbank.tracking.base.SequenceRun describes it. Open one with "
            "`with tracker.sequence(name) as parent:` and pass tracker=parent."
        )


@contextmanager
def failure_is_a_warning(call: str) -> Iterator[None]:
    """An error inside becomes a RuntimeWarning that names the tracker's call; an interrupt passes through."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"the tracker failed in {call}: {error!r}. The training goes on.", RuntimeWarning, stacklevel=3)


class TrackedTask:
    """The run of one task in a tracker, or nothing if there is no tracker.

    As a context manager it opens the run and closes it at the end; an error inside marks the run as failed.

    Args:
        tracker: checked by `check_tracker`, or None.
        params, tags: as `SequenceRun.task` takes them.
    """

    def __init__(
        self,
        tracker: SequenceRun | None,
        bank: AdapterBank,
        task: str,
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
    ):
        self._tracker, self._bank, self._task = tracker, bank, task
        self._params, self._tags = params, tags
        self._closing = ExitStack()
        self._run: TaskRun | None = None

    def __enter__(self) -> TrackedTask:
        if self._tracker is not None:
            with failure_is_a_warning("task"):
                run = self._tracker.task(self._bank, self._task, params=self._params, tags=self._tags)
                self._run = self._closing.enter_context(run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Closes the run; again is nothing. Gives nothing back, so that no tracker can hide an error."""
        with failure_is_a_warning("the end of the run"):
            self._closing.__exit__(kind, error, where)

    def log_epoch(self, epoch: int, record: Mapping[str, float]) -> None:
        if self._run is not None:
            with failure_is_a_warning("log_epoch"):
                self._run.log_epoch(epoch, record)

    def log_training(self, history: History) -> None:
        if self._run is not None:
            with failure_is_a_warning("log_training"):
                self._run.log_training(history)

    def log_test(self, evaluation: Evaluation, step: int) -> None:
        if self._run is not None:
            with failure_is_a_warning("log_test"):
                self._run.log_test(evaluation, step)

    def log_adapter(self) -> None:
        if self._run is not None:
            with failure_is_a_warning("log_adapter"):
                self._run.log_adapter()


class TrackedTraining(BaseCallback):
    """Tells a tracker of one training of `fit_many`: its run is opened at the start and closed at the end."""

    def __init__(self, tracker: SequenceRun, bank: AdapterBank):
        self._tracker, self._bank = tracker, bank
        self._run: TrackedTask | None = None

    def on_start(self, state: State) -> None:
        sizes = {"train_clips": state.train_clips, "val_clips": state.val_clips}
        tags = {"strategy": "fit_many"}
        self._run = TrackedTask(self._tracker, self._bank, state.task.name, params=sizes, tags=tags).__enter__()

    def on_epoch(self, state: State) -> None:
        if self._run is not None:
            self._run.log_epoch(state.epoch, state.record)

    def on_end(self, state: State) -> None:
        if self._run is not None:
            self._run.log_training(state.history)
            self._run.__exit__(None, None, None)

    def on_exception(self, state: State, error: BaseException) -> None:
        if self._run is not None:
            self._run.__exit__(type(error), error, error.__traceback__)
