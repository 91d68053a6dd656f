"""Whatever people call a data set -> pairs of a waveform at 16 kHz and a label, by number or one after another.

A data set is any of

    [(clip, label), ...]                  a list, a generator or a torch data set of pairs. A clip has any of the forms
                                          that `adapterbank.audio.clips` lists, a path included
    [(waveform, sample_rate, label, ...)] a data set of torchaudio; what follows the label is not looked at
    {path: label, ...}                    a dict
    a `datasets.Dataset`                  rows with a column of audio and one of labels; also a list of such dicts
    a pandas.DataFrame                    with such columns, or with a column of paths
    a DataLoader                          of any of these
    (waves (B, T), labels (B,))           one batch

An integer of a `datasets.ClassLabel` column, or of a data set that lists its `classes`, counts the names that the data
set has. It is turned into its name here, because the classes of the task may stand in another order.

An error names the item by its number, from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from adapterbank.audio.clips import about, check_on_error, one_clip, warn_of_skipped
from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.audio.resampling import resample_clip
from adapterbank.audio.rows import audio_key, is_array, is_map_style, is_number, items, split_item, unbatched
from adapterbank.data.clip import SPLITS
from adapterbank.data.folder import FolderDataset
from adapterbank.errors import AdapterBankError, DatasetError, LabelsError
from adapterbank.numbers import plain
from adapterbank.text import amount

# Columns of labels in the order in which they are looked for; names come before numbers ("target" of ESC-50).
LABEL_KEYS = (
    *("label", "labels", "category", "categories", "class", "classes", "class_name", "class_label"),
    *("tag", "tags", "genre", "target", "targets", "y"),
)


class Pairs(Dataset[tuple[Tensor, Any]]):
    """A data set of any form by number: item i is (waveform (T,) fp32 at 16 kHz, label). Made by `pairs_of`.

    Args:
        data: map-style, of items that `Items` can take apart.

    Attributes:
        dataset: the data as it was given, or as a list if it was an iterator.
    """

    def __init__(self, data: Any, take: Items):
        self.dataset, self._take = data, take

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self._take.pair(index, partial(_at, self.dataset, index))

    def labels(self) -> list[Any] | None:
        """All labels, if they are known without reading or drawing a clip; else None."""
        return self._take.labels(self.dataset)


def pairs_of(data: Any) -> Pairs:
    """A data set of any form as `Pairs`; what is read by iteration only is read into a list, once.

    Raises:
        DatasetError: no data set.
    """
    if isinstance(data, Pairs):
        return data
    found = _items(data)
    return Pairs(found if is_map_style(found) else list(found), Items(data))


def read_pairs(
    data: Any, on_error: str = "raise", failed: dict[int, Exception] | None = None
) -> Iterator[tuple[int, Tensor, Any]]:
    """The pairs of a data set of any form in their order, each read when it is asked for: (number, waveform, label).

    Args:
        on_error: "raise", or "skip": what cannot be read is left out, and written down in `failed`.
        failed: why items were left out, by their numbers.

    Raises:
        DatasetError: no data set, or an item that is none. LabelsError: one without a label.
        WaveformError, AudioFileError, ConfigError: its clip cannot be used.
    """
    check_on_error(on_error)
    take = data._take if isinstance(data, Pairs) else Items(data)
    found = data.dataset if isinstance(data, Pairs) else _items(data)
    known = is_map_style(found)
    for number, item in enumerate(range(len(found)) if known else found):
        try:
            wave, label = take.pair(number, partial(_at, found, number) if known else partial(_same, item))
        except Exception as error:  # of any kind: reading may be the work of somebody's own data set
            if on_error == "raise":
                raise
            if failed is not None:
                failed[number] = error
            continue
        yield number, wave, label


def _at(data: Any, number: int) -> Any:
    return data[number]


def _same(item: Any) -> Any:
    return item


def _items(data: Any) -> Any:
    """The items of what was given as a data set: map-style, or an iterator."""
    if isinstance(data, Mapping) and audio_key(data) is not None and not is_map_style(data):
        return list(unbatched(data))  # one dict of columns
    if isinstance(data, Mapping):
        _refuse_splits(data)
        return list(data.items())
    if isinstance(data, (tuple, list)) and len(data) == 2:
        first = next(iter(data))
        if (is_array(first) and first.ndim > 1) or _two_lists(*data):
            return list(unbatched(data))
    if not is_map_style(data) and not hasattr(data, "__iter__"):
        raise DatasetError(f"got {type(data).__name__} as a data set, expected {_ACCEPTED}.")
    if is_array(data) or isinstance(data, (str, bytes)) or hasattr(data, "__fspath__"):
        raise DatasetError(
            f"got {type(data).__name__} as a data set, expected {_ACCEPTED}. load_folder(path) reads a folder."
        )
    return items(data)


def _two_lists(clips: Any, labels: Any) -> bool:
    """Whether these are clips and their labels, rather than two pairs of a clip and a label."""
    if not isinstance(clips, (list, tuple)) or _length(labels) != len(clips):
        return False
    sounds = all(map(is_array, clips))
    named = all(isinstance(label, str) or is_number(label) for label in labels)
    return named and (sounds or (len(clips) > 2 and all(isinstance(clip, (str, PathLike)) for clip in clips)))


_ACCEPTED = "pairs of a clip and a label, a datasets.Dataset, a DataLoader or {path: label}"


def _refuse_splits(data: Mapping[Any, Any]) -> None:
    first = next(iter(data.values()), None)
    named = all(isinstance(name, str) and name.lower() in SPLITS for name in data) and not isinstance(first, str)
    if isinstance(first, Dataset) or hasattr(first, "column_names") or named:
        raise DatasetError(
            f"got a dict of data sets ({', '.join(map(str, data))}), expected one of them, such as "
            f"data[{next(iter(data))!r}]."
        )


class Items:
    """How the items of one data set are taken apart.

    Attributes:
        features: of a `datasets.Dataset`, {column: its type}; else None.
    """

    def __init__(self, data: Any):
        self.features = _features(data)
        self._classes = _classes(data)
        self._rate = _sample_rate(data)

    def pair(self, number: int, read: Callable[[], Any]) -> tuple[Tensor, Any]:
        """Item `number`, which `read` gives: its waveform (T,) at 16 kHz and its label."""
        try:
            item = read()
            clip, _ = split_item(item)
            label = self._label(item)
            if is_array(clip) and clip.ndim > 1 and len(clip) > 1 and _length(label) == len(clip):
                raise DatasetError(
                    f"got {amount(len(clip), 'clip')} and {amount(len(clip), 'label')} as one item, which looks like "
                    "a batch. Pass the DataLoader itself, or one batch alone."
                )
            wave, rate = one_clip(clip, self._rate)
            return resample_clip(wave, rate, SAMPLE_RATE), label
        except AdapterBankError as error:
            raise about(error, f"item {number}") from error

    def label(self, number: int, item: Any) -> Any:
        """The label of an item, whose clip is not looked at."""
        try:
            return self._label(item)
        except AdapterBankError as error:
            raise about(error, f"item {number}") from error

    def _label(self, item: Any) -> Any:
        _, rest = split_item(item)
        if not isinstance(rest, Mapping):
            return _named(rest[0], self._classes)
        column = self.column(rest)
        if column is None or rest[column] is None:
            raise LabelsError(
                f"got no label in the columns {', '.join(map(str, rest))}, expected one of {', '.join(LABEL_KEYS[:6])} "
                "or the like. Rename the column: data.rename_column('intent', 'label')."
            )
        return _named(rest[column], _names(self.features, column) or self._classes)

    def labels(self, data: Any) -> list[Any] | None:
        """The labels of all items of a map-style data set, if that reads and draws no clip; else None."""
        if isinstance(data, Subset):
            every = self.labels(data.dataset)
            return None if every is None else [every[index] for index in data.indices]
        targets: Any = getattr(data, "targets", None)  # of FolderDataset, and of data sets in the manner of torchvision
        if isinstance(targets, (list, tuple)) or is_array(targets):
            return self._all_named(targets, self._classes) if len(targets) == len(data) else None
        if isinstance(data, TensorDataset):
            return list(data.tensors[1]) if len(data.tensors) == 2 else None
        if isinstance(data, (list, tuple)):
            return [self.label(number, item) for number, item in enumerate(data)]
        features = getattr(data, "features", None)
        column = self.column(features) if isinstance(features, Mapping) else None
        return None if column is None else self._all_named(data[column], _names(self.features, column))

    def _all_named(self, labels: Iterable[Any], names: Sequence[str] | None) -> list[Any]:
        found = []
        for number, label in enumerate(labels):
            try:
                found.append(_named(label, names))
            except LabelsError as error:
                raise about(error, f"item {number}") from error
        return found

    def column(self, row: Mapping[str, Any]) -> str | None:
        """In which column the labels are: one of `LABEL_KEYS`, or else the only one of `ClassLabel`."""
        found = next((key for key in LABEL_KEYS if key in row), None)
        if found is None:
            named = [key for key in row if _names(self.features, key)]
            found = named[0] if len(named) == 1 else None
        return found


def _length(label: Any) -> int | None:
    """How many entries a list, tuple or array has; None of anything else."""
    if is_array(label):
        return len(label) if label.ndim else None
    return len(label) if isinstance(label, (list, tuple)) else None


def _names(features: Mapping[str, Any] | None, column: str) -> Sequence[str] | None:
    """The class names of a column of `ClassLabel`, or of lists of them."""
    feature = None if features is None else features.get(column)
    for kind in (feature, getattr(feature, "feature", None)):
        names = getattr(kind, "names", None)
        if isinstance(names, (list, tuple)):
            return names
    return None


def _named(label: Any, names: Sequence[str] | None) -> Any:
    """A label by its name: an integer, or a list of them, counts `names`. Without names a label stays as it is."""
    label = plain(label)
    if names is None or isinstance(label, (str, float, bool)) or label is None:
        return label
    if isinstance(label, int):
        if not 0 <= label < len(names):
            raise LabelsError(
                f"got the label {label}, expected 0 to {len(names) - 1}: the data set names {len(names)}."
            )
        return names[label]
    several = label.tolist() if isinstance(label, (Tensor, np.ndarray)) else list(label)
    return tuple(_named(one, names) for one in several) if all(map(is_number, several)) else label


def _features(data: Any) -> Mapping[str, Any] | None:
    """The columns of a `datasets.Dataset`, also behind Subset, DataLoader and other wrappers."""
    features = getattr(data, "features", None)
    if isinstance(features, Mapping):
        return features
    inside = getattr(data, "dataset", None)
    if inside is not None:
        return _features(inside)
    parts = getattr(data, "datasets", None)  # ConcatDataset
    if not isinstance(parts, (list, tuple)) or not parts:
        return None
    found = [_features(part) for part in parts]
    for features in found:
        for column in features or {}:
            if _names(features, column) != _names(found[0], column):
                raise DatasetError(
                    f"got data sets joined whose column {column!r} counts other classes in each; an integer would mean "
                    "different classes. Give them one ClassLabel, or labels as names."
                )
    return found[0]


def _classes(data: Any) -> Sequence[str] | None:
    """`classes` of a data set in the manner of torchvision's folders, whose labels are integers that count them."""
    names = getattr(data, "classes", None)
    if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
        return names
    inside = getattr(data, "dataset", None)
    return None if inside is None else _classes(inside)


def _sample_rate(data: Any) -> int:
    """The rate that a data set says its waveforms have, as `load_folder(..., sample_rate=)` does; else 16 kHz."""
    if isinstance(data, FolderDataset):
        return data.sample_rate
    return _sample_rate(data.dataset) if isinstance(data, (Subset, Pairs)) else SAMPLE_RATE


def warn_of_failed(failed: Mapping[int, Exception], total: int) -> None:
    """The one warning about items that were left out, if there are any."""
    if failed:
        warn_of_skipped(failed, total, "item")
