"""One task of a bank: every tensor that training it may change."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapterbank import methods
from adapterbank.audio.mel import normalise, pad_frames
from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.encode import Segment
from adapterbank.backbone.weights import ASTWeights, NormWeights
from adapterbank.errors import ConfigError
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts.own import trainable_copies
from adapterbank.task.calibration import HALF, Calibration
from adapterbank.task.head import Head, pool, tokens_read
from adapterbank.task.labels import targets
from adapterbank.task.lengths import used_frames
from adapterbank.task.prediction import Prediction as Prediction
from adapterbank.task.prediction import predicted
from adapterbank.task.spec import Facts, TaskSpec


def seeded(seed: int, *names: str) -> torch.Generator:
    """A CPU generator for (seed, names): the same on every machine, independent of the global random state."""
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Task(nn.Module):
    """Adapters, head and, if asked for, a final LayerNorm: every tensor that training this task may change.

    Args:
        spec: what to build.
        backbone: gives the sizes, and the values that a task starts its own copies from.

    Raises:
        UnknownNameError, CompositionError, ConfigError: the method cannot be built with these options.

    Attributes:
        metrics: of the last evaluation that its owner recorded; stored with the task.
        calibration: what `bank.calibrate` found; None: it was not calibrated since its last training. Stored with it.
        trained_clip_seconds: the median length of the clips, or of their crops, that its last training heard; None: it
            is not known. Stored with it.
    """

    # Of the class, for tasks that were pickled before there were these.
    calibration: Calibration | None = None
    trained_clip_seconds: float | None = None

    def __init__(self, spec: TaskSpec, backbone: Backbone):
        super().__init__()
        self.describe(spec, backbone)
        generator = seeded(spec.seed, spec.name, "init")
        geometry, base = backbone.geometry, backbone.weights
        self.adapters = methods.build(spec.method, geometry, base, generator, spec.options)
        self.registered_by = methods.foreign(spec.method)
        self.head = Head(spec.head, geometry.width, len(spec.labels), geometry.eps, generator)
        self.norm = nn.ParameterDict()
        if spec.train_final_norm and self.adapters.owned(base).norm is base.norm:
            self.norm.update(trainable_copies(base.norm._asdict()))
        for part in spec.frozen:
            self.part(part).requires_grad_(False)
        self.to(backbone.device)
        self.eval()

    @classmethod
    def of_classifier(cls, name: str, backbone: Backbone) -> Task:
        """The classifier that the backbone came with, as a task of this name.

        Raises:
            ConfigError: it has none.
        """
        found = backbone.classifier
        if found is None:
            raise ConfigError(f"the backbone {backbone.source} has no classifier; add a task of your own.")
        seconds = backbone.clip_seconds
        task = cls(TaskSpec(name, "head", found.labels, multilabel=found.multilabel, clip_seconds=seconds), backbone)
        task.head.load_state_dict(dict(found.tensors))
        return task

    def describe(self, spec: TaskSpec, backbone: Backbone) -> None:
        """Takes over what a description says beside the modules that it asks for. Nothing was measured yet."""
        self.spec = spec
        self.metrics: dict[str, float] = {}
        self.calibration = self.trained_clip_seconds = None
        self._geometry = backbone.geometry
        mean_std = (backbone.mean, backbone.std) if isinstance(spec.normalize, str) else spec.normalize
        self._mean, self._std = float(mean_std[0]), float(mean_std[1])

    def rename(self, name: str) -> None:
        """Gives it another name; its tensors and metrics stay. Raises InvalidNameError."""
        self.spec = self.spec.renamed(name)

    def relabel(self, new_names: Mapping[str, str]) -> None:
        """Gives classes other names; what it answers stays. Raises UnknownNameError, LabelsError."""
        self.spec = self.spec.relabelled(new_names)

    def record(self, metrics: Mapping[str, float]) -> None:
        """Keeps these metrics, in place of those it had."""
        self.metrics = dict(metrics)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def labels(self) -> tuple[str, ...]:
        return self.spec.labels

    @property
    def method(self) -> str:
        return self.spec.method

    @property
    def mean_std(self) -> tuple[float, float]:
        """(mean, std) by which its log-mels are normalised: its own, or the backbone's."""
        return self._mean, self._std

    def part(self, method: str) -> Adapters:
        """The adapters of one method of a composition. A task with a single method has one part, its adapters."""
        if isinstance(self.adapters, methods.Composition):
            return self.adapters.part(method)
        return self.adapters

    def train(self, mode: bool = True) -> Task:
        """Training mode; what is frozen stays in eval mode, with its batch statistics."""
        super().train(mode)
        for part in self.spec.frozen:
            self.part(part).eval()
        return self

    @property
    def primary_metric(self) -> str:
        """The metric by which this kind of task is compared: accuracy, or mAP if multi-label."""
        return self.spec.primary_metric

    @property
    def usual_seconds(self) -> float | None:
        """How long its clips are: its `clip_seconds`, else those of its last training; None: it is not known."""
        return self.trained_clip_seconds if self.spec.clip_seconds is None else self.spec.clip_seconds

    def trainable_parameters(self) -> int:
        """How many numbers training it may change."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def num_bytes(self) -> int:
        """Bytes of all its tensors, in memory as on disk."""
        return sum(t.numel() * t.element_size() for t in self.state_dict().values())

    def facts(self) -> Facts:
        """What is known of it without its tensors."""
        return Facts(self.spec, self.trainable_parameters(), self.num_bytes(), self.metrics)

    def uses_frozen_features(self) -> bool:
        """True if nothing before the head is trained, so that one vector per clip can be kept."""
        return not any(p.requires_grad for p in self.adapters.parameters()) and not len(self.norm)

    def segment(self, base: ASTWeights) -> Segment:
        """What the backbone needs to run this task's rows."""
        weights = self.adapters.owned(base)
        if len(self.norm):
            weights = weights._replace(norm=NormWeights(self.norm["weight"], self.norm["bias"]))
        sites = tuple(self.adapters.sites(layer) for layer in range(self._geometry.layers))
        return Segment(sites, weights, tokens_read(self.spec.pooling) if sites[-1].per_token() else None)

    def used_frames(self, frames: int, clip_seconds: float | None) -> int:
        """Frames that a clip of `frames` runs with: see `lengths.used_frames`."""
        return used_frames(frames, clip_seconds, self._geometry, self.spec.partial_patches)

    def prepare(self, mel: Tensor, frames: int) -> Tensor:
        """One clip's log-mel (F, M), padded or cut to `frames` and normalised: (frames, M)."""
        return normalise(pad_frames(mel, frames), self._mean, self._std)

    def targets(self, labels: Sequence[Any], *, numbers: Sequence[int] | None = None, soft: bool = True) -> Tensor:
        """The labels of B clips as a tensor for the loss.

        Args:
            labels: a class name, an index or a row of shares per clip; for a multi-label task several names or indices,
                or a row of C numbers in [0, 1]. See `adapterbank.task.labels.targets`.
            numbers: of the items in their data set, for messages.
            soft: whether a row may have values between 0 and 1.

        Returns:
            (B,) int64; or (B, C) in [0, 1] for a multi-label task, and where a row of shares is no single class.

        Raises:
            LabelsError: a label that this task does not have.
        """
        return targets(labels, self.labels, self.spec.multilabel, self.name, numbers=numbers, soft=soft)

    def pooled(self, tokens: Tensor) -> Tensor:
        """What the head reads of the backbone's output: (R, N, D) -> (R, D)."""
        return pool(tokens, self.spec.pooling)

    def logits(self, tokens: Tensor) -> Tensor:
        """What the head answers to the backbone's output: (R, N, D) -> (R, C)."""
        return self.head(self.pooled(tokens))

    def calibrated(self, logits: Tensor) -> Tensor:
        """Logits over the temperature, of which softmax or sigmoid gives the probabilities. (..., C) -> (..., C)."""
        return logits if self.calibration is None else logits / self.calibration.temperature

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., C) -> (..., C). They sum to 1 unless the task is multi-label."""
        scaled = self.calibrated(logits)
        return scaled.sigmoid() if self.spec.multilabel else scaled.softmax(dim=-1)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The probability above which each label of a multi-label task is given, in the order of the logits."""
        own = None if self.calibration is None else self.calibration.thresholds
        return (HALF,) * len(self.labels) if own is None else own

    def prediction(self, logits: Tensor, threshold: float | Mapping[str, float] | None = None) -> Prediction:
        """Class names and probabilities of one clip, from its logits (C,).

        Args:
            threshold: the probability that a label has to exceed, for all of them or as {label: probability}. None: a
                multi-label task takes its own `thresholds`; of any other the most likely class is the answer.

        Raises:
            ConfigError: no probability. UnknownNameError: a label that the task does not have.
        """
        own = self.thresholds if self.spec.multilabel else None
        return predicted(self.name, self.labels, self.probabilities(logits), own, threshold)

    def with_adapters(self, adapters: Adapters) -> Task:
        """This task with other adapters, as a new task: for looking at what adapters do.

        Description, head and final LayerNorm are shared with this task, tensor by tensor, and so is the training mode
        of these modules. The new task starts without metrics and uncalibrated. Nothing of this one is changed.
        """
        other = copy.copy(self)
        other._modules = dict(self._modules)  # a shallow copy would share the table of modules with this task
        other.adapters = adapters
        other.metrics, other.calibration = {}, None
        return other

    def share_adapters(self, source: Task) -> None:
        """From now on this task runs through the adapters of `source`, the same tensors: training one trains both.

        No task of a bank should do that, because tasks of a bank never change each other. It is for what a bank is
        compared with: one body that is fine-tuned for task after task.

        Raises:
            ConfigError: the two were not added with the same method and options, on backbones of the same sizes.
        """
        own, theirs = (
            {name: tensor.shape for name, tensor in task.adapters.state_dict().items()} for task in (self, source)
        )
        if (self.method, own) != (source.method, theirs):
            raise ConfigError(
                f"{self.name!r} ({self.method}) cannot share the adapters of {source.name!r} ({source.method}), "
                "expected the same method, options and sizes; add both with the same ones."
            )
        self.adapters = source.adapters

    def start_from(self, source: Task) -> None:
        """Warm start: copies what both have under one name and shape. A head is copied only if the labels are equal.

        Raises:
            ConfigError: the two share no tensor.
        """
        given = source.state_dict()
        same_head = source.labels == self.labels and source.spec.head == self.spec.head
        copied = 0
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                if name in given and given[name].shape == tensor.shape and (same_head or not name.startswith("head.")):
                    tensor.copy_(given[name])
                    copied += 1
        if not copied:
            raise ConfigError(
                f"init_from={source.name!r} ({source.method}) shares no tensor with {self.name!r} ({self.method}); "
                "warm starts need the same method, options and sizes."
            )
