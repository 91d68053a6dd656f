"""How the blocks of the AST are computed: one value, decided once per call and handed down.

Whoever calls the blocks asks `choose(device)` once and passes what it gets, a `Kernels`, to everything below. Nothing
else in the backbone asks which device, processor, grad mode, autocast or compiler it runs under.

`with plain_kernels():` turns every switch off, so that whoever doubts a number can compare: each task then runs through
`backbone/plain.py`. `with plain_kernels("attention"):` turns one switch off. That is how
`recipes/benchmarks/tricks.py` measures what each of them is worth. Other threads are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import torch

from adapterbank.errors import UnknownNameError

CHUNK_TOKENS = 1024  # per thread of the CPU: with more, activations leave its caches between two operations
HALF = (torch.bfloat16, torch.float16)


Contexts = Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]


class Kernels(NamedTuple):
    """The decisions for one call. What stands as a default is the plain way.

    Two of them are facts that the call found: `grad`, whether autograd records it, and `autocast`, the dtype in which
    autocast runs modules (None where it is off). `checkpoint` is a wish of the caller. The others are switches.

    Attributes:
        packing: the rows of all tasks run together through each block (`block.py`), and tasks on the same clips share
            what lies below their first sites. Off, every task runs by itself through the formula in `plain.py`.
        in_place: what a task changes of its rows is written into the packed tensor, and packed tokens go from block to
            block without a copy. Off, and with gradients, which may need the old values, new tensors are made.
        onednn: dtypes whose frozen linears oneDNN multiplies. For others it is torch's own `F.linear`.
        gelu: oneDNN computes the GELU of the MLP while it multiplies. Off, GELU is an operation of its own.
        attention: dtypes whose attention is two products around a softmax. For others it is torch's
            `scaled_dot_product_attention`.
        fill_keys: that kernel's keys are filled up to a multiple of 16, where it is slow otherwise.
        recompute: the backward pass computes the LayerNorm that parallel adapters read again. Off, it is kept.
        last_block: the last block computes only the tokens that the head reads. Off, it computes all of them.
        chunk_tokens: how many tokens of a call run at once. None for all.
        checkpoint: with gradients, keep of each block only what enters it, and compute the block again in the backward
            pass. It makes the contexts of the first and of the second computation. None keeps everything.
    """

    grad: bool
    autocast: torch.dtype | None
    packing: bool = False
    in_place: bool = False
    onednn: tuple[torch.dtype, ...] = ()
    gelu: bool = False
    attention: tuple[torch.dtype, ...] = ()
    fill_keys: bool = False
    recompute: bool = False
    last_block: bool = False
    chunk_tokens: int | None = None
    checkpoint: Contexts | None = None

    def product_dtype(self, weight: torch.Tensor) -> torch.dtype:
        """The dtype in which a linear multiplies: that of its matrix.

        A matrix that a task owns is fp32. Under autocast it multiplies in autocast's dtype.
        """
        return (self.autocast if weight.requires_grad else None) or weight.dtype


SWITCHES = tuple(name for name in Kernels._fields if name not in ("grad", "autocast", "checkpoint"))
_FORCED: ContextVar[Mapping[str, Any]] = ContextVar("forced", default={})  # noqa: B039  # nobody writes to it


def choose(device: torch.device) -> Kernels:
    """The kernels for a call on this device, in the grad mode and under the autocast of this moment."""
    grad, autocast = torch.is_grad_enabled(), _autocast_dtype(device.type)
    if torch.compiler.is_compiling():  # a compiler chooses and joins operations by itself
        return Kernels(grad, autocast, packing=True, last_block=True)
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
    """Within it these switches are off, or all of them if none is named; `Kernels` says what each of them does.

    It has no effect under `torch.compile`, and so none on tasks from `compile_task(torch_compile=True)`: a compiler
    chooses operations by itself. A generator that is suspended inside it leaves the switches off for whoever called it.

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
    """Within it these decisions are as given, whatever the machine.

    It is for wishes of the caller, `checkpoint`, and for tests of what another machine would do.
    """
    token = _FORCED.set({**_FORCED.get(), **decisions})
    try:
        yield
    finally:
        _FORCED.reset(token)


def _fastest(device: str, grad: bool, autocast: torch.dtype | None) -> Kernels:
    """What was measured to be fastest on this kind of device; see docs/performance.md."""
    if device != "cpu":
        return Kernels(grad, autocast, packing=True, in_place=not grad, recompute=grad, last_block=True)
    # Under autocast only its own dtype: who asks for fp16 must not get products in bf16.
    products = tuple(dtype for dtype in _onednn_dtypes() if autocast in (None, dtype))
    # torch's kernel multiplies small blocks: without a matrix unit it reaches a fifth of the speed of plain products,
    # and its backward pass in half precision is slower still.
    half = HALF if grad else tuple(d for d in products if d == torch.bfloat16 and not _has_matrix_unit())
    return Kernels(
        grad,
        autocast,
        packing=True,
        in_place=not grad,
        onednn=products,
        gelu=not grad,  # it has no derivative
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
    """bf16 everywhere, where oneDNN adds the bias while it multiplies; fp32 on AMD's processors, where MKL is slow."""
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
