"""What a training in some precision runs on: the bank's tensors where they need no cast, packed where that helps."""

from __future__ import annotations

import pytest
import torch

from adapterbank.backbone.kernels import linear
from adapterbank.backbone.kernels.linear import Transposes
from adapterbank.training.options import in_precision

onednn = pytest.mark.skipif(not linear.by_onednn("cpu", torch.bfloat16), reason="a CPU without bf16 products")


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("matrix_unit", [True, False])
@onednn
def test_only_bf16_without_a_matrix_unit_packs_and_only_a_cast_copies(
    base, precision, matrix_unit, small_backbone, monkeypatch
):
    monkeypatch.setattr(linear, "has_matrix_unit", lambda: matrix_unit)
    backbone = small_backbone.to(dtype=base)
    there = in_precision(backbone, precision)
    assert there.dtype == (torch.bfloat16 if precision == "bf16" else base)
    same = there.weights.blocks[0].q_weight is backbone.weights.blocks[0].q_weight
    assert same == (precision == "fp32" or base == torch.bfloat16)
    packs = precision == "bf16" and not matrix_unit
    assert isinstance(there.weights.transposes, Transposes) == packs
    assert backbone.weights.transposes is None
    assert in_precision(there, precision) is there
    assert there.fingerprint == backbone.fingerprint
