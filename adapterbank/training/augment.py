"""Augmentation of training waveforms: crops, mixup, gain, roll and noise. SpecAugment is in `adapterbank.audio.masks`.

Every draw comes from the generator that is passed, so that a training is decided by its seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.errors import ConfigError
from adapterbank.numbers import is_real

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


def mixed(
    waveforms: Sequence[Tensor], probability: float, alpha: float, generator: torch.Generator
) -> tuple[list[Tensor], list[int], Tensor]:
    """Mixup (Zhang et al., 2018) of B waveforms, as AAT does it: `share * own + (1 - share) * partner`.

    Each clip is mixed with this probability. Its partner is drawn among the other clips of the batch and is cut, or
    filled with zeros, to the clip's own length. The share is drawn from Beta(alpha, alpha).

    Returns:
        B waveforms, (T,) each; the place of each clip's partner; and the shares (B,), 1 for a clip that is not mixed,
        whose partner is then itself.
    """
    count = len(waveforms)
    partners, shares, rows = list(range(count)), torch.ones(count), list(waveforms)
    for place in range(count):
        draw = float(torch.rand((), generator=generator))
        if draw >= probability or count == 1:
            continue
        other = int(torch.randint(count - 1, (), generator=generator))
        partners[place] = other + (other >= place)  # never itself
        # torch draws from a Beta distribution with the global random state only.
        seed = int(torch.randint(2**62, (), generator=generator))
        shares[place] = share = float(np.random.default_rng(seed).beta(alpha, alpha))
        own, partner = waveforms[place], waveforms[partners[place]]
        partner = torch.nn.functional.pad(partner[: len(own)], (0, max(0, len(own) - len(partner))))
        rows[place] = share * own + (1 - share) * partner
    return rows, partners, shares


def with_gain(waveform: Tensor, decibels: float, generator: torch.Generator) -> Tensor:
    """A clip (T,) made louder or softer by up to so many decibels, drawn evenly."""
    drawn = decibels * (2 * float(torch.rand((), generator=generator)) - 1)
    return waveform * 10 ** (drawn / 20)


def rolled(waveform: Tensor, seconds: float, generator: torch.Generator) -> Tensor:
    """A clip (T,) moved by up to so many seconds either way; what leaves at one end comes in at the other."""
    most = round(seconds * SAMPLE_RATE)
    return waveform.roll(int(torch.randint(-most, most + 1, (), generator=generator)))


def with_noise(waveform: Tensor, ratio: tuple[float, float], generator: torch.Generator) -> Tensor:
    """A clip (T,) with white noise; the signal-to-noise ratio is drawn evenly from `ratio`, (lowest, highest) in dB.

    A clip of silence stays as it is, because no level of noise has a ratio to it.
    """
    lowest, highest = ratio
    decibels = lowest + (highest - lowest) * float(torch.rand((), generator=generator))
    noise = torch.randn(waveform.shape, generator=generator).to(waveform)
    level = waveform.square().mean().sqrt() * 10 ** (-decibels / 20)
    return waveform + level * noise


def check_waveform_changes(noise: Any, roll: Any, gain: Any, mixup: Any, mixup_alpha: Any) -> None:
    """Refuses values that the functions above cannot use. Raises ConfigError."""
    pair = isinstance(noise, (tuple, list)) and len(noise) == 2 and all(map(is_real, noise)) and noise[0] <= noise[1]
    if noise is not None and not pair:
        raise ConfigError(
            f"got noise={noise!r}, expected the lowest and the highest signal-to-noise ratio in dB, such as (10, 40), "
            "or None."
        )
    for name, value, unit in (("roll", roll, "seconds such as 0.1"), ("gain", gain, "decibels such as 6")):
        if not (is_real(value) and value >= 0):
            raise ConfigError(f"got {name}={value!r}, expected {unit}, or 0 for none.")
    if not (is_real(mixup) and 0 <= mixup <= 1):
        raise ConfigError(f"got mixup={mixup!r}, expected the share of clips that are mixed, from 0 to 1.")
    if not (is_real(mixup_alpha) and mixup_alpha > 0):
        raise ConfigError(f"got mixup_alpha={mixup_alpha!r}, expected a positive number such as 10.")


def middle(waveform: Tensor, samples: int) -> Tensor:
    """The middle piece of a clip, (T,) -> (samples,). A clip that is not longer stays whole."""
    first = max(0, len(waveform) - samples) // 2
    return waveform[first : first + samples]


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
