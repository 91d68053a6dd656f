"""How to train: the options of `fit`, and the precision in which the frozen part runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.kernels import training_precision
from adapterbank.backbone.precision import dtype_of
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.numbers import is_real, is_whole, plain, whole
from adapterbank.training.augment import check_masks, check_waveform_changes
from adapterbank.training.averaging import check_average
from adapterbank.training.balance import SAMPLERS, ClassWeights, check_class_weights
from adapterbank.training.losses import LossFunction, check_loss
from adapterbank.training.optimizers import OptimizerFactory, check_optimizer

SCHEDULES = ("cosine", "multistep", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")
ORDERS = ("task", "shared")
MASK_VALUES = ("mean", "zero")


@dataclass(frozen=True)
class Options:
    """The options of `fit`, with their defaults. A wrong value is refused when it is given.

    How long:

    Attributes:
        epochs: passes over the training clips. None: as many as make `defaults.STEPS` optimiser steps, so that few
            clips are trained for as long as many are; `adapterbank.training.defaults` has the rule. If `steps` is
            given, None is as many passes as these steps need.
        steps: at most so many optimiser steps, even if `epochs` would make more; None for no limit. The last epoch may
            then be a part of one; it is validated and recorded like the others.
        batch_size: clips that run through the model at once. Validation uses it too. None: 8, 16 or 32; the
            more clips there are, the more. Where that does not fit into the free memory, it is halved as often as it
            takes and `accumulate` is doubled, so that a step stays what it is.
        accumulate: passes of `batch_size` clips whose gradients are added up for one step, 1. Steps of 32 clips are
            `batch_size=32`, or in half the memory `batch_size=16, accumulate=2`; only a BatchNorm in the adapters sees
            the difference.
        patience: the training ends early after so many steps in which validation found nothing better; 0 for never.
            None: half of all steps where the length was left to `fit`, else never.

    How fast the weights move (AdamW):

    Attributes:
        lr: the highest learning rate. None: that of the method, the smallest of its parts for a composition, as in
            docs/defaults.md; 1e-3 with a notice for a method from outside that registers none.
        weight_decay: of AdamW. None: that of the method.
        warmup: the share of all steps, 0.1, in which the rate rises linearly to `lr`, so that first large gradients
            do no harm. What follows is up to `schedule`.
        schedule: "cosine" falls to 0 along half a cosine; "multistep" multiplies the rate by `gamma` at the start of
            each epoch in `milestones`; "constant" keeps it.
        milestones: epochs, counted from 0, for "multistep" only; none.
        gamma: a factor, 0.85, for "multistep" only.
        optimizer: "adamw"; "sgd", whose momentum is the first of `betas`; or a function that makes a torch optimiser
            of parameter groups, such as `torch.optim.RMSprop`. The groups hold parameters, `lr` and `weight_decay`.
        betas: of AdamW, (0.9, 0.999): the shares of the old value in the running means of gradients and their squares.
        eps: of AdamW, 1e-8: added to the root that gradients are divided by.
        lr_groups: {part of the task: its highest rate}, in place of `lr`. Parts are "head", "norm", "adapters" and each
            method of a composition by its name: {"head": 1e-2, "prompt": 3e-2}. All follow one schedule.
        clip_grad: gradients whose norm over all parameters of the task is larger are scaled down to it, 1.0, so that
            one bad batch cannot throw the weights far off; 0 for no limit.

    What is minimised:

    Attributes:
        loss: "auto" is "bce" for a task whose clips may have several labels, else "ce". "ce": softmax and
            cross-entropy. "bce": binary cross-entropy for each class by itself, also where clips have one label, as AAT
            trains Speech Commands. Or a function (logits (B, C) in fp32, targets) -> a scalar. Targets are class
            indices (B,), or shares of all classes (B, C) for a multi-label task and with mixup.
        class_weights: how much each class counts in the loss: {class: weight}, where others have 1; one number per
            class in the order of the task's labels; "balanced", which gives a class the more weight the rarer it is;
            None for 1. In "ce" it is torch's `weight`, in "bce" its `pos_weight`.
        label_smoothing: the share of each target that is dealt out to all classes alike, 0; in "bce" to yes and no
            alike. It keeps a small training set from making the task too sure of itself.

    Which weights are kept:

    Attributes:
        average: "last" validates and keeps the mean of the weights at the ends of the latest `average_epochs` epochs,
            as AAT does on OpenMIC; "ema" the exponential moving average over all steps; None the weights themselves.
            The statistics of a BatchNorm are computed anew for the mean, in a pass over the training clips per epoch.
        ema_decay: of "ema", 0.99: the mean goes back over about 1 / (1 - ema_decay) steps.
        average_epochs: of "last", 5.

    In how much memory:

    Attributes:
        checkpointing: keep of each block only what enters it, and compute the block again in the backward pass. A step
            takes about 1.4 times as long, and activations need about half of the memory; gradients are the same.

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
        mixup: the share of the clips, 0, that are mixed with another clip of their batch. Targets are mixed in the same
            shares. AAT uses 0.6 on Speech Commands and 0.5 on OpenMIC.
        mixup_alpha: the shares come from Beta(mixup_alpha, mixup_alpha), 10 as in AAT: near one half. Below 1 most are
            near 0 and 1.
        gain: louder or softer by up to so many decibels, 0.
        roll: moved in time by up to so many seconds, 0; what leaves at one end comes in at the other. AAT uses 0.1.
        noise: white noise with a signal-to-noise ratio between two values in dB, such as (10, 40); None for none.
        freq_mask: SpecAugment hides a band of mel bins of each training clip, up to this many; 0 for none. None is 24
            where the training makes at least `defaults.MASK_PASSES` passes, because masks slow a training down before
            they help; in shorter ones it is 0. It is 0 as well where the clips have to stay the same in each epoch:
            for a method that trains its head alone, and where `cache` is asked for.
        time_mask: the same along time. An int is a number of frames (10 ms each), a float a share of the clip up to
            0.2. None is 0.2, or 0 where `freq_mask` is.
        mask_with: what stands in a masked band. "mean" is the mean by which the task's log-mels are normalised, which
            is 0 after normalisation (SpecAugment, PETL_AST). "zero" is 0 before normalisation (AST, AAT): as loud as
            the loudest tenth of AudioSet's frames.
        head_start: a new head starts at a logistic regression on the training clips, which costs one pass without
            gradients. It minimises what `loss` names, with `class_weights`; for a function what "auto" stands for.
            False leaves it at its random weights, as the papers do. A head that was trained before is never touched.
        seed: of every random draw of the training, 0: order of the clips, crops, masks, dropout. The caller's random
            state neither changes a training nor is changed by it.
        order: "task" draws order, crops and masks from the seed and the task's name, so that each task has its own.
            "shared" draws them from the seed alone: tasks trained by `fit_many` then get the same clips in each step
            and share the work on them.
        sampler: "shuffled" gives each clip once per epoch. "balanced" draws as many clips, with replacement, so that
            all classes are heard equally often.
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
        ConfigError: a value outside its range, or a cache together with what changes clips in each epoch.
        UnknownNameError: an unknown schedule, precision, order, loss, optimizer, sampler or average.
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    patience: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.1
    milestones: tuple[int, ...] = ()
    gamma: float = 0.85
    precision: str = "auto"
    crop_seconds: float | None = None
    freq_mask: int | None = None
    time_mask: float | int | None = None
    mask_with: str = "mean"
    clip_grad: float = 1.0
    head_start: bool = True
    seed: int = 0
    workers: int = 0
    order: str = "task"
    cache: str | os.PathLike[str] | None = "auto"
    cache_bytes: int | None = None
    accumulate: int = 1
    optimizer: str | OptimizerFactory = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    lr_groups: Mapping[str, float] | None = None
    loss: str | LossFunction = "auto"
    class_weights: ClassWeights = None
    label_smoothing: float = 0.0
    sampler: str = "shuffled"
    mixup: float = 0.0
    mixup_alpha: float = 10.0
    gain: float = 0.0
    roll: float = 0.0
    noise: tuple[float, float] | None = None
    average: str | None = None
    ema_decay: float = 0.99
    average_epochs: int = 5
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for entry in fields(self):  # numbers of NumPy and torch, as a grid or a computation gives them
            object.__setattr__(self, entry.name, plain(getattr(self, entry.name)))
        if self.schedule not in SCHEDULES:
            raise UnknownNameError("schedule", self.schedule, SCHEDULES)
        if self.precision not in ("auto", *PRECISIONS):
            raise UnknownNameError("precision", self.precision, ("auto", *PRECISIONS))
        if self.order not in ORDERS:
            raise UnknownNameError("order", self.order, ORDERS)
        for name in ("epochs", "batch_size", "steps", "cache_bytes", "accumulate"):
            value = getattr(self, name)
            if value is not None and not is_whole(value):
                raise ConfigError(f"got {name}={value!r}, expected a positive integer.")
        for name, most in (("seed", 2**63 - 1), ("workers", None)):
            whole(name, getattr(self, name), least=0, most=most)
        if not isinstance(self.head_start, bool):
            raise ConfigError(f"got head_start={self.head_start!r}, expected True or False.")
        if self.patience is not None and not is_whole(self.patience, 0):
            raise ConfigError(f"got patience={self.patience!r}, expected a number of steps, or 0 for never.")
        if not isinstance(self.milestones, Sequence) or not all(is_whole(plain(epoch), 0) for epoch in self.milestones):
            raise ConfigError(f"got milestones={self.milestones!r}, expected epochs, counted from 0, such as (5, 10).")
        if self.mask_with not in MASK_VALUES:
            raise UnknownNameError("mask_with", self.mask_with, MASK_VALUES)
        for name in ("lr", "weight_decay", "warmup", "gamma", "clip_grad", "crop_seconds"):
            value = getattr(self, name)
            if not (is_real(value) and value >= 0) and not (
                value is None and name in ("lr", "weight_decay", "crop_seconds")
            ):
                raise ConfigError(f"got {name}={value!r}, expected a number from 0 up.")
        if self.lr is not None and not self.lr > 0:
            raise ConfigError(f"got lr={self.lr!r}, expected a positive number such as 1e-3.")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"got warmup={self.warmup!r}, expected a share of all steps from 0 to below 1.")
        if self.crop_seconds is not None and not self.crop_seconds > 0:
            raise ConfigError(f"got crop_seconds={self.crop_seconds!r}, expected a positive number or None.")
        check_masks(self.freq_mask or 0, self.time_mask or 0)
        self._check_learning()
        self._check_cache()

    def _check_learning(self) -> None:
        """Loss, optimiser, sampler and changes of the waveforms: each is checked where it is made."""
        if self.sampler not in SAMPLERS:
            raise UnknownNameError("sampler", self.sampler, SAMPLERS)
        # As plain values, because a history is stored as JSON. A frozen class can be changed in no other way.
        object.__setattr__(self, "class_weights", check_class_weights(self.class_weights))
        check_loss(self.loss, self.label_smoothing, self.class_weights is not None)
        check_optimizer(self.optimizer, self.betas, self.eps, self.lr_groups)
        check_average(self.average, self.ema_decay, self.average_epochs)
        if not isinstance(self.checkpointing, bool):
            raise ConfigError(f"got checkpointing={self.checkpointing!r}, expected True or False.")
        check_waveform_changes(self.noise, self.roll, self.gain, self.mixup, self.mixup_alpha)
        for name in ("betas", "noise"):
            pair = getattr(self, name)
            object.__setattr__(self, name, None if pair is None else tuple(pair))
        object.__setattr__(self, "lr_groups", None if self.lr_groups is None else dict(self.lr_groups))

    def _check_cache(self) -> None:
        if self.cache is not None:
            if not isinstance(self.cache, (str, os.PathLike)) or not os.fspath(self.cache):
                raise ConfigError(f"got cache={self.cache!r}, expected 'auto', 'memory', a folder or None.")
            object.__setattr__(self, "cache", os.fspath(self.cache))
        masks = {name: getattr(self, name) for name in ("freq_mask", "time_mask") if getattr(self, name)}
        changes = {**self.waveform_changes(), **masks}
        if self.keeps and changes:
            asked = ", ".join(f"{name}={value!r}" for name, value in changes.items())
            raise ConfigError(
                f"got cache={self.cache!r} with {asked}: crops and masks are drawn anew in each epoch, like every "
                "change of a waveform, so that nothing kept could be used again. Leave them out, or pass cache=None."
            )

    @property
    def keeps(self) -> bool:
        """Whether a cache was asked for by name."""
        return self.cache not in (None, "auto")

    def waveform_changes(self) -> dict[str, Any]:
        """The options that change waveforms anew in each epoch and are on, by their names."""
        names = ("crop_seconds", "mixup", "gain", "roll", "noise")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    def record(self) -> dict[str, Any]:
        """All options by their names, as JSON can hold them: a function is recorded by its module and name."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}

    def precision_on(self, device: torch.device) -> str:
        """The precision in use: what "auto" stands for on this device, or what was asked for."""
        return training_precision(device) if self.precision == "auto" else self.precision


def _plain(value: Any) -> Any:
    if callable(value):
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"{named.__module__}.{named.__qualname__}"
    return list(value) if isinstance(value, tuple) else value


def in_precision(backbone: Backbone, precision: str) -> Backbone:
    """The backbone that a training in this precision runs on: the same one if its tensors need no cast.

    Autocast would cast the frozen matrices anew in each call; here they are cast once. In fp32 a backbone stays as it
    is, also one whose frozen matrices are stored in bf16 or int8.
    """
    dtype = dtype_of(precision, PRECISIONS)
    return backbone if dtype in (torch.float32, backbone.dtype) else backbone.to(dtype=dtype)
