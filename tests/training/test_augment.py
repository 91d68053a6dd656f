"""Changes of waveforms by their formulas, drawn by the given generator alone; what is refused."""

from __future__ import annotations

import math
import random

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError
from adapterbank.training.augment import check_masks, mixed, random_crop, rolled, with_gain, with_noise
from adapterbank.training.defaults import Resolved
from adapterbank.training.feed import Batch, Feed
from adapterbank.training.fit import fit
from adapterbank.training.many import fit_many
from adapterbank.training.options import Options


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


# -- mixup ------------------------------------------------------------------------------------------------------------


def test_mixup_adds_two_waveforms_in_the_shares_that_it_tells():
    clips = [torch.randn(samples) for samples in (50, 80, 30, 50)]
    rows, partners, shares = mixed(clips, 1.0, 10.0, generator())
    assert all(partner != place for place, partner in enumerate(partners))
    for clip, partner, share, row in zip(clips, partners, shares.tolist(), rows, strict=True):
        other = torch.zeros(len(clip))
        common = min(len(clip), len(clips[partner]))
        other[:common] = clips[partner][:common]
        torch.testing.assert_close(row, share * clip + (1 - share) * other)


def test_shares_come_from_a_beta_distribution_and_as_often_as_asked():
    clips = [torch.zeros(1)] * 4000
    _, partners, shares = mixed(clips, 0.6, 10.0, generator())
    drawn = torch.tensor([partner != place for place, partner in enumerate(partners)])
    assert float(drawn.float().mean()) == pytest.approx(0.6, abs=0.03)
    assert (shares[~drawn] == 1).all()
    beta = torch.distributions.Beta(10.0, 10.0)
    assert float(shares[drawn].mean()) == pytest.approx(float(beta.mean), abs=0.01)
    assert float(shares[drawn].std()) == pytest.approx(float(beta.stddev), rel=0.1)
    assert len(set(partners)) > 1500  # partners are spread over the batch


def test_a_clip_that_is_alone_is_not_mixed():
    rows, partners, shares = mixed([torch.ones(5)], 1.0, 10.0, generator())
    assert (rows[0].tolist(), partners, shares.tolist()) == ([1.0] * 5, [0], [1.0])


@pytest.mark.parametrize("multilabel", [False, True])
def test_targets_are_mixed_in_the_same_shares(multilabel, small_backbone):
    task = AdapterBank(small_backbone).add_task("new", "head", labels=["a", "b", "c"], multilabel=multilabel)
    batch = Batch([torch.zeros(1)] * 2, ["a", "b"], ["c", "b"], torch.tensor([0.7, 1.0]))
    expected = torch.tensor([[0.7, 0.0, 0.3], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(batch.targets(task), expected)
    torch.testing.assert_close(torch.cat([part.targets(task) for part in batch.parts(1)]), expected)


# -- level, time and noise --------------------------------------------------------------------------------------------


def test_gain_stays_within_its_decibels_and_reaches_near_both_ends():
    chance = generator()
    drawn = [20 * math.log10(float(with_gain(torch.ones(1), 6.0, chance))) for _ in range(300)]
    assert -6 <= min(drawn) < -5.5
    assert 5.5 < max(drawn) <= 6


def test_a_rolled_clip_has_the_same_samples_in_the_same_circle():
    wave, chance = torch.arange(1600.0), generator()
    starts = {int(rolled(wave, 3 / 16_000, chance)[0]) for _ in range(200)}
    assert starts == {0, 1, 2, 3, 1597, 1598, 1599}
    assert torch.equal(rolled(wave, 0.01, chance).sort().values, wave)


def test_noise_has_the_level_that_its_ratio_says():
    wave, chance = torch.sin(torch.arange(160_000) / 10), generator()
    for decibels in (0.0, 20.0):
        noise = with_noise(wave, (decibels, decibels), chance) - wave
        measured = 10 * math.log10(float(wave.square().mean() / noise.square().mean()))
        assert measured == pytest.approx(decibels, abs=0.1)
    assert torch.equal(with_noise(torch.zeros(100), (0.0, 0.0), chance), torch.zeros(100))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"noise": 10}, "got noise=10, expected the lowest and the highest signal-to-noise ratio in dB"),
        ({"noise": (40, 10)}, "got noise=.*expected the lowest and the highest"),
        ({"roll": -1}, "got roll=-1, expected seconds such as 0.1"),
        ({"gain": float("inf")}, "got gain=inf, expected decibels"),
        ({"mixup": 1.5}, "got mixup=1.5, expected the share of clips that are mixed"),
        ({"mixup": True}, "got mixup=True"),
        ({"mixup_alpha": 0}, "got mixup_alpha=0, expected a positive number"),
        ({"mixup": 0.5, "cache": "memory"}, "got cache='memory' with mixup=0.5"),
        ({"roll": 0.1, "noise": (10, 40), "cache": "here"}, "got cache='here' with roll=0.1, noise=.*drawn anew"),
    ],
)
def test_changes_that_cannot_be_made_are_refused(option, message):
    with pytest.raises(ConfigError, match=message):
        Options(**option)


ALL = {"crop_seconds": 0.4, "mixup": 0.5, "gain": 6.0, "roll": 0.05, "noise": (10, 30)}


@pytest.mark.parametrize("option", ["mixup", "gain", "roll", "noise"])
def test_every_change_is_heard_and_none_leaves_the_mels_as_they_were(option, small_backbone, labelled_clips):
    task = AdapterBank(small_backbone).add_task("new", "aat_m", labels=["bass", "brass", "organ"])

    def rows(**options):
        return Feed(small_backbone, task, labelled_clips, Resolved(batch_size=12, **options), (0, 0)).batch(0, 0)

    plain, changed = rows(), rows(**{option: ALL[option]})
    assert plain.labels == changed.labels  # the order is drawn first
    assert any(not torch.equal(one, other) for one, other in zip(plain.rows, changed.rows, strict=True))


def test_a_training_with_all_changes_is_decided_by_its_seed_and_equal_in_fit_and_fit_many(
    small_backbone, labelled_clips
):
    states = []
    options = {**ALL, "epochs": 2, "batch_size": 5, "precision": "fp32", "progress": False, "sampler": "balanced"}
    for disturbed, train in ((0, fit), (1, fit), (2, fit_many)):
        bank = AdapterBank(small_backbone)
        for name in ("new", "other"):
            bank.add_task(name, "aat_m", labels=["bass", "brass", "organ"])
        torch.manual_seed(disturbed)
        random.seed(disturbed)
        if train is fit:
            fit(bank, "new", labelled_clips, **options)
        else:
            fit_many(bank, ["new", "other"], labelled_clips, **options)
        states.append(bank.task("new").state_dict())
    for key, tensor in states[0].items():
        assert torch.equal(tensor, states[1][key])
        torch.testing.assert_close(tensor, states[2][key], rtol=1e-4, atol=1e-5)


def test_a_head_alone_keeps_no_features_of_clips_that_change(small_backbone, labelled_clips):
    from adapterbank.training.trainer import Trainer

    task = AdapterBank(small_backbone).add_task("new", "head", labels=["bass", "brass", "organ"])
    assert Trainer(small_backbone, task, labelled_clips, Options()).data.cache is not None
    assert Trainer(small_backbone, task, labelled_clips, Options(gain=3.0)).data.cache is None
