"""All tasks of a bank at a glance: rows to compute with, and a table to read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from adapterbank.backbone.backbone import Backbone
from adapterbank.task.task import Facts


class Row(NamedTuple):
    """One task. `value` is that of its primary metric at the last evaluation, NaN without one."""

    task: str
    method: str
    classes: int
    parameters: int
    percent_of_base: float
    bytes: int
    metric: str
    value: float


class Summary(tuple[Row, ...]):
    """The rows of all tasks in their order."""

    _title: str

    def __new__(cls, rows: Iterable[Row], title: str) -> Summary:
        made = super().__new__(cls, rows)
        made._title = title
        return made

    def table(self) -> Table:
        """As it is printed: a line per task."""
        table = Table(title=self._title, box=SIMPLE_HEAD, padding=0)  # so that it fits 80 columns
        for column in ("task", "method"):
            table.add_column(column, overflow="fold")  # a name that is cut is no name
        for column in ("classes", "parameters", "% of base", "bytes", "metric"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in self:
            metric = "-" if math.isnan(row.value) else f"{row.metric} {row.value:.3f}"
            numbers = (str(row.classes), f"{row.parameters:,}", f"{row.percent_of_base:.2f}", f"{row.bytes:,}", metric)
            table.add_row(row.task, row.method, *numbers)
        return table

    def __repr__(self) -> str:
        return f"Summary({', '.join(row.task for row in self)})"


def overview(backbone: Backbone, facts: Iterable[Facts]) -> Summary:
    """A row per task: method, parameters, share of the base, bytes, last metric."""
    base, sizes = backbone.num_parameters(), backbone.geometry
    rows = (
        Row(
            task=spec.name,
            method=spec.method,
            classes=len(spec.labels),
            parameters=count,
            percent_of_base=100 * count / base,
            bytes=size,
            metric=spec.primary_metric,
            value=metrics.get(spec.primary_metric, math.nan),
        )
        for spec, count, size, metrics in facts
    )
    return Summary(rows, f"{backbone.source}: {sizes.layers} x {sizes.width}, {base:,} frozen parameters")
