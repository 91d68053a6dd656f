"""Waveforms at another sample rate: band-limited interpolation with a windowed sinc (Smith, 1984).

Each sample of the result is a weighted sum of the samples around its place. The weights are a sinc, which lets through
what lies below a cut-off a little under half the lower of the two rates, times a window that ends it. Where the two
rates have a large common divisor, only a few places between two samples occur: their weights are computed once, and one
convolution does the rest. Where they have none (44,101 Hz), each place would need weights of its own. Then weights are
interpolated in a table, so that any rate costs bounded memory. Positions are whole numbers in both cases: nothing
drifts, however long the recording.

Symbols: T samples before, T' after, K weights of one sample.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adapterbank.errors import UnknownNameError


class Kernel(NamedTuple):
    """The weights of band-limited interpolation.

    Attributes:
        zeros: zero crossings of the sinc on each side.
        rolloff: the cut-off, as a share of half the lower rate.
        beta: of the Kaiser window; None: a Hann window.
    """

    zeros: int
    rolloff: float
    beta: float | None


KERNELS: Mapping[str, Kernel] = {
    # Fitted to what `sox in.wav -r 16000 out.wav` makes of white noise; see docs/features.md for how near it comes.
    "sox": Kernel(88, 0.95681, 11.78),
    "kaiser_best": Kernel(64, 0.9475937167399596, 14.769656459379492),  # of resampy, and of librosa before 0.10
    "hann": Kernel(6, 0.99, None),  # what torchaudio.functional.resample does when it is not told otherwise
}
DEFAULT_KERNEL = "sox"

_MOST_WEIGHTS = 1 << 20  # of all places together: 4 MB. 44,100 to 16,000 Hz has 160 places and 150,000 weights
# Places of the table between two zero crossings. The error of a straight line between two is below
# (pi / 1024)^2 / 8 = 1.2e-6 of full scale, 118 dB under it.
_TABLE = 1_024
_BLOCK = 1 << 22  # weights that are interpolated at a time: 16 MB


def check_kernel(name: str) -> Kernel:
    """The kernel of this name. Raises UnknownNameError."""
    if name not in KERNELS:
        raise UnknownNameError("resampling", name, KERNELS)
    return KERNELS[name]


def resample_clip(waveform: Tensor, rate: int, new_rate: int, resampling: str = DEFAULT_KERNEL) -> Tensor:
    """One clip at another sample rate.

    Args:
        waveform: (T,) fp32.
        rate, new_rate: before and after, in Hz.
        resampling: one of `KERNELS`.

    Returns:
        (T',) fp32, where T' is `T * new_rate / rate`, rounded up. The clip itself if nothing changes.

    Raises:
        UnknownNameError: no kernel of this name.
    """
    kernel = check_kernel(resampling)
    if rate == new_rate:
        return waveform
    return _resampled(waveform, Fraction(rate, new_rate), kernel)


def _resampled(waveform: Tensor, ratio: Fraction, kernel: Kernel) -> Tensor:
    """(T,) -> (T / ratio,), rounded up. `ratio`: the rate before over the rate after."""
    step, places = ratio.numerator, ratio.denominator
    length = -(-len(waveform) * places // step)
    blocks = _blocks(kernel, step, places)
    if blocks:
        reach = _reach(kernel, step, places)
        step, places = step * blocks, places * blocks
        weights = _weights(kernel, step, places).to(waveform.device)
        rows = -(-length // places)
        padded = F.pad(waveform, (reach, max(0, rows * step + reach - len(waveform))))
        return F.conv1d(padded[None, None], weights[:, None], stride=step)[0].T.reshape(-1)[:length]
    if (whole := step // places // 2) > 1:  # to between two and four times the rate after: that leaves fewer weights
        return _resampled(_resampled(waveform, Fraction(whole), kernel), ratio / whole, kernel)[:length]
    return _interpolated(waveform, kernel, step, places, length)


def _blocks(kernel: Kernel, step: int, places: int) -> int:
    """How often the places between two samples are repeated in one block, which one row of a convolution makes.

    A row reads its block and `reach` samples on each side. Where blocks were short, most of what is read would be read
    again for the next, and the convolution copies what it reads. 0: there are too many places to keep their weights.
    """
    reach = _reach(kernel, step, places)
    blocks = -(-2 * reach // step)
    while blocks and blocks * places * (blocks * step + 2 * reach) > _MOST_WEIGHTS:
        blocks -= 1
    return blocks


def _reach(kernel: Kernel, step: int, places: int) -> int:
    """Samples on each side that have a weight."""
    return math.ceil(kernel.zeros * max(step, places) / (places * kernel.rolloff))


def _sinc(kernel: Kernel, distance: np.ndarray, step: int, places: int) -> np.ndarray:
    """The weight of a sample that lies so many samples away from the place of the result."""
    cutoff = kernel.rolloff * min(1.0, places / step)  # as a share of half the rate before
    crossings = distance * cutoff
    inside = np.clip(crossings / kernel.zeros, -1, 1)
    if kernel.beta is None:
        window = np.cos(inside * np.pi / 2) ** 2
    else:
        window = np.i0(kernel.beta * np.sqrt(1 - inside**2)) / np.i0(kernel.beta)
    weights: np.ndarray = np.where(np.abs(crossings) < kernel.zeros, np.sinc(crossings) * window * cutoff, 0.0)
    return weights


def _kept(weights: np.ndarray) -> Tensor:
    """As an fp32 tensor that is kept for later calls, which may want gradients where the first did not."""
    with torch.inference_mode(False):
        return torch.from_numpy(weights.astype(np.float32))


@functools.lru_cache(maxsize=16)
def _weights(kernel: Kernel, step: int, places: int) -> Tensor:
    """(places, K): the weights of every place that occurs, for the samples from `reach` before each block of `step`."""
    reach = _reach(kernel, step, places)
    samples = np.arange(-reach, step + reach)
    return _kept(_sinc(kernel, samples - np.arange(places)[:, None] * step / places, step, places))


@functools.lru_cache(maxsize=4)
def _table(kernel: Kernel, step: int, places: int) -> Tensor:
    """(entries + 1, K): the weights of places that lie evenly from one sample to the next, both included."""
    reach = _reach(kernel, step, places)
    entries = math.ceil(_TABLE * min(1.0, places / step))
    samples = np.arange(-reach, reach + 2)
    return _kept(_sinc(kernel, samples - np.arange(entries + 1)[:, None] / entries, step, places))


def _interpolated(waveform: Tensor, kernel: Kernel, step: int, places: int, length: int) -> Tensor:
    """As `resample_clip`, with weights interpolated in a table, some thousand samples at a time."""
    table = _table(kernel, step, places).to(waveform.device)
    entries, reach = len(table) - 1, _reach(kernel, step, places)
    windows = F.pad(waveform, (reach, reach + 2)).unfold(0, table.shape[1], 1)  # (T + 1, K), a view
    pieces = []
    for first in range(0, length, _BLOCK // table.shape[1]):
        numbers = torch.arange(first, min(length, first + _BLOCK // table.shape[1]), device=waveform.device)
        before = numbers * step // places  # whole numbers: the sample at or before each place
        between = (numbers * step % places).to(torch.float64) * (entries / places)
        entry = between.floor().long().clamp_(max=entries - 1)
        share = (between - entry).to(torch.float32)[:, None]
        weights = torch.lerp(table[entry], table[entry + 1], share)
        pieces.append((windows[before] * weights).sum(dim=1))
    return torch.cat(pieces)
