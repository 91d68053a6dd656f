"""Mean and standard deviation of a dataset's log-mels: `add_task(normalize=mean_std(train))`."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, NamedTuple

from adapterbank.audio.mel import log_mel
from adapterbank.data.pairs import read_pairs
from adapterbank.data.threads import shown
from adapterbank.errors import DatasetError
from adapterbank.numbers import whole

MEL_BINS = 128  # of every published AST


class MeanStd(NamedTuple):
    """Of all values of the log-mels of a dataset: what `add_task(normalize=...)` takes."""

    mean: float
    std: float


def mean_std(dataset: Any, *, mel_bins: int = MEL_BINS, progress: bool = True) -> MeanStd:
    """Mean and standard deviation over all frames and mel bins of a dataset, before any normalisation.

        train, val, test = standard_splits(load_folder("clips"))
        bank.add_task("birds", labels=train.labels, normalize=mean_std(train))

    Take it of the training part only, as everything else that is learnt from data. Each clip is read once, at its own
    length and without padding; only three numbers are kept. Sums are of fp64 and of differences from the mean
    (Chan, Golub and LeVeque, 1979), so that neither the number of clips nor a mean far from 0 costs digits.

    Args:
        dataset: clips with labels in any form that `fit` takes.
        mel_bins: M of the backbone.
        progress: whether to show a progress bar.

    Raises:
        DatasetError: no clip, or all values are the same. WaveformError, AudioFileError, LabelsError: an item that
            `fit` would refuse.
    """
    whole("mel_bins", mel_bins)
    count, mean, squares = 0, 0.0, 0.0  # squares: sum of squared differences from the mean
    total = len(dataset) if isinstance(dataset, Sized) else 0
    for _, waveform, _ in shown(read_pairs(dataset), total, "mean and deviation", progress):
        mel = log_mel([waveform], mel_bins)[0].double()
        own_mean = float(mel.mean())
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
        raise DatasetError(f"all log-mels of all clips are {mean:.4f}: is all of it silence?")
    return MeanStd(mean, std)
