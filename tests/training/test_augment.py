"""Random crops, and the widths of masks that are refused."""

from __future__ import annotations

import pytest
import torch

from adapterbank.errors import ConfigError
from adapterbank.training.augment import check_masks, random_crop


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


def test_only_the_given_generator_draws_a_crop():
    wave, state = torch.randn(100), torch.get_rng_state()
    assert torch.equal(random_crop(wave, 20, generator(1)), random_crop(wave, 20, generator(1)))
    assert not torch.equal(random_crop(wave, 20, generator(1)), random_crop(wave, 20, generator(2)))
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
