"""Checkpoints of the AST and SSAST repositories (Gong et al., 2021 and 2022) -> canonical tensors.

Their `.pth` files are bare state dicts: sizes are read from shapes, the grid from the number of positions. Blocks are
timm's, with a LayerNorm eps of 1e-6, where Hugging Face's conversions have 1e-12: both are read as they are, so a bank
made on one does not open on the other. (`mlp_head`'s norm has 1e-5 there and the body's eps here: at unit variance
5e-6 of what it puts out.)

SSAST's cls and distillation outputs were trained by no loss: give its tasks `pooling="mean"`, as its authors do (they
leave the two tokens out of the mean). A fine-tuned file does not say how it pooled; its head is read as AST's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from adapterbank.audio.mel import AUDIOSET_MEAN, AUDIOSET_STD
from adapterbank.backbone.weights import PREFIX_TOKENS, Geometry
from adapterbank.errors import BackboneError
from adapterbank.text import amount

SUFFIXES = (".pth", ".pt")
EPS = 1e-6  # timm's vision transformers
HEAD_WIDTH = 64  # of every DeiT: 3, 6 and 12 heads for 192, 384 and 768
PATCH = 16
MEL_BINS = 128
STRIDES = (10, 12, 14, 16)  # of the published ASTs, on both axes
RECIPE_FRAMES = (1024, 512, 128)  # AudioSet, ESC-50, Speech Commands
SPEECH_COMMANDS = (35, 128)  # classes and frames of the one published checkpoint with a normalisation of its own
SPEECH_COMMANDS_MEAN_STD = (-6.845978, 5.5654526)  # AST's recipe for Speech Commands v2
_PREFIX = "module."  # of torch's DataParallel

_OUTSIDE = {
    "v.cls_token": "embed.cls",
    "v.dist_token": "embed.dist",
    "v.pos_embed": "embed.positions",
    "v.patch_embed.proj.weight": "embed.patch_weight",
    "v.patch_embed.proj.bias": "embed.patch_bias",
    "v.norm.weight": "norm.weight",
    "v.norm.bias": "norm.bias",
}

_LAYER = re.compile(r"v\.blocks\.(\d+)\.")
_IN_LAYER = {"norm1": "ln1", "attn.proj": "proj", "norm2": "ln2", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
_QKV = "attn.qkv"

_HEAD = {
    "mlp_head.0.weight": "norm.weight",
    "mlp_head.0.bias": "norm.bias",
    "mlp_head.1.weight": "linear.weight",
    "mlp_head.1.bias": "linear.bias",
}

# DeiT's own heads, which AST never calls, and what only SSAST's pretraining uses.
_LEFT_OUT = ("v.head.", "v.head_dist.", "mask_embed", "cpredlayer.", "gpredlayer.", "p_")
_PRETRAINING_SIZES = ("p_input_fdim", "p_input_tdim")  # mel bins and frames, 0-d


class Original(NamedTuple):
    """What a file holds: canonical fp32 tensors, and the classifier's (none: empty) by the names of our `Head`."""

    geometry: Geometry
    body: dict[str, Tensor]
    head: dict[str, Tensor]
    mean: float
    std: float


def translate(tensors: Mapping[str, Tensor], path: Path, stride: int | None = None) -> Original:
    """The state dict of an original AST or SSAST, with or without DataParallel's `module.`.

    Args:
        path: for messages.
        stride: decides between several grids of one number of positions; otherwise without effect here.

    Raises:
        BackboneError: another model, missing or unknown tensors, wrong shapes, patches other than 16 x 16.
    """
    found = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in tensors) else ""
    layers = _check_names(found, prefix, path)
    _check_patch(found["v.patch_embed.proj.weight"], path)
    _check_shapes(found, layers, prefix, path)
    geometry = _geometry(found, layers, stride, path)
    head = {ours: found[theirs].float() for theirs, ours in _HEAD.items() if theirs in found}
    speech = head and (head["linear.bias"].numel(), geometry.max_frames) == SPEECH_COMMANDS
    mean, std = SPEECH_COMMANDS_MEAN_STD if speech else (AUDIOSET_MEAN, AUDIOSET_STD)
    return Original(geometry, _body(found, layers), head, mean, std)


def _body(found: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    body = {ours: found[theirs].float() for theirs, ours in _OUTSIDE.items()}
    for layer in range(layers):
        for kind in ("weight", "bias"):
            for theirs, ours in _IN_LAYER.items():
                body[f"blocks.{layer}.{ours}_{kind}"] = found[f"v.blocks.{layer}.{theirs}.{kind}"].float()
            parts = found[f"v.blocks.{layer}.{_QKV}.{kind}"].float().chunk(3)
            for ours, part in zip("qkv", parts, strict=True):
                body[f"blocks.{layer}.{ours}_{kind}"] = part.clone()  # the three must not keep one another in memory
    return body


def _check_names(found: Mapping[str, Tensor], prefix: str, path: Path) -> int:
    """The number of layers."""
    layers = 1 + max((int(match[1]) for name in found if (match := _LAYER.match(name))), default=-1)
    if not layers:
        raise BackboneError(
            f"{path} is no original AST or SSAST: got tensors such as {', '.join(sorted(found)[:3]) or 'none'}, "
            "expected module.v.blocks.0.attn.qkv.weight and so on. Open a Hugging Face model by its folder."
        )
    expected = _shapes(layers, 0, 0, 0).keys() | (_HEAD.keys() if found.keys() & _HEAD.keys() else set())
    if found.keys() & set(_PRETRAINING_SIZES):
        expected |= set(_PRETRAINING_SIZES)
    if missing := sorted(expected - found.keys()):
        named = ", ".join(prefix + name for name in missing[:5])
        raise BackboneError(
            f"{path} lacks {len(missing)} of the {amount(len(expected), 'tensor')} of an original AST or SSAST of "
            f"{layers} layers: {named}. Fetch the file again, or save the whole state_dict()."
        )
    if unknown := sorted(name for name in found.keys() - expected if not name.startswith(_LEFT_OUT)):
        raise BackboneError(f"{path} has tensors that no AST has: {', '.join(prefix + name for name in unknown[:5])}.")
    return layers


def _check_patch(kernel: Tensor, path: Path) -> None:
    if (got := tuple(kernel.shape[2:])) != (PATCH, PATCH):
        frame = " (mel bins x frames: an SSAST frame model)" if got[:1] == (MEL_BINS,) else ""
        raise BackboneError(
            f"{path} has patches of {' x '.join(map(str, got)) or 'no size'}{frame}, expected {PATCH} x {PATCH}. "
            "Take the patch model of that size, such as SSAST-Base-Patch-400.pth."
        )


def _shapes(layers: int, width: int, mlp_width: int, positions: int) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the body, by the original names."""
    d, mlp = width, mlp_width
    shapes: dict[str, tuple[int, ...]] = {
        "v.cls_token": (1, 1, d),
        "v.dist_token": (1, 1, d),
        "v.pos_embed": (1, positions, d),
        "v.patch_embed.proj.weight": (d, 1, PATCH, PATCH),
        "v.patch_embed.proj.bias": (d,),
        "v.norm.weight": (d,),
        "v.norm.bias": (d,),
    }
    linears = {_QKV: (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (mlp, d), "mlp.fc2": (d, mlp)}
    for layer in range(layers):
        for name, shape in {**linears, "norm1": (d,), "norm2": (d,)}.items():
            shapes[f"v.blocks.{layer}.{name}.weight"] = shape
            shapes[f"v.blocks.{layer}.{name}.bias"] = shape[:1]
    return shapes


def _check_shapes(found: Mapping[str, Tensor], layers: int, prefix: str, path: Path) -> None:
    width = found["v.patch_embed.proj.bias"].numel()
    mlp_width = found["v.blocks.0.mlp.fc1.bias"].numel()
    positions = found["v.pos_embed"].shape[1] if found["v.pos_embed"].ndim == 3 else 0
    for name, shape in _shapes(layers, width, mlp_width, positions).items():
        if (got := tuple(found[name].shape)) != shape:
            raise BackboneError(f"{path}: {prefix}{name} has shape {got}, expected {shape} beside the other tensors.")
    if width % HEAD_WIDTH:
        raise BackboneError(f"{path} has width {width}, expected a multiple of {HEAD_WIDTH}, the width of a DeiT head.")


def _geometry(found: Mapping[str, Tensor], layers: int, stride: int | None, path: Path) -> Geometry:
    """Sizes from shapes; the grid from SSAST's own record, or from the number of positions."""
    width = found["v.patch_embed.proj.bias"].numel()
    mlp_width = found["v.blocks.0.mlp.fc1.bias"].numel()
    base = Geometry(layers, width, width // HEAD_WIDTH, mlp_width, MEL_BINS, patch=PATCH, eps=EPS)
    tokens = found["v.pos_embed"].shape[1]
    if _PRETRAINING_SIZES[0] not in found:
        return _grid(base, tokens, stride, path)
    sizes = [found[name] for name in _PRETRAINING_SIZES]
    if any(size.ndim or size.is_floating_point() for size in sizes):
        raise BackboneError(f"{path}: p_input_fdim or p_input_tdim is no integer scalar. Fetch the file again.")
    mel_bins, frames = (int(size) for size in sizes)
    pretrained = replace(base, mel_bins=mel_bins, max_frames=frames, frequency_stride=PATCH, time_stride=PATCH)
    if pretrained.tokens(frames) != tokens:  # patches do not overlap in its pretraining
        raise BackboneError(
            f"{path} has {tokens} positions, expected {pretrained.tokens(frames)} for {mel_bins} mel bins x {frames} "
            "frames, as its p_input_fdim and p_input_tdim say. Fetch the file again."
        )
    return pretrained


def _grid(base: Geometry, tokens: int, stride: int | None, path: Path) -> Geometry:
    """The grid of 128 mel bins with so many positions: of a published recipe, or else the only possible one."""

    def cut(every: int, frames: int) -> Geometry:
        return replace(base, max_frames=frames, frequency_stride=every, time_stride=every)

    for frames in RECIPE_FRAMES:
        for every in STRIDES:
            if cut(every, frames).tokens(frames) == tokens:
                return cut(every, frames)
    readings = {}
    for every in STRIDES:
        columns, left = divmod(tokens - PREFIX_TOKENS, cut(every, PATCH).rows)
        if columns > 0 and not left:
            readings[every] = cut(every, PATCH + (columns - 1) * every)
    if len(readings) == 1:
        return next(iter(readings.values()))
    if isinstance(stride, int) and stride in readings:
        return readings[stride]
    grids = ", ".join(f"{g.rows} x {g.columns(g.max_frames)} (stride {every})" for every, g in readings.items())
    if not readings:
        raise BackboneError(
            f"{path} has {tokens} positions, which is no grid of {MEL_BINS} mel bins at a stride of "
            f"{', '.join(map(str, STRIDES))} and two more. Only such models can be read."
        )
    raise BackboneError(
        f"{path} has {tokens} positions: {grids} and two more. Say which: load_backbone(path, stride={max(readings)})."
    )
