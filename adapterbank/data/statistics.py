"""Mean and standard deviation of a dataset's log-mels: `add_task(normalize=mean_std(train))`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapterbank.audio.mel import SAMPLE_RATE, log_mel
from adapterbank.data.threads import shown
from adapterbank.errors import DatasetError, WaveformError
from adapterbank.numbers import whole

MEL_BINS = 128  # of every published AST


class MeanStd(NamedTuple):
    """Of all values of the log-mels of a dataset: what `add_task(normalize=...)` takes."""

    mean: float
    std: float


def mean_std(
    dataset: Any, *, mel_bins: int = MEL_BINS, sample_rate: int | None = None, progress: bool = True
) -> MeanStd:
    """Mean and standard deviation over all frames and mel bins of a dataset, before any normalisation.

        train, val, test = standard_splits(load_folder("clips"))
        bank.add_task("birds", labels=train.labels, normalize=mean_std(train))

    Take it of the training part only, as everything else that is learnt from data. Each clip is read once, at its own
    length and without padding; only three numbers are kept. Sums are of fp64 and of differences from the mean
    (Chan, Golub and LeVeque, 1979), so that neither the number of clips nor a mean far from 0 costs digits.

    Args:
        dataset: of (waveform (T,), label), such as `load_folder` gives.
        mel_bins: M of the backbone.
        sample_rate: of the waveforms, in Hz; None: what the dataset says, else 16,000.
        progress: whether to show a progress bar.

    Raises:
        DatasetError: no clip, or all values are the same. WaveformError: a clip that is no waveform.
    """
    whole("mel_bins", mel_bins)
    rate = getattr(dataset, "sample_rate", SAMPLE_RATE) if sample_rate is None else sample_rate
    count, mean, squares = 0, 0.0, 0.0  # squares: sum of squared differences from the mean
    total = len(dataset) if hasattr(dataset, "__len__") else 0
    for number, waveform in enumerate(shown(_waveforms(dataset), total, "mean and deviation", progress)):
        if waveform.ndim != 1 or not waveform.numel() or not waveform.is_floating_point():
            raise WaveformError(
                f"item {number} of the dataset has a waveform of shape {tuple(waveform.shape)} and type "
                f"{waveform.dtype}, expected (T,) of floating-point samples in [-1, 1]."
            )
        mel = log_mel([waveform.float()], mel_bins, rate)[0].double()
        own_mean = float(mel.mean())
        if not math.isfinite(own_mean):
            raise WaveformError(f"item {number} of the dataset holds NaN or infinite samples, expected finite ones.")
        own_squares = float((mel - own_mean).square_().sum())
        together = count + mel.numel()
        shift = own_mean - mean
        mean += shift * mel.numel() / together
        squares += own_squares + shift * shift * count * mel.numel() / together
        count = together
    if not count:
        raise DatasetError("got no clips to take mean and deviation of, expected (waveform, label) pairs.")
    std = (squares / count) ** 0.5
    if not std > 0:
        raise DatasetError(f"all log-mels of {number + 1} clips are {mean:.4f}: is all of it silence?")
    return MeanStd(mean, std)


def _waveforms(dataset: Any) -> Iterator[Tensor]:
    pairs: Iterable[Any] = dataset
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        pairs = (dataset[index] for index in range(len(dataset)))
    for waveform, *_ in pairs:
        yield torch.as_tensor(waveform)
