"""A bank on disk: bit-exact, verified, atomic."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from adapterbank.bank import AdapterBank
from adapterbank.errors import (
    AdapterBankError,
    BackboneError,
    BackboneMismatchError,
    StorageError,
)

NAMES = ["notes", "tones", "studio", "mix", "own", "probe"]


def assert_same(bank, other, clips):
    assert list(bank.tasks) == list(other.tasks)
    for name, task in bank.tasks.items():
        twin = other.task(name)
        assert twin.spec == task.spec
        assert twin.metrics == task.metrics
        for (key, tensor), (twin_key, twin_tensor) in zip(
            task.state_dict().items(), twin.state_dict().items(), strict=True
        ):
            assert key == twin_key
            assert torch.equal(tensor, twin_tensor)
        assert torch.equal(bank(clips, name), other(clips, name))


def rewritten(folder, change, digest=True):
    """Edits the manifest; with `digest`, as somebody would who knows how it is computed."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("digest")
    change(manifest)
    if digest:
        manifest["digest"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_every_method_comes_back_bit_for_bit(small_bank, saved, load, clips):
    assert_same(small_bank, load(saved), clips)


def test_all_options_come_back(small_backbone, tmp_path, load, clips):
    bank = AdapterBank(small_backbone)
    bank.add_task(
        "a", "joint", labels=["Ä", "b ☃"], multilabel=True, head="linear", pooling="mean", train_final_norm=True,
        clip_seconds=0.7, normalize=[-6.6, 5.3], seed=3, prompt={"tokens": 5}, ratio=0.5,
    )  # fmt: skip
    bank.save(tmp_path / "bank")
    again = load(tmp_path / "bank")
    assert again.task("a").labels == ("Ä", "b ☃")
    assert torch.equal(bank(clips, "a"), again(clips, "a"))
    bank.save(tmp_path / "bank")
    assert_same(load(tmp_path / "bank"), again, clips)


def test_an_empty_bank_comes_back(small_backbone, tmp_path, load):
    AdapterBank(small_backbone).save(tmp_path / "bank")
    assert list(load(tmp_path / "bank").tasks) == []


def test_the_manifest_names_sizes_digests_and_the_backbone(small_bank, saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["format"] == "adapterbank"
    assert manifest["format_version"] == 1
    assert manifest["backbone"] == {"source": "random", "fingerprint": small_bank.backbone.fingerprint}
    assert list(manifest["tasks"]) == NAMES
    for name, entry in manifest["tasks"].items():
        content = (saved / entry["file"]).read_bytes()
        assert len(content) == entry["bytes"]
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert entry["parameters"] == small_bank.trainable_parameters(name)
        assert entry["spec"]["method"] == small_bank.task(name).method
    assert manifest["tasks"]["notes"]["metrics"] == {"accuracy": 0.75}
    assert sorted(p.name for p in saved.iterdir()) == ["manifest.json", "tasks"]
    assert len(list((saved / "tasks").iterdir())) == 6


def test_no_base_tensor_is_written(saved, small_bank):
    heads = load_file(next((saved / "tasks").glob("probe.*"))).keys()
    assert sorted(heads) == ["head.linear.bias", "head.linear.weight", "head.norm.bias", "head.norm.weight"]


def test_a_saved_bank_opens_by_from_pretrained_and_by_its_backbones_folder(hf_model, hf_folder, tmp_path, clips):
    folder = hf_folder(hf_model(num_labels=4))
    bank = AdapterBank.from_pretrained(folder, device="cpu")
    bank.add_task("notes", "aat_ms", num_classes=3)
    bank.save(tmp_path / "bank")
    assert_same(bank, AdapterBank.from_pretrained(tmp_path / "bank", device="cpu"), clips)
    moved = tmp_path / "elsewhere"
    shutil.move(folder, moved)
    with pytest.raises(AdapterBankError):
        AdapterBank.load(tmp_path / "bank", device="cpu")
    again = AdapterBank.load(tmp_path / "bank", backbone=moved, device="cpu")
    assert list(again.tasks) == ["audioset", "notes"]
    assert torch.equal(again(clips, "notes"), bank(clips, "notes"))
    assert torch.equal(again(clips, "audioset"), bank(clips, "audioset"))


def test_a_removed_or_retrained_task_leaves_no_file_behind(small_bank, saved, load, clips, randomise):
    small_bank.remove_task("tones")
    small_bank.rename_task("mix", "blend")
    randomise(small_bank.task("notes"), seed=5)
    small_bank.save(saved)
    files = sorted(p.name.split(".")[0] for p in (saved / "tasks").iterdir())
    assert files == ["blend", "notes", "own", "probe", "studio"]
    assert_same(small_bank, load(saved), clips)


def test_saving_again_writes_only_what_changed(small_bank, saved, randomise):
    before = {p.name: p.stat().st_mtime_ns for p in (saved / "tasks").iterdir()}
    randomise(small_bank.task("notes"), seed=5)
    small_bank.save(saved)
    after = {p.name: p.stat().st_mtime_ns for p in (saved / "tasks").iterdir()}
    kept = before.keys() & after.keys()
    assert len(kept) == 5
    assert all(before[name] == after[name] for name in kept)


def test_a_task_file_that_was_damaged_on_disk_is_repaired_by_saving_again(small_bank, saved, load, clips):
    file = next((saved / "tasks").glob("tones.*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    small_bank.save(saved)
    assert_same(small_bank, load(saved), clips)


def test_files_of_others_are_never_deleted(small_bank, tmp_path):
    folder = tmp_path / "mine"
    (folder / "tasks").mkdir(parents=True)
    (folder / "tasks" / "model.safetensors").write_bytes(b"someone's only copy")
    (folder / "notes.txt").write_text("mine")
    small_bank.save(folder)
    small_bank.save(folder)
    assert (folder / "tasks" / "model.safetensors").read_bytes() == b"someone's only copy"
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize("content", ['{"name": "a web app"}', "not JSON", "[]"])
def test_another_programs_manifest_is_never_overwritten(content, small_bank, tmp_path):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(StorageError, match="manifest.json"):
        small_bank.save(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == content


def test_saving_onto_a_file_is_refused(small_bank, tmp_path):
    (tmp_path / "bank").write_text("a file")
    with pytest.raises(StorageError, match="cannot save the bank to"):
        small_bank.save(tmp_path / "bank")
    assert (tmp_path / "bank").read_text() == "a file"


# Replaced are five tasks and the manifest; synced are those, the folder of the tasks before the manifest is there, and
# the bank's folder once it is.
@pytest.mark.parametrize(("how", "steps"), [("replace", 6), ("fsync", 7)])
@pytest.mark.parametrize("failing", range(9))
def test_a_save_that_dies_at_any_moment_leaves_the_old_bank(
    failing, how, steps, small_bank, saved, load, clips, randomise, monkeypatch
):
    old = load(saved)
    files = sorted(p.name for p in (saved / "tasks").iterdir())
    for name in NAMES:
        randomise(small_bank.task(name), seed=7)
    small_bank.remove_task("tones")
    done, real = [], getattr(os, how)

    def dying(*arguments):
        done.append(arguments)
        if len(done) > failing:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, how, dying)  # the disk fills up: no test can wait for that
    if failing >= steps:
        if (how, failing) == ("fsync", 7):
            with pytest.raises(StorageError, match="No space left.*The bank there is the new one"):
                small_bank.save(saved)
        else:
            small_bank.save(saved)
        assert_same(small_bank, load(saved), clips)
        return
    with pytest.raises(StorageError, match="cannot save the bank .*No space left.*The bank there is as it was"):
        small_bank.save(saved)
    monkeypatch.undo()
    assert_same(old, load(saved), clips)
    assert not [p for p in saved.rglob("*") if p.suffix == ".tmp"]
    small_bank.save(saved)
    assert_same(small_bank, load(saved), clips)
    assert len(list((saved / "tasks").iterdir())) == 5 < len(files)


@pytest.mark.parametrize("failing", [0, 2, 5])
def test_an_interrupt_during_a_save_leaves_the_old_bank(
    failing, small_bank, saved, load, clips, randomise, monkeypatch
):
    old, done, real = load(saved), [], os.replace
    for name in NAMES:
        randomise(small_bank.task(name), seed=7)

    def interrupted(*arguments):
        done.append(arguments)
        if len(done) > failing:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(os, "replace", interrupted)  # Ctrl-C at a moment that no test can hit
    with pytest.raises(KeyboardInterrupt):
        small_bank.save(saved)
    assert_same(old, load(saved), clips)


# -- files that are wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_cut_task_file_is_refused(keep, saved, load):
    file = next((saved / "tasks").glob("tones.*"))
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:keep] if keep else b"")
    got = file.stat().st_size
    with pytest.raises(StorageError, match=f"task 'tones': .* has {got} bytes, expected {size}; it was cut"):
        load(saved)


@pytest.mark.parametrize("place", [9, 200, -1])
def test_a_flipped_bit_is_refused(place, saved, load):
    file = next((saved / "tasks").glob("own.*"))
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(bytes(content))
    with pytest.raises(StorageError, match="task 'own': the content of .* was changed; its SHA-256 does not fit"):
        load(saved)


def test_a_missing_task_file_is_refused(saved, load):
    next((saved / "tasks").glob("mix.*")).unlink()
    with pytest.raises(StorageError, match="task 'mix': .* is missing. Restore it from a copy"):
        load(saved)


def test_an_edited_manifest_is_refused(saved, load):
    path = saved / "manifest.json"
    path.write_text(path.read_text().replace('"accuracy": 0.75', '"accuracy": 0.95'))
    with pytest.raises(StorageError, match="was changed or damaged after it was saved: its digest does not fit"):
        load(saved)
    rewritten(saved, lambda manifest: None, digest=False)
    with pytest.raises(StorageError, match="digest does not fit"):
        load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=2), "has format version 2, this release reads 1; upgrade"),
        (lambda m: m.pop("format_version"), "has format version None"),
        (lambda m: m.update(format="zip"), "is no manifest of a bank"),
        (lambda m: m.pop("backbone"), "lacks the backbone"),
        (lambda m: m.update(backbone={"source": 3, "fingerprint": "x"}), "lacks the backbone"),
        (lambda m: m["backbone"].update(stride="10"), "lacks the backbone"),
        (lambda m: m.pop("tasks"), "lacks the backbone, or a task's file"),
        (lambda m: m.update(tasks=[1]), "lacks the backbone, or a task's file"),
        (lambda m: m["tasks"]["mix"].pop("sha256"), "lacks the backbone, or a task's file"),
        (lambda m: m["tasks"].update(mix="x"), "lacks the backbone, or a task's file"),
        (lambda m: m["tasks"].update(other=m["tasks"]["mix"]), "holds the task 'mix', the manifest says 'other'"),
    ],
)
def test_a_manifest_of_another_format_is_refused(change, message, saved, load):
    rewritten(saved, change)
    with pytest.raises(StorageError, match=message):
        load(saved)


@pytest.mark.parametrize(
    "file", ["../secret.safetensors", "/etc/passwd", "tasks/../../x.safetensors", "tasks/a.pt", "tasks//a.safetensors"]
)
def test_a_manifest_cannot_point_outside_its_folder(file, saved, load):
    shutil.copy(next((saved / "tasks").glob("mix.*")), saved.parent / "secret.safetensors")
    rewritten(saved, lambda manifest: manifest["tasks"]["mix"].update(file=file))
    with pytest.raises(StorageError, match="names the file .*, expected one in tasks/"):
        load(saved)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00\x01", '{"format": "adapterbank"}'])
def test_a_damaged_manifest_is_refused(content, saved, load):
    (saved / "manifest.json").write_text(content)
    with pytest.raises(StorageError, match="manifest.json"):
        load(saved)


def test_a_folder_without_a_bank_is_refused(tmp_path, load):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(
            StorageError, match=r"there is no bank at .*manifest.json is missing. Save one with bank.save"
        ):
            load(folder)


def test_a_bank_of_another_backbone_is_refused(saved, random_backbone, small_geometry):
    other = random_backbone(small_geometry, seed=1)
    with pytest.raises(
        BackboneMismatchError, match="the bank in .* was made for the backbone .*, this one is"
    ) as error:
        AdapterBank.load(saved, other, device="cpu")
    assert other.fingerprint[:12] in str(error.value)


def test_a_bank_whose_backbone_cannot_be_opened_by_name_says_how_to_go_on(saved, small_backbone):
    with pytest.raises(BackboneError, match=r"on load_backbone\('random'\), which fails here: .*AdapterBank.load\("):
        AdapterBank.load(saved)
    assert list(AdapterBank.load(saved, backbone=small_backbone).tasks) == NAMES
