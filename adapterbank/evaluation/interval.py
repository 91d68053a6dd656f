"""How far chance in the choice of the test clips may have moved a score: a 95 % interval of the primary metric, and of
the difference of two tasks on the same clips.

All ways take the clips for independent of each other. Where several clips come from one recording or speaker, the true
interval is wider.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adapterbank.errors import ConfigError
from adapterbank.text import amount

Z = 1.959964  # the normal distribution has 95 % of its mass within so many standard deviations

DRAWS = 1000  # bootstrap samples
_WORK = 400_000_000  # numbers that a bootstrap may go through, some seconds; of large data fewer samples are drawn
_FEWEST = 200


def wilson(share: float, clips: int) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share of independent clips; (NaN, NaN) for none.

    Unlike the normal approximation it stays within [0, 1], and has a width where all clips are right.
    """
    if clips < 1 or math.isnan(share):
        return math.nan, math.nan
    middle = (share + Z**2 / (2 * clips)) / (1 + Z**2 / clips)
    half = Z / (1 + Z**2 / clips) * math.sqrt(share * (1 - share) / clips + Z**2 / (4 * clips**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_interval(mine: Sequence[float], best: Sequence[float], resamples: int = 2000) -> tuple[float, float, float]:
    """Mean of `mine - best` over the same clips, and the ends of its 95 % interval (paired percentile bootstrap).

    Args:
        mine, best: one number per clip, such as 1 for a right answer and 0 for a wrong one.

    Raises:
        ConfigError: they are not of the same clips.
    """
    if len(mine) != len(best) or not len(mine):
        raise ConfigError(f"got {len(mine)} and {amount(len(best), 'clip')}, expected the same clips, at least one.")
    difference = np.asarray(mine, float) - np.asarray(best, float)
    draws = np.random.default_rng(0).integers(len(difference), size=(resamples, len(difference)))
    low, high = np.percentile(difference[draws].mean(1), [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def paired_map_interval(mine: Tensor, best: Tensor, truth: Tensor, *, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mAP of `mine` less that of `best`: both are scored on the same draws of clips.

    Args:
        mine, best: scores (B, C), on the CPU. truth: (B, C) bool. seed: of the draws.

    Returns:
        (NaN, NaN) if no clip has a label.
    """
    return _middle(_drawn_maps(mine, truth, seed) - _drawn_maps(best, truth, seed))


def bootstrapped_map(scores: Tensor, truth: Tensor, *, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap (Efron, 1979) of the mAP: clips are drawn anew with replacement, 1,000 times.

    Of more than 400,000 pairs of a clip and a class fewer samples are drawn, but at least 200.

    Args:
        scores: (B, C), on the CPU. truth: (B, C) bool. seed: of the draws; the same data gives the same interval.

    Returns:
        The 2.5th and 97.5th percentile; (NaN, NaN) if no clip has a label.
    """
    return _middle(_drawn_maps(scores, truth, seed))


def _middle(values: Tensor) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of those (S,) that are no NaN; (NaN, NaN) for none."""
    low, high = values.nanquantile(values.new_tensor([0.025, 0.975])).tolist() if len(values) else (math.nan, math.nan)
    return low, high


def _drawn_maps(scores: Tensor, truth: Tensor, seed: int) -> Tensor:
    """The mAP on each of S draws of clips, (S,) float64. One seed draws the same of as many clips."""
    clips, classes = scores.shape
    occurring = truth.any(dim=0).nonzero().flatten().tolist()
    if not occurring:
        return torch.empty(0, dtype=torch.float64, device="cpu")
    draws = min(DRAWS, max(_FEWEST, _WORK // (clips * classes)))
    generator = torch.Generator(device="cpu").manual_seed(seed)
    drawn = torch.randint(clips, (draws, clips), generator=generator, device="cpu")
    once = torch.ones(1, dtype=torch.float32, device="cpu").expand(draws, clips)
    counts = torch.zeros_like(once).scatter_add_(1, drawn, once)
    total = once.new_zeros(draws, dtype=torch.float64)
    known = torch.zeros_like(total)
    for c in occurring:
        found = _weighted_average_precision(scores[:, c], truth[:, c], counts)
        total += found.nan_to_num(0.0)
        known += ~found.isnan()  # a draw may leave out all clips of a class
    return total / known


def _weighted_average_precision(scores: Tensor, truth: Tensor, counts: Tensor) -> Tensor:
    """Average precision where each clip stands so many times in the data. (B,), (B,) bool, (S, B) -> (S,) float64."""
    ranked, order = scores.sort(descending=True)
    ends = F.pad((ranked[1:] != ranked[:-1]).nonzero().flatten(), (0, 1), value=len(ranked) - 1)
    counts = counts[:, order]
    everyone = counts.cumsum(dim=1)[:, ends].double()  # at the end of each run of equal scores
    hits = (counts * truth[order]).cumsum(dim=1)[:, ends].double()
    new = hits.diff(dim=1, prepend=hits.new_zeros(len(hits), 1))
    return (new * hits / everyone.clamp_min(1)).sum(dim=1) / hits[:, -1]
