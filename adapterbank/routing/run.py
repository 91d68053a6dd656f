"""Rows of any tasks and lengths through the frozen AST in one call, each through its own task.

Symbols: B rows of the call, T samples, F frames, M mel bins, D width, C classes of a task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from adapterbank.audio.mel import SAMPLE_RATE, as_waveforms, log_mel, normalise, pad_frames
from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.encode import Segment, encode
from adapterbank.backbone.kernels import Kernels, choose
from adapterbank.backbone.weights import Geometry
from adapterbank.errors import ConfigError
from adapterbank.routing.plan import Group, by_row, chunks, in_order, plan, stacked
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
    kernels = choose(backbone.device)
    segments = {id(task): task.segment(backbone.weights) for task in tasks}

    def answers(groups: Sequence[Group], spectrograms: list[Tensor]) -> list[Tensor]:
        tokens = encode(spectrograms, [segments[id(g.task)] for g in groups], backbone.geometry, kernels)
        return [g.task.pooled(x) if pooled else g.task.logits(x) for g, x in zip(groups, tokens, strict=True)]

    return run_planned(tasks, mels, answers, backbone.geometry, kernels, clip_seconds)


def run_planned(
    tasks: Sequence[Task],
    mels: Sequence[Tensor],
    answers: Callable[[Sequence[Group], list[Tensor]], list[Tensor]],
    geometry: Geometry,
    kernels: Kernels,
    clip_seconds: Sequence[float | None] | None = None,
) -> list[Tensor]:
    """Groups rows, pads and normalises their log-mels, has all groups answered, and returns answers row by row.

    Args:
        tasks: one per row.
        mels: raw log-mels, (F, M) each.
        answers: of some groups and their spectrograms, (R, F, M) each: one tensor (R, ...) per group.
        clip_seconds: per row, in place of the tasks' own.
    """
    seconds = [task.spec.clip_seconds for task in tasks] if clip_seconds is None else clip_seconds
    frames = [t.padded_frames(len(mel), s) for t, mel, s in zip(tasks, mels, seconds, strict=True)]
    # In training mode the BatchNorm of an adapter takes its statistics from all rows, which must then run together.
    room = None if any(task.training for task in tasks) else kernels.chunk_tokens
    found: dict[int, Tensor] = {}
    for groups in chunks(plan(tasks, frames), mels, geometry, room):
        found |= by_row(groups, answers(groups, stacked(groups, mels, _prepared, _heard)))
    return in_order(found)


def _prepared(group: Group, mel: Tensor) -> Tensor:
    prepared: Tensor = group.task.prepare(mel, group.length)
    return prepared


def _heard(group: Group) -> tuple[int, tuple[float, float]]:
    return group.length, group.task.mean_std


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

    def prepared(group: Group, mel: Tensor) -> Tensor:
        return normalise(pad_frames(mel, group.length), backbone.mean, backbone.std)

    groups = plan([None] * len(mels), [backbone.geometry.whole_frames(len(mel)) for mel in mels])
    segments = [replace(segment, read=tokens_read(how))] * len(groups)
    tokens = encode(stacked(groups, mels, prepared), segments, backbone.geometry, choose(backbone.device))
    return torch.stack(in_order(by_row(groups, (pool(x, how) for x in tokens))))
