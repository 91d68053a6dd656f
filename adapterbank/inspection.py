"""What a task does inside the backbone: which layers earn their adapters, and what its gates answer to a sound.

Seed 002, section 5 ("Layer-Selective Adapter Injection"), as two scores:

ablation   the test score that a trained task loses when one layer's adapter is taken out (its sites left empty)
gradient   before training: the squared gradient of the loss with respect to one layer's adapter, the others absent,
           per parameter; an adapter whose loss would fall fastest scores highest

    scores = layer_importance(bank, "esc50", val)                            # of a trained task
    bank.add_task("esc50_slim", "aat_ms", layers="top:4", importance=scores, labels=...)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.backbone.sites import NOTHING, Sites, Transform
from adapterbank.backbone.weights import ASTWeights
from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError, DatasetError, UnknownNameError
from adapterbank.evaluation import batches, evaluate_task, loss_function
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts.gate import Gated
from adapterbank.methods.parts.layers import top
from adapterbank.routing.run import mels_of, run_rows
from adapterbank.task.task import Task

KINDS = ("ablation", "gradient")


@dataclass(frozen=True)
class LayerImportance:
    """How much each block's adapter matters to a task.

    Attributes:
        scores: one per block; 0 where the task has no adapter.
        whole: the task's score with all adapters ("ablation"), or its loss ("gradient").
    """

    task: str
    method: str
    kind: str
    scores: tuple[float, ...]
    whole: float

    def top(self, count: int) -> tuple[int, ...]:
        """The blocks with the highest scores, in rising order.

        Raises:
            ConfigError: not from 1 to the number of blocks.
        """
        return top(count, self.scores)


def layer_importance(
    bank: AdapterBank, task: str, data: Any, *, kind: str = "ablation", batch_size: int = 32, max_batches: int = 8
) -> LayerImportance:
    """Scores every block's adapter; the task stays as it is.

    Args:
        data: of (waveform at 16 kHz, label); validation data, never the test part.
        kind: "ablation" for a trained task, "gradient" also for an untrained one.
        max_batches: of the "gradient" kind.

    Raises:
        UnknownNameError: no such task or kind. ConfigError: the task trains nothing inside the backbone, or whole
            blocks. DatasetError: no data.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of layer_importance", kind, KINDS)
    owner = bank.task(task)
    blocks = [layer for layer in range(bank.backbone.geometry.layers) if owner.adapters.sites(layer) != NOTHING]
    if not blocks:
        raise ConfigError(f"{task!r} ({owner.method}) has no adapter in any block; expected a method that fills sites.")
    if kind == "gradient":
        scores, whole = _gradients(bank, owner, data, blocks, batch_size, max_batches)
    else:
        metric = owner.primary_metric
        whole = evaluate_task(bank.backbone, owner, data, batch_size=batch_size).metrics[metric]
        scores = {}
        for layer in blocks:
            without = _variant(owner, _Some(owner.adapters, [entry for entry in blocks if entry != layer]))
            scores[layer] = whole - evaluate_task(bank.backbone, without, data, batch_size=batch_size).metrics[metric]
    every = tuple(scores.get(layer, 0.0) for layer in range(bank.backbone.geometry.layers))
    return LayerImportance(task, owner.method, kind, every, whole)


def gate_values(
    bank: AdapterBank, task: str, x: Tensor | Sequence[Tensor], *, sample_rate: int = SAMPLE_RATE
) -> Tensor:
    """How far each layer's gates open for each clip: (B, T) -> (B, L), the mean where a gate has several values.

    NaN stands for layers without a gate. `plots.gate_values` draws it.

    Raises:
        ConfigError: the task has no gate. UnknownNameError, WaveformError.
    """
    return torch.stack([gates.nanmean(dim=0) for gates in token_gates(bank, task, x, sample_rate=sample_rate)])


@torch.no_grad()
def token_gates(
    bank: AdapterBank, task: str, x: Tensor | Sequence[Tensor], *, sample_rate: int = SAMPLE_RATE
) -> list[Tensor]:
    """How far each layer's gates open for each token: B clips -> one (N, L) each, in the order of the sequence.

    That is cls, dist, the patches one frequency row after another, and prompts. NaN stands for layers without a gate
    and for tokens that a layer does not have; a gate with one value for the whole clip repeats it.

    Raises:
        ConfigError: the task has no gate. UnknownNameError, WaveformError.
    """
    owner = bank.task(task)
    if not any(isinstance(module, Gated) for module in owner.adapters.modules()):
        raise ConfigError(f"{task!r} ({owner.method}) has no gate; add it with gate='scalar' or gate='signal'.")
    found = []
    for mel in mels_of(bank.backbone, x, sample_rate):
        listener = _Listening(owner.adapters)
        run_rows(bank.backbone, [_variant(owner, listener)], [mel])
        length = max(len(answer) for answers in listener.heard.values() for answer in answers)
        gates = torch.full((length, bank.backbone.geometry.layers), math.nan)
        for layer, answers in listener.heard.items():
            gates[: len(answers[0]), layer] = torch.stack(answers).mean(dim=0).cpu()
        found.append(gates)
    return found


class _Listening(Adapters):
    """A task's adapters, whose gates are written down as they answer. Used for one clip."""

    def __init__(self, inner: Adapters):
        super().__init__()
        self.inner = inner
        self.heard: dict[int, list[Tensor]] = {}  # (N,) per gate

    def sites(self, layer: int) -> Sites:
        def listened(adapter: Transform) -> Transform:
            if not isinstance(adapter, Gated):
                return adapter

            def answer(h: Tensor) -> Tensor:  # not `PerToken`: the last block gives it all tokens
                self.heard.setdefault(layer, []).append(adapter.gate(h)[0, :, 0].expand(h.shape[1]))
                return adapter(h)

            return answer

        sites = self.inner.sites(layer)
        return replace(
            sites,
            beside_attention=tuple(listened(adapter) for adapter in sites.beside_attention),
            beside_mlp=tuple(listened(adapter) for adapter in sites.beside_mlp),
        )

    def owned(self, base: ASTWeights) -> ASTWeights:
        return self.inner.owned(base)


class _Some(Adapters):
    """A task's adapters with only these blocks' sites filled."""

    def __init__(self, inner: Adapters, blocks: Sequence[int]):
        super().__init__()
        self.inner, self.blocks = inner, frozenset(blocks)

    def sites(self, layer: int) -> Sites:
        return self.inner.sites(layer) if layer in self.blocks else NOTHING

    def owned(self, base: ASTWeights) -> ASTWeights:
        return self.inner.owned(base)


def _variant(task: Task, adapters: Adapters) -> Task:
    """The same task with other adapters; nothing of the original is changed."""
    other = copy.copy(task)
    other._modules = {**task._modules, "adapters": adapters}
    return other


def _gradients(
    bank: AdapterBank, task: Task, data: Any, blocks: Sequence[int], batch_size: int, max_batches: int
) -> tuple[dict[int, float], float]:
    chosen: list[tuple[list[Tensor], list[Any]]] = []
    for batch in batches(data, batch_size):
        if len(chosen) == max_batches:
            break
        chosen.append(batch)
    if not chosen:
        raise DatasetError(f"got no clips to score the layers of {task.name!r}, expected (waveform, label) pairs.")
    scores, losses = {}, []
    parameters = list(task.adapters.parameters())
    was_training = task.training
    task.eval()
    try:
        for layer in blocks:
            alone = _variant(task, _Some(task.adapters, [layer]))
            total, count = 0.0, 1
            for waveforms, labels in chosen:
                mels = mels_of(bank.backbone, waveforms)
                logits = torch.stack(run_rows(bank.backbone, [alone] * len(mels), mels))
                loss = loss_function(task, logits, task.targets(labels).to(logits.device))
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                found = [g for g in gradients if g is not None]
                total += sum(float(g.square().sum()) for g in found)
                count = max(count, sum(g.numel() for g in found))
                losses.append(float(loss.detach()))
            scores[layer] = total / len(chosen) / count
    finally:
        task.train(was_training)
    return scores, sum(losses) / len(losses)
