"""Memory for time in training: what the backward pass can compute again need not be kept.

Symbols: S rows, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def recomputed(h: Tensor, x: Tensor, make: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within it autograd keeps no rows of `h`, (S, D): the backward pass makes them again from `x`, (S, D).

    Args:
        make: computes rows of `h` from the same rows of `x`.
    """
    place, width, dtype, source = h.untyped_storage().data_ptr(), h.shape[-1], h.dtype, x.detach()

    def keep(t: Tensor) -> Tensor | tuple[int, torch.Size]:
        rows = t.is_contiguous() and t.ndim > 1 and t.shape[-1] == width and t.dtype == dtype
        if not rows or t.untyped_storage().data_ptr() != place:
            return t.detach()  # autograd puts it back into its place of the graph when it unpacks
        return int(t.storage_offset()) // width, t.shape  # where the rows begin in h, and their shape

    def get(kept: Tensor | tuple[int, torch.Size]) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        start, shape = kept
        with torch.no_grad():
            return make(source[start : start + math.prod(shape[:-1])]).view(shape)

    with torch.autograd.graph.saved_tensors_hooks(keep, get):
        yield
