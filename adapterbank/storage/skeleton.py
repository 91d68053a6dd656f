"""A task's modules without their tensors, so that the next task of the same kind is put together in no time.

Building a task runs the constructors of a hundred modules and draws random numbers that its file then overwrites; a
bank of a thousand tasks holds few kinds. A skeleton is the built task as an object graph, kept in memory by pickle
with every tensor left out; a file's tensors are put in as the graph is restored.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapterbank import methods
from adapterbank.backbone.backbone import Backbone
from adapterbank.task.spec import TaskSpec
from adapterbank.task.task import Task


class Skeleton:
    """One kind of task.

    Attributes:
        shapes: {name: (shape, dtype)} of the tensors that a task of this kind has.
    """

    def __init__(self, task: Task):
        self.shapes = shapes_of(task)
        self._content = without_tensors(task)

    def task(self, spec: TaskSpec, backbone: Backbone, tensors: Mapping[str, Tensor]) -> Task:
        """A task of this kind with copies of these tensors on the backbone's device; they have been checked."""
        task: Task = _Filling(self._content, tensors, backbone.device).load()
        task.describe(spec, backbone)
        return task


class Built:
    """A task that was built for one file, as no skeleton of its kind can be kept. A skeleton gives an equal task."""

    def __init__(self, task: Task):
        self.shapes = shapes_of(task)
        self._task = task

    def task(self, spec: TaskSpec, backbone: Backbone, tensors: Mapping[str, Tensor]) -> Task:
        """The task itself with copies of these tensors; to be called once."""
        self._task.load_state_dict(tensors)
        return self._task


class Skeletons:
    """The kinds of task of one backbone that were built so far."""

    def __init__(self) -> None:
        self._kinds: dict[str, Skeleton] = {}

    def of(self, spec: TaskSpec, backbone: Backbone) -> Skeleton | Built:
        """What tensors become such a task with; it is built only if it is the first of its kind.

        Tasks of methods from outside the package are built each time: such a method may draw values that no file has.
        """
        if methods.foreign(spec.method):  # asked each time: a name of ours may have been registered anew
            return Built(Task(spec, backbone))
        built_from = (spec.method, dict(spec.options), spec.head, len(spec.labels), spec.train_final_norm, spec.frozen)
        kind = json.dumps(built_from, sort_keys=True)
        if kind in self._kinds:
            return self._kinds[kind]
        task = Task(spec, backbone)
        try:
            return self._kinds.setdefault(kind, Skeleton(task))
        except (pickle.PicklingError, AttributeError):  # a local function in it, or a tensor that is not saved
            return Built(task)


def without_tensors(task: Task) -> bytes:
    """The pickle of a task's modules, with a name in place of each tensor.

    Raises:
        pickle.PicklingError, AttributeError: a tensor in it is not in its state dict, or an object in it, such as a
            local function, cannot be pickled.
    """
    names = {id(tensor): name for name, tensor in task.state_dict(keep_vars=True).items()}
    content = io.BytesIO()
    _Leaving(names, content).dump(task)
    return content.getvalue()


def shapes_of(task: Task) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Of every tensor that is saved."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in task.state_dict().items()}


class _Leaving(pickle.Pickler):
    """Writes a name in place of each tensor."""

    def __init__(self, names: Mapping[int, str], content: io.BytesIO):
        super().__init__(content, pickle.HIGHEST_PROTOCOL)
        self._names = names

    def persistent_id(self, obj: Any) -> tuple[str, bool, bool] | None:
        if not isinstance(obj, Tensor):
            return None
        if id(obj) not in self._names:
            raise pickle.PicklingError(f"a tensor of shape {tuple(obj.shape)} is in the task, but not in its state.")
        return self._names[id(obj)], isinstance(obj, nn.Parameter), obj.requires_grad


class _Filling(pickle.Unpickler):
    """Reads a tensor in place of each name."""

    def __init__(self, content: bytes, tensors: Mapping[str, Tensor], device: torch.device):
        super().__init__(io.BytesIO(content))
        self._tensors, self._device = tensors, device

    def persistent_load(self, pid: tuple[str, bool, bool]) -> Tensor:
        name, is_parameter, requires_grad = pid
        # A copy: what lies in a file's bytes is not aligned, and alignment may change the last bit of a product.
        own = self._tensors[name].to(self._device, copy=True)
        return nn.Parameter(own, requires_grad) if is_parameter else own
