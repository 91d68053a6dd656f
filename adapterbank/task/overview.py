"""All tasks of a bank at a glance, as data and as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from adapterbank.backbone.backbone import Backbone
from adapterbank.task.spec import Facts
from adapterbank.text import amount


class Row(NamedTuple):
    """One task of a summary.

    Attributes:
        task: its name.
        method: the method or composition that it was added with.
        classes: C, how many labels it has.
        parameters: how many numbers training it may change.
        percent_of_base: these numbers in percent of the backbone's, which are frozen.
        bytes: of all its tensors.
        metric: name of the metric by which this kind of task is compared: "accuracy" or "map".
        value: that metric when the task was last evaluated; NaN if it never was.
    """

    task: str
    method: str
    classes: int
    parameters: int
    percent_of_base: float
    bytes: int
    metric: str
    value: float


class Summary(tuple[Row, ...]):
    """A `Row` per task, in the order of the bank; `table()` is what `bank.summary()` prints.

    Args:
        rows: one per task.
        title: what stands above the table: the backbone and its size.
    """

    title: str

    def __new__(cls, rows: Iterable[Row], title: str = "") -> Summary:
        summary = super().__new__(cls, rows)
        summary.title = title
        return summary

    def table(self) -> Table:
        """A line per task: method, classes, parameters, share of the base, bytes, last metric."""
        table = Table(title=self.title, box=SIMPLE_HEAD, padding=0)  # so that it fits 80 columns
        for column in ("task", "method"):
            table.add_column(column, overflow="fold")  # a name that is cut is no name
        for column in ("classes", "parameters", "% of base", "bytes", "metric"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in self:
            metric = "-" if math.isnan(row.value) else f"{row.metric} {row.value:.3f}"
            numbers = (str(row.classes), f"{row.parameters:,}", f"{row.percent_of_base:.2f}", f"{row.bytes:,}")
            table.add_row(row.task, row.method, *numbers, metric)
        return table

    def __repr__(self) -> str:
        return f"Summary of {amount(len(self), 'task')}: {', '.join(row.task for row in self) or 'none yet'}"


def overview(backbone: Backbone, tasks: Iterable[Facts]) -> Summary:
    """What a bank on `backbone` holds, from what is known of its tasks without opening them."""
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
        for spec, count, size, metrics in tasks
    )
    return Summary(rows, f"{backbone.source}: {sizes.layers} x {sizes.width}, {base:,} frozen parameters")
