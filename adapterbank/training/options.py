"""How to train: the options of `fit`, and the precision in which the frozen part runs."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch

from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.kernels import training_precision
from adapterbank.backbone.precision import dtype_of
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.training.augment import check_masks

SCHEDULES = ("cosine", "multistep", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")
ORDERS = ("task", "shared")


@dataclass(frozen=True)
class Options:
    """The options of `fit`, with their defaults. A wrong value is refused when it is given.

    How long:

    Attributes:
        epochs: passes over the training clips, 10.
        steps: at most so many optimiser steps, even if `epochs` would make more; None for no limit. The last epoch may
            then be a part of one; it is validated and recorded like the others.
        batch_size: clips per step, 32. Validation uses it too.

    How fast the weights move (AdamW):

    Attributes:
        lr: the highest learning rate, 1e-3. Adapters take rates from 1e-4 to 1e-2.
        weight_decay: of AdamW, 0.05 as in AAT.
        warmup: the share of all steps, 0.1, in which the rate rises linearly to `lr`, so that first large gradients
            do no harm. What follows is up to `schedule`.
        schedule: "cosine" falls to 0 along half a cosine; "multistep" multiplies the rate by `gamma` at the start of
            each epoch in `milestones`; "constant" keeps it.
        milestones: epochs, counted from 0, for "multistep" only; none.
        gamma: a factor, 0.85, for "multistep" only.
        clip_grad: gradients whose norm over all parameters of the task is larger are scaled down to it, 1.0, so that
            one bad batch cannot throw the weights far off; 0 for no limit.

    In which numbers:

    Attributes:
        precision: of the frozen part; what is trained stays in fp32. "fp32" casts nothing: it is exact on a base that
            is stored in fp32, while a base in bf16 or int8 stays what it is. "bf16" and "fp16" are faster and smaller
            where the hardware has them, and "fp16" scales the loss so that small gradients do not vanish. "auto" takes
            bf16 where the device computes in it, on a GPU without it fp16, else fp32.

    What is trained on:

    Attributes:
        crop_seconds: train on a random piece of this many seconds of each clip, drawn anew in each epoch, which is
            faster and varies the data; None for whole clips. Evaluation always reads whole clips.
        freq_mask: SpecAugment hides a band of mel bins of each training clip, up to this many; 0 for none. None is 24,
            or 0 where the clips have to stay the same in each epoch: for a method that trains its head alone, and
            where `cache` is asked for.
        time_mask: the same along time. An int is a number of frames (10 ms each), a float a share of the clip up to
            0.2. None is 0.2, or 0 where `freq_mask` is.
        seed: of every random draw of the training, 0: order of the clips, crops, masks, dropout. The caller's random
            state neither changes a training nor is changed by it.
        order: "task" draws order, crops and masks from the seed and the task's name, so that each task has its own.
            "shared" draws them from the seed alone: tasks trained by `fit_many` then get the same clips in each step
            and share the work on them.
        workers: processes that read clips ahead, 0 for none. Worth it where a clip is read from a slow disk.

    What is kept:

    Attributes:
        cache: what lies below the first block that the task changes is the same in every epoch, so that it can be
            computed once and kept. "memory" keeps it for this training; a folder keeps it for later ones too; None
            keeps nothing. "auto" keeps one vector per clip in memory if the task trains only its head and clips do not
            change from epoch to epoch, else nothing. A folder with one of these names is written "./memory".
        cache_bytes: how much one training may keep; more than that is refused before anything is computed. None is
            4 GiB in memory, 64 GiB in a folder and no limit for "auto". Nothing is ever deleted from a folder: remove
            it, or a folder inside it, when it is no longer needed.

    Raises:
        ConfigError: a value outside its range, or a cache together with crops or masks.
        UnknownNameError: an unknown schedule, precision or order.
    """

    epochs: int = 10
    steps: int | None = None
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.05
    schedule: str = "cosine"
    warmup: float = 0.1
    milestones: tuple[int, ...] = ()
    gamma: float = 0.85
    precision: str = "auto"
    crop_seconds: float | None = None
    freq_mask: int | None = None
    time_mask: float | int | None = None
    clip_grad: float = 1.0
    seed: int = 0
    workers: int = 0
    order: str = "task"
    cache: str | os.PathLike[str] | None = "auto"
    cache_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UnknownNameError("schedule", self.schedule, SCHEDULES)
        if self.precision not in ("auto", *PRECISIONS):
            raise UnknownNameError("precision", self.precision, ("auto", *PRECISIONS))
        if self.order not in ORDERS:
            raise UnknownNameError("order", self.order, ORDERS)
        for name in ("epochs", "batch_size", "steps", "cache_bytes"):
            value = getattr(self, name)
            optional = name in ("steps", "cache_bytes") and value is None
            if not optional and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"got {name}={value!r}, expected a positive integer.")
        for name in ("lr", "weight_decay", "warmup", "gamma", "clip_grad", "crop_seconds"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
            if not number and (name, value) != ("crop_seconds", None):
                raise ConfigError(f"got {name}={value!r}, expected a number from 0 up.")
        if not self.lr > 0:
            raise ConfigError(f"got lr={self.lr!r}, expected a positive number such as 1e-3.")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"got warmup={self.warmup!r}, expected a share of all steps from 0 to below 1.")
        if self.crop_seconds is not None and not self.crop_seconds > 0:
            raise ConfigError(f"got crop_seconds={self.crop_seconds!r}, expected a positive number or None.")
        check_masks(self.freq_mask or 0, self.time_mask or 0)
        self._check_cache()

    def _check_cache(self) -> None:
        if self.cache is not None:
            if not isinstance(self.cache, (str, os.PathLike)) or not os.fspath(self.cache):
                raise ConfigError(f"got cache={self.cache!r}, expected 'auto', 'memory', a folder or None.")
            # As text, because a history is stored as JSON. A frozen class can be changed in no other way.
            object.__setattr__(self, "cache", os.fspath(self.cache))
        augmented = {name: getattr(self, name) for name in ("freq_mask", "time_mask", "crop_seconds")}
        if self.keeps and any(augmented.values()):
            asked = ", ".join(f"{name}={value!r}" for name, value in augmented.items() if value)
            raise ConfigError(
                f"got cache={self.cache!r} with {asked}: crops and masks are drawn anew in each epoch, so that nothing "
                "kept could be used again. Leave them out, or pass cache=None."
            )

    @property
    def keeps(self) -> bool:
        """Whether a cache was asked for by name."""
        return self.cache not in (None, "auto")

    def precision_on(self, device: torch.device) -> str:
        """The precision in use: what "auto" stands for on this device, or what was asked for."""
        return training_precision(device) if self.precision == "auto" else self.precision


def in_precision(backbone: Backbone, precision: str) -> Backbone:
    """The backbone that a training in this precision runs on: the same one if its tensors need no cast.

    Autocast would cast the frozen matrices anew in each call; here they are cast once. In fp32 a backbone stays as it
    is, also one whose frozen matrices are stored in bf16 or int8.
    """
    dtype = dtype_of(precision, PRECISIONS)
    return backbone if dtype in (torch.float32, backbone.dtype) else backbone.to(dtype=dtype)
