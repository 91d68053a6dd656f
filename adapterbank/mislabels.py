"""Which labels of a dataset a trained task doubts: confident learning (Northcutt, Jiang and Chuang, 2021).

    train, val, test = standard_splits(load_folder("clips"))
    fit(bank, "birds", train, val)
    print(test.check(suspects=probable_mislabels(bank, "birds", test)))

A task that has been trained on a wrong label may have learnt it by heart. Ask it about clips that it was not trained
on: the validation and test parts, or each fold after a training on the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapterbank.errors import LabelsError
from adapterbank.evaluation import evaluate_task
from adapterbank.task.host import TaskHost


@dataclass(frozen=True)
class Mislabel:
    """A clip whose label is probably wrong.

    Attributes:
        index: its place in the dataset.
        label: what the dataset says; of a multi-label task the label that is there, or that is missing.
        suggestion: the class that the task hears instead; of a multi-label task "not <label>" or the missing label.
        probability: of the suggestion, 0 to 1.
        given: the probability of what the dataset says.
    """

    index: int
    label: str
    suggestion: str
    probability: float
    given: float

    @property
    def reason(self) -> str:
        return f"heard as {self.suggestion!r} with {self.probability:.2f}, as it is labelled with {self.given:.2f}"


def probable_mislabels(bank: TaskHost, task: str, data: Any, *, batch_size: int = 32) -> list[Mislabel]:
    """The clips whose labels a trained task doubts, the surest first.

    A clip is doubted if the task gives another class at least the probability that this class has on average among its
    own clips. The bar differs from class to class, so that a task that is sure of one class and hesitant with another
    does not doubt all clips of the second.

    Args:
        bank: where the task is.
        data: of (waveform at 16 kHz, label), which the task was not trained on.
        batch_size: clips per forward pass.

    Raises:
        UnknownNameError: no such task. DatasetError: no data. LabelsError: a label that the task does not have.
    """
    owner = bank.task(task)
    found = evaluate_task(bank.backbone, owner, data, batch_size=batch_size)
    names, probabilities = owner.labels, owner.probabilities(found.logits)
    if owner.spec.multilabel:
        doubts = _of_many(probabilities, found.targets, names)
    else:
        doubts = [
            Mislabel(row, names[given], names[heard], sure, unsure)
            for row, given, heard, sure, unsure in doubted(probabilities, found.targets)
        ]
    return sorted(doubts, key=lambda doubt: doubt.given - doubt.probability)


def doubted(probabilities: Tensor, targets: Tensor) -> list[tuple[int, int, int, float, float]]:
    """Rows off the diagonal of the confident joint (Northcutt et al., 2021, equation 1).

    Args:
        probabilities: (B, C) in [0, 1].
        targets: (B,) class indices.

    Returns:
        (row, its class, the class that is heard instead, its probability, that of the row's class).

    Raises:
        LabelsError: shapes that do not belong together.
    """
    if probabilities.ndim != 2 or targets.shape != probabilities.shape[:1]:
        raise LabelsError(
            f"got probabilities {tuple(probabilities.shape)} and targets {tuple(targets.shape)}, expected (B, C), (B,)."
        )
    probabilities = probabilities.double()
    of_class = torch.nn.functional.one_hot(targets, probabilities.shape[1]).double()  # (B, C)
    bar = (of_class * probabilities).sum(0) / of_class.sum(0)  # (C,), NaN for a class without clips: nothing reaches it
    above = probabilities.masked_fill(~(probabilities >= bar), -1.0)
    sure, heard = above.max(dim=1)
    rows = ((sure >= 0) & (heard != targets)).nonzero().flatten().tolist()
    return [
        (row, int(targets[row]), int(heard[row]), float(sure[row]), float(probabilities[row, targets[row]]))
        for row in rows
    ]


def _of_many(probabilities: Tensor, targets: Tensor, names: tuple[str, ...]) -> list[Mislabel]:
    """Of a multi-label task, each label is a question of its own: there, or not."""
    doubts = []
    for column, name in enumerate(names):
        yes = probabilities[:, column]
        for row, given, _, sure, unsure in doubted(torch.stack([1 - yes, yes], dim=1), targets[:, column].long()):
            said, heard = (name, f"not {name}") if given else (f"not {name}", name)
            doubts.append(Mislabel(row, said, heard, sure, unsure))
    return doubts
