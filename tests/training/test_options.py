"""The backbone that a training in some precision runs on: the bank's own where no tensor needs a cast."""

from __future__ import annotations

import pytest
import torch

from adapterbank.errors import UnknownNameError
from adapterbank.training.options import in_precision


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_only_a_cast_copies_and_it_is_made_once(base, precision, small_backbone):
    backbone = small_backbone.to(dtype=base)
    there = in_precision(backbone, precision)
    needs_no_cast = precision == "fp32" or (precision == "bf16" and base != torch.float32)
    assert (there is backbone) == needs_no_cast
    assert in_precision(there, precision) is there
    assert there.fingerprint == backbone.fingerprint
    if base != torch.int8:
        assert there.dtype == {"fp32": base, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def test_an_unknown_precision_names_those_that_train(small_backbone):
    with pytest.raises(UnknownNameError, match="unknown precision 'int8'.*Known: bf16, fp16, fp32"):
        in_precision(small_backbone, "int8")
