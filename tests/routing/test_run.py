"""Rows of any tasks and lengths in one call: each answers as alone, and what tasks have in common runs once."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch.overrides import TorchFunctionMode

from adapterbank import methods
from adapterbank.backbone.kernels import choose, forced
from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError, UnknownNameError, WaveformError
from adapterbank.routing.run import run_planned, run_rows
from adapterbank.task.spec import TaskSpec
from adapterbank.task.task import Task


@pytest.fixture
def tasks(small_backbone):
    return [Task(TaskSpec(name, "head", ("x", "y")), small_backbone) for name in "abc"]


def test_two_tasks_of_one_name_are_two_tasks(small_backbone, randomise):
    # As in two banks, or a task and its copy: identity counts, never the name.
    one, two = (Task(TaskSpec("a", "head", ("x", "y")), small_backbone) for _ in range(2))
    randomise(two)
    mel = torch.randn(20, 128)
    with torch.no_grad():
        first, second = run_rows(small_backbone, [one, two], [mel, mel])
        alone = run_rows(small_backbone, [two], [mel])[0]
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close(second, alone, rtol=0, atol=1e-5)


def test_lengths_of_the_call_win_over_those_of_the_task(small_backbone, tasks):
    mel = torch.randn(20, 128)
    with torch.no_grad():
        short, long = (run_rows(small_backbone, tasks[:1], [mel], [s], pooled=True)[0] for s in (None, 1.0))
        padded = torch.cat((mel, torch.zeros(112 - 20, 128)))  # 1 s: 98 frames, 7 patches of 16
        by_hand = run_rows(small_backbone, tasks[:1], [padded], pooled=True)[0]
    assert (short - long).abs().max() > 1e-3
    torch.testing.assert_close(long, by_hand, rtol=0, atol=1e-5)


@pytest.fixture
def bank_of_all(small_backbone, randomise):
    """A task of every method, as if trained; two with a length and a normalisation of their own."""
    bank = AdapterBank(small_backbone)
    for seed, name in enumerate(methods.names()):
        small = {"reduction": 8} if any("reduction" in part.options for part in methods.parse(name)) else {}
        bank.add_task(name, name, num_classes=2 + seed % 3, **small)
    bank.add_task("long", "aat_ms", num_classes=2, clip_seconds=1.0)
    bank.add_task("loud", "aat_m", num_classes=2, normalize=(0.0, 3.0), train_final_norm=True, layers=[1])
    bank.add_task("loud-probe", "head", num_classes=2, normalize=(0.0, 3.0), pooling="mean")
    for seed, task in enumerate(bank.tasks.values()):
        randomise(task, seed, scale=0.05)
    return bank


def test_asking_tasks_of_every_method_at_once_equals_calling_each(bank_of_all, clips):
    names = list(bank_of_all.tasks)
    answers = bank_of_all.ask(clips, names)
    assert list(answers) == names
    for name, logits in answers.items():
        alone = bank_of_all(clips, name)
        assert logits.shape == alone.shape == (6, len(bank_of_all.task(name).labels))
        assert not logits.requires_grad
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-5)


def test_the_order_and_number_of_tasks_asked_changes_no_answer(bank_of_all, clips):
    names = list(bank_of_all.tasks)
    all_at_once = bank_of_all.ask(clips[:2], names)
    for seed in range(3):
        chosen = random.Random(seed).sample(names, 5)
        for name, logits in bank_of_all.ask(clips[:2], chosen).items():
            torch.testing.assert_close(logits, all_at_once[name], rtol=0, atol=1e-5)


def test_answers_of_every_method_keep_their_bits_when_other_tasks_change(bank_of_all, clips, randomise):
    names, changed = list(bank_of_all.tasks), {"joint", "full", "bitfit", "moa", "lora", "conformer", "head"}
    before = bank_of_all.ask(clips[:2], names)
    for name in changed:
        randomise(bank_of_all.task(name), seed=99, scale=0.3)
    for name, logits in bank_of_all.ask(clips[:2], names).items():
        assert torch.equal(logits, before[name]) == (name not in changed), name


def test_one_task_asked_by_its_name_is_the_call_itself(small_bank, clips):
    assert torch.equal(small_bank.ask(clips, "mix")["mix"], small_bank(clips, "mix"))
    assert torch.equal(
        small_bank.ask(torch.stack([c[:4500] for c in clips]).numpy(), ["mix"])["mix"],
        small_bank([c[:4500] for c in clips], "mix"),
    )


def test_tasks_that_are_asked_together_share_all_below_their_first_sites(
    random_backbone, small_geometry, clips, randomise, tokens_per_linear
):
    bank = AdapterBank(random_backbone(dataclasses.replace(small_geometry, layers=4)))
    bank.add_task("probe", "head", num_classes=2)
    bank.add_task("probe2", "head", num_classes=3, train_final_norm=True)
    bank.add_task("last", "aat_m", num_classes=2, layers=[3])
    bank.add_task("upper", "lora", num_classes=2, layers=[2])
    bank.add_task("whole", "aat_ms", num_classes=2)
    bank.add_task("own-last", "partial", num_classes=2, blocks=1)
    for task in bank.tasks.values():
        randomise(task)
    expected = {name: bank(clips[:1] * 2, name) for name in bank.tasks}
    with tokens_per_linear(bank.backbone.weights) as rows:
        answers = bank.ask(clips[:1] * 2, list(bank.tasks))
    patches = rows["embed.patch_weight"]
    tokens = patches + 2 * 2  # cls and distillation of two rows
    assert patches == 2 * 8 * ((len(clips[0]) // 160 - 2 + 15) // 16)  # 8 rows of patches, once for all tasks
    # "whole" is alone from the first MLP on, "upper" from block 2, "own-last" in block 3; "last" changes its very end.
    # Block 3, the last, has to give cls and distillation of two rows.
    wanted = {
        f"blocks.{i}.{name}_weight": streams * length
        for i, at_q, at_fc1, length in [(0, 1, 2, tokens), (1, 2, 2, tokens), (2, 3, 3, tokens), (3, 3, 3, 2 * 2)]
        for name, streams in [("q", at_q), ("proj", at_q), ("fc1", at_fc1), ("fc2", at_fc1)]
    }
    assert {name: rows[name] for name in wanted} == wanted
    for name, logits in answers.items():
        torch.testing.assert_close(logits, expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("most", [1, 40, 10**6])
def test_what_runs_in_chunks_answers_as_all_at_once(most, bank_of_all, clips):
    names = [list(bank_of_all.tasks)[row % len(bank_of_all.tasks)] for row in range(24)]
    waves = [clips[row % len(clips)] for row in range(24)]

    def answers() -> list[torch.Tensor]:
        called = [logits for name in names[:3] for logits in bank_of_all(waves[:6], name)]
        return [*called, *bank_of_all(waves, names), *bank_of_all.ask(clips, list(bank_of_all.tasks)).values()]

    with forced(chunk_tokens=None):
        expected = answers()
    with forced(chunk_tokens=most):
        for after, before in zip(answers(), expected, strict=True):
            torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_tasks_in_training_mode_run_all_rows_at_once_and_others_in_chunks(training, tasks, small_geometry):
    # Batch statistics are those of a batch.
    mels = [torch.randn(32, 128) for _ in range(5)]
    kernels = choose(torch.device("cpu"))._replace(chunk_tokens=1)
    tasks[1].train(training)
    sizes = []

    def answers(groups, spectrograms):
        sizes.append(sum(len(x) for x in spectrograms))
        return [x.mean(dim=(1, 2)) for x in spectrograms]

    owners = [tasks[row % 2] for row in range(5)]
    found = run_planned(owners, mels, answers, small_geometry, kernels)
    assert sizes == ([5] if training else [1] * 5)
    for task, mel, answer in zip(owners, mels, found, strict=True):
        torch.testing.assert_close(answer, task.prepare(mel, 32).mean())


class Calls(TorchFunctionMode):
    """How often torch computes the spectrum of how many waveforms within it."""

    def __init__(self) -> None:
        super().__init__()
        self.waves: list[int] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.fft.rfft:
            self.waves.append(len(args[0]))
        return func(*args, **kwargs or {})


def test_the_front_end_runs_once_however_many_tasks_are_asked(bank_of_all, clips):
    with Calls() as alone:
        bank_of_all(clips[:2], "head")
    with Calls() as asked:
        bank_of_all.ask(clips[:2], list(bank_of_all.tasks))
    assert alone.waves
    assert asked.waves == alone.waves


def test_tasks_that_hear_the_clip_differently_share_no_embedding(small_bank, clips, tokens_per_linear):
    small_bank.add_task("long", "head", num_classes=2, clip_seconds=1.0)
    small_bank.add_task("loud", "head", num_classes=2, normalize=(0.0, 3.0))
    with tokens_per_linear(small_bank.backbone.weights) as rows:
        small_bank.ask(clips[:1], ["probe", "long", "notes", "loud", "mix", "own"])
    # 32 and 112 frames are 2 and 7 columns of 8 patches; "loud" is apart from the others, "own" owns its embedding.
    assert rows["embed.patch_weight"] == 8 * (2 + 2 + 7)


def test_asking_resamples_as_calling_does(small_bank, clips):
    answers = small_bank.ask(clips, ["mix", "notes"], sample_rate=8000)
    torch.testing.assert_close(answers["mix"], small_bank(clips, "mix", sample_rate=8000), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        ([], ConfigError, "got no task to ask, expected at least one name; bank.tasks lists them"),
        (["mix", "notes", "mix"], ConfigError, "got the task 'mix' twice; ask each once"),
        (["mix", "note"], UnknownNameError, "unknown task 'note'. Did you mean 'notes'?"),
        ("note", UnknownNameError, "unknown task 'note'"),
        (["mix", None], UnknownNameError, "unknown task None"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_runs(tasks, error, message, small_bank, clips):
    with Calls() as calls, pytest.raises(error, match=message):
        small_bank.ask(clips, tasks)
    assert calls.waves == []


def test_bad_waveforms_are_refused_when_asked(small_bank):
    for bad in ([], torch.zeros(96), [torch.full((900,), float("nan"))], {}):
        with pytest.raises(WaveformError):
            small_bank.ask(bad, ["mix"])
