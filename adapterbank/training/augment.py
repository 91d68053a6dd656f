"""Augmentation of training clips. All randomness comes from the generator that is passed in."""

from __future__ import annotations

import torch
from torch import Tensor

from adapterbank.errors import ConfigError

MAX_TIME_SHARE = 0.2  # SpecAugment masks at most this share of the frames, unless a protocol fixes a width in frames


def random_crop(waveform: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """A random piece of a clip (T,) -> (samples,); a clip that is not longer stays whole."""
    spare = len(waveform) - samples
    if spare <= 0:
        return waveform
    start = int(torch.randint(spare + 1, (), generator=generator))
    return waveform[start : start + samples]


def spec_augment(mel: Tensor, freq_mask: int, time_mask: float | int, generator: torch.Generator) -> Tensor:
    """SpecAugment (Park et al., 2019): one masked band of mel bins and one of frames, set to 0 in log-mel as AST does.

    Args:
        mel: (F, M), before normalisation.
        freq_mask: largest width in mel bins; the width is drawn from 0 to this.
        time_mask: a float is the largest share of the frames (at most 0.2), an int the largest width in frames.
    """
    mel = mel.clone()
    frames, bins = mel.shape
    widest = round(time_mask * frames) if isinstance(time_mask, float) else min(time_mask, frames)
    start, width = _span(bins, min(freq_mask, bins), generator)
    mel[:, start : start + width] = 0
    start, width = _span(frames, widest, generator)
    mel[start : start + width] = 0
    return mel


def _span(size: int, widest: int, generator: torch.Generator) -> tuple[int, int]:
    width = int(torch.randint(widest + 1, (), generator=generator))
    return int(torch.randint(size - width + 1, (), generator=generator)), width


def check_masks(freq_mask: int, time_mask: float | int) -> None:
    """Raises ConfigError for widths that `spec_augment` cannot use."""
    if not isinstance(freq_mask, int) or freq_mask < 0:
        raise ConfigError(f"got freq_mask={freq_mask!r}, expected mel bins as an integer, such as 24.")
    if isinstance(time_mask, float):
        if not 0 <= time_mask <= MAX_TIME_SHARE:
            raise ConfigError(
                f"got time_mask={time_mask}, expected a share of the frames from 0.0 to {MAX_TIME_SHARE}; "
                "a width in frames is an int."
            )
    elif not isinstance(time_mask, int) or time_mask < 0:
        raise ConfigError(f"got time_mask={time_mask!r}, expected a share such as 0.2, or frames as an integer.")
