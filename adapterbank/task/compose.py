"""A new task from trained ones: copies of their adapters, all of them in one forward pass.

AAT (section 3.3) trains two methods together from the start; here they are put together after each was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adapterbank import methods
from adapterbank.backbone.backbone import Backbone
from adapterbank.errors import (
    CompositionError,
    ConfigError,
    LabelsError,
    UnknownNameError,
    UntrainedHeadWarning,
    warn_outside,
)
from adapterbank.task.spec import TaskSpec
from adapterbank.task.task import Task

HOWS = ("joint",)
# Sources must agree on these fields, unless the caller gives them.
_SHARED = ("multilabel", "pooling", "head", "clip_seconds", "partial_patches", "normalize")


def compose(
    name: str,
    sources: Sequence[Task],
    backbone: Backbone,
    *,
    how: str = "joint",
    freeze: Sequence[str] | bool = (),
    head_from: str | None = None,
    labels: Sequence[str] | None = None,
    seed: int = 0,
    **shared: Any,
) -> Task:
    """A task whose adapters are copies of those of `sources`, all of them in one forward pass.

    Args:
        name: of the new task.
        sources: tasks of different methods, or of compositions without a method in common; they are not changed.
        backbone: the one that all of them run on.
        how: "joint": the sites of all sources are filled at once, by the rules of `a+b`.
        freeze: names of sources whose copies are not trained further; True for all, so that only the head is.
        head_from: a source whose head is copied with its labels; None gives a new head.
        labels: of a new head; None takes those that all sources share.
        seed: of a new head.
        **shared: multilabel, pooling, head, clip_seconds, partial_patches or normalize, where the sources differ.

    Raises:
        UnknownNameError: another `how`, or a name in `freeze` or `head_from` that is no source.
        CompositionError: fewer than two sources, a method twice, or two owners of one site.
        ConfigError, LabelsError: the sources differ in what they must share.
    """
    if how not in HOWS:
        raise UnknownNameError("how of compose", how, HOWS)
    names = [task.name for task in sources]
    if len(set(names)) != len(names) or len(names) < 2:
        raise CompositionError(f"got the tasks {names} to compose, expected two or more, each once.")
    frozen = list(names) if freeze is True else [freeze] if isinstance(freeze, str) else list(freeze or ())
    for chosen in [*frozen, *([] if head_from is None else [head_from])]:
        if chosen not in names:
            raise UnknownNameError("task of the composition", chosen, names)
    by_name = dict(zip(names, sources, strict=True))
    head = None if head_from is None else by_name[head_from]
    spec = TaskSpec(
        name=name,
        method="+".join(part for task in sources for part in _parts(task)),
        labels=_labels(sources, head, labels),
        options={part: dict(own) for task in sources for part, own in _parts(task).items()},
        train_final_norm=any(len(task.norm) > 0 for task in sources),
        seed=seed,
        frozen=tuple(part for task in sources if task.name in frozen for part in _parts(task)),
        **_shared_fields(sources, shared, head),
    )
    normed = [task.name for task in sources if len(task.norm)]
    if len(normed) > 1:
        raise CompositionError(f"{normed[0]!r} and {normed[1]!r} both train the final LayerNorm; keep one of them.")
    composed = Task(spec, backbone)
    for task in sources:
        for part in _parts(task):
            composed.part(part).load_state_dict(task.part(part).state_dict())
        if len(task.norm):
            composed.norm.load_state_dict(task.norm.state_dict())
    known = [task.trained_clip_seconds for task in sources if task.trained_clip_seconds is not None]
    composed.trained_clip_seconds = max(known, default=None)
    if head is not None:
        composed.head.load_state_dict(head.head.state_dict())
    else:
        warn_outside(
            f"the head of {name!r} is new and untrained, so that what it answers means nothing yet: call "
            f"fit(bank, {name!r}, train_data), or compose with head_from={names[0]!r} to copy a trained one.",
            UntrainedHeadWarning,
        )
    return composed


def _parts(task: Task) -> Mapping[str, Mapping[str, Any]]:
    """The methods of a task, and the options of each."""
    return methods.options_of(task.method, task.spec.options)


def _labels(sources: Sequence[Task], head: Task | None, labels: Sequence[str] | None) -> tuple[str, ...]:
    """Those of the source whose head is copied, those that were given, or those that all sources share.

    Raises:
        LabelsError: none of these, or two that differ.
    """
    if head is not None:
        if labels is not None and tuple(labels) != head.labels:
            raise LabelsError(
                f"got labels of their own and head_from={head.name!r}, which has others; give one of them."
            )
        return head.labels
    if labels is not None:
        return tuple(labels)
    if any(task.labels != sources[0].labels for task in sources):
        kinds = ", ".join(f"{task.name} ({len(task.labels)})" for task in sources)
        raise LabelsError(f"the tasks have different labels: {kinds}. Pass labels=[...] or head_from=<task>.")
    return sources[0].labels


def _shared_fields(sources: Sequence[Task], given: Mapping[str, Any], head: Task | None) -> dict[str, Any]:
    """The fields of `_SHARED`. Sources must agree on these fields, unless the caller gives them.

    A copied head brings its own `head` and `multilabel`.

    Raises:
        ConfigError: the sources differ and nothing was given. UnknownNameError: something else was given.
    """
    for key in given:
        if key not in _SHARED:
            raise UnknownNameError("option of compose", key, (*_SHARED, "how", "freeze", "head_from", "labels", "seed"))
    chosen = dict(given)
    for key in _SHARED:
        found = [getattr(task.spec, key) for task in sources]
        if key in chosen:
            continue
        if any(value != found[0] for value in found):
            if key in ("multilabel", "head") and head is not None:
                chosen[key] = getattr(head.spec, key)
                continue
            values = ", ".join(f"{task.name}: {value!r}" for task, value in zip(sources, found, strict=True))
            raise ConfigError(f"the tasks differ in {key} ({values}); say which counts: {key}=...")
        chosen[key] = found[0]
    return chosen
