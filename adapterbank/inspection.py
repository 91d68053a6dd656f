"""What a task does inside the backbone: which blocks need its adapters, and how far its gates open for a sound.

Two scores say how much the adapter of one block matters. They answer a question that the reproduction of the Conformer
adapter leaves open, "layer-selective adapter injection":

ablation   of a trained task: the score on validation data that is lost when this block's adapter is taken out
gradient   also of an untrained task: the squared gradient of the loss with respect to this block's adapter, the others
           absent, divided by its number of parameters. The loss would fall fastest by training the highest ones

    scores = layer_importance(bank, "esc50", val)
    bank.add_task("esc50_slim", "aat_ms", layers=scores.top(4), labels=...)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.backbone.sites import NOTHING, Sites, Transform
from adapterbank.backbone.weights import ASTWeights
from adapterbank.errors import ConfigError, DatasetError, UnknownNameError
from adapterbank.evaluation import batches, evaluate_task, loss_function
from adapterbank.methods.base import Adapters
from adapterbank.methods.parts.gate import Gated
from adapterbank.numbers import is_whole
from adapterbank.routing.module import TaskModule
from adapterbank.routing.run import mels_of, run_rows
from adapterbank.task.host import TaskHost
from adapterbank.task.task import Task

KINDS = ("ablation", "gradient")


@dataclass(frozen=True)
class LayerImportance:
    """How much each block's adapter matters to a task.

    Attributes:
        task: its name.
        method: the method or composition that it was added with.
        kind: "ablation" or "gradient".
        scores: one per block; 0 where the task has no adapter.
        whole: the task's score with all adapters ("ablation"), or its loss ("gradient").
    """

    task: str
    method: str
    kind: str
    scores: tuple[float, ...]
    whole: float

    def top(self, count: int) -> tuple[int, ...]:
        """The `count` blocks with the highest scores, in rising order, as `layers=` of a new task. Of equal blocks the
        later one is taken.

        Raises:
            ConfigError: not from 1 to the number of blocks.
        """
        if not is_whole(count, most=len(self.scores)):
            raise ConfigError(f"got {count!r} layers to choose, expected 1 to {len(self.scores)}.")
        rising = sorted(range(len(self.scores)), key=lambda layer: (self.scores[layer], layer))
        return tuple(sorted(rising[-count:]))


def layer_importance(
    bank: TaskHost, task: str, data: Any, *, kind: str = "ablation", batch_size: int = 32, max_batches: int = 8
) -> LayerImportance:
    """Scores every block's adapter; the task stays as it is.

    Args:
        bank: where the task is.
        data: of (waveform at 16 kHz, label); validation data, never the test part.
        kind: "ablation" for a trained task, "gradient" also for an untrained one.
        batch_size: clips per forward pass.
        max_batches: how many batches the "gradient" kind reads; the "ablation" kind reads all data.

    Raises:
        UnknownNameError: no such task or kind. ConfigError: the task trains nothing inside the backbone, or whole
            blocks. DatasetError: no data.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of layer_importance", kind, KINDS)
    owner = bank.task(task)
    layers = range(bank.backbone.geometry.layers)
    filled = [layer for layer in layers if owner.adapters.sites(layer) != NOTHING]
    if not filled:
        raise ConfigError(f"{task!r} ({owner.method}) has no adapter in any block; expected a method that fills sites.")
    if kind == "gradient":
        chosen = list(islice(batches(data, batch_size), max_batches))
        if not chosen:
            raise DatasetError(f"got no clips to score the layers of {task!r}, expected (waveform, label) pairs.")
        scores, whole = _gradients(bank, owner, chosen, filled)
    else:
        scores, whole = _ablations(bank, owner, data, filled, batch_size)
    return LayerImportance(task, owner.method, kind, tuple(scores.get(layer, 0.0) for layer in layers), whole)


def _ablations(
    bank: TaskHost, task: Task, data: Any, filled: Collection[int], batch_size: int
) -> tuple[dict[int, float], float]:
    """{block: the score lost without its adapter}, and the score of the whole task."""

    def score(candidate: Task) -> float:
        return evaluate_task(bank.backbone, candidate, data, batch_size=batch_size).metrics[task.primary_metric]

    whole = score(task)
    without = {layer: _Some(task.adapters, [other for other in filled if other != layer]) for layer in filled}
    return {layer: whole - score(task.with_adapters(adapters)) for layer, adapters in without.items()}, whole


def _gradients(
    bank: TaskHost, task: Task, chosen: Sequence[tuple[list[Tensor], list[Any]]], filled: Collection[int]
) -> tuple[dict[int, float], float]:
    """{block: the mean squared gradient of its adapter, alone in the backbone}, and the mean loss of these passes."""
    scores, losses = {}, []
    parameters = list(task.adapters.parameters())
    was_training = task.training
    task.eval()
    try:
        for layer in filled:
            alone = TaskModule(task.with_adapters(_Some(task.adapters, [layer])), bank)
            total, count = 0.0, 1
            for waveforms, labels in chosen:
                logits = alone(waveforms)
                loss = loss_function(task, logits, task.targets(labels).to(logits.device))
                found = [g for g in torch.autograd.grad(loss, parameters, allow_unused=True) if g is not None]
                total += sum(float(g.square().sum()) for g in found)
                count = max(count, sum(g.numel() for g in found))
                losses.append(float(loss.detach()))
            scores[layer] = total / len(chosen) / count
    finally:
        task.train(was_training)
    return scores, sum(losses) / len(losses)


class _Some(Adapters):
    """A task's adapters in some of their blocks; the others are left as the frozen backbone has them."""

    def __init__(self, inner: Adapters, layers: Collection[int]):
        super().__init__()
        self.inner, self.layers = inner, frozenset(layers)

    def sites(self, layer: int) -> Sites:
        return self.inner.sites(layer) if layer in self.layers else NOTHING

    def owned(self, base: ASTWeights) -> ASTWeights:
        return self.inner.owned(base)


def gate_values(bank: TaskHost, task: str, x: Tensor | Sequence[Tensor], *, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """How far each block's gates open for each clip: the mean over its tokens where a gate has several values.

    `plots.gate_values` draws it.

    Args:
        bank: where the task is.
        x: waveforms (B, T), or B of any lengths.
        sample_rate: of the waveforms, in Hz.

    Returns:
        (B, L), with NaN for blocks without a gate.

    Raises:
        ConfigError: the task has no gate. UnknownNameError, WaveformError.
    """
    return torch.stack([gates.nanmean(dim=0) for gates in token_gates(bank, task, x, sample_rate=sample_rate)])


@torch.no_grad()
def token_gates(
    bank: TaskHost, task: str, x: Tensor | Sequence[Tensor], *, sample_rate: int = SAMPLE_RATE
) -> list[Tensor]:
    """How far each block's gates open for each token.

    Args:
        bank: where the task is.
        x: waveforms (B, T), or B of any lengths.
        sample_rate: of the waveforms, in Hz.

    Returns:
        (N, L) for each of the B clips. The tokens stand in the order of the sequence: cls, dist, the patches one
        frequency row after another, then prompts. NaN stands for blocks without a gate and for tokens that a block
        does not have; a gate with one value for the whole clip repeats it.

    Raises:
        ConfigError: the task has no gate. UnknownNameError, WaveformError.
    """
    owner = bank.task(task)
    if not any(isinstance(module, Gated) for module in owner.adapters.modules()):
        raise ConfigError(f"{task!r} ({owner.method}) has no gate; add it with gate='scalar' or gate='signal'.")
    found = []
    for mel in mels_of(bank.backbone, x, sample_rate):
        listener = _Listening(owner.adapters)
        run_rows(bank.backbone, [owner.with_adapters(listener)], [mel])
        length = max(len(answer) for answers in listener.heard.values() for answer in answers)
        gates = torch.full((length, bank.backbone.geometry.layers), math.nan)
        for layer, answers in listener.heard.items():
            gates[: len(answers[0]), layer] = torch.stack(answers).mean(dim=0).cpu()
        found.append(gates)
    return found


class _Listening(Adapters):
    """A task's adapters, and what their gates answer to one clip.

    Attributes:
        heard: {block: what each of its gates answered, (N,)}.
    """

    def __init__(self, inner: Adapters):
        super().__init__()
        self.inner = inner
        self.heard: dict[int, list[Tensor]] = {}

    def sites(self, layer: int) -> Sites:
        def listened(adapter: Transform) -> Transform:
            if not isinstance(adapter, Gated):
                return adapter

            def answer(h: Tensor) -> Tensor:  # (1, N, D); not `PerToken`, so that the last block gives it all tokens
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
