"""How many frames a clip runs with."""

from __future__ import annotations

from adapterbank.audio.mel import SAMPLE_RATE, frame_count
from adapterbank.backbone.weights import Geometry


def clip_frames(clip_seconds: float, geometry: Geometry) -> int:
    """Frames of a clip of this length, as whole patches.

    The backbone's own `max_frames` is kept as it is: there the published models leave the last 8 of 1024 frames out.
    """
    frames = frame_count(round(clip_seconds * SAMPLE_RATE))
    return frames if frames == geometry.max_frames else geometry.whole_frames(frames)
