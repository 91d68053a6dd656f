"""Class names: which are possible, and what the labels of a data set mean as targets of a loss."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapterbank.errors import LabelsError, UnknownNameError
from adapterbank.numbers import plain
from adapterbank.text import amount, nfc

_TOLERANCE = 1e-3  # of the sum of a row of shares, which may be in half precision


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


def relabelled(labels: Sequence[str], new_names: Mapping[str, str]) -> tuple[str, ...]:
    """Class names with some of them replaced, all at once, so that two can swap; the order stays.

    Args:
        new_names: {name of today: new name}.

    Raises:
        UnknownNameError: a class that there is not. LabelsError: a new name that another class has, or that two get:
            this would merge two classes.
    """
    if not isinstance(new_names, Mapping) or not new_names:
        raise LabelsError(f"got {new_names!r}, expected a dict of new names: {{'old name': 'new name'}}.")
    today = {nfc(label): label for label in labels}
    renamed: dict[str, str] = {}
    for old, new in new_names.items():
        if not isinstance(old, str) or nfc(old) not in today:
            raise UnknownNameError("label", str(old), labels, "Pass {name of today: new name}.")
        if not isinstance(new, str) or not new:
            raise LabelsError(f"got {new!r} as the new name of {old!r}, expected a non-empty string.")
        renamed[old if old in labels else today[nfc(old)]] = nfc(new)
    found = tuple(renamed.get(label, label) for label in labels)
    for index, label in enumerate(found):
        if label in found[:index]:
            merged = [old for old, new in zip(labels, found, strict=True) if new == label]
            raise LabelsError(
                f"the classes {merged[0]!r} and {merged[1]!r} would both be called {label!r}. Renaming cannot merge "
                "classes: the head has a logit for each of them, and a clip would get two answers of one name. Add up "
                "their probabilities in your own code, or rename the labels in the data and train a new task."
            )
    return found


def targets(
    labels: Sequence[Any],
    classes: Sequence[str],
    multilabel: bool,
    task: str,
    *,
    numbers: Sequence[int] | None = None,
    soft: bool = True,
) -> Tensor:
    """The labels of B clips as a tensor for the loss.

    Args:
        labels: one per clip. Of a task with one label per clip: a name, an index, or a row of C numbers that sum to 1.
            Of a multi-label task: names and indices in a list, tuple or set; or a row of C numbers in [0, 1], as an
            array, a tensor or a list of floats or bools. A list of integers that are all 0 or 1 could be either if
            it has C entries, and is refused.
        classes: the C class names of the task, in the order of the logits.
        task: its name, for messages.
        numbers: of the items in their data set, for messages.
        soft: whether a row may have values between 0 and 1, which only a training can use.

    Returns:
        (B,) int64; or (B, C) in [0, 1] of a multi-label task, and where a row is no single class.

    Raises:
        LabelsError: a label that the task does not have, or a row of another form; with the number of the item.
    """
    known = _Classes(classes, task, soft)
    found: list[int | Tensor] = []
    for place, label in enumerate(labels):
        try:
            found.append(known.row(label) if multilabel else known.one(label))
        except LabelsError as error:
            if numbers is None:
                raise
            raise LabelsError(f"item {numbers[place]}: {error}") from error
    if not multilabel and all(isinstance(one, int) for one in found):
        return torch.tensor(found, dtype=torch.int64)
    rows = torch.zeros(len(found), len(classes))
    for place, target in enumerate(found):
        rows[place] = target if isinstance(target, Tensor) else torch.eye(len(classes))[target]
    return rows


class _Classes:
    """The classes of a task, and what a label means there."""

    def __init__(self, names: Sequence[str], task: str, soft: bool):
        self.names, self.task, self.soft = tuple(names), task, soft
        self.index_of = {name: index for index, name in enumerate(self.names)}
        self.index_in_nfc = {nfc(name): index for index, name in enumerate(self.names)}

    def one(self, label: Any) -> int | Tensor:
        """The class of a clip that has one: its index, or a row (C,) of shares."""
        label = _listed(label)
        if _is_array(label) and label.shape == (1,) and len(self.names) > 1 and "int" in str(label.dtype):
            label = plain(label[0])  # what a collate function that adds an axis gives
        if not (_is_array(label) or (isinstance(label, (list, tuple)) and all(map(_is_number, label)))):
            return self.index(label)
        row = self._numbers(label)
        if abs(float(row.sum()) - 1) > _TOLERANCE:
            raise LabelsError(
                f"got {_shown(label)} as the label of a clip of {self.task!r}, which has one label per clip; expected "
                "a row of shares that sum to 1. add_task(..., multilabel=True) is for clips with any number of labels."
            )
        return int(row.argmax()) if float(row.max()) == 1 else row

    def row(self, labels: Any) -> Tensor:
        """The classes of a clip that has any number, as a row (C,)."""
        labels = _listed(labels)
        if _is_array(labels):
            return self._numbers(labels)
        if isinstance(labels, (str, int)):
            labels = [labels]
        if not isinstance(labels, (list, tuple, set, frozenset)):
            return self._of([labels])  # which no task has
        given = [plain(label) for label in labels]
        if not isinstance(labels, (set, frozenset)) and given:
            if all(map(_is_number, given)) and any(isinstance(value, (float, bool)) for value in given):
                return self._numbers(given)
            if len(given) == len(self.names) and all(value in (0, 1) for value in given):
                raise LabelsError(
                    f"got {labels!r} as the labels of a clip of {self.task!r} with {amount(len(given), 'class')}: is "
                    "that a row of zeros and ones, or does it hold class indices? Pass a row as an array, a tensor "
                    "or floats, and indices as a set."
                )
        return self._of(given)

    def index(self, label: Any) -> int:
        """The index of a class that is given by its name or index."""
        if isinstance(label, str):
            if label in self.index_of:
                return self.index_of[label]
            if (found := self.index_in_nfc.get(nfc(label))) is not None:
                return found
        elif isinstance(label, int) and not isinstance(label, bool):
            if self.index_of.get(str(label), label) != label:
                raise LabelsError(
                    f"the data has the label {label} as an integer. In the task {self.task!r} the class of this name "
                    f"is at index {self.index_of[str(label)]}, so that it could mean two classes. Pass the name, "
                    f"{str(label)!r}, as text."
                )
            if 0 <= label < len(self.names):
                return label
        advice = "Pass labels=... to add_task."
        if isinstance(label, (list, tuple, set, frozenset)) and all(one in self.names for one in label):
            advice = "If a clip may have several labels, pass multilabel=True to add_task."
        known = ", ".join(self.names[:12]) + (", …" if len(self.names) > 12 else "")
        raise LabelsError(
            f"the data has the label {_shown(label)}, which the task {self.task!r} with "
            f"{amount(len(self.names), 'class')} does not have. Known: {known}. {advice}"
        )

    def _of(self, labels: Sequence[Any]) -> Tensor:
        chosen = [self.index(label) for label in labels]
        if len(set(chosen)) < len(chosen):
            raise LabelsError(
                f"got {list(labels)!r} as the labels of one clip of {self.task!r}, where one stands twice. Pass each "
                f"name or index once, or a row of {amount(len(self.names), 'number')} as an array or tensor."
            )
        row = torch.zeros(len(self.names))
        row[chosen] = 1
        return row

    def _numbers(self, values: Any) -> Tensor:
        """A row of one number per class, each in [0, 1]."""
        numbers = values.detach().cpu().to_dense().tolist() if isinstance(values, Tensor) else values
        try:
            row = torch.from_numpy(np.array(numbers, dtype=np.float32))
        except (TypeError, ValueError) as error:
            raise LabelsError(f"got {_shown(values)} as a row of labels, expected numbers: {error}.") from error
        if row.shape != (len(self.names),):
            raise LabelsError(
                f"got {_shown(values)}, a row of labels of shape {tuple(row.shape)}, for the task {self.task!r} with "
                f"{amount(len(self.names), 'class')}; expected one number per class. Class indices are whole numbers "
                "in a list or set."
            )
        if not bool(((row >= 0) & (row <= 1)).all()):  # also NaN
            raise LabelsError(f"got {_shown(values)} as a row of labels of {self.task!r}, expected numbers in [0, 1].")
        if not self.soft and not bool(((row == 0) | (row == 1)).all()):
            raise LabelsError(
                f"got {_shown(values)} as a row of labels of {self.task!r}: shares between 0 and 1 can be trained on, "
                "but a metric needs to know which labels a clip has. Pass zeros and ones, such as row > 0.5."
            )
        return row


def _listed(label: Any) -> Any:
    """A label or several in the form of a list, tuple, set, array or tensor, whatever collection of Python they are."""
    label = plain(label)
    if type(label).__module__.partition(".")[0] == "pandas" and hasattr(label, "to_numpy"):
        if not _is_number(label.index[0] if len(label) and hasattr(label, "index") else 0):
            return label  # its numbers have names, perhaps in another order than the classes
        label = label.to_numpy()
        return label if label.dtype.kind in "biuf" else label.tolist()
    known = (str, bytes, Mapping, list, tuple, set, frozenset, Tensor, np.ndarray)
    return list(label) if isinstance(label, Collection) and not isinstance(label, known) else label


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _is_number(value: Any) -> bool:
    return isinstance(plain(value), (int, float))


def _shown(values: Any) -> str:
    values = values.to_dense() if isinstance(values, Tensor) else values
    text = repr(values.tolist() if _is_array(values) else values)
    return text if len(text) < 80 else f"{text[:77]}..."
