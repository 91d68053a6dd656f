"""A frozen AST and what has to be known about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapterbank.audio.mel import AUDIOSET_MEAN, AUDIOSET_STD, HOP, SAMPLE_RATE, WINDOW
from adapterbank.backbone.weights import ASTWeights, Geometry


@dataclass(frozen=True)
class Classifier:
    """The head that a checkpoint brought: LayerNorm and Linear tensors by the names of our `Head`."""

    tensors: Mapping[str, Tensor]
    labels: tuple[str, ...]
    multilabel: bool


@dataclass(frozen=True)
class Backbone:
    """A frozen AST and what has to be known about it.

    Attributes:
        source: the name, folder or file it was loaded from, by which a saved bank finds it again.
        mean, std: of log-mels in its training; inputs are `(mel - mean) / (2 std)`.
        fingerprint: SHA-256 over geometry and canonical fp32 values.
        pooling: what the head of a new task reads where nothing is said, "cls_dist" or "mean".
        stride: what was asked for at loading, which a saved bank repeats; None: the checkpoint's own.
    """

    geometry: Geometry
    weights: ASTWeights
    source: str
    fingerprint: str
    mean: float = AUDIOSET_MEAN
    std: float = AUDIOSET_STD
    classifier: Classifier | None = None
    stride: int | None = None
    pooling: str = "cls_dist"

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Backbone:
        """On another device, or with frozen linears of another dtype. The fingerprint stays: the same backbone.

        Raises:
            BackboneError: a dtype that frozen linears cannot have.
        """
        return replace(self, weights=self.weights.to(device, dtype))

    @property
    def device(self) -> torch.device:
        return self.weights.embed.cls.device

    @property
    def dtype(self) -> torch.dtype:
        """What the frozen linears multiply in; of an int8 base that is bf16."""
        return self.weights.embed.patch_weight.dtype

    @property
    def clip_seconds(self) -> float:
        """Seconds that the position table covers."""
        return ((self.geometry.max_frames - 1) * HOP + WINDOW) / SAMPLE_RATE

    def num_parameters(self) -> int:
        """How many numbers the body holds."""
        return sum(tensor.numel() for _, tensor in self.weights.named())


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
