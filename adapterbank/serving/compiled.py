"""One task as a plain module: a snapshot for serving."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from adapterbank.audio.clips import read_clips
from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.encode import encode
from adapterbank.backbone.int8 import Int8Matrix
from adapterbank.backbone.kernels import choose
from adapterbank.backbone.weights import ASTWeights, BlockWeights
from adapterbank.errors import ConfigError
from adapterbank.routing.plan import Group
from adapterbank.routing.run import answers, run_planned
from adapterbank.task.task import Prediction, Task


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

    It computes what the bank computes, with the task's adapters as they are. It is always in eval mode and without
    gradients, and follows `.to(device)`, copies and pickles. Frozen tensors are shared with the bank and with all other
    modules made of it. A state dict therefore holds the task's own tensors only, and none can be
    loaded: load it into the task of the bank and make the module anew.

    Args:
        torch_compile: run the encoder through `torch.compile`.

    Shapes: waveforms (B, T) or B one-dimensional tensors of any lengths -> logits (B, C).
    """

    def __init__(self, task: Task, backbone: Backbone, *, torch_compile: bool = False):
        super().__init__()
        self._geometry = backbone.geometry
        self._task = copy.deepcopy(task).requires_grad_(False).eval()
        base = backbone.weights
        own = self._task.segment(base).weights
        self.embed, self.norm = Buffers(base.embed), Buffers(base.norm)
        # A block of which the task owns every tensor is in the task: the frozen one would be memory that nobody reads.
        pairs = zip(base.blocks, own.blocks, strict=True)
        self.blocks = nn.ModuleList(Buffers(frozen) if _share(frozen, mine) else nn.Module() for frozen, mine in pairs)
        self._torch_compile = torch_compile
        self._encoder = self._encoder_of()
        self.eval()

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self._task.labels

    def prediction(self, logits: Tensor, threshold: float | Mapping[str, float] | None = None) -> Prediction:
        """Class names and probabilities of one clip, from its logits (C,); `threshold` as in `bank.predict`."""
        return self._task.prediction(logits, threshold)

    @torch.no_grad()
    def forward(self, x: Any, sample_rate: int = SAMPLE_RATE) -> Tensor:
        """Raises WaveformError: not a batch of finite, non-empty waveforms. ConfigError: a bad sample rate."""
        device = next(self.embed.buffers()).device
        kernels = choose(device)
        if self._torch_compile:  # it would compile anew for each number of rows
            kernels = kernels._replace(chunk_tokens=None)

        def run(places: Sequence[int], mels: list[Tensor]) -> list[Tensor]:
            return run_planned([self._task] * len(mels), mels, self._answers, self._geometry, kernels)

        with self._settings():
            found = answers(read_clips(x, sample_rate), run, device, self._geometry.mel_bins)
        return torch.stack([row for row in found if row is not None])

    def _answers(self, groups: Sequence[Group], spectrograms: list[Tensor]) -> list[Tensor]:
        return [self._encoder(x) for x in spectrograms]

    def _logits(self, spectrograms: Tensor) -> Tensor:
        """Normalised spectrograms of one length (R, F, M) -> (R, C)."""
        # Where the task owns a block, None stands in the place that its own tensors are about to take.
        blocks: Any = tuple(block() if isinstance(block, Buffers) else None for block in self.blocks)
        segment = self._task.segment(ASTWeights(self.embed(), blocks, self.norm()))
        (tokens,) = encode([spectrograms], [segment], self._geometry)
        return self._task.logits(tokens)

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

    def _encoder_of(self) -> Callable[[Tensor], Tensor]:
        """`_logits`, compiled if that is wanted: once for all modules, or for each where its tensors are constants."""
        if not self._torch_compile:
            return self._logits
        compiler: Any = torch.compile  # its overloads do not name what isolates
        # Without isolation, which older versions of torch do not have, eight modules at most are compiled.
        isolates = "isolate_recompiles" in inspect.signature(compiler).parameters and self._constants()
        encoder: Callable[[Tensor], Tensor] = (
            compiler(self._logits, isolate_recompiles=True) if isolates else compiler(self._logits)
        )
        return encoder

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
        """For copies and pickles: what encodes is bound to this module."""
        return {key: value for key, value in self.__dict__.items() if key != "_encoder"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._encoder = self._encoder_of()


def _share(frozen: BlockWeights, own: BlockWeights) -> bool:
    """Whether any tensor of the frozen block is among those that the task computes with."""
    return any(mine is theirs for mine, theirs in zip(own, frozen, strict=True) if mine is not None)
