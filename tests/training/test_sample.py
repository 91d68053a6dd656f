"""A few clips say how long the others are, and none is read that need not be."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from adapterbank.bank import AdapterBank
from adapterbank.data.folder import load_folder
from adapterbank.data.pairs import pairs_of
from adapterbank.training import trainer
from adapterbank.training.fit import fit
from adapterbank.training.sample import LONGEST, Sample, spread


class Counted:
    """A map-style data set that counts what is read of it."""

    def __init__(self, lengths):
        self.lengths, self.read = lengths, []

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        self.read.append(index)
        return torch.zeros(self.lengths[index]), "a"


@pytest.mark.parametrize(("length", "count"), [(1, 4), (4, 4), (100, 8), (7, 3)])
def test_numbers_are_spread_evenly_and_each_comes_once(length, count):
    found = spread(length, count)
    assert len(set(found)) == min(length, count)
    assert all(0 <= number < length for number in found)
    gaps = np.diff([-1, *found, length])
    assert gaps.max() <= 2 * (length / min(length, count)) + 1


def test_each_clip_is_read_once_however_often_it_is_asked_for():
    data = Counted([1000] * 50)
    sample = Sample(data)
    sample.clips(8), sample.clips(8), sample.longest(), sample.longest()
    assert len(data.read) == len(set(data.read)) <= 16


def test_the_longest_of_clips_in_memory_is_found_wherever_it_lies():
    data = [(torch.zeros(1000), "a")] * 99 + [(torch.zeros(50_000), "b")]
    assert Sample(pairs_of(data)).longest() == 50_000
    assert Sample(pairs_of(data[::-1])).longest() == 50_000


def test_the_longest_file_of_a_folder_is_found_and_few_are_read(tmp_path):
    for number in range(30):
        (tmp_path / f"{number % 3}").mkdir(exist_ok=True)
        seconds = 3.0 if number == 17 else 0.1
        wave = np.random.default_rng(number).normal(0, 0.1, round(16_000 * seconds))
        soundfile.write(tmp_path / f"{number % 3}" / f"{number}.{'flac' if number % 2 else 'wav'}", wave, 16_000)
    data = load_folder(tmp_path)
    sample = Sample(pairs_of(data))
    assert sample.longest() == 48_000
    assert len(sample._read) <= 2 * LONGEST


def test_one_long_clip_decides_how_many_run_at_once(small_backbone, labelled_clips, monkeypatch):
    sizes = []
    for extra in (1.0, 60.0):
        monkeypatch.setattr("adapterbank.training.capacity.free_bytes", lambda device: int(40e6))
        bank = AdapterBank(small_backbone)
        bank.add_task("new", "aat_m", labels=["bass", "brass", "organ"])
        long = torch.randn(round(16_000 * extra), generator=torch.Generator().manual_seed(0)) / 10
        data = [*labelled_clips, (long, "organ")]
        options = trainer.Trainer(small_backbone, bank.task("new"), pairs_of(data), trainer.Options()).setting.options
        sizes.append((options.batch_size, options.clips_per_step))
    assert sizes[0] == (8, 8)
    assert sizes[1][0] < 8
    assert sizes[1][1] == 8


def test_crops_need_no_look_at_a_clip_for_the_batch_size(small_backbone):
    data = Counted([16_000] * 20)
    bank = AdapterBank(small_backbone)
    bank.add_task("new", "aat_m", labels=["a", "b"])
    fit(bank, "new", data, steps=2, crop_seconds=0.2, batch_size=None, head_start=False, progress=False)
    assert len(data.read) == 16  # two steps of eight
