"""What the saved views hold, as MLflow's pages read it."""

from __future__ import annotations

import base64
import json
import zlib

from adapterbank.tracking.runs import COLUMNS
from adapterbank.tracking.views import address, experiment_tags, outdated


def state(view):
    packed = json.loads(experiment_tags()[f"mlflow.sharedViewState.{view}"])["state"].removeprefix("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def test_task_score_and_cost_fit_beside_the_assistants_panel():
    widths = state("tasks")["columnWidths"]
    order = state("tasks")["columnOrder"]
    wanted = ["test/score", "trainable_parameters", "percent_of_base", "train_seconds", "cpu_seconds", "gpu_seconds"]
    names = ["tags.`task`", "tags.`method`", *(f"metrics.`{name}`" for name in wanted)]
    assert [name for name in order if name in names] == names
    first = order[: order.index(names[-1]) + 1]
    assert sum(widths[name] for name in first) + 73 <= 818  # measured in Chromium at 1,440 pixels


def test_the_charts_begin_with_score_against_parameters_of_metrics_that_every_run_has():
    charts, (section,) = state("scores")["compareRunCharts"], state("scores")["compareRunSections"]
    assert (charts[0]["xaxis"]["key"], charts[0]["yaxis"]["key"]) == ("trainable_parameters", "test/score")
    assert {chart["metricSectionId"] for chart in charts} == {section["uuid"]}
    assert {chart[axis]["key"] for chart in charts for axis in ("xaxis", "yaxis")} <= set(COLUMNS)


def test_an_experiment_of_before_gets_the_views_of_now_and_one_of_now_keeps_its_own():
    now = experiment_tags()
    assert outdated({}).keys() == now.keys()
    assert outdated(experiment_tags()) == {}
    old = {**now, "mlflow.sharedViewState.tasks": json.dumps({"name": "Tasks", "state": "deflate;older"})}
    assert outdated(old).keys() == {"mlflow.sharedViewState.tasks"}
    assert outdated({**now, "mlflow.sharedViewState.tasks": "no JSON"}).keys() == {"mlflow.sharedViewState.tasks"}


def test_addresses_name_the_workflow_and_the_view():
    assert address("7").startswith("#/experiments/7/runs?viewStateShareKey=tasks&")
    assert all("workflowType=machine_learning" in address("7", view) for view in ("tasks", "scores"))
