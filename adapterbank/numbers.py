"""What counts as a number where somebody passes one: the checks of options, sizes and rates.

`True` is an `int` in Python, and NaN and Inf are floats. None of them is ever meant where a number is expected, so they
are refused here, once for all rooms.
"""

from __future__ import annotations

import math
from typing import Any, TypeGuard

from adapterbank.errors import AdapterBankError, ConfigError


def is_whole(value: Any, least: int = 1, most: int | None = None) -> TypeGuard[int]:
    """Whether `value` is an `int` from `least` to `most`; True and 3.0 are not."""
    return type(value) is int and value >= least and (most is None or value <= most)


def is_real(value: Any) -> TypeGuard[int | float]:
    """Whether `value` is an `int` or a `float` that a float can hold and that is finite; True is not."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # JSON, and Python's int, have numbers without end
        return False


def plain(value: Any) -> Any:
    """A number of NumPy or a tensor that holds one number as Python's own `int`, `float` or `bool`; all else as it is.

    What comes out of a table, a grid or a computation is often such a number, and means what Python's own means. In a
    tuple, a list and the values of a dict they are looked for too.
    """
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if type(value) in (tuple, list):
        return type(value)(map(plain, value))
    if type(value) is dict:
        return {key: plain(each) for key, each in value.items()}
    try:
        return value.item() if value.ndim == 0 else value
    except AttributeError:
        return value


def whole(
    name: str,
    value: object,
    *,
    least: int = 1,
    most: int | None = None,
    of: str = "",
    hint: str = "",
    kind: type[AdapterBankError] = ConfigError,
) -> int:
    """`value` itself, if it is a whole number from `least` to `most`.

    Args:
        name: of the option, for the message.
        most: the largest value that makes sense; None for no limit.
        of: what is counted, such as "prompt per layer".
        hint: what a paper uses, such as "AAT uses 12".
        kind: of the error.

    Raises:
        kind: anything else.
    """
    if is_whole(value, least, most):
        return value
    expected = f"at least {least}" if most is None else f"{least} to {most}"
    raise kind(f"got {name}={value!r}, expected {expected}{of and f' {of}'}{hint and f'; {hint}'}.")


def positive(name: str, value: object) -> float:
    """`value` itself, if it is a finite number above 0. Raises ConfigError."""
    if is_real(value) and value > 0:
        return value
    raise ConfigError(f"got {name}={value!r}, expected a positive number.")
