"""Training of one task. Only the task's own tensors are ever given to the optimiser."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import Task as Row
from rich.text import Text

from adapterbank.bank import AdapterBank
from adapterbank.errors import UnknownNameError
from adapterbank.guesses import hint_of
from adapterbank.task.task import Task
from adapterbank.training.callbacks import Callback, EpochHook, OnEpoch, listed
from adapterbank.training.feed import as_dataset
from adapterbank.training.history import History
from adapterbank.training.meter import Meter
from adapterbank.training.options import Options
from adapterbank.training.trainer import Trainer, copy_state, first_words, leave_training


def fit(
    bank: AdapterBank,
    task: str,
    train: Any,
    val: Any = None,
    *,
    progress: bool = True,
    on_epoch: EpochHook | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> History:
    """Trains one task of a bank; no tensor of the base or of another task changes.

    Args:
        train, val: datasets or iterables of (waveform at 16 kHz, label); labels are names or indices, or sets of them
            for multi-label tasks. The best epoch is chosen on `val`, by accuracy or mAP; without it the last one stays.
        progress: show a progress bar.
        on_epoch: called with (epoch, metrics) after each epoch, after the callbacks.
        callbacks: told of start, steps, epochs, end and errors, in their order. They may change the loss and stop the
            training: `adapterbank.training.callbacks` says how, and has `EarlyStopping`.
        **options: the fields of `Options`.

    Returns:
        What the training did, epoch by epoch, and what it cost.

    Raises:
        UnknownNameError: unknown task or option. LabelsError: a label that the task does not have.
        ConfigError: options that cannot work, such as a cache that is too small, or an object in `callbacks` that lacks
            a method of a callback.
        TrainingDivergedError: NaN or Inf. After any error, that of a callback included, the task is as it was before.
    """
    chosen = options_of_fit(options)
    owner = bank.task(task)
    hooks = [*listed(callbacks), *([] if on_epoch is None else [OnEpoch(on_epoch)])]
    data = as_dataset(train, owner)
    running: list[Trainer] = []
    with undone_on_error([owner], running):
        with Meter(bank.backbone.device) as meter, progress_bar(progress) as bar:
            running.append(trainer := Trainer(bank.backbone, owner, data, chosen, val, callbacks=hooks))
            for batch in trainer.epochs.batches(bar):
                trainer.optimizer_step.take(batch)
        trainer.finish(meter)
    return trainer.history


class TaskState:
    """A task's tensors, metrics and calibration at this moment."""

    def __init__(self, task: Task):
        self.task, self.tensors = task, copy_state(task)
        self.metrics, self.calibration = task.metrics, task.calibration
        self.trained_clip_seconds = task.trained_clip_seconds

    def restore(self) -> None:
        """Gives them back to the task."""
        self.task.load_state_dict(self.tensors)
        self.task.metrics, self.task.calibration = self.metrics, self.calibration
        self.task.trained_clip_seconds = self.trained_clip_seconds


@contextmanager
def undone_on_error(tasks: Sequence[Task], running: Sequence[Trainer]) -> Iterator[dict[str, TaskState]]:
    """Context for training: an error inside tells the callbacks of all `running` trainings and restores each task.

    Whether or not there is an error, the tasks are in eval mode after the block and hold no gradient. Inside they are
    uncalibrated, and stay so: a temperature of the old weights says nothing of the new ones.

    Args:
        running: the trainings so far, added to inside the block.

    Yields:
        The states of before, by the tasks' names.
    """
    states = {task.name: TaskState(task) for task in tasks}
    for task in tasks:
        task.calibration = None
    try:
        yield states
    except BaseException as error:
        try:
            for trainer in running:
                trainer.fail(error)
        finally:  # a second Ctrl-C in a callback must not cost a task its weights
            for state in states.values():
                state.restore()
        raise
    finally:
        for state in states.values():
            leave_training(state.task)


def options_of_fit(given: Mapping[str, Any]) -> Options:
    """Raises UnknownNameError for what is no option, ConfigError for a value that cannot work."""
    known = Options.__dataclass_fields__
    unknown = sorted(given.keys() - known.keys())
    if unknown:
        raise UnknownNameError("option of fit", unknown[0], known, hint_of(unknown[0]))
    return Options(**given)


class Remaining(TimeRemainingColumn):
    """The time that remains: by the training's own estimate, in which validations count, where there is one."""

    def render(self, task: Row) -> Text:
        """The field `ends` of a row says when it ends, as `time.perf_counter` counts."""
        ends = task.fields.get("ends")
        if ends is None or task.finished:
            return super().render(task)
        minutes, seconds = divmod(max(0, round(ends - time.perf_counter())), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{hours}:{minutes:02d}:{seconds:02d}", style="progress.remaining")


@contextmanager
def progress_bar(show: bool) -> Iterator[Progress]:
    """Shows a line per training with its steps, the time that remains and a note on its latest epoch.

    After an error inside, the display ends with the error's first words beside each line that is not complete.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    # A message may hold brackets, which are no markup.
    note = TextColumn("{task.fields[note]}", markup=False)
    with Progress(*columns, note, disable=not show) as bar:
        try:
            yield bar
        except BaseException as error:
            for row in bar.tasks:
                if not row.finished:
                    bar.update(row.id, note=first_words(error))
            raise
