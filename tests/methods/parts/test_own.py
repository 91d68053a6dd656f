"""Trainable copies of frozen tensors: the same values, in fp32, in memory of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterbank.methods import trainable_copies, trainable_copy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_copy_is_a_trainable_fp32_tensor_of_its_own(dtype):
    frozen = torch.randn(3, 4).to(dtype)
    before = frozen.clone()
    own = trainable_copy(frozen)
    assert isinstance(own, nn.Parameter)
    assert own.requires_grad
    assert own.dtype == torch.float32
    assert torch.equal(own, frozen.float())
    with torch.no_grad():
        own += 1
    assert torch.equal(frozen, before)


def test_a_copy_of_a_trained_tensor_has_no_gradient_to_it():
    trained = torch.randn(3, requires_grad=True)
    trainable_copy(trained).sum().backward()
    assert trained.grad is None


def test_copies_keep_their_names_and_leave_absent_tensors_out():
    copies = trainable_copies({"weight": torch.ones(2), "bias": None})
    assert {name: tensor.tolist() for name, tensor in copies.items()} == {"weight": [1.0, 1.0]}
