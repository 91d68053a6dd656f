"""Class names: which are possible, and what the labels of a data set mean as targets of a loss."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adapterbank.errors import LabelsError


def check_labels(labels: Sequence[str]) -> None:
    """Class names of a task: at least one, no empty one, none twice.

    Raises:
        LabelsError: anything else.
    """
    if not labels:
        raise LabelsError("got no labels, expected at least one class.")
    if not all(isinstance(label, str) and label for label in labels):
        raise LabelsError(f"got labels {list(labels)[:5]}, expected non-empty strings.")
    if len(set(labels)) != len(labels):
        double = next(label for label in labels if list(labels).count(label) > 1)
        raise LabelsError(f"the label {double!r} stands twice; class names must differ.")


def targets(labels: Sequence[Any], classes: Sequence[str], multilabel: bool, task: str) -> Tensor:
    """The labels of B clips as a tensor for the loss.

    Args:
        labels: a class name or index per clip; for a multi-label task a collection of them, or (C,) of 0 and 1.
        classes: the C class names of the task, in the order of the logits.
        task: its name, for messages.

    Returns:
        (B,) int64, or for a multi-label task (B, C) of 0 and 1.

    Raises:
        LabelsError: a label that the task does not have.
    """
    index_of = {name: index for index, name in enumerate(classes)}
    if not multilabel:
        return torch.tensor([_index(label, index_of, task) for label in labels])
    rows = torch.zeros(len(labels), len(classes))
    for row, names in enumerate(labels):
        if isinstance(names, Tensor) and names.shape == rows[row].shape:
            rows[row] = names
            continue
        chosen = [_index(name, index_of, task) for name in ([names] if isinstance(names, (str, int)) else names)]
        if len(set(chosen)) < len(chosen):  # a list of 0 and 1 would be read as the classes 0 and 1
            raise LabelsError(
                f"got {names!r} as the labels of one clip of {task!r}, where one stands twice. Pass each name "
                f"or index once, or a tensor of {len(classes)} zeros and ones."
            )
        rows[row, chosen] = 1
    return rows


def _index(label: Any, index_of: Mapping[str, int], task: str) -> int:
    """The index of a class that is given by its name or index."""
    if isinstance(label, str):
        if label in index_of:
            return index_of[label]
    elif hasattr(label, "__index__") and 0 <= (index := operator.index(label)) < len(index_of):
        return index
    known = ", ".join(list(index_of)[:12]) + (", …" if len(index_of) > 12 else "")
    raise LabelsError(
        f"the data has the label {label!r}, which the task {task!r} with {len(index_of)} classes "
        f"does not have. Known: {known}. Pass labels=... to add_task."
    )
