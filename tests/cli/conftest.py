"""A bank on disk, recordings to ask about, and the command line to do so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adapterbank.bank import AdapterBank
from adapterbank.cli.app import app
from adapterbank.data import demo_tasks


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs `adapterbank ...` in an empty folder; the result has exit_code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")

    def call(*arguments: object, code: int = 0, **options: Any) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer AST as transformers saves it."""
    import torch
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("backbone")
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
    config = ASTConfig(**sizes, max_length=128, frequency_stride=16, time_stride=16, num_labels=2)
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(max_length=128).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def saved_bank(backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory, randomise: Any) -> Path:
    """Two tasks with the same classes and one with several labels per clip."""
    bank = AdapterBank.from_pretrained(backbone_folder, device="cpu")
    for name in list(bank.tasks):
        bank.remove_task(name)
    bank.add_task("notes", "aat_ms", labels=["bass", "brass", "organ"])
    bank.add_task("lora_notes", "lora", labels=["bass", "brass", "organ"])
    bank.add_task("tags", "head", labels=["loud", "low"], multilabel=True)
    for seed, name in enumerate(bank.tasks):
        randomise(bank.task(name), seed, scale=0.5)
    folder = tmp_path_factory.mktemp("banks") / "saved"
    bank.save(folder)
    return folder


@pytest.fixture
def bank_folder(saved_bank: Path, tmp_path: Path) -> Path:
    """`my_bank` in the working folder: the default of all commands."""
    return Path(shutil.copytree(saved_bank, tmp_path / "my_bank"))


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with real recordings of three instruments, twelve of each."""
    folder = tmp_path_factory.mktemp("recordings")
    for label in ("bass", "brass", "organ"):
        (folder / label).mkdir()
        for file in sorted(demo_tasks()["instruments"].glob(f"{label}_*.ogg"))[:36:3]:
            shutil.copy(file, folder / label)
    return folder


@pytest.fixture
def clips(recordings: Path, tmp_path: Path) -> Path:
    """Four recordings in `clips/`."""
    (tmp_path / "clips").mkdir()
    for file in sorted(recordings.rglob("*.ogg"))[::9]:
        shutil.copy(file, tmp_path / "clips")
    return tmp_path / "clips"
