"""The AST of a task in two parts: below its first site, where only the clip counts, and from there on."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.embedding import embed
from adapterbank.backbone.encode import Segment, final_norm, run_layers
from adapterbank.backbone.sites import NOTHING
from adapterbank.backbone.weights import ASTWeights
from adapterbank.routing.plan import Group, plan
from adapterbank.task.task import Task


def first_block(task: Task, base: ASTWeights) -> int | None:
    """The first block that a task changes, counted from 0; their number if it changes none.

    None if it owns the embedding: then nothing of it is the base's.
    """
    segment = task.segment(base)
    if segment.weights.embed is not base.embed:
        return None
    blocks = zip(segment.sites, segment.weights.blocks, base.blocks, strict=True)
    own = (layer for layer, (sites, mine, frozen) in enumerate(blocks) if mine is not frozen or sites.filled())
    return next(own, len(base.blocks))


def tokens_below(
    backbone: Backbone, task: Task, mels: Sequence[Tensor], blocks: Collection[int], clip_seconds: float | None
) -> dict[int, list[Tensor]]:
    """What enters some blocks of the base alone, padded and normalised as a task's clips are.

    Args:
        mels: raw log-mels, (F, M) each, on the backbone's device.
        blocks: for each of these numbers, up to that of all blocks.
        clip_seconds: in place of the task's own.

    Returns:
        {block: one (N, D) tensor per clip}.
    """
    groups = plan([task] * len(mels), [task.padded_frames(len(mel), clip_seconds) for mel in mels])
    order = torch.tensor([row for group in groups for row in group.rows]).argsort().tolist()
    spectrograms = [torch.stack([task.prepare(mels[row], group.frames) for row in group.rows]) for group in groups]
    segments = [Segment((NOTHING,) * backbone.geometry.layers, backbone.weights)] * len(groups)
    xs = [embed(mel, backbone.weights.embed, backbone.geometry) for mel in spectrograms]
    found, done = {}, 0
    for block in sorted(blocks):
        xs = run_layers(xs, segments, done, block, backbone.geometry)
        rows = [row for x in xs for row in x]
        found[block], done = [rows[place] for place in order], block
    return found


def logits_above(backbone: Backbone, tasks: Sequence[Task], tokens: Sequence[Tensor], first: int) -> list[Tensor]:
    """From what enters block `first` on, each row through its own task.

    Args:
        tasks: one per row.
        tokens: (N, D) each.

    Returns:
        One (C,) vector per row.
    """
    groups = plan(tasks, [len(x) for x in tokens])
    segments = {id(task): task.segment(backbone.weights) for task in tasks}
    mine = [segments[id(group.task)] for group in groups]
    stacked: dict[tuple[int, ...], Tensor] = {}
    for group in groups:
        key = _same(tokens, group)
        if key not in stacked:
            stacked[key] = torch.stack([tokens[row] for row in group.rows])
    xs = [stacked[_same(tokens, group)] for group in groups]
    xs = final_norm(run_layers(xs, mine, first, backbone.geometry.layers, backbone.geometry), mine, backbone.geometry)
    found = [row for group, x in zip(groups, xs, strict=True) for row in group.task.logits(x)]
    order = torch.tensor([row for group in groups for row in group.rows]).argsort().tolist()
    return [found[place] for place in order]


def _same(tokens: Sequence[Tensor], group: Group) -> tuple[int, ...]:
    """Groups with the same key read the same rows: one tensor for both lets a block see that."""
    return tuple(id(tokens[row]) for row in group.rows)
