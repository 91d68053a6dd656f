"""Rows of any tasks and lengths in one call: rows -> segments of one task and one length -> rows in their order.

The plan of a call depends only on which row has which task and length, never on values, so that changing one task
leaves the layout, and with it every bit of all other rows, as it was.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from adapterbank.backbone.ast import Geometry, Segment, encode
from adapterbank.backbone.checkpoints import Backbone
from adapterbank.backbone.frontend import SAMPLE_RATE, as_waveforms, log_mel, normalise, pad_frames
from adapterbank.backbone.packed import alike
from adapterbank.errors import ConfigError
from adapterbank.methods.head import pool, tokens_read
from adapterbank.task import Task

CHUNK_TOKENS = 1024  # per thread: with more, activations leave the caches between two operations


@dataclass(frozen=True)
class Group:
    """Rows of one task and one length: `rows` are their places in the caller's batch."""

    task: Task
    frames: int
    rows: tuple[int, ...]


def mels_of(backbone: Backbone, x: Tensor | Sequence[Tensor], sample_rate: int = SAMPLE_RATE) -> list[Tensor]:
    """Waveforms (B, T), or B of any lengths -> raw log-mels, (F, M) each, on the backbone's device.

    Raises:
        WaveformError: not a batch of finite, non-empty waveforms.
    """
    waveforms = [w.to(backbone.device) for w in as_waveforms(x)]
    return log_mel(waveforms, backbone.geometry.mel_bins, sample_rate)


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


def run(
    backbone: Backbone,
    tasks: Sequence[Task],
    mels: Sequence[Tensor],
    clip_seconds: Sequence[float | None] | None = None,
    *,
    pooled: bool = False,
) -> list[Tensor]:
    """Runs each row through its own task.

    Rows of several tasks that are given the same log-mels (the same objects), with one padding and normalisation, share
    all that lies below the first site of each task: see `encode`.

    Args:
        tasks: one per row.
        mels: raw log-mels, (F, M) each, on the backbone's device.
        clip_seconds: per row, in place of the tasks' own.
        pooled: return what the heads would read instead of logits.

    Returns:
        One (C,) or (D,) vector per row.
    """
    seconds = [task.spec.clip_seconds for task in tasks] if clip_seconds is None else clip_seconds
    frames = [t.padded_frames(len(mel), s) for t, mel, s in zip(tasks, mels, seconds, strict=True)]
    segments = {id(task): task.segment(backbone.weights) for task in tasks}
    outputs: list[Tensor | None] = [None] * len(mels)
    for groups in chunks(plan(tasks, frames), mels, backbone.geometry, backbone.device):
        for group, vectors in _together(backbone, groups, segments, mels, pooled):
            for row, vector in zip(group.rows, vectors, strict=True):
                outputs[row] = vector
    return [vector for vector in outputs if vector is not None]


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


def _together(
    backbone: Backbone, groups: Sequence[Group], segments: Mapping[int, Segment], mels: Sequence[Tensor], pooled: bool
) -> Iterator[tuple[Group, Tensor]]:
    """(group, its vectors (R, C) or (R, D)) of one pass through the backbone."""
    heard = [(g.frames, g.task.mean_std, *(id(mels[row]) for row in g.rows)) for g in groups]
    prepared: dict[Hashable, Tensor] = {}
    for key, g in zip(heard, groups, strict=True):
        if key not in prepared:
            prepared[key] = torch.stack([g.task.prepare(mels[row], g.frames) for row in g.rows])
    tokens = encode([prepared[key] for key in heard], [segments[id(g.task)] for g in groups], backbone.geometry)
    for group, x in zip(groups, tokens, strict=True):
        yield group, group.task.pooled(x) if pooled else group.task.logits(x)


def ask(
    backbone: Backbone, tasks: Sequence[Task], x: Tensor | Sequence[Tensor], sample_rate: int = SAMPLE_RATE
) -> dict[str, Tensor]:
    """All tasks on the same clips, in one batch: {name: logits (B, C)}.

    Raises:
        ConfigError: no task, or one twice. WaveformError.
    """
    names = [task.name for task in tasks]
    if not names:
        raise ConfigError("got no task to ask, expected at least one name; bank.tasks lists them.")
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ConfigError(
            f"got the task {double!r} twice; ask each once: the answers are a dict with one entry per task."
        )
    mels = mels_of(backbone, x, sample_rate)
    rows = run(backbone, [task for task in tasks for _ in mels], mels * len(tasks))
    return {name: torch.stack(rows[i * len(mels) : (i + 1) * len(mels)]) for i, name in enumerate(names)}


def embed_mels(backbone: Backbone, segment: Segment, mels: Sequence[Tensor], how: str = "cls_dist") -> Tensor:
    """Pooled features of raw log-mels with the backbone's own normalisation. B x (F, M) -> (B, D)."""
    by_length: dict[int, list[int]] = {}
    for row, mel in enumerate(mels):
        by_length.setdefault(backbone.geometry.whole_frames(len(mel)), []).append(row)
    groups = sorted(by_length.items())
    spectrograms = [
        torch.stack([normalise(pad_frames(mels[row], frames), backbone.mean, backbone.std) for row in rows])
        for frames, rows in groups
    ]
    segment = replace(segment, read=tokens_read(how))
    tokens = encode(spectrograms, [segment] * len(groups), backbone.geometry)
    order = torch.tensor([row for _, rows in groups for row in rows])
    return torch.cat([pool(x, how) for x in tokens])[order.argsort().to(tokens[0].device)]


class HasBackbone(Protocol):
    @property
    def backbone(self) -> Backbone: ...


class TaskModule(nn.Module):
    """One task as an optimiser, Accelerate or torch.compile sees it: its parameters are the task's, no others.

    Move it with `bank.to(device)`: the frozen tensors are the bank's and do not follow `module.to`.

    Args:
        bank: whose backbone of the moment it runs on; none of its tensors becomes a parameter or a buffer here.

    Shapes: waveforms (B, T) or B one-dimensional tensors of any lengths -> logits (B, C), with gradients.
    """

    def __init__(self, task: Task, bank: HasBackbone):
        super().__init__()
        self.task = task
        self._bank = bank

    def forward(self, x: Tensor | Sequence[Tensor], sample_rate: int = SAMPLE_RATE) -> Tensor:
        backbone = self._bank.backbone
        mels = mels_of(backbone, x, sample_rate)
        return torch.stack(run(backbone, [self.task] * len(mels), mels))
