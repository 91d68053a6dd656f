"""A frozen linear's product: in the dtype of its matrix, with gradients for what it reads only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapterbank.backbone.int8 import Int8Matrix
from adapterbank.backbone.weights import FrozenLinear

PATIENCE = 2  # gradients that pass through a matrix before it is packed: packing takes what it saves in three or four


def autocast_dtype(device: str) -> torch.dtype | None:
    """In which autocast runs modules on a kind of device; None where it is off."""
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def product_dtype(weight: Tensor) -> torch.dtype:
    """In which a linear runs: that of its matrix, or of autocast if a task owns the matrix, which is then fp32."""
    return (autocast_dtype(weight.device.type) if weight.requires_grad else None) or weight.dtype


class Transposes:
    """Frozen matrices as the gradients of what they read need them: transposed, packed by oneDNN, each once.

    oneDNN packs a matrix anew for each product, 4 to 7 % of its time. For as long as this lives it holds the memory of
    all matrices that gradients passed through often enough once more.

    Args:
        frozen: tensors that stay as they are and where they are; other matrices are not packed.
    """

    def __init__(self, frozen: Iterable[Tensor]) -> None:
        self._storages = {t.untyped_storage().data_ptr() for t in frozen if not isinstance(t, Int8Matrix)}
        self._met: Counter[tuple[int, torch.Size]] = Counter()
        self._packed: dict[tuple[int, torch.Size], Tensor] = {}

    @staticmethod
    def helps(device: str, dtype: torch.dtype) -> bool:
        """Whether it is worth its memory: for bf16 on CPUs without a matrix unit."""
        return dtype == torch.bfloat16 and by_onednn(device, dtype) and not has_matrix_unit()

    def of(self, weight: Tensor, rows: int) -> Tensor | None:
        """The transpose of a matrix (out, in) for products of about so many rows; None the first times it is met."""
        place = weight.data_ptr(), weight.shape
        if place in self._packed:
            return self._packed[place]
        if weight.untyped_storage().data_ptr() not in self._storages:
            return None
        self._met[place] += 1
        if self._met[place] > PATIENCE:
            self._packed[place] = torch.ops.mkldnn._reorder_linear_weight(weight.T.contiguous(), rows)
        return self._packed.get(place)


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None, transposes: Transposes | None = None) -> Tensor:
    """`x @ weight.T + bias` in `product_dtype`: the only place where the fp32 stream is cast.

    In bf16 on the CPU torch's own linear writes the bias to all rows first and adds the product to them, which takes a
    fifth of its time; oneDNN's adds the bias while it makes the rows. In fp32 torch's own is MKL's, which is slower
    than oneDNN's on the processors that MKL is not made for.

    Args:
        transposes: of frozen matrices, for the gradient of `x`.
    """
    dtype = product_dtype(weight)
    x = x.to(dtype)
    if isinstance(weight, Int8Matrix):
        return weight.product(x, bias)
    if bias is not None and x.numel() and by_onednn(x.device.type, dtype):
        read = x, weight.to(dtype), bias.to(dtype)
        product: Tensor = _Product.apply(*read, transposes) if torch.is_grad_enabled() else onednn(*read)
        return product
    return F.linear(x, weight, bias)


def frozen_linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None, transposes: Transposes | None = None) -> Tensor:
    """GELU of `frozen_linear`; oneDNN makes it, if no gradients are kept, of the rows before they are rounded."""
    dtype = product_dtype(weight)
    plain = torch.is_grad_enabled() or isinstance(weight, Int8Matrix) or not x.numel()
    if plain or bias is None or not by_onednn(x.device.type, dtype):
        return gelu(frozen_linear(x, weight, bias, transposes))
    return onednn(x.to(dtype), weight.to(dtype), bias.to(dtype), "gelu")


def gelu(x: Tensor) -> Tensor:
    """Where no gradients are kept it is written into `x`: fresh memory of that size costs more than the GELU."""
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


def joined(linears: Sequence[FrozenLinear]) -> FrozenLinear | None:
    """Linears that read the same as one, (out of all, in); None where their matrices do not adjoin, as `adjoin` lays.

    Nothing but the biases is copied. A compiler, which sees no addresses, joins by itself.
    """
    if torch.compiler.is_compiling():
        return None
    weights, biases = zip(*linears, strict=True)
    if any(isinstance(w, Int8Matrix) or w.requires_grad for w in weights) or not adjoining(weights):
        return None
    if any((bias is None) != (biases[0] is None) for bias in biases):
        return None
    width = weights[0].shape[1]
    whole = weights[0].as_strided((sum(map(len, weights)), width), (width, 1))
    return FrozenLinear(whole, None if biases[0] is None else torch.cat(biases))


def adjoin(matrices: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copies of matrices (out, in) that lie one behind the other in memory."""
    return torch.cat(list(matrices)).split([len(matrix) for matrix in matrices])


def adjoining(tensors: Sequence[Tensor]) -> bool:
    """Whether they are contiguous and lie one behind the other in memory."""
    storage, place = tensors[0].untyped_storage().data_ptr(), tensors[0].storage_offset()
    for tensor in tensors:
        if tensor.untyped_storage().data_ptr() != storage or tensor.storage_offset() != place:
            return False
        if not tensor.is_contiguous():
            return False
        place += tensor.numel()
    return True


def by_onednn(device: str, dtype: torch.dtype) -> bool:
    """Whether products of this dtype are oneDNN's."""
    if device != "cpu" or torch.compiler.is_compiling():  # which packs linears by itself
        return False
    if autocast_dtype(device) not in (None, dtype):
        return False  # whoever asks for fp16 gets it
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if dtype == torch.float32:
        return _amd()
    return dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _amd() -> bool:
    """Whether MKL runs here on a processor of another maker."""
    return "AMD" in str(_processor().get("cpu_name", ""))


def has_matrix_unit() -> bool:
    """Whether the CPU multiplies bf16 tiles (AMX)."""
    return bool(_processor().get("amx_bf16", False))


@cache
def _processor() -> Mapping[str, Any]:
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch has none
    return known


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    """`x @ weight.T + bias` as oneDNN makes it, without a derivative; `then` names what follows, such as "gelu"."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none")
    return product


class _Product(torch.autograd.Function):
    """oneDNN's linear, which has no derivative of its own."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, transposes: Transposes | None) -> Tensor:
        return onednn(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.transposes = inputs
        ctx.save_for_backward(x if weight.requires_grad else None, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad, (to_x, to_weight, to_bias, _) = grads[0], ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            through(grad, weight, None if to_weight else ctx.transposes) if to_x else None,
            rows.T @ x.flatten(0, -2) if to_weight else None,
            rows.sum(0) if to_bias else None,
            None,
        )


def through(grad: Tensor, weight: Tensor, transposes: Transposes | None) -> Tensor:
    """`grad @ weight`, (..., out) x (out, in) -> (..., in): a gradient on its way back through a linear."""
    if transposes is not None and not torch.is_grad_enabled() and Transposes.helps(grad.device.type, grad.dtype):
        packed = transposes.of(weight, grad.shape[:-1].numel())
        if packed is not None:
            return onednn(grad, packed, None)
    if grad.dtype == torch.float32:  # where torch's own product is MKL's
        product: Tensor = _Product.apply(grad, weight.T, None, None)
        return product
    return grad @ weight
