"""A teacher of sound effects: the network of aiSFX, trained on professional effects libraries.

Source: A. B. Ma and A. Lerch, "Representation Learning for the Automatic Indexing of Sound Effects Libraries", ISMIR
2022; package `aisfx` 0.1.2 on PyPI. Network and checkpoint are by Copyright (c) 2022 A. B. Ma and A. Lerch, CC BY 4.0:
whoever passes on what was learned from it names them. The code here is written anew, because the package needs versions
of numpy and librosa of 2022; the checkpoint stays a file of the user's.

The network was trained on Essentia's mel spectrograms. The package's other front end, librosa's, differs in scale and
window and gives the network time and frequency exchanged, so it is no reference.

Symbols: R rows of a batch, T samples, t patch columns, F frames, K steps of eight frames, S rows of a target, E its
width.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.audio.resampling import resample_clip
from adapterbank.errors import BackboneError
from adapterbank.pretraining.teachers import COLUMN_SAMPLES, TAIL_SAMPLES, Target, register, triangles

RATE = 44_100  # Hz, of the recordings that it was trained on
WINDOW, HOP = 2_048, 1_024  # samples at 44.1 kHz: 46 ms every 23 ms
MEL_BINS = 96
LOG_SCALE = 1e4  # log10(1 + 10,000 x power), Essentia's "shift_scale_log"
LARGEST = 9.457798957824707  # of all spectrograms in the training, which makes it 1
BLOCKS = 4  # of two convolutions each
POOLED_BLOCKS = 3  # each halves time and frequency
STEP = 2**POOLED_BLOCKS  # frames of one row of the last feature map: 186 ms
SPAN, TARGET_HOP = 6, 3  # patch columns, as YAMNet's: 0.96 s every 0.48 s
ROWS_AT_ONCE_COLUMNS = 64  # patch columns that go through the network together: more of them leave the caches
BN_EPS = 1e-5

WHERE_FROM = (
    "`pip download --no-deps aisfx==0.1.2` fetches it: the file is aisfx/models/checkpoint.pth inside the wheel, which "
    "is a zip archive"
)


@register("aisfx")
class Aisfx:
    """Embeddings of aiSFX: eight convolutions, the mean over frequency, then the maximum over time.

    The original takes the maximum over blocks of 100 frames (2.3 s), of which the next begins in the middle of the one
    before. Here the convolutions run once over the whole view, and two targets read their result: "aisfx.embedding" has
    the maximum over 0.96 s, so that a moment has its own answer, and "aisfx.view" that over the whole view. The mean of
    the first over a clip tells less than the second (docs/ast_mini.md has the probes).

    Args:
        path: `checkpoint.pth` of the package.
        dtype: of the convolutions; the spectrogram and the pooling are fp32.
    """

    def __init__(self, path: str | Path, dtype: torch.dtype = torch.bfloat16):
        self.dtype = dtype
        self.layers = [
            (weight.to(dtype, memory_format=torch.channels_last), bias.to(dtype))
            for weight, bias in _folded(read_checkpoint(path), path)
        ]
        width = len(self.layers[-1][1])
        self.targets: Sequence[Target] = (
            Target("aisfx.embedding", width, "embedding", span=SPAN, hop=TARGET_HOP),
            Target("aisfx.view", width, "embedding"),
        )

    @torch.no_grad()
    def __call__(self, waves: Tensor) -> dict[str, Tensor]:
        columns = (waves.shape[1] - TAIL_SAMPLES) // COLUMN_SAMPLES
        rows = max(1, ROWS_AT_ONCE_COLUMNS // columns)
        steps = torch.cat([self.steps(effects_mel(part)) for part in waves.split(rows)])
        windows = _window_maxima(steps, self.targets[0].rows(columns))
        return {"aisfx.embedding": windows, "aisfx.view": steps.amax(1, keepdim=True)}

    def steps(self, mel: Tensor) -> Tensor:
        """(R, F, 96) with F of 8 or more -> (R, K, E) fp32, one row for every eight frames."""
        x = mel[:, None].to(self.dtype, memory_format=torch.channels_last)  # (R, 1, F, 96)
        for index, (weight, bias) in enumerate(self.layers):
            x = F.conv2d(x, weight, bias, padding=1)
            if index % 2 and index < 2 * POOLED_BLOCKS:
                x = F.max_pool2d(x, 2)  # before ReLU, which it commutes with, because a quarter is left after it
            x = F.relu_(x)
        return x.float().mean(3).transpose(1, 2)  # (R, E, K, 12) -> (R, K, E)


def _window_maxima(steps: Tensor, rows: int) -> Tensor:
    """(R, K, E) -> (R, S, E): maxima over the steps whose middle lies in the patch columns of a row."""
    step = STEP * HOP / RATE  # seconds
    column = COLUMN_SAMPLES / SAMPLE_RATE
    middle = (STEP - 1) / 2 * HOP / RATE  # frame 0 is centred on the first sample
    maxima = []
    for row in range(rows):
        first = math.ceil((row * TARGET_HOP * column - middle) / step)
        end = math.ceil(((row * TARGET_HOP + SPAN) * column - middle) / step)
        maxima.append(steps[:, first:end].amax(1))
    return torch.stack(maxima, dim=1)


def effects_mel(waves: Tensor) -> Tensor:
    """(R, T) at 16 kHz -> (R, F, 96) in about [0, 1]: Essentia's mel spectrogram at 44.1 kHz, as the package scales it.

    Frames are centred on every 1,024th sample. The bands above 8 kHz, 25 of the 96, are silent.
    """
    return mel_at_44100(torch.stack([resample_clip(wave, SAMPLE_RATE, RATE) for wave in waves]))


def mel_at_44100(waves: Tensor) -> Tensor:
    """As `effects_mel`, of waveforms (R, T) at 44.1 kHz."""
    frames = math.ceil((waves.shape[1] + WINDOW // 2) / HOP)
    padded = F.pad(waves, (WINDOW // 2, WINDOW))
    window = torch.hann_window(WINDOW, periodic=False, dtype=waves.dtype, device=waves.device)
    power = torch.fft.rfft(padded.unfold(1, WINDOW, HOP)[:, :frames] * window).abs().square()
    mel = power @ torch.from_numpy(unit_sum_filters()).to(power).T
    return (LOG_SCALE * mel).add_(1).log10_().div_(LARGEST)


@functools.cache
def unit_sum_filters() -> np.ndarray:
    """(96, 1025) triangles, linear on the HTK mel scale, over 0-22,050 Hz; the weights of each sum to 1."""
    bins = 2595 * np.log10(1 + np.linspace(0, RATE / 2, WINDOW // 2 + 1) / 700)
    weights = triangles(np.linspace(0, bins[-1], MEL_BINS + 2), bins)
    return np.asarray(weights / weights.sum(1, keepdims=True), dtype=np.float32)


def read_checkpoint(path: str | Path) -> Mapping[str, Tensor]:
    """The tensors of `checkpoint.pth` by name.

    The file is a pickle. It is read as tensors and, for the numbers of the training's datasets beside them, numpy
    integers: anything else in it is refused before it could run.

    Raises:
        BackboneError: no file, or not this one.
    """
    if not Path(path).is_file():
        raise BackboneError(f"no aiSFX checkpoint at {path}; pass path=<checkpoint.pth>. {WHERE_FROM}.")
    make_scalar = np.int64(0).__reduce__()[0]  # numpy 2 has it in another module than numpy 1, which made the file
    scalars = [(make_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals([*scalars, np.dtype, type(np.dtype(np.int64))]):
            tensors, _ = torch.load(path, map_location="cpu", weights_only=True)
        return {str(name): tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    except Exception as error:  # a file of another kind, or a torn one, fails in any way
        # torch's own message explains how to run what it refused, so that it is not repeated here.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {refused[1]}, which is not data" if refused else f"{type(error).__name__} on reading it"
        raise BackboneError(f"{path} is not aiSFX's checkpoint.pth: {reason}. {WHERE_FROM}.") from error


def _folded(tensors: Mapping[str, Tensor], path: str | Path) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of every convolution, its batch norm folded into them."""
    layers = []
    channels = 1
    for block in range(1, BLOCKS + 1):
        for number in (1, 2):
            at = f"embedding_net.conv_block{block}."
            names = [f"{at}conv{number}.weight"]
            names += [f"{at}bn{number}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
            missing = [name for name in names if name not in tensors]
            if missing:
                raise BackboneError(f"{path} is not aiSFX's checkpoint.pth: it has no {missing[0]}. {WHERE_FROM}.")
            weight, gain, shift, mean, variance = (tensors[name].float() for name in names)
            if weight.shape[1:] != (channels, 3, 3):
                raise BackboneError(
                    f"{path} is not aiSFX's checkpoint.pth: {names[0]} is {tuple(weight.shape)}, expected (any, "
                    f"{channels}, 3, 3). {WHERE_FROM}."
                )
            scale = gain / (variance + BN_EPS).sqrt()
            layers.append((weight * scale[:, None, None, None], shift - mean * scale))
            channels = len(weight)
    return layers
