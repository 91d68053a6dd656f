"""One table of number formats."""

import pytest
import torch

from adapterbank.backbone.precision import DTYPES, dtype_of
from adapterbank.errors import UnknownNameError


@pytest.mark.parametrize("name", DTYPES)
def test_every_name_has_its_dtype(name):
    assert dtype_of(name) == DTYPES[name]
    assert isinstance(dtype_of(name), torch.dtype)


@pytest.mark.parametrize(("name", "allowed"), [("fp23", tuple(DTYPES)), ("int8", ("fp32", "bf16"))])
def test_a_name_that_makes_no_sense_here_is_refused_with_those_that_do(name, allowed):
    with pytest.raises(UnknownNameError, match=f"unknown precision '{name}'.*Known: {', '.join(sorted(allowed))}"):
        dtype_of(name, allowed)
