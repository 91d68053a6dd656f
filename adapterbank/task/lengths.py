"""How many frames a clip runs with: whole patches, except at the backbone's own length, which stays as published."""

from __future__ import annotations

from adapterbank.audio.mel import SAMPLE_RATE, frame_count
from adapterbank.backbone.weights import Geometry


def clip_frames(clip_seconds: float, geometry: Geometry) -> int:
    """Frames of a clip of `clip_seconds`, rounded up to whole patches.

    The backbone's own `max_frames` is the exception and stays as it is: the published models run with 1024 frames and
    leave the last 8 of them out.
    """
    frames = frame_count(round(clip_seconds * SAMPLE_RATE))
    return frames if frames == geometry.max_frames else geometry.whole_frames(frames)


def padded_frames(frames: int, clip_seconds: float | None, geometry: Geometry) -> int:
    """Frames that a clip of `frames` is padded to.

    A clip that is shorter than `clip_seconds` is padded to that length. Any other keeps its length, rounded up so that
    no frame is left over beside the last patch.

    Args:
        frames: F, of the clip's log-mel.
        clip_seconds: the length of the task's clips; None if each clip keeps its own.
    """
    least = 0 if clip_seconds is None else clip_frames(clip_seconds, geometry)
    return least if frames <= least else geometry.whole_frames(frames)
