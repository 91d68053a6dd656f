"""All methods at a glance: the table that `adapterbank.methods()` shows, and the one of docs/methods.md."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from io import StringIO
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adapterbank.backbone.weights import ASTWeights, Geometry
from adapterbank.methods.base import Adapters
from adapterbank.methods.grammar import build, count, parse
from adapterbank.methods.registry import ALIASES, Method, registered

SYMBOLS = "AST-base: 12 x 768, without a head. L blocks, D width, M MLP width, N tokens, P patch side."

ARXIV = {  # the papers that methods name, with their numbers at arxiv.org
    "AAT, 2024": "2401.10544",
    "BitFit (Ben Zaken et al., 2022)": "2106.10199",
    "Conformer adapter (Cappellazzo et al., 2024)": "2312.03694",
    "DoRA (2024)": "2402.09353",
    "Houlsby et al., 2019": "1902.00751",
    "LN-tuning (Qi et al., 2022)": "2211.08682",
    "LoRA (Hu et al., 2022)": "2106.09685",
    "PETL_AST, 2024": "2312.03694",
    "Pfeiffer et al., 2021": "2005.00247",
    "Prefix tuning (Li and Liang, 2021)": "2101.00190",
    "Soft mixture of adapters (Cappellazzo et al., 2024)": "2402.00828",
    "VPT-deep (Jia et al., 2022)": "2203.12119",
    "VPT-shallow (Jia et al., 2022)": "2203.12119",
    "rsLoRA (2023)": "2312.03732",
}


def overview() -> Overview:
    """All methods and aliases with options, parameters and paper: a tuple of `Method` that prints as a table."""
    return Overview([*registered(), *(_as_method(name, ALIASES[name]) for name in sorted(ALIASES))], count)


def _as_method(name: str, expression: str) -> Method:
    """An alias as a row of the overview."""

    def builder(geometry: Geometry, base: ASTWeights, generator: torch.Generator, **options: Any) -> Adapters:
        return build(expression, geometry, base, generator, options)

    parts = parse(expression)
    builder.__doc__ = f"{expression} in one forward pass."
    options = {key: value for part in parts for key, value in part.options.items()}
    formulas = [part.parameters.partition(", ") for part in parts]
    total = " + ".join(formula for formula, _, _ in formulas)
    definitions = dict.fromkeys(rest for _, _, rest in formulas if rest)
    papers = dict.fromkeys(paper for part in parts for paper in part.paper.split("; "))
    return Method(name, builder, options, "; ".join(papers), ", ".join((total, *definitions)))


class Overview(tuple[Method, ...]):
    """The methods in their order: a tuple whose `repr` is a table for the terminal.

    Args:
        count: name -> how many numbers it trains on AST-base. It is called when a table is made, not before.
    """

    _count: Callable[[str], int]

    def __new__(cls, methods: Iterable[Method], count: Callable[[str], int]) -> Overview:
        rows = super().__new__(cls, methods)
        rows._count = count
        return rows

    def markdown(self) -> str:
        """The table of docs/methods.md; a paper that is at arXiv is a link."""
        lines = ["| `method=` | what is trained | on AST-base | formula | paper |", "|---|---|---:|---|---|"]
        for row in self:
            cells = (
                f"`{row.name}`",
                row.summary,
                f"{self._count(row.name):,}",
                f"`{row.parameters}`",
                _linked(row.paper),
            )
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def __repr__(self) -> str:
        table = Table(box=SIMPLE_HEAD, caption=SYMBOLS)
        table.add_column("method", no_wrap=True)
        table.add_column("on AST-base", justify="right", no_wrap=True)
        table.add_column("what is trained · paper, formula, options", overflow="fold")
        for row in self:
            options = ", ".join(f"{key}={value!r}" for key, value in row.options.items())
            details = (f"{row.summary} · {row.paper}", row.parameters, options)
            table.add_row(row.name, f"{self._count(row.name):,}", Text("\n".join(filter(None, details))))
            table.add_section()
        width = min(shutil.get_terminal_size((100, 24)).columns, 120)
        console = Console(file=StringIO(), width=width)
        with console.capture() as captured:
            console.print(table)
        return captured.get().rstrip()


def _linked(papers: str) -> str:
    """A method's papers, which semicolons part, as links of Markdown. What ARXIV does not have stays as it is."""
    named = []
    for paper in papers.split("; "):
        key = paper.removesuffix(" (baselines)")
        link = f"[{key}](https://arxiv.org/abs/{ARXIV[key]})" if key in ARXIV else key
        named.append(link + paper[len(key) :])
    return "; ".join(named)
