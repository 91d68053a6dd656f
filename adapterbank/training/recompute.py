"""Gradient checkpointing: a block's activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from adapterbank.backbone.kernels import forced
from adapterbank.task.task import Task


def blocks_recomputed(task: Task) -> AbstractContextManager[None]:
    """Within it, forward passes keep of each block only what enters it."""
    return forced(checkpoint=partial(_contexts, task))


def _contexts(task: Task) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What the first computation of a block runs in, and what the second one does."""
    return nullcontext(), _buffers_untouched(task)


@contextmanager
def _buffers_untouched(task: Task) -> Iterator[None]:
    """Within it modules write to copies of their buffers: a BatchNorm must not count a batch twice.

    Buffers are replaced and not written back, because autograd may hold the originals.
    """
    held = [(module, name, buffer) for module in task.modules() for name, buffer in module.named_buffers(recurse=False)]
    for module, name, buffer in held:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in held:
            setattr(module, name, buffer)
