"""How alike two recordings are: is one a copy of the other, or of a part of it?

Sketches, which are coarse log-mel spectrograms, find candidates at any offset. The waveforms of a candidate confirm it.

Symbols: T samples at 16 kHz, S steps of 40 ms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchaudio.functional
from torch import Tensor

from adapterbank.audio.mel import SAMPLE_RATE, log_mel

BANDS, STEP = 32, 4  # steps of 40 ms
STEP_SECONDS = 160 * STEP / SAMPLE_RATE
WINDOW, QUERY_HOP, POOL_HOP = 16, 8, 4  # steps: 0.64 s, every 0.32 and 0.16 s
EXCERPT, EXCERPTS = 25, 3  # steps: one second; how many of them
SHORTEST = 8  # steps: a third of a second; shorter sounds are like many others
FLOOR = 8.0  # nats below a clip's maximum: quieter is silence
SOUNDING = 0.2  # share of an excerpt's cells above the floor; with fewer there is nothing to recognise
WAVE_RATE = 8_000  # Hz: codecs keep the waveform of low frequencies
LOWEST = 60.0  # Hz
# Two waveforms are compared where they overlap by at least WAVE_OVERLAP seconds, if the overlap has at least the share
# WAVE_ENERGY of the energy of each, or at least the share WAVE_LENGTH of the length of the shorter one.
WAVE_OVERLAP = 0.2
WAVE_ENERGY = 0.1
WAVE_LENGTH = 0.5


def sketch(wave: Tensor) -> Tensor:
    """(T,) -> (S, BANDS): log-mel in 40 ms steps, its level taken out."""
    mel = log_mel([F.pad(wave, (0, max(0, 160 * STEP * 2 + 400 - len(wave))))], BANDS)[0]
    mel = F.avg_pool1d(mel.T[None], STEP, STEP)[0].T
    return (mel - mel.max()).clamp_min(-FLOOR)


def descriptors(steps: Tensor, hop: int) -> Tensor:
    """(S, BANDS) -> (windows, 2 BANDS) of length 1."""
    steps = F.pad(steps, (0, 0, 0, max(0, WINDOW - len(steps))), value=-FLOOR)
    windows = steps.unfold(0, WINDOW, hop)  # (windows, BANDS, WINDOW)
    mean = windows.mean(2)
    both = torch.cat((mean - mean.mean(1, keepdim=True), windows.std(2)), dim=1)
    return F.normalize(both, dim=1)


def excerpts(steps: Tensor) -> list[tuple[int, Tensor]]:
    """Up to three seconds of a clip that do not overlap, the loudest first: where each begins, and its steps."""
    size = min(EXCERPT, len(steps))
    energy = steps.exp().sum(1).unfold(0, size, 1).sum(1)
    found: list[tuple[int, Tensor]] = []
    for _ in range(EXCERPTS):
        start = int(energy.argmax())
        piece = steps[start : start + size]
        if not found or (energy[start] > 0 and float((piece > -FLOOR).float().mean()) >= SOUNDING):
            found.append((start, piece))
        energy[max(0, start - size + 1) : start + size] = 0
    return found


def correlation(excerpt: Tensor, other: Tensor) -> tuple[float, int]:
    """Highest normalised correlation of an excerpt with a piece of a longer sketch, and where that piece begins."""
    centred = excerpt - excerpt.mean()
    pieces = other.unfold(0, len(excerpt), 1).transpose(1, 2)  # (places, steps, BANDS)
    pieces = pieces - pieces.mean(dim=(1, 2), keepdim=True)
    products = (pieces * centred).sum((1, 2)) / (pieces.norm(dim=(1, 2)) * centred.norm()).clamp_min(1e-6)
    best = int(products.argmax())
    return float(products[best]), best


def likeness(steps: Tensor, other: Tensor) -> tuple[float, int, int, int]:
    """Correlation of the most alike pieces of a test clip and a pool clip, where both begin, and their steps."""
    if len(other) < EXCERPT:  # the shorter one slides over the longer
        shorter = other[: len(steps)]
        value, place = correlation(shorter, steps) if len(shorter) >= SHORTEST else (0.0, 0)
        return value, place, 0, len(shorter)
    found = [(*correlation(piece, other), start, len(piece)) for start, piece in excerpts(steps)]
    value, place, start, size = max(found)
    return value, start, place, size


def low_band(wave: Tensor) -> Tensor:
    """(T,) -> (T / 2,) between 60 Hz and 4 kHz."""
    wave = torchaudio.functional.resample(wave, SAMPLE_RATE, WAVE_RATE)
    return torchaudio.functional.highpass_biquad(wave, WAVE_RATE, LOWEST)


def wave_correlation(wave: Tensor, other: Tensor) -> float:
    """Highest normalised correlation, of either sign, of two waveforms where they overlap, over all offsets."""
    size = len(wave) + len(other)
    products = torch.fft.irfft(torch.fft.rfft(other, n=size) * torch.fft.rfft(wave, n=size).conj(), n=size).double()
    lags = torch.arange(1 - len(wave), len(other))  # where `wave` begins in `other`
    first, last = lags.clamp_min(0), (lags + len(wave)).clamp_max(len(other))
    loud = torch.ones(len(lags), dtype=torch.bool)
    energy = torch.ones(len(lags), dtype=torch.float64)
    for signal, shift in ((other, 0), (wave, lags)):
        sums = F.pad(signal.double().square().cumsum(0), (1, 0))
        shared = sums[last - shift] - sums[first - shift]
        loud &= shared >= WAVE_ENERGY * sums[-1]
        energy *= shared
    most = last - first >= WAVE_LENGTH * min(len(wave), len(other))
    counts = (last - first >= WAVE_OVERLAP * WAVE_RATE) & (loud | most)
    values = (products[lags % size] / energy.sqrt().clamp_min(1e-9)).abs()
    return float(values[counts].max()) if counts.any() else 0.0
