"""A saved bank whose tasks are opened when they are asked for: the same bank, with a bound on memory."""

from __future__ import annotations

import gc
import pickle
import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError, NameTakenError, UnknownNameError
from adapterbank.storage.task_file import SavedTask
from adapterbank.training.fit import fit

NAMES = ["notes", "tones", "studio", "mix", "own", "probe"]
OTHERS = NAMES[1:]


# -- the same bank ---------------------------------------------------------------------------------------------------


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


# -- the bound -------------------------------------------------------------------------------------------------------


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


# -- what the bank itself does to its tasks --------------------------------------------------------------------------


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


@pytest.mark.parametrize("resident", [None, 2])
def test_a_task_that_was_opened_in_inference_mode_can_be_trained(resident, saved, load, clips, data):
    with torch.inference_mode():
        bank = load(saved, resident)
        before = bank(clips, "notes")
    bank.task_module("notes")(clips).sum().backward()
    fit(bank, "notes", data, epochs=1, batch_size=6, lr=1e-2, precision="fp32", progress=False)
    assert not torch.equal(bank(clips, "notes"), before)


# -- threads, processes, devices -------------------------------------------------------------------------------------


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
