"""Layer importance and gates: against runs made by hand, and without a trace in the task."""

from __future__ import annotations

import math

import pytest
import torch

from adapterbank.audio.mel import frame_count
from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError, DatasetError, UnknownNameError
from adapterbank.evaluation import evaluate_task
from adapterbank.inspection import LayerImportance, gate_values, layer_importance, token_gates
from adapterbank.training.fit import fit

LABELS = ["bass", "brass", "organ"]


@pytest.fixture
def bank(small_backbone, randomise):
    bank = AdapterBank(small_backbone)
    for name, method, options in (
        ("both", "aat_ms", {}),
        ("late", "aat_m", {"layers": [1]}),
        ("probe", "head", {}),
        ("gated", "aat_m", {"gate": "signal"}),
    ):
        bank.add_task(name, method, labels=LABELS, **options)
        randomise(bank.task(name), scale=0.4)
    return bank


def test_ablation_is_the_score_lost_without_the_layers_adapter(bank, labelled_clips):
    found = layer_importance(bank, "both", labelled_clips)
    whole = evaluate_task(bank.backbone, bank.task("both"), labelled_clips).metrics["accuracy"]
    for layer in range(2):
        without = bank.add_task(f"without-{layer}", "aat_ms", labels=LABELS)
        without.load_state_dict(bank.task("both").state_dict())
        with torch.no_grad():
            for kind in ("mlp", "spatial"):  # an adapter whose `up` is zero is none
                for parameter in getattr(without.adapters, kind)[layer].up.parameters():
                    parameter.zero_()
        expected = whole - evaluate_task(bank.backbone, without, labelled_clips).metrics["accuracy"]
        assert found.scores[layer] == pytest.approx(expected, abs=1e-6)
    assert found.whole == whole


def test_gradient_scores_are_those_of_one_layer_alone(bank, labelled_clips):
    found = layer_importance(bank, "late", labelled_clips[:6], kind="gradient", batch_size=6)
    module = bank.task_module("late").eval()
    loss = torch.nn.functional.cross_entropy(
        module([w for w, _ in labelled_clips[:6]]),
        torch.tensor([LABELS.index(label) for _, label in labelled_clips[:6]]),
    )
    gradients = torch.autograd.grad(loss, list(bank.task("late").adapters.parameters()))
    expected = sum(float(g.square().sum()) for g in gradients) / sum(g.numel() for g in gradients)
    assert found.scores == pytest.approx((0.0, expected), rel=1e-4)
    assert found.whole == pytest.approx(float(loss.detach()), rel=1e-4)
    assert found.top(1) == (1,)


@pytest.mark.parametrize("kind", ["ablation", "gradient"])
def test_looking_changes_nothing(kind, bank, labelled_clips, clips):
    before = {key: t.clone() for key, t in bank.task("both").state_dict().items()}
    logits = bank(clips, "both")
    layer_importance(bank, "both", labelled_clips, kind=kind)
    gate_values(bank, "gated", clips)
    assert all(torch.equal(t, bank.task("both").state_dict()[key]) for key, t in before.items())
    assert torch.equal(bank(clips, "both"), logits)
    assert all(p.grad is None and p.requires_grad for p in bank.task("both").parameters())
    assert not bank.task("both").training


def test_top_layers_are_chosen_by_score_when_a_task_is_added(bank):
    scores = LayerImportance("both", "aat_ms", "ablation", (0.2, 0.1), 0.9)
    task = bank.add_task("slim", "aat_ms", labels=LABELS, layers=scores.top(1))
    assert task.spec.options == {"layers": (0,)}
    assert task.adapters.sites(1).filled() == frozenset()
    assert LayerImportance("x", "m", "gradient", (1.0, 3.0, 2.0, 3.0), 0).top(2) == (1, 3)
    for count in (0, 3, True, 1.0, "1"):
        with pytest.raises(ConfigError, match="layers to choose, expected 1 to 2"):
            scores.top(count)


@pytest.mark.parametrize("layers", ["top:4", "top:x", "most"])
def test_a_word_for_layers_is_refused_and_the_error_says_how_to_choose_by_score(layers, bank):
    with pytest.raises(ConfigError, match=r"got layers=.*layers=layer_importance\(bank, task, data\)\.top\(4\)"):
        bank.add_task("other", "aat_ms", labels=LABELS, layers=layers)
    assert "other" not in bank.tasks


def test_a_warm_start_begins_where_the_source_stands(bank, clips):
    task = bank.add_task("warm", "aat_ms", labels=LABELS, init_from="both")
    assert torch.equal(bank(clips, "warm"), bank(clips, "both"))
    assert task.adapters.mlp[0].up.weight.data_ptr() != bank.task("both").adapters.mlp[0].up.weight.data_ptr()
    other = bank.add_task("other", "aat_ms", labels=["x", "y", "z"], init_from="both")
    assert torch.equal(other.adapters.mlp[1].up.weight, bank.task("both").adapters.mlp[1].up.weight)
    assert not torch.equal(other.head.linear.weight, bank.task("both").head.linear.weight)
    with pytest.raises(ConfigError, match="shares no tensor"):
        bank.add_task("third", "prompt", num_classes=2, init_from="both")
    with pytest.raises(UnknownNameError, match="unknown task 'nobody'"):
        bank.add_task("third", "aat_ms", num_classes=2, init_from="nobody")
    assert "third" not in bank.tasks


def test_gates_are_read_per_clip_and_layer(bank, clips):
    values = gate_values(bank, "gated", clips)
    assert values.shape == (6, 2)
    assert (values > 0).all()
    assert (values < 2).all()
    assert (values.std(0) > 1e-4).all()
    bank.add_task("half", "aat_m", labels=LABELS, gate="scalar", layers=[1])
    half = gate_values(bank, "half", clips[:2])
    assert [math.isnan(v) for v in half[0].tolist()] == [True, False]
    assert half[:, 1].tolist() == [1.0, 1.0]
    with pytest.raises(ConfigError, match="has no gate"):
        gate_values(bank, "both", clips)


def test_gates_are_read_per_token_too(bank, clips, randomise):
    bank.add_task("fine", "bottleneck", labels=LABELS, gate="signal", gate_level="token", reduction=8, layers=[1])
    bank.add_task("mixed", "aat_m+prompt", labels=LABELS, gate="signal", mode="petl", tokens=3, prompt={"layers": [1]})
    for name in ("fine", "mixed"):
        randomise(bank.task(name), scale=0.4)
    gates = token_gates(bank, "fine", clips[:2])
    adapter = bank.task("fine").adapters.mlp[1]
    heard = []
    with torch.no_grad():
        hook = adapter.register_forward_hook(lambda module, inputs, output: heard.append(module.gate(inputs[0])))
        bank(clips[:1], "fine")
        hook.remove()
    geometry = bank.backbone.geometry
    assert gates[0].shape == (geometry.tokens(geometry.whole_frames(frame_count(len(clips[0])))), 2)
    assert torch.isnan(gates[0][:, 0]).all()
    first = heard[0][0, :, 0]  # in a call the last block computes what the pooling reads, here it is all tokens
    torch.testing.assert_close(gates[0][: len(first), 1], first)
    assert gates[0][:, 1].std() > 1e-4
    torch.testing.assert_close(gate_values(bank, "fine", clips[:2])[:, 1], torch.stack([g[:, 1].mean() for g in gates]))
    (grown,) = token_gates(bank, "mixed", clips[:1])  # three prompts join before block 1
    assert torch.isnan(grown).sum(0).tolist() == [3, 0]
    with pytest.raises(ConfigError, match="has no gate"):
        token_gates(bank, "both", clips)


def test_what_cannot_be_scored_is_refused(bank):
    with pytest.raises(ConfigError, match="no adapter in any block"):
        layer_importance(bank, "probe", [])
    with pytest.raises(UnknownNameError, match="ablation, gradient"):
        layer_importance(bank, "both", [], kind="guess")
    for kind in ("ablation", "gradient"):
        with pytest.raises(DatasetError):
            layer_importance(bank, "both", [], kind=kind)


def test_dropout_follows_seed_and_step_and_leaves_the_callers_random_state(small_backbone, labelled_clips):
    states = []
    for _ in range(2):
        bank = AdapterBank(small_backbone)
        bank.add_task("d", "aat_ms", labels=LABELS, dropout=0.5)
        torch.manual_seed(len(states))
        before = torch.random.get_rng_state()
        fit(bank, "d", labelled_clips, epochs=1, batch_size=6, precision="fp32", progress=False)
        assert torch.equal(torch.random.get_rng_state(), before)
        states.append(bank.task("d").state_dict())
    assert all(torch.equal(t, states[1][key]) for key, t in states[0].items())
