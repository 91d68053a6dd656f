"""The plan of a call: rows -> groups of one task and one length -> rows in their order."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest
import torch

from adapterbank import methods
from adapterbank.backbone import encode as ast
from adapterbank.backbone import layout as packed
from adapterbank.backbone.kernels import linear, mlp
from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError, UnknownNameError, WaveformError
from adapterbank.routing import run as routing
from adapterbank.routing.plan import chunks, plan
from adapterbank.routing.run import run_rows
from adapterbank.task.task import Task, TaskSpec


@pytest.fixture
def tasks(small_backbone):
    return [Task(TaskSpec(name, "head", ("x", "y")), small_backbone) for name in "abc"]


def test_every_row_stands_in_exactly_one_group_of_its_task_and_length(tasks):
    choose = random.Random(0)
    for _ in range(50):
        rows = [(choose.choice(tasks), choose.choice([16, 32, 48])) for _ in range(choose.randint(1, 12))]
        groups = plan([task for task, _ in rows], [frames for _, frames in rows])
        assert sorted(row for group in groups for row in group.rows) == list(range(len(rows)))
        assert all(rows[row] == (group.task, group.frames) for group in groups for row in group.rows)
        assert len({(id(group.task), group.frames) for group in groups}) == len(groups)


def test_groups_are_sorted_by_length_then_by_the_tasks_first_row(tasks):
    a, b, _ = tasks
    groups = plan([b, a, b, a, b], [32, 16, 16, 16, 32])
    assert [(g.task.name, g.frames, g.rows) for g in groups] == [("b", 16, (2,)), ("a", 16, (1, 3)), ("b", 32, (0, 4))]


def test_the_plan_depends_on_the_layout_and_never_on_values(tasks, randomise):
    a, b, _ = tasks
    before = plan([a, b, a], [16, 16, 32])
    randomise(b)
    assert plan([a, b, a], [16, 16, 32]) == before


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
    random_backbone, small_geometry, clips, randomise, monkeypatch
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
    names = {id(tensor): name for name, tensor in bank.backbone.weights.named()}
    rows: Counter[str] = Counter()
    for module, product in (
        (ast, linear.frozen_linear),
        (packed, linear.frozen_linear),
        (mlp, linear.frozen_linear),
        (mlp, linear.frozen_linear_gelu),
    ):

        def counted(x, weight, *more, product=product):
            rows[names.get(id(weight), "own")] += x.shape[:-1].numel()
            return product(x, weight, *more)

        monkeypatch.setattr(module, product.__name__, counted)
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
def test_what_runs_in_chunks_answers_as_all_at_once(most, bank_of_all, clips, monkeypatch):
    names = [list(bank_of_all.tasks)[row % len(bank_of_all.tasks)] for row in range(24)]
    waves = [clips[row % len(clips)] for row in range(24)]
    called = [bank_of_all(waves[:6], name) for name in names[:3]]
    mixed, asked = bank_of_all(waves, names), bank_of_all.ask(clips, list(bank_of_all.tasks))
    monkeypatch.setattr(routing, "CHUNK_TOKENS", most)
    for before, name in zip(called, names[:3], strict=True):
        torch.testing.assert_close(bank_of_all(waves[:6], name), before, rtol=0, atol=1e-5)
    for before, after in zip(mixed, bank_of_all(waves, names), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    for name, after in bank_of_all.ask(clips, list(bank_of_all.tasks)).items():
        torch.testing.assert_close(after, asked[name], rtol=0, atol=1e-5)


def test_chunks_hold_every_row_once_and_no_more_tokens_than_there_is_room_for(tasks, small_geometry, monkeypatch):
    monkeypatch.setattr(routing, "CHUNK_TOKENS", 60)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    mels = [torch.zeros(32 + 16 * (row % 3), 128) for row in range(20)]
    owners = [tasks[row % len(tasks)].eval() for row in range(20)]
    groups = plan(owners, [len(mel) for mel in mels])
    with torch.no_grad():
        found = chunks(groups, mels, small_geometry, torch.device("cpu"))
        assert chunks(groups, mels, small_geometry, torch.device("cuda")) == [groups]
    assert len(found) > 2
    for part in found:
        assert sum(small_geometry.tokens(group.frames) * len(group.rows) for group in part) <= 2 * 60
    rows = sorted((row, id(group.task), group.frames) for part in found for group in part for row in group.rows)
    assert rows == [(row, id(owners[row]), len(mels[row])) for row in range(20)]
    assert chunks(groups, mels, small_geometry, torch.device("cpu")) == [groups]  # with gradients: all at once
    owners[0].train()
    with torch.no_grad():
        assert chunks(groups, mels, small_geometry, torch.device("cpu")) == [groups]  # batch statistics are of a batch


def test_a_clip_that_several_tasks_hear_is_in_one_chunk_for_all_of_them(tasks, small_geometry, monkeypatch):
    monkeypatch.setattr(routing, "CHUNK_TOKENS", 1)
    mels = [torch.zeros(32, 128) for _ in range(3)]
    owners = [task.eval() for task in tasks for _ in mels]
    groups = plan(owners, [32] * len(owners))
    with torch.no_grad():
        found = chunks(groups, mels * len(tasks), small_geometry, torch.device("cpu"))
    assert [[group.rows for group in part] for part in found] == [
        [(row + 3 * place,) for place in range(len(tasks))] for row in range(3)
    ]


def test_the_front_end_runs_once_however_many_tasks_are_asked(bank_of_all, clips, monkeypatch):
    heard = []
    log_mel = routing.log_mel
    monkeypatch.setattr(routing, "log_mel", lambda waves, *rest: heard.append(len(waves)) or log_mel(waves, *rest))
    bank_of_all.ask(clips[:2], list(bank_of_all.tasks))
    assert heard == [2]


def test_tasks_that_hear_the_clip_differently_share_no_embedding(small_bank, clips, monkeypatch):
    small_bank.add_task("long", "head", num_classes=2, clip_seconds=1.0)
    small_bank.add_task("loud", "head", num_classes=2, normalize=(0.0, 3.0))
    embedded = []
    embed = ast.embed
    monkeypatch.setattr(ast, "embed", lambda mel, *rest: embedded.append(tuple(mel.shape)) or embed(mel, *rest))
    small_bank.ask(clips[:1], ["probe", "long", "notes", "loud", "mix", "own"])
    assert sorted(embedded) == [(1, 32, 128), (1, 32, 128), (1, 32, 128), (1, 112, 128)]  # "own" owns its embedding


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
def test_what_cannot_be_asked_is_refused_before_anything_runs(tasks, error, message, small_bank, clips, monkeypatch):
    monkeypatch.setattr("adapterbank.routing.run.log_mel", None)
    with pytest.raises(error, match=message):
        small_bank.ask(clips, tasks)


def test_bad_waveforms_are_refused_when_asked(small_bank):
    for bad in ([], torch.zeros(16_000), [torch.full((900,), float("nan"))], "a.wav"):
        with pytest.raises(WaveformError):
            small_bank.ask(bad, ["mix"])
