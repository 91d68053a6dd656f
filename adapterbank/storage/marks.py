"""Two questions about a task that was handed out: was it changed, and does anybody still hold it?

Whoever has a task may do anything with it, and nothing tells the bank: train it, assign metrics, replace a tensor, add
a hook. So before the bank lets go of such a task it asks both questions of the object itself.
"""

from __future__ import annotations

import gc
import hashlib
import sys
from collections import Counter
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from adapterbank.storage.skeleton import without_tensors
from adapterbank.task.task import Task

_NOT_ITS_OWN = (type, ModuleType, FunctionType, BuiltinFunctionType)  # from here one would reach the whole program


def mark(task: Task) -> bytes | None:
    """A digest of all that a task is: its modules with their attributes, and every bit of its tensors.

    Version counters would be cheaper and are not enough: `parameter.data += 1` leaves them as they are.

    Returns:
        Two equal marks of one task: it was not changed in between. None: a mark cannot be taken, because the task has
        a tensor that is not saved, or an attribute that cannot be pickled.
    """
    try:
        digest = hashlib.sha256(without_tensors(task))
    except Exception:  # pickling runs code of whatever somebody attached to the task; any failure means the same here
        return None
    for name, tensor in task.state_dict(keep_vars=True).items():
        described = (name, tensor.dtype, tuple(tensor.shape), tensor.device, tensor.grad is None)
        digest.update(repr(described).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def is_held(owner: object) -> bool:
    """Whether anything outside of `owner` refers to a module or a tensor inside it, to what a module keeps by name (its
    parameters, a task's metrics), or to the memory of a tensor.

    The counters that tell are private to torch and may change in any release. If asking fails, nothing is known, and
    the answer is True: a task that stays in memory costs memory, one that is forgotten too early costs a training.

    Args:
        owner: what holds the task and is not counted itself.
    """
    try:
        return _is_held(owner)
    except Exception:  # a counter that is gone, of another kind, or of a tensor without memory
        return True


def _is_held(owner: object) -> bool:
    """As `is_held`, by counting. Raises whatever a torch raises whose counters are others.

    A weak reference to the task would not do: an optimiser holds parameters and no task, a view holds memory and no
    parameter. So all references from inside are counted, as Python's cycle collector counts them, and compared with all
    that there are.
    """
    control = torch.zeros(1)  # held by `found` alone: what it counts is what this function itself adds to each count
    found: dict[int, Any] = {0: control}
    del control
    inside: Counter[int] = Counter()
    pending = [owner]
    while pending:
        for child in gc.get_referents(pending.pop()):
            inside[id(child)] += 1
            looked_at = gc.is_tracked(child) or isinstance(child, dict)  # a dict of numbers is not tracked
            if id(child) not in found and looked_at and not isinstance(child, _NOT_ITS_OWN):
                found[id(child)] = child
                pending.append(child)
            del child
    modules = [key for key, value in found.items() if isinstance(value, nn.Module)]
    # What a module keeps by name, such as its parameters, and a task its metrics.
    kept = {
        id(value) for key in modules for value in vars(found[key]).values() if isinstance(value, dict)
    } & found.keys()
    tensors = [key for key, value in found.items() if isinstance(value, Tensor)]
    # By Python: references to a module, a tensor, or what a module keeps.
    counted_anyway = sys.getrefcount(found[0])
    if any(sys.getrefcount(found[key]) - counted_anyway > inside[key] for key in (*modules, *kept, *tensors)):
        return True
    # By torch: a graph that will go backwards through a tensor.
    counted_anyway = found[0]._use_count()
    if any(found[key]._use_count() > counted_anyway for key in tensors):
        return True
    # By torch: another tensor, or an array of NumPy, on the same memory.
    sharing = Counter(_memory(found[key])[0] for key in tensors)
    counted_anyway = _memory(found[0])[1] - 1
    return any(users - counted_anyway > sharing[memory] for memory, users in (_memory(found[key]) for key in tensors))


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Which memory a tensor has, and how many tensors and others of this process use it.

    torch counts that for its own CUDA graphs and gives it no public name.
    """
    storage = tensor.untyped_storage()
    return storage._cdata, torch._C._storage_Use_Count(storage._cdata)
