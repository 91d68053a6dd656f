"""SpecAugment masks: their widths, and that only the given generator draws them."""

from __future__ import annotations

import pytest
import torch

from adapterbank.audio.masks import spec_augment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("time_mask", "widest"), [(0.2, 20), (0.05, 5), (30, 30), (500, 100), (0, 0), (0.0, 0)])
@pytest.mark.parametrize("freq_mask", [0, 24, 500])
def test_masks_are_one_band_of_bins_and_one_of_frames_within_their_widths(freq_mask, time_mask, widest):
    mel, chance = torch.ones(100, 128), generator()
    widths, heights = set(), set()
    for _ in range(120):
        masked = spec_augment(mel, freq_mask, time_mask, chance)
        frames = (masked == 0).all(dim=1).nonzero().flatten()
        bins = (masked == 0).all(dim=0).nonzero().flatten()
        for places in (frames, bins):
            assert len(places) == 0 or places[-1] - places[0] + 1 == len(places)
        expected = torch.ones(100, 128)
        expected[frames] = 0
        expected[:, bins] = 0
        assert torch.equal(masked, expected)
        if len(frames) < 100 and len(bins) < 128:
            widths.add(len(frames))
            heights.add(len(bins))
    assert max(widths) <= widest
    assert max(heights) <= min(freq_mask, 128)
    assert (len(widths) > 1) == (widest > 0)
    assert (len(heights) > 1) == (freq_mask > 0)
    assert torch.equal(mel, torch.ones(100, 128)), "the clip itself was changed"


def test_only_the_given_generator_decides():
    mel, state = torch.randn(100, 128), torch.get_rng_state()
    first, again, other = (spec_augment(mel, 24, 0.2, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_clip_of_a_batch_has_masks_of_its_own_no_wider_than_asked():
    masked = spec_augment(torch.ones(64, 160, 128), 16, 0.2, generator())
    hidden = masked == 0
    assert hidden.all(2).sum(1).max() <= 32
    assert hidden.all(1).sum(1).max() <= 16
    assert len({tuple(frames.tolist()) for frames in hidden.all(2)}) > 32
    chance = generator()
    assert torch.equal(masked, torch.stack([spec_augment(torch.ones(160, 128), 16, 0.2, chance) for _ in range(64)]))


def test_the_draws_are_width_and_start_of_the_bins_then_of_the_frames():
    """Trainings of before are repeated to the bit only if the order of the draws stays."""
    chance = generator(3)
    bins = int(torch.randint(25, (), generator=chance))
    low = int(torch.randint(128 - bins + 1, (), generator=chance))
    frames = int(torch.randint(21, (), generator=chance))
    first = int(torch.randint(100 - frames + 1, (), generator=chance))
    expected = torch.ones(100, 128)
    expected[:, low : low + bins] = 0
    expected[first : first + frames] = 0
    assert torch.equal(spec_augment(torch.ones(100, 128), 24, 0.2, generator(3)), expected)
