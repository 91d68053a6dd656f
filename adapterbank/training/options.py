"""How to train: every option of `fit`, checked when it is given."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch

from adapterbank.backbone.backbone import Backbone
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.training.augment import check_masks

SCHEDULES = ("cosine", "multistep", "constant")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ORDERS = ("task", "shared")


@dataclass(frozen=True)
class Options:
    """How to train.

    Attributes:
        epochs: passes over the training data; `steps` ends earlier.
        lr: peak learning rate of AdamW.
        schedule: after `warmup` (share of all steps, linear): "cosine" to 0; "multistep": times `gamma` at the start of
            each epoch in `milestones` (counted from 0); "constant".
        precision: "fp32", "bf16", "fp16" (with loss scaling) or "auto": what the device does well. A training in bf16
            on a CPU without a matrix unit holds the frozen matrices twice.
        crop_seconds: train on random crops of this length; evaluation always hears whole clips.
        freq_mask, time_mask: SpecAugment; None: 24 bins and 20 % of the frames if the method trains inside the
            backbone, nothing for `head` or where `cache` is asked for: kept activations are computed once.
        clip_grad: largest gradient norm, 0 for none.
        seed: of data order and augmentation, together with the task's name.
        order: "task": data order and augmentation are drawn by (seed, task name); "shared": by the seed alone, so that
            tasks trained by `fit_many` hear the same clips in each step and share the work on them.
        cache: keeps what lies below the task's first site, the same in every epoch: "memory", or a folder, which later
            trainings use as well; None: nothing; "auto": one vector per clip, in memory, if only the head is trained
            and nothing is augmented. A folder of one of these names is "./memory".
        cache_bytes: how much one training may keep; None: 4 GiB in memory, 64 GiB in a folder, anything for "auto".
            Nothing is ever deleted from a folder: remove it, or a subfolder of it, when it is no longer needed.
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
            object.__setattr__(self, "cache", os.fspath(self.cache))  # text: a history is stored as JSON
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
        """The precision in use: "auto" is resolved for this device."""
        return _default_precision(device) if self.precision == "auto" else self.precision


def in_precision(backbone: Backbone, precision: str) -> Backbone:
    """The backbone that a training in this precision runs on: the same tensors if they need no cast.

    Autocast would cast the frozen weights anew on every call: they are cast once instead, and packed once for gradients
    where that helps.
    """
    dtype = PRECISIONS[precision]
    return backbone if dtype in (torch.float32, backbone.dtype) else backbone.to(dtype=dtype)


def _default_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "fp32"
    return "fp32"
