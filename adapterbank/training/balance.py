"""Rare classes: how often each class occurs in the training data, and the weights that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adapterbank.data.pairs import Pairs
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.numbers import is_real
from adapterbank.task.task import Task
from adapterbank.text import amount, nfc

SAMPLERS = ("shuffled", "balanced")
ClassWeights = str | Mapping[str, float] | Sequence[float] | None


def check_class_weights(given: Any) -> ClassWeights:
    """Class weights as plain values: None, "balanced", a dict or a tuple of floats. Raises ConfigError."""
    if given is None or (isinstance(given, str) and given == "balanced"):
        return given
    if isinstance(given, Mapping):
        values, plain = list(given.values()), all(isinstance(name, str) for name in given)
    else:
        many = hasattr(given, "tolist") or (isinstance(given, Sequence) and not isinstance(given, str))
        values = given.tolist() if hasattr(given, "tolist") else list(given) if many else []
        values, plain = values if isinstance(values, list) else [], True
    if not plain or not values or not all(is_real(value) and value > 0 for value in values):
        raise ConfigError(
            f"got class_weights={given!r}, expected 'balanced', a positive number per class such as "
            "{'siren': 3.0} (classes that are left out have 1) or one per class in the order of the labels, or None."
        )
    return {name: float(given[name]) for name in given} if isinstance(given, Mapping) else tuple(map(float, values))


def labels_of(data: Any) -> list[Any]:
    """The label of each clip of a training, without reading clips where the data set allows it."""
    known = data.labels() if isinstance(data, Pairs) else getattr(data, "targets", None)
    return [data[index][1] for index in range(len(data))] if known is None else list(known)


def class_counts(task: Task, labels: Sequence[Any]) -> Tensor:
    """How many of these clips have each class of the task, (C,). Raises LabelsError."""
    targets = task.targets(labels)
    if targets.ndim == 2:
        return targets.sum(dim=0)
    return targets.bincount(minlength=len(task.labels)).float()


def class_weights(task: Task, given: ClassWeights, labels: Sequence[Any] = ()) -> Tensor | None:
    """The weight of each class in the loss, (C,); None if all count alike.

    Args:
        given: as the option `class_weights` has it.
        labels: of the training clips, for "balanced". Each class then has clips / (classes x its clips) as its weight,
            as in scikit-learn; in a multi-label task, clips without it / clips with it. A class without a clip has 1.

    Raises:
        ConfigError: another number of weights than the task has classes. UnknownNameError: a class it does not have.
    """
    if given is None:
        return None
    classes = task.labels
    if isinstance(given, str):
        counts, clips = class_counts(task, labels), len(labels)
        balanced = (clips - counts) / counts if task.spec.multilabel else clips / (len(classes) * counts)
        usable = (counts > 0) & (balanced > 0)
        return torch.where(usable, balanced, torch.ones(()))
    if isinstance(given, Mapping):
        in_nfc = {nfc(name): index for index, name in enumerate(classes)}
        weights = torch.ones(len(classes))
        for name, weight in given.items():
            if name not in classes and nfc(name) not in in_nfc:
                raise UnknownNameError(f"class of {task.name!r} in class_weights", name, classes)
            weights[classes.index(name) if name in classes else in_nfc[nfc(name)]] = weight
        return weights
    if len(given) != len(classes):
        raise ConfigError(
            f"got {len(given)} class_weights for the {amount(len(classes), 'class')} of {task.name!r}, expected one "
            f"per class in the order of bank.task({task.name!r}).labels, or {{name: weight}}."
        )
    return torch.tensor(given)


def clip_weights(task: Task, labels: Sequence[Any]) -> Tensor:
    """How often the balanced sampler draws each clip, up to a factor: (clips,).

    It is one over the number of clips of its class, so that every class is heard as often as any other. A clip with
    several labels has the sum over them; clips without a label count as a class of their own.
    """
    targets, counts = task.targets(labels), class_counts(task, labels).clamp(min=1)
    if targets.ndim == 1:
        return (1 / counts.double())[targets]
    weights = targets.double() @ (1 / counts.double())
    empty = weights == 0
    return torch.where(empty, 1 / empty.sum().clamp(min=1), weights)
