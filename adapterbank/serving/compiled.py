"""One task as a module for serving: a snapshot, with all that can be folded into the frozen tensors folded in."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adapterbank.audio.mel import SAMPLE_RATE, as_waveforms, log_mel
from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.encode import Segment, encode
from adapterbank.backbone.int8 import Int8Matrix
from adapterbank.backbone.sites import Sites
from adapterbank.backbone.weights import ASTWeights
from adapterbank.errors import ConfigError
from adapterbank.methods.base import Adapters
from adapterbank.routing.plan import chunks, plan
from adapterbank.serving.folding import Left, fold
from adapterbank.task.task import Prediction, Task


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

    It is always in eval mode and without gradients, and follows `.to(device)`, copies and pickles. Frozen tensors that
    the task does not change are shared with the bank and all other modules made of it; a state dict therefore holds
    none of them, and none can be loaded: that would change only what was not folded.

    Shapes: waveforms (B, T) or B one-dimensional tensors of any lengths -> logits (B, C).
    """

    def __init__(self, task: Task, backbone: Backbone, *, torch_compile: bool = False):
        super().__init__()
        self._geometry = backbone.geometry
        self._task = copy.deepcopy(task).requires_grad_(False).eval()
        segment = self._task.segment(backbone.weights)
        folded = fold(segment, self._geometry)
        self.embed, self.norm = Buffers(folded.weights.embed), Buffers(folded.weights.norm)
        self.blocks = nn.ModuleList(Buffers(block) for block in folded.weights.blocks)
        self.prompts = nn.ModuleList(Buffers(KeysValues(*pair)) for s in folded.sites for pair in s.extra_kv or ((),))
        self._read = segment.read
        self._left = tuple(map(Left.after, folded.sites, segment.sites))
        self._task.norm = nn.ParameterDict()  # what it had is in `norm`, and the adapters, if none is left, in `blocks`
        left = [replace(sites, extra_kv=()) for sites in folded.sites]
        if any(sites.filled() for sites in left):
            _empty(segment.sites, left)
        else:
            self._task.adapters = Adapters()
        self._torch_compile = torch_compile
        self._run = self._runner()
        self.eval()

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self._task.labels

    def prediction(self, logits: Tensor) -> Prediction:
        """Class names and probabilities of one clip. (C,)."""
        return self._task.prediction(logits)

    @torch.no_grad()
    def forward(self, x: Tensor | Sequence[Tensor], sample_rate: int = SAMPLE_RATE) -> Tensor:
        """Raises WaveformError: not a batch of finite, non-empty waveforms. ConfigError: a bad sample rate."""
        task, device = self._task, next(self.embed.buffers()).device
        mels = log_mel([w.to(device) for w in as_waveforms(x)], self._geometry.mel_bins, sample_rate)
        frames = [task.padded_frames(len(mel), task.spec.clip_seconds) for mel in mels]
        groups = plan([task] * len(mels), frames)
        if not self._torch_compile:  # which would compile anew for each number of rows
            groups = [group for part in chunks(groups, mels, self._geometry, device) for group in part]
        with self._settings():
            logits = [self._run(torch.stack([task.prepare(mels[row], g.frames) for row in g.rows])) for g in groups]
        order = torch.tensor([row for group in groups for row in group.rows], device=device)
        return torch.cat(logits)[order.argsort()]

    def _constants(self) -> bool:
        """Whether torch.compile may take the tensors of the module for constants, whose matrices it packs in advance.

        That is for the CPU's linears. A packed int8 matrix would be a bf16 one.
        """
        tensors = itertools.chain(self.parameters(), self.buffers())
        return self._torch_compile and not any(isinstance(t, Int8Matrix) or t.device.type != "cpu" for t in tensors)

    def _settings(self) -> AbstractContextManager[Any]:
        if not self._constants():
            return nullcontext()
        from torch._inductor import config  # brings in the compiler

        settings: AbstractContextManager[Any] = config.patch({"freezing": True, "cpp.enable_concat_linear": True})
        return settings

    def _runner(self) -> Callable[[Tensor], Tensor]:
        """`_logits`, compiled if that is wanted: once for all modules, or for each where its tensors are constants."""
        if not self._torch_compile:
            return self._logits
        compiler: Any = torch.compile  # its overloads do not name what isolates
        isolates = (
            "isolate_recompiles" in inspect.signature(compiler).parameters
        )  # older ones compile 8 modules at most
        run: Callable[[Tensor], Tensor] = (
            compiler(self._logits, isolate_recompiles=True)
            if isolates and self._constants()
            else compiler(self._logits)
        )
        return run

    def _logits(self, spectrograms: Tensor) -> Tensor:
        """Normalised spectrograms of one length (R, F, M) -> (R, C)."""
        weights = ASTWeights(self.embed(), tuple(block() for block in self.blocks), self.norm())
        sites = tuple(
            left.of(self._task.adapters.sites(layer), () if prompts.keys is None else (prompts(),))
            for layer, (left, prompts) in enumerate(zip(self._left, self.prompts, strict=True))
        )
        (tokens,) = encode([spectrograms], [Segment(sites, weights, self._read)], self._geometry)
        return self._task.logits(tokens)

    def train(self, mode: bool = True) -> CompiledTask:
        """Stays in eval mode: a snapshot has nothing to train."""
        return super().train(False)

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        """What `load_state_dict` calls, also that of a module around this one."""
        raise ConfigError(
            f"got a state to load into the compiled task {self._task.name!r}, which is a snapshot. Load it into the "
            f"task of the bank and compile the task again: bank.compile_task({self._task.name!r})."
        )

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: what runs is bound to this module."""
        return {key: value for key, value in self.__dict__.items() if key != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._run = self._runner()


def _empty(before: Sequence[Sites], left: Sequence[Sites]) -> None:
    """Adapters whose numbers are in folded tensors give up their own, unless something that is left may read them."""
    staying = [hook for sites in left for hook in _hooks(sites)]
    if not all(isinstance(hook, nn.Module) for hook in staying):
        return  # nothing says what a function reads, nor what a tensor was made of
    needed = {id(part) for hook in staying for part in hook.modules()}
    for hook in (hook for sites in before for hook in _hooks(sites) if isinstance(hook, nn.Module)):
        for part in hook.modules():
            if id(part) not in needed:
                for name in dict(part.named_parameters(recurse=False)):
                    part.register_parameter(name, None)


def _hooks(sites: Sites) -> Iterator[Any]:
    """All that stands at a block's sites."""
    for entry in fields(sites):
        value = getattr(sites, entry.name)
        if entry.name == "linear":
            yield from (hook for hooks in value.values() for hook in hooks)
        elif entry.name == "affine":
            yield from value.values()
        elif isinstance(value, tuple):
            yield from value
        elif value is not None:
            yield value
