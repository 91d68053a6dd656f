"""What the library says of its keywords, in the words of a command: `on_error="skip"` becomes `--on-error skip`.

Errors and warnings of the library advise keywords of Python. Whoever reads them in a terminal has to be told the option
of the command that they typed. A keyword that this command has no option for stays as it is.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

_VALUE = r"""(?P<value>True|False|None|"[^"]*"|'[^']*'|-?\d+(?:\.\d+)?(?:e-?\d+)?|\.{3}|\w+)?"""


def in_words_of(command: Any, message: str) -> str:
    """The message with the options of this command in place of keywords.

    Args:
        command: a command of click; None: the message stays as it is.
    """
    if command is None:
        return message
    for parameter in command.params:
        if parameter.param_type_name == "option":
            keyword = re.compile(rf"(?<![\w.-]){re.escape(parameter.name)}={_VALUE}")
            message = keyword.sub(partial(_option, parameter), message)
    return message


def _option(parameter: Any, match: re.Match[str]) -> str:
    """What to type for a keyword and its value; the keyword itself, if no option can say this value."""
    value = match["value"]
    name = next(opt for opt in parameter.opts if opt.startswith("--"))
    if value is None:
        return name
    if not parameter.is_flag:
        return match[0] if value == "None" else f"{name} {value.strip(chr(34) + chr(39))}"
    other = next(iter(parameter.secondary_opts), None)
    return {"True": name, "False": other or match[0]}.get(value, match[0])
