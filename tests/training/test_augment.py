"""Crops and SpecAugment masks: their limits, and that only the given generator decides."""

from __future__ import annotations

import pytest
import torch

from adapterbank.errors import ConfigError
from adapterbank.training.augment import check_masks, random_crop, spec_augment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_crops_are_contiguous_pieces_and_reach_both_ends():
    wave, starts, chance = torch.arange(10.0), set(), generator()
    for _ in range(200):
        crop = random_crop(wave, 7, chance)
        assert torch.equal(crop, torch.arange(crop[0].item(), crop[0].item() + 7))
        starts.add(int(crop[0]))
    assert starts == {0, 1, 2, 3}


@pytest.mark.parametrize("samples", [10, 11, 99])
def test_a_clip_that_is_not_longer_stays_whole(samples):
    wave = torch.arange(10.0)
    assert torch.equal(random_crop(wave, samples, generator()), wave)


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
    random_crop(mel[:, 0], 20, generator())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("freq_mask", "time_mask", "message"),
    [
        (-1, 0.1, "freq_mask=-1, expected mel bins"),
        (2.5, 0.1, "freq_mask=2.5"),
        (24, 0.21, "time_mask=0.21, expected a share of the frames from 0.0 to 0.2"),
        (24, -0.1, "time_mask=-0.1"),
        (24, float("nan"), "time_mask=nan"),
        (24, -3, "time_mask=-3, expected a share such as 0.2, or frames"),
        (24, "0.2", "time_mask='0.2'"),
    ],
)
def test_impossible_masks_are_refused(freq_mask, time_mask, message):
    with pytest.raises(ConfigError, match=message):
        check_masks(freq_mask, time_mask)


@pytest.mark.parametrize(("freq_mask", "time_mask"), [(24, 0.2), (0, 0), (48, 192), (0, 0.0)])
def test_the_papers_masks_are_accepted(freq_mask, time_mask):
    check_masks(freq_mask, time_mask)
