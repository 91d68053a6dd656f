"""The frozen tensors of an AST by their canonical names, and its sizes.

Symbols: D width, M MLP width, N tokens, P side of a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapterbank.backbone.int8 import Int8Matrix
from adapterbank.errors import BackboneError

PREFIX_TOKENS = 2  # cls and distillation
LINEAR_NAMES = ("q", "k", "v", "proj", "fc1", "fc2")


@dataclass(frozen=True)
class Geometry:
    """Sizes of an AST. Strides, patch and frames count spectrogram bins; `eps` is that of every LayerNorm."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    mlp_width: int = 3072
    mel_bins: int = 128
    max_frames: int = 1024
    patch: int = 16
    frequency_stride: int = 10
    time_stride: int = 10
    eps: float = 1e-12

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "eps" and (not isinstance(value, int) or value < 1):
                raise BackboneError(f"got {name}={value!r} as a size of an AST, expected a positive integer.")
        if self.width % self.heads:
            raise BackboneError(f"width {self.width} is not a multiple of heads {self.heads}; change one of them.")
        if min(self.mel_bins, self.max_frames) < self.patch:
            raise BackboneError(f"{self.mel_bins} mel bins x {self.max_frames} frames hold no {self.patch}-bin patch.")

    @property
    def rows(self) -> int:
        """Patch rows: the frequency axis of the grid."""
        return (self.mel_bins - self.patch) // self.frequency_stride + 1

    def columns(self, frames: int) -> int:
        """Patch columns that fit into `frames`."""
        return (frames - self.patch) // self.time_stride + 1

    def whole_frames(self, frames: int) -> int:
        """`frames` rounded up so that no frame is left over beside the last patch."""
        return self.patch + max(0, -(-(frames - self.patch) // self.time_stride)) * self.time_stride

    def tokens(self, frames: int) -> int:
        """cls, distillation and patch tokens of a spectrogram of `frames`."""
        return PREFIX_TOKENS + self.rows * self.columns(frames)


class EmbedWeights(NamedTuple):
    patch_weight: Tensor  # (D, patch * patch), frequency-major
    patch_bias: Tensor  # (D,)
    cls: Tensor  # (D,)
    dist: Tensor  # (D,)
    positions: Tensor  # (2 + rows * columns(max_frames), D): cls, dist, grid in frequency-major order


class FrozenLinear(NamedTuple):
    """One frozen linear, in the dtype it is stored in."""

    weight: Tensor  # (out, in)
    bias: Tensor | None  # (out,)


class NormWeights(NamedTuple):
    weight: Tensor  # (D,)
    bias: Tensor  # (D,)


class BlockWeights(NamedTuple):
    """One block. A linear has a matrix (out, in) and a bias (out,); a LayerNorm a gain and a bias, (D,) each."""

    ln1_weight: Tensor
    ln1_bias: Tensor
    q_weight: Tensor  # (D, D), as those of k, v and proj
    q_bias: Tensor | None
    k_weight: Tensor
    k_bias: Tensor | None
    v_weight: Tensor
    v_bias: Tensor | None
    proj_weight: Tensor
    proj_bias: Tensor
    ln2_weight: Tensor
    ln2_bias: Tensor
    fc1_weight: Tensor  # (M, D)
    fc1_bias: Tensor
    fc2_weight: Tensor  # (D, M)
    fc2_bias: Tensor

    def linear(self, name: str) -> FrozenLinear:
        """The linear of one of `LINEAR_NAMES`."""
        return FrozenLinear(getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"))

    def norm(self, name: str) -> NormWeights:
        """The LayerNorm "ln1" or "ln2"."""
        return NormWeights(getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"))


class ASTWeights(NamedTuple):
    """All tensors of an AST body. A task that owns whole tensors has them in the places of the frozen ones."""

    embed: EmbedWeights
    blocks: tuple[BlockWeights, ...]
    norm: NormWeights

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """(canonical name, tensor): `embed.cls`, `blocks.3.fc1_weight`, `norm.bias`."""
        groups: list[tuple[str, EmbedWeights | BlockWeights | NormWeights]] = [("embed", self.embed)]
        groups += [(f"blocks.{i}", block) for i, block in enumerate(self.blocks)]
        groups += [("norm", self.norm)]
        for prefix, group in groups:
            for name, tensor in group._asdict().items():
                if tensor is not None:
                    yield f"{prefix}.{name}", tensor

    @classmethod
    def from_named(cls, tensors: Mapping[str, Tensor], layers: int) -> ASTWeights:
        """The inverse of `named`; absent query, key and value biases are None."""

        def group(kind: Any, prefix: str) -> Any:
            return kind(*(tensors.get(f"{prefix}.{name}") for name in kind._fields))

        blocks = tuple(group(BlockWeights, f"blocks.{i}") for i in range(layers))
        return cls(group(EmbedWeights, "embed"), blocks, group(NormWeights, "norm"))

    def map(self, change: Callable[[str, Tensor], Tensor]) -> ASTWeights:
        """A copy with `change(name, tensor)` in place of every tensor."""
        return ASTWeights.from_named({name: change(name, t) for name, t in self.named()}, len(self.blocks))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ASTWeights:
        """Moved to `device`; `dtype` is that of the frozen linears only: norms and embeddings stay fp32.

        With torch.int8 the matrices of the blocks are `Int8Matrix`, their biases and the patch embedding bf16. With
        another dtype all tensors are copies, also those that stay as they are: a view would keep the mapped file in
        memory.

        Raises:
            BackboneError: a dtype that is neither floating nor torch.int8.
        """
        if dtype is not None and dtype != torch.int8 and not dtype.is_floating_point:
            raise BackboneError(
                f"got base_dtype={dtype}, expected torch.float32, torch.bfloat16, torch.float16 or torch.int8."
            )
        other = dtype not in (None, self.embed.patch_weight.dtype)

        def change(name: str, tensor: Tensor) -> Tensor:
            *_, group, field = name.split(".")
            if dtype is None or field.rsplit("_", 1)[0] not in (*LINEAR_NAMES, "patch"):
                return tensor.to(device=device, copy=other)
            if dtype == torch.int8:
                matrix = group != "embed" and field.endswith("_weight")
                return Int8Matrix.of(tensor).to(device) if matrix else tensor.to(device, torch.bfloat16, copy=other)
            exact = tensor.wide() if isinstance(tensor, Int8Matrix) else tensor
            return exact.to(device=device, dtype=dtype, copy=other)

        return self.map(change)


def expected_shapes(geometry: Geometry, qkv_bias: bool = True) -> dict[str, tuple[int, ...]]:
    """Shape of every canonical tensor of an AST of this geometry."""
    d, mlp = geometry.width, geometry.mlp_width
    grid = geometry.rows * geometry.columns(geometry.max_frames)
    shapes: dict[str, tuple[int, ...]] = {
        "embed.patch_weight": (d, geometry.patch**2),
        "embed.patch_bias": (d,),
        "embed.cls": (d,),
        "embed.dist": (d,),
        "embed.positions": (PREFIX_TOKENS + grid, d),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    linears = {"q": (d, d), "k": (d, d), "v": (d, d), "proj": (d, d), "fc1": (mlp, d), "fc2": (d, mlp)}
    for layer in range(geometry.layers):
        for norm in ("ln1", "ln2"):
            shapes[f"blocks.{layer}.{norm}_weight"] = shapes[f"blocks.{layer}.{norm}_bias"] = (d,)
        for name, shape in linears.items():
            shapes[f"blocks.{layer}.{name}_weight"] = shape
            if qkv_bias or name not in "qkv":
                shapes[f"blocks.{layer}.{name}_bias"] = shape[:1]
    return shapes
