"""Opens a backbone: ast-mini, a folder or hub id of Hugging Face, an original `.pth` file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.checkpoints.embedded import EMBEDDED
from adapterbank.backbone.checkpoints.fingerprint import _assemble, fingerprint
from adapterbank.backbone.checkpoints.huggingface import _classifier, _from_folder
from adapterbank.backbone.checkpoints.original import SUFFIXES, translate
from adapterbank.backbone.embedding import at_stride
from adapterbank.errors import BackboneError
from adapterbank.files import read_tensors

INIT_STD = 0.02  # `initializer_range` of transformers' ASTConfig


def load_backbone(name_or_folder: str | Path, *, stride: int | None = None) -> Backbone:
    """Opens a backbone on the CPU, in fp32.

    Args:
        name_or_folder: "ast-mini" (inside this package), a folder with `config.json` and weights as
            `save_pretrained` writes them, a Hugging Face hub id such as "MIT/ast-finetuned-audioset-10-10-0.4593", or
            a `.pth` file of the AST or SSAST repository such as "audioset_10_10_0.4593.pth".
        stride: of the patches, in place of the checkpoint's own: 10 is how AAT and SSAST's authors run SSAST, which is
            pretrained at 16. Positions are interpolated, the fingerprint is another, and a classifier is left out.

    Raises:
        BackboneError: not found, not an AST, unreadable, or tensors that do not fit the configuration.
    """
    source = str(name_or_folder)
    path = Path(source).expanduser()
    backbone = _from_file(path, stride) if _is_original(path) else _from_folder(source)
    if stride is not None:
        backbone = _restride(backbone, stride)
    return replace(backbone, source=source if source in EMBEDDED or not path.exists() else str(path.resolve()))


def _is_original(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def _from_file(path: Path, stride: int | None) -> Backbone:
    """An original AST or SSAST."""
    if not path.is_file():
        raise BackboneError(
            f"there is no file {path}. Download the checkpoint from the AST or SSAST repository and pass its path."
        )
    geometry, body, head, mean, std = translate(read_tensors(path), path, stride)
    backbone = _assemble(geometry, body, path, mean, std)
    return replace(backbone, classifier=_classifier(head, {}, geometry, path))


def _restride(backbone: Backbone, stride: int) -> Backbone:
    """The backbone with its patches cut at another stride; at its own, the same with that on record."""
    sizes = backbone.geometry
    if type(stride) is int and (sizes.frequency_stride, sizes.time_stride) == (stride, stride):
        return replace(backbone, stride=stride)
    embed = backbone.weights.embed
    geometry, table = at_stride(sizes, embed.positions, stride)
    weights = backbone.weights._replace(embed=embed._replace(positions=table))
    mark = fingerprint(geometry, dict(weights.named()))
    return replace(backbone, geometry=geometry, weights=weights, fingerprint=mark, classifier=None, stride=stride)


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
    mark = fingerprint(like.geometry, dict(weights.named()))
    return replace(like, weights=weights, source="random", fingerprint=mark, classifier=None, stride=None)
