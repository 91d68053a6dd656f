"""What every method must keep: start where it says, train all it has, be stored, routed and isolated like any."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapterbank import methods
from adapterbank.backbone.weights import PREFIX_TOKENS
from adapterbank.bank import AdapterBank
from adapterbank.errors import CompositionError, ConfigError, UnknownNameError
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts.gate import Gated
from adapterbank.routing.module import TaskModule
from adapterbank.routing.run import mels_of
from adapterbank.training.fit import fit

SMALL = {"reduction": 8}
# Options that make sense at width 48 and two layers; every registered method stands here at least once.
CASES = {
    "head": ("head", {}),
    "linear": ("linear", {}),
    "full": ("full", {}),
    "partial": ("partial", {}),
    "aat_m": ("aat_m", {}),
    "aat_s": ("aat_s", {"dropout": 0.2}),
    "aat_ms": ("aat_ms", {"layers": [1]}),
    "prompt": ("prompt", {}),
    "prompt_petl": ("prompt", {"mode": "petl", "tokens": 3, "pooling": "mean"}),
    "prompt_overwrite": ("prompt", {"mode": "overwrite", "tokens": 3}),
    "shallow_prompt": ("shallow_prompt", {"tokens": 5, "pooling": "mean"}),
    "prefix": ("prefix", {"tokens": 3}),
    "lora": ("lora", {"targets": ["q", "k", "v", "proj", "fc1", "fc2"], "rank": 2}),
    "dora": ("lora", {"rank": 2, "dora": True, "dropout": 0.1}),
    "bitfit": ("bitfit", {}),
    "ln_tuning": ("ln_tuning", {}),
    "bottleneck": ("bottleneck", {**SMALL, "gate": "scalar"}),
    "houlsby": ("bottleneck", {**SMALL, "placement": "houlsby", "form": "sequential", "activation": "relu"}),
    "conformer": ("conformer", {**SMALL, "train_block_norms": True}),
    "conformer_group": ("conformer", {**SMALL, "norm": "group", "gate": "signal", "placement": "houlsby"}),
    "conformer_layer": ("conformer", {**SMALL, "norm": "layer", "inner_norm": True, "form": "sequential"}),
    "moa": ("moa", {**SMALL, "slots": 2}),
    "moa_dense": ("moa", {**SMALL, "kind": "dense", "gate": "signal", "gate_level": "token"}),
    "joint": ("joint", {}),
    "lora-prompt": ("lora+prompt", {"rank": 2}),
    "conformer-lora": ("conformer+lora", {**SMALL, "rank": 2}),
}
# Their adapter in the last block makes a token of its neighbours, or of the whole clip.
READS_OTHER_TOKENS = {"conformer", "conformer_group", "conformer_layer", "moa", "conformer-lora"}
NOT_THE_BASE = {"prompt", "prompt_petl", "prompt_overwrite", "shallow_prompt", "prefix", "joint", "lora-prompt"}


def test_every_registered_method_is_tested_here():
    named = {part.name for method, _ in CASES.values() for part in methods.parse(method)}
    assert named >= {name for name in methods.names() if name not in methods.ALIASES}


@pytest.fixture
def add(small_backbone):
    """A bank with tasks of these cases."""

    def make(*cases):
        bank = AdapterBank(small_backbone)
        for case in cases:
            method, options = CASES[case]
            bank.add_task(case, method, num_classes=3, **options)
        return bank

    return make


@pytest.mark.parametrize("case", [case for case in CASES if case not in NOT_THE_BASE])
def test_an_untrained_method_is_the_base(case, add, clips):
    bank = add(case)
    task = bank.task(case)
    bank.add_task("reference", "head", num_classes=3, head=task.spec.head, pooling=task.spec.pooling)
    bank.task("reference").head.load_state_dict(task.head.state_dict())
    assert (bank(clips, case) - bank(clips, "reference")).abs().max() <= 1e-6


@pytest.mark.parametrize("case", sorted(NOT_THE_BASE))
def test_what_is_documented_to_start_elsewhere_does(case, add, clips):
    bank = add(case)
    bank.add_task("reference", "head", num_classes=3, pooling=bank.task(case).spec.pooling)
    bank.task("reference").head.load_state_dict(bank.task(case).head.state_dict())
    assert (bank(clips, case) - bank(clips, "reference")).abs().max() > 1e-6


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_has_a_gradient_within_two_steps(case, add, clips):
    bank = add(case)
    module = bank.task_module(case)
    module.train()
    moved = set()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(clips), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
        moved |= {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
    still = {name for name, _ in module.named_parameters()} - moved
    # A softmax takes no notice of what is added to all its logits, so key biases have no gradient.
    still = {name for name in still if not name.endswith(("k_bias", ".k"))}
    if case == "prompt_overwrite":
        assert still == {"task.adapters.prompts.0"}  # as in AAT's released code
    else:
        assert not still


class ReadingAll(Adapters):
    """A task's adapters, and in the last block one more that adds zero and does not say that it acts per token."""

    def __init__(self, inner: Adapters, last: int):
        super().__init__()
        self.inner, self.last = inner, last

    def sites(self, layer):
        sites = self.inner.sites(layer)
        return sites if layer < self.last else replace(sites, beside_mlp=(*sites.beside_mlp, torch.zeros_like))

    def owned(self, base):
        return self.inner.owned(base)


@pytest.mark.parametrize("case", CASES)
def test_the_last_block_leaves_out_what_no_head_reads_and_nothing_else(case, add, clips, randomise, small_geometry):
    bank = add(case)
    task = bank.task(case)
    randomise(task)
    simple = task.with_adapters(ReadingAll(task.adapters, small_geometry.layers - 1))  # all tokens to the end
    pools_all = task.spec.pooling == "mean"
    cut = None if pools_all or case in READS_OTHER_TOKENS else PREFIX_TOKENS
    assert task.segment(bank.backbone.weights).read == cut
    assert simple.segment(bank.backbone.weights).read is None

    def answer(version):
        task.zero_grad()
        logits = TaskModule(version, bank)(clips)
        logits.square().sum().backward()
        return logits, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in task.named_parameters()}

    (logits, gradients) = answer(task)
    whole, expected = answer(simple)
    torch.testing.assert_close(logits, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_trained_task_comes_back_from_disk_with_the_same_logits(case, add, clips, labelled_clips, tmp_path):
    bank = add(case)
    data = [(waveform, ["bass", "brass", "organ"].index(label)) for waveform, label in labelled_clips]
    fit(bank, case, data, epochs=1, batch_size=6, lr=1e-2, precision="fp32", progress=False)
    bank.save(tmp_path / "bank")
    again = AdapterBank.load(tmp_path / "bank", backbone=bank.backbone)
    assert torch.equal(again(clips, case), bank(clips, case))
    assert again.task(case).spec.to_json() == bank.task(case).spec.to_json()


@pytest.mark.parametrize("seed", range(4))
def test_mixed_batches_of_all_methods_equal_rows_alone(seed, add, clips, randomise):
    bank = add(*CASES)
    for index, name in enumerate(bank.tasks):
        randomise(bank.task(name), seed=index, scale=0.05)
    names = list(bank.tasks)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = [(clips[place % len(clips)], names[index]) for place, index in enumerate(order)]
    mixed = bank([clip for clip, _ in rows], [name for _, name in rows])
    for logits, (clip, name) in zip(mixed, rows, strict=True):
        torch.testing.assert_close(logits, bank([clip], name)[0], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_no_bit_of_a_row_depends_on_the_values_of_other_tasks(case, add, clips, randomise):
    others = ["conformer", "dora", "bitfit", "joint", "full", "moa"]
    bank = add(case, *(other for other in others if other != case))
    rows = [case, *(other for other in bank.tasks if other != case)]
    batch = [clips[place % len(clips)] for place in range(len(rows))]
    before = bank(batch, rows)[0]
    for other in rows[1:]:
        randomise(bank.task(other), scale=0.3)
        bank.task(other).train()
        bank.task(other).eval()
    assert torch.equal(bank(batch, rows)[0], before)


def test_batch_statistics_move_only_while_their_own_task_trains(add, clips, labelled_clips):
    bank = add("conformer", "conformer_group", "aat_ms")
    bank.add_task("second", "conformer", num_classes=3, **SMALL)
    buffers = {name: dict(bank.task(name).named_buffers()) for name in bank.tasks}
    before = {name: {key: t.clone() for key, t in own.items()} for name, own in buffers.items()}
    assert before["conformer"]
    bank(clips * 2, ["conformer", "second", "aat_ms"] * 4)
    data = [(waveform, ["bass", "brass", "organ"].index(label)) for waveform, label in labelled_clips]
    fit(bank, "second", data, epochs=1, batch_size=6, precision="fp32", progress=False)
    for key, tensor in before["conformer"].items():
        assert torch.equal(tensor, buffers["conformer"][key])
    assert any(not torch.equal(t, dict(bank.task("second").named_buffers())[k]) for k, t in before["second"].items())


@pytest.mark.parametrize("case", CASES)
def test_training_in_bf16_stays_finite(case, add, labelled_clips):
    bank = add(case)
    data = [(waveform, ["bass", "brass", "organ"].index(label)) for waveform, label in labelled_clips]
    history = fit(bank, case, data, epochs=2, batch_size=6, lr=1e-2, precision="bf16", progress=False)
    assert all(torch.isfinite(t).all() for t in bank.task(case).state_dict().values())
    assert history.steps == 4


@pytest.mark.parametrize(
    ("method", "options", "error", "message"),
    [
        ("bottleneck", {**SMALL, "form": "beside"}, UnknownNameError, "unknown form 'beside'.*parallel, sequential"),
        ("bottleneck", {**SMALL, "placement": "x"}, UnknownNameError, "houlsby, pfeiffer"),
        ("bottleneck", {"activation": "tanh"}, UnknownNameError, "gelu, relu"),
        ("bottleneck", {"reduction": 0}, ConfigError, "got reduction=0"),
        ("bottleneck", {**SMALL, "form": "sequential", "gate": "signal"}, ConfigError, "form='parallel'"),
        ("aat_m", {"gate": "loud"}, UnknownNameError, "scalar, signal, static"),
        ("aat_m", {"gate_level": "row"}, UnknownNameError, "clip, token"),
        ("aat_ms", {"dropout": 1.0}, ConfigError, r"got dropout=1\.0"),
        ("aat_ms", {"layers": [2]}, ConfigError, r"got layers=\[2\].*0 to 1"),
        ("aat_ms", {"layers": []}, ConfigError, "at least one block"),
        ("aat_ms", {"layers": [1, -1]}, ConfigError, "each once"),
        ("aat_ms", {"layers": "some"}, ConfigError, "expected 'all'"),
        ("lora", {"rank": 0}, ConfigError, "got rank=0"),
        ("lora", {"targets": ["query"]}, UnknownNameError, "unknown target of lora 'query'"),
        ("lora", {"targets": "q"}, ConfigError, "expected a list"),
        ("lora", {"alpha": -1}, ConfigError, "got alpha=-1"),
        ("conformer", {**SMALL, "norm": "instance"}, UnknownNameError, "batch, group, layer"),
        ("conformer", {**SMALL, "kernel": 0}, ConfigError, "got kernel=0"),
        ("moa", {**SMALL, "kind": "hard"}, UnknownNameError, "dense, soft"),
        ("moa", {**SMALL, "experts": 0}, ConfigError, "got experts=0"),
        ("prefix", {"tokens": 0}, ConfigError, "got tokens=0"),
        ("shallow_prompt", {"tokens": 0}, ConfigError, "got tokens=0"),
        ("prompt", {"mode": "append"}, UnknownNameError, "discard, overwrite, petl"),
        ("bitfit+ln_tuning", {}, CompositionError, "'bitfit' and 'ln_tuning' both fill the site affine"),
        (
            "aat_s+bottleneck",
            {**SMALL, "form": "sequential", "placement": "houlsby"},
            CompositionError,
            "after_attention",
        ),
        ("full+bitfit", {}, CompositionError, "'full' and 'bitfit' both own"),
    ],
)
def test_impossible_options_and_clashes_are_refused_by_name(method, options, error, message, small_backbone):
    bank = AdapterBank(small_backbone)
    with pytest.raises(error, match=message):
        bank.add_task("new", method, num_classes=2, **options)
    assert not bank.tasks


def test_a_signal_gate_follows_the_sound_and_a_scalar_gate_does_not(small_backbone, clips):
    adapter = torch.nn.Identity()
    h = torch.randn(4, 7, 48)
    for level, shape in (("clip", (4, 1, 1)), ("token", (4, 7, 1))):
        gate = Gated(adapter, "signal", level, 48)
        assert torch.equal(gate.gate(h), torch.ones(shape))
        torch.nn.init.normal_(gate.weight)
        opened = gate.gate(h)
        assert opened.shape == shape
        expected = 2 / (1 + torch.exp(-(h.mean(1, keepdim=True) if level == "clip" else h) @ gate.weight))[..., None]
        torch.testing.assert_close(opened, expected)
        torch.testing.assert_close(gate(h), expected * h)
    scalar = Gated(adapter, "scalar", "clip", 48)
    torch.nn.init.constant_(scalar.scale, 0.5)
    torch.testing.assert_close(scalar(h), 0.5 * h)


def test_petl_prompts_replace_each_other_and_the_last_ones_stay(small_backbone, clips):
    from adapterbank.backbone.encode import encode

    bank = AdapterBank(small_backbone)
    task = bank.add_task("p", "prompt", num_classes=2, mode="petl", tokens=3, pooling="mean")
    (mel,) = mels_of(small_backbone, clips[:1])
    x = task.prepare(mel, small_backbone.geometry.whole_frames(len(mel)))[None]
    (tokens,) = encode([x], [task.segment(small_backbone.weights)], small_backbone.geometry)
    bank.add_task("plain", "head", num_classes=2, pooling="mean")
    (plain,) = encode([x], [bank.task("plain").segment(small_backbone.weights)], small_backbone.geometry)
    assert tokens.shape[1] == plain.shape[1] + 3
