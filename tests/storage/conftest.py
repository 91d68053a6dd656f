"""What the tests of storage share: a bank of six tasks on disk, and ways to open and watch it."""

from __future__ import annotations

import weakref

import pytest

from adapterbank.bank import AdapterBank
from adapterbank.storage.task_file import SavedTask


@pytest.fixture
def saved(small_bank, tmp_path):
    small_bank.task("notes").metrics = {"accuracy": 0.75}
    small_bank.save(tmp_path / "bank")
    return tmp_path / "bank"


@pytest.fixture
def load(small_backbone):
    return lambda folder, resident=None: AdapterBank.load(folder, small_backbone, device="cpu", resident=resident)


@pytest.fixture
def opened(monkeypatch):
    """What is opened from here on: (name, weak reference to the task). Patched, as a task that comes from its file
    again is equal to the one that was put back: nothing outside shows how often that happens."""
    found, real = [], SavedTask.open

    def watched(self, *arguments):
        task = real(self, *arguments)
        found.append((self.name, weakref.ref(task)))
        return task

    monkeypatch.setattr(SavedTask, "open", watched)
    return found


@pytest.fixture
def data(labelled_clips):
    return [(waveform, index % 3) for index, (waveform, _) in enumerate(labelled_clips)]


@pytest.fixture
def printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")

    def summary(bank):
        capsys.readouterr()
        bank.summary()
        return capsys.readouterr().out

    return summary
