"""Successive halving (Jamieson and Talwalkar, 2016): many settings are trained shortly, the better ones longer.

All settings of a rung are trained for the same number of steps on every dataset. Those with the best mean over the
datasets go on to the next rung, where they are trained anew for longer: a learning-rate schedule has to end with the
training, so that a short training can't be continued into a long one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from adapterbank.errors import ConfigError
from adapterbank.text import amount

Setting = Mapping[str, Any]  # options of `fit`
Run = Callable[[Setting, str, int], float]  # (setting, dataset, steps) -> its score on validation clips


@dataclass(frozen=True)
class Rung:
    """How long settings are trained, and how many of them.

    Attributes:
        steps: of the optimiser.
        settings: how many enter this rung.
    """

    steps: int
    settings: int


def halve(settings: Sequence[Setting], datasets: Sequence[str], rungs: Sequence[Rung], run: Run) -> list[Setting]:
    """The settings of the last rung, the best first; the mean of their scores over the datasets decides.

    Args:
        settings: all candidates, the one to prefer in a tie first.

    Raises:
        ConfigError: no setting, dataset or rung, or a rung that is larger than the one before it.
    """
    sizes = [len(settings), *(rung.settings for rung in rungs)]
    if not datasets or len(sizes) < 2 or min(sizes) < 1 or any(a < b for a, b in pairwise(sizes)):
        raise ConfigError(
            f"got {amount(len(settings), 'setting')}, {amount(len(datasets), 'dataset')} and rungs of {sizes[1:]} "
            "settings; expected at least one of each, and no rung larger than the one before it."
        )
    left = list(settings)
    for rung, following in zip(rungs, [*rungs[1:], None], strict=True):
        left = left[: rung.settings]
        scores = [math.fsum(run(setting, data, rung.steps) for data in datasets) / len(datasets) for setting in left]
        order = sorted(range(len(left)), key=lambda place: -scores[place])  # stable: a tie keeps their order
        left = [left[place] for place in order][: None if following is None else following.settings]
    return left
