"""Masked spectrogram patches: pretraining without labels or teachers, after SSAST.

Gong, Lai, Chung and Glass, "SSAST: Self-Supervised Audio Spectrogram Transformer" (AAAI 2022), section 2.3. Some
patches of a clip are hidden behind one learned vector. From the rest the student says which of the hidden patches stood
where (eq. 1, InfoNCE) and what each looked like (eq. 2, mean squared error); loss = eq. 1 + 10 x eq. 2.

Symbols: R rows of a batch, F frames, M mel bins, t patch columns, P patches, K hidden ones per clip, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from adapterbank.backbone.checkpoints.untrained import INIT_STD
from adapterbank.backbone.embedding import embed
from adapterbank.backbone.weights import PREFIX_TOKENS, ASTWeights, Geometry
from adapterbank.errors import ConfigError
from adapterbank.pretraining.student import Tensors, student_blocks

RECONSTRUCTION_WEIGHT = 10.0  # lambda of SSAST's eq. 3
SMALLEST_CLUSTER, LARGEST_CLUSTER = 3, 5  # patches; SSAST's C
HEADS = ("match", "pixels")  # of eq. 1 and of eq. 2; each is a perceptron with one hidden layer of width D


@dataclass(frozen=True)
class MaskedPatches:
    """The loss of a `Distiller` that has no teacher, or beside its teachers.

    Attributes:
        share: of the patches that are hidden; SSAST hides 400 of 512.

    Raises:
        ConfigError: overlapping patches (a hidden one would show through), or a share outside (0, 1).
    """

    geometry: Geometry
    share: float = 0.6

    def __post_init__(self) -> None:
        g = self.geometry
        if (g.frequency_stride, g.time_stride) != (g.patch, g.patch):
            raise ConfigError(
                f"got strides {g.frequency_stride} and {g.time_stride}, expected {g.patch}: patches must not overlap."
            )
        if not 0 < self.share < 1:
            raise ConfigError(f"got share={self.share!r} of hidden patches, expected more than 0 and less than 1.")

    def init_heads(self, seed: int) -> Tensors:
        """The vector that stands for a hidden patch, and both heads; thrown away after training."""
        generator = torch.Generator().manual_seed(seed + 1)
        width, pixels = self.geometry.width, self.geometry.patch**2
        heads = {"mask": torch.nn.init.trunc_normal_(torch.empty(width), std=INIT_STD, generator=generator)}
        for name in HEADS:
            for layer, shape in (("hidden", (width, width)), ("out", (pixels, width))):
                weight = torch.empty(shape)
                std = width**-0.5 if layer == "hidden" else INIT_STD
                heads[f"{name}.{layer}"] = torch.nn.init.trunc_normal_(weight, std=std, generator=generator)
            heads[f"{name}.bias"] = torch.zeros(pixels)
        return heads

    def loss(
        self,
        student: Mapping[str, Tensor],
        heads: Mapping[str, Tensor],
        mel: Tensor,
        dtype: torch.dtype,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of normalised spectrograms (R, F, M), F a whole number of patches, and its two parts by name.

        Args:
            student: its tensors by name, as `init_student` makes them.
            heads: as `init_heads` makes them.
            dtype: in which the student's blocks compute.
            generator: draws which patches are hidden.
        """
        size = self.geometry.patch
        patches = rearrange(mel, "r (t b) (rows a) -> r (rows t) (a b)", a=size, b=size)  # frequency-major, as `embed`
        hidden = draw_hidden(len(mel), self.geometry.rows, mel.shape[1] // size, self.share, generator)
        weights = ASTWeights.from_named(student, self.geometry.layers)
        grid = rearrange(hidden, "r (rows t) -> r t rows", rows=self.geometry.rows)
        blank = mel.masked_fill(grid.repeat_interleave(size, 1).repeat_interleave(size, 2), 0.0)
        # A patch of zeros embeds to bias + position: with the vector added, hidden patches differ by place only.
        x = embed(blank, weights.embed, self.geometry)
        mask = torch.cat((hidden.new_zeros(len(mel), PREFIX_TOKENS), hidden), dim=1)[:, :, None]
        tokens = student_blocks(weights, (x + mask * heads["mask"]).to(dtype), self.geometry)[:, PREFIX_TOKENS:]
        seen = tokens[hidden].unflatten(0, (len(mel), -1))  # (R, K, D)
        wanted = patches[hidden].unflatten(0, (len(mel), -1))  # (R, K, pixels)
        match, pixels = (_head(seen, heads, name) for name in HEADS)
        logits = match @ wanted.transpose(1, 2)  # (R, K, K): which of the clip's hidden patches is at this place
        truth = torch.arange(logits.shape[1]).expand(logits.shape[:2])
        nce = F.cross_entropy(logits.flatten(0, 1), truth.flatten())
        mse = F.mse_loss(pixels, wanted)
        return nce + RECONSTRUCTION_WEIGHT * mse, {"match": float(nce.detach()), "pixels": float(mse.detach())}


def draw_hidden(rows: int, height: int, width: int, share: float, generator: torch.Generator) -> Tensor:
    """(rows, height x width) True where a patch is hidden: the same number in every clip, in square clusters."""
    count = min(height * width - 1, max(1, round(share * height * width)))
    hidden = torch.zeros(rows, height, width, dtype=torch.bool)
    for grid in hidden:
        missing = count
        while missing:
            size = int(torch.randint(SMALLEST_CLUSTER, LARGEST_CLUSTER + 1, (), generator=generator))
            top = int(torch.randint(1 - size, height, (), generator=generator))
            left = int(torch.randint(1 - size, width, (), generator=generator))
            cluster = grid[max(0, top) : top + size, max(0, left) : left + size]
            free = (~cluster).nonzero()[:missing]
            cluster[free[:, 0], free[:, 1]] = True
            missing -= len(free)
    return hidden.flatten(1)


def _head(x: Tensor, heads: Mapping[str, Tensor], name: str) -> Tensor:
    x = F.relu(F.linear(x.bfloat16(), heads[f"{name}.hidden"].bfloat16()))
    return F.linear(x, heads[f"{name}.out"].bfloat16()).float() + heads[f"{name}.bias"]
