"""Splits of clips that keep groups (speakers, recordings) together and classes balanced, as far as both can be had."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adapterbank.errors import ConfigError


def split_groups(
    labels: Sequence[tuple[str, ...]], groups: Sequence[tuple[str, ...]], fractions: Sequence[float], seed: int
) -> list[list[int]]:
    """Deal the clips into parts of about these sizes; clips that share a group always land in the same part.

    Groups are dealt from the largest to the smallest, each to the part that lacks its classes most. Of a class with few
    groups the part with the largest fraction gets the first.

    Args:
        labels: of each clip.
        groups: of each clip; clips are kept together if any of their groups is the same, also through a third clip.
        fractions: of the parts; they add up to 1.
        seed: the same seed gives the same parts.

    Returns:
        For each part, the indices of its clips in rising order; a part may be empty.

    Raises:
        ConfigError: the fractions are not positive or do not add up to 1.
    """
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(f"the parts of a split are {list(fractions)}; expected positive fractions that add up to 1.")
    names = {name: column for column, name in enumerate(sorted({name for own in labels for name in own}))}
    counts = np.zeros((len(labels), len(names) + 1))  # clips x classes; the last column counts clips, labelled or not
    counts[:, -1] = 1
    for row, own in enumerate(labels):
        counts[row, [names[name] for name in own]] = 1
    totals = counts.sum(axis=0)
    wanted = np.asarray(fractions)[:, None] * totals
    have = np.zeros_like(wanted)
    parts: list[list[int]] = [[] for _ in fractions]
    units = _connected(groups)
    order = np.random.default_rng(seed).permutation(len(units))
    dealt = sorted((units[i] for i in order), key=len, reverse=True)  # stable: the drawn order decides among equals
    for unit in dealt:
        clips = counts[unit].sum(axis=0)
        # How much the squared relative distance from the wanted counts changes if this part gets the unit.
        change = ((2 * (have - wanted) * clips + clips**2) / totals**2).sum(axis=1)
        part = int(change.argmin())
        have[part] += clips
        parts[part] += unit
    return [sorted(part) for part in parts]


def _connected(groups: Sequence[tuple[str, ...]]) -> list[list[int]]:
    """Clips that must stay together, as lists of indices: connected components of clips that share a group."""
    parent = list(range(len(groups)))

    def root(clip: int) -> int:
        while parent[clip] != clip:
            parent[clip] = parent[parent[clip]]
            clip = parent[clip]
        return clip

    first: dict[str, int] = {}
    for clip, own in enumerate(groups):
        for group in own:
            parent[root(clip)] = root(first.setdefault(group, clip))
    units: dict[int, list[int]] = {}
    for clip in range(len(groups)):
        units.setdefault(root(clip), []).append(clip)
    return list(units.values())
