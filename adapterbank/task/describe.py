"""From what somebody says of a new task to its full description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adapterbank import methods
from adapterbank.data import catalog
from adapterbank.errors import ConfigError
from adapterbank.numbers import plain
from adapterbank.task.spec import TaskSpec


def describe(
    name: str,
    method: str,
    *,
    labels: Sequence[str] | None = None,
    num_classes: int | None = None,
    multilabel: bool | None = None,
    head: str | None = None,
    pooling: str | None = None,
    clip_seconds: float | None = None,
    options: Mapping[str, Any],
    backbone_pooling: str = "cls_dist",
    **rest: Any,
) -> TaskSpec:
    """The description of a new task. What is left out comes from the dataset of that name, then from the method.

    Args:
        name: of the task. A known dataset's name brings clip length, multilabel and, without `labels` and
            `num_classes`, its labels.
        labels, num_classes, multilabel, head, pooling, clip_seconds: what was said; None: nothing was.
        options: of the method.
        backbone_pooling: what heads on this backbone read where neither the caller nor the method says it.
        rest: fields of `TaskSpec` that are taken as they are.

    Raises:
        LabelsError, UnknownNameError, CompositionError, ConfigError: as `TaskSpec`.
    """
    if "importance" in options:
        raise ConfigError("got importance=..., expected layers=scores.top(4), where layer_importance gave the scores.")
    known = catalog.lookup(name)
    if known is not None:
        clip_seconds = known.clip_seconds if clip_seconds is None else clip_seconds
        multilabel = known.multilabel if multilabel is None else multilabel
        labels = known.labels if labels is None and num_classes is None else labels
    own = {"head": "ln_linear", "pooling": backbone_pooling}
    for part in methods.parse(method):
        own.update(part.defaults)
    return TaskSpec(
        name=name,
        method=method,
        labels=catalog.labels_of(name, labels, num_classes),
        options={key: _for_json(value) for key, value in options.items()},
        multilabel=bool(multilabel),
        head=own["head"] if head is None else head,
        pooling=own["pooling"] if pooling is None else pooling,
        clip_seconds=clip_seconds,
        **rest,
    )


def _for_json(value: Any) -> Any:
    """An option as what a task's file can hold: sets, ranges and arrays as lists, numbers of NumPy as Python's own."""
    value = plain(value)
    if isinstance(value, Mapping):
        return {key: _for_json(entry) for key, entry in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(_for_json, value))
    if isinstance(value, (list, range)) or hasattr(value, "tolist"):
        return [_for_json(entry) for entry in value]
    return tuple(map(_for_json, value)) if type(value) is tuple else value
