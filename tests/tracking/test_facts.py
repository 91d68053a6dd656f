"""What any tracker says of a task: plain values, under names that tasks share."""

from __future__ import annotations

import json

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.evaluation import Evaluation
from adapterbank.tracking.facts import evaluation_metrics, task_params, task_tags, versions


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
    found = Evaluation({"accuracy": 0.75, "map": 0.5}, torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64))
    of_single = evaluation_metrics(single, found)
    assert {key: of_single[key] for key in ("test/score", "test/accuracy", "test/map", "test/clips")} == {
        "test/score": 0.75,
        "test/accuracy": 0.75,
        "test/map": 0.5,
        "test/clips": 8,
    }
    of_several = Evaluation(found, torch.zeros(8, 2), torch.zeros(8, 2))
    assert evaluation_metrics(several, of_several)["test/score"] == 0.5


def test_the_interval_of_an_accuracy_is_wilsons(small_backbone):
    task = AdapterBank(small_backbone).add_task("a", "head", num_classes=2)
    found = evaluation_metrics(
        task, Evaluation({"accuracy": 0.8}, torch.zeros(10, 2), torch.zeros(10, dtype=torch.int64))
    )
    # From the formula, worked out by hand for 8 of 10: (0.8 + z^2/20 -+ z sqrt(0.016 + z^2/400)) / (1 + z^2/10).
    assert found["test/score_low"] == pytest.approx(0.4902, abs=1e-4)
    assert found["test/score_high"] == pytest.approx(0.9433, abs=1e-4)


def test_many_classes_are_cut_in_a_parameter(small_backbone):
    task = AdapterBank(small_backbone).add_task("a", "head", num_classes=527)
    assert len(task_params(task)["classes"]) == 500


def test_versions_are_those_that_are_imported():
    assert versions()["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert versions().keys() >= {"python", "adapterbank", "torchaudio", "mlflow"}


def test_params_tell_apart_tasks_that_differ_in_how_they_hear_and_answer(small_bank):
    ways = (
        {},
        {"multilabel": True},
        {"partial_patches": "cut"},
        {"normalize": (-4.0, 2.0)},
        {"train_final_norm": True},
    )
    tasks = [small_bank.add_task(f"way{i}", "head", num_classes=2, **way) for i, way in enumerate(ways)]
    params = [tuple(map(str, task_params(task).items())) for task in tasks]
    assert len(set(params)) == len(ways)
