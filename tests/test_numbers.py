"""True, NaN, Inf and numbers that no float can hold are numbers nowhere."""

from __future__ import annotations

import math

import pytest

from adapterbank.errors import BackboneError, ConfigError
from adapterbank.numbers import is_real, is_whole, positive, whole


@pytest.mark.parametrize("value", [True, False, 3.0, "3", None, math.nan, 0, -1])
def test_only_whole_numbers_from_one_up_are_whole(value):
    assert not is_whole(value)
    with pytest.raises(ConfigError, match="got rank=.*, expected at least 1; LoRA uses 8"):
        whole("rank", value, hint="LoRA uses 8")


def test_the_bounds_belong_to_the_range():
    assert [value for value in range(6) if is_whole(value, least=2, most=4)] == [2, 3, 4]
    assert whole("blocks", 0, least=0) == 0
    with pytest.raises(BackboneError, match="got blocks=5, expected 2 to 4 blocks"):
        whole("blocks", 5, least=2, most=4, of="blocks", kind=BackboneError)


@pytest.mark.parametrize("value", [True, "1", None, math.nan, math.inf, -math.inf, 10**400])
def test_what_no_float_holds_is_no_real_number(value):
    assert not is_real(value)
    with pytest.raises(ConfigError, match="got alpha=.*, expected a positive number"):
        positive("alpha", value)


def test_integers_and_floats_are_real_and_only_some_positive():
    assert is_real(-3)
    assert is_real(0.5)
    assert positive("alpha", 2) == 2
    for value in (0, -1.5):
        with pytest.raises(ConfigError, match="expected a positive number"):
            positive("alpha", value)
