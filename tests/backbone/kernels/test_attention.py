"""Softmax attention: the formula in value and gradient, whoever computes it; what it copies and keeps."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adapterbank.backbone.kernels import attention as module
from adapterbank.backbone.kernels.attention import attention, columns

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
HALF = (torch.bfloat16, torch.float16)


def operands(keys: int = 20, *, rows: int = 2, tokens: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """q (R, 3, tokens, 16) and k, v (R, 3, keys, 16), laid out as a linear's outputs are."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, n, 3, 16) for n in (tokens, keys, keys)]
    q, k, v = (torch.randn(shape, generator=generator).transpose(1, 2) for shape in shapes)
    return q, k, v


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), dim=-1) @ v


@pytest.fixture(params=[True, False], ids=["matrix unit", "no matrix unit"])
def matrix_unit(request, monkeypatch) -> bool:
    monkeypatch.setattr(module, "has_matrix_unit", lambda: request.param)
    return request.param


@pytest.fixture
def as_without_matrix_unit(monkeypatch) -> None:
    """bf16 attention without gradients is written out, as on a processor with bf16 products and no matrix unit."""
    monkeypatch.setattr(module, "_by_products", lambda dtype: dtype == torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("most", [0, module.KEPT_SCORES])
@pytest.mark.parametrize("keys", [20, 32, 600])
@pytest.mark.parametrize("training", [True, False])
def test_attention_equals_the_softmax_formula_on_every_path(dtype, most, keys, training, matrix_unit, monkeypatch):
    monkeypatch.setattr(module, "KEPT_SCORES", most)
    q, k, v = operands(keys)
    with torch.set_grad_enabled(training):
        out = attention(q.to(dtype), k.to(dtype), v.to(dtype))
    assert out.dtype == dtype
    near = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out.float(), formula(q, k, v), rtol=0, atol=near)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("keys", [20, 23])
@pytest.mark.parametrize("at_once", [1, 2**19])
def test_gradients_of_short_sequences_equal_those_of_the_formula(dtype, keys, at_once, monkeypatch):
    monkeypatch.setattr(module, "CACHED_SCORES", at_once)
    low = [t.to(dtype).requires_grad_() for t in operands(keys)]
    wide = [t.detach().float().requires_grad_() for t in low]
    given = torch.randn(2, 3, 20, 16, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(attention(*low), low, given.to(dtype))
    for one, reference in zip(ours, torch.autograd.grad(formula(*wide), wide, given), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.float(), reference, rtol=0, atol=2e-2)


@onednn
@pytest.mark.parametrize("keys", [2, 20, 47])
@pytest.mark.parametrize("at_once", [1, 60, 1000, 5000, 2**19])
@pytest.mark.usefixtures("as_without_matrix_unit")
def test_without_gradients_scores_are_fp32_however_they_are_cut(keys, at_once, monkeypatch):
    monkeypatch.setattr(module, "CACHED_SCORES", at_once)
    monkeypatch.setattr(module, "HEAD_SCORES", at_once)
    q, k, v = (t.bfloat16() for t in operands(keys, rows=5))
    k = 8 * k  # scores of some 30: rounded to bf16 they would be off by up to 0.06
    scores = q.float() @ k.float().transpose(2, 3) / 4
    expected = scores.softmax(-1).bfloat16().float() @ v.float()
    for autocast in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = attention(q, k, v)
        torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=2e-3)


@onednn
@pytest.mark.parametrize("at_once", [60, 1500, 2**19])
@pytest.mark.usefixtures("as_without_matrix_unit")
def test_a_row_is_the_same_bits_whatever_else_is_in_the_batch_of_its_layout(at_once, monkeypatch):
    monkeypatch.setattr(module, "CACHED_SCORES", at_once)
    monkeypatch.setattr(module, "HEAD_SCORES", at_once)
    q, k, v = (t.bfloat16() for t in operands(rows=5))
    with torch.no_grad():
        before = attention(q, k, v)
        for t in (q, k, v):
            t[0] *= 3
        after = attention(q, k, v)
    assert torch.equal(before[1:], after[1:])
    assert not torch.equal(before[0], after[0])


@pytest.mark.usefixtures("as_without_matrix_unit")
def test_a_compiler_sees_torchs_own_attention(monkeypatch):
    monkeypatch.setattr(module, "_without_gradients", None)
    monkeypatch.setattr(module, "_WrittenOut", None)
    operand = [t.bfloat16() for t in operands(32)]
    run = torch.compile(attention, backend="aot_eager", fullgraph=True)
    for training in (False, True):
        with torch.set_grad_enabled(training):
            torch.testing.assert_close(run(*operand).float(), formula(*operands(32)), rtol=0, atol=3e-2)
    torch._dynamo.reset()


def test_gradients_of_q_k_and_v_reach_their_product_without_a_copy(monkeypatch):
    y = torch.randn(40, 3 * 48, generator=torch.Generator().manual_seed(0))
    given = torch.randn(2, 3, 20, 16, generator=torch.Generator().manual_seed(1)).bfloat16()

    def gradient(split) -> Tensor:
        low = y.bfloat16().requires_grad_()
        parts = (p.unflatten(0, (2, 20)).unflatten(2, (3, 16)).transpose(1, 2) for p in split(low, [48] * 3))
        (found,) = torch.autograd.grad(attention(*parts), low, given)
        return found

    expected = gradient(lambda t, sizes: t.split(sizes, dim=-1))
    monkeypatch.setattr(torch, "cat", None)
    assert torch.equal(gradient(columns), expected)


@pytest.mark.parametrize("parts", [(0, 1), (1, 0), (0, 0)], ids=["side by side", "swapped", "one twice"])
def test_gradients_of_columns_are_joined_wherever_they_lie(parts):
    y = torch.randn(4, 6, requires_grad=True)
    whole = torch.randn(4, 6)
    halves = whole.split(3, dim=-1)
    (found,) = torch.autograd.grad(columns(y, [3, 3]), y, [halves[i] for i in parts])
    assert torch.equal(found, torch.cat([halves[i] for i in parts], dim=-1))
    (one,) = torch.autograd.grad(columns(y, [2, 4])[1].sum(), y)
    assert torch.equal(one, F.pad(torch.ones(4, 4), (2, 0)))


def test_columns_have_second_derivatives():
    y = torch.randn(4, 6, requires_grad=True)
    a, b = columns(y, [2, 4])
    (first,) = torch.autograd.grad(a.pow(3).sum() + b.pow(2).sum(), y, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), y)
    torch.testing.assert_close(second, torch.cat((6 * y[:, :2], torch.full((4, 4), 2.0)), dim=-1).detach())
