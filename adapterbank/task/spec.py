"""What a task is, without its tensors: its name, and the description that the manifest stores."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

from adapterbank import methods
from adapterbank.errors import ConfigError, InvalidNameError, StorageError, UnknownNameError
from adapterbank.numbers import is_real
from adapterbank.task.head import HEADS, POOLINGS
from adapterbank.task.labels import check_labels, relabelled
from adapterbank.task.lengths import PARTIAL_PATCHES

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# Where a call takes the name of a task, these words could mean something else: a choice by the bank, every task, the
# backbone without a task, or that no task fits. So no task can have them.
RESERVED = ("auto", "all", "base", "unknown")


def check_name(name: Any) -> str:
    """`name` itself, if it is one for a task: such names are file names on every system.

    Raises:
        InvalidNameError: another form, or a reserved word.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidNameError(
            f"got the task name {name!r}, expected 1 to 64 of a-z, 0-9, '.', '_', '-', starting with a letter or digit."
        )
    if name in RESERVED:
        raise InvalidNameError(f"the task name {name!r} is reserved ({', '.join(RESERVED)}); choose another.")
    return name


@dataclass(frozen=True)
class TaskSpec:
    """What a task is, without its tensors; stored as JSON.

    Attributes:
        method: a method or composition, as in `adapterbank.methods.names()`.
        options: of the method.
        labels: class names in the order of the logits.
        multilabel: each class is present or not, instead of one of all.
        head, pooling: one of `HEADS` and one of `POOLINGS`.
        train_final_norm: the task has its own copy of the LayerNorm behind the last block.
        clip_seconds: shorter clips are padded to this length; None keeps each clip's own.
        normalize: "backbone", or the (mean, std) of this task's log-mels.
        seed: together with the name it decides all random initial values.
        partial_patches: "pad": a clip is padded to whole patches. "cut": it is cut to whole patches and to
            `clip_seconds`, as the published codes of AST, AAT and PETL_AST do; see `adapterbank.task.lengths`.
        frozen: parts of the method that training leaves as they are, as `compose` makes them.

    Raises:
        InvalidNameError, UnknownNameError, CompositionError, LabelsError, ConfigError: the description is impossible.
    """

    name: str
    method: str
    labels: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    multilabel: bool = False
    head: str = "ln_linear"
    pooling: str = "cls_dist"
    train_final_norm: bool = False
    clip_seconds: float | None = None
    normalize: str | tuple[float, float] = "backbone"
    seed: int = 0
    frozen: tuple[str, ...] = ()
    partial_patches: str = "pad"

    def __post_init__(self) -> None:
        check_name(self.name)
        parts = [part.name for part in methods.parse(self.method)]
        for part in self.frozen:
            if part not in parts:
                raise UnknownNameError(f"part of {self.method}", part, parts)
        check_labels(self.labels)
        if not isinstance(self.multilabel, bool):
            raise ConfigError(f"got multilabel={self.multilabel!r}, expected True or False.")
        if self.head not in HEADS:
            raise UnknownNameError("head", self.head, HEADS)
        if self.pooling not in POOLINGS:
            raise UnknownNameError("pooling", self.pooling, POOLINGS)
        if self.clip_seconds is not None and not (is_real(self.clip_seconds) and self.clip_seconds > 0):
            raise ConfigError(f"got clip_seconds={self.clip_seconds!r}, expected a positive number or None.")
        if self.partial_patches not in PARTIAL_PATCHES:
            raise UnknownNameError("partial_patches", str(self.partial_patches), PARTIAL_PATCHES)
        if self.normalize != "backbone" and not _is_mean_std(self.normalize):
            raise ConfigError(f"got normalize={self.normalize!r}, expected 'backbone' or (mean, std) with std > 0.")
        if not isinstance(self.seed, int):
            raise ConfigError(f"got seed={self.seed!r}, expected an integer.")

    @property
    def primary_metric(self) -> str:
        """The metric by which this kind of task is compared: accuracy, or mAP if multi-label."""
        return "map" if self.multilabel else "accuracy"

    def renamed(self, name: str) -> TaskSpec:
        """The same description under another name."""
        return replace(self, name=name)

    def relabelled(self, new_names: Mapping[str, str]) -> TaskSpec:
        """The same description with some classes called otherwise. Raises UnknownNameError, LabelsError."""
        return replace(self, labels=relabelled(self.labels, new_names))

    def to_json(self) -> dict[str, Any]:
        """As a dict of what JSON knows: tuples are lists."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, content: Any) -> TaskSpec:
        """The inverse of `to_json`.

        Raises:
            StorageError: something else than what `to_json` writes.
        """
        known = {entry.name for entry in fields(cls)}
        if not isinstance(content, dict) or not {"name", "method", "labels"} <= content.keys() <= known:
            raise StorageError(f"got a task description {str(content)[:80]!r}, expected the fields {sorted(known)}.")
        values = dict(content)
        if not isinstance(values["labels"], list) or not isinstance(values.get("options", {}), dict):
            raise StorageError(f"the labels or options of task {values['name']!r} are no list or dict; it is damaged.")
        values["labels"] = tuple(values["labels"])
        for key in ("normalize", "frozen"):
            if isinstance(values.get(key), list):
                values[key] = tuple(values[key])
        return cls(**values)


def _is_mean_std(value: Any) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        return False
    return all(map(is_real, value)) and value[1] > 0


class Facts(NamedTuple):
    """What is known of a task without its tensors: how many numbers it trains, and the bytes of all it has."""

    spec: TaskSpec
    parameters: int
    bytes: int
    metrics: Mapping[str, float]
