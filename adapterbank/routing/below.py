"""The AST of a task in two parts: below its first site, where only the clip counts, and from there on.

Symbols: F frames, M mel bins, N tokens, D width, C classes of a task.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.encode import Segment, embedded, final_norm, run_layers
from adapterbank.backbone.kernels import choose
from adapterbank.backbone.sites import NOTHING
from adapterbank.backbone.weights import ASTWeights
from adapterbank.routing.plan import Group, by_row, in_order, plan, stacked
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

    def prepared(group: Group, mel: Tensor) -> Tensor:
        return task.prepare(mel, group.length)

    geometry, kernels = backbone.geometry, choose(backbone.device)
    groups = plan([task] * len(mels), [task.used_frames(len(mel), clip_seconds) for mel in mels])
    segments = [Segment((NOTHING,) * geometry.layers, backbone.weights)] * len(groups)
    xs = embedded(stacked(groups, mels, prepared), segments, geometry, kernels)
    found, done = {}, 0
    for block in sorted(blocks):
        xs = run_layers(xs, segments, done, block, geometry, kernels)
        found[block], done = in_order(by_row(groups, xs)), block
    return found


def logits_above(
    backbone: Backbone, tasks: Sequence[Task], tokens: Sequence[Tensor], first: int, *, pooled: bool = False
) -> list[Tensor]:
    """From what enters block `first` on, each row through its own task.

    Args:
        tasks: one per row.
        tokens: (N, D) each.
        pooled: return what the heads would read instead of logits.

    Returns:
        One (C,) or (D,) vector per row.
    """
    geometry = backbone.geometry
    groups = plan(tasks, [len(x) for x in tokens])
    segments = {id(task): task.segment(backbone.weights) for task in tasks}
    mine = [segments[id(group.task)] for group in groups]
    xs = run_layers(stacked(groups, tokens), mine, first, geometry.layers, geometry, choose(backbone.device))
    outputs = final_norm(xs, mine, geometry)
    pairs = zip(groups, outputs, strict=True)
    return in_order(by_row(groups, (g.task.pooled(x) if pooled else g.task.logits(x) for g, x in pairs)))
