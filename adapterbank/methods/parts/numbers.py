"""One check for all options that are whole numbers."""

from __future__ import annotations

from adapterbank.errors import ConfigError


def whole(name: str, value: object, most: int | None = None, *, of: str = "", hint: str = "") -> int:
    """`value` itself, if it is a whole number from 1 to `most`.

    Args:
        name: of the option, for the message.
        most: the largest value that makes sense; None for no limit.
        of: what is counted, such as "prompt per layer".
        hint: what a paper uses, such as "AAT uses 12".

    Raises:
        ConfigError: anything else; True and 3.0 are no whole numbers.
    """
    if type(value) is int and value >= 1 and (most is None or value <= most):
        return value
    expected = "at least 1" if most is None else f"1 to {most}"
    raise ConfigError(f"got {name}={value!r}, expected {expected}{of and f' {of}'}{hint and f'; {hint}'}.")
