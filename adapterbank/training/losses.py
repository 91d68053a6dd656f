"""What a training minimises: cross-entropy or binary cross-entropy, with class weights and label smoothing.

Symbols: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.numbers import is_real
from adapterbank.task.task import Task

LOSSES = ("auto", "ce", "bce")
LossFunction = Callable[[Tensor, Tensor], Tensor]


def check_loss(loss: Any, label_smoothing: Any, weighted: bool) -> None:
    """Refuses what no loss can be made of. Raises ConfigError, or UnknownNameError for an unknown name."""
    if not (is_real(label_smoothing) and 0 <= label_smoothing < 1):
        raise ConfigError(f"got label_smoothing={label_smoothing!r}, expected a share from 0 to below 1, such as 0.1.")
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise UnknownNameError("loss", loss, LOSSES)
    elif not callable(loss):
        raise ConfigError(
            f"got loss={loss!r}, expected one of {', '.join(map(repr, LOSSES))}, or a function of logits (B, C) and "
            "targets that gives a scalar."
        )
    elif label_smoothing or weighted:
        raise ConfigError(
            f"got loss={loss!r} with {'class_weights' if weighted else 'label_smoothing'}: a function of your own "
            "weighs and smooths its targets by itself. Leave the option out, or pass loss='ce' or 'bce'."
        )


class Loss:
    """The mean loss of a batch, in fp32.

    Targets are class indices (B,) or shares of all classes (B, C), as mixup and tasks with several labels have them.

    Args:
        kind: "ce": softmax and cross-entropy, where the classes of a clip exclude one another. "bce": a sigmoid and
            binary cross-entropy for each class by itself; the mean is over clips and classes.
        weights: of each class, (C,), or None. In "ce" it multiplies the terms of the class, and the mean is over the
            weights, as `torch.nn.functional.cross_entropy(weight=)` has it. In "bce" it multiplies the positive terms,
            as `pos_weight=` does.
        smoothing: the share of each target that is dealt out: in "ce" to all classes alike, in "bce" to yes and no
            alike.
    """

    def __init__(self, kind: str, weights: Tensor | None = None, smoothing: float = 0.0):
        self.kind, self.weights, self.smoothing = kind, weights, smoothing

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(B, C) and (B,) or (B, C) -> a scalar."""
        logits = logits.float()
        if self.kind == "bce":
            targets = self._shares(logits, targets)
            if self.smoothing:
                targets = targets * (1 - self.smoothing) + self.smoothing / 2
            return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.weights)
        if targets.ndim == 1 or self.weights is None:
            return F.cross_entropy(logits, targets, self.weights, label_smoothing=self.smoothing)
        # torch divides by the number of clips here and by their weights above; a class must not change its weight when
        # a batch is mixed, so it is by the weights in both.
        total = F.cross_entropy(logits, targets, self.weights, label_smoothing=self.smoothing, reduction="sum")
        return total / (targets @ self.weights).sum()

    def amount(self, targets: Tensor) -> float:
        """What the mean divides by, up to a factor: the number of clips, or the sum of their weights."""
        if self.kind == "bce" or self.weights is None:
            return len(targets)
        return float((self.weights[targets] if targets.ndim == 1 else targets @ self.weights).sum())

    @staticmethod
    def _shares(logits: Tensor, targets: Tensor) -> Tensor:
        return F.one_hot(targets, logits.shape[1]).float() if targets.ndim == 1 else targets.float()


def loss_of(task: Task, loss: str | LossFunction, weights: Tensor | None, smoothing: float) -> LossFunction:
    """The loss that the options of a training ask for.

    Args:
        loss: "ce", "bce", a function, or "auto", which is "bce" for a task with several labels per clip, else "ce".

    Raises:
        ConfigError: "ce" for a task with several labels per clip.
    """
    if not isinstance(loss, str):
        return loss
    if loss == "ce" and task.spec.multilabel:
        raise ConfigError(
            f"got loss='ce' for {task.name!r}, whose clips have any number of labels: softmax makes them exclude one "
            "another. Pass loss='bce', or add the task without multilabel=True."
        )
    kind = ("bce" if task.spec.multilabel else "ce") if loss == "auto" else loss
    return Loss(kind, weights, smoothing)


def amount(loss: LossFunction, targets: Tensor) -> float:
    """How much a part of a batch counts in the mean over the whole: see `Loss.amount`. By clips for other functions."""
    return loss.amount(targets) if isinstance(loss, Loss) else len(targets)
