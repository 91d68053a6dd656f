"""Which rows run together: rows -> groups of one task and one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapterbank.backbone.layout import alike
from adapterbank.backbone.weights import Geometry
from adapterbank.task.task import Task

CHUNK_TOKENS = 1024  # per thread: with more, activations leave the caches between two operations


@dataclass(frozen=True)
class Group:
    """Rows of one task and one length: `rows` are their places in the caller's batch."""

    task: Task
    frames: int
    rows: tuple[int, ...]


def plan(tasks: Sequence[Task], frames: Sequence[int]) -> list[Group]:
    """Groups by length, so that attention meets neighbours of one size, then in the order of their tasks' appearance.

    Args:
        tasks: one per row.
        frames: padded length per row.
    """
    members: dict[tuple[int, int], list[int]] = {}
    for row, (place, length) in enumerate(zip(alike(tasks), frames, strict=True)):
        members.setdefault((length, place), []).append(row)
    return [Group(tasks[rows[0]], length, tuple(rows)) for (length, _), rows in sorted(members.items())]


def chunks(
    groups: Sequence[Group], mels: Sequence[Tensor], geometry: Geometry, device: torch.device
) -> list[list[Group]]:
    """Groups that run one after another: on the CPU without gradients about as many tokens at once as the caches hold.

    A clip that several groups hear is in the same chunk for all of them, and counts once for all that pad and normalise
    alike: below their first sites it runs once.

    Args:
        mels: one per row; those that are one object are one clip.
    """
    if torch.is_grad_enabled() or device.type != "cpu" or any(g.task.training for g in groups):
        return [list(groups)]
    heard: dict[int, list[tuple[int, int]]] = {}  # clip -> (group, row)
    for number, group in enumerate(groups):
        for row in group.rows:
            heard.setdefault(id(mels[row]), []).append((number, row))
    room = CHUNK_TOKENS * torch.get_num_threads()
    parts: list[dict[int, list[int]]] = []  # rows of each group
    size = room
    for places in heard.values():
        streams = {(groups[number].frames, groups[number].task.mean_std) for number, _ in places}
        tokens = sum(geometry.tokens(frames) for frames, _ in streams)
        if size + tokens > room:
            parts.append({})
            size = 0
        for number, row in places:
            parts[-1].setdefault(number, []).append(row)
        size += tokens
    return [[replace(groups[number], rows=tuple(rows)) for number, rows in sorted(part.items())] for part in parts]
