"""What a dataset is, in a few values that a record of a training can hold: its name, its size and a digest.

The digest answers one question later: was this the same data? Equal digests mean the same clips in the same order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

UNKNOWN = "unknown"
_DIGITS = 12  # of hexadecimal: two different datasets of the same size are alike by chance once in 2^48


def data_facts(**parts: Any) -> dict[str, Any]:
    """Name, sizes and digests of the parts of a dataset, as flat values.

        data_facts(train=train, val=None)
        {"dataset": "birds", "train_clips": 210, "train_digest": "9f2c…", "val_clips": 0, "val_digest": "none"}

    Args:
        parts: datasets by what they are for, usually train, val and test; None for a part that does not exist.
    """
    there = [data for data in parts.values() if data is not None]
    names = dict.fromkeys(name for name in map(dataset_name, there) if name != UNKNOWN)
    facts: dict[str, Any] = {"dataset": ", ".join(names) or UNKNOWN}
    for part, data in parts.items():
        facts[f"{part}_clips"] = dataset_size(data)
        facts[f"{part}_digest"] = "none" if data is None else dataset_digest(data)
    return facts


def dataset_name(data: Any) -> str:
    """What a dataset calls itself: a folder its name, a Hugging Face dataset that of its builder; else "unknown"."""
    described = getattr(data, "info", None)
    for found in (getattr(data, "name", None), getattr(described, "dataset_name", None)):
        if isinstance(found, str) and found:
            return found
    inside = getattr(data, "dataset", None)  # torch's Subset, and most wrappers
    return UNKNOWN if inside is None else dataset_name(inside)


def dataset_size(data: Any) -> int | str:
    """The number of clips, 0 without data, "unknown" of an iterable that does not say."""
    return 0 if data is None else len(data) if hasattr(data, "__len__") else UNKNOWN


def dataset_digest(data: Any) -> str:
    """Twelve hexadecimal digits of SHA-256, over the clips in their order.

    Of a folder it is over names, sizes in bytes and labels of its files: they are not read, because hashing hours of
    audio takes longer than some trainings. Of a list it is over samples and labels. A Hugging Face dataset brings a
    fingerprint of its own. Any other dataset is "unknown": to read an item may draw random numbers, and that would
    change the training which is described.
    """
    files, targets = getattr(data, "files", None), getattr(data, "targets", None)
    if isinstance(files, (list, tuple)) and isinstance(targets, (list, tuple)) and len(files) == len(targets):
        clips = zip(files, targets, strict=True)
        return _sha256(f"{Path(file).name}\0{_bytes_of(file)}\0{label}\n" for file, label in clips)
    fingerprint = getattr(data, "_fingerprint", None)
    if isinstance(fingerprint, str):
        return fingerprint[:_DIGITS]
    inside, chosen = getattr(data, "dataset", None), getattr(data, "indices", None)
    if inside is not None and isinstance(chosen, (list, tuple, range)):
        whole = dataset_digest(inside)
        return UNKNOWN if whole == UNKNOWN else _sha256([whole, *(f"{int(index)}," for index in chosen)])
    if isinstance(data, (list, tuple)):
        return _sha256(content for item in data for content in _contents(item))
    return UNKNOWN


def _contents(item: Any) -> Iterable[str | bytes]:
    """What tells one item of a list from another."""
    for part in item if isinstance(item, (list, tuple)) else (item,):
        if isinstance(part, Tensor):
            yield f"{tuple(part.shape)}{part.dtype}"
            yield part.detach().cpu().contiguous().numpy().tobytes()
        else:
            yield f"{sorted(part, key=str) if isinstance(part, (set, frozenset)) else part!r}\0"


def _bytes_of(file: Any) -> int:
    try:
        return Path(file).stat().st_size
    except OSError:  # a digest must not fail where the training itself may still succeed
        return -1


def _sha256(contents: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:_DIGITS]
