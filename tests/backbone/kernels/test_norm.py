"""LayerNorm of the stream into half precision: torch's in value and gradient, with half of what autograd would keep."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adapterbank.backbone.kernels.norm import stream_and_norm

EPS = 1e-12
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def operands(device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """x (6, 48), far from normalised; a gain, of which one number is 0, and a bias (48,)."""
    generator = torch.Generator().manual_seed(0)
    x, gain, bias = (torch.randn(size, generator=generator) for size in ((6, 48), (48,), (48,)))
    gain[5] = 0
    return (3 * x + 2).to(device).requires_grad_(), gain.to(device), bias.to(device)


def by_torch(x: Tensor, gain: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return x, F.layer_norm(x, gain.shape, gain, bias, eps).to(dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("read", ["both", "stream", "norm"])
def test_both_results_have_torchs_values_and_their_gradients_are_added(read, dtype, device):
    x, gain, bias = operands(device)
    found = []
    for way in (stream_and_norm, by_torch):
        stream, normed = way(x, gain, bias, EPS, dtype)
        assert (stream.dtype, normed.dtype) == (torch.float32, dtype)
        given = [torch.randn(6, 48, generator=torch.Generator().manual_seed(seed)).to(device) for seed in (1, 2)]
        parts = [(stream, given[0]), (normed, given[1].to(dtype))]
        parts = parts if read == "both" else parts[:1] if read == "stream" else parts[1:]
        (grad,) = torch.autograd.grad([y for y, _ in parts], x, [g for _, g in parts])
        found.append((stream, normed, grad))
    assert all(map(torch.equal, found[0][:2], found[1][:2]))
    near = {torch.float32: 1e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}[dtype]
    assert found[0][2].dtype == torch.float32
    torch.testing.assert_close(found[0][2], found[1][2], rtol=near, atol=near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [True, False])
def test_of_a_frozen_norm_in_half_precision_rows_are_kept_in_that_only(dtype, trained):
    x, gain, bias = operands()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        stream_and_norm(x, gain.requires_grad_(trained), bias, EPS, dtype)
    rows = {t.dtype for t in kept if t.shape == x.shape}
    assert rows == ({torch.bfloat16} if dtype == torch.bfloat16 and not trained else {torch.float32})


def test_rows_far_from_zero_lose_no_more_of_their_gradient_than_their_rounding():
    x, gain, bias = operands()
    far = (x.detach() / x.std() + 20).requires_grad_()
    given = torch.randn(6, 48, generator=torch.Generator().manual_seed(1)).bfloat16()
    ours, exact = (
        torch.autograd.grad(way(far, gain, bias, EPS, torch.bfloat16)[1], far, given)[0]
        for way in (stream_and_norm, by_torch)
    )
    assert float((ours - exact).norm() / exact.norm()) < 20 * 2**-8


def test_a_trained_gain_and_bias_get_torchs_gradients():
    x, gain, bias = operands()
    trained = [x, gain.requires_grad_(), bias.requires_grad_()]
    ours, theirs = (
        torch.autograd.grad(way(*trained, EPS, torch.bfloat16)[1].float().square().sum(), trained)
        for way in (stream_and_norm, by_torch)
    )
    assert all(map(torch.equal, ours, theirs))


def test_what_needs_no_gradient_is_torchs_norm():
    x, gain, bias = operands()
    with torch.no_grad():
        stream, normed = stream_and_norm(x, gain, bias, EPS, torch.bfloat16)
    assert stream is x
    assert torch.equal(normed, by_torch(x, gain, bias, EPS, torch.bfloat16)[1])
    still, _ = stream_and_norm(x.detach(), gain, bias, EPS, torch.bfloat16)
    assert not still.requires_grad


def test_a_second_derivative_in_half_precision_is_an_error_and_no_wrong_number():
    x, gain, bias = operands()
    _, normed = stream_and_norm(x, gain, bias, EPS, torch.bfloat16)
    (grad,) = torch.autograd.grad(normed.float().square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
