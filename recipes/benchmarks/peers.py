"""transformers' AST beside ours: the same weights, and spectrograms as its extractor makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.backbone.embedding import positions
from adapterbank.backbone.precision import dtype_of
from adapterbank.bank import AdapterBank


def features(waves: Sequence[Tensor], frames: int) -> Tensor:
    """(B, frames, M) as transformers makes them."""
    from transformers import ASTFeatureExtractor

    arrays = [wave.numpy() for wave in waves]
    return ASTFeatureExtractor(max_length=frames)(arrays, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values


def peer(
    bank: AdapterBank, frames: int, precision: str = "fp32", source: str | Path | None = None, **config: Any
) -> Any:
    """transformers' AST for spectrograms of one length, with the middle positions as ours has them."""
    from transformers import ASTForAudioClassification

    config |= {"dtype": dtype_of(precision), "attn_implementation": "sdpa", "ignore_mismatched_sizes": True}
    model: Any = ASTForAudioClassification.from_pretrained(source or bank.backbone.source, max_length=frames, **config)
    sizes, table = bank.backbone.geometry, bank.backbone.weights.embed.positions
    there = model.audio_spectrogram_transformer.embeddings.position_embeddings
    there.data = positions(table, sizes, sizes.columns(frames))[None].to(there.dtype)
    return model.to(bank.backbone.device).eval()


@torch.no_grad()
def answer(model: Any, inputs: Tensor, **options: Any) -> Tensor:
    dtype = next(model.parameters()).dtype
    return model(inputs.to(next(model.parameters()).device, dtype), **options).logits
