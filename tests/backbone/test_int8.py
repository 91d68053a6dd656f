"""The frozen matrices in int8: rounded as the formula says, and a bf16 tensor to everything but a product."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adapterbank.backbone.int8 import Int8Matrix
from adapterbank.backbone.kernels import choose
from adapterbank.backbone.kernels.linear import frozen_linear
from adapterbank.backbone.weights import LINEAR_NAMES, FrozenLinear
from adapterbank.bank import AdapterBank
from adapterbank.errors import BackboneError
from adapterbank.training.fit import fit
from adapterbank.training.many import fit_many


def product(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """As a block makes it."""
    return frozen_linear(x, FrozenLinear(matrix, bias), choose(x.device))


@pytest.fixture
def exact():
    matrix = torch.randn(24, 48)
    matrix[3] = 0  # an output that is never on
    matrix[5, 7] = 40.0
    return matrix


@pytest.fixture
def matrix(exact):
    return Int8Matrix.of(exact)


def test_every_weight_is_rounded_to_the_nearest_of_255_levels_of_its_output(exact, matrix):
    step = exact.abs().amax(dim=1, keepdim=True) / 127
    assert matrix.levels.dtype == torch.int8
    step[3] = 1  # of an output that is never on
    assert (matrix.scales.float() >= step).all()
    assert (matrix.scales.float() <= step * (1 + 2**-7)).all()  # bf16 has eight bits
    assert matrix.levels.abs().amax() == 127
    assert ((matrix.levels * matrix.scales.float() - exact).abs() <= matrix.scales.float() / 2 * 1.001).all()
    assert torch.equal(matrix.wide(), (matrix.levels * matrix.scales.float()).bfloat16())


def test_rounding_what_was_rounded_changes_nothing(matrix):
    again = Int8Matrix.of(matrix)
    assert torch.equal(again.levels, matrix.levels)
    assert torch.equal(again.scales, matrix.scales)


def test_a_product_and_its_gradient_are_those_of_the_bf16_matrix(matrix):
    bias = torch.randn(24).bfloat16()
    x, same = (torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    ours = product(x, matrix, bias)
    reference = F.linear(same.bfloat16(), matrix.wide(), bias)
    assert torch.equal(ours, reference)
    ours.float().square().sum().backward()
    reference.float().square().sum().backward()
    torch.testing.assert_close(x.grad, same.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_inputs_and_biases_come_through_autocast(dtype, matrix):
    grads = []
    for weight in (matrix, matrix.wide()):
        torch.manual_seed(0)
        x, bias = torch.randn(2, 5, 48, requires_grad=True), torch.randn(24).bfloat16().requires_grad_()
        with torch.autocast("cpu", dtype):
            y = product(x, weight, bias)
        y.float().square().mean().backward()
        grads.append((y.float(), x.grad, bias.grad))
    torch.testing.assert_close(grads[0], grads[1], rtol=2e-2, atol=1e-3)


def test_a_frozen_matrix_is_neither_written_to_nor_trained(matrix):
    with pytest.raises(BackboneError, match="write to a frozen int8 matrix"):
        matrix.add_(1)
    with torch.enable_grad(), pytest.raises(BackboneError, match=r"copy it with .float\(\)"):
        product(torch.randn(2, 48), torch.nn.Parameter(matrix), None)


def test_a_product_compiles(matrix):
    x = torch.randn(5, 48).bfloat16()
    run = torch.compile(lambda x: product(x, matrix, None), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(run(x), product(x, matrix, None))
    torch._dynamo.reset()


def test_the_backward_pass_keeps_no_copy_of_the_matrix(matrix):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        product(torch.randn(5, 48, requires_grad=True), matrix, None)
    assert (24, 48) not in kept
    assert (48, 24) not in kept


def test_every_other_operation_sees_a_bf16_tensor(matrix):
    wide = matrix.wide()
    assert (matrix.shape, matrix.dtype, matrix.device) == (wide.shape, wide.dtype, wide.device)
    assert torch.equal(matrix.float(), wide.float())
    assert torch.equal(matrix + 1, wide + 1)
    assert torch.equal(torch.cat((matrix, wide)), torch.cat((wide, wide)))
    assert torch.equal(matrix.norm(dim=1), wide.norm(dim=1))


def test_copies_stay_in_int8(matrix):
    stream = io.BytesIO()
    torch.save(matrix, stream)
    stream.seek(0)
    read = torch.load(stream, weights_only=False)  # our own bytes
    for other in (matrix.clone(), matrix.detach(), copy.deepcopy(matrix), matrix.to("cpu", copy=True), read):
        assert isinstance(other, Int8Matrix)
        assert torch.equal(other.levels, matrix.levels)
        assert torch.equal(other.scales, matrix.scales)


def test_matrices_of_the_blocks_are_int8_and_nothing_else_is(small_backbone):
    base = small_backbone.to(dtype=torch.int8)
    kinds = {name: isinstance(tensor, Int8Matrix) for name, tensor in base.weights.named()}
    expected = {f"blocks.{layer}.{name}_weight" for layer in range(2) for name in LINEAR_NAMES}
    assert {name for name, kind in kinds.items() if kind} == expected
    assert base.weights.blocks[0].fc1_bias.dtype == base.weights.embed.patch_weight.dtype == torch.bfloat16
    assert base.weights.blocks[0].ln1_weight.dtype == base.weights.embed.positions.dtype == torch.float32
    assert (base.fingerprint, base.dtype) == (small_backbone.fingerprint, torch.bfloat16)
    back = base.to(dtype=torch.float32)
    assert not any(isinstance(tensor, Int8Matrix) for _, tensor in back.weights.named())
    gap = (back.weights.blocks[1].fc2_weight - small_backbone.weights.blocks[1].fc2_weight).abs().max()
    assert 0 < gap < 0.02


@pytest.mark.parametrize("method", ["aat_ms", "lora", "full", "prompt", "conformer"])
def test_tasks_answer_train_and_compile_on_an_int8_base(method, small_backbone, clips, labelled_clips, randomise):
    bank = AdapterBank(small_backbone)
    options = {"lora": {"dora": True}, "conformer": {"reduction": 8}}.get(method, {})
    task = bank.add_task("t", method, labels=["bass", "brass", "organ"], **options)
    randomise(task.head)
    exact = bank(clips, "t")
    bank.to(base_dtype=torch.int8)
    assert (bank(clips, "t") - exact).abs().max() < 0.25
    before = bank(clips, "t")
    other = AdapterBank(small_backbone)
    other.add_task("t", method, labels=["bass", "brass", "organ"], **options).load_state_dict(task.state_dict())
    training = {"epochs": 3, "lr": 1e-3, "precision": "bf16", "progress": False}
    ours, reference = (fit(which, "t", labelled_clips, **training) for which in (bank, other))
    for epoch, expected in zip(ours.epochs, reference.epochs, strict=True):
        assert abs(epoch["train/loss"] - expected["train/loss"]) < 0.1
    assert not torch.equal(bank(clips, "t"), before)
    compiled = bank.compile_task("t")(clips)
    torch.testing.assert_close(compiled, bank(clips, "t"), rtol=0, atol=0.1)


def test_on_an_int8_base_caches_and_trainings_together_learn_what_single_ones_do(small_backbone, labelled_clips):
    bank = AdapterBank(small_backbone.to(dtype=torch.int8))
    plain = {"epochs": 2, "lr": 1e-3, "freq_mask": 0, "time_mask": 0, "order": "shared", "progress": False}
    names = ["alone", "cached", "first", "second"]
    for name in names:
        task = bank.add_task(name, "aat_ms", labels=["bass", "brass", "organ"], layers=[1])
        task.load_state_dict(bank.task("alone").state_dict())
    histories = {"alone": fit(bank, "alone", labelled_clips, **plain)}
    histories["cached"] = fit(bank, "cached", labelled_clips, cache="memory", **plain)
    histories |= fit_many(bank, ["first", "second"], labelled_clips, **plain)
    losses = [[epoch["train/loss"] for epoch in histories[name].epochs] for name in names]
    assert losses[0][0] > losses[0][1]
    torch.testing.assert_close(torch.tensor(losses[1:]), torch.tensor(losses[:1]).expand(3, 2), rtol=0, atol=1e-2)


def test_a_base_without_biases_of_queries_keys_and_values_answers_in_int8(random_backbone, small_geometry, clips):
    bank = AdapterBank(random_backbone(small_geometry, qkv_bias=False))
    bank.add_task("t", "head", num_classes=3)
    exact = bank.embed(clips)
    bank.to(base_dtype=torch.int8)
    assert 0 < (bank.embed(clips) - exact).abs().max() < 0.25


@pytest.mark.parametrize("method", ["aat_ms", "lora", "bitfit", "head"])
def test_a_compiled_task_keeps_all_matrices_in_int8_and_so_do_its_copies(method, small_backbone, clips):
    bank = AdapterBank(small_backbone)
    bank.add_task("t", method, num_classes=3)
    bank.to(base_dtype=torch.int8)
    compiled = bank.compile_task("t")
    expected = compiled(clips)
    torch.testing.assert_close(expected, bank(clips, "t"), rtol=0, atol=1e-5)
    for module in (compiled, copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled)), compiled.share_memory()):
        assert all(isinstance(getattr(module.blocks[1](), f"{name}_weight"), Int8Matrix) for name in LINEAR_NAMES)
        assert torch.equal(module(clips), expected)


def test_rows_of_any_tasks_and_clips_asked_by_several_run_on_an_int8_base(small_backbone, clips, randomise):
    bank = AdapterBank(small_backbone)
    for name, method in (("a", "aat_ms"), ("b", "lora"), ("c", "bitfit")):
        randomise(bank.add_task(name, method, num_classes=3))
    bank.to(base_dtype=torch.int8)
    names = ["a", "b", "c", "a", "b", "c"]
    answers = bank.ask(clips, ["a", "b", "c"])
    for row, (name, logits) in enumerate(zip(names, bank(clips, names), strict=True)):
        torch.testing.assert_close(logits, bank(clips[row : row + 1], name)[0], rtol=0, atol=3e-2)
        torch.testing.assert_close(logits, answers[name][row], rtol=0, atol=3e-2)


def test_another_dtype_leaves_no_int8_behind(small_backbone):
    base = small_backbone.to(dtype=torch.int8)
    assert base.to(dtype=torch.int8).weights.blocks[0].q_weight is base.weights.blocks[0].q_weight
    half = base.to(dtype=torch.bfloat16).weights.blocks[0].q_weight
    assert type(half) is torch.Tensor
    assert torch.equal(half, base.weights.blocks[0].q_weight.wide())


def test_other_integers_are_refused(small_backbone):
    bank = AdapterBank(small_backbone)
    with pytest.raises(BackboneError, match=r"got base_dtype=torch.int16, expected .*torch.int8"):
        bank.to(base_dtype=torch.int16)
    assert bank.backbone.dtype == torch.float32
