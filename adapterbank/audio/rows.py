"""Several clips, a data set or a DataLoader -> one clip after another, and how an item of a data set is taken apart."""

from __future__ import annotations

import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
    default_convert,
)

from adapterbank.errors import DatasetError
from adapterbank.numbers import plain

# Where audio is found in a dict, in this order: a row that has both the sound and its file gives the sound.
AUDIO_KEYS = (
    *("audio", "array", "raw", "waveform", "wave", "wav", "speech", "sound", "samples", "file", "path", "filename"),
    *("file_name", "file_path", "filepath", "audio_path", "audio_file", "audio_filepath", "fname", "slice_file_name"),
)
RATE_KEYS = ("sampling_rate", "sample_rate", "sr", "rate", "samplerate", "fs", "sampleRate", "samplingRate")
# An item (waveform, 15872, "dog") may hold a length as well as a rate: only these are read as rates there.
COMMON_RATES = frozenset(
    {4000, 6000, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000}
)
Reader: TypeAlias = "Callable[[], Any]"  # gives one clip, of any form


def rows(x: Any) -> tuple[bool, Iterable[Reader]]:
    """The clips of a call as functions that give them, so that one which cannot be read costs no other.

    Returns:
        Whether there may be several; the functions, in order.
    """
    if isinstance(x, Tensor) and x.is_nested:
        return True, _entries(x.unbind())
    if is_samples(x):
        return False, (lambda: x,)
    if is_array(x) and x.ndim != 1:
        return True, _entries(x if x.ndim else [x])
    if isinstance(x, np.ndarray) and x.dtype.kind in "OU":  # a column of a table: of paths or of arrays
        return True, _entries(x)
    if _is_batch(x):
        return True, _entries(x[0] if isinstance(x, (list, tuple)) else unbatched(x))
    if isinstance(x, Mapping) and isinstance(column := x.get(audio_key(x)), (list, tuple)) and not _numbers(column):
        return True, _entries(column)  # what a slice of a `datasets.Dataset` is: a dict of columns
    if is_one_clip(x):
        return False, (lambda: x,)
    if isinstance(x, (list, tuple)):
        return True, _entries(x)
    if isinstance(x, (DataLoader, IterableDataset)):
        return True, (partial(_clip_of, item) for item in items(x))
    if is_map_style(x):
        data = items(x)
        return True, (partial(_clip_at, data, index) for index in range(len(data)))
    if isinstance(x, Iterable):
        return True, _entries(x)
    return False, (lambda: x,)


def is_samples(x: Any) -> bool:
    """Whether these are the samples of one clip as plain numbers, in a list, an `array.array` or a pandas.Series."""
    if type(x).__module__.partition(".")[0] == "pandas":
        return getattr(x, "ndim", 0) == 1 and getattr(x.dtype, "kind", "O") in "fiu"
    if isinstance(x, np.ndarray):
        return x.ndim == 1 and x.dtype == object and len(x) > 2 and all(map(is_number, x[:3]))
    return isinstance(x, (list, tuple, array.array)) and len(x) > 2 and all(map(is_number, x[:3]))


def _is_batch(x: Any) -> bool:
    """Whether a DataLoader made it of its items: (waves (B, T), labels (B,)), or a dict of audio with many rates."""
    if isinstance(x, Mapping):
        audio = x.get("audio")
        return isinstance(audio, Mapping) and any(_several(audio.get(key)) for key in RATE_KEYS)
    if not isinstance(x, (list, tuple)) or len(x) != 2 or not is_array(x[0]) or x[0].ndim < 2:
        return False
    if is_array(x[1]) and x[1].ndim == 2 and len(x[1]) == len(x[0]):  # a row of 0 and 1 per clip is no sound
        return bool(((x[1] == 0) | (x[1] == 1)).all() and (x[1] == 1).any())
    if len(x[0]) < 2:  # the last batch of many; a rate in a tensor is no label
        return (
            is_array(x[1])
            and tuple(x[1].shape) == (1,)
            and "int" in str(x[1].dtype)
            and plain(x[1][0]) not in COMMON_RATES
        )
    whole = is_array(x[1]) and x[1].ndim == 1 and "int" in str(x[1].dtype)
    named = isinstance(x[1], (list, tuple)) and all(isinstance(label, str) or is_number(label) for label in x[1])
    return (whole or named) and len(x[1]) == len(x[0])


def _several(rates: Any) -> bool:
    return isinstance(rates, (list, tuple)) or (is_array(rates) and rates.ndim == 1)


def _entries(clips: Iterable[Any]) -> Iterator[Reader]:
    return (partial(_same, clip) for clip in clips)


def _same(clip: Any) -> Any:
    return clip


def _clip_of(item: Any) -> Any:
    """The clip of an item, which may have no label here: (clip,), (waveform, sample_rate), or the clip alone."""
    if not isinstance(item, (tuple, list)):
        return item
    if len(item) == 1:
        return item[0]
    unlabelled = len(item) == 2 and is_array(item[0]) and is_number(item[1]) and plain(item[1]) in COMMON_RATES
    return item if unlabelled else split_item(item)[0]


def _clip_at(data: Any, index: int) -> Any:
    return _clip_of(data[index])


def is_array(x: Any) -> bool:
    return isinstance(x, (Tensor, np.ndarray))


def is_map_style(x: Any) -> bool:
    """Whether it has a length and items by their number, as torch's map-style data sets have."""
    return hasattr(x, "__getitem__") and hasattr(x, "__len__") and not isinstance(x, (Mapping, str, bytes))


def is_one_clip(x: Any) -> bool:
    """Whether this is one clip, for all that its form says."""
    if isinstance(x, (str, PathLike, bytes, bytearray, memoryview, Mapping)) or is_array(x):
        return True
    if isinstance(x, (tuple, list)):
        return len(x) > 1 and any(is_number(first) and not is_number(second) for first, second in (x[:2], x[1::-1]))
    return callable(getattr(x, "get_all_samples", None)) or callable(getattr(x, "read", None))


def is_number(x: Any) -> bool:
    return isinstance(plain(x), (int, float))


def _numbers(column: Sequence[Any]) -> bool:
    return bool(column) and is_number(column[0])


def audio_key(row: Mapping[str, Any]) -> str | None:
    """Under which key a dict has its sound, if it has any."""
    return next((key for key in AUDIO_KEYS if row.get(key) is not None), None)


# -- data sets --------------------------------------------------------------------------------------------------------


def items(data: Any) -> Any:
    """The items of a data set: a map-style one where it can be, else an iterator.

    Of a DataLoader with torch's own collate function and no sampler of its own, the items are those of its data set, in
    order. The batches of any other are undone.
    """
    if isinstance(data, DataLoader):
        if _adds_nothing(data):
            return items(data.dataset)
        return iter(data) if data.batch_sampler is None else (item for batch in data for item in unbatched(batch))
    if type(data).__module__.partition(".")[0] == "pandas":  # a table's rows, or the entries of one of its columns
        return data.to_dict("records") if hasattr(data, "columns") else list(data)
    data = undecoded(data)
    return data if is_map_style(data) else iter(data)


def _adds_nothing(loader: DataLoader[Any]) -> bool:
    """Whether a loader gives what its data set has, so that clips need not be stacked to one length on the way."""
    plain_order = isinstance(loader.sampler, (SequentialSampler, RandomSampler)) or loader.sampler is None
    streamed = isinstance(loader.dataset, IterableDataset)
    return loader.collate_fn in (default_collate, default_convert) and (plain_order or streamed)


def undecoded(data: Any) -> Any:
    """A `datasets.Dataset` that leaves its audio to us: bytes or paths in place of decoded samples.

    Its own decoding needs torchcodec, and takes a cut file for a shorter one.
    """
    if type(data) is Subset:
        return Subset(undecoded(data.dataset), data.indices)
    features = getattr(data, "features", None)
    for name, feature in (features if isinstance(features, Mapping) else {}).items():
        if type(feature).__name__ == "Audio" and getattr(feature, "decode", False):
            data = data.cast_column(name, type(feature)(decode=False))
    return data


def unbatched(batch: Any) -> Iterator[Any]:
    """The items of a batch that a DataLoader collated: a dict or a tuple of columns.

    Raises:
        DatasetError: columns of different lengths, or none.
    """
    if isinstance(batch, Mapping):
        columns = {key: list(_column(column)) for key, column in batch.items()}
        _check_lengths([len(column) for column in columns.values()], batch)
        for place in range(len(next(iter(columns.values())))):
            yield {key: column[place] for key, column in columns.items()}
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        fields = [list(_column(column)) for column in batch]
        _check_lengths([len(column) for column in fields], batch)
        yield from zip(*fields, strict=True)
    else:
        raise DatasetError(
            f"got {type(batch).__name__} as a batch of a DataLoader, expected (clips, labels) or a dict of columns. "
            "Look at what its collate_fn gives."
        )


def _column(column: Any) -> Iterable[Any]:
    if isinstance(column, Mapping):  # {"array": (B, T), "sampling_rate": (B,)}
        return unbatched(column)
    if isinstance(column, (list, tuple)) or (is_array(column) and column.ndim):
        return column
    raise DatasetError(
        f"got {type(column).__name__} as a column of a DataLoader's batch, expected one entry per clip: a list, or a "
        "tensor or array whose first axis is that of the clips."
    )


def _check_lengths(lengths: Sequence[int], batch: Any) -> None:
    if len(set(lengths)) > 1:
        raise DatasetError(
            f"got a batch whose columns have {lengths} entries, expected as many labels as clips. Look at what the "
            "DataLoader's collate_fn gives."
        )


def split_item(item: Any) -> tuple[Any, Any]:
    """An item of a data set as a clip and what else it has: a tuple, or the dict itself.

    (clip, label); (waveform, sample_rate, label, ...) as torchaudio's data sets give; or a dict with a column of audio.

    Raises:
        DatasetError: something else.
    """
    if isinstance(item, Mapping):
        if audio_key(item) is None:
            raise DatasetError(
                f"got a row with the columns {', '.join(map(str, item))}, expected one of {', '.join(AUDIO_KEYS)}. "
                "Rename the column that holds the sound."
            )
        return item, item
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise DatasetError(
            f"got {_shown(item)}, expected (clip, label), (waveform, sample_rate, label) or a dict with 'audio' and "
            "'label'. Clips and labels in two lists are paired by list(zip(clips, labels)), and load_folder reads "
            "folders of files."
        )
    if len(item) == 2 or not is_array(item[0]) or not is_number(item[1]):
        return item[0], tuple(item[1:])
    rate = plain(item[1])
    if rate not in COMMON_RATES:
        raise DatasetError(
            f"got an item of {len(item)} whose second is {rate!r}: a label, a length or a sample rate? Give "
            "((waveform, sample_rate), label)."
        )
    return (item[0], rate), tuple(item[2:])


def _shown(item: Any) -> str:
    if is_array(item):
        return f"{type(item).__name__} of shape {tuple(item.shape)}"
    text = repr(item)
    return f"{type(item).__name__} {text if len(text) < 60 else text[:57] + '...'}"
