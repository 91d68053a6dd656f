"""One task as an `nn.Module` for a training loop of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.routing.run import mels_of, run_rows
from adapterbank.task.host import HasBackbone
from adapterbank.task.task import Task


class TaskModule(nn.Module):
    """One task as an optimiser, Accelerate or torch.compile sees it: its parameters are the task's, no others.

    Move it with `bank.to(device)`: the frozen tensors are the bank's and do not follow `module.to`.

    Args:
        bank: whose backbone of the moment it runs on; none of its tensors becomes a parameter or a buffer here.

    Shapes: clips of any form, such as waveforms (B, T) or B one-dimensional tensors -> logits (B, C), with gradients.
    """

    def __init__(self, task: Task, bank: HasBackbone):
        super().__init__()
        self.task = task
        self._bank = bank

    def forward(self, x: Any, sample_rate: int | Sequence[int] = SAMPLE_RATE) -> Tensor:
        backbone = self._bank.backbone
        mels = mels_of(backbone, x, sample_rate)
        return torch.stack(run_rows(backbone, [self.task] * len(mels), mels))
