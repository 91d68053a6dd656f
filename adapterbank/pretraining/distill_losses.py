"""What a student is asked: targets made comparable, projection heads, and the losses.

Symbols: R rows of a batch, t patch columns, N tokens, D width, S rows of a target, E its width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from adapterbank.backbone.checkpoints.untrained import INIT_STD
from adapterbank.pretraining.student import Tensors
from adapterbank.pretraining.teachers import Target
from adapterbank.pretraining.views import Views

CLIP_SIGMA = 6.0  # standardised targets are cut here, because the rare units of YAMNet's embedding have long tails
STATISTIC_VIEWS = 3_000  # of which mean and deviation of the targets are taken


def pooled_target(target: Target, rows: Tensor) -> Tensor:
    """(R, S, E) -> (R, parts x E): means over equal parts of time."""
    return F.adaptive_avg_pool1d(rows.transpose(1, 2), target.parts).transpose(1, 2).flatten(1)


def target_statistics(store: Views, seed: int) -> Tensors:
    """Mean and standard deviation of every dimension of every target, over a sample of views.

    Returns:
        {"<target>.<rows or pooled>.<mean or std>": (E,) or (parts x E,)}.
    """
    rng = np.random.default_rng((seed, 2))
    sample = np.sort(rng.choice(store.done, min(STATISTIC_VIEWS, store.done), replace=False))
    statistics = {}
    for target in store.targets:
        rows = [store.batch(target.name, [v])[0] for v in sample]
        pooled = torch.stack([pooled_target(target, r[None])[0] for r in rows])
        for kind, values in (("rows", torch.cat(rows)), ("pooled", pooled)):
            std = values.std(0)
            statistics[f"{target.name}.{kind}.mean"] = values.mean(0)
            # A unit that hardly ever fires would be all noise after division by its own deviation.
            statistics[f"{target.name}.{kind}.std"] = std.clamp_min(0.2 * float(std.median())).clamp_min(1e-4)
    return statistics


def init_heads(targets: Sequence[Target], statistics: Tensors, student_width: int, hidden: int, seed: int) -> Tensors:
    """The projection heads from the student's features to each target, as tensors by name.

    A head of probabilities starts with the bias that answers with the mean score.

    Args:
        student_width: D.
        hidden: width of the one hidden layer of a head; 0 makes heads linear.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    heads: Tensors = {}
    for target in targets:
        for kind in ("pooled", "rows") if target.span else ("pooled",):
            mean = statistics[f"{target.name}.{kind}.mean"]
            name = f"{target.name}.{kind}"
            width = student_width
            if hidden:
                first = torch.empty(hidden, width)
                heads[f"{name}.hidden"] = torch.nn.init.trunc_normal_(first, std=INIT_STD, generator=generator)
                width = hidden
            heads |= init_linear(name, len(mean), width, generator)
            if target.kind == "probability":
                heads[f"{name}.bias"] = torch.logit(mean, 1e-4)
    return heads


def distill_loss(
    tokens: Tensor,
    answers: Mapping[str, Tensor],
    targets: Sequence[Target],
    heads: Mapping[str, Tensor],
    statistics: Mapping[str, Tensor],
    columns: int,
    row_weight: float,
    probability_weight: float,
) -> tuple[Tensor, dict[str, float]]:
    """Sum of all losses, and each of them by name.

    Args:
        tokens: (R, N, D), the student's.
        columns: t of these views.
        row_weight: of the column-wise losses beside those of the global tokens.
        probability_weight: of the cross-entropy, summed over classes, beside the mean squared errors.
        answers: {target name: (R, S, E)}, the teachers'.
    """
    pooled = (tokens[:, 0] + tokens[:, 1]) / 2
    in_time = rearrange(tokens[:, 2:], "r (rows t) d -> r rows t d", t=columns).mean(1)  # (R, t, D)
    total, parts = tokens.new_zeros(()), {}
    for target in targets:
        rows = answers[target.name]
        views = [("pooled", pooled, pooled_target(target, rows), 1.0)]
        if target.span:
            views.append(("rows", _span_means(in_time, target, rows.shape[1]), rows, row_weight))
        for kind, features, wanted, weight in views:
            name = f"{target.name}.{kind}"
            guess = project(features, heads, name)
            if target.kind == "probability":
                loss = F.binary_cross_entropy_with_logits(guess, wanted, reduction="none").sum(-1).mean()
                weight = weight * probability_weight
            else:
                z = (wanted - statistics[f"{name}.mean"]) / statistics[f"{name}.std"]
                loss = F.mse_loss(guess, z.clamp(-CLIP_SIGMA, CLIP_SIGMA))
            total = total + weight * loss
            parts[name] = float(loss.detach())
    return total, parts


def init_linear(name: str, outputs: int, inputs: int, generator: torch.Generator) -> Tensors:
    """The weight (outputs, inputs) and bias of a linear head."""
    weight = torch.nn.init.trunc_normal_(torch.empty(outputs, inputs), std=INIT_STD, generator=generator)
    return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(outputs)}


def _span_means(columns: Tensor, target: Target, rows: int) -> Tensor:
    """(R, t, D) -> (R, S, D): the mean of the columns that each target row covers."""
    if columns.shape[1] < target.span:
        return columns.mean(1, keepdim=True)
    return columns.unfold(1, target.span, target.hop).mean(-1)[:, :rows]


def project(x: Tensor, heads: Mapping[str, Tensor], name: str) -> Tensor:
    """What the head of this name makes of features: (R, ..., D) -> (R, ..., E) in fp32."""
    x = x.bfloat16()
    if f"{name}.hidden" in heads:
        x = F.gelu(F.linear(x, heads[f"{name}.hidden"].bfloat16()))
    return F.linear(x, heads[f"{name}.weight"].bfloat16()).float() + heads[f"{name}.bias"]
