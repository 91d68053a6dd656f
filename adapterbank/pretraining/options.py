"""How a small AST is pretrained: the options of a distillation, or of masked patches."""

from __future__ import annotations

from dataclasses import dataclass

from adapterbank.errors import ConfigError, UnknownNameError

OBJECTIVES = ("teachers", "masked_patch")


@dataclass(frozen=True)
class DistillOptions:
    """How to train.

    Attributes:
        objective: "teachers", or "masked_patch", which asks no teacher and draws no SpecAugment masks.
        hidden_share: of the patches that "masked_patch" hides.
        masked_weight: of the masked-patch loss beside the teachers', a second forward pass; 0 leaves it out.
        word_weight: of the error in the directions that tell words apart (`words.py`); 0 leaves it out.
        word_target: the target in whose answers those directions are.
        steps: optimiser steps in all; the learning rate reaches its end there.
        batch_tokens: tokens of a micro-batch, in which all views have one length: two global tokens and the patches of
            each view, of which a patch column has `geometry.rows`.
        accumulate: micro-batches per step; each may be of another length.
        warmup: share of the steps in which the learning rate rises.
        clip: largest gradient norm.
        ema: how slowly the averaged student, which is exported, follows the trained one.
        probability_weight: of the cross-entropy, summed over classes, beside the mean squared errors.
        row_weight: of the column-wise losses beside those of the global tokens.
        head_width: hidden width of the projection heads; 0 makes them linear.
        mask_frequency, mask_time: widest SpecAugment masks, in mel bins and as a share of the frames.
        keep_rows: how many rows of patches (bands of frequency) the student hears of each view, drawn anew each time.
        keep_until: the share of the steps after which it hears all rows.
        gain: the student hears each view up to so many dB louder or softer than the teachers did, because teachers
            differ in what they make of loudness.
    """

    steps: int
    batch_tokens: int = 4096
    accumulate: int = 2
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0
    ema: float = 0.999
    probability_weight: float = 0.1
    row_weight: float = 1.0
    head_width: int = 0
    mask_frequency: int = 16
    mask_time: float = 0.2
    keep_rows: int = 5
    keep_until: float = 0.8
    gain: float = 4.0
    seed: int = 0
    objective: str = "teachers"
    hidden_share: float = 0.6
    masked_weight: float = 0.0
    word_weight: float = 0.0
    word_target: str = "whisper.frames"

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UnknownNameError("objective", self.objective, OBJECTIVES)
        if self.steps < 1 or self.accumulate < 1:
            raise ConfigError(f"got steps={self.steps}, accumulate={self.accumulate}; both are at least 1.")
