"""Canonical tensors, checked and marked: the same values are the same backbone under any names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.weights import ASTWeights, Geometry, expected_shapes
from adapterbank.errors import BackboneError


def _assemble(
    geometry: Geometry, body: dict[str, Tensor], where: Path, mean: float, std: float, qkv_bias: bool = True
) -> Backbone:
    """Flattens what checkpoints keep in more axes, checks every tensor and takes the fingerprint."""
    flat = {"embed.patch_weight": (1, -1), "embed.cls": (0, -1), "embed.dist": (0, -1), "embed.positions": (0, 1)}
    for name, (first, last) in flat.items():
        if name in body and body[name].ndim > 1:
            body[name] = body[name].flatten(first, last)
    _check_shapes(body, geometry, qkv_bias, where)
    weights = ASTWeights.from_named(body, geometry.layers)
    return Backbone(geometry, weights, str(where), fingerprint(geometry, body), mean, std)


def fingerprint(geometry: Geometry, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, over sizes, eps, canonical names, shapes and fp32 values."""
    digest = hashlib.sha256(json.dumps(asdict(geometry), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _check_shapes(body: Mapping[str, Tensor], geometry: Geometry, qkv_bias: bool, folder: Path) -> None:
    expected = expected_shapes(geometry, qkv_bias)
    missing, extra = sorted(expected.keys() - body.keys()), sorted(body.keys() - expected.keys())
    if missing or extra:
        raise BackboneError(
            f"{folder} does not fit its config.json ({geometry.layers} layers): "
            f"missing {', '.join(missing[:3]) or 'nothing'}, unexpected {', '.join(extra[:3]) or 'nothing'}."
        )
    for name, shape in expected.items():
        if tuple(body[name].shape) != shape:
            raise BackboneError(
                f"{folder}: {name} has shape {tuple(body[name].shape)}, expected {shape} from its config.json."
            )
        if not torch.isfinite(body[name]).all():
            raise BackboneError(f"{folder}: {name} holds NaN or Inf. Fetch the file again.")
