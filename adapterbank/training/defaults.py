"""What a training uses where its caller says nothing: by the method, by the number of clips, by the length.

`fit(bank, name, train, val)` with nothing else is meant to train a task out, whether there are 20 clips or 20,000. The
rates of the methods stand in their registrations; how they were found is in docs/defaults.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from adapterbank import methods
from adapterbank.errors import MethodDefaultsWarning, warn_outside
from adapterbank.methods.parts.training import UNKNOWN, TrainingDefaults
from adapterbank.task.task import Task
from adapterbank.training.augment import MAX_TIME_SHARE
from adapterbank.training.options import Options

STEPS = 400  # optimiser steps, at least: what 60 clips need as much as 6,000
PASSES = 8  # over the clips, at least: what 6,000 clips need
MOST_PASSES = 100  # over the clips: 10 clips are learnt by heart long before
BATCHES = ((100, 8), (2_000, 16))  # below so many clips, this batch size; else LARGEST_BATCH
LARGEST_BATCH = 32
MASK_PASSES = 40  # SpecAugment from so many passes on
FREQ_MASK = 24  # the widest band of mel bins: what AAT trains ESC-50 and UrbanSound8K with


@dataclass(frozen=True)
class Resolved(Options):
    """Options in which nothing is left open; the fields of `Options`."""

    epochs: int = 1
    batch_size: int = LARGEST_BATCH
    patience: int = 0
    lr: float = UNKNOWN.lr
    weight_decay: float = UNKNOWN.weight_decay
    freq_mask: int = 0
    time_mask: float | int = 0.0

    @property
    def clips_per_step(self) -> int:
        """Clips whose gradients make one step of the optimiser."""
        return self.batch_size * self.accumulate


def resolved(options: Options, task: Task, clips: int, room: int | None = None) -> Resolved:
    """The options with which a task is trained on so many clips.

    Where the batch size is left open and the memory has room for fewer clips than the rule says, the clips of a step
    run in several passes, whose gradients are added up.

    Args:
        room: clips whose activations fit into memory; None if that is not known.

    Warns:
        MethodDefaultsWarning: `lr` was left open, and a part of the method registers none.
    """
    own = training_defaults(task.method)
    if options.lr is None and any(part.training is None for part in methods.parse(task.method)):
        warn_outside(
            f"the method {task.method!r} registers no training defaults, so {task.name!r} is trained with "
            f"lr={own.lr:g}. Pass lr=... to fit, or training=TrainingDefaults(lr=...) where the method is registered.",
            MethodDefaultsWarning,
        )
    batch_size, accumulate = options.batch_size or _batch_size(clips), options.accumulate
    if options.batch_size is None and room is not None:
        while batch_size > max(1, room):
            batch_size, accumulate = batch_size // 2, 2 * accumulate
    per_epoch = math.ceil(clips / (batch_size * accumulate))
    epochs = options.epochs or _epochs(options.steps, per_epoch)
    steps = epochs * per_epoch
    left_open = options.epochs is None and options.steps is None
    patience = (math.ceil(steps / 2) if left_open else 0) if options.patience is None else options.patience
    # What does not change from epoch to epoch can be kept; masks would change it.
    masked = epochs >= MASK_PASSES and not (task.uses_frozen_features() or options.keeps)
    freq_mask, time_mask = (FREQ_MASK, MAX_TIME_SHARE) if masked else (0, 0.0)
    chosen = {
        "batch_size": batch_size,
        "accumulate": accumulate,
        "epochs": epochs,
        "patience": patience,
        "lr": own.lr if options.lr is None else options.lr,
        "weight_decay": own.weight_decay if options.weight_decay is None else options.weight_decay,
        "freq_mask": freq_mask if options.freq_mask is None else options.freq_mask,
        "time_mask": time_mask if options.time_mask is None else options.time_mask,
    }
    return Resolved(**{**vars(options), **chosen})


def training_defaults(method: str) -> TrainingDefaults:
    """Those of a method. Of a composition the smallest rate and the largest weight decay, which no part finds too bold.

    Raises:
        UnknownNameError: a part is no method.
    """
    parts = [part.training or UNKNOWN for part in methods.parse(method)]
    return TrainingDefaults(min(part.lr for part in parts), max(part.weight_decay for part in parts))


def _batch_size(clips: int) -> int:
    return next((size for below, size in BATCHES if clips < below), LARGEST_BATCH)


def _epochs(steps: int | None, batches: int) -> int:
    """Passes that make so many steps, with `batches` steps each; by the rule where `steps` is open."""
    if steps is not None:
        return math.ceil(steps / batches)
    return min(MOST_PASSES, max(PASSES, math.ceil(STEPS / batches)))
