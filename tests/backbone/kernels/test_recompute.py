"""What the backward pass makes anew it need not keep: less memory, and all gradients the same."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from adapterbank.backbone.kernels.recompute import recomputed


def normed(x: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:])


@pytest.fixture
def adapter() -> nn.Module:
    return nn.Sequential(nn.Linear(48, 12), nn.Sigmoid(), nn.Linear(12, 48))


@pytest.mark.parametrize("rows", [(0, 10), (4, 10), (3, 7)], ids=["all", "the last", "in the middle"])
def test_gradients_are_the_same_once_and_twice_whichever_rows_are_read(rows, adapter):
    found = []
    for again in (True, False):
        x = torch.randn(10, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
        h = normed(x)
        with recomputed(h, x, normed) if again else nullcontext():
            part = h[slice(*rows)].unflatten(0, (1, -1))
            y = adapter(part) + (part * part).softmax(-1)
        trained = [x, *adapter.parameters()]
        first = torch.autograd.grad(y.square().sum(), trained, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), trained)
        found.append([y, *first, *second])
    for one, reference in zip(*found, strict=True):
        torch.testing.assert_close(one, reference, rtol=1e-5, atol=1e-5)


def test_rows_are_made_from_no_others_than_those_they_belong_to(adapter):
    x = torch.randn(10, 48)
    h, made = normed(x), []

    def make(rows: Tensor) -> Tensor:
        made.append(rows)
        return normed(rows)

    with recomputed(h, x, make):
        y = adapter(h[4:9].unflatten(0, (1, 5)))
    assert made == []
    y.sum().backward()
    assert len(made) == 1
    assert torch.equal(made[0], x[4:9])


def test_the_rows_themselves_are_let_go_of(adapter):
    x = torch.randn(10, 48)
    h = normed(x)
    with recomputed(h, x, normed):
        y = adapter(h)
    expected = torch.autograd.grad(adapter(normed(x)).sum(), adapter[0].weight)[0]
    h.fill_(torch.nan)  # whoever had kept it would now fail, as autograd would: it was written to
    (found,) = torch.autograd.grad(y.sum(), adapter[0].weight)
    torch.testing.assert_close(found, expected)


def test_what_only_looks_like_rows_is_kept_as_it_is():
    x = torch.randn(10, 48, requires_grad=True)
    h = normed(x)
    other, turned = torch.randn(10, 48), h.t()
    with recomputed(h, x, lambda rows: pytest.fail("made rows that nobody needs")):
        y = (x * other).sum() + (turned * turned.detach()).sum()
    (found,) = torch.autograd.grad(y, x)
    (expected,) = torch.autograd.grad((x * other).sum() + (normed(x) * h.detach()).sum(), x)
    torch.testing.assert_close(found, expected)
