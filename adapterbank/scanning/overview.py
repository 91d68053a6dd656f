"""The spectrogram of a whole recording, small enough to be drawn however long the recording is.

Symbols: F frames, M mel bins, K columns of the picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

COLUMNS = 1024  # at least so many of a long recording, and fewer than twice as many


class Overview:
    """Takes a spectrogram block by block, and keeps the mean of every so many frames.

    When there are twice as many columns as needed, neighbours are joined: each column is then the mean of twice as many
    frames.
    """

    def __init__(self) -> None:
        self.frames = 1  # in a column
        self.columns: list[Tensor] = []  # (k, M) each
        self.count = 0
        self.rest: Tensor | None = None  # (F, M), fewer frames than in a column

    def push(self, mel: Tensor) -> None:
        """The next frames (F, M)."""
        mel = mel.cpu()
        mel = mel if self.rest is None else torch.cat([self.rest, mel])
        whole = len(mel) // self.frames
        self.rest = mel[whole * self.frames :].clone()
        self._keep(mel[: whole * self.frames].unflatten(0, (whole, self.frames)).mean(dim=1))

    def _keep(self, columns: Tensor) -> None:
        self.columns.append(columns)
        self.count += len(columns)
        while self.count >= 2 * COLUMNS:
            table = torch.cat(self.columns)
            pairs = len(table) // 2
            odd = table[2 * pairs :].repeat_interleave(self.frames, dim=0)
            self.rest = odd if self.rest is None else torch.cat([odd, self.rest])
            self.columns, self.count = [table[: 2 * pairs].unflatten(0, (pairs, 2)).mean(dim=1)], pairs
            self.frames *= 2

    def result(self) -> Tensor:
        """The columns (K, M). The last one may stand for a shorter time than the others."""
        rest = [] if self.rest is None or not len(self.rest) else [self.rest.mean(dim=0, keepdim=True)]
        return torch.cat([*self.columns, *rest])
