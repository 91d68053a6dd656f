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
from adapterbank.training.feed import Batch, TrainingData
from adapterbank.training.options import Options
from adapterbank.training.setting import Setting

FUSED = ("cpu", "cuda")  # where one kernel makes a step of AdamW for all tensors


class OptimizerStep:
    """The step part of a training.

    `take` makes a whole step. `fit_many` runs the forward and backward passes of several tasks together itself: after
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
        with self.setting.autocast, self.seeded_dropout():
            logits = self.data.logits(batch.rows)
        self.begin(logits, batch).backward()
        self.update()
        return self.state.losses[-1]

    def seeded_dropout(self) -> AbstractContextManager[None]:
        """The context of a forward pass: dropout by (seed, task, step)."""
        return self.setting.seeded_dropout(str(self.state.step))

    def begin(self, logits: Tensor, batch: Batch) -> Tensor:
        """Begins a step after its forward pass: computes the loss, lets callbacks change it, clears old gradients.

        Args:
            logits: (B, C) of the batch.

        Returns:
            The loss that the backward pass starts from, scaled if the precision is fp16.

        Raises:
            TrainingDivergedError: the loss is not finite. LabelsError: a label that the task does not have.
            ConfigError: a callback left a loss from which no gradient can start.
        """
        state = self.state
        targets = self.setting.task.targets(batch.labels).to(self.setting.device)
        state.begin_step(batch, logits, targets)
        self.callbacks.on_step(state)
        if not _starts_gradients(state.loss):
            raise ConfigError(
                f"got the loss {state.loss!r}, from which no gradient can start; expected a real scalar made of the "
                "step's logits, such as their mean loss. A callback has replaced it, or the task has nothing to train."
            )
        value = state.loss.item()
        if not math.isfinite(value):
            raise self._diverged(f"loss {value}")
        state.losses.append(value)
        state.optimizer.zero_grad(set_to_none=True)
        scaled: Tensor = self.scaler.scale(state.loss)
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
        """The learning rate of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def _diverged(self, what: str) -> TrainingDivergedError:
        task, options = self.setting.task, self.setting.options
        return TrainingDivergedError(
            f"training {task.name!r} ({task.method}, {self.setting.precision}, lr {options.lr:g}) gave {what} "
            f"at step {self.state.step}. The task is as it was before. Try a lower lr, precision='fp32', or look for "
            "broken clips."
        )


def optimizer_of(setting: Setting) -> torch.optim.Optimizer:
    """AdamW over the parameters of the task that a training changes."""
    trained = [parameter for parameter in setting.task.parameters() if parameter.requires_grad]
    # None leaves the choice to torch, which on other devices is a loop over tensors.
    fused = True if setting.device.type in FUSED else None
    return torch.optim.AdamW(trained, lr=setting.options.lr, weight_decay=setting.options.weight_decay, fused=fused)


def lr_factor(options: Options, total: int, epoch_steps: int, step: int) -> float:
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
