"""Frozen linears: torch's own linear in value and gradient, whoever computes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adapterbank.backbone.int8 import Int8Matrix
from adapterbank.backbone.kernels import Kernels, choose, forced
from adapterbank.backbone.kernels.linear import frozen_linear
from adapterbank.backbone.weights import FrozenLinear

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
bf16_products = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="a CPU without bf16 products",
)
ALL = (torch.float32, torch.bfloat16)
CPU = torch.device("cpu")


def operands(rows: int = 20, *, seed: int = 0, trained: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """x (2, rows, 48), a matrix (24, 48) and a bias (24,)."""
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(size, generator=generator) for size in ((2, rows, 48), (24, 48), (24,)))
    return x.requires_grad_(), weight.requires_grad_(trained), bias.requires_grad_(trained)


def ours(onednn: tuple[torch.dtype, ...] = ALL) -> Callable[..., Tensor]:
    """`frozen_linear` as a function of x, matrix and bias, where oneDNN multiplies these dtypes."""
    return lambda x, weight, bias: frozen_linear(
        x, FrozenLinear(weight, bias), choose(x.device)._replace(onednn=onednn)
    )


@pytest.fixture(params=[ALL, ()], ids=["onednn", "torch"])
def products(request) -> tuple[torch.dtype, ...]:
    """The dtypes that oneDNN multiplies."""
    if request.param and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("a CPU without bf16 products")
    return request.param


class Products(TorchDispatchMode):
    """The shape of each matrix that oneDNN is given within it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.mkldnn._linear_pointwise.default:
            self.seen.append(tuple(args[1].shape))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [0, 1, 20])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_frozen_linear_is_torchs_in_the_dtype_of_its_matrix(dtype, rows, has_bias, training, products):
    x, weight, bias = operands(rows)
    weight, bias = weight.to(dtype), bias.to(dtype) if has_bias else None
    with torch.set_grad_enabled(training):
        found = ours(products)(x, weight, bias)
    assert (found.shape, found.dtype) == ((2, rows, 24), dtype)
    assert found.requires_grad == training
    expected = F.linear(x.to(dtype), weight, bias)
    near = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, rtol=near, atol=near)
    if training:
        given = torch.randn_like(expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(y, x, given)[0] for y in (found, expected)), rtol=near, atol=near
        )


@bf16_products
@pytest.mark.parametrize("training", [True, False])
def test_onednn_multiplies_the_dtypes_that_were_decided_where_there_is_a_bias(training):
    x, weight, bias = operands()
    low = weight.bfloat16(), bias.bfloat16()
    bf16 = ours((torch.bfloat16,))
    with torch.set_grad_enabled(training), Products() as products:
        bf16(x, *low)
        bf16(x, *low)
        assert products.seen == [(24, 48)] * 2
        bf16(x, weight, bias)
        bf16(x, weight.half(), bias.half())
        bf16(x, low[0], None)
        bf16(x[:, :0], *low)
        ours(())(x, *low)
    assert len(products.seen) == 2


@onednn
@pytest.mark.parametrize("decided", [(torch.float32,), ()])
def test_fp32_products_are_onednns_both_ways_where_that_was_decided(decided):
    x, weight, bias = operands()
    with Products() as products:
        torch.autograd.grad(ours(decided)(x, weight, bias).sum(), x)
    assert products.seen == ([(24, 48), (48, 24)] if decided else [])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_matrix_of_the_task_runs_as_under_autocast_and_gets_its_gradients(dtype, products):
    found = []
    for way in (ours(products), F.linear):
        given = operands(trained=True)
        with torch.autocast("cpu", dtype):
            y = way(*given)
        assert y.dtype == dtype
        y.float().square().mean().backward()
        assert all(part.grad.dtype == torch.float32 for part in given)
        found.append([y.float(), *(part.grad for part in given)])
    torch.testing.assert_close(*found, rtol=2e-2, atol=1e-2)


def test_a_matrix_of_the_task_is_fp32_without_autocast_and_gets_its_gradients(products):
    found = []
    for way in (ours(products), lambda x, *more: F.linear(x.float(), *more)):
        x, weight, bias = operands(trained=True)
        y = way(x.bfloat16(), weight, bias)
        assert y.dtype == torch.float32
        found.append([y, *torch.autograd.grad(y.square().mean(), (x, weight, bias))])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@bf16_products
@pytest.mark.parametrize("which", range(3))
def test_the_only_tensor_that_is_trained_gets_its_gradient(which):
    found = []
    for way in (ours(), F.linear):
        given = [part.detach() for part in operands()]
        given[which].requires_grad_()
        found.append(torch.autograd.grad(way(*given).square().mean(), given[which])[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@bf16_products
def test_a_trained_fp32_bias_of_a_frozen_bf16_matrix_gets_its_gradient():
    found = []
    for way in (ours(), lambda x, weight, bias: F.linear(x.float(), weight.float(), bias)):
        x, weight, bias = operands()
        y = way(x, weight.bfloat16(), bias.requires_grad_())
        found.append(torch.autograd.grad(y.float().square().mean(), bias)[0])
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(*found, rtol=0, atol=2e-2 * float(found[1].abs().max()))


@bf16_products
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("spread", ["expanded", "columns"])
def test_gradients_that_are_not_contiguous_are_the_same(spread, dtype):
    x, weight, bias = operands()
    one = torch.ones(1, 1, 1, dtype=dtype).expand(2, 20, 24)
    given = one if spread == "expanded" else torch.randn(2, 20, 48).to(dtype)[..., ::2]
    spaced, packed = (
        torch.autograd.grad(ours()(x, weight.to(dtype), bias.to(dtype)), x, grad)[0]
        for grad in (given, given.contiguous())
    )
    assert torch.equal(spaced, packed)


@bf16_products
@pytest.mark.parametrize("dtype", ALL)
def test_second_derivatives_go_through_onednns_product(dtype):
    def twice(way) -> tuple[Tensor, ...]:
        x, weight, bias = (part.detach().to(dtype).requires_grad_() for part in operands(4))
        (first,) = torch.autograd.grad(way(x, weight, bias).float().pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.float().square().sum(), (x, weight, bias))

    near = 1e-5 if dtype == torch.float32 else 5e-2
    for one, reference in zip(twice(ours()), twice(F.linear), strict=True):
        torch.testing.assert_close(one.float(), reference.float(), rtol=near, atol=near * float(reference.abs().max()))


@pytest.mark.parametrize("dtype", ALL)
def test_the_backward_pass_of_a_frozen_matrix_keeps_nothing_of_what_it_read(dtype, products):
    x, weight, bias = operands()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        ours(products)(x, weight.to(dtype), bias.to(dtype))
    assert set(kept) <= {(24, 48), (48, 24)}  # the matrix, which is there anyway


@pytest.mark.parametrize("training", [True, False])
def test_a_compiler_sees_torchs_own_linear(training):
    x, weight, bias = (part.detach().bfloat16() for part in operands())

    def decided_inside(x: Tensor) -> Tensor:
        return frozen_linear(x, FrozenLinear(weight, bias), choose(x.device))

    called: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        called.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    run = torch.compile(decided_inside, backend=backend, fullgraph=True)
    with torch.set_grad_enabled(training), forced(onednn=ALL):
        assert torch.equal(run(x), F.linear(x, weight, bias))
    torch._dynamo.reset()
    assert F.linear in called
    assert not any("mkldnn" in str(function) for function in called)


@onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 20])
def test_gelu_inside_the_product_is_the_gelu_of_the_linear(dtype, rows):
    x, weight, bias = (part.detach() for part in operands(rows))
    frozen = FrozenLinear(weight.to(dtype), bias.to(dtype))
    inside, outside = (
        frozen_linear(x, frozen, Kernels(False, None, onednn=(dtype,), gelu=gelu), gelu=True) for gelu in (True, False)
    )
    expected = F.gelu(F.linear(x.to(dtype).float(), frozen.weight.float(), frozen.bias.float()))
    near = 1e-5 if dtype == torch.float32 else 2e-2
    for found in (inside, outside):
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=near, atol=near)


def test_gelu_of_an_int8_product_or_with_gradients_is_an_operation_of_its_own():
    x, weight, bias = operands()
    int8 = FrozenLinear(Int8Matrix.of(weight), bias.bfloat16())
    kernels = Kernels(False, None, onednn=(torch.float32, torch.bfloat16), gelu=True)
    with torch.no_grad():
        y = frozen_linear(x, int8, kernels, gelu=True)
    torch.testing.assert_close(y, F.gelu(F.linear(x.bfloat16(), int8.weight.wide(), int8.bias)), rtol=0, atol=0)
    learned = frozen_linear(x, FrozenLinear(weight, bias), kernels._replace(grad=True), gelu=True)
    (grad,) = torch.autograd.grad(learned.sum(), x)
    (expected,) = torch.autograd.grad(F.gelu(F.linear(x, weight, bias)).sum(), x)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-5)
