"""What any tracker has to say of a task: its settings and tags, and its metrics under the names they are logged by.

Nothing here knows a tracker. Every function returns a plain dict that a tracker of your own may log as it is.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from adapterbank._version import __version__
from adapterbank.bank import AdapterBank
from adapterbank.evaluation import METRICS, Evaluation
from adapterbank.task.task import Task

PARTS = ("train", "val", "test")  # of a dataset, in the names of parameters such as "train_clips"

_LIBRARIES = ("torch", "torchaudio", "transformers", "mlflow")
_LONGEST = 500  # characters of a parameter; every tracker takes so many


def epoch_metrics(task: Task, record: Mapping[str, float]) -> dict[str, float]:
    """What one record of `History.epochs` holds: "train/loss", "val/<metric>" for every metric of the table, and
    "val/score", the task's primary metric once more under a name that all tasks share. NaN is left out."""
    wanted = ["train/loss", *(f"val/{name}" for name in METRICS)]
    found = {key: record[key] for key in wanted if key in record}
    found["val/score"] = record.get(f"val/{task.primary_metric}", math.nan)
    return {key: value for key, value in found.items() if not math.isnan(value)}


def evaluation_metrics(task: Task, evaluation: Evaluation) -> dict[str, float]:
    """ "test/<metric>" for every metric of the table that the task has, and "test/score", its primary metric, with the
    ends of its 95 % interval and the number of clips."""
    named = {f"test/{name}": value for name, value in evaluation.metrics.items()}
    low, high = evaluation.interval
    shared = {"score": evaluation.metrics[task.primary_metric], "score_low": low, "score_high": high}
    return {**{f"test/{name}": value for name, value in shared.items()}, "test/clips": evaluation.clips, **named}


def versions() -> dict[str, str]:
    """Of Python, of this library and of those that numbers depend on."""
    found = {"python": platform.python_version(), "adapterbank": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def task_params(task: Task) -> dict[str, Any]:
    """How the task was made."""
    spec = task.spec
    return {
        "method": spec.method,
        "multilabel": spec.multilabel,
        "labels": len(spec.labels),
        "classes": _shortened(", ".join(spec.labels)),
        "head": spec.head,
        "pooling": spec.pooling,
        "clip_seconds": "native" if spec.clip_seconds is None else spec.clip_seconds,
        "partial_patches": spec.partial_patches,
        "normalize": "backbone" if isinstance(spec.normalize, str) else str(tuple(spec.normalize)),
        "train_final_norm": spec.train_final_norm,
        "init_seed": spec.seed,
        "method_options": json.dumps(dict(spec.options), sort_keys=True, default=str),
    }


def task_tags(bank: AdapterBank, task: Task) -> dict[str, str]:
    """What runs are searched and grouped by: the task, its method, the backbone and the device."""
    return {
        "task": task.name,
        "method": task.method,
        "backbone": Path(bank.backbone.source).name,
        "backbone_fingerprint": bank.backbone.fingerprint[:12],
        "device": _device_name(bank.backbone.device),
        "primary_metric": task.primary_metric,
    }


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
