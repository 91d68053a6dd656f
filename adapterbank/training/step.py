"""One optimiser step of one task: forward pass, loss, backward pass, clipping, update, learning rate."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adapterbank.errors import ConfigError, TrainingDivergedError
from adapterbank.training.callbacks import Callbacks, State
from adapterbank.training.defaults import Resolved
from adapterbank.training.feed import Batch, TrainingData
from adapterbank.training.losses import amount
from adapterbank.training.optimizers import build, parameter_groups
from adapterbank.training.setting import Setting


class OptimizerStep:
    """The step part of a training.

    `take` makes a whole step, of one forward and backward pass, or with the option `accumulate` of several whose
    gradients add up. `fit_many` runs the forward and backward passes of several tasks together itself: after
    the forward pass it calls `begin` for each task, then runs the backward pass, then calls `update` for each.

    Args:
        state: of the training; its optimizer makes the updates, and callbacks see and change its loss.
    """

    def __init__(self, setting: Setting, data: TrainingData, state: State, callbacks: Callbacks):
        self.setting, self.data, self.state, self.callbacks = setting, data, state, callbacks
        # A function without this object: a reference back to it would be a cycle, which keeps optimiser and cache in
        # memory until Python looks for cycles.
        rate = partial(lr_factor, setting.options, state.total_steps, len(data.feed))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(state.optimizer, rate)
        # fp16 holds nothing below 6e-8: the loss is scaled up, so that small gradients survive the backward pass.
        self.scaler = torch.amp.GradScaler(setting.device.type, enabled=setting.precision == "fp16")

    def take(self, batch: Batch) -> float:
        """One step on a batch; gives its loss. Raises TrainingDivergedError, or LabelsError for a wrong label."""
        parts = batch.parts(self.setting.batch_size)
        for place, (part, share) in enumerate(zip(parts, self._shares(parts), strict=True)):
            with self.setting.training_pass(*self._draw(place)):
                logits = self.data.logits(part.rows)
            self.begin(logits, part, share, first=place == 0).backward()
        self.update()
        return self.state.losses[-1]

    def seeded_dropout(self) -> AbstractContextManager[None]:
        """The context of a forward pass: dropout by (seed, task, step)."""
        return self.setting.seeded_dropout(*self._draw(0))

    def _draw(self, place: int) -> tuple[str, ...]:
        """What tells the dropout of a forward pass from others: its step, and its place among those of the step."""
        return (str(self.state.step), *(("pass", str(place)) if place else ()))

    def _shares(self, parts: list[Batch]) -> list[float]:
        """How much the loss of each part counts in that of the step, so that the sum is the mean over all clips."""
        if len(parts) == 1:
            return [1.0]
        task, device = self.setting.task, self.setting.device
        amounts = [amount(self.state.loss_function, part.targets(task).to(device)) for part in parts]
        return [each / sum(amounts) for each in amounts]

    def begin(self, logits: Tensor, batch: Batch, share: float = 1.0, *, first: bool = True) -> Tensor:
        """Begins a step after its forward pass: computes the loss, lets callbacks change it, clears old gradients.

        Args:
            logits: (B, C) of the batch.
            share: of this batch in the loss of the step.
            first: whether it is the first of the step; those after it add to its gradients and its loss.

        Returns:
            The loss that the backward pass starts from, scaled if the precision is fp16.

        Raises:
            TrainingDivergedError: the loss is not finite. LabelsError: a label that the task does not have.
            ConfigError: a callback left a loss from which no gradient can start.
        """
        state = self.state
        targets = batch.targets(self.setting.task).to(self.setting.device)
        state.begin_step(batch, logits, targets, first)
        self.callbacks.on_step(state)
        if not _starts_gradients(state.loss):
            raise ConfigError(
                f"got the loss {state.loss!r}, from which no gradient can start; expected a real scalar made of the "
                "step's logits, such as their mean loss. A callback has replaced it, or the task has nothing to train."
            )
        value = state.loss.item()
        if not math.isfinite(value):
            raise self._diverged(f"loss {value}")
        if first:
            state.losses.append(0.0)
            state.optimizer.zero_grad(set_to_none=True)
        state.losses[-1] += share * value
        scaled: Tensor = self.scaler.scale(state.loss if share == 1 else share * state.loss)
        return scaled

    def update(self) -> None:
        """The optimiser's part of a step, after the backward pass.

        Raises:
            TrainingDivergedError: the norm of the gradients is not finite.
        """
        self.state.end_step()
        self.scaler.unscale_(self.state.optimizer)
        limit = self.setting.options.clip_grad or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.setting.task.parameters(), limit)
        # A scaler expects an overflow now and then, skips that step and lowers its scale; below 1 nothing overflows any
        # more, so what is not finite comes from the data or the weights.
        scale = self.scaler.get_scale()
        if not torch.isfinite(norm) and (not self.scaler.is_enabled() or scale < 1):
            raise self._diverged(f"gradient norm {norm.item()}")
        self.scaler.step(self.state.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # else the step was skipped
            self.scheduler.step()

    def lr(self) -> float:
        """The learning rate of the next step; parts in `lr_groups` have their own."""
        return float(self.scheduler.get_last_lr()[0])

    def _diverged(self, what: str) -> TrainingDivergedError:
        task, options = self.setting.task, self.setting.options
        return TrainingDivergedError(
            f"training {task.name!r} ({task.method}, {self.setting.precision}, lr {options.lr:g}) gave {what} "
            f"at step {self.state.step}. The task is as it was before. Try a lower lr, precision='fp32', or look for "
            "broken clips."
        )


def optimizer_of(setting: Setting) -> torch.optim.Optimizer:
    """The optimiser over the parameters of the task that a training changes."""
    options = setting.options
    groups = parameter_groups(setting.task, options.lr, options.weight_decay, options.lr_groups or {})
    return build(options.optimizer, groups, options.betas, options.eps)


def lr_factor(options: Resolved, total: int, epoch_steps: int, step: int) -> float:
    """The share of the peak learning rate at a step, from 0, of a training of `total` steps."""
    warmup = round(options.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    if options.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
    if options.schedule == "multistep":
        epoch = step // epoch_steps
        return options.gamma ** sum(epoch >= milestone for milestone in options.milestones)
    return 1.0


def _starts_gradients(loss: Any) -> bool:
    """Whether a backward pass can start from it; a callback may have put anything in its place."""
    return isinstance(loss, Tensor) and not loss.ndim and loss.is_floating_point() and loss.requires_grad
