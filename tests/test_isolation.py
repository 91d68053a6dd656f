"""No interference, bit for bit: nothing that happens to one task reaches another's logits or the base."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.errors import AdapterBankError
from adapterbank.training.fit import fit

NAMES = ["notes", "tones", "studio", "mix", "own", "probe"]


def base_bits(bank):
    return {name: tensor.clone() for name, tensor in bank.backbone.weights.named()}


def assert_bits(bank, before):
    for name, tensor in bank.backbone.weights.named():
        assert torch.equal(tensor, before[name]), name
        assert tensor.grad is None


@pytest.mark.parametrize("seed", range(5))
def test_mixed_batches_equal_single_task_calls(seed, small_bank, clips):
    choose = random.Random(seed)
    rows = [(choose.choice(clips), choose.choice(NAMES)) for _ in range(choose.randint(1, 12))]
    mixed = small_bank([clip for clip, _ in rows], [name for _, name in rows])
    for logits, (clip, name) in zip(mixed, rows, strict=True):
        torch.testing.assert_close(logits, small_bank([clip], name)[0], rtol=0, atol=1e-5)


def test_the_order_of_rows_changes_no_answer(small_bank, clips):
    names = [NAMES[i % 6] for i in range(12)]
    waves = [clips[(5 * i) % 6] for i in range(12)]
    straight = small_bank(waves, names)
    order = random.Random(0).sample(range(12), 12)
    shuffled = small_bank([waves[i] for i in order], [names[i] for i in order])
    for place, row in enumerate(order):
        torch.testing.assert_close(shuffled[place], straight[row], rtol=0, atol=1e-5)


def test_mixed_lengths_of_one_task_equal_clips_alone(small_bank, clips):
    for name in NAMES:
        together = small_bank(clips, name)
        for row, clip in zip(together, clips, strict=True):
            torch.testing.assert_close(row, small_bank([clip], name)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("changed", NAMES)
def test_another_tasks_values_change_no_bit_in_the_same_layout(changed, small_bank, clips, randomise):
    names = NAMES * 2
    waves = [*clips, *clips[::-1]]
    before = small_bank(waves, names)
    randomise(small_bank.task(changed), seed=99, scale=3.0)
    after = small_bank(waves, names)
    for name, old, new in zip(names, before, after, strict=True):
        assert torch.equal(old, new) == (name != changed)


def test_even_a_broken_task_reaches_no_other(small_bank, clips):
    before = small_bank(clips, NAMES)
    with torch.no_grad():
        for name in ("notes", "tones", "own"):
            for parameter in small_bank.task(name).parameters():
                parameter.fill_(float("nan"))
    after = small_bank(clips, NAMES)
    for name, old, new in zip(NAMES, before, after, strict=True):
        assert new.isnan().all() if name in ("notes", "tones", "own") else torch.equal(old, new)


@pytest.mark.parametrize("changed", NAMES)
def test_another_tasks_values_change_no_bit_of_what_is_asked_together(changed, small_bank, clips, randomise):
    before = small_bank.ask(clips, NAMES)
    randomise(small_bank.task(changed), seed=99, scale=3.0)
    for name, logits in small_bank.ask(clips, NAMES).items():
        assert torch.equal(before[name], logits) == (name != changed)


def test_even_a_broken_task_reaches_no_other_that_is_asked_with_it(small_bank, clips):
    before = small_bank.ask(clips, NAMES)
    with torch.no_grad():
        for parameter in small_bank.task("mix").parameters():
            parameter.fill_(float("nan"))
    for name, logits in small_bank.ask(clips, NAMES).items():
        assert logits.isnan().all() if name == "mix" else torch.equal(before[name], logits)


METHODS = ["aat_ms", "prompt", "full", "partial", "joint", "head", "aat_m", "aat_s"]


@pytest.mark.parametrize("first", range(0, 8, 2))
def test_earlier_tasks_stay_bit_identical_over_a_sequence_of_different_methods(
    first, small_backbone, labelled_clips, clips
):
    bank = AdapterBank(small_backbone)
    before, answers, mixed = base_bits(bank), {}, {}
    for step in range(3):
        name, method = f"task{step}", METHODS[(first + step) % 8]
        bank.add_task(name, method, labels=["bass", "brass", "organ"], train_final_norm=step == 1)
        untrained = bank(clips, name)
        fit(bank, name, labelled_clips, labelled_clips[:6], epochs=2, batch_size=6, progress=False)
        assert not torch.equal(bank(clips, name), untrained)
        assert_bits(bank, before)
        for old, logits in answers.items():
            assert torch.equal(bank(clips, old), logits), (old, name)
        for layout, logits in mixed.items():
            assert all(torch.equal(a, b) for a, b in zip(bank(clips, list(layout)), logits, strict=True))
        answers[name] = bank(clips, name)
        layout = tuple(f"task{row % (step + 1)}" for row in range(6))
        mixed[layout] = bank(clips, list(layout))


def test_adding_removing_renaming_saving_loading_change_no_bit_of_the_others(small_bank, clips, tmp_path):
    before, bits = {name: small_bank(clips, name) for name in NAMES}, base_bits(small_bank)

    def check(bank: AdapterBank, *gone: str) -> None:
        assert_bits(bank, bits)
        for name in set(NAMES) - set(gone):
            assert torch.equal(bank(clips, name), before[name]), name

    small_bank.add_task("new", "full", num_classes=3)
    check(small_bank)
    small_bank.rename_task("new", "newer")
    check(small_bank)
    small_bank.save(tmp_path / "bank")
    check(small_bank)
    check(AdapterBank.load(tmp_path / "bank", small_bank.backbone, device="cpu"))
    small_bank.remove_task("newer")
    check(small_bank)
    file = next((tmp_path / "bank" / "tasks").glob("newer.*"))
    small_bank.import_task(file)
    check(small_bank)
    small_bank.evaluate("newer", [(clip, 0) for clip in clips])
    small_bank.remove_task("own")
    check(small_bank, "own")


def test_a_failed_change_leaves_the_bank_as_it_was(small_bank, clips, tmp_path):
    before, bits = {name: small_bank(clips, name) for name in NAMES}, base_bits(small_bank)
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    attempts = [
        lambda: small_bank.add_task("new", "aat_s+aat_ms", num_classes=2),
        lambda: small_bank.add_task("new", "aat_ms", num_classes=2, ratio=0),
        lambda: small_bank.add_task("new", "aat_ms"),
        lambda: small_bank.add_task("notes", "head", num_classes=2),
        lambda: small_bank.import_task(tmp_path / "x.safetensors"),
        lambda: small_bank.import_task(tmp_path / "absent.safetensors"),
        lambda: small_bank.rename_task("notes", "all"),
        lambda: fit(small_bank, "notes", [(clips[0], "dog")], progress=False),
        lambda: fit(small_bank, "notes", [(clips[0].int(), 0)], progress=False),
    ]
    for attempt in attempts:
        with pytest.raises(AdapterBankError):
            attempt()
        assert list(small_bank.tasks) == NAMES
    assert_bits(small_bank, bits)
    assert all(torch.equal(small_bank(clips, name), logits) for name, logits in before.items())


def test_inference_leaves_mode_gradients_and_random_state_alone(small_bank, clips, labelled_clips):
    state = torch.get_rng_state()
    small_bank(clips, NAMES)
    small_bank.predict(clips, "mix")
    small_bank.embed(clips)
    small_bank.evaluate("notes", [(wave, 0) for wave, _ in labelled_clips])
    small_bank.add_task("new", "joint", num_classes=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(task.training for task in small_bank.tasks.values())
    assert all(p.grad is None for task in small_bank.tasks.values() for p in task.parameters())


def test_threads_that_ask_different_tasks_get_what_serial_calls_get(small_bank, clips):
    jobs = [([clips[(i + j) % 6] for j in range(3)], [NAMES[(i * (j + 1)) % 6] for j in range(3)]) for i in range(24)]
    serial = [small_bank(waves, names) for waves, names in jobs]
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(lambda job: small_bank(*job), jobs))
    for one, other in zip(serial, parallel, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_task_may_be_trained_while_another_answers(small_bank, clips, labelled_clips):
    expected = small_bank(clips, "studio")
    small_bank.add_task("families", "joint", labels=["bass", "brass", "organ"])
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(fit, small_bank, "families", labelled_clips, epochs=2, progress=False)
        answers = [small_bank(clips, "studio") for _ in range(6)]
        training.result()
    assert all(torch.equal(answer, expected) for answer in answers)
