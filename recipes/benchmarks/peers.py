"""transformers' AST beside ours: the same weights, and spectrograms as its extractor makes them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.backbone.embedding import positions
from adapterbank.backbone.precision import dtype_of
from adapterbank.bank import AdapterBank


def make_backbone(folder: Path, sizes: dict[str, Any], classes: int) -> None:
    """Makes a folder with an AST of random weights, as transformers saves it, which both sides open.

    Args:
        sizes: what differs from transformers' `ASTConfig`, which is that of AST-base.
    """
    if folder.is_dir():
        return
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(0)
    model = ASTForAudioClassification(ASTConfig(**{**sizes, "num_labels": classes}))
    for name, parameter in model.named_parameters():
        if name.endswith(("token", "position_embeddings")):  # transformers starts them at zero
            torch.nn.init.trunc_normal_(parameter, std=0.02)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    model.save_pretrained(unfinished)
    ASTFeatureExtractor().save_pretrained(unfinished)
    unfinished.rename(folder)


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
