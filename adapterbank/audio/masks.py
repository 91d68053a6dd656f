"""SpecAugment: bands of a spectrogram are hidden, so that no single band decides what a model learns."""

from __future__ import annotations

import torch
from torch import Tensor


def spec_augment(
    mel: Tensor, freq_mask: int, time_mask: float | int, generator: torch.Generator, fill: float = 0.0
) -> Tensor:
    """SpecAugment (Park et al., 2019): one band of mel bins and one of frames of each clip are hidden.

    A band's width is drawn first, from 0 to the widest allowed, then its place among all where it fits.

    Args:
        mel: log-mels of one clip (F, M), or of B clips (B, F, M), each of which draws bands of its own. Not changed.
        freq_mask: the widest band of mel bins.
        time_mask: the widest band of frames: a float is a share of all frames, an int a number of frames.
        generator: makes every draw.
        fill: what stands in a band. AST and AAT have 0 in log-mels that are not normalised yet; the mean by which they
            will be normalised hides a band as SpecAugment means it.

    Returns:
        A masked copy of the same shape.
    """
    if mel.ndim == 3:
        return torch.stack([spec_augment(clip, freq_mask, time_mask, generator, fill) for clip in mel])
    mel = mel.clone()
    frames, bins = mel.shape
    widest = round(time_mask * frames) if isinstance(time_mask, float) else min(time_mask, frames)
    start, width = _band(bins, min(freq_mask, bins), generator)
    mel[:, start : start + width] = fill
    start, width = _band(frames, widest, generator)
    mel[start : start + width] = fill
    return mel


def _band(size: int, widest: int, generator: torch.Generator) -> tuple[int, int]:
    """Start and width of a band inside `size` places."""
    width = int(torch.randint(widest + 1, (), generator=generator))
    return int(torch.randint(size - width + 1, (), generator=generator)), width
