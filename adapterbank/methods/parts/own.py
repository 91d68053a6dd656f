"""Copies of frozen tensors that a task may train, because nothing ever writes to the frozen tensors themselves."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def trainable_copy(frozen: Tensor) -> nn.Parameter:
    """A parameter with the values of a frozen tensor, in memory of its own.

    It is fp32 whatever the frozen tensor is stored in, because small updates would be lost in half precision.
    """
    return nn.Parameter(frozen.detach().float().clone())


def trainable_copies(frozen: Mapping[str, Tensor | None]) -> nn.ParameterDict:
    """A trainable copy of each tensor under its name; names of tensors that the backbone does not have are left out."""
    return nn.ParameterDict({name: trainable_copy(tensor) for name, tensor in frozen.items() if tensor is not None})
