"""What all parts of one training share and none of them changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.precision import dtype_of
from adapterbank.task.task import Task, seeded
from adapterbank.training.defaults import Resolved
from adapterbank.training.options import in_precision
from adapterbank.training.recompute import blocks_recomputed


@dataclass(frozen=True)
class Setting:
    """The task, the frozen backbone and the options of one training.

    Attributes:
        backbone: the frozen AST, in the precision of this training.
        task: its parameters are all that the training changes.
        precision: "fp32", "bf16" or "fp16": what the option "auto" stands for on this device.
        autocast: the context in which forward passes run; in fp32 it does nothing.
        clip_seconds: the length to which training clips are padded. It is the task's own, but never longer than the
            crops are; None if clips keep their lengths.
    """

    backbone: Backbone
    task: Task
    options: Resolved
    precision: str
    autocast: AbstractContextManager[Any]
    clip_seconds: float | None

    @classmethod
    def of(cls, backbone: Backbone, task: Task, options: Resolved) -> Setting:
        """The setting that options mean for a task on the device of its backbone."""
        device = backbone.device
        precision = options.precision_on(device)
        dtype = dtype_of(precision)
        autocast: AbstractContextManager[Any] = nullcontext()
        if dtype != torch.float32:
            autocast = torch.autocast(device.type, dtype, cache_enabled=True)
        clip_seconds = task.spec.clip_seconds
        if clip_seconds is not None and options.crop_seconds is not None:
            clip_seconds = min(clip_seconds, options.crop_seconds)
        return cls(in_precision(backbone, precision), task, options, precision, autocast, clip_seconds)

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def batch_size(self) -> int:
        """Clips that run through the model at once."""
        return self.options.batch_size

    @property
    def masks(self) -> tuple[int, float | int]:
        """The widest SpecAugment masks, in mel bins and in frames or a share of them; 0 for none."""
        return self.options.freq_mask, self.options.time_mask

    @property
    def has_dropout(self) -> bool:
        return any(isinstance(module, nn.Dropout) for module in self.task.modules())

    @contextmanager
    def training_pass(self, *draw: str) -> Iterator[None]:
        """The context of a forward pass with gradients: precision, dropout, and what of it is kept."""
        recomputed = blocks_recomputed(self.task) if self.options.checkpointing else nullcontext()
        with self.autocast, self.seeded_dropout(*draw), recomputed:
            yield

    @contextmanager
    def seeded_dropout(self, *draw: str) -> Iterator[None]:
        """Forward passes in here draw their dropout from (seed, task, `draw`).

        Dropout of torch reads the global random state, which is therefore set for the block and put back after it:
        neither does the caller's state change a training, nor a training the caller's state.

        Args:
            draw: what tells this draw from others, such as the number of the step.
        """
        if not self.has_dropout:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seeded(self.options.seed, self.task.name, "dropout", *draw).initial_seed())
            yield
