"""Whether two trainings had the same data: equal digests for equal clips, others for any change."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import Dataset, Subset

from adapterbank.data.digest import data_facts, dataset_digest
from adapterbank.data.folder import load_folder


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "birds"
    for label in ("dove", "wren"):
        (place / label).mkdir(parents=True)
        for number in range(4):
            wave = np.sin(np.arange(8000 + number) / 9)
            soundfile.write(place / label / f"{number}.wav", wave, 16_000)
    return place


def test_the_facts_name_the_dataset_and_count_each_part(folder):
    data = load_folder(folder)
    facts = data_facts(train=data.subset(indices=range(5)), val=None, test=data.subset(indices=range(5, 8)))
    assert {key: value for key, value in facts.items() if not key.endswith("digest")} == {
        "dataset": "birds",
        "train_clips": 5,
        "val_clips": 0,
        "test_clips": 3,
    }
    assert facts["val_digest"] == "none"
    assert len({facts["train_digest"], facts["test_digest"]}) == 2
    assert all(len(facts[f"{part}_digest"]) == 12 for part in ("train", "test"))


def test_the_same_folder_elsewhere_has_the_same_digest(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "birds")
    assert dataset_digest(load_folder(folder)) == dataset_digest(load_folder(copy))


@pytest.mark.parametrize("change", ["renamed", "shortened", "moved", "removed"])
def test_any_change_of_a_folder_changes_its_digest(folder, change):
    before = dataset_digest(load_folder(folder))
    file = folder / "dove" / "1.wav"
    if change == "shortened":
        soundfile.write(file, np.zeros(7000), 16_000)
    elif change == "removed":
        file.unlink()
    else:
        file.rename(folder / ("wren" if change == "moved" else "dove") / "9.wav")
    assert dataset_digest(load_folder(folder)) != before


def test_a_list_is_known_by_its_samples_labels_and_order():
    clips = [(torch.arange(9.0) + place, "ab"[place % 2]) for place in range(4)]
    assert dataset_digest(clips) == dataset_digest([(wave.clone(), label) for wave, label in clips])
    others = [clips[::-1], clips[:3], [(wave, "a") for wave, _ in clips], [(wave + 1, label) for wave, label in clips]]
    assert len({dataset_digest(other) for other in (clips, *others)}) == 5


def test_sets_of_labels_give_the_same_digest_in_another_process():
    source = "from adapterbank.data.digest import dataset_digest as d; print(d([(1, {'rain', 'wind', 'sea', 'bell'})]))"
    found = [subprocess.run([sys.executable, "-c", source], capture_output=True, text=True).stdout for _ in range(2)]
    assert found[0] == found[1] == dataset_digest([(1, {"sea", "wind", "bell", "rain"})]) + "\n"


def test_a_subset_is_known_by_its_whole_and_its_choice(folder):
    data = load_folder(folder)
    assert dataset_digest(Subset(data, [0, 1])) == dataset_digest(Subset(load_folder(folder), [0, 1]))
    assert dataset_digest(Subset(data, [0, 1])) != dataset_digest(Subset(data, [1, 0]))
    assert data_facts(train=Subset(data, [0, 1]))["dataset"] == "birds"


def test_a_dataset_that_may_draw_random_numbers_is_not_read():
    class Augmented(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise AssertionError("read")

    assert data_facts(train=Augmented()) == {"dataset": "unknown", "train_clips": 3, "train_digest": "unknown"}
    assert data_facts(train=iter(()))["train_clips"] == "unknown"
