"""One task as a module for serving: a snapshot, with all that can be folded into the frozen tensors folded in."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adapterbank.backbone.ast import ASTWeights, Segment, encode
from adapterbank.backbone.checkpoints import Backbone
from adapterbank.backbone.frontend import SAMPLE_RATE, as_waveforms, log_mel
from adapterbank.folding import fold
from adapterbank.methods.sites import Adapters
from adapterbank.routing import plan
from adapterbank.task import Task


class KeysValues(NamedTuple):
    """What a block's prompts and prefixes come to, in the dtype of the frozen linears."""

    keys: Tensor | None = None  # (P, D)
    values: Tensor | None = None  # (P, D)


class Buffers(nn.Module):
    """A NamedTuple of tensors as buffers: they follow `.to`, and loading a state never writes to them."""

    def __init__(self, group: Any):
        super().__init__()
        self.kind = type(group)
        for name, tensor in group._asdict().items():
            self.register_buffer(name, None if tensor is None else tensor.detach(), persistent=False)

    def forward(self) -> Any:
        return self.kind(*(getattr(self, name) for name in self.kind._fields))


class CompiledTask(nn.Module):
    """A task as it is at this moment: training it on, renaming or removing it in its bank changes nothing here.

    AAT's MLP adapters are units of the MLP, LoRA and DoRA are merged, own norms and biases are in place, and deep
    prompts are keys and values: see `folding`. What else the task has runs as in the bank. With an fp32 base the
    logits are the bank's to 1e-5; with a bf16 base, what is folded is rounded to bf16 as well.

    It is always in eval mode and without gradients, and follows `.to(device)`. Frozen tensors that the task does not
    change are shared with the bank and all other modules made of it; a state dict therefore holds none of them.

    Attributes:
        task: a copy, for `labels` and `prediction`.

    Shapes: waveforms (B, T) or B one-dimensional tensors of any lengths -> logits (B, C).
    """

    def __init__(self, task: Task, backbone: Backbone, *, torch_compile: bool = False):
        super().__init__()
        self._geometry = backbone.geometry
        self.task = copy.deepcopy(task).requires_grad_(False).eval()
        folded = fold(self.task.segment(backbone.weights), self._geometry)
        self.embed, self.norm = Buffers(folded.weights.embed), Buffers(folded.weights.norm)
        self.blocks = nn.ModuleList(Buffers(block) for block in folded.weights.blocks)
        self.prompts = nn.ModuleList(Buffers(KeysValues(*pair)) for s in folded.sites for pair in s.extra_kv or ((),))
        self._sites = tuple(replace(sites, extra_kv=()) for sites in folded.sites)
        self.task.norm = nn.ParameterDict()  # what it had is in `norm`, and the adapters, if none is left, in `blocks`
        if not any(sites.filled() for sites in self._sites):
            self.task.adapters = Adapters()
        self._run = torch.compile(self._logits) if torch_compile else self._logits

    @torch.no_grad()
    def forward(self, x: Tensor | Sequence[Tensor], sample_rate: int = SAMPLE_RATE) -> Tensor:
        """Raises WaveformError: not a batch of finite, non-empty waveforms. ConfigError: a bad sample rate."""
        task, device = self.task, next(self.embed.buffers()).device
        mels = log_mel([w.to(device) for w in as_waveforms(x)], self._geometry.mel_bins, sample_rate)
        frames = [task.padded_frames(len(mel), task.spec.clip_seconds) for mel in mels]
        groups = plan([task] * len(mels), frames)
        logits = [self._run(torch.stack([task.prepare(mels[row], g.frames) for row in g.rows])) for g in groups]
        order = torch.tensor([row for group in groups for row in group.rows], device=device)
        return torch.cat(logits)[order.argsort()]

    def _logits(self, spectrograms: Tensor) -> Tensor:
        """Normalised spectrograms of one length (R, F, M) -> (R, C)."""
        weights = ASTWeights(self.embed(), tuple(block() for block in self.blocks), self.norm())
        sites = tuple(
            own if prompts.keys is None else replace(own, extra_kv=(prompts(),))
            for own, prompts in zip(self._sites, self.prompts, strict=True)
        )
        (tokens,) = encode([spectrograms], [Segment(sites, weights)], self._geometry)
        return self.task.logits(tokens)

    def train(self, mode: bool = True) -> CompiledTask:
        """Stays in eval mode: a snapshot has nothing to train."""
        return super().train(False)
