"""From canonical tensors to a `Backbone`: every tensor is checked, and the fingerprint is taken.

Every checkpoint is brought to the canonical names of `ASTWeights.named` before it comes here. The fingerprint is taken
of those, in fp32, so that a checkpoint by Hugging Face's old names, by its new ones, and a base that is cast to bf16
later are the same backbone. It is what a saved bank knows its backbone by.
"""

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
from adapterbank.text import amount


def assemble(
    geometry: Geometry,
    body: dict[str, Tensor],
    where: Path,
    mean: float,
    std: float,
    *,
    sizes_from: str,
    qkv_bias: bool = True,
) -> Backbone:
    """The backbone of these tensors.

    Args:
        body: canonical names and fp32 tensors; patches, tokens and positions may have the axes of their checkpoint.
        where: the folder or file, for messages and as the backbone's source.
        mean, std: of log-mels in its training.
        sizes_from: where the geometry was read, for messages, such as "its config.json".
        qkv_bias: whether q, k and v have biases.

    Raises:
        BackboneError: a tensor is missing, unknown, of another shape, or not finite.
    """
    flat = {"embed.patch_weight": (1, -1), "embed.cls": (0, -1), "embed.dist": (0, -1), "embed.positions": (0, 1)}
    for name, (first, last) in flat.items():
        if name in body and body[name].ndim > 1:
            body[name] = body[name].flatten(first, last)
    _check_shapes(body, geometry, qkv_bias, where, sizes_from)
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


def _check_shapes(body: Mapping[str, Tensor], geometry: Geometry, qkv_bias: bool, where: Path, sizes_from: str) -> None:
    expected = expected_shapes(geometry, qkv_bias)
    missing, extra = sorted(expected.keys() - body.keys()), sorted(body.keys() - expected.keys())
    if missing or extra:
        raise BackboneError(
            f"{where} does not fit {sizes_from} ({amount(geometry.layers, 'layer')}): missing "
            f"{', '.join(missing[:3]) or 'nothing'}, unexpected {', '.join(extra[:3]) or 'nothing'}."
        )
    for name, shape in expected.items():
        if tuple(body[name].shape) != shape:
            raise BackboneError(
                f"{where}: {name} has shape {tuple(body[name].shape)}, expected {shape} from {sizes_from}."
            )
        if not torch.isfinite(body[name]).all():
            raise BackboneError(f"{where}: {name} holds NaN or Inf. Fetch the file again.")
