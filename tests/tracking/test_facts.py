"""What any tracker says of a task: plain values, under names that tasks share."""

from __future__ import annotations

import json

import torch

from adapterbank.bank import AdapterBank
from adapterbank.evaluation import Evaluation
from adapterbank.tracking.facts import evaluation_metrics, task_params, task_tags


def test_all_tasks_have_the_same_settings_and_tags_whatever_their_method(small_backbone):
    bank = AdapterBank(small_backbone)
    tasks = [bank.add_task("a", "lora", num_classes=3, clip_seconds=1.0), bank.add_task("b", "head", labels=["x", "y"])]
    params = [task_params(task) for task in tasks]
    assert params[0].keys() == params[1].keys()
    assert [found["clip_seconds"] for found in params] == [1.0, "native"]
    assert [found["labels"] for found in params] == [3, 2]
    assert json.loads(json.dumps(params)) == params
    tags = [task_tags(bank, task) for task in tasks]
    assert tags[0].keys() == tags[1].keys()
    assert all(isinstance(value, str) for found in tags for value in found.values())
    assert small_backbone.fingerprint.startswith(tags[0]["backbone_fingerprint"])


def test_the_options_of_a_method_read_back_from_its_setting(small_backbone):
    task = AdapterBank(small_backbone).add_task("a", "lora", num_classes=3, layers=[1])
    assert json.loads(task_params(task)["method_options"])["layers"] == [1]


def test_the_score_of_a_test_is_the_tasks_primary_metric(small_backbone):
    bank = AdapterBank(small_backbone)
    single = bank.add_task("single", "head", num_classes=2)
    several = bank.add_task("several", "head", labels=["x", "y"], multilabel=True)
    found = Evaluation({"accuracy": 0.75, "map": 0.5}, torch.empty(0), torch.empty(0))
    assert evaluation_metrics(single, found) == {"test/score": 0.75, "test/accuracy": 0.75, "test/map": 0.5}
    assert evaluation_metrics(several, found)["test/score"] == 0.5
