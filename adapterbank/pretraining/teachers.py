"""Frozen teachers for distillation: YAMNet (ONNX), Whisper's encoder (npz) and any Hugging Face AST.

A teacher in a file of its own is named in `_BUILT_IN` and imported when it is first built.

A teacher reads waveforms of one length and answers with target arrays aligned to the student's patch columns. One
column is 16 log-mel frames, 2,560 samples: a view of t columns has 240 + 2,560 t samples, so that its Kaldi frames
(25 ms every 10 ms) number exactly 16 t.

Symbols: R rows of a batch, T samples, t patch columns, S rows of a target, E its width.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adapterbank.audio.mel import SAMPLE_RATE, log_mel
from adapterbank.errors import BackboneError
from adapterbank.pretraining.registry import Registry

COLUMN_SAMPLES = 2_560  # 16 frames of 10 ms at 16 kHz
LONGEST_PIECE = 62  # columns: 10 s
TAIL_SAMPLES = 240  # what the last 25 ms window reaches beyond its 10 ms step


def view_samples(columns: int) -> int:
    """Samples of a view that fills exactly `columns` patch columns."""
    return TAIL_SAMPLES + COLUMN_SAMPLES * columns


@dataclass(frozen=True)
class Target:
    """One array that a teacher answers with.

    Attributes:
        name: unique over all teachers, such as "yamnet.embedding".
        width: E.
        kind: embeddings are regressed after standardisation, probabilities by binary cross-entropy.
        span: patch columns that one row covers; 0 means the whole view.
        hop: patch columns from one row to the next.
        parts: into how many equal parts of time the pooled token's target is averaged. More than one makes the pooled
            token keep the order of what it heard (phones of a word, the course of a tone).
    """

    name: str
    width: int
    kind: Literal["embedding", "probability"]
    span: int = 0
    hop: int = 0
    parts: int = 1

    def rows(self, columns: int) -> int:
        """S for a view of `columns` patch columns."""
        return 1 if not self.span else 1 + max(0, columns - self.span) // self.hop


class Teacher(Protocol):
    """What the distillation asks of a teacher. `targets` never change after construction."""

    targets: Sequence[Target]

    def __call__(self, waves: Tensor) -> dict[str, Tensor]:
        """(R, view_samples(t)) fp32 in [-1, 1] -> {target name: (R, S, E)} in fp32."""
        ...


_TEACHERS: Registry[Teacher] = Registry(
    "teacher", {"aisfx": f"{__package__}.teacher_aisfx"}, "model", shown={"hf": "hf:<model id>"}
)
register, names, build = _TEACHERS.register, _TEACHERS.names, _TEACHERS.build


def pooled_embedding(teacher: Teacher, wave: Tensor) -> Tensor:
    """Time means of a teacher's embeddings over the whole columns of a clip, side by side. (T,) -> (E,)

    Clips longer than 10 s, which teachers may cut or refuse, are heard in equal pieces of at most that length.
    """
    columns = max(1, (len(wave) - TAIL_SAMPLES) // COLUMN_SAMPLES)
    wave = F.pad(wave, (0, max(0, view_samples(columns) - len(wave))))
    pieces = -(-columns // LONGEST_PIECE)
    edges = [columns * index // pieces for index in range(pieces + 1)]
    means = []
    for first, last in itertools.pairwise(edges):
        start = COLUMN_SAMPLES * first
        answers = teacher(wave[None, start : start + view_samples(last - first)])
        own = [answers[t.name][0].mean(0) for t in teacher.targets if t.kind == "embedding"]
        means.append(torch.cat(own) * (last - first) / columns)
    return torch.stack(means).sum(0)


# --- The sound itself ------------------------------------------------------------------------------------------------

DYNAMIC_RANGE = math.log(1e6)  # 60 dB below the loudest bin of a view: quieter is silence


@register("log_mel")
class LogMel:
    """The view's own log-mel, level removed: what is linear in the spectrum stays linear in the student.

    A random AST keeps pitch (0.93 on the Mandarin tones), which YAMNet and Whisper do not ask for; without this target
    distillation unlearns it.
    """

    def __init__(self, mel_bins: int = 128):
        self.mel_bins = mel_bins
        self.targets: Sequence[Target] = (Target("mel.halves", 2 * mel_bins, "embedding", span=1, hop=1, parts=3),)

    def __call__(self, waves: Tensor) -> dict[str, Tensor]:
        return {"mel.halves": mel_halves(torch.stack(log_mel(list(waves), self.mel_bins)))}


def mel_halves(mel: Tensor) -> Tensor:
    """(R, 16 t, M) -> (R, t, 2 M): means over the halves of every patch column, less the view's mean."""
    mel = torch.maximum(mel, mel.amax(dim=(1, 2), keepdim=True) - DYNAMIC_RANGE)
    halves = mel.unflatten(1, (-1, 2, 8)).mean(3)  # (R, t, 2, M)
    return (halves - halves.mean(dim=(1, 2, 3), keepdim=True)).flatten(2)


# --- YAMNet ----------------------------------------------------------------------------------------------------------

YAMNET_WINDOW, YAMNET_HOP = 96, 48  # frames: 0.96 s every 0.48 s, that is 6 patch columns every 3
YAMNET_OFFSET = 1e-3  # added before the logarithm; YAMNet's own constant


@register("yamnet_onnx")
class YamnetOnnx:
    """YAMNet (Plakal and Ellis, 2020; AudioSet, 521 classes) through onnxruntime.

    Args:
        path: `yamnet.onnx` with input `audio` [n, 1, 96, 64] and outputs `logits` [n, 521] and `embedding` [n, 1024].
        threads: of onnxruntime; 0 lets it choose.
    """

    def __init__(self, path: str | Path, threads: int = 0):
        try:
            import onnxruntime
        except ImportError as error:
            raise BackboneError(
                "teacher 'yamnet_onnx' needs onnxruntime: pip install 'adapterbank[pretrain]'."
            ) from error
        if not Path(path).is_file():
            raise BackboneError(f"no YAMNet at {path}; pass path=<yamnet.onnx>.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.targets: Sequence[Target] = (
            Target("yamnet.embedding", 1024, "embedding", span=6, hop=3),
            Target("yamnet.scores", 521, "probability", span=6, hop=3),
        )

    def __call__(self, waves: Tensor) -> dict[str, Tensor]:
        windows = yamnet_windows(waves)
        rows, count = windows.shape[:2]
        logits, embedding = self.session.run(
            ["logits", "embedding"], {"audio": windows.flatten(0, 1)[:, None].contiguous().numpy()}
        )
        scores = torch.from_numpy(logits).sigmoid()
        return {
            "yamnet.embedding": torch.from_numpy(embedding).unflatten(0, (rows, count)),
            "yamnet.scores": scores.unflatten(0, (rows, count)),
        }


def yamnet_windows(waves: Tensor) -> Tensor:
    """(R, T) -> (R, S, 96, 64): log-mel windows, zeros appended to waveforms shorter than one window."""
    needed = 400 + 160 * (YAMNET_WINDOW - 1)
    if waves.shape[1] < needed:
        waves = F.pad(waves, (0, needed - waves.shape[1]))
    frames = waves.unfold(1, 400, 160) * torch.hann_window(400, device=waves.device)
    magnitude = torch.fft.rfft(frames, n=512).abs()
    mel = torch.log(magnitude @ torch.from_numpy(htk_filters()).to(waves.device).T + YAMNET_OFFSET)
    return mel.unfold(1, YAMNET_WINDOW, YAMNET_HOP).transpose(2, 3)


@functools.cache
def htk_filters() -> np.ndarray:
    """(64, 257) triangles, linear in Hz, over 125-7,500 Hz on the HTK mel scale, without area normalisation."""
    low, high = (2595 * math.log10(1 + f / 700) for f in (125.0, 7500.0))
    edges = 700 * (10 ** (np.linspace(low, high, 66) / 2595) - 1)
    return triangles(edges, np.linspace(0, SAMPLE_RATE / 2, 257)).astype(np.float32)


def triangles(edges: np.ndarray, bins: np.ndarray) -> np.ndarray:
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))


# --- Whisper ---------------------------------------------------------------------------------------------------------

WHISPER_HEADS = 6
WHISPER_ROWS = 1_500  # of 20 ms: the 30 s that it was trained on
ROWS_PER_COLUMN = COLUMN_SAMPLES // 320  # 8
MARGIN_ROWS = 8  # kept exactly after the end of the sound, before silence is thinned


@register("whisper_npz")
class WhisperNpz:
    """Encoder of Whisper tiny.en (Radford et al., 2022) from an npz of OpenAI's names.

    Whisper hears 30 s windows. What follows a short clip is silence: equal log-mel frames that differ by their
    position only. Every `silence_stride`-th of those rows stands for its neighbours: log(stride) on its attention
    logits makes the softmax sum what the rows left out would have added.

    Args:
        path: `whisper_tiny_encoder.npz`.
        dtype: of the matmuls.
        silence_stride: 1 is exact.
    """

    def __init__(self, path: str | Path, dtype: torch.dtype = torch.bfloat16, silence_stride: int = 32):
        if not Path(path).is_file():
            raise BackboneError(f"no Whisper encoder at {path}; pass path=<whisper_tiny_encoder.npz>.")
        with np.load(path, allow_pickle=False) as file:
            tensors = {name: torch.from_numpy(file[name].astype(np.float32)) for name in file.files}
        small = ("ln", "positional")
        self.w = {n: t if any(s in n for s in small) else t.to(dtype) for n, t in tensors.items()}
        self.layers = 1 + max(int(n.split(".")[1]) for n in self.w if n.startswith("blocks."))
        self.dtype, self.stride = dtype, silence_stride
        width = len(self.w["ln_post.weight"])
        # Two halves of 80 ms per column: about a phone each.
        self.targets: Sequence[Target] = (Target("whisper.frames", 2 * width, "embedding", span=1, hop=1, parts=3),)

    def __call__(self, waves: Tensor) -> dict[str, Tensor]:
        columns = (waves.shape[1] - TAIL_SAMPLES) // COLUMN_SAMPLES
        frames = self.encode(waves)[:, : columns * ROWS_PER_COLUMN]
        halves = frames.unflatten(1, (columns, 2, ROWS_PER_COLUMN // 2)).mean(3)
        return {"whisper.frames": halves.flatten(2)}

    @torch.no_grad()
    def encode(self, waves: Tensor) -> Tensor:
        """(R, T) with T up to 30 s -> (R, ceil(T / 320), 384) fp32: the rows that Whisper gives to the sound."""
        kept = math.ceil(waves.shape[1] / 320)
        exact = min(WHISPER_ROWS, kept + MARGIN_ROWS)
        # Two rows more than kept, so that conv2's zero padding never reaches a row that is used.
        mel, silence = whisper_mel(waves, min(2 * WHISPER_ROWS, 2 * exact + 4))
        x = self._conv(mel)[:, :exact]
        positions = torch.arange(exact + self.stride // 2, WHISPER_ROWS, self.stride)
        if len(positions):
            quiet = self._conv(silence[:, None, None].expand(-1, 80, 9))[:, 2:3]
            x = torch.cat((x, quiet.expand(-1, len(positions), -1)), dim=1)
        x = x + self.w["positional_embedding"][torch.cat((torch.arange(exact), positions))]
        weight = (WHISPER_ROWS - exact) / max(1, len(positions))
        mask = torch.zeros(x.shape[1]).index_fill(0, torch.arange(exact, x.shape[1]), math.log(max(weight, 1.0)))
        for layer in range(self.layers):
            x = self._block(x, f"blocks.{layer}.", mask.to(self.dtype))
        return self._norm(x[:, :kept], "ln_post")

    def _conv(self, mel: Tensor) -> Tensor:
        """(R, 80, F) -> (R, F / 2, 384) in fp32."""
        x = F.gelu(F.conv1d(mel.to(self.dtype), self.w["conv1.weight"], self.w["conv1.bias"], padding=1))
        x = F.gelu(F.conv1d(x, self.w["conv2.weight"], self.w["conv2.bias"], stride=2, padding=1))
        return x.transpose(1, 2).float()

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-5)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x.to(self.dtype), self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def _block(self, x: Tensor, name: str, mask: Tensor) -> Tensor:
        h = self._norm(x, f"{name}attn_ln")
        q, k, v = (
            self._linear(h, f"{name}attn.{part}").unflatten(2, (WHISPER_HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.expand(1, 1, x.shape[1], -1))
        x = x + self._linear(mixed.transpose(1, 2).flatten(2), f"{name}attn.out")
        h = self._linear(self._norm(x, f"{name}mlp_ln"), f"{name}mlp.0")
        return x + self._linear(F.gelu(h), f"{name}mlp.2")


def whisper_mel(waves: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """(R, T) -> log-mel (R, 80, frames) of the zero-padded sound, and the value of silence (R,) in each clip."""
    padded = F.pad(waves, (0, max(0, 160 * frames + 200 - waves.shape[1])))
    padded = F.pad(padded[:, None], (200, 0), mode="reflect")[:, 0]
    power = torch.fft.rfft(padded.unfold(1, 400, 160)[:, :frames] * torch.hann_window(400)).abs().square()
    mel = (power @ torch.from_numpy(slaney_filters()).T).clamp_min(1e-10).log10()
    floor = mel.amax(dim=(1, 2), keepdim=True) - 8.0
    mel = (torch.maximum(mel, floor) + 4) / 4
    silence = (floor.flatten().clamp_min(-10.0) + 4) / 4
    return mel.transpose(1, 2), silence


@functools.cache
def slaney_filters() -> np.ndarray:
    """(80, 201) triangles over 0-8,000 Hz on the Slaney mel scale, each divided by half its width in Hz."""
    log_step = math.log(6.4) / 27  # above 1 kHz; below, one mel is 200 / 3 Hz
    mels = np.linspace(0, 15 + math.log(8.0) / log_step, 82)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(log_step * (mels - 15)))
    area = 2 / (edges[2:] - edges[:-2])
    return (triangles(edges, np.linspace(0, SAMPLE_RATE / 2, 201)) * area[:, None]).astype(np.float32)


# --- Hugging Face ----------------------------------------------------------------------------------------------------


@register("hf")
class HuggingFaceAst:
    """Any transformers AST for audio classification: pooled output and sigmoid scores of the whole view.

    Args:
        model: hub id or folder, such as "MIT/ast-finetuned-audioset-10-10-0.4593".
        dtype: of the model.
    """

    def __init__(self, model: str, dtype: torch.dtype = torch.bfloat16):
        from transformers import ASTForAudioClassification, AutoFeatureExtractor

        try:
            self.extract = AutoFeatureExtractor.from_pretrained(model)
            self.model = ASTForAudioClassification.from_pretrained(model, dtype=dtype).eval()
        except (OSError, ValueError) as error:
            raise BackboneError(
                f"teacher 'hf:{model}' could not be loaded ({type(error).__name__}). With internet access it is "
                "fetched from the hub; without, put its config.json, preprocessor_config.json and model.safetensors "
                "into a folder and use hf:<folder>."
            ) from error
        self.dtype = dtype
        self.targets: Sequence[Target] = (
            Target("hf.embedding", self.model.config.hidden_size, "embedding"),
            Target("hf.scores", self.model.config.num_labels, "probability"),
        )

    @torch.no_grad()
    def __call__(self, waves: Tensor) -> dict[str, Tensor]:
        inputs = self.extract(list(waves.numpy()), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        pooled = self.model.audio_spectrogram_transformer(inputs["input_values"].to(self.dtype)).pooler_output
        scores = self.model.classifier(pooled).float().sigmoid()
        return {"hf.embedding": pooled.float()[:, None], "hf.scores": scores[:, None]}
