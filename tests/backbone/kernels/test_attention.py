"""Softmax attention: the formula in value and gradient, whoever computes it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from adapterbank.backbone.kernels import HALF, Kernels, choose, forced
from adapterbank.backbone.kernels import attention as module
from adapterbank.backbone.kernels.attention import attention

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
# Without gradients bf16 attention is written out, as on a processor with bf16 products and no matrix unit.
WITHOUT_MATRIX_UNIT = Kernels(grad=False, autocast=None, attention=(torch.bfloat16,), fill_keys=True)


def operands(keys: int = 20, *, rows: int = 2, tokens: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """q (R, 3, tokens, 16) and k, v (R, 3, keys, 16), laid out as a linear's outputs are."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, n, 3, 16) for n in (tokens, keys, keys)]
    q, k, v = (torch.randn(shape, generator=generator).transpose(1, 2) for shape in shapes)
    return q, k, v


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), dim=-1) @ v


class TorchsOwn(TorchFunctionMode):
    """The number of keys in each call of torch's kernel within it."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[int] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.keys.append(args[1].shape[2])
        return func(*args, **kwargs or {})


@pytest.fixture(params=[(), (torch.bfloat16,), HALF], ids=["torch", "bf16 written out", "half written out"])
def written_out(request) -> tuple[torch.dtype, ...]:
    """The dtypes whose attention is written out."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("no oneDNN")
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("keys", [20, 32, 600])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fill", [True, False])
def test_attention_equals_the_softmax_formula_on_every_path(dtype, keys, training, fill, written_out):
    q, k, v = operands(keys)
    with torch.set_grad_enabled(training):
        out = attention(
            *(t.to(dtype) for t in (q, k, v)), Kernels(training, None, attention=written_out, fill_keys=fill)
        )
    assert out.dtype == dtype
    assert out.shape == (2, 3, 20, 16)
    near = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out.float(), formula(q, k, v), rtol=0, atol=near)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("keys", [20, 23])
@pytest.mark.parametrize("written", [HALF, ()], ids=["written out", "torch"])
def test_gradients_of_short_sequences_equal_those_of_the_formula(dtype, keys, written):
    low = [t.to(dtype).requires_grad_() for t in operands(keys)]
    wide = [t.detach().float().requires_grad_() for t in low]
    given = torch.randn(2, 3, 20, 16, generator=torch.Generator().manual_seed(1))
    out = attention(*low, Kernels(True, None, attention=written, fill_keys=True))
    found = torch.autograd.grad(out, low, given.to(dtype))
    for one, reference in zip(found, torch.autograd.grad(formula(*wide), wide, given), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.float(), reference, rtol=0, atol=2e-2)


def test_in_training_scores_are_written_out_up_to_the_memory_that_they_would_need():
    most = math.isqrt(module.KEPT_SCORES // 3) // 16 * 16
    kernels = Kernels(True, None, attention=HALF, fill_keys=True)
    for tokens, calls in ((most, []), (most + 32, [most + 32])):
        q, k, v = (t.bfloat16() for t in operands(tokens, rows=1, tokens=tokens))
        with TorchsOwn() as torchs:
            out = attention(q, k, v, kernels)
        assert torchs.keys == calls
        torch.testing.assert_close(out[:, :, :50].float(), formula(q[:, :, :50], k, v).float(), rtol=0, atol=3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("keys", [20, 32])
@pytest.mark.parametrize("fill", [True, False])
def test_in_half_precision_torchs_kernel_is_given_whole_registers_of_keys_where_that_was_decided(dtype, keys, fill):
    with TorchsOwn() as torchs:
        attention(*(t.to(dtype) for t in operands(keys)), Kernels(True, None, fill_keys=fill))
    assert torchs.keys == [32 if fill and dtype in HALF else keys]


@onednn
@pytest.mark.parametrize("keys", [2, 20, 47])
@pytest.mark.parametrize("at_once", [1, 60, 1000, 5000, 2**19])
def test_without_gradients_scores_are_fp32_however_they_are_cut(keys, at_once, monkeypatch):
    # Sizes that are cut like this by the real numbers need gigabytes of scores, so that the numbers are made small.
    monkeypatch.setattr(module, "CACHED_SCORES", at_once)
    monkeypatch.setattr(module, "HEAD_SCORES", at_once)
    q, k, v = (t.bfloat16() for t in operands(keys, rows=5))
    k = 8 * k  # scores of some 30: rounded to bf16 they would be off by up to 0.06
    scores = q.float() @ k.float().transpose(2, 3) / 4
    expected = scores.softmax(-1).bfloat16().float() @ v.float()
    for autocast in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = attention(q, k, v, WITHOUT_MATRIX_UNIT)
        torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=2e-3)


@onednn
@pytest.mark.parametrize("at_once", [60, 1500, 2**19])
def test_a_row_is_the_same_bits_whatever_else_is_in_the_batch_of_its_layout(at_once, monkeypatch):
    # As above: each way of cutting is reached by small numbers.
    monkeypatch.setattr(module, "CACHED_SCORES", at_once)
    monkeypatch.setattr(module, "HEAD_SCORES", at_once)
    q, k, v = (t.bfloat16() for t in operands(rows=5))
    with torch.no_grad():
        before = attention(q, k, v, WITHOUT_MATRIX_UNIT)
        for t in (q, k, v):
            t[0] *= 3
        after = attention(q, k, v, WITHOUT_MATRIX_UNIT)
    assert torch.equal(before[1:], after[1:])
    assert not torch.equal(before[0], after[0])


def test_a_compiler_sees_torchs_own_attention():
    operand = [t.bfloat16() for t in operands(32)]
    seen = []

    def decided_inside(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append(choose(q.device).attention)
        return attention(q, k, v, choose(q.device))

    run = torch.compile(decided_inside, backend="aot_eager", fullgraph=True)
    for training in (False, True):
        with torch.set_grad_enabled(training), forced(attention=HALF):
            torch.testing.assert_close(run(*operand).float(), formula(*operands(32)), rtol=0, atol=3e-2)
    torch._dynamo.reset()
    assert set(seen) == {()}
