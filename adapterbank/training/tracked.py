"""A tracker that is told of trainings. What fails in a tracker is a warning: a lost log must not cost a training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from adapterbank.bank import AdapterBank
from adapterbank.data.digest import data_facts
from adapterbank.errors import ConfigError
from adapterbank.evaluation import Evaluation, evaluate_task
from adapterbank.tracking.base import LogsData, SequenceRun, TaskRun
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


class TrackedTask(BaseCallback):
    """The run of one task in a tracker, or nothing if there is no tracker.

    As a context manager it opens the run and closes it at the end; an error inside marks the run as failed. As a
    callback of `fit` it tells the run of the data, the epochs and what the training cost:

        with TrackedTask(tracker, bank, "birds") as run:
            fit(bank, "birds", train, val, callbacks=[run])
            run.log_test(test)

    Args:
        tracker: checked by `check_tracker`, or None.
        params, tags: as `SequenceRun.task` takes them.
        data: what it is trained and tested on: {"train": ..., "val": ..., "test": ...}, or parts of that. Parts that
            are not given are learned from the training and from `log_test`.

    Raises:
        UnknownNameError: the bank has no such task.
    """

    def __init__(
        self,
        tracker: SequenceRun | None,
        bank: AdapterBank,
        task: str,
        *,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
    ):
        self._tracker, self._bank, self._owner = tracker, bank, bank.task(task)
        self._params, self._tags, self._data = params or {}, tags or {}, dict(data or {})
        self._closing = ExitStack()
        self._run: TaskRun | None = None
        self._new_weights = False  # a training as a callback ended, and its adapter is not stored yet

    def __enter__(self) -> TrackedTask:
        if self._tracker is not None:
            with failure_is_a_warning("task"):
                known = data_facts(**self._data) if self._data else {}
                params = {**known, **self._params}
                run = self._tracker.task(self._bank, self._owner.name, params=params, tags=self._tags)
                self._run = self._closing.enter_context(run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Closes the run; again is nothing. Gives nothing back, so that no tracker can hide an error."""
        if self._new_weights and error is None:
            self.log_adapter()
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

    def log_test(self, test: Any, step: int = 0, *, batch_size: int = 32) -> Evaluation:
        """Logs how good the task is on test data.

        Args:
            test: data of (waveform at 16 kHz, label), on which the task is evaluated now; or what `evaluate_task` gave.
            step: the task's place in a sequence, from 0.

        Returns:
            The evaluation.

        Raises:
            LabelsError, DatasetError, WaveformError: data that the task cannot use.
        """
        if isinstance(test, Evaluation):
            evaluation = test
        else:
            self._learn(test=test)
            evaluation = evaluate_task(self._bank.backbone, self._owner, test, batch_size=batch_size)
            self._owner.record(evaluation.metrics)
        if self._run is not None:
            with failure_is_a_warning("log_test"):
                self._run.log_test(evaluation, step)
        return evaluation

    def log_adapter(self) -> None:
        self._new_weights = False
        if self._run is not None:
            with failure_is_a_warning("log_adapter"):
                self._run.log_adapter()

    def on_start(self, state: State) -> None:
        if state.task is not self._owner:
            raise ConfigError(
                f"got the run of {self._owner.name!r} as a callback of a training of {state.task.name!r}. Open a run "
                "for that task; for several tasks at once pass the run of a sequence as fit_many(..., tracker=)."
            )
        self._learn(train=state.train, val=state.val)

    def on_epoch(self, state: State) -> None:
        self.log_epoch(state.epoch, state.record)

    def on_end(self, state: State) -> None:
        self.log_training(state.history)
        self._new_weights = True

    def _learn(self, **parts: Any) -> None:
        """Tells the run of parts of the data that nobody has told it of, if it is one that can hear it later."""
        known = {*self._data, *(key.removesuffix("_clips") for key in self._params)}
        new = {part: data for part, data in parts.items() if part not in known}
        self._data.update(new)
        if new and isinstance(self._run, LogsData):
            with failure_is_a_warning("log_data"):
                self._run.log_data(data_facts(**new))


class TrackedTraining(BaseCallback):
    """Tells a tracker of one training of `fit_many`: its run is opened at the start and closed at the end."""

    def __init__(self, tracker: SequenceRun, bank: AdapterBank):
        self._tracker, self._bank = tracker, bank
        self._run: TrackedTask | None = None

    def on_start(self, state: State) -> None:
        data, tags = {"train": state.train, "val": state.val}, {"strategy": "fit_many"}
        self._run = TrackedTask(self._tracker, self._bank, state.task.name, tags=tags, data=data).__enter__()

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
