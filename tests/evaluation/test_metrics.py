"""Metrics against scikit-learn; the numbers of continual learning against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    log_loss,
)

from adapterbank.errors import ConfigError, DatasetError
from adapterbank.evaluation import (
    METRICS,
    Metric,
    evaluate_task,
    loss_function,
    mean_average_precision,
    register_metric,
    score,
)
from adapterbank.sequence import average_accuracy, backward_transfer, forgetting
from adapterbank.task.spec import TaskSpec
from adapterbank.task.task import Task


@pytest.fixture
def make_task(small_backbone):
    def make(classes: int, multilabel: bool = False) -> Task:
        labels = tuple(f"c{index}" for index in range(classes))
        return Task(TaskSpec("x", "head", labels, multilabel=multilabel), small_backbone)

    return make


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_single_label_scores_equal_sklearn(classes, seed, make_task):
    torch.manual_seed(seed)
    logits, targets = torch.randn(40, classes), torch.randint(classes, (40,))
    found = score(make_task(classes), logits, targets)
    guess, probabilities = logits.argmax(1), logits.double().softmax(1)
    assert found["accuracy"] == pytest.approx(accuracy_score(targets, guess))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(targets, guess))
    assert found["loss"] == pytest.approx(log_loss(targets, probabilities, labels=range(classes)), rel=1e-5)


def test_balanced_accuracy_is_over_the_classes_that_occur(make_task):
    logits = torch.eye(4)[torch.tensor([0, 1, 3, 1])]  # class 2 does not occur, class 3 is only guessed
    targets = torch.tensor([0, 0, 0, 1])
    assert score(make_task(4), logits, targets)["balanced_accuracy"] == pytest.approx((1 / 3 + 1) / 2)


def test_a_task_of_one_class_is_always_right(make_task):
    found = score(make_task(1), torch.randn(3, 1), torch.zeros(3, dtype=torch.int64))
    right = {"accuracy", "balanced_accuracy", "macro_f1", "top3_accuracy", "map"}
    assert {name: value for name, value in found.items() if name != "auc"} == {
        **dict.fromkeys(right, 1.0),
        "ece": 0.0,
        "loss": 0.0,
    }
    assert math.isnan(found["auc"])  # there is no clip of another class to stand above


@pytest.mark.parametrize("classes", [1, 2, 6])
def test_multilabel_scores_equal_sklearn(classes, make_task):
    logits, targets = torch.randn(50, classes), (torch.rand(50, classes) < 0.3).float()
    found = score(make_task(classes, multilabel=True), logits, targets)
    assert found["map"] == pytest.approx(average_precision_score(targets, logits.sigmoid(), average="macro"), rel=1e-5)
    assert found["accuracy"] == pytest.approx(accuracy_score(targets.flatten(), logits.flatten() > 0))
    p = logits.double().sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    assert found["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_map_is_over_the_classes_that_occur_and_nan_without_any(make_task):
    logits, targets = torch.randn(20, 3), (torch.rand(20, 3) < 0.5).float()
    targets[:, 1] = 0
    found = score(make_task(3, multilabel=True), logits, targets)
    kept = average_precision_score(targets[:, [0, 2]], logits[:, [0, 2]].sigmoid(), average="macro")
    assert found["map"] == pytest.approx(kept, rel=1e-5)
    assert math.isnan(score(make_task(3, multilabel=True), logits, torch.zeros(20, 3))["map"])


@pytest.mark.parametrize("count", [1, 2, 57])
def test_the_map_of_equal_probabilities_equals_sklearn(count):
    probabilities = torch.rand(count, 3).mul(4).round() / 4  # many clips share a threshold
    targets = (torch.rand(count, 3) < 0.5).long()
    targets[0] = 1
    expected = average_precision_score(targets, probabilities, average="macro")
    assert mean_average_precision(probabilities, targets).item() == pytest.approx(expected, rel=1e-5)


ALL = {
    False: ["accuracy", "balanced_accuracy", "macro_f1", "top3_accuracy", "map", "auc", "ece", "loss"],
    True: ["map", "accuracy", "macro_f1", "auc", "ece", "loss"],
}
EACH_EPOCH = {
    False: ["accuracy", "balanced_accuracy", "macro_f1", "loss"],
    True: ["map", "accuracy", "macro_f1", "loss"],
}


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_task_has_the_metrics_of_its_kind_the_primary_one_first_then_in_the_tables_order(multilabel, make_task):
    task, logits = make_task(3, multilabel), torch.randn(2, 3)
    targets = torch.ones(2, 3) if multilabel else torch.tensor([0, 1])
    assert list(score(task, logits, targets)) == ALL[multilabel]
    assert ALL[multilabel][0] == task.primary_metric
    after_an_epoch = score(task, logits, targets, each_epoch=True)
    assert list(after_an_epoch) == EACH_EPOCH[multilabel]
    assert after_an_epoch == {name: score(task, logits, targets)[name] for name in EACH_EPOCH[multilabel]}


def test_a_metric_that_is_registered_is_scored_for_its_kind_of_task_only(make_task):
    def kappa(logits, targets):
        return cohen_kappa_score(targets, logits.argmax(dim=1))

    register_metric(Metric("kappa", single_label=kappa))
    try:
        logits, targets = torch.randn(20, 4), torch.randint(4, (20,))
        assert score(make_task(4), logits, targets)["kappa"] == pytest.approx(kappa(logits, targets))
        assert "kappa" not in score(make_task(4, multilabel=True), logits, torch.ones(20, 4))
        with pytest.raises(ConfigError, match="'kappa' exists"):
            register_metric(Metric("kappa", multilabel=kappa))
    finally:
        del METRICS["kappa"]


def test_a_metric_without_a_function_is_refused():
    with pytest.raises(ConfigError, match="pass single_label=, multilabel= or both"):
        register_metric(Metric("empty"))
    assert "empty" not in METRICS


@pytest.mark.parametrize("multilabel", [True, False])
def test_the_loss_is_fp32_whatever_the_logits_are(multilabel, make_task):
    task = make_task(3, multilabel)
    targets = torch.ones(2, 3) if multilabel else torch.tensor([0, 1])
    assert loss_function(task, torch.full((2, 3), 9.0, dtype=torch.bfloat16), targets).dtype == torch.float32


def test_an_evaluation_keeps_the_datas_order_and_the_tasks_mode(small_backbone, make_task, labelled_clips):
    task = make_task(3)
    data = [(wave, index % 3) for index, (wave, _) in enumerate(labelled_clips)]
    task.train()
    found = evaluate_task(small_backbone, task, data, batch_size=5)
    assert task.training
    assert found.targets.tolist() == [label for _, label in data]
    task.eval()
    for (wave, label), logits in zip(data, found.logits, strict=True):
        alone = evaluate_task(small_backbone, task, [(wave, label)]).logits[0]
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-5)
    assert not task.training


def test_no_clips_are_refused(small_backbone, make_task):
    with pytest.raises(DatasetError, match="got no clips to evaluate 'x' on, expected .waveform, label. pairs"):
        evaluate_task(small_backbone, make_task(2), iter(()))


# R[i][j]: accuracy on task j after training task i
MATRIX = [[0.9, None, None], [0.7, 0.8, None], [0.75, 0.6, 0.5]]


def test_the_numbers_of_a_sequence_follow_their_formulas():
    assert average_accuracy(MATRIX) == pytest.approx((0.75 + 0.6 + 0.5) / 3)
    assert backward_transfer(MATRIX) == pytest.approx(((0.75 - 0.9) + (0.6 - 0.8)) / 2)  # R[T,i] - R[i,i]
    assert forgetting(MATRIX) == pytest.approx(((0.9 - 0.75) + (0.8 - 0.6)) / 2)  # max_t R[t,i] - R[T,i]


@pytest.mark.parametrize("count", [2, 5])
def test_the_numbers_equal_mammoths_on_random_matrices(count):
    full = np.random.default_rng(0).random((count, count))
    matrix = [[full[i, j] if j <= i else None for j in range(count)] for i in range(count)]
    last = full[-1]
    bwt = np.mean([last[i] - full[i, i] for i in range(count - 1)])
    lost = np.mean([max(full[t, i] for t in range(i, count)) - last[i] for i in range(count - 1)])
    assert backward_transfer(matrix) == pytest.approx(bwt)
    assert forgetting(matrix) == pytest.approx(lost)
    assert average_accuracy(matrix) == pytest.approx(last.mean())


def test_what_never_changes_is_not_forgotten():
    kept = [[0.5, None], [0.5, 0.25]]
    assert (backward_transfer(kept), forgetting(kept)) == (0.0, 0.0)


def test_a_single_task_has_nothing_to_forget():
    assert average_accuracy([[0.5]]) == 0.5
    assert backward_transfer([[0.5]]) is None
    assert forgetting([[0.5]]) is None


@pytest.mark.parametrize(
    "metric",
    [
        Metric("", single_label=lambda logits, targets: 0.0),
        Metric("a/b", single_label=lambda logits, targets: 0.0),
        Metric("none"),
        Metric("number", single_label=3),
        lambda logits, targets: 0.0,
    ],
    ids=["no name", "a slash", "no function", "a number", "no metric"],
)
def test_what_cannot_be_a_metric_is_not_registered(metric):
    before = dict(METRICS)
    with pytest.raises(ConfigError):
        register_metric(metric)
    assert before == METRICS


@pytest.mark.parametrize("measure", [lambda logits, targets: logits, lambda logits, targets: 1 / 0, lambda *_: None])
def test_a_metric_that_fails_is_named(measure, small_backbone, monkeypatch):
    monkeypatch.setitem(METRICS, "mine", Metric("mine", single_label=measure))  # the table itself: it has no way out
    task = Task(TaskSpec("t", "head", ("x", "y")), small_backbone)
    with pytest.raises(ConfigError, match="the metric 'mine' failed on logits"):
        score(task, torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
