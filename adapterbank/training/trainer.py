"""One training of one task, put together of three parts.

    data            batches in their drawn order, validation clips, caches                  `TrainingData` in feed.py
    optimizer_step  forward and backward pass, loss, clipping, optimiser, learning rate     `OptimizerStep` in step.py
    epochs          the order of the steps, validation, the best epoch, the history         `Epochs` here

The loop of a training is two lines of `fit`:

    for batch in trainer.epochs.batches(bar):
        trainer.optimizer_step.take(batch)

`fit_many` runs several trainers together, step by step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from rich.progress import Progress, TaskID
from torch import Tensor

from adapterbank.audio.mel import SAMPLE_RATE, frame_count
from adapterbank.backbone.backbone import Backbone
from adapterbank.evaluation import evaluate_task, score
from adapterbank.task.task import Task
from adapterbank.training.averaging import WeightAverage, remake_batch_norms
from adapterbank.training.cache import KeptClips, Stores
from adapterbank.training.callbacks import Callback, Callbacks, State
from adapterbank.training.capacity import clips_that_fit
from adapterbank.training.defaults import resolved
from adapterbank.training.estimate import FEWEST, Estimate
from adapterbank.training.feed import Batch, Feed, TrainingData
from adapterbank.training.history import History
from adapterbank.training.meter import Meter
from adapterbank.training.options import Options
from adapterbank.training.probe import Probe, random_states_kept
from adapterbank.training.sample import Sample
from adapterbank.training.setting import Setting
from adapterbank.training.start import start_head
from adapterbank.training.step import OptimizerStep, optimizer_of


class Trainer:
    """One training of one task.

    Args:
        train: map-style, of (waveform (T,) at 16 kHz, label). val: the same, any iterable, or None.
        callbacks: are told of each step and epoch, and may change them; see `adapterbank.training.callbacks`.
        stores: what caches keep, where several trainings of one process share it.

    Attributes:
        setting: what all parts share. data, optimizer_step, epochs: the parts.
        state: what callbacks see. history: what `fit` returns.

    Raises:
        LabelsError: a label that the task does not have. ConfigError: a cache or a callback that cannot work.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        train: Any,
        options: Options,
        val: Any = None,
        *,
        callbacks: Sequence[Callback] = (),
        stores: Stores | None = None,
    ):
        begun = time.perf_counter()
        self.task, self.callbacks = task, Callbacks(callbacks)
        sample = Sample(train)
        options = resolved(options, task, len(train), _room(backbone, task, sample, options))
        self.setting = Setting.of(backbone, task, options)
        self.data = TrainingData(self.setting, train, val, stores)
        self.history = History(task.name, options.record(), self.setting.precision)
        self.state = State(self.setting, self.data, optimizer_of(self.setting), self.history)
        self.optimizer_step = OptimizerStep(self.setting, self.data, self.state, self.callbacks)
        self.epochs = Epochs(self.setting, self.data, self.optimizer_step, self.callbacks, sample, begun)

    def finish(self, meter: Meter, share: float = 1.0) -> None:
        """Writes down what the training cost, `share` of what was measured, and tells the callbacks of its end."""
        self.history.seconds, self.history.cpu_seconds = share * meter.seconds, share * meter.cpu_seconds
        self.history.gpu_seconds = share * meter.gpu_seconds
        self.history.peak_memory_mb = meter.peak_memory_mb
        if not self.history.error:
            leave_training(self.task)
            self.task.trained_clip_seconds = self.data.median_seconds()
            self.callbacks.on_end(self.state)

    def fail(self, error: BaseException) -> None:
        """Tells the callbacks of an error, unless they know that this training failed."""
        if not self.history.error:
            self.callbacks.on_exception(self.state, error)


def _room(backbone: Backbone, task: Task, sample: Sample, options: Options) -> int | None:
    """Clips whose activations fit into memory, if all are as long as the longest; None if nothing is to choose."""
    if options.batch_size is not None or task.uses_frozen_features():
        return None
    with random_states_kept(backbone.device):  # a data set may draw from them when it is read
        samples = sample.longest() if options.crop_seconds is None else round(options.crop_seconds * SAMPLE_RATE)
    frames = task.used_frames(frame_count(samples), task.spec.clip_seconds)
    return clips_that_fit(backbone.geometry, frames, backbone.device)


class Epochs:
    """The epochs part of a training: the order of the steps, validation, and which weights are kept."""

    def __init__(
        self,
        setting: Setting,
        data: TrainingData,
        optimizer_step: OptimizerStep,
        callbacks: Callbacks,
        sample: Sample,
        begun: float,
    ):
        self._sample, self._begun = sample, begun
        self._estimated: Estimate | None = None
        self.setting, self.data, self.callbacks = setting, data, callbacks
        self.optimizer_step, self.state = optimizer_step, optimizer_step.state
        self.task, self.history = setting.task, self.state.history
        self._best, self._best_step = -math.inf, 0
        self._best_state: dict[str, Tensor] | None = None
        self._shown: Callable[[str], None] = lambda note: None
        options = setting.options
        self._average = WeightAverage(self.task, options.average, options.ema_decay, options.average_epochs)

    def batches(self, bar: Progress) -> Generator[Batch]:
        """The batches of all epochs; whoever takes one makes its step before asking for the next.

        Steps are left to the caller, because `fit_many` makes those of several tasks together. Between epochs the task
        is validated, the history written and the best epoch remembered, whose tensors the task has at the end.
        """
        self.callbacks.on_start(self.state)
        self._estimate(bar)
        self._sample.forget()
        self.data.fill(bar)
        start_head(self.data)
        row = bar.add_task(f"{self.task.name} ({self.task.method})", total=self.state.total_steps, note="")
        self._shown = lambda note: bar.update(row, note=note)
        for epoch in range(self.setting.options.epochs):
            yield from self._steps(epoch, bar, row)
            start = time.perf_counter()
            with self._average.in_place(self._remake_batch_norms):
                self._close()
            if self._estimated is not None:
                self._estimated.after_validation(time.perf_counter() - start)
            bar.update(row, note=_note(self.state.record, self.task.primary_metric))
            self.callbacks.on_epoch(self.state)
            if self._is_stale() and not self._is_over():
                waited = f"ended early: nothing better in {self.history.steps - self._best_step} steps"
                bar.update(row, total=self.history.steps, note=waited)
            if self._is_over() or self._is_stale():
                break
        self._take_best()

    def _estimate(self, bar: Progress) -> None:
        """Says how long the training will take and how much memory it needs, before anything is computed for it."""
        steps = self.state.total_steps
        if steps < FEWEST:
            return
        epochs = math.ceil(steps / len(self.data.feed))
        was_training = self.task.training
        try:
            with random_states_kept(self.setting.device):
                costs = Probe(self.setting, self.data, self._sample).costs()
        except Exception:  # of any kind: the training meets it too, and says then what is wrong
            return
        finally:
            self.task.train(was_training)
        options = self.setting.options
        clips = min(options.clips_per_step, len(self._sample))
        found = Estimate(costs, self._begun, steps, epochs, clips, options.batch_size)
        self._estimated = found
        self.history.estimate = {"seconds": found.seconds, "memory_mb": found.memory_mb}
        if not bar.disable:
            bar.console.print(f"{self.task.name} ({self.task.method}): {found}", markup=False)

    def _steps(self, epoch: int, bar: Progress, row: TaskID) -> Generator[Batch]:
        """The batches of one epoch."""
        self.task.train()
        self.state.epoch, self.state.losses = epoch, []
        for place in range(len(self.data.feed)):
            start = time.perf_counter()
            yield self.data.feed.batch(epoch, place)
            self._average.after_step()
            self.history.steps += 1
            bar.update(row, advance=1, ends=self._ends(time.perf_counter() - start))
            if self._is_over():
                return

    def _ends(self, step: float) -> float | None:
        """When the training will end, after a step that took so many seconds; None if it has no estimate."""
        if self._estimated is None:
            return None
        self._estimated.after_step(step)
        return time.perf_counter() + self._estimated.left()

    def note(self, error: BaseException) -> None:
        """Shows an error beside the progress of this training, which ends with it."""
        self._shown(first_words(error))

    def _is_over(self) -> bool:
        return self.history.steps >= self.state.total_steps or self.state.stop

    def _is_stale(self) -> bool:
        """Whether validation found nothing better for as many steps as the training waits."""
        patience = self.setting.options.patience
        return self.data.val is not None and 0 < patience <= self.history.steps - self._best_step

    def _close(self) -> None:
        """Writes the record of an epoch, and copies the task's tensors if it is the best so far."""
        losses = self.state.losses
        record = {"train/loss": sum(losses) / len(losses), "lr": self.optimizer_step.lr()}
        record.update({f"val/{name}": value for name, value in self._validate().items()})
        self.history.epochs.append(record)
        score_now = record.get(f"val/{self.task.primary_metric}", math.nan)
        goal = -math.inf if math.isnan(score_now) else score_now  # mAP without a positive is NaN
        # Of equal epochs the later one: it was trained longer, and on few clips most epochs are equal.
        if self.data.val is None or goal >= self._best or self._best_state is None:
            self._best_step = self.history.steps if goal > self._best else self._best_step
            self._best, self.history.best_epoch = goal, self.state.epoch
            is_last = self.data.val is None and self._average.kind is None  # the task has those weights anyway
            self._best_state = None if is_last else copy_state(self.task)

    def _remake_batch_norms(self) -> None:
        """Statistics of BatchNorm for the weights of this moment, on the training clips as the first epoch has them."""

        def run() -> None:
            data, setting = self.data, self.setting
            feed = Feed(setting.backbone, self.task, data.train, setting.options, setting.masks)
            with setting.autocast, setting.seeded_dropout("batchnorm", str(self.state.epoch)):
                for place in range(len(feed)):
                    for part in feed.batch(0, place).parts(setting.batch_size):
                        data.logits(part.rows)

        remake_batch_norms(self.task, run)

    def _validate(self) -> dict[str, float]:
        """Metrics on the validation data, if there is any."""
        val, size = self.data.val, self.setting.batch_size
        if val is None:
            return {}
        if not isinstance(val, KeptClips):
            with self.setting.autocast:
                return evaluate_task(self.setting.backbone, self.task, val, batch_size=size, each_epoch=True).metrics
        self.task.eval()
        rows = val.tensors
        with torch.no_grad(), self.setting.autocast:
            logits = [self.data.logits(rows[at : at + size]).float().cpu() for at in range(0, len(rows), size)]
        return score(self.task, torch.cat(logits), self.task.targets(val.labels), each_epoch=True)

    def _take_best(self) -> None:
        """Gives the task the tensors and metrics of its best epoch."""
        if self._best_state is not None:
            self.task.load_state_dict(self._best_state)
        # Without validation nothing is known of the new weights: what was measured on the old ones must not stay.
        found = self.history.epochs[self.history.best_epoch] if self.data.val is not None else {}
        self.task.metrics = {k.removeprefix("val/"): v for k, v in found.items() if k.startswith("val/")}


def leave_training(task: Task) -> None:
    """Back to eval mode, without gradients: else every trained task would keep its own in memory."""
    task.eval()
    task.zero_grad(set_to_none=True)


def copy_state(task: Task) -> dict[str, Tensor]:
    """A copy of all tensors of a task, by their names."""
    return {name: tensor.detach().clone() for name, tensor in task.state_dict().items()}


def first_words(error: BaseException, most: int = 60) -> str:
    """The kind of an error and the beginning of its message, in one line."""
    words = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return words if len(words) <= most else f"{words[: most - 1].rstrip()}…"


def _note(record: dict[str, float], metric: str) -> str:
    """What the progress bar shows of an epoch."""
    shown = (name for name in ("train/loss", f"val/{metric}") if name in record)
    return "  ".join(f"{name} {record[name]:.3f}" for name in shown)
