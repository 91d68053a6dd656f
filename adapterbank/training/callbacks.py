"""Ways into a training without editing it: early stopping, checkpoints, trackers, losses of your own, replay.

A callback is an object with five methods. `fit(..., callbacks=[...])` calls them in this order:

    on_start      once, before the cache is filled and the first batch is drawn
    on_step       in each step, when its loss is known, before the backward pass
    on_epoch      after each epoch, when it was validated and its record stands in the history
    on_end        once, when the best weights are back and the history says what the training cost
    on_exception  in place of `on_end`, after any error or interrupt, before the task gets its old weights back

Several callbacks are called in the order in which they were given. Each gets the `State` of the training, which says
what may be read and the three things that may be changed. A loss of your own, and replay of earlier clips:

    class Focal(BaseCallback):
        def on_start(self, state):
            state.loss_function = focal_loss  # (logits (B, C), targets (B,)) -> a scalar

    class Replay(BaseCallback):
        def on_step(self, state):
            waveforms, targets = self.memory.draw()
            state.loss = state.loss + F.cross_entropy(state.forward(waveforms), targets)

The task's tensors after each epoch, in files that are always whole, and a limit on the time:

    class Checkpoints(BaseCallback):
        def __init__(self, folder):
            self.folder = Path(folder)

        def on_epoch(self, state):
            content = safetensors.torch.save(state.task.state_dict())
            file = self.folder / f"{state.task.name}-{state.epoch}.safetensors"
            adapterbank.files.write_atomically(file, content)  # back: task.load_state_dict(load_file(file))

    class TimeLimit(BaseCallback):
        def __init__(self, seconds):
            self.seconds = seconds

        def on_start(self, state):
            self.end = time.monotonic() + self.seconds

        def on_step(self, state):
            if time.monotonic() > self.end:
                state.stop = True  # this step is the last
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from adapterbank.errors import ConfigError
from adapterbank.evaluation import METRICS, current_name
from adapterbank.routing.run import mels_of, run_rows
from adapterbank.training.balance import class_weights, labels_of
from adapterbank.training.feed import Batch, TrainingData
from adapterbank.training.history import History
from adapterbank.training.losses import LossFunction, loss_of
from adapterbank.training.setting import Setting

EpochHook = Callable[[int, dict[str, float]], None]


class State:
    """How far a training is, for its callbacks.

    Three attributes may be changed; everything else is there to be read.

    Attributes that may be changed:
        loss_function: (logits (B, C) in fp32, targets) -> a scalar, from which gradients start. Targets are class
            indices (B,), or zeros and ones (B, C) for a multi-label task; with mixup they are shares (B, C) of all
            classes. At first it is what the options `loss`, `class_weights` and `label_smoothing` say. "val/loss" is
            always plain cross-entropy, or binary cross-entropy for a multi-label task.
        loss: in `on_step`, the scalar that the backward pass starts from; replace it to add terms. "train/loss" is the
            mean of what it is after the callbacks. Do not call `backward()` yourself: the precision fp16 scales the
            loss, and gradients of earlier steps are cleared. With `accumulate`, `on_step` is called for each part of
            the step's batch, and the loss is the mean over that part.
        stop: True ends the training. Set in `on_step`: this step is the last. Set in `on_epoch`: no further epoch. A
            shortened epoch is validated like any other, and the best epoch is chosen as always. At least one step is
            made.

    Attributes:
        task: the task that is trained. In `on_step` it is in training mode.
        backbone: the frozen AST, in the precision of this training.
        options: of this training, with their defaults.
        optimizer: over the task's parameters, AdamW unless the options say otherwise.
        history: the record so far; `history.epochs[-1]` is that of the latest epoch.
        total_steps: the steps that the training will make if nothing stops it.
        train, val: the datasets, as they were given to `fit`; `val` may be None.
        train_clips, val_clips: how many clips there are; 0 without validation data.
        epoch: the number of the epoch, from 0.
        batch: of this step, or with `accumulate` this part of it. Its rows may be shared with other tasks: do not write
            to them.
        logits, targets: of this step, (B, C) and (B,) or (B, C). After the step `logits` and `loss` have no gradient.
        losses: of the steps of this epoch so far.
    """

    def __init__(self, setting: Setting, data: TrainingData, optimizer: torch.optim.Optimizer, history: History):
        self._setting = setting
        self.task, self.backbone, self.options = setting.task, setting.backbone, setting.options
        self.optimizer, self.history = optimizer, history
        every: int = self.options.epochs * len(data.feed)
        self.total_steps = every if self.options.steps is None else min(every, self.options.steps)
        self.train, self.val = data.given
        self.train_clips, self.val_clips = len(data.train), 0 if data.val is None else len(data.val)
        self.loss_function: LossFunction = _loss_of(setting, data)
        self.stop = False
        self.epoch = 0
        self.batch = Batch([], [])
        self.logits = self.targets = self.loss = torch.empty(0)
        self.losses: list[float] = []
        self._forwards = 0  # of this step

    @property
    def step(self) -> int:
        """Steps made so far; in `on_step` this is the number of the step at hand, from 0."""
        return self.history.steps

    @property
    def record(self) -> dict[str, float]:
        """In `on_epoch`: "train/loss", "lr" and "val/<metric>" of the epoch that is over."""
        return self.history.epochs[-1]

    def forward(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Logits of more clips, for a term of the loss: (T,) at 16 kHz each -> (B, C) in fp32, with gradients.

        The clips are used whole, without masks, in the precision of the training. Dropout draws from (seed, task,
        step, how many calls this step has seen).

        Raises:
            WaveformError: not a batch of finite, non-empty waveforms.
        """
        with torch.no_grad():
            mels = mels_of(self.backbone, waveforms)
        self._forwards += 1
        with self._setting.training_pass(str(self.step), str(self._forwards)):
            return torch.stack(run_rows(self.backbone, [self.task] * len(mels), mels)).float()

    def begin_step(self, batch: Batch, logits: Tensor, targets: Tensor, first: bool = True) -> None:
        """For the trainer: a forward pass was made. Computes the loss with the current loss function.

        Args:
            first: of the passes of this step.
        """
        self.batch, self.logits, self.targets = batch, logits.float(), targets
        self.loss = self.loss_function(self.logits, self.targets)
        self._forwards = 0 if first else self._forwards

    def end_step(self) -> None:
        """For the trainer: the backward pass is over, and its graph can go."""
        self.logits, self.loss = self.logits.detach(), self.loss.detach()


def _loss_of(setting: Setting, data: TrainingData) -> LossFunction:
    task, options = setting.task, setting.options
    labels = labels_of(data.train) if options.class_weights == "balanced" else ()
    weights = class_weights(task, options.class_weights, labels)
    weights = None if weights is None else weights.to(setting.device)
    return loss_of(task, options.loss, weights, options.label_smoothing)


@runtime_checkable
class Callback(Protocol):
    """What may enter a training. Inherit from `BaseCallback` to write only the methods that you need."""

    def on_start(self, state: State, /) -> None:
        """The training begins."""

    def on_step(self, state: State, /) -> None:
        """A step has its loss; the backward pass and the optimiser come next."""

    def on_epoch(self, state: State, /) -> None:
        """An epoch is over."""

    def on_end(self, state: State, /) -> None:
        """The training is over: the task is in eval mode, with the weights of its best epoch."""

    def on_exception(self, state: State, error: BaseException, /) -> None:
        """The training failed or was interrupted; the task gets its old weights back next.

        It is called for each callback whose `on_start` was called, even if `on_end` was called too, because what fails
        after that undoes the training as well. The error goes on after it.
        """


class BaseCallback:
    """A callback that does nothing."""

    def on_start(self, state: State) -> None:
        """Nothing."""

    def on_step(self, state: State) -> None:
        """Nothing."""

    def on_epoch(self, state: State) -> None:
        """Nothing."""

    def on_end(self, state: State) -> None:
        """Nothing."""

    def on_exception(self, state: State, error: BaseException) -> None:
        """Nothing."""


def listed(callbacks: object) -> Sequence[Callback]:
    """`callbacks` itself. Raises ConfigError if it is no list, such as one callback alone."""
    if not isinstance(callbacks, Sequence):
        raise ConfigError(f"got callbacks={callbacks!r}, expected a list of callbacks: callbacks=[...].")
    return callbacks


class Callbacks:
    """Several callbacks, called as one.

    Raises:
        ConfigError: an object that lacks one of the five methods.
    """

    def __init__(self, callbacks: Sequence[Callback]):
        for each in listed(callbacks):
            if not isinstance(each, Callback) or isinstance(each, type):
                raise ConfigError(
                    f"got the callback {each!r}, expected an object with on_start, on_step, on_epoch, on_end and "
                    "on_exception. Inherit from adapterbank.training.callbacks.BaseCallback to have all of them."
                )
        self._all = tuple(callbacks)
        self._started: list[Callback] = []

    def on_start(self, state: State) -> None:
        for each in self._all:
            self._started.append(each)
            each.on_start(state)

    def on_step(self, state: State) -> None:
        for each in self._all:
            each.on_step(state)

    def on_epoch(self, state: State) -> None:
        for each in self._all:
            each.on_epoch(state)

    def on_end(self, state: State) -> None:
        for each in self._all:
            each.on_end(state)

    def on_exception(self, state: State, error: BaseException) -> None:
        """Tells all that were started. One that fails at that is a warning: the first error is the one to be seen."""
        for each in self._started:
            try:
                each.on_exception(state, error)
            except Exception as second:
                warnings.warn(f"{each!r} failed in on_exception: {second!r}", RuntimeWarning, stacklevel=2)


class OnEpoch(BaseCallback):
    """Calls a function with (epoch, record) after each epoch: what `on_epoch=` of `fit` stands for."""

    def __init__(self, hook: EpochHook):
        self._hook = hook

    def on_epoch(self, state: State) -> None:
        self._hook(state.epoch, state.record)


class EarlyStopping(BaseCallback):
    """Ends a training after some epochs in a row that were no better than the best one before them.

    The weights of the best epoch by validation are kept, as always.

    Args:
        patience: how many such epochs, at least 1.
        metric: what is watched: a key of an epoch's record, such as "val/balanced_accuracy" or "train/loss". Whether
            more is better is said by the table of metrics, `evaluation.METRICS`. None: the accuracy, or for a
            multi-label task the mAP, on the validation data.

    Raises:
        ConfigError: no such patience; or, after the first epoch, its record has no such key, or the table of metrics
            does not say whether more of it is better, as for "lr".
    """

    def __init__(self, patience: int, metric: str | None = None):
        if type(patience) is not int or patience < 1:
            raise ConfigError(f"got patience={patience!r}, expected a positive integer of epochs.")
        self.patience, self.metric = patience, None if metric is None else current_name(metric)
        # By task: in `fit_many` one object may watch several trainings.
        self._best: dict[str, float] = {}
        self._waited: dict[str, int] = {}

    def on_start(self, state: State) -> None:
        self._best[state.task.name], self._waited[state.task.name] = -math.inf, 0

    def on_epoch(self, state: State) -> None:
        name, metric = state.task.name, self.metric or f"val/{state.task.primary_metric}"
        watchable = {key: METRICS[last] for key in state.record if (last := key.rpartition("/")[2]) in METRICS}
        if metric not in watchable:
            raise ConfigError(
                f"got EarlyStopping on {metric!r}, but in an epoch of {name!r} it can watch "
                f"{', '.join(sorted(watchable))}. Pass validation data, or the metric of one of these names."
            )
        higher = watchable[metric].higher_is_better
        goal = state.record[metric] if higher else -state.record[metric]
        better = goal > self._best[name]  # never for NaN, which mAP is without a positive
        self._best[name] = goal if better else self._best[name]
        self._waited[name] = 0 if better else self._waited[name] + 1
        state.stop = state.stop or self._waited[name] >= self.patience
