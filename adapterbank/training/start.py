"""Where the head of a new task starts: at a logistic regression on what it reads before anything is trained.

A head with random weights sends random gradients into the adapters for the first part of a training. A head that reads
the features well from the beginning sends useful ones (Kumar et al., 2022: linear probing, then fine-tuning). The
penalty is strong on purpose: a regression that fits few clips perfectly leaves no loss from which adapters could learn.

The regression minimises what `loss=` names, with `class_weights`: cross-entropy, or binary cross-entropy for each class
by itself. It knows nothing of a loss that is a function, and then minimises what the task would have by itself. Logits
of a classifier are a good start for most of them; where they mean something else, such as a distance or a rank, pass
`head_start=False`. Label smoothing and mixup are left to the training: the penalty keeps the start from being too sure.

Symbols: B clips, D width, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapterbank.task.task import Task, seeded
from adapterbank.training.balance import class_weights
from adapterbank.training.feed import TrainingData
from adapterbank.training.setting import Setting

STRENGTH = 0.01  # of the summed loss beside |W|^2 / 2 on standardised features: scikit-learn's C
MOST_CLIPS = 4096  # for a linear map of some hundred features, more clips change little
ITERATIONS = 100  # of L-BFGS; the problem is convex, so that its solution does not depend on where it starts
TINY = 1e-6  # a feature that varies less tells nothing: its rounding must not be blown up


def starts_new(task: Task) -> bool:
    """Whether the head has never been trained: only a new head has a bias of zeros."""
    bias = task.head.linear.bias
    return bias is not None and not bool(bias.any())


def will_start(setting: Setting) -> bool:
    """Whether a training gives its head a start."""
    return setting.options.head_start and starts_new(setting.task)


def start_head(data: TrainingData) -> None:
    """Gives a new head the weights of a logistic regression on the training clips; a trained head stays as it is."""
    task, options = data.setting.task, data.setting.options
    if not will_start(data.setting):
        return
    chosen = list(range(len(data.train)))
    if len(chosen) > MOST_CLIPS:
        draw = seeded(options.seed, task.name, "head start")
        chosen = torch.randperm(len(chosen), generator=draw)[:MOST_CLIPS].sort().values.tolist()
    task.eval()
    found: list[Tensor] = []
    labels: list[Any] = []
    with torch.no_grad():
        for first in range(0, len(chosen), options.batch_size):
            rows, some = zip(*(data.train[index] for index in chosen[first : first + options.batch_size]), strict=True)
            with data.setting.autocast:
                pooled = data.pooled(list(rows))
            found.append(task.head.norm(pooled.float()).double().cpu())
            labels += some
        one_by_one = task.spec.multilabel or options.loss == "bce"
        weights = class_weights(task, options.class_weights, labels)
        weight, bias = regression(torch.cat(found), task.targets(labels), len(task.labels), one_by_one, weights)
        task.head.linear.weight.copy_(weight)
        task.head.linear.bias.copy_(bias)


def regression(
    features: Tensor, targets: Tensor, classes: int, one_by_one: bool = False, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weights (C, D) and bias (C,) of a logistic regression on standardised features.

    Args:
        features: (B, D) in double precision.
        targets: (B,) class indices, or (B, C) shares of the classes.
        classes: C.
        one_by_one: binary cross-entropy for each class by itself, in place of softmax and cross-entropy.
        weights: of the classes (C,), as `adapterbank.training.losses.Loss` has them.
    """
    mean, std = features.mean(0), features.std(0, correction=0)
    std = torch.where(std < TINY * (1 + mean.abs()), 1.0, std)
    x = (features - mean) / std
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    of_classes = None if weights is None else weights.double().cpu()
    if one_by_one and targets.ndim == 1:
        targets = F.one_hot(targets, classes)
    targets = targets.double() if targets.ndim > 1 else targets
    solver = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        solver.zero_grad()
        logits = x @ weight.T + bias
        if one_by_one:
            loss = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=of_classes, reduction="sum")
        else:
            loss = F.cross_entropy(logits, targets, of_classes, reduction="sum")
        total = STRENGTH * loss + weight.square().sum() / 2
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(objective)
    scaled = weight.detach() / std
    return scaled.float(), (bias.detach() - scaled @ mean).float()
