"""The MLP of a block and of an adapter: torch's in value and gradient; of hidden units what GELU reads is kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapterbank.backbone.int8 import Int8Matrix
from adapterbank.backbone.kernels import linear, mlp
from adapterbank.backbone.kernels.linear import Transposes, by_onednn
from adapterbank.backbone.kernels.mlp import frozen_mlp, trained_mlp
from adapterbank.backbone.weights import FrozenLinear
from adapterbank.methods.aat import BottleneckAdapter

onednn = pytest.mark.skipif(not by_onednn("cpu", torch.bfloat16), reason="a CPU without bf16 products")


def linears(trained: bool = False, dtype: torch.dtype = torch.bfloat16) -> tuple[nn.Linear, nn.Linear]:
    """48 -> 96 -> 48."""
    generator = torch.Generator().manual_seed(0)
    made = nn.Linear(48, 96), nn.Linear(96, 48)
    for parameter in (p for layer in made for p in layer.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return tuple(layer.to(dtype).requires_grad_(trained) for layer in made)


def parameters(pair: tuple[nn.Linear, nn.Linear]) -> list[Tensor]:
    return [p for layer in pair for p in layer.parameters()]


def frozen(pair: tuple[nn.Linear, nn.Linear]) -> tuple[FrozenLinear, FrozenLinear]:
    first, second = (FrozenLinear(layer.weight, layer.bias) for layer in pair)
    return first, second


def rows(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1)).requires_grad_()


def kept_of(run) -> list[tuple[torch.Size, torch.dtype]]:
    kept: list[tuple[torch.Size, torch.dtype]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append((t.shape, t.dtype)) or t, lambda t: t):
        run()
    return kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("packs", [True, False])
def test_a_blocks_mlp_has_the_values_and_gradients_of_linear_gelu_linear(dtype, training, packs, monkeypatch):
    monkeypatch.setattr(linear, "PATIENCE", 0)
    monkeypatch.setattr(linear, "has_matrix_unit", lambda: False)
    first, second = pair = linears(dtype=dtype)
    x = rows(20, 48)
    with torch.set_grad_enabled(training):
        ours = frozen_mlp(x, *frozen(pair), Transposes(parameters(pair)) if packs else None)
    assert ours.dtype == dtype
    wide = [layer.float() for layer in linears(dtype=dtype)]
    expected = wide[1](F.gelu(wide[0](x)))
    near = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(ours.float(), expected, rtol=near, atol=near)
    assert first.weight.grad is None
    assert second.weight.grad is None
    if training:
        given = torch.randn(20, 48, generator=torch.Generator().manual_seed(2))
        (grad,), (reference,) = (torch.autograd.grad(y, x, given.to(y.dtype)) for y in (ours, expected))
        torch.testing.assert_close(grad, reference, rtol=0, atol=near * float(reference.abs().max()))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(20, 48), (2, 10, 48), (1, 48)])
def test_an_adapters_mlp_has_the_values_and_gradients_of_linear_gelu_linear(size, precision):
    pair, wide = linears(True, torch.float32), linears(True, torch.float32)
    x = rows(*size)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        ours = trained_mlp(x, pair[0], nn.Identity(), pair[1])
    assert (ours.dtype, ours.shape) == (precision, x.shape)
    expected = wide[1](F.gelu(wide[0](x)))
    near = 1e-5 if precision == torch.float32 else 3e-2
    given = torch.randn(size, generator=torch.Generator().manual_seed(2))
    found, wanted = (
        torch.autograd.grad(y, [x, *(p for layer in layers for p in layer.parameters())], given.to(y.dtype))
        for y, layers in ((ours, pair), (expected, wide))
    )
    torch.testing.assert_close(ours.float(), expected, rtol=near, atol=near)
    for one, reference in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, reference, rtol=0, atol=near * float(reference.abs().max()))


@onednn
def test_of_bf16_hidden_units_only_what_gelu_reads_is_kept():
    pair = linears()
    kept = kept_of(lambda: frozen_mlp(rows(20, 48), *frozen(pair)))
    assert [size for size, _ in kept if size[0] == 20] == [(20, 96)]
    by_torch = kept_of(lambda: pair[1](F.gelu(pair[0](rows(20, 48).bfloat16()))))
    assert [size for size, _ in by_torch if size[0] == 20] == [(20, 96)]

    trained = linears(True, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        kept = kept_of(lambda: trained_mlp(rows(20, 48), trained[0], nn.Identity(), trained[1]))
        by_torch = kept_of(lambda: trained[1](F.gelu(trained[0](rows(20, 48)))))
    assert sorted(size for size, _ in kept if size[0] == 20) == [(20, 48), (20, 96)]
    assert sorted(size for size, _ in by_torch if size[0] == 20) == [(20, 48), (20, 96), (20, 96)]


@onednn
@pytest.mark.parametrize("which", range(4))
def test_an_adapter_of_which_only_one_tensor_is_trained_gets_its_gradient(which):
    found = []
    for layers in (linears(False, torch.float32), linears(False, torch.float32)):
        own = parameters(layers)
        own[which].requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            if found:
                y = layers[1](F.gelu(layers[0](rows(20, 48))))
            else:
                y = trained_mlp(rows(20, 48).detach(), layers[0], nn.Identity(), layers[1])
        found.append(torch.autograd.grad(y.float().square().sum(), own[which])[0])
    torch.testing.assert_close(*found, rtol=0, atol=2e-2 * float(found[1].abs().max()))


@onednn
def test_only_bf16_with_gradients_is_by_hand(monkeypatch):
    calls: list[str] = []
    real = mlp._Mlp.apply
    monkeypatch.setattr(mlp._Mlp, "apply", lambda *given: calls.append("by hand") or real(*given))
    pair = linears()
    frozen_mlp(rows(20, 48), *frozen(pair))
    assert calls == ["by hand"]
    with torch.no_grad():
        frozen_mlp(rows(20, 48), *frozen(pair))
    frozen_mlp(rows(20, 48).detach(), *frozen(pair))
    frozen_mlp(rows(0, 48), *frozen(pair))
    frozen_mlp(rows(20, 48), *frozen(linears(dtype=torch.float32)))
    first, second = frozen(pair)
    frozen_mlp(rows(20, 48), first._replace(bias=None), second)
    frozen_mlp(rows(20, 48), first._replace(weight=Int8Matrix.of(first.weight)), second)
    with torch.autocast("cpu", torch.bfloat16):
        frozen_mlp(rows(20, 48), *frozen(linears(True, torch.float32)))  # owned by a task, as `full` owns it
    down, up = linears(True, torch.float32)
    trained_mlp(rows(20, 48), down, nn.Identity(), up)
    assert calls == ["by hand"]


@onednn
def test_a_trained_fp32_bias_of_a_frozen_bf16_mlp_gets_its_gradient():
    first, second = frozen(linears())
    found = []
    for way in (
        frozen_mlp,
        lambda x, a, b: F.linear(F.gelu(F.linear(x, *map(Tensor.float, a))), *map(Tensor.float, b)),
    ):
        own = first._replace(bias=first.bias.float().detach().requires_grad_())
        y = way(rows(20, 48), own, second)
        found.append(torch.autograd.grad(y.float().square().sum(), own.bias)[0])
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(*found, rtol=0, atol=2e-2 * float(found[1].abs().max()))


@onednn
@pytest.mark.parametrize("spread", ["expanded", "columns"])
def test_gradients_that_are_not_contiguous_are_the_same(spread):
    pair = linears()
    x = rows(20, 48)
    one = torch.ones(1, 1).bfloat16().expand(20, 48)
    given = one if spread == "expanded" else torch.randn(20, 96).bfloat16()[:, ::2]
    ours, plain = (
        torch.autograd.grad(frozen_mlp(x, *frozen(pair)), x, grad)[0] for grad in (given, given.contiguous())
    )
    assert torch.equal(ours, plain)


@onednn
@pytest.mark.parametrize("part", ["down", "drop", "up"])
@pytest.mark.parametrize("kind", ["hook", "class"])
def test_a_part_of_an_adapter_that_does_more_is_called_in_bf16_training_too(part, kind):
    adapter = BottleneckAdapter(48, 0.25, torch.Generator())
    seen: list[torch.dtype] = []
    module = getattr(adapter, part)
    if kind == "hook":
        module.register_forward_hook(lambda *given: seen.append(given[2].dtype))
    else:
        own = type(
            "Own", (type(module),), {"forward": lambda self, x: seen.append(x.dtype) or super(own, self).forward(x)}
        )
        module.__class__ = own
    with torch.autocast("cpu", torch.bfloat16):
        adapter(rows(20, 48)).float().sum().backward()
    assert len(seen) == 1


def test_dropout_of_an_adapter_drops_hidden_units_in_bf16_training_too():
    adapter = BottleneckAdapter(48, 0.25, torch.Generator(), dropout=0.5).train()
    nn.init.normal_(adapter.up.weight)
    with torch.autocast("cpu", torch.bfloat16):
        one, other = (adapter(rows(20, 48)) for _ in range(2))
    assert not torch.equal(one, other)
