"""Compiled tasks answer as the bank does, are snapshots, and leave the bank as it was."""

from __future__ import annotations

import copy
import pickle
import shutil

import pytest
import torch
from torch import nn
from torch._inductor import config

from adapterbank import CompiledTask, methods
from adapterbank.backbone.int8 import Int8Matrix
from adapterbank.backbone.sites import Sites
from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError, UnknownNameError, WaveformError
from adapterbank.methods.base import Adapters
from adapterbank.training.fit import fit

# Options that make sense at width 48; a method that does not stand here is compiled with its defaults.
OPTIONS = {
    "bottleneck": {"reduction": 8},
    "conformer": {"reduction": 8, "train_block_norms": True},
    "moa": {"reduction": 8},
    "shallow_prompt": {"tokens": 5, "pooling": "mean"},
    "lora": {"rank": 2, "targets": ["q", "k", "v", "proj", "fc1", "fc2"]},
}
CASES = {name: (name, OPTIONS.get(name, {})) for name in methods.names()} | {
    "rslora": ("lora", {"rank": 2, "rslora": True, "dropout": 0.1}),
    "dora": ("lora", {"rank": 2, "dora": True, "targets": ["k", "v", "fc2"]}),
    "prompt_petl": ("prompt", {"mode": "petl", "tokens": 3, "pooling": "mean"}),
    "prompt_overwrite": ("prompt", {"mode": "overwrite", "tokens": 3}),
    "signal_gate": ("aat_ms", {"gate": "signal", "dropout": 0.1}),
    "sequential": ("bottleneck", {"reduction": 8, "placement": "houlsby", "form": "sequential"}),
    "many": ("lora+bitfit+prompt+prefix+aat_ms", {"lora": {"rank": 2, "targets": ["q", "k", "v", "fc1"]}}),
    "own_norm": ("aat_ms", {"train_final_norm": True, "clip_seconds": 1.0, "normalize": (-5.0, 3.0)}),
}
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda module: pickle.loads(pickle.dumps(module))}


@pytest.fixture
def bank_of(small_backbone, randomise):
    """A bank with tasks of these cases, as if trained."""

    def make(*cases, **to):
        bank = AdapterBank(small_backbone).to(**to)
        for seed, case in enumerate(cases):
            method, options = CASES[case]
            randomise(bank.add_task(case, method, num_classes=3, **options), seed, scale=0.05)
        return bank

    return make


@pytest.fixture
def own_method():
    """A method that computes what stands at its sites, and hands out a function that is made anew each time."""

    class Computed(Adapters):
        def __init__(self, width):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, width))

        def sites(self, layer):
            if layer:
                return Sites(after_mlp=lambda x: x + self.token)
            return Sites(tokens=(2 * self.token,))

    @methods.register("computed", paper="-", parameters="D")
    def computed(geometry, base, generator):
        """A token."""
        return Computed(geometry.width)

    yield "computed"
    methods.unregister("computed")


@pytest.fixture
def own_bias():
    """A method that owns one tensor of a block, and takes the others from the frozen one."""

    class OneBias(Adapters):
        def __init__(self, base):
            super().__init__()
            self.bias = nn.Parameter(base.blocks[1].fc2_bias.detach().clone())

        def owned(self, base):
            return base._replace(blocks=(base.blocks[0], base.blocks[1]._replace(fc2_bias=self.bias)))

    @methods.register("one_bias", paper="-", parameters="D")
    def one_bias(geometry, base, generator):
        """A bias."""
        return OneBias(base)

    yield "one_bias"
    methods.unregister("one_bias")


def test_a_method_that_owns_one_tensor_of_a_block_compiles(small_backbone, randomise, own_bias, clips):
    bank = AdapterBank(small_backbone)
    randomise(bank.add_task("t", own_bias, num_classes=3))
    torch.testing.assert_close(bank.compile_task("t")(clips), bank(clips, "t"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_banks(case, bank_of, clips):
    bank = bank_of(case)
    torch.testing.assert_close(bank.compile_task(case)(clips), bank(clips, case), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["aat_ms", "dora", "joint", "full", "conformer"])
def test_with_a_bf16_base_they_are_as_far_off_as_bf16_is(case, bank_of, clips):
    exact = bank_of(case)(clips, case)
    bank = bank_of(case, base_dtype=torch.bfloat16)
    error = (bank(clips, case) - exact).abs().max()
    assert (bank.compile_task(case)(clips) - exact).abs().max() <= 3 * error + 1e-5


def test_compiling_and_running_leaves_every_task_and_the_base_bit_identical(small_bank, clips):
    before = {name: small_bank(clips, name) for name in small_bank.tasks}
    tensors = {name: tensor.clone() for name, tensor in small_bank.backbone.weights.named()}
    states = {name: {key: t.clone() for key, t in task.state_dict().items()} for name, task in small_bank.tasks.items()}
    for name in small_bank.tasks:
        small_bank.compile_task(name)(clips)
    for name, task in small_bank.tasks.items():
        assert torch.equal(small_bank(clips, name), before[name])
        assert all(torch.equal(t, states[name][key]) for key, t in task.state_dict().items())
        assert all(p.requires_grad for p in task.parameters())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in small_bank.backbone.weights.named())


@pytest.mark.parametrize("case", ["many", "full", "prompt_overwrite", "conformer", "own_norm"])
def test_later_training_and_removal_do_not_reach_it(case, bank_of, clips, labelled_clips):
    bank = bank_of(case)
    module = bank.compile_task(case)
    before, trained = module(clips), bank(clips, case)
    data = [(waveform, ["bass", "brass", "organ"].index(label)) for waveform, label in labelled_clips]
    fit(bank, case, data, epochs=1, batch_size=6, lr=1e-2, precision="fp32", progress=False)
    assert not torch.equal(bank(clips, case), trained)
    bank.remove_task(case)
    assert torch.equal(module(clips), before)


def test_it_stays_in_eval_mode_and_keeps_no_gradients(bank_of, clips):
    module = bank_of("signal_gate").compile_task("signal_gate")
    assert not any(part.training for part in module.modules())
    before = module(clips)
    after = module.train()(clips)
    assert not any(part.training for part in module.modules())
    assert torch.equal(after, before)
    assert not after.requires_grad
    assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("case", CASES)
def test_a_state_dict_holds_exactly_the_tasks_own_tensors(case, bank_of):
    bank = bank_of(case)
    kept = bank.compile_task(case).state_dict()
    assert set(kept) == {f"_task.{name}" for name in bank.task(case).state_dict()}
    for name, tensor in bank.task(case).state_dict().items():
        assert torch.equal(kept[f"_task.{name}"], tensor)
        assert kept[f"_task.{name}"].data_ptr() != tensor.data_ptr()


def test_blocks_that_a_task_owns_are_not_kept_frozen_too(bank_of, clips):
    bank = bank_of("full", "partial", "aat_ms")
    frozen = {case: [len(list(b.buffers())) for b in bank.compile_task(case).blocks] for case in bank.tasks}
    assert frozen == {"full": [0, 0], "partial": [16, 0], "aat_ms": [16, 16]}


def test_what_a_function_may_read_is_kept(small_backbone, randomise, own_method, clips):
    bank = AdapterBank(small_backbone)
    randomise(bank.add_task("t", f"{own_method}+aat_m", num_classes=3), scale=0.05)
    module = bank.compile_task("t")
    assert {f"_task.{name}" for name in bank.task("t").state_dict()} == set(module.state_dict())
    torch.testing.assert_close(module(clips), bank(clips, "t"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["aat_ms", "lora"])
def test_a_state_is_not_loaded_into_a_snapshot(case, bank_of, clips):
    module = bank_of(case).compile_task(case)
    before = module(clips)
    state = {name: torch.zeros_like(tensor) for name, tensor in module.state_dict().items()}
    around = nn.ModuleDict({"m": module})
    for owner, given in ((module, state), (around, {f"m.{name}": tensor for name, tensor in state.items()})):
        with pytest.raises(ConfigError, match=rf"'{case}', which is a snapshot.*compile_task\('{case}'\)"):
            owner.load_state_dict(given)
    assert torch.equal(module(clips), before)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("case", ["prompt_overwrite", "prompt_petl", "many", "conformer", "aat_ms"])
def test_a_copy_runs_by_itself(case, how, bank_of, clips):
    module = bank_of(case).compile_task(case)
    before = module(clips)
    copied = COPIES[how](module)
    for tensor in module.parameters():  # buffers are the bank's
        tensor.zero_()
    assert torch.equal(copied(clips), before)
    assert copied.labels == module.labels


def test_a_copy_of_what_torch_compiled_runs_by_itself(bank_of, clips, monkeypatch):
    compiled = []
    # In place of the compiler, which takes a minute: what it is given is what counts.
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or (lambda x: function(x)))
    module = bank_of("aat_ms").compile_task("aat_ms", torch_compile=True)
    copied = copy.deepcopy(module)
    before = copied(clips)
    assert [function.__self__ for function in compiled] == [module, copied]
    for parameter in module.parameters():
        parameter.zero_()
    assert torch.equal(copied(clips), before)


def test_computed_tensors_follow_a_move(small_backbone, own_method):
    bank = AdapterBank(small_backbone)
    bank.add_task("t", own_method, num_classes=3)
    module = bank.compile_task("t").to("meta")
    assert module._logits(torch.empty(1, 48, 128, device="meta")).device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("case", ["lora", "many", "head"])
def test_frozen_tensors_are_shared_with_the_bank_and_all_other_modules(case, dtype, bank_of):
    bank = bank_of(case, base_dtype=dtype)
    modules = [bank.compile_task(case) for _ in range(2)]

    def place(tensor: torch.Tensor) -> int:
        return (tensor.levels if isinstance(tensor, Int8Matrix) else tensor).data_ptr()

    for name, tensor in bank.backbone.weights.named():
        assert {place(module.get_buffer(name)) for module in modules} == {place(tensor)}


def test_moving_it_leaves_the_bank_where_it_is(bank_of, device, clips):
    bank = bank_of("many")
    expected = bank(clips, "many")
    module = bank.compile_task("many").to(device)
    assert {t.device.type for t in [*module.parameters(), *module.buffers()]} == {device.type}
    torch.testing.assert_close(module(clips).cpu(), expected, rtol=0, atol=1e-4)
    module.to("meta")
    assert bank.backbone.device.type == "cpu"
    assert torch.equal(bank(clips, "many"), expected)


def test_other_sample_rates_labels_and_predictions_are_the_tasks(bank_of, clips):
    bank = bank_of("aat_ms")
    module = bank.compile_task("aat_ms")
    logits = module(clips, sample_rate=22_050)
    torch.testing.assert_close(logits, bank(clips, "aat_ms", sample_rate=22_050), rtol=0, atol=1e-5)
    names = [module.prediction(row).labels for row in module(clips)]
    assert names == [prediction.labels for prediction in bank.predict(clips, "aat_ms")]
    assert module.labels == bank.task("aat_ms").labels
    assert isinstance(module, CompiledTask)
    assert not hasattr(module, "task")


def test_unknown_tasks_and_bad_waveforms_are_refused(bank_of):
    bank = bank_of("head")
    with pytest.raises(UnknownNameError, match="unknown task 'tail'.*Known: head"):
        bank.compile_task("tail")
    with pytest.raises(WaveformError, match="expected"):
        bank.compile_task("head")(torch.zeros(96))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("case", ["many", "conformer", "prompt_overwrite"])
def test_through_torch_compile_logits_are_the_banks(case, bank_of, clips):
    bank = bank_of(case)
    module = bank.compile_task(case, torch_compile=True)
    for batch in (clips[:2], clips[:1]):
        torch.testing.assert_close(module(batch), bank(batch, case), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_modules_whose_tensors_are_constants_answer_with_their_own_numbers(bank_of, clips, randomise):
    bank = bank_of("aat_ms")
    modules = []
    for seed in range(2):
        randomise(bank.task("aat_ms"), seed)
        modules.append((bank.compile_task("aat_ms", torch_compile=True), bank(clips[:1], "aat_ms")))
    assert not torch.allclose(modules[0][1], modules[1][1], atol=1e-3)
    for module, expected in (*modules, modules[0]):
        torch.testing.assert_close(module(clips[:1]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "constants"), [(torch.float32, True), (torch.bfloat16, True), (torch.int8, False)])
def test_only_floating_matrices_on_the_cpu_are_packed_in_advance(dtype, constants, bank_of, clips, monkeypatch):
    seen = []
    # In place of the compiler, which takes a minute: what is tested is under which settings it runs.
    monkeypatch.setattr(torch, "compile", lambda function: lambda x: seen.append(config.freezing) or function(x))
    bank = bank_of("head")
    bank.to(base_dtype=dtype)
    bank.compile_task("head", torch_compile=True)(clips[:1])
    bank.compile_task("head")(clips[:1])
    assert seen == [constants]
    assert not config.freezing
