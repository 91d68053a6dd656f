"""A saved bank whose tasks are opened when they are asked for: the same bank, with a bound on memory."""

from __future__ import annotations

import gc
import json
import os
import pickle
import random
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.errors import BackboneMismatchError, ConfigError, NameTakenError, StorageError, UnknownNameError
from adapterbank.storage.task_file import SavedTask
from adapterbank.training.fit import fit

NAMES = ["notes", "tones", "studio", "mix", "own", "probe"]
OTHERS = NAMES[1:]


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


def files(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (folder / "tasks").iterdir()}


def damage(folder, name):
    file = next((folder / "tasks").glob(f"{name}.*"))
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))


# -- the same bank --------------------------------------------------------------------------------------------------


@pytest.fixture
def varied_bank(small_bank, randomise):
    """With two tasks of one kind that hear and answer differently, and one that has batch statistics."""
    like_notes = {"clip_seconds": 1.0, "normalize": (0.0, 3.0), "pooling": "mean", "multilabel": True}
    small_bank.add_task("twin", "aat_ms", labels=["x", "y", "z"], **like_notes)
    small_bank.add_task("waves", "conformer", num_classes=3, reduction=8)
    for seed, name in enumerate(("twin", "waves"), start=6):
        randomise(small_bank.task(name), seed)
    for name, buffer in small_bank.task("waves").named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return small_bank


@pytest.mark.parametrize("resident", [1, 2, 8])
def test_every_task_answers_as_in_the_bank_that_was_saved(resident, varied_bank, load, clips, tmp_path):
    whole = varied_bank
    whole.save(tmp_path / "bank")
    bank = load(tmp_path / "bank", resident)
    names = list(whole.tasks)
    order = names * 3
    random.Random(resident).shuffle(order)
    for name in order:
        assert torch.equal(bank(clips, name), whole(clips, name))
        assert bank.predict(clips[:1], name) == whole.predict(clips[:1], name)
    rows = ["notes", "twin", "notes", "waves", "mix", "notes"]  # more tasks than fit, and one of them again and again
    assert all(map(torch.equal, bank(clips, rows), whole(clips, rows)))
    for name in names:
        state = whole.task(name).state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in bank.task(name).state_dict().items())
        assert (bank.task(name).spec, bank.task(name).metrics) == (whole.task(name).spec, whole.task(name).metrics)


def test_names_sizes_and_metrics_are_known_without_opening_a_task(small_bank, saved, load, opened, printed):
    bank = load(saved, 1)
    assert list(bank.tasks) == list(bank.tasks.keys()) == NAMES
    assert len(bank.tasks) == 6
    assert "mix" in bank.tasks
    assert "blend" not in bank.tasks
    for name in NAMES:
        assert bank.trainable_parameters(name) == small_bank.trainable_parameters(name)
    assert printed(bank) == printed(small_bank)
    assert "accuracy 0.750" in printed(bank)
    assert "mix" in repr(bank)
    assert not opened


def test_the_mapping_of_tasks_does_what_a_dict_does(saved, load, opened):
    bank = load(saved, 1)
    assert list(reversed(bank.tasks)) == NAMES[::-1]
    assert repr(bank.tasks) == f"mappingproxy(Shelf({NAMES}))"
    assert not opened
    copied = bank.tasks.copy()
    bank.remove_task("mix")
    assert list(copied) == NAMES
    assert all(copied[name] is task for name, task in bank.tasks.items())


def test_unknown_and_taken_names_are_refused_as_in_any_bank(saved, load, clips):
    bank = load(saved, 1)
    for call in (bank.task, bank.remove_task, bank.trainable_parameters, lambda name: bank(clips, name)):
        for name in ("tone", None, 3):
            with pytest.raises(UnknownNameError, match="unknown task"):
                call(name)
    with pytest.raises(UnknownNameError, match="Did you mean 'tones'"):
        bank(clips[:2], ["notes", "tone"])
    with pytest.raises(NameTakenError):
        bank.add_task("mix", num_classes=2)
    with pytest.raises(NameTakenError):
        bank.rename_task("mix", "own")


@pytest.mark.parametrize("resident", [0, -1, 1.5, True, "64"])
def test_a_bound_that_is_no_positive_integer_is_refused(resident, saved, load):
    with pytest.raises(ConfigError, match="got resident="):
        load(saved, resident)


def test_a_new_bank_puts_nothing_back(small_backbone, clips):
    bank = AdapterBank.from_pretrained(small_backbone, device="cpu", resident=1)
    refs = [weakref.ref(bank.add_task(name, "head", num_classes=2)) for name in ("a", "b", "c")]
    bank(clips[:1], "a")
    assert all(ref() is not None for ref in refs)
    with pytest.raises(ConfigError, match="got resident=0"):
        AdapterBank.from_pretrained(small_backbone, resident=0)


# -- the bound ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resident", [1, 3])
def test_no_more_tasks_stay_in_memory_than_was_asked_for(resident, saved, load, opened, clips, data):
    bank = load(saved, resident)
    gc.collect()
    gc.disable()  # a task must go when it is put back, not when a cycle is found
    try:
        for name in NAMES:
            bank(clips, name)
            bank.evaluate(name, [(waveform, 0) for waveform, _ in data[:2]])
            bank.predict(clips, name)
        assert len(opened) == 6
        assert [name for name, task in opened if task() is not None] == NAMES[-resident:]
    finally:
        gc.enable()


def test_the_task_that_was_not_used_for_longest_goes(saved, load, opened, clips):
    bank = load(saved, 2)
    for name in ("notes", "tones", "notes", "mix", "notes", "tones"):
        bank(clips[:1], name)
    assert [name for name, _ in opened] == ["notes", "tones", "mix", "tones"]


def test_a_call_opens_each_of_its_tasks_once(saved, load, opened, clips):
    rows = ["notes", "mix", "notes", "own", "notes", "mix"]
    load(saved, 1)(clips, rows)
    assert [name for name, _ in opened] == ["notes", "mix", "own"]
    load(saved, 1).predict(clips, rows)
    assert [name for name, _ in opened] == ["notes", "mix", "own"] * 2


@pytest.mark.parametrize("read", [lambda bank, name: bank.tasks[name], lambda bank, name: bank.task(name)])
def test_reading_a_task_pins_nothing(read, saved, load, opened):
    bank = load(saved, 2)
    gc.collect()
    gc.disable()  # as above
    try:
        for name in NAMES * 2:
            assert read(bank, name).name == name
        assert [name for name, task in opened if task() is not None] == NAMES[-2:]
    finally:
        gc.enable()


def test_a_loop_over_all_tasks_of_a_large_bank_does_not_grow(small_backbone, load, opened, tmp_path):
    whole = AdapterBank(small_backbone)
    for number in range(100):
        whole.add_task(f"t{number}", "lora", num_classes=2)
    whole.save(tmp_path / "bank")
    bank, most = load(tmp_path / "bank", 4), 0
    for loop in (bank.tasks.values(), (task for _, task in bank.tasks.items()), map(bank.task, bank.tasks)):
        for task in loop:
            assert task.num_bytes()
            most = max(most, sum(ref() is not None for _, ref in opened))
    assert most <= 4 + 2  # the one that the loop still holds, and the one that is being opened
    assert len(opened) == 300


def test_tasks_that_were_held_go_when_they_are_let_go(saved, load, opened, clips):
    bank = load(saved, 1)
    held = list(bank.tasks.values())
    assert [task.name for task in held] == NAMES
    assert all(bank.tasks[name] is task for name, task in zip(NAMES, held, strict=True))
    assert len(opened) == 6
    held.clear()
    for name in NAMES:
        bank(clips[:1], name)
    gc.collect()
    assert sum(ref() is not None for _, ref in opened) == 1


# -- what must never be lost ----------------------------------------------------------------------------------------


def in_a_loop_of_ones_own(bank, clips):
    task = bank.tasks["notes"]
    optimiser = torch.optim.SGD(task.parameters(), lr=0.1)
    bank.task_module("notes")(clips).square().sum().backward()
    optimiser.step()
    optimiser.zero_grad()


def without_a_version(bank, clips):
    bank.tasks["notes"].head.linear.bias.data += 1  # leaves the version counter as it is


def by_other_tensors(bank, clips):
    head = bank.tasks["notes"].head.linear
    head.weight = torch.nn.Parameter(head.weight.detach() + 1)


def by_a_hook(bank, clips):
    bank.tasks["notes"].head.register_forward_hook(lambda module, arguments, logits: logits + 1)


def by_an_attribute(bank, clips):
    bank.tasks["notes"].head.linear.forward = lambda x: x[:, :3] + 1


CHANGES = [in_a_loop_of_ones_own, without_a_version, by_other_tensors, by_a_hook, by_an_attribute]


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_is_lost_when_nobody_holds_the_task_any_more(change, saved, load, clips):
    bank, whole = load(saved, 1), load(saved)
    for owner in (bank, whole):
        change(owner, clips)
    gc.collect()
    for _ in range(20):
        for name in OTHERS:
            bank(clips[:1], name)
            assert bank.tasks[name].name == name
    assert not torch.equal(bank(clips, "notes"), load(saved)(clips, "notes"))
    assert torch.equal(bank(clips, "notes"), whole(clips, "notes"))


@pytest.mark.parametrize(
    "assign",
    [
        lambda task: setattr(task, "metrics", {"accuracy": 0.5}),
        lambda task: task.metrics.update(accuracy=0.5),
        lambda task: task.requires_grad_(False),
        lambda task: task.train(),
        lambda task: task.head.linear.weight.sum().backward(),
    ],
)
def test_what_is_not_in_the_logits_is_kept_too(assign, saved, load, clips):
    bank = load(saved, 1)
    assign(bank.tasks["tones"])
    for name in NAMES * 3:
        bank(clips[:1], name)
        assert bank.task(name).name == name
    expected, found = load(saved), bank.tasks["tones"]
    assign(expected.tasks["tones"])
    expected = expected.tasks["tones"]
    assert found.metrics == expected.metrics
    assert found.training == expected.training
    assert found.trainable_parameters() == expected.trainable_parameters() == bank.trainable_parameters("tones")
    assert (found.head.linear.weight.grad is None) == (expected.head.linear.weight.grad is None)


@pytest.mark.parametrize(
    "part",
    [
        lambda task: task,
        lambda task: task.head,
        lambda task: list(task.parameters()),
        lambda task: task.head.linear.bias.data,
        lambda task: task.state_dict(),
        lambda task: task.head.linear.bias.detach().numpy(),
        lambda task: task.head(torch.ones(1, 48)),  # a graph that reaches its parameters
    ],
)
def test_a_task_of_which_a_part_is_held_stays(part, saved, load, opened, clips):
    bank = load(saved, 1)
    held = part(bank.tasks["notes"])
    ref = opened[0][1]
    for name in OTHERS * 4:
        bank(clips[:1], name)
        assert bank.task(name).name == name
    assert bank.tasks["notes"] is ref()
    del held
    for name in OTHERS * 4:
        bank(clips[:1], name)
    assert ref() is None


def test_sizes_and_metrics_are_those_of_the_task_that_is_held(saved, load, printed):
    bank = load(saved, 1)
    task = bank.tasks["tones"]
    task.metrics = {"accuracy": 0.125}
    task.head.requires_grad_(False)
    assert "accuracy 0.125" in printed(bank)
    assert bank.trainable_parameters("tones") == task.trainable_parameters()


def test_an_evaluation_is_no_reason_to_keep_a_task_and_loses_no_change(saved, load, opened, clips, data, randomise):
    bank = load(saved, 1)
    for name in ("notes", "probe"):
        assert bank.task(name).name == name
    randomise(bank.task("probe"), seed=3)
    expected = bank(clips, "probe")
    metrics = {name: bank.evaluate(name, data) for name in ("notes", "probe")}
    for name in OTHERS:
        bank(clips[:1], name)
    assert opened[0][1]() is None
    assert torch.equal(bank(clips, "probe"), expected)
    assert {name: bank.tasks[name].metrics for name in metrics} == metrics


def test_moving_the_bank_is_no_reason_to_keep_a_task(saved, load, opened, clips, randomise):
    bank = load(saved, 2)
    randomise(bank.tasks["tones"], seed=3)
    expected = bank(clips, "tones")
    assert bank.tasks["notes"].name == "notes"
    bank.to("cpu", base_dtype=torch.bfloat16)
    bank.to("cpu", base_dtype=torch.float32)
    for name in OTHERS:
        bank(clips[:1], name)
    assert [name for name, ref in opened[:2] if ref() is not None] == ["tones"]
    torch.testing.assert_close(bank(clips, "tones"), expected, rtol=0, atol=0.2)  # the base was rounded to bf16


def test_a_task_that_cannot_be_compared_stays(saved, load, opened, clips):
    bank = load(saved, 1)
    task = bank.tasks["notes"]
    task.lock = threading.Lock()
    del task
    for name in OTHERS:
        bank(clips[:1], name)
    assert opened[0][1]() is bank.tasks["notes"]


def test_a_task_that_was_handed_out_stays_the_same_object(saved, load, clips):
    bank = load(saved, 1)
    bank(clips, "notes")
    held = bank.task("notes")
    for name in OTHERS * 2:
        bank(clips[:1], name)
    assert bank.task("notes") is held
    assert bank.tasks["notes"] is held
    assert dict(bank.tasks)["notes"] is held


def test_a_change_that_nothing_can_see_is_kept(saved, load, clips, tmp_path):
    bank = load(saved, 1)
    whole = load(saved)
    for owner in (bank, whole):
        owner.task("notes").head.linear.bias.data += 1  # leaves the version counter as it is
    parameters = list(bank.task_module("tones").parameters())
    for name in NAMES:
        bank(clips[:1], name)
    gc.collect()
    with torch.no_grad():
        parameters[0].add_(1)  # as an optimiser does that outlived the module
    expected = [bank(clips, name) for name in ("notes", "tones")]
    assert torch.equal(expected[0], whole(clips, "notes"))
    assert not torch.equal(expected[1], whole(clips, "tones"))
    bank.save(tmp_path / "copy")
    assert all(map(torch.equal, expected, [load(tmp_path / "copy")(clips, name) for name in ("notes", "tones")]))


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


@pytest.mark.parametrize("resident", [None, 2])
def test_a_task_that_was_opened_in_inference_mode_can_be_trained(resident, saved, load, clips, data):
    with torch.inference_mode():
        bank = load(saved, resident)
        before = bank(clips, "notes")
    bank.task_module("notes")(clips).sum().backward()
    fit(bank, "notes", data, epochs=1, batch_size=6, lr=1e-2, precision="fp32", progress=False)
    assert not torch.equal(bank(clips, "notes"), before)


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


# -- saving ---------------------------------------------------------------------------------------------------------


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


# -- files that are wrong -------------------------------------------------------------------------------------------


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


# -- threads, processes, devices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("resident", [1, 3])
def test_threads_may_ask_for_any_task_at_once(resident, saved, load, clips):
    bank, whole = load(saved, resident), load(saved)
    expected = {name: whole(clips[:2], name) for name in NAMES}
    order = [random.Random(0).choice(NAMES) for _ in range(64)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda name: bank(clips[:2], name), order))
    assert all(torch.equal(answer, expected[name]) for answer, name in zip(answers, order, strict=True))


def test_threads_that_ask_for_one_task_get_one_object(saved, load, opened):
    bank = load(saved, 1)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: bank.task("mix"), range(32)))
    assert len({id(task) for task in found}) == 1
    assert len(opened) == 1


def test_sizes_may_be_asked_for_while_another_thread_saves(saved, load, data, monkeypatch):
    bank, real = load(saved, 1), SavedTask.facts
    expected = bank.trainable_parameters("mix")
    bank.evaluate("mix", data)  # so that its file is replaced
    saving = threading.Thread(target=bank.save, args=(saved,))

    def late(self):  # the moment in between, which threads hit once in thousands of runs
        saving.start()
        saving.join(0.5)  # a save that could end here would remove the file that is about to be read
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(SavedTask, "facts", late)
        assert bank.trainable_parameters("mix") == expected
    saving.join()


def test_a_copied_bank_has_what_was_changed(saved, load, clips, randomise):
    bank = load(saved, 1)
    randomise(bank.task("notes"), seed=5)
    held = bank.task("tones")
    other = pickle.loads(pickle.dumps(bank))
    for name in NAMES:
        assert torch.equal(other(clips, name), bank(clips, name))
    assert bank.task("tones") is held


def test_a_task_module_of_such_a_bank_survives_a_pickle(saved, load, clips):
    bank = load(saved, 1)
    module = pickle.loads(pickle.dumps(bank.task_module("notes")))
    assert module._bank.task("notes") is module.task
    assert torch.equal(module(clips), bank(clips, "notes"))
    assert torch.equal(module._bank(clips, "mix"), bank(clips, "mix"))


def test_tasks_follow_the_bank_whether_they_are_open_or_not(saved, load, clips, device):
    bank, whole = load(saved, 2), load(saved)
    bank(clips, "tones")
    bank.task("notes")
    for owner in (bank, whole):
        owner.to(device, base_dtype=torch.bfloat16)
    for name in NAMES:
        assert torch.equal(bank(clips, name), whole(clips, name))
        assert all(tensor.device.type == device.type for tensor in bank.task(name).state_dict().values())
        assert all(p.dtype == torch.float32 for p in bank.task(name).parameters())
