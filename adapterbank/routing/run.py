"""Rows of any tasks and lengths through the frozen AST in one call, each through its own task.

Symbols: B rows of the call, T samples, F frames, M mel bins, D width, C classes of a task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from adapterbank.audio.clips import Clips, about, check_length, is_long, read_clips, windows
from adapterbank.audio.mel import SAMPLE_RATE, log_mel, normalise, pad_frames
from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.encode import Segment, encode
from adapterbank.backbone.kernels import Kernels, choose
from adapterbank.backbone.weights import Geometry
from adapterbank.errors import ConfigError, WaveformError
from adapterbank.routing.plan import Group, by_row, chunks, in_order, plan, stacked
from adapterbank.task.head import pool, tokens_read
from adapterbank.task.task import Task


def mels_of(backbone: Backbone, x: Any, sample_rate: int | Sequence[int] = SAMPLE_RATE) -> list[Tensor]:
    """Clips of any form -> raw log-mels of them as a whole, (F, M) each, on the backbone's device.

    Raises:
        WaveformError: what is no clip, or one of more than `LONGEST_SECONDS`. Others as `as_waveforms`.
    """
    clips = read_clips(x, sample_rate)
    for place, (wave, rate) in enumerate(zip(_there(clips), clips.rates, strict=True)):
        try:
            check_length(wave, rate)
        except WaveformError as error:
            raise about(error, f"clip {place}") from error
    return _mels(_there(clips), clips.rates, backbone.device, backbone.geometry.mel_bins)


def _there(clips: Clips) -> list[Tensor]:
    return [wave for wave in clips.waveforms if wave is not None]


def _mels(waveforms: Sequence[Tensor], rates: Sequence[int], device: torch.device, mel_bins: int) -> list[Tensor]:
    return log_mel([wave.to(device) for wave in waveforms], mel_bins, rates)


def answers(
    clips: Clips,
    run: Callable[[Sequence[int], list[Tensor]], Sequence[Tensor]],
    device: torch.device,
    mel_bins: int,
) -> list[Tensor | None]:
    """What is said of each clip of a call: of one that is longer than `LONGEST_SECONDS`, the mean over its windows.

    The windows of a clip run one after another, so that a recording of any length needs the memory of one minute.

    Args:
        run: given the places of some clips in the call, and a raw log-mel (F, M) for each: one vector per log-mel.

    Returns:
        One vector per clip; None for a clip that was left out.
    """
    found: list[Tensor | None] = [None] * len(clips)
    whole: list[int] = []
    for place, (wave, rate) in enumerate(zip(clips.waveforms, clips.rates, strict=True)):
        if wave is None:
            continue
        if not is_long(wave, rate):
            whole.append(place)
            continue
        pieces = windows(wave, rate)
        parts = [run([place], _mels([piece], [rate], device, mel_bins))[0] for piece in pieces]
        found[place] = torch.stack(parts).mean(dim=0)
    if whole:
        waves = [wave for place in whole if (wave := clips.waveforms[place]) is not None]
        mels = _mels(waves, [clips.rates[place] for place in whole], device, mel_bins)
        for place, answer in zip(whole, run(whole, mels), strict=True):
            found[place] = answer
    return found


def filled(found: Sequence[Tensor | None], sizes: Sequence[int], device: torch.device) -> list[Tensor]:
    """Answers with NaN in the places of clips that were left out, (C,) each; `sizes` are the C of all rows."""
    return [
        torch.full((size,), math.nan, device=device) if answer is None else answer
        for answer, size in zip(found, sizes, strict=True)
    ]


def logits_of(backbone: Backbone, tasks: Sequence[Task], clips: Clips) -> list[Tensor | None]:
    """Each clip of a call through its own task: (C,) per clip, None for one that was left out."""

    def run(places: Sequence[int], mels: list[Tensor]) -> list[Tensor]:
        return run_rows(backbone, [tasks[place] for place in places], mels)

    return answers(clips, run, backbone.device, backbone.geometry.mel_bins)


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
    frames = [t.used_frames(len(mel), s) for t, mel, s in zip(tasks, mels, seconds, strict=True)]
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


def ask(backbone: Backbone, tasks: Sequence[Task], clips: Clips) -> dict[str, Tensor]:
    """All tasks on the same clips, in one batch: {name: logits (B, C)}, NaN for clips that were left out.

    Raises:
        ConfigError: no task, or one twice.
    """
    check_asked(tasks)

    def run(places: Sequence[int], mels: list[Tensor]) -> list[Tensor]:
        """Of each clip the logits of all tasks, one behind the other."""
        return list(torch.cat(list(ask_mels(backbone, tasks, mels).values()), dim=1))

    sizes = [len(task.labels) for task in tasks]
    found = answers(clips, run, backbone.device, backbone.geometry.mel_bins)
    together = torch.stack(filled(found, [sum(sizes)] * len(clips), backbone.device))
    names = [task.name for task in tasks]
    return dict(zip(names, together.split(sizes, dim=1), strict=True))


def check_asked(tasks: Sequence[Task]) -> None:
    """Raises ConfigError for no task, or one twice: answers are a dict with one entry per task."""
    names = [task.name for task in tasks]
    if not names:
        raise ConfigError("got no task to ask, expected at least one name; bank.tasks lists them.")
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ConfigError(
            f"got the task {double!r} twice; ask each once: the answers are a dict with one entry per task."
        )


def ask_mels(backbone: Backbone, tasks: Sequence[Task], mels: Sequence[Tensor]) -> dict[str, Tensor]:
    """All tasks on the same raw log-mels, (F, M) each, in one batch: {name: logits (B, C)}."""
    mels = list(mels)
    rows = run_rows(backbone, [task for task in tasks for _ in mels], mels * len(tasks))
    return {task.name: torch.stack(rows[i * len(mels) : (i + 1) * len(mels)]) for i, task in enumerate(tasks)}


def embed(backbone: Backbone, segment: Segment, clips: Clips, how: str) -> Tensor:
    """Features of clips without a task, (B, D), NaN for those that were left out; see `embed_mels`."""

    def run(places: Sequence[int], mels: list[Tensor]) -> list[Tensor]:
        return list(embed_mels(backbone, segment, mels, how))

    found = answers(clips, run, backbone.device, backbone.geometry.mel_bins)
    return torch.stack(filled(found, [backbone.geometry.width] * len(clips), backbone.device))


def embed_mels(backbone: Backbone, segment: Segment, mels: Sequence[Tensor], how: str = "cls_dist") -> Tensor:
    """Pooled features of raw log-mels with the backbone's own normalisation. B x (F, M) -> (B, D)."""

    def prepared(group: Group, mel: Tensor) -> Tensor:
        return normalise(pad_frames(mel, group.length), backbone.mean, backbone.std)

    groups = plan([None] * len(mels), [backbone.geometry.whole_frames(len(mel)) for mel in mels])
    segments = [replace(segment, read=tokens_read(how))] * len(groups)
    tokens = encode(stacked(groups, mels, prepared), segments, backbone.geometry, choose(backbone.device))
    return torch.stack(in_order(by_row(groups, (pool(x, how) for x in tokens))))
