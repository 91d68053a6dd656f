"""Waveforms of any sample rate and length -> log-mel spectrograms, equal to Kaldi's fbank (Povey et al., 2011).

All clips of a call stand one behind the other in one signal, of which a few hundred frames are transformed at a time:
mixed lengths cost no padding, and what a frame becomes on the way stays in the processor's cache.
Symbols: B clips, T samples, F frames, M mel bins.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.compliance.kaldi import get_mel_banks

from adapterbank.audio.resampling import DEFAULT_KERNEL, resample_clip
from adapterbank.errors import ConfigError
from adapterbank.numbers import is_whole
from adapterbank.text import amount

SAMPLE_RATE = 16_000  # Hz
WINDOW = 400  # samples: 25 ms
HOP = 160  # samples: 10 ms
FFT = 512  # the next power of two after WINDOW
PREEMPHASIS = 0.97
LOWEST_HZ, HIGHEST_HZ = 20.0, 0.0  # Kaldi: 0 means the Nyquist frequency
LOG_FLOOR = torch.finfo(torch.float32).eps
BLOCK = 80  # samples: HOP and WINDOW are whole numbers of it
GAP = 2  # hops between a clip's last frame and the next clip's first, beyond the usual one: they hold its window
CHUNK = 512  # frames at a time on a CPU: 2 MB of samples and spectra
GROUPS = 4  # of mel filters: neighbours, which cover few of the bins
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000  # Hz: no sound that AST could use was recorded outside of these
# The loudest sample that is taken for sound. Float files may go beyond 1.0 where a mix was not limited: 100 is 40 dB
# above full scale, which no mix reaches. Integers that were not divided by their range go beyond it, even of 8 bits.
LOUDEST = 100.0
AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974  # of AudioSet's log-mels (Gong et al., 2021)


def frame_count(samples: int) -> int:
    """Frames of a clip of `samples` at 16 kHz; a clip shorter than one window is padded to one."""
    return 1 + max(0, samples - WINDOW) // HOP


def log_mel(waveforms: Sequence[Tensor], mel_bins: int, sample_rate: int | Sequence[int] = SAMPLE_RATE) -> list[Tensor]:
    """Kaldi log-mel filter banks: 25 ms Hanning windows every 10 ms, no dither, no energy.

    Args:
        waveforms: B one-dimensional fp32 tensors in [-1, 1], on one device.
        sample_rate: in Hz, one for all or one per clip; resampled to 16 kHz.

    Returns:
        B tensors (F, M), natural logarithm, before any normalisation.
    """
    waveforms = resample(waveforms, sample_rate)
    counts = [frame_count(len(w)) for w in waveforms]
    hops = [count + GAP for count in counts]  # what starts in a gap is a frame too, but nobody's
    signal = waveforms[0].new_zeros(sum(hops) * HOP + FFT + 1 - HOP)
    for place, clip, count in zip(_split(signal, [n * HOP for n in hops]), waveforms, counts, strict=True):
        used = clip[: (count - 1) * HOP + WINDOW]
        place[: len(used)] = used
    mel = signal.new_empty(sum(hops), mel_bins)
    step = CHUNK if signal.device.type == "cpu" else len(mel)
    for first in range(0, len(mel), step):
        _transform(signal[first * HOP :], mel[first : first + step])
    return [part[:count] for part, count in zip(_split(mel, hops), counts, strict=True)]


def _split(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """Views of `sizes` entries each, from the start."""
    return x[: sum(sizes)].split(list(sizes))


def _transform(signal: Tensor, mel: Tensor) -> None:
    """Writes the log-mels of the first F frames of `signal`, (F HOP + FFT + 1 - HOP,) or more, into `mel`, (F, M).

    Kaldi takes each frame's mean off it, then 0.97 of the sample before from each sample. Both are linear, so here the
    second is done once for all frames, and what is left of the mean is a number per frame. The first sample of a
    frame, which has none before it, has no weight in the window: frames begin with the second, which shifts phases
    and leaves the power as it is.
    """
    frames = len(mel)
    signal = signal[: (frames - 1) * HOP + FFT + 1]
    sums = signal[: (frames - 1) * HOP + WINDOW].view(-1, BLOCK).sum(dim=1)
    offset = sums.unfold(0, WINDOW // BLOCK, HOP // BLOCK).sum(dim=1, keepdim=True) * ((1 - PREEMPHASIS) / WINDOW)
    emphasised = torch.sub(signal[1:], signal[:-1], alpha=PREEMPHASIS)
    shaped = (emphasised.unfold(0, FFT, HOP) - offset).mul_(_window().to(signal.device))
    parts = torch.view_as_real(torch.fft.rfft(shaped)).flatten(1).square_()  # (F, FFT + 2): real, imaginary, ...
    first = 0
    for bins, weights in _mel_filters(mel.shape[1]):
        last = first + weights.shape[1]
        torch.mm(parts[:, bins], weights.to(signal.device), out=mel[:, first:last])  # adds up squares on the way
        first = last
    mel.clamp_min_(LOG_FLOOR).log_()


@functools.lru_cache(maxsize=1)
def _window() -> Tensor:
    """(FFT,): Hanning's from its second value on, then zeros."""
    return F.pad(torch.hann_window(WINDOW, periodic=False, dtype=torch.float32)[1:], (0, FFT - WINDOW + 1))


@functools.lru_cache(maxsize=8)
def _mel_filters(mel_bins: int) -> list[tuple[slice, Tensor]]:
    """Triangular filters on Kaldi's mel scale, in groups: columns of (F, FFT + 2) that have weight, (columns, m)."""
    filters, _ = get_mel_banks(mel_bins, FFT, SAMPLE_RATE, LOWEST_HZ, HIGHEST_HZ, 100.0, -500.0, 1.0)
    groups = []
    for group in filters.tensor_split(min(GROUPS, mel_bins)):
        used = group.any(dim=0).nonzero()
        first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        # fp32 whatever torch's default dtype is at the first call: what is made here is kept for all later ones.
        weights = group[:, first:last].repeat_interleave(2, dim=1).T.contiguous().float()
        groups.append((slice(2 * first, 2 * last), weights))
    return groups


def check_sample_rate(rate: Any) -> None:
    """Raises ConfigError unless `rate` is a sample rate in Hz, a whole number from 1,000 to 768,000."""
    if not is_whole(rate, LOWEST_RATE, HIGHEST_RATE):
        raise ConfigError(
            f"got sample_rate={rate!r}, expected an int in Hz from {LOWEST_RATE} to {HIGHEST_RATE}, such as 44100."
        )


def resample(
    waveforms: Sequence[Tensor], sample_rate: int | Sequence[int], resampling: str = DEFAULT_KERNEL
) -> list[Tensor]:
    """Each clip at 16 kHz.

    Args:
        sample_rate: in Hz, one for all or one per clip.
        resampling: one of `adapterbank.audio.resampling.KERNELS`.

    Raises:
        ConfigError: a rate is none, or there is another number of them than of clips.
        UnknownNameError: no kernel of this name.
    """
    rates = list(sample_rate) if isinstance(sample_rate, Sequence) else [sample_rate] * len(waveforms)
    if len(rates) != len(waveforms):
        raise ConfigError(
            f"got {amount(len(rates), 'sample rate')} for {amount(len(waveforms), 'clip')}, expected one, or one per "
            "clip."
        )
    for rate in rates:
        check_sample_rate(rate)
    return [resample_clip(w, rate, SAMPLE_RATE, resampling) for w, rate in zip(waveforms, rates, strict=True)]


def pad_frames(mel: Tensor, frames: int) -> Tensor:
    """(F, M) -> (frames, M): zeros at the end, in log-mel and before normalisation, as ASTFeatureExtractor does.

    A clip with more frames loses its last ones.
    """
    return F.pad(mel, (0, 0, 0, frames - len(mel)))


def normalise(mel: Tensor, mean: float, std: float) -> Tensor:
    """`(mel - mean) / (2 std)`: AST's scale, with half the usual variance."""
    return (mel - mean) / (2 * std)
