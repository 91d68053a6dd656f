"""A bank whose tasks are opened when they are asked for, and its files: saving it, and files that are wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.errors import BackboneMismatchError, StorageError
from adapterbank.storage.task_file import SavedTask
from adapterbank.training.fit import fit

NAMES = ["notes", "tones", "studio", "mix", "own", "probe"]
OTHERS = NAMES[1:]


def files(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (folder / "tasks").iterdir()}


def damage(folder, name):
    file = next((folder / "tasks").glob(f"{name}.*"))
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))


# -- saving ----------------------------------------------------------------------------------------------------------


def test_trained_added_renamed_and_composed_tasks_are_kept_and_saved(saved, load, clips, data):
    bank = load(saved, 1)
    fit(bank, "notes", data, epochs=1, batch_size=6, lr=1e-2, precision="fp32", progress=False)
    bank.add_task("new", "aat_s", num_classes=2)
    bank.add_task("warm", "prompt", num_classes=4, init_from="tones")
    bank.rename_task("mix", "blend")
    bank.remove_task("studio")
    bank.compose("both", ["notes", "tones"], head_from="notes")
    names = ["notes", "tones", "blend", "own", "probe", "new", "warm", "both"]
    assert list(bank.tasks) == names
    expected = {name: bank(clips, name) for name in names}
    trained = expected["notes"]
    assert not torch.equal(trained, load(saved)(clips, "notes"))
    bank.save(saved)
    assert sorted(name.split(".")[0] for name in files(saved)) == sorted(names)
    for other in (load(saved), load(saved, 1), bank):
        assert list(other.tasks) == names
        assert all(torch.equal(other(clips, name), logits) for name, logits in expected.items())


def test_an_imported_task_stays(saved, load, clips):
    bank = load(saved, 1)
    file = next((saved / "tasks").glob("tones.*"))
    task = bank.import_task(shutil.copy(file, saved.parent / "other.safetensors"), name="other")
    bank(clips, "mix")
    assert bank.task("other") is task
    assert torch.equal(bank(clips, "other"), bank(clips, "tones"))


def test_metrics_survive_that_their_task_is_put_back(saved, load, clips, data, printed):
    bank = load(saved, 1)
    found = {name: bank.evaluate(name, data) for name in ("notes", "probe")}
    bank(clips[:1], "mix")
    value = f"accuracy {found['probe']['accuracy']:.3f}"
    assert value in next(line for line in printed(bank).splitlines() if " probe " in line)
    bank.save(saved)  # its files are others now: metrics stand in them
    assert len(files(saved)) == 6
    for other in (bank, load(saved), load(saved, 1)):
        for name in NAMES:
            other(clips[:1], name)
        assert {name: other.task(name).metrics for name in found} == found


def test_saving_where_it_was_opened_touches_no_file_of_an_unchanged_task(saved, load, opened, clips, randomise):
    before, bank = files(saved), load(saved, 1)
    randomise(bank.task("notes"), seed=5)
    bank(clips[:1], "mix")
    bank.save(saved)
    after = files(saved)
    assert {name for name in before if not name.startswith("notes.")} == before.keys() & after.keys()
    assert all(after[name] == content for name, content in before.items() if name in after)
    assert [name for name, _ in opened] == ["notes", "mix"]


def test_saving_copies_what_was_read_and_writes_what_was_changed(saved, load, clips, randomise, tmp_path):
    bank, before = load(saved, 2), files(saved)
    held = bank.tasks["own"]
    for name in NAMES:
        assert bank.task(name).name == name
    randomise(bank.task("notes"), seed=5)
    for folder in (tmp_path / "copy", saved):
        bank.save(folder)
        after = {name: content for name, (content, _) in files(folder).items()}
        assert {n for n, (content, _) in before.items() if after.get(n) != content} == {
            n for n in before if n.startswith("notes.")
        }
        assert torch.equal(load(folder)(clips, "notes"), bank(clips, "notes"))
    randomise(held, seed=6)
    bank.save(saved)
    assert torch.equal(load(saved)(clips, "own"), bank(clips, "own"))


def test_saving_elsewhere_copies_what_was_not_opened(saved, load, opened, clips, tmp_path):
    bank = load(saved, 2)
    bank(clips[:1], "own")
    bank.save(tmp_path / "copy")
    assert [name for name, _ in opened] == ["own"]
    assert {n: content for n, (content, _) in files(tmp_path / "copy").items()} == {
        n: content for n, (content, _) in files(saved).items()
    }
    copied = [json.loads((folder / "manifest.json").read_text()) for folder in (saved, tmp_path / "copy")]
    assert copied[0] == copied[1]
    shutil.rmtree(saved)
    assert torch.equal(load(tmp_path / "copy", 1)(clips, "mix"), load(tmp_path / "copy")(clips, "mix"))


def test_the_manifest_needs_nothing_that_older_banks_lack(saved, load, clips):
    entries = json.loads((saved / "manifest.json").read_text())["tasks"]
    assert {key for entry in entries.values() for key in entry} == {
        "file", "bytes", "sha256", "parameters", "spec", "metrics",
    }  # fmt: skip
    assert torch.equal(load(saved, 1)(clips, "mix"), load(saved)(clips, "mix"))


# -- files that are wrong --------------------------------------------------------------------------------------------


def test_a_tampered_file_is_refused_when_its_task_is_used(saved, load, clips, tmp_path):
    damage(saved, "mix")
    bank = load(saved, 1)
    expected = bank(clips, "notes")
    for call in (lambda: bank(clips, "mix"), lambda: bank.task("mix"), lambda: bank.save(tmp_path / "copy")):
        with pytest.raises(StorageError, match="task 'mix': the content of .* was changed; its SHA-256 does not fit"):
            call()
    assert not (tmp_path / "copy" / "manifest.json").exists()
    assert torch.equal(bank(clips, "notes"), expected)


def test_a_file_that_changes_after_its_task_was_put_back_is_refused(saved, load, clips):
    bank = load(saved, 1)
    bank(clips, "mix")
    damage(saved, "mix")
    bank(clips, "mix")  # is in memory
    bank(clips, "notes")
    with pytest.raises(StorageError, match="SHA-256 does not fit"):
        bank(clips, "mix")


def test_a_missing_or_cut_file_is_refused_when_the_bank_is_opened(saved, load):
    file = next((saved / "tasks").glob("own.*"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StorageError, match="task 'own': .* it was cut"):
        load(saved, 1)
    file.unlink()
    with pytest.raises(StorageError, match="task 'own': .* is missing"):
        load(saved, 1)


def test_what_another_program_saved_meanwhile_is_told(saved, load, clips, randomise, tmp_path):
    bank, other = load(saved, 1), load(saved)
    randomise(other.task("mix"))
    other.save(saved)
    before = files(saved)
    for call in (lambda: bank(clips, "mix"), lambda: bank.save(saved), lambda: bank.save(tmp_path / "copy")):
        with pytest.raises(StorageError, match="task 'mix': .* is missing.*another program has saved.*open it again"):
            call()
    assert files(saved) == before
    assert torch.equal(load(saved)(clips, "mix"), other(clips, "mix"))
    bank.remove_task("mix")
    bank.save(tmp_path / "copy")
    assert list(load(tmp_path / "copy").tasks) == [name for name in NAMES if name != "mix"]


def test_a_bank_of_another_backbone_is_refused(saved, random_backbone, small_geometry):
    with pytest.raises(BackboneMismatchError, match="the bank in .* was made for the backbone"):
        AdapterBank.load(saved, random_backbone(small_geometry, seed=1), resident=2)


def test_the_folder_is_found_from_another_working_directory(saved, load, clips, monkeypatch):
    monkeypatch.chdir(saved.parent)
    bank = load(saved.name, 1)
    expected = load(saved)(clips, "mix")
    monkeypatch.chdir(os.sep)
    assert torch.equal(bank(clips, "mix"), expected)


def test_what_the_file_system_raises_is_an_error_of_ours(saved, load, monkeypatch):
    bank = load(saved, 1)
    with monkeypatch.context() as patch:
        patch.setattr(SavedTask, "check", lambda self: self.path.unlink())  # gone after it was looked at
        with pytest.raises(StorageError, match="there is no task file .*mix"):
            bank.trainable_parameters("mix")

    def failing(self, **options):  # a disk that fails, which no test can have
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", failing)
        with pytest.raises(StorageError, match="cannot read .*own.*Input/output error"):
            bank.trainable_parameters("own")
