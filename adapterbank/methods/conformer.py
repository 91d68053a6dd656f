"""Conformer adapters (Cappellazzo et al., 2024, whose released code is PETL_AST).

    A(Z) = PwConv_up(SiLU(Norm(DWConv_k(GLU(PwConv_down(Z))))))      D -> 2r -> r -> r -> D, r = D / reduction   (2)
    X    = X' + MLP(LN2(X')) + A(LN2(X'))                            Pfeiffer, parallel                          (3)

The equations are numbered as in the reproduction of the Conformer adapter that this file follows. The depthwise
convolution runs along the token sequence, cls and distillation included, with padding "same". `PwConv_up` starts at
zero, so an untrained adapter changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from adapterbank.backbone.sites import Affine, Sites
from adapterbank.backbone.weights import ASTWeights, BlockWeights, Geometry
from adapterbank.errors import UnknownNameError
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts import init
from adapterbank.methods.parts.layers import ByLayer
from adapterbank.methods.parts.own import trainable_copies
from adapterbank.methods.parts.placed import Placed
from adapterbank.methods.parts.training import CONVOLUTION
from adapterbank.methods.registry import register
from adapterbank.numbers import whole

REDUCTION = 96  # r = 8 at width 768
KERNEL = 8  # for audio; PETL_AST uses 31 for speech
LONGEST_KERNEL = 10_000  # tokens; longer than any clip, so a larger number is a slip


class ConvolutionModule(nn.Module):
    """Equation (2). Shapes: (R, N, D) -> (R, N, D) for R rows of N tokens; inside h = r hidden channels."""

    def __init__(
        self,
        width: int,
        hidden: int,
        kernel: int,
        norm: str,
        inner_norm: bool,
        dropout: float,
        eps: float,
        generator: torch.Generator,
    ):
        super().__init__()
        self.inner_norm = nn.LayerNorm(width, eps=eps) if inner_norm else nn.Identity()
        self.down = init.linear(width, 2 * hidden, generator)
        self.depthwise = Depthwise(hidden, kernel, generator)
        self.norm = NORMS[norm](hidden)
        self.drop = init.dropout(dropout)
        self.up = init.zero_linear(hidden, width)

    def forward(self, z: Tensor) -> Tensor:
        x = F.glu(self.down(self.inner_norm(z)), dim=-1)  # (R, N, 2 r) -> (R, N, r)
        x = self.depthwise(rearrange(x, "r n h -> r h n"))
        x = rearrange(F.silu(self.norm(x)), "r h n -> r n h")
        return self.up(self.drop(x))


class Depthwise(nn.Module):
    """One filter of k taps per channel, with padding "same": for an even k one more zero after than before.

    We pad by hand, because torch's own padding="same" warns for an even k.

    Shapes: (R, h, N) -> (R, h, N).
    """

    def __init__(self, channels: int, kernel: int, generator: torch.Generator):
        super().__init__()
        self.pad = ((kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2)
        self.weight = init.uniform((channels, 1, kernel), kernel**-0.5, generator)  # torch's default for Conv1d
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(F.pad(x, self.pad), self.weight.to(x.dtype), self.bias.to(x.dtype), groups=len(self.weight))


class ByToken(nn.Module):
    """LayerNorm over the channels of each token. Shapes: (R, h, N) -> (R, h, N)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.norm(rearrange(x, "r h n -> r n h")), "r n h -> r h n")


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm1d,
    "group": lambda channels: nn.GroupNorm(1, channels),
    "layer": ByToken,
}


class Conformer(Placed):
    """Convolution modules in the chosen blocks, and if asked for the task's own LN2 of these blocks.

    Args:
        make: builds one convolution module.
        norms_of: the frozen blocks by number. In each block with an adapter the task gets an LN2 of its own, gain and
            bias (D,), which starts at the frozen values. None: the task uses the frozen LN2.
        **where: as `Placed` takes it.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        geometry: Geometry,
        norms_of: Sequence[BlockWeights] | None,
        **where: Any,
    ):
        super().__init__(make, geometry, **where)
        self.block_norms = ByLayer()
        if norms_of is None:
            return
        for layer in map(int, self.mlp):
            frozen = {"gain": norms_of[layer].ln2_weight, "bias": norms_of[layer].ln2_bias}
            self.block_norms.put(layer, trainable_copies(frozen))

    def sites(self, layer: int) -> Sites:
        sites = super().sites(layer)
        own = self.block_norms.at(layer)
        if own is None:
            return sites
        return replace(sites, affine={"ln2": Affine(own.get_parameter("gain"), own.get_parameter("bias"))})


@register(
    "conformer",
    paper="Conformer adapter (Cappellazzo et al., 2024)",
    parameters="L (3 D r + (kernel + 5) r + D), r = D // reduction; twice that for houlsby",
    passes_to=Placed,
    training=CONVOLUTION,
)
def conformer(
    geometry: Geometry,
    base: ASTWeights,
    generator: torch.Generator,
    *,
    reduction: int = REDUCTION,
    kernel: int = KERNEL,
    norm: str = "batch",
    inner_norm: bool = False,
    train_block_norms: bool = False,
    dropout: float = 0.0,
    **where: Any,
) -> Adapters:
    """Bottlenecks with a convolution along the tokens.

    Args:
        reduction: D over the bottleneck's width.
        kernel: k of the depthwise convolution, in tokens.
        norm: "batch" as published; "group" or "layer" do not depend on the other clips of a batch.
        inner_norm: a LayerNorm at the adapter's input.
        train_block_norms: the blocks' LN2 is trained too (PETL_AST's 250,080).
        **where: placement, form, layers and gates, as `Placed` takes them.
    """
    if norm not in NORMS:
        raise UnknownNameError("norm", norm, NORMS)
    width, eps = geometry.width, geometry.eps
    hidden, taps = width // whole("reduction", reduction, most=width), whole("kernel", kernel, most=LONGEST_KERNEL)
    return Conformer(
        lambda: ConvolutionModule(width, hidden, taps, norm, inner_norm, dropout, eps, generator),
        geometry,
        base.blocks if train_block_norms else None,
        **where,
    )
