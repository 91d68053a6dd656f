"""The pages that MLflow's UI shows of an experiment: two saved views, and the addresses that open them.

A saved view is a tag of the experiment, with the UI's own state in it. MLflow 3 reads it; other versions ignore it.
Nothing here imports MLflow.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
import zlib
from collections.abc import Mapping
from typing import Any

TASKS, SCORES = "tasks", "scores"  # keys of the views in an address: ?viewStateShareKey=tasks

_TASK_RUNS = "tags.kind = 'task'"

# Column -> width in pixels. At first MLflow opens a panel for its assistant, which leaves 818 of 1,440 pixels to the
# table. The boxes to tick take 73, and the columns down to `gpu_seconds` fit into the rest. The others need the panel
# closed.
_COLUMNS = {
    "attributes.`Run Name`": 66,
    "runDateAndNestInfo": 36,  # "Created", which cannot be hidden: of it the sign of how the run ended
    "tags.`task`": 114,
    "tags.`method`": 66,
    "metrics.`test/score`": 79,
    "metrics.`trainable_parameters`": 92,
    "metrics.`percent_of_base`": 80,
    "metrics.`train_seconds`": 72,
    "metrics.`cpu_seconds`": 70,
    "metrics.`gpu_seconds`": 70,
    "metrics.`peak_memory_mb`": 110,
    "metrics.`test/clips`": 75,
    "attributes.`Dataset`": 120,
    "duration": 80,
}
_ALWAYS_THERE = ("attributes.`Run Name`", "runDateAndNestInfo", "duration")

_CHARTS = {  # title -> (x, y)
    "score against trained parameters": ("trainable_parameters", "test/score"),
    "score against seconds of training": ("train_seconds", "test/score"),
}


def address(experiment_id: str, view: str = TASKS) -> str:
    """The last part of the address of a saved view, behind that of the server.

    Without the type of workflow MLflow 3 opens its pages for language models.
    """
    mode = "&compareRunsMode=CHART" if view == SCORES else ""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={view}{mode}&workflowType=machine_learning"


def experiment_tags() -> dict[str, str]:
    """What makes an experiment one of model training, with the views "Tasks" and "Score against parameters"."""
    return {
        "mlflow.experimentKind": "custom_model_development",
        _tag(TASKS): _packed("Tasks", _table()),
        _tag(SCORES): _packed("Score against parameters", {**_table(), **_charts()}),
    }


def outdated(tags: Mapping[str, str]) -> dict[str, str]:
    """Those of `experiment_tags` that an experiment with these tags lacks, or has from an older version."""
    return {key: value for key, value in experiment_tags().items() if _content(tags.get(key)) != _content(value)}


def _table() -> dict[str, Any]:
    """A line per task run, in the order of the tasks."""
    return {
        "searchFilter": _TASK_RUNS,
        "orderByKey": "tags.`task`",
        "orderByAsc": True,
        "selectedColumns": [column for column in _COLUMNS if column not in _ALWAYS_THERE],
        "columnOrder": list(_COLUMNS),
        "columnWidths": _COLUMNS,
    }


def _charts() -> dict[str, Any]:
    """Charts above those that MLflow makes by itself of each metric."""
    section = _id("section")
    charts = [
        {
            "uuid": _id(title),
            "type": "SCATTER",
            "displayName": title,
            "metricSectionId": section,
            "runsCountToCompare": 100,
            "xaxis": {"key": x, "type": "METRIC"},
            "yaxis": {"key": y, "type": "METRIC"},
            "deleted": False,
            "isGenerated": False,
        }
        for title, (x, y) in _CHARTS.items()
    ]
    there = {"uuid": section, "name": "Score against cost", "display": True, "isReordered": False, "columns": 2}
    return {
        "compareRunCharts": charts,
        "compareRunSections": [{**there, "deleted": False, "isGenerated": False}],
        "isAccordionReordered": False,
    }


def _id(name: str) -> str:
    """The same in every process, so that a view is not newer than itself."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"adapterbank/{name}"))


def _tag(view: str) -> str:
    return f"mlflow.sharedViewState.{view}"


def _packed(name: str, state: Mapping[str, Any]) -> str:
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = int(time.time() * 1000)
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"})


def _content(tag: str | None) -> Any:
    """What a tag says, without the time at which it was written."""
    try:
        return json.loads(tag or "")["state"]
    except (ValueError, TypeError, KeyError):
        return tag
