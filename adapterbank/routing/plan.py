"""Which rows run together, and how they come back in their order.

A call may mix tasks and clip lengths. Rows of one task and one length form a group; the tensors of a group are stacked,
all groups run at once, and every output goes back to the place of its row. The plan depends only on which row has which
task and length, never on values. So changing one task leaves the layout, and with it every bit of all other rows, as it
was.

Symbols: R rows of a group, F frames, M mel bins.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from adapterbank.backbone.layout import alike
from adapterbank.backbone.weights import Geometry


@dataclass(frozen=True)
class Group:
    """Rows of one task and one length.

    Attributes:
        task: whose rows they are; None for the frozen AST alone.
        length: what all of them have, such as padded frames.
        rows: their places in the caller's batch.
    """

    task: Any
    length: int
    rows: tuple[int, ...]


def plan(tasks: Sequence[Any], lengths: Sequence[int]) -> list[Group]:
    """Groups by length, so that attention meets neighbours of one size, then in the order of their tasks' appearance.

    Args:
        tasks: one per row; rows of one task hold the same object.
        lengths: of each row, such as padded frames.
    """
    members: dict[tuple[int, int], list[int]] = {}
    for row, (place, length) in enumerate(zip(alike(tasks), lengths, strict=True)):
        members.setdefault((length, place), []).append(row)
    return [Group(tasks[rows[0]], length, tuple(rows)) for (length, _), rows in sorted(members.items())]


def stacked(
    groups: Sequence[Group],
    rows: Sequence[Tensor],
    prepare: Callable[[Group, Tensor], Tensor] = lambda group, row: row,
    heard: Callable[[Group], Hashable] = lambda group: None,
) -> list[Tensor]:
    """One tensor (R, ...) per group.

    Groups that read the same rows (the same objects) in the same way get the same tensor: from that the backbone sees
    what they have in common.

    Args:
        rows: one tensor per row of the caller's batch.
        prepare: what a group makes of a row, such as padding and normalising it.
        heard: equal for groups whose `prepare` gives the same.
    """
    made: dict[Hashable, Tensor] = {}
    found = []
    for group in groups:
        key = heard(group), tuple(id(rows[row]) for row in group.rows)
        if key not in made:
            made[key] = torch.stack([prepare(group, rows[row]) for row in group.rows])
        found.append(made[key])
    return found


def by_row(groups: Iterable[Group], outputs: Iterable[Tensor]) -> dict[int, Tensor]:
    """The outputs of the groups, (R, ...) each, by the places of their rows."""
    return {row: x for group, xs in zip(groups, outputs, strict=True) for row, x in zip(group.rows, xs, strict=True)}


def in_order(outputs: Mapping[int, Tensor]) -> list[Tensor]:
    """Outputs by row, in the order of the caller's batch."""
    return [outputs[row] for row in range(len(outputs))]


def chunks(groups: Sequence[Group], mels: Sequence[Tensor], geometry: Geometry, room: int | None) -> list[list[Group]]:
    """Groups that run one after another, of about `room` tokens at once; None runs all of them together.

    A clip that several groups hear is in the same chunk for all of them, and counts once for all that pad and normalise
    alike: below their first sites it runs once.

    Args:
        mels: one per row; those that are one object are one clip.
    """
    if room is None:
        return [list(groups)]
    heard: dict[int, list[tuple[int, int]]] = {}  # clip -> (group, row)
    for number, group in enumerate(groups):
        for row in group.rows:
            heard.setdefault(id(mels[row]), []).append((number, row))
    parts: list[dict[int, list[int]]] = []  # rows of each group
    size = room
    for places in heard.values():
        streams = {(groups[number].length, groups[number].task.mean_std) for number, _ in places}
        tokens = sum(geometry.tokens(frames) for frames, _ in streams)
        if size + tokens > room:
            parts.append({})
            size = 0
        for number, row in places:
            parts[-1].setdefault(number, []).append(row)
        size += tokens
    return [[replace(groups[number], rows=tuple(rows)) for number, rows in sorted(part.items())] for part in parts]
