"""Frozen linears: torch's own linear in value and gradient, whoever computes it; q, k and v in one product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adapterbank.backbone.block import block
from adapterbank.backbone.int8 import Int8Matrix
from adapterbank.backbone.kernels import linear
from adapterbank.backbone.kernels.linear import Transposes, adjoin, adjoining, frozen_linear, frozen_linear_gelu, joined
from adapterbank.backbone.sites import NOTHING, Affine, Sites
from adapterbank.backbone.weights import FrozenLinear

onednn = pytest.mark.skipif(not linear.by_onednn("cpu", torch.bfloat16), reason="a CPU without bf16 products")


def operands(rows: int = 20, *, seed: int = 0, trained: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """x (2, rows, 48), a matrix (24, 48) and a bias (24,)."""
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(size, generator=generator) for size in ((2, rows, 48), (24, 48), (24,)))
    return x.requires_grad_(), weight.requires_grad_(trained), bias.requires_grad_(trained)


@pytest.fixture(params=[True, False], ids=["amd", "other"])
def maker(request, monkeypatch) -> bool:
    """Whether MKL is taken to run on AMD's processor, where oneDNN's products are used in fp32 too."""
    monkeypatch.setattr(linear, "_amd", lambda: request.param)
    return request.param


def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of each matrix that oneDNN is given from now on."""
    seen: list[tuple[int, ...]] = []
    real = linear.onednn
    monkeypatch.setattr(linear, "onednn", lambda x, w, *more: seen.append(tuple(w.shape)) or real(x, w, *more))
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [0, 1, 20])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_frozen_linear_is_torchs_in_the_dtype_of_its_matrix(dtype, rows, has_bias, training, maker):
    x, weight, bias = operands(rows)
    weight, bias = weight.to(dtype), bias.to(dtype) if has_bias else None
    with torch.set_grad_enabled(training):
        ours = frozen_linear(x, weight, bias)
    assert (ours.shape, ours.dtype) == ((2, rows, 24), dtype)
    expected = F.linear(x.to(dtype), weight, bias)
    near = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, expected, rtol=near, atol=near)
    if training:
        given = torch.randn_like(expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(y, x, given)[0] for y in (ours, expected)), rtol=near, atol=near
        )


@onednn
def test_bf16_matrices_on_the_cpu_go_to_onednn_with_gradients_and_without(monkeypatch):
    monkeypatch.setattr(linear, "_amd", lambda: False)
    seen = calls(monkeypatch)
    x, weight, bias = operands()
    low = weight.bfloat16(), bias.bfloat16()
    frozen_linear(x, *low)
    with torch.no_grad():
        frozen_linear(x, *low)
    assert seen == [(24, 48)] * 2
    frozen_linear(x, weight, bias)
    frozen_linear(x, weight.half(), bias.half())
    frozen_linear(x, low[0], None)
    assert len(seen) == 2


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
def test_fp32_matrices_go_to_onednn_both_ways_where_mkl_is_on_amds_processor(maker, monkeypatch):
    seen = calls(monkeypatch)
    x, weight, bias = operands()
    y = frozen_linear(x, weight, bias)
    torch.autograd.grad(y.sum(), x)
    assert seen == ([(24, 48), (48, 24)] if maker else [])
    with torch.no_grad():
        frozen_linear_gelu(x, weight, bias)
    assert len(seen) == (3 if maker else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_linear_with_gelu_is_the_gelu_of_a_linear(dtype, has_bias, training, maker):
    x, weight, bias = operands()
    low = torch.bfloat16 if dtype == torch.int8 else dtype
    matrix = Int8Matrix.of(weight) if dtype == torch.int8 else weight.to(dtype)
    bias = bias.to(low) if has_bias else None
    with torch.set_grad_enabled(training):
        ours = frozen_linear_gelu(x, matrix, bias)
    expected = F.gelu(F.linear(x.to(low).float(), matrix.float(), None if bias is None else bias.float()))
    near = 1e-5 if dtype == torch.float32 else 2e-2
    assert ours.dtype == low
    torch.testing.assert_close(ours.float(), expected, rtol=near, atol=near)
    assert ours.requires_grad == training


@onednn
def test_without_gradients_the_gelu_is_made_with_the_product_and_not_under_a_hook_of_fc1(
    monkeypatch, small_backbone, small_geometry
):
    made: list[str] = []
    real = linear.onednn

    def watched(x: Tensor, weight: Tensor, bias: Tensor, then: str = "none") -> Tensor:
        made.append(then)
        return real(x, weight, bias, then)

    monkeypatch.setattr(linear, "onednn", watched)
    weights, x = small_backbone.to(dtype=torch.bfloat16).weights.blocks[0], torch.randn(2, 7, 48)
    hooked = Sites(linear={"fc1": (lambda x, y, frozen: y,)})
    outputs = {}
    for name, sites, training in [("fused", NOTHING, False), ("hooked", hooked, False), ("training", NOTHING, True)]:
        made.clear()
        with torch.set_grad_enabled(training):
            (outputs[name],) = block([x], weights, [sites], small_geometry)
        assert made.count("gelu") == (name == "fused")
    torch.testing.assert_close(outputs["fused"], outputs["hooked"], rtol=0, atol=2e-2)
    torch.testing.assert_close(outputs["fused"], outputs["training"], rtol=0, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_matrix_of_the_task_runs_as_under_autocast_and_gets_its_gradients(dtype):
    found = []
    for way in (frozen_linear, F.linear):
        given = operands(trained=True)
        with torch.autocast("cpu", dtype):
            y = way(*given)
        assert y.dtype == dtype
        y.float().square().mean().backward()
        assert all(part.grad.dtype == torch.float32 for part in given)
        found.append([y.float(), *(part.grad for part in given)])
    torch.testing.assert_close(*found, rtol=2e-2, atol=1e-2)


def test_a_matrix_of_the_task_is_fp32_without_autocast_and_gets_its_gradients(maker):
    found = []
    for way in (frozen_linear, lambda x, *more: F.linear(x.float(), *more)):
        x, weight, bias = operands(trained=True)
        y = way(x.bfloat16(), weight, bias)
        assert y.dtype == torch.float32
        found.append([y, *torch.autograd.grad(y.square().mean(), (x, weight, bias))])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_second_derivatives_go_through_onednns_product(dtype, monkeypatch):
    monkeypatch.setattr(linear, "_amd", lambda: True)

    def twice(way) -> tuple[Tensor, ...]:
        x, weight, bias = (part.detach().to(dtype).requires_grad_() for part in operands(4))
        (first,) = torch.autograd.grad(way(x, weight, bias).float().pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.float().square().sum(), (x, weight, bias))

    near = 1e-5 if dtype == torch.float32 else 5e-2
    for one, reference in zip(twice(frozen_linear), twice(F.linear), strict=True):
        torch.testing.assert_close(one.float(), reference.float(), rtol=near, atol=near * float(reference.abs().max()))


@onednn
def test_the_backward_pass_of_a_frozen_matrix_keeps_nothing_of_what_it_read():
    x, weight, bias = operands()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        frozen_linear(x, weight.bfloat16(), bias.bfloat16())
    assert kept == [(24, 48)]


@pytest.fixture
def packing(monkeypatch) -> list[tuple[int, ...]]:
    """Matrices are packed for gradients whatever the CPU; the shape of each one that is, from now on."""
    monkeypatch.setattr(linear, "has_matrix_unit", lambda: False)
    packed: list[tuple[int, ...]] = []
    real = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(
        torch.ops.mkldnn, "_reorder_linear_weight", lambda w, rows: packed.append(tuple(w.shape)) or real(w, rows)
    )
    return packed


@onednn
def test_a_matrix_that_gradients_keep_passing_is_transposed_and_packed_once(packing):
    x, weight, bias = operands()
    low = weight.bfloat16(), bias.bfloat16()
    transposes = Transposes(low)
    for seed in range(6):
        assert packing == ([(48, 24)] if seed > linear.PATIENCE else [])
        given = torch.randn(2, 20, 24, generator=torch.Generator().manual_seed(seed)).bfloat16()
        ours, plain = (torch.autograd.grad(frozen_linear(x, *low, *more), x, given)[0] for more in ((transposes,), ()))
        torch.testing.assert_close(ours, plain, rtol=2e-2, atol=2e-2)
    few = torch.randn(1, 48, requires_grad=True)  # another number of rows than it was packed for
    torch.testing.assert_close(
        *(torch.autograd.grad(frozen_linear(few, *low, *more).sum(), few)[0] for more in ((transposes,), ())),
        rtol=2e-2,
        atol=2e-2,
    )
    assert packing == [(48, 24)]


@onednn
def test_matrices_are_told_apart_by_place_and_size(packing, monkeypatch):
    monkeypatch.setattr(linear, "PATIENCE", 0)
    matrices = adjoin([torch.randn(24, 48).bfloat16() for _ in range(3)])
    transposes = Transposes(matrices)
    whole = joined([FrozenLinear(matrix, None) for matrix in matrices]).weight
    for matrix in (*matrices, whole, matrices[0], whole):
        grad = torch.randn(5, len(matrix)).bfloat16()
        with torch.no_grad():
            found = linear.through(grad, matrix, transposes)
        torch.testing.assert_close(found, grad @ matrix, rtol=2e-2, atol=5e-2)
    assert packing == [(48, 24)] * 3 + [(48, 72)]


@onednn
def test_what_is_trained_fp32_or_not_the_bases_is_not_packed_nor_anything_on_a_matrix_unit(packing, monkeypatch):
    monkeypatch.setattr(linear, "PATIENCE", 0)
    x, weight, bias = operands()
    trained, low = weight.bfloat16().detach().requires_grad_(), weight.bfloat16()
    transposes = Transposes([weight, trained, low])
    frozen_linear(x, trained, bias.bfloat16(), transposes).sum().backward()
    frozen_linear(x, weight, bias, transposes).sum().backward()
    frozen_linear(x, low.clone(), bias.bfloat16(), transposes).sum().backward()
    with monkeypatch.context() as there:
        there.setattr(linear, "has_matrix_unit", lambda: True)
        frozen_linear(x, low, bias.bfloat16(), transposes).sum().backward()
    assert packing == []
    frozen_linear(x, low, bias.bfloat16(), transposes).sum().backward()
    assert packing == [(48, 24)]


@onednn
@pytest.mark.parametrize("kind", ["none", "lora on the MLP", "beside"])
@pytest.mark.parametrize("read", [None, 2])
def test_gradients_of_blocks_are_the_same_with_packed_matrices(kind, read, packing, small_backbone, small_geometry):
    weights = small_backbone.to(dtype=torch.bfloat16).weights.blocks[1]
    hook = lambda x, y, frozen: 1.5 * y  # noqa: E731
    sites = {
        "none": NOTHING,
        "lora on the MLP": Sites(linear={"fc1": (hook,), "fc2": (hook,)}),
        "beside": Sites(beside_mlp=(lambda h: h * h,)),
    }[kind]
    found = []
    for transposes in (Transposes(t for t in weights if t is not None), None):
        for _ in range(linear.PATIENCE + 1):
            generator = torch.Generator().manual_seed(0)
            xs = [torch.randn(rows, 9, 48, generator=generator).requires_grad_() for rows in (2, 3)]
            with torch.autocast("cpu", torch.bfloat16):
                outputs = block(xs, weights, [sites, NOTHING], small_geometry, [read, read], transposes)
            grads = torch.autograd.grad(sum(out.square().sum() for out in outputs), xs)
        found.append(grads)
    for one, reference in zip(*found, strict=True):
        torch.testing.assert_close(one, reference, rtol=0, atol=2e-2 * float(reference.abs().max()))
    assert len(packing) == (4 if read is None else 5)  # q, k and v are one; where fewer queries are read, k and v


@onednn
def test_second_derivatives_are_the_same_with_packed_matrices(packing, monkeypatch):
    monkeypatch.setattr(linear, "PATIENCE", 0)
    x, weight, bias = operands()
    found = []
    low = weight.bfloat16()
    for more in ((Transposes([low]),), ()):
        y = frozen_linear(x, low, bias.bfloat16(), *more)
        (first,) = torch.autograd.grad(y.float().pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*found)


def test_a_compiler_sees_torchs_own_linear(monkeypatch):
    seen = calls(monkeypatch)
    x, weight, bias = (part.detach().bfloat16() for part in operands())
    run = torch.compile(frozen_linear, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(run(x, weight, bias), F.linear(x, weight, bias))
    torch._dynamo.reset()
    assert seen == []


def test_matrices_that_adjoin_are_one_without_a_copy():
    generator = torch.Generator().manual_seed(0)
    matrices = adjoin([torch.randn(rows, 48, generator=generator) for rows in (24, 8, 16)])
    biases = [torch.randn(len(matrix), generator=generator) for matrix in matrices]
    assert adjoining(matrices)
    whole = joined(list(map(FrozenLinear, matrices, biases)))
    assert whole.weight.data_ptr() == matrices[0].data_ptr()
    assert torch.equal(whole.weight, torch.cat(matrices))
    assert torch.equal(whole.bias, torch.cat(biases))
    assert joined([FrozenLinear(matrix, None) for matrix in matrices]).bias is None
    assert torch.equal(joined(list(map(FrozenLinear, matrices[1:], biases[1:]))).weight, torch.cat(matrices[1:]))


def test_matrices_that_do_not_adjoin_or_are_trained_stay_apart():
    a, b, c = adjoin([torch.randn(24, 48) for _ in range(3)])
    for matrices in ([b, a], [a, c], [a, b.clone()], [a.T, b.T], [Int8Matrix.of(a), Int8Matrix.of(b)]):
        assert joined([FrozenLinear(matrix, None) for matrix in matrices]) is None
    assert joined([FrozenLinear(a, torch.zeros(24)), FrozenLinear(b, None)]) is None
    assert joined([FrozenLinear(a.requires_grad_(), None), FrozenLinear(b, None)]) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_base_in_another_dtype_has_q_k_and_v_of_a_block_together(dtype, small_backbone):
    there = small_backbone.to(dtype=dtype)
    for one, was in zip(there.weights.blocks, small_backbone.weights.blocks, strict=True):
        assert adjoining((one.q_weight, one.k_weight, one.v_weight))
        for name in ("q", "k", "v"):
            assert torch.equal(getattr(one, f"{name}_weight"), getattr(was, f"{name}_weight").to(dtype))


@pytest.mark.parametrize("read", [None, 2])
@pytest.mark.parametrize("training", [True, False])
def test_a_block_whose_q_k_and_v_are_together_equals_one_where_they_are_apart(
    read, training, small_backbone, small_geometry
):
    generator = torch.Generator().manual_seed(0)
    apart = small_backbone.weights.blocks[1]
    q, k, v = adjoin((apart.q_weight, apart.k_weight, apart.v_weight))
    together = apart._replace(q_weight=q, k_weight=k, v_weight=v)
    hook = lambda x, y, frozen: y + 0.1 * x + frozen.weight.sum()  # noqa: E731
    own = Affine(bias=torch.randn(48, generator=generator))
    sites = [NOTHING, Sites(linear={"q": (hook,), "v": (hook,)}), Sites(affine={"k": own, "v": own})]
    sites.append(Sites(extra_tokens=(torch.randn(3, 48, generator=generator),), affine={"k": own}))
    xs = [torch.randn(2, 7, 48, generator=generator).requires_grad_() for _ in sites]
    found = []
    with torch.set_grad_enabled(training):
        for weights in (apart, together):
            outputs = block(xs, weights, sites, small_geometry, [read] * len(sites))
            grads = torch.autograd.grad(sum(out.square().mean() for out in outputs), xs) if training else ()
            found.append([*outputs, *grads])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
