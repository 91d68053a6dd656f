"""Metrics of an order: how far up the clips of a class stand when all clips are ranked by a score, class by class.

Clips with equal scores share one threshold, so that neither metric depends on the order of the data.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

AT_ONCE = 2_000_000  # scores that are ranked together; each takes about 50 bytes meanwhile


def average_precisions(scores: Tensor, truth: Tensor) -> Tensor:
    """Area under each class's precision-recall curve as a sum of steps, as scikit-learn defines it.

    (B, C), (B, C) bool -> (C,) float64; NaN for a class without clips.
    """
    return _by_class(_average_precisions, scores, truth)


def _average_precisions(scores: Tensor, truth: Tensor) -> Tensor:
    positive, _, last = _ranked(scores, truth)
    hits = positive.cumsum(dim=0)
    places = torch.arange(1, len(scores) + 1, device=scores.device)[:, None]
    precision = (hits / places).gather(0, last)  # at the end of the run of equal scores that the clip is in
    return (precision * positive).sum(dim=0) / hits[-1]


def roc_areas(scores: Tensor, truth: Tensor) -> Tensor:
    """Area under each class's ROC curve: how often a clip of the class stands above another, ties counting one half.

    (B, C), (B, C) bool -> (C,) float64; NaN for a class that no clip has, or every clip.
    """
    return _by_class(_roc_areas, scores, truth)


def _roc_areas(scores: Tensor, truth: Tensor) -> Tensor:
    positive, first, last = _ranked(scores, truth)
    count = positive.sum(dim=0)
    others = len(scores) - count
    from_below = len(scores) - (first + last) / 2  # mean rank of the run that the clip is in, the lowest score being 1
    return ((from_below * positive).sum(dim=0) - count * (count + 1) / 2) / (count * others)


def _by_class(measure: Callable[[Tensor, Tensor], Tensor], scores: Tensor, truth: Tensor) -> Tensor:
    """A few classes at a time, so that the memory stays bounded: (B, C), (B, C) -> (C,)."""
    width = max(1, AT_ONCE // max(1, len(scores)))
    parts = zip(scores.split(width, dim=1), truth.split(width, dim=1), strict=True)
    return torch.cat([measure(some, theirs) for some, theirs in parts])


def _ranked(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The clips of each class from the highest score down.

    Returns:
        Three of (B, C): the truth in that order in float64, and the first and last place of the run of equal scores
        that each place belongs to.
    """
    ranked, order = scores.sort(dim=0, descending=True)
    places = torch.arange(len(scores), device=scores.device)[:, None].expand_as(order)
    differs = ranked[1:] != ranked[:-1]
    ends = torch.cat([differs, differs.new_ones(1, scores.shape[1])])
    starts = torch.cat([differs.new_ones(1, scores.shape[1]), differs])
    first = torch.where(starts, places, 0).cummax(dim=0).values
    last = torch.where(ends, places, len(scores)).flip(0).cummin(dim=0).values.flip(0)
    return truth.gather(0, order).double(), first, last


def mean_over_known(values: Tensor) -> Tensor:
    """Mean of what is not NaN; NaN if nothing else is there. (C,) -> ()."""
    return values[~values.isnan()].mean()
