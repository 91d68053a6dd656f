"""What the shell completes, without importing torch: names of tasks and of methods."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer

from adapterbank.cli import banks


def complete_task(ctx: typer.Context, incomplete: str) -> list[str]:
    """The tasks of the bank that stands on the command line already, else of the default one."""
    folder = ctx.params.get("bank") or banks.DEFAULT
    return [name for name in banks.task_names(Path(folder)) if name.startswith(incomplete)]


def complete_method(incomplete: str) -> list[str]:
    """Methods; behind a "+" those that may follow."""
    given, plus, last = incomplete.rpartition("+")
    return [f"{given}{plus}{name}" for name in method_names() if name.startswith(last)]


def method_names() -> list[str]:
    """The methods of the package, read from their files: importing them would import torch.

    A method's file says its name as the first argument of `@register`, and compositions are the keys of `ALIASES`.
    """
    folder = Path(__file__).parent.parent / "methods"
    return sorted({name for file in folder.glob("*.py") for name in _names_in(file)})


def _names_in(file: Path) -> Iterator[str]:
    text = file.read_text(encoding="utf-8")
    if "@register(" not in text and "\nALIASES" not in text:
        return
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            calls = [call for call in node.decorator_list if isinstance(call, ast.Call)]
            yield from _texts(call.args[0] for call in calls if ast.unparse(call.func) == "register" and call.args)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            named = [ast.unparse(target) for target in node.targets]
            yield from _texts(node.value.keys if named == ["ALIASES"] else [])


def _texts(nodes: Iterable[ast.expr | None]) -> Iterator[str]:
    """Those of the expressions that are text."""
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
