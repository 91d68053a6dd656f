"""Where the head of a new task starts: at a logistic regression on what it reads before anything is trained.

A head with random weights sends random gradients into the adapters for the first part of a training. A head that reads
the features well from the beginning sends useful ones (Kumar et al., 2022: linear probing, then fine-tuning). The
penalty is strong on purpose: a regression that fits few clips perfectly leaves no loss from which adapters could learn.

Symbols: B clips, D width, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adapterbank.evaluation import loss_function
from adapterbank.task.task import Task, seeded
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
        weight, bias = regression(torch.cat(found), task.targets(labels), task)
        task.head.linear.weight.copy_(weight)
        task.head.linear.bias.copy_(bias)


def regression(features: Tensor, targets: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Weights (C, D) and bias (C,) of a logistic regression with the task's own loss, on standardised features.

    Args:
        features: (B, D) in double precision.
        targets: (B,) class indices, or (B, C).
    """
    mean, std = features.mean(0), features.std(0, correction=0)
    std = torch.where(std < TINY * (1 + mean.abs()), 1.0, std)
    x = (features - mean) / std
    weight = torch.zeros(len(task.labels), x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(task.labels), dtype=torch.float64, requires_grad=True)
    rows = len(x) * (len(task.labels) if task.spec.multilabel else 1)  # what the task's loss takes its mean over
    solver = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        solver.zero_grad()
        loss = STRENGTH * rows * loss_function(task, x @ weight.T + bias, targets) + weight.square().sum() / 2
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(objective)
    scaled = weight.detach() / std
    return scaled.float(), (bias.detach() - scaled @ mean).float()
