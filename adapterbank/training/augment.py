"""Augmentation of training clips: random crops here, SpecAugment in `adapterbank.audio.masks`."""

from __future__ import annotations

import torch
from torch import Tensor

from adapterbank.errors import ConfigError

MAX_TIME_SHARE = 0.2  # a mask given as a share hides at most this much of a clip, as in AAT; as frames it may be wider


def random_crop(waveform: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """A random piece of a clip, (T,) -> (samples,). A clip that is not longer stays whole.

    Args:
        generator: makes the only draw, that of the start.
    """
    spare = len(waveform) - samples
    if spare <= 0:
        return waveform
    start = int(torch.randint(spare + 1, (), generator=generator))
    return waveform[start : start + samples]


def check_masks(freq_mask: int, time_mask: float | int) -> None:
    """Refuses widths that `spec_augment` cannot use.

    Raises:
        ConfigError: a width that is negative, no number, or a share above `MAX_TIME_SHARE`.
    """
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
