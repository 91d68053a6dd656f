"""From blocks of samples to windows of a spectrogram, in memory that does not grow with the recording.

The spectrogram of the whole recording is made once, block by block, and a window is a stretch of its frames. That is
what the window's samples alone would give, because a frame depends on its own 25 ms only. So windows that overlap
cost their spectrogram once, and start on whole hops of the spectrogram, 10 ms apart.

Symbols: T samples, F frames, M mel bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from adapterbank.audio.mel import HOP, SAMPLE_RATE, WINDOW, frame_count, log_mel
from adapterbank.errors import ConfigError
from adapterbank.numbers import is_real

FRAME_SECONDS = HOP / SAMPLE_RATE
SHORTEST, LONGEST = 0.1, 120.0  # seconds of a window: below, it holds hardly a frame per patch; above, memory grows


class Window(NamedTuple):
    """A stretch of a recording: the number of its first frame, and its raw log-mel (F, M)."""

    start: int
    mel: Tensor


class Cutting(NamedTuple):
    """How a recording is cut, in whole hops of the spectrogram (10 ms)."""

    window: int
    hop: int

    @classmethod
    def of(cls, window: float, hop: float | None) -> Cutting:
        """From seconds, rounded to 10 ms; without a hop, windows stand side by side.

        Raises:
            ConfigError: a window that is no number of seconds from 0.1 to 120, or a hop of less than 10 ms.
        """
        if not is_real(window) or not SHORTEST <= window <= LONGEST:
            raise ConfigError(f"got window={window!r}, expected {SHORTEST} to {LONGEST:.0f} seconds.")
        hop = window if hop is None else hop
        if not is_real(hop) or round(hop / FRAME_SECONDS) < 1:
            raise ConfigError(
                f"got hop={hop!r}, expected at least {FRAME_SECONDS} seconds; left out, windows stand side by side."
            )
        return cls(round(window / FRAME_SECONDS), round(hop / FRAME_SECONDS))

    @property
    def frames(self) -> int:
        """F of each window."""
        return frame_count(self.window * HOP)

    @property
    def seconds(self) -> tuple[float, float]:
        """Of a window, and from one start to the next."""
        return self.window * HOP / SAMPLE_RATE, self.hop * HOP / SAMPLE_RATE


def spectrogram(blocks: Iterable[Tensor], mel_bins: int, device: torch.device) -> Iterator[Tensor]:
    """Blocks (T,) at 16 kHz -> the log-mel of all of them as one waveform, in blocks (F, M)."""
    rest, started = torch.empty(0), False
    for block in blocks:
        rest = torch.cat([rest, block])
        if len(rest) < WINDOW:
            continue
        (mel,) = log_mel([rest.to(device)], mel_bins)
        rest, started = rest[len(mel) * HOP :].clone(), True
        yield mel
    if not started and len(rest):  # shorter than one frame: padded to one, as any clip is
        yield log_mel([rest.to(device)], mel_bins)[0]


class Cutter:
    """Takes the spectrogram of a recording block by block, and gives each window as soon as it is whole.

    Every window is whole. Where the last one of the regular windows does not reach the end, one more is taken that ends
    with the recording, so that it overlaps the one before it further than others do. A recording that is shorter than a
    window is a single window. With a hop that is longer than the window, what lies between windows is not heard, and no
    window is added at the end.
    """

    def __init__(self, cutting: Cutting):
        self.cutting = cutting
        self.kept: Tensor | None = None  # frames that a window may still need
        self.first = 0  # number of the first frame of them
        self.next = 0  # number of the first frame of the next regular window
        self.heard = 0  # number of the frame after the last window so far

    def push(self, mel: Tensor) -> Iterator[Window]:
        """The windows that end in this block (F, M)."""
        self.kept = mel if self.kept is None else torch.cat([self.kept, mel])
        while self.next + self.cutting.frames <= self.first + len(self.kept):
            yield self._window(self.next)
            self.next += self.cutting.hop
        needed = min(self.next, self.first + len(self.kept) - self.cutting.frames)
        if needed > self.first:
            self.kept, self.first = self.kept[needed - self.first :].clone(), needed

    def finish(self) -> Iterator[Window]:
        """The window that ends with the recording, if the regular ones did not hear it all."""
        if self.kept is None:
            return
        end = self.first + len(self.kept)
        if end < self.cutting.frames:
            yield Window(0, self.kept)
        elif self.heard < end and self.cutting.hop <= self.cutting.window:
            yield self._window(end - self.cutting.frames)

    def _window(self, start: int) -> Window:
        assert self.kept is not None
        self.heard = start + self.cutting.frames
        return Window(start, self.kept[start - self.first : self.heard - self.first])
