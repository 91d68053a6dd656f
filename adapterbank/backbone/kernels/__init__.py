"""How fast products are made: one value, decided once per call and handed down.

Whoever runs blocks asks `choose(device)` once and passes what it gets, a `Kernels`, to everything below. Nothing else
in the backbone asks which device, which processor, which grad mode, which autocast or which compiler it runs under.

`with plain_kernels():` turns everything that is done for speed or memory off, so that whoever doubts a number can
compare. `with plain_kernels("attention"):` turns one switch off, which is how `recipes/benchmarks/tricks.py` measures
what each of them is worth. Other threads are not touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import torch

from adapterbank.errors import UnknownNameError

CHUNK_TOKENS = 1024  # per thread of the CPU: with more, activations leave its caches between two operations
HALF = (torch.bfloat16, torch.float16)


class Kernels(NamedTuple):
    """The decisions for one call.

    Attributes:
        grad: autograd records the call.
        autocast: the dtype in which autocast runs modules; None where it is off.
        onednn: dtypes whose linears oneDNN multiplies, in place of torch's own `F.linear`.
        attention: dtypes whose attention is two products around a softmax, in place of
            `scaled_dot_product_attention`.
        fill_keys: that attention's keys are filled up to a multiple of 16, where torch's kernel is slow otherwise.
        recompute: the backward pass computes the LayerNorm that parallel adapters read again, in place of keeping it.
        last_block: the last block computes the tokens that the head reads, and no others.
        chunk_tokens: how many tokens of a call run at once; None for all.
    """

    grad: bool
    autocast: torch.dtype | None
    onednn: tuple[torch.dtype, ...] = ()
    attention: tuple[torch.dtype, ...] = ()
    fill_keys: bool = False
    recompute: bool = False
    last_block: bool = False
    chunk_tokens: int | None = None

    def product_dtype(self, weight: torch.Tensor) -> torch.dtype:
        """In which a linear multiplies: that of its matrix, or autocast's if a task owns the matrix, which is fp32."""
        return (self.autocast if weight.requires_grad else None) or weight.dtype


SWITCHES = tuple(name for name in Kernels._fields if name not in ("grad", "autocast"))
_FORCED: ContextVar[Mapping[str, Any]] = ContextVar("forced", default={})  # noqa: B039  # nobody writes to it


def choose(device: torch.device) -> Kernels:
    """The kernels for a call on this device, in the grad mode and under the autocast of this moment."""
    grad, autocast = torch.is_grad_enabled(), _autocast_dtype(device.type)
    if torch.compiler.is_compiling():  # a compiler chooses and joins operations by itself
        return Kernels(grad, autocast, last_block=True)
    return _fastest(device.type, grad, autocast)._replace(**_FORCED.get())


def training_precision(device: torch.device) -> str:
    """The precision in which a training is fastest on this device: "bf16", "fp16" or "fp32"."""
    if device.type == "cuda":
        # torch would also say yes to a GPU that only emulates bf16, which is slower than fp16.
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    bf16 = device.type == "cpu" and any(_processor().get(unit) for unit in ("amx_bf16", "avx512_bf16"))
    return "bf16" if bf16 else "fp32"


@contextmanager
def plain_kernels(*switches: str) -> Iterator[None]:
    """Within it these switches, or all if none is named, are off: `F.linear`, torch's attention, every token.

    Tasks that `compile_task(torch_compile=True)` compiled are not reached: their code is made already.

    Raises:
        UnknownNameError: there is no such switch.
    """
    for name in switches:
        if name not in SWITCHES:
            raise UnknownNameError("switch of the kernels", name, SWITCHES)
    off = {name: Kernels._field_defaults[name] for name in switches or SWITCHES}
    with forced(**off):
        yield


@contextmanager
def forced(**decisions: Any) -> Iterator[None]:
    """Within it these decisions are as given, whatever the machine: for tests of what another machine would do."""
    token = _FORCED.set({**_FORCED.get(), **decisions})
    try:
        yield
    finally:
        _FORCED.reset(token)


def _fastest(device: str, grad: bool, autocast: torch.dtype | None) -> Kernels:
    """What was measured to be fastest on this kind of device; see docs/performance.md."""
    if device != "cpu":
        return Kernels(grad, autocast, recompute=grad, last_block=True)
    products = tuple(dtype for dtype in _onednn_dtypes() if autocast in (None, dtype))  # who asks for fp16 gets it
    # torch's kernel multiplies small blocks: without a matrix unit it reaches a fifth of the speed of plain products,
    # and its backward pass in half precision is slower still.
    half = HALF if grad else tuple(d for d in products if d == torch.bfloat16 and not _has_matrix_unit())
    return Kernels(
        grad,
        autocast,
        onednn=products,
        attention=half,
        fill_keys=True,
        recompute=grad,
        last_block=True,
        chunk_tokens=None if grad else CHUNK_TOKENS * torch.get_num_threads(),
    )


def _autocast_dtype(device: str) -> torch.dtype | None:
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    """In bf16 oneDNN adds the bias while it multiplies; in fp32 MKL is slower on the processors it is not made for."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return ()
    bf16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    amd = "AMD" in str(_processor().get("cpu_name", ""))
    return (*((torch.bfloat16,) if bf16 else ()), *((torch.float32,) if amd else ()))


def _has_matrix_unit() -> bool:
    """Whether the CPU multiplies tiles of bf16 numbers (AMX)."""
    return bool(_processor().get("amx_bf16", False))


@cache
def _processor() -> Mapping[str, Any]:
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch has none
    return known
