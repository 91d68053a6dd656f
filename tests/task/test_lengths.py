"""How many frames a clip runs with: whole patches, and a task's clip length at least."""

from __future__ import annotations

import pytest

from adapterbank.backbone.weights import Geometry
from adapterbank.task.lengths import clip_frames, padded_frames
from adapterbank.task.task import Task, TaskSpec


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [(1.0, 106), (1.28, 126), (1.3, 136), (10.255, 1024), (0.001, 16), (5.0, 506)],
)
def test_clip_seconds_become_whole_patches_and_the_backbones_own_length_stays(seconds, frames):
    geometry = Geometry()  # stride 10: 16 + 10 n frames, and 1024
    assert clip_frames(seconds, geometry) == frames


@pytest.mark.parametrize("seconds", [0.001, 0.5, 1.28, None])
def test_a_clip_never_loses_a_frame_and_gains_less_than_a_stride_beyond_the_tasks_length(seconds, small_geometry):
    least = 0 if seconds is None else clip_frames(seconds, small_geometry)
    for frames in range(1, 200):
        padded = padded_frames(frames, seconds, small_geometry)
        assert padded >= max(frames, least)
        assert padded == least or padded - max(frames, small_geometry.patch) < small_geometry.time_stride


def test_shorter_clips_are_padded_to_the_tasks_length_and_longer_ones_keep_theirs(small_backbone):
    task = Task(TaskSpec("notes", "aat_ms", ("a", "b")), small_backbone)  # stride 16: 16 n frames
    assert [task.padded_frames(frames, 0.5) for frames in (1, 48, 49)] == [48, 48, 64]
    assert [task.padded_frames(frames, None) for frames in (1, 16, 17)] == [16, 16, 32]
