"""How many frames a clip runs with: whole patches, except at the backbone's own length, which stays as published.

A spectrogram seldom ends where a patch ends. Rounding up to whole patches pads a few frames and loses none; it is what
this library does unless it is told otherwise. Rounding down is what the convolution of AST, and with it the published
codes of AAT and PETL_AST, does: the frames beside the last patch are left out. At a stride of 10 frames, 500 frames
make 602 tokens in the first way and 590 in the second.
"""

from __future__ import annotations

from typing import Literal, get_args

from adapterbank.audio.mel import SAMPLE_RATE, frame_count
from adapterbank.backbone.weights import Geometry

PartialPatches = Literal["pad", "cut"]
PARTIAL_PATCHES: tuple[str, ...] = get_args(PartialPatches)


def clip_frames(clip_seconds: float, geometry: Geometry) -> int:
    """Frames of a clip of `clip_seconds`, rounded up to whole patches.

    The backbone's own `max_frames` is the exception and stays as it is: the published models run with 1024 frames and
    leave the last 8 of them out.
    """
    frames = frame_count(round(clip_seconds * SAMPLE_RATE))
    return frames if frames == geometry.max_frames else geometry.whole_frames(frames)


def used_frames(frames: int, clip_seconds: float | None, geometry: Geometry, partial_patches: str = "pad") -> int:
    """Frames that a clip of `frames` runs with.

    "pad": a clip that is shorter than `clip_seconds` is padded to that length. Any other keeps its length, rounded up
    so that no frame is left over beside the last patch. "cut", as the published codes do it: every clip is padded or
    cut to `clip_seconds`, and then cut so that no frame is left over. No clip is cut below one patch.

    Args:
        frames: F, of the clip's log-mel.
        clip_seconds: the length of the task's clips; None if each clip keeps its own.
        partial_patches: "pad" or "cut".
    """
    if partial_patches == "cut":
        if clip_seconds is not None:
            frames = frame_count(round(clip_seconds * SAMPLE_RATE))
        return geometry.whole_frames(max(geometry.patch, frames - geometry.time_stride + 1))
    least = 0 if clip_seconds is None else clip_frames(clip_seconds, geometry)
    return least if frames <= least else geometry.whole_frames(frames)
