"""Weight averaging: what is validated and kept is a mean of the weights of many steps, which varies less than the last.

The training itself goes on from its own weights. At the end of each epoch the mean takes their place for validation,
and is what the epoch is remembered by.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.numbers import is_real, is_whole
from adapterbank.task.task import Task

AVERAGES = ("ema", "last")


def check_average(average: Any, ema_decay: Any, average_epochs: Any) -> None:
    """Refuses what no mean can be made of. Raises ConfigError, or UnknownNameError for an unknown kind."""
    if average is not None and average not in AVERAGES:
        raise UnknownNameError("average", str(average), AVERAGES)
    if not (is_real(ema_decay) and 0 <= ema_decay < 1):
        raise ConfigError(f"got ema_decay={ema_decay!r}, expected a share from 0 to below 1, such as 0.99.")
    if not is_whole(average_epochs):
        raise ConfigError(f"got average_epochs={average_epochs!r}, expected a positive integer such as 5.")


class WeightAverage:
    """The mean of the weights of one training.

    Args:
        kind: None: no mean, the weights themselves are used. "ema": the exponential moving average over all steps,
            `mean = decay * mean + (1 - decay) * weights`, which starts at the weights after the first step. "last": the
            mean of the weights at the ends of the latest `epochs` epochs.
    """

    def __init__(self, task: Task, kind: str | None, decay: float, epochs: int):
        self.task, self.kind, self.decay = task, kind, decay
        self._latest: deque[list[Tensor]] = deque(maxlen=epochs)
        self._ema: list[Tensor] = []

    def after_step(self) -> None:
        """Takes in the weights of a step."""
        if self.kind != "ema":
            return
        weights = _weights(self.task)
        if self._ema:
            torch._foreach_lerp_(self._ema, weights, 1 - self.decay)
        else:
            self._ema = [weight.clone() for weight in weights]

    @contextmanager
    def in_place(self, remake: Callable[[], None]) -> Iterator[None]:
        """At the end of an epoch: within it the task has the mean as its weights, afterwards its own again.

        Args:
            remake: computes the statistics of BatchNorm for the weights that the task has at that moment.
        """
        if self.kind is None:
            yield
            return
        own = {name: tensor.detach().clone() for name, tensor in self.task.state_dict().items()}
        if self.kind == "last":
            self._latest.append([weight.clone() for weight in _weights(self.task)])
        mean = self._ema if self.kind == "ema" else [sum(each) / len(each) for each in zip(*self._latest, strict=True)]
        try:
            for weight, value in zip(_weights(self.task), mean, strict=True):
                weight.copy_(value)
            remake()
            yield
        finally:
            self.task.load_state_dict(own)


def remake_batch_norms(task: Task, run: Callable[[], None]) -> None:
    """Computes the statistics of every BatchNorm that is trained anew: the plain mean over what `run` runs.

    Statistics belong to the weights they were gathered with. Those of a mean of weights were never gathered.

    Args:
        run: runs batches through the task, which is in training mode.
    """
    task.train()
    norms = [m for m in task.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch: a mean in which every batch counts alike
    try:
        with torch.no_grad():
            run()
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _weights(task: Task) -> list[Tensor]:
    """The tensors that a training changes, without their gradients."""
    return [parameter.detach() for parameter in task.parameters() if parameter.requires_grad]
