"""Number formats by the names that users give them."""

from __future__ import annotations

from collections.abc import Collection

import torch

from adapterbank.errors import UnknownNameError

# "int8" is a way of storing the frozen matrices; nothing is trained in it.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}


def dtype_of(name: str, allowed: Collection[str] = tuple(DTYPES)) -> torch.dtype:
    """The torch dtype of a number format.

    Args:
        allowed: the names that make sense where this is called.

    Raises:
        UnknownNameError: any other name.
    """
    if name not in allowed:
        raise UnknownNameError("precision", name, allowed)
    return DTYPES[name]
