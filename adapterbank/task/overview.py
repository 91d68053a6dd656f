"""All tasks of a bank at a glance."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table

from adapterbank.backbone.backbone import Backbone
from adapterbank.task.task import Facts


def overview(backbone: Backbone, tasks: Iterable[Facts]) -> Table:
    """A line per task: method, parameters, share of the base, bytes, last metric."""
    base = backbone.num_parameters()
    sizes = backbone.geometry
    title = f"{backbone.source}: {sizes.layers} x {sizes.width}, {base:,} frozen parameters"
    table = Table(title=title, box=SIMPLE_HEAD, padding=0)  # so that it fits 80 columns
    for column in ("task", "method"):
        table.add_column(column, overflow="fold")  # a name that is cut is no name
    for column in ("classes", "parameters", "% of base", "bytes", "metric"):
        table.add_column(column, justify="right", no_wrap=True)
    for spec, count, size, metrics in tasks:
        value = metrics.get(spec.primary_metric, math.nan)
        metric = "-" if math.isnan(value) else f"{spec.primary_metric} {value:.3f}"
        share = f"{100 * count / base:.2f}"
        table.add_row(spec.name, spec.method, str(len(spec.labels)), f"{count:,}", share, f"{size:,}", metric)
    return table
