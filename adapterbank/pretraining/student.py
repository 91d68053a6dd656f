"""A small AST made to be trained: its initialisation, its forward pass, and its export as a backbone.

Symbols: R rows of a batch, F frames, M mel bins, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from adapterbank.audio.mel import AUDIOSET_MEAN, AUDIOSET_STD
from adapterbank.backbone import plain
from adapterbank.backbone.checkpoints.huggingface import MODEL_TYPE, extractor_config
from adapterbank.backbone.checkpoints.names import on_disk
from adapterbank.backbone.checkpoints.untrained import INIT_STD
from adapterbank.backbone.embedding import embed
from adapterbank.backbone.weights import ASTWeights, Geometry, expected_shapes
from adapterbank.files import json_bytes, write_atomically

MINI = Geometry(
    layers=12, width=192, heads=3, mlp_width=768, max_frames=1024, frequency_stride=16, time_stride=16, eps=1e-6
)
SINUSOID_BASE = 100.0  # the slowest wave is 2 pi x 100 columns long
SINUSOID_SCALE = 0.5  # about the spread of embedded patches
QUERY_KEY_SCALE = 0.7  # a token's logit for itself is about 8 x 0.7^2 = 4
Tensors = dict[str, Tensor]


def init_student(geometry: Geometry, seed: int) -> Tensors:
    """The tensors of a new AST, initialised so that a short training suffices.

    - Linears are drawn from a normal distribution with variance 1 / fan-in. (Published vision transformers start with a
      standard deviation of 0.02, which leaves small models on a plateau for thousands of steps.) The linears that write
      to the residual stream are smaller by sqrt(2 x layers).
    - Query and key start equal and orthogonal, so that a token attends to tokens that are like it. Positions start as
      2-D sinusoids, so that patches that are near each other have similar positions. Both are the mimetic
      initialisation of Trockman and Kolter (2023).
    - LayerNorms start at 1, biases at 0.

    Returns:
        The tensors by their names in `ASTWeights.named()`.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in expected_shapes(geometry).items():
        if name.endswith("bias"):
            tensors[name] = torch.zeros(shape)
        elif "ln" in name or name.startswith("norm"):
            tensors[name] = torch.ones(shape)
        elif name == "embed.positions":
            tensors[name] = torch.cat((torch.zeros(2, geometry.width), sinusoids(geometry)))
        elif name.endswith(("q_weight", "k_weight")):
            # The generator of a block's number gives query and key the same heads.
            same = torch.Generator().manual_seed(seed * 1000 + int(name.split(".")[1]))
            tensors[name] = _orthogonal_heads(geometry, same) + 0.02 * torch.randn(shape, generator=generator)
        else:
            std = shape[-1] ** -0.5 if len(shape) > 1 else INIT_STD
            if name.endswith(("proj_weight", "fc2_weight")):
                std /= (2 * geometry.layers) ** 0.5
            tensors[name] = torch.nn.init.trunc_normal_(torch.empty(shape), std=std, generator=generator)
    return tensors


def sinusoids(geometry: Geometry) -> Tensor:
    """(rows x columns, D) 2-D position embeddings: half of the width tells frequency, half time."""
    half = geometry.width // 2
    rates = SINUSOID_BASE ** (-torch.arange(half // 2) / (half // 2))

    def along(count: int) -> Tensor:
        angles = torch.arange(count)[:, None] * rates
        return SINUSOID_SCALE * torch.cat((angles.sin(), angles.cos()), dim=1)  # (count, D / 2)

    rows, columns = along(geometry.rows), along(geometry.columns(geometry.max_frames))
    grid = (len(rows), len(columns), -1)
    both = torch.cat((rows[:, None].expand(grid), columns[None].expand(grid)), dim=2)
    return torch.nn.functional.pad(both.flatten(0, 1), (0, geometry.width - both.shape[2]))


def _orthogonal_heads(geometry: Geometry, generator: torch.Generator) -> Tensor:
    square = torch.randn(geometry.width, geometry.width, generator=generator)
    return QUERY_KEY_SCALE * torch.linalg.qr(square).Q


def student_tokens(
    tensors: Mapping[str, Tensor], mel: Tensor, geometry: Geometry, dtype: torch.dtype, kept: Tensor | None = None
) -> Tensor:
    """Normalised (R, F, M) -> tokens (R, N, D) in fp32 after the final norm.

    Args:
        kept: (R, k) patch rows (frequency) that each clip keeps; the rest are left out of the sequence, which costs
            less and generalises better (patchout: Koutini et al., 2021). None keeps all.

    The stream runs in `dtype`, too, unlike in a bank.
    """
    weights = ASTWeights.from_named(tensors, geometry.layers)
    x = embed(mel, weights.embed, geometry).to(dtype)
    if kept is not None:
        grid = x[:, 2:].unflatten(1, (geometry.rows, -1))
        x = torch.cat((x[:, :2], grid[torch.arange(len(x))[:, None], kept].flatten(1, 2)), dim=1)
    return student_blocks(weights, x, geometry)


def student_blocks(weights: ASTWeights, x: Tensor, geometry: Geometry) -> Tensor:
    """All blocks and the final norm, in the dtype of the embedded tokens. (R, N, D) -> (R, N, D) in fp32."""
    cast = weights.map(lambda name, tensor: tensor.to(x.dtype) if name.startswith("blocks.") else tensor)
    return plain.blocks(x, cast, geometry)


def _model_config(geometry: Geometry) -> dict[str, Any]:
    """What transformers' `ASTConfig` says of this geometry."""
    return {
        "architectures": ["ASTModel"],
        "attention_probs_dropout_prob": 0.0,
        "dtype": "bfloat16",
        "frequency_stride": geometry.frequency_stride,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": geometry.width,
        "initializer_range": INIT_STD,
        "intermediate_size": geometry.mlp_width,
        "layer_norm_eps": geometry.eps,
        "max_length": geometry.max_frames,
        "model_type": MODEL_TYPE,
        "num_attention_heads": geometry.heads,
        "num_hidden_layers": geometry.layers,
        "num_mel_bins": geometry.mel_bins,
        "patch_size": geometry.patch,
        "qkv_bias": True,
        "time_stride": geometry.time_stride,
    }


def export_backbone(tensors: Mapping[str, Tensor], geometry: Geometry, folder: str | Path) -> None:
    """Writes config.json, preprocessor_config.json and model.safetensors (bf16), as `ASTModel.save_pretrained` does.

    Each file appears whole or not at all, so that other processes may read the folder while it is written anew.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config, extractor = _model_config(geometry), extractor_config(geometry, AUDIOSET_MEAN, AUDIOSET_STD)
    named = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().to(torch.bfloat16)
        if name == "embed.patch_weight":
            tensor = tensor.unflatten(1, (1, geometry.patch, geometry.patch))
        elif name in ("embed.cls", "embed.dist"):
            tensor = tensor[None, None]
        elif name == "embed.positions":
            tensor = tensor[None]
        named[on_disk(name)] = tensor.contiguous()
    # `save_file` would leave a file that only its owner can read.
    write_atomically(folder / "model.safetensors", save(named, metadata={"format": "pt"}))
    for name, content in (("config", config), ("preprocessor_config", extractor)):
        write_atomically(folder / f"{name}.json", json_bytes(content))
