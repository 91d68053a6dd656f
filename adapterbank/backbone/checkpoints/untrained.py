"""How an AST starts before any training: the baseline of pretraining, and where our own pretraining begins."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.checkpoints.assemble import fingerprint

INIT_STD = 0.02  # `initializer_range` of transformers' ASTConfig


def random_backbone(like: Backbone, seed: int = 0) -> Backbone:
    """An untrained AST of the same sizes: the baseline of any pretraining.

    Truncated normal of deviation 0.02 for every matrix, token and position, norms 1, biases 0: how DeiT, and with it
    the original AST, starts. (transformers' `_init_weights` leaves tokens and positions at zero.)
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, tensor: Tensor) -> Tensor:
        if name.endswith("bias"):
            return torch.zeros_like(tensor)
        if "ln" in name or name.startswith("norm"):
            return torch.ones_like(tensor)
        drawn = torch.empty(tensor.shape, dtype=tensor.dtype)
        return torch.nn.init.trunc_normal_(drawn, std=INIT_STD, generator=generator).to(tensor.device)

    weights = like.weights.map(draw)
    found = fingerprint(like.geometry, dict(weights.named()))
    return replace(like, weights=weights, source="random", fingerprint=found, classifier=None, stride=None)
