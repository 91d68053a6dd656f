"""How many frames a clip runs with: whole patches, and a task's clip length at least."""

from __future__ import annotations

import pytest
import torch

from adapterbank import fit
from adapterbank.backbone.weights import Geometry
from adapterbank.bank import AdapterBank
from adapterbank.errors import UnknownNameError
from adapterbank.task.lengths import clip_frames, used_frames
from adapterbank.task.spec import TaskSpec
from adapterbank.task.task import Task


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
        padded = used_frames(frames, seconds, small_geometry)
        assert padded >= max(frames, least)
        assert padded == least or padded - max(frames, small_geometry.patch) < small_geometry.time_stride


def test_shorter_clips_are_padded_to_the_tasks_length_and_longer_ones_keep_theirs(small_backbone):
    task = Task(TaskSpec("notes", "aat_ms", ("a", "b")), small_backbone)  # stride 16: 16 n frames
    assert [task.used_frames(frames, 0.5) for frames in (1, 48, 49)] == [48, 48, 64]
    assert [task.used_frames(frames, None) for frames in (1, 16, 17)] == [16, 16, 32]


PUBLISHED = {512: 602, 500: 590, 400: 470, 128: 146, 100: 110, 1024: 1214, 3000: 3590}  # frames -> tokens


@pytest.mark.parametrize(("frames", "tokens"), PUBLISHED.items())
def test_cut_clips_have_the_tokens_of_the_published_codes(frames, tokens):
    geometry = Geometry()
    for clip in (frames // 2, frames, 2 * frames):  # padded or cut to the recipe's frames
        seconds = ((frames - 1) * 160 + 400) / 16_000
        assert geometry.tokens(used_frames(clip, seconds, geometry, "cut")) == tokens
    assert geometry.tokens(used_frames(frames, None, geometry, "cut")) == tokens


def test_padded_clips_have_one_column_more_where_a_patch_is_left_over():
    geometry = Geometry()
    found = {frames: geometry.tokens(used_frames(frames, None, geometry)) for frames in (500, 400, 100, 3000)}
    assert found == {500: 602, 400: 482, 100: 122, 3000: 3602}


def test_a_cut_clip_loses_less_than_a_stride_and_is_one_patch_at_least(small_geometry):
    for frames in range(1, 200):
        cut = used_frames(frames, None, small_geometry, "cut")
        assert cut == small_geometry.whole_frames(cut)
        assert cut == small_geometry.patch or 0 <= frames - cut < small_geometry.time_stride


def samples(frames):
    return (frames - 1) * 160 + 400


@pytest.fixture
def cutting(small_bank):
    """A bank with one task twice: clips of its own length, padded and cut; and one of half a second, cut."""
    for name, options in {"pad": {}, "cut": {"partial_patches": "cut"}}.items():
        task = small_bank.add_task(name, "aat_ms", num_classes=2, seed=1, layers=[1], **options)
        if name == "cut":
            task.load_state_dict(small_bank.task("pad").state_dict())
    small_bank.add_task("half", "aat_ms", num_classes=2, clip_seconds=0.5, partial_patches="cut")
    return small_bank


def test_a_cut_task_hears_nothing_beyond_its_last_whole_patch_wherever_it_runs(cutting):
    generator = torch.Generator().manual_seed(0)
    long = torch.randn(samples(40), generator=generator) / 10  # 2 whole patches of 16 frames, and 8 frames beside them
    short = long[: samples(32)]
    for run in (
        lambda x: cutting([x], "cut"),
        lambda x: cutting.ask([x], ["cut"])["cut"],
        lambda x: cutting([x, x], ["cut", "pad"])[0][None],
        cutting.task_module("cut"),
        cutting.compile_task("cut"),
    ):
        argument = [long] if isinstance(run, torch.nn.Module) else long
        other = [short] if isinstance(run, torch.nn.Module) else short
        torch.testing.assert_close(run(argument), run(other), rtol=0, atol=1e-6)
    assert not torch.allclose(cutting([long], "pad"), cutting([short], "pad"), atol=1e-6)
    torch.testing.assert_close(cutting([short], "pad"), cutting([short], "cut"), rtol=0, atol=1e-6)


def test_a_cut_task_with_clip_seconds_hears_that_long_and_no_longer(cutting):
    long = torch.randn(16_000, generator=torch.Generator().manual_seed(0)) / 10
    torch.testing.assert_close(cutting([long], "half"), cutting([long[:8_000]], "half"), rtol=0, atol=1e-6)


def test_kept_activations_of_a_cut_task_are_those_of_cut_clips(cutting):
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(samples(40), generator=generator) / 10, i % 2) for i in range(6)]
    logits = {}
    for how in ("cut", "pad"):
        for cache in (None, "memory"):
            cutting.add_task("kept", "aat_ms", num_classes=2, layers=[1], partial_patches=how)
            options = {"epochs": 1, "batch_size": 2, "freq_mask": 0, "time_mask": 0, "precision": "fp32"}
            fit(cutting, "kept", data, cache=cache, **options)
            logits[how, cache] = cutting([clip for clip, _ in data], "kept")
            cutting.remove_task("kept")
        torch.testing.assert_close(logits[how, "memory"], logits[how, None], rtol=0, atol=1e-4)
    assert not torch.allclose(logits["cut", None], logits["pad", None], atol=1e-3)


def test_the_choice_is_saved_and_a_task_described_without_it_pads(cutting, tmp_path):
    cutting.save(tmp_path / "bank")
    again = AdapterBank.load(tmp_path / "bank", backbone=cutting.backbone)
    assert [again.task(name).spec.partial_patches for name in ("pad", "cut")] == ["pad", "cut"]
    before = {key: value for key, value in again.task("pad").spec.to_json().items() if key != "partial_patches"}
    assert TaskSpec.from_json(before) == again.task("pad").spec


def test_another_word_is_refused_with_the_two_known(small_bank):
    with pytest.raises(UnknownNameError, match="unknown partial_patches 'crop'.*Known: cut, pad"):
        small_bank.add_task("x", "head", num_classes=2, partial_patches="crop")
