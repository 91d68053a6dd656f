"""Mean and deviation of log-mels: against all values at once, in fp64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from adapterbank.audio.mel import log_mel
from adapterbank.bank import AdapterBank
from adapterbank.data import demo_tasks, load_folder, mean_std
from adapterbank.errors import ConfigError, DatasetError, WaveformError


@pytest.mark.parametrize("rate", [16_000, 8_000])
def test_mean_and_deviation_are_those_of_all_values_together(rate: int) -> None:
    dataset = load_folder(demo_tasks()["instruments"], sample_rate=rate).subset(indices=range(0, 100, 7))
    mels = [log_mel([wave], 128, rate)[0].double().numpy().ravel() for wave, _ in dataset]
    assert len({len(mel) for mel in mels}) > 1  # clips of other lengths weigh otherwise
    together = np.concatenate(mels)
    found = mean_std(dataset, progress=False)
    assert found.mean == pytest.approx(together.mean(), rel=1e-12)
    assert found.std == pytest.approx(together.std(), rel=1e-12)


def test_digits_are_kept_where_the_mean_is_far_from_zero_and_clips_are_many() -> None:
    wave = torch.randn(800) * 1e-3  # its log-mels are far below 0
    pairs = [(wave, "a")] * 2000
    once = log_mel([wave], 128)[0].double()
    found = mean_std(pairs, progress=False)
    assert found.mean == pytest.approx(float(once.mean()), rel=1e-12)
    assert found.std == pytest.approx(float(once.std(correction=0)), rel=1e-9)


def test_any_iterable_of_pairs_will_do_and_the_bank_takes_the_answer(small_bank: AdapterBank) -> None:
    pairs = [(torch.randn(4000), "a"), (torch.randn(8000), "b")]
    found = mean_std(iter(pairs), progress=False)
    assert found == mean_std(pairs, progress=False)
    small_bank.add_task("normalised", labels=["a", "b"], normalize=found)
    assert small_bank.task("normalised").spec.normalize == (found.mean, found.std)


def test_clips_may_be_files_or_have_rates_as_in_a_training() -> None:
    dataset = load_folder(demo_tasks()["instruments"]).subset(indices=range(0, 60, 20))
    found = mean_std(dataset, progress=False)
    assert mean_std(dict(zip(dataset.files, dataset.targets, strict=True)), progress=False) == found
    assert mean_std([((wave, 16_000), label) for wave, label in dataset], progress=False) == found


def test_what_has_no_mean_is_refused() -> None:
    with pytest.raises(DatasetError, match="no clips"):
        mean_std([], progress=False)
    with pytest.raises(DatasetError, match="silence"):
        mean_std([(torch.zeros(4000), "a")], progress=False)
    for wave in (torch.full((4000,), math.nan), torch.zeros(2, 100), torch.zeros(100, dtype=torch.int16)):
        with pytest.raises(WaveformError, match="item 1"):
            mean_std([(torch.randn(4000), "a"), (wave, "a")], progress=False)
    with pytest.raises(ConfigError, match="mel_bins"):
        mean_std([(torch.randn(4000), "a")], mel_bins=0, progress=False)
