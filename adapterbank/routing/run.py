"""Rows of any tasks and lengths in one call: rows -> segments of one task and one length -> rows in their order.

The plan of a call depends only on which row has which task and length, never on values, so that changing one task
leaves the layout, and with it every bit of all other rows, as it was.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from adapterbank.audio.mel import SAMPLE_RATE, as_waveforms, log_mel, normalise, pad_frames
from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.encode import Segment, encode
from adapterbank.errors import ConfigError
from adapterbank.routing.plan import Group, chunks, plan
from adapterbank.task.head import pool, tokens_read
from adapterbank.task.task import Task


def mels_of(backbone: Backbone, x: Tensor | Sequence[Tensor], sample_rate: int = SAMPLE_RATE) -> list[Tensor]:
    """Waveforms (B, T), or B of any lengths -> raw log-mels, (F, M) each, on the backbone's device.

    Raises:
        WaveformError: not a batch of finite, non-empty waveforms.
    """
    waveforms = [w.to(backbone.device) for w in as_waveforms(x)]
    return log_mel(waveforms, backbone.geometry.mel_bins, sample_rate)


def run_rows(
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
    rows = run_rows(backbone, [task for task in tasks for _ in mels], mels * len(tasks))
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
