"""What an evaluation is: a dict of numbers that also knows its classes, confusions, clips and interval."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import pickle

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support, roc_auc_score

from adapterbank.errors import SkippedClipsWarning
from adapterbank.evaluation import Evaluation, evaluate_task
from adapterbank.evaluation.interval import bootstrapped_map, wilson
from adapterbank.task.spec import TaskSpec
from adapterbank.task.task import Task


@pytest.fixture
def make_task(small_backbone):
    def make(classes: int, multilabel: bool = False) -> Task:
        labels = tuple(f"c[{index}]" for index in range(classes))  # what rich would take for markup
        return Task(TaskSpec("x", "head", labels, multilabel=multilabel), small_backbone)

    return make


def printed(evaluation: Evaluation, **options) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(evaluation.table(**options))
    return console.file.getvalue()


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_classes_and_confusions_equal_sklearn(multilabel, make_task):
    logits = (3 * torch.randn(60, 5)).round()
    targets = (torch.rand(60, 5) < 0.3).float() if multilabel else torch.randint(4, (60,))
    found = Evaluation.of(make_task(5, multilabel), logits, targets)
    truth = targets.numpy() if multilabel else np.eye(5)[targets]
    guess = (logits > 0).numpy() if multilabel else np.eye(5)[logits.argmax(1)]
    p, r, f, support = precision_recall_fscore_support(truth, guess, average=None, zero_division=np.nan)
    scores = (logits.double().sigmoid() if multilabel else logits.double().softmax(1)).numpy()
    for c, row in enumerate(found.per_class):
        assert (row.label, row.clips) == (f"c[{c}]", support[c])
        assert (row.precision, row.recall, row.f1) == pytest.approx((p[c], r[c], f[c]), nan_ok=True)
        if support[c]:
            assert row.average_precision == pytest.approx(average_precision_score(truth[:, c], scores[:, c]))
            assert row.auc == pytest.approx(roc_auc_score(truth[:, c], scores[:, c]))
        else:
            assert math.isnan(row.average_precision)
    if multilabel:
        assert found.confusion.tolist() == (truth.T.astype(int) @ guess.astype(int)).tolist()
    else:
        expected = confusion_matrix(targets, logits.argmax(1), labels=range(5))
        assert found.confusion.tolist() == expected.tolist()


def test_an_evaluation_is_a_dict_that_json_pickle_and_copies_keep(make_task):
    found = Evaluation.of(make_task(3), torch.randn(20, 3), torch.randint(3, (20,)))
    assert dict(json.loads(json.dumps(found))) == found == found.metrics
    for other in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert other == found
        assert (other.clips, other.per_class, other.interval) == (20, found.per_class, found.interval)


def test_the_name_of_before_still_reads_the_balanced_accuracy(make_task):
    found = Evaluation.of(make_task(3), torch.randn(20, 3), torch.randint(3, (20,)))
    assert found["macro_accuracy"] == found.get("macro_accuracy") == found["balanced_accuracy"]
    assert "macro_accuracy" not in list(found)
    with pytest.raises(KeyError):
        found["recall"]


def test_clips_that_were_left_out_are_counted_and_count_in_nothing(small_backbone, labelled_clips):
    task = Task(TaskSpec("x", "head", ("bass", "brass", "organ")), small_backbone)
    broken = (torch.full((900,), math.nan), "bass")
    with pytest.warns(SkippedClipsWarning):
        found = evaluate_task(small_backbone, task, [*labelled_clips, broken], on_error="skip")
    alone = evaluate_task(small_backbone, task, labelled_clips)
    assert (found.clips, found.skipped, alone.skipped) == (12, 1, 0)
    assert found == alone
    assert (found.per_class, found.interval) == (alone.per_class, alone.interval)
    assert "12 clips, 1 left out" in repr(found)


@pytest.mark.parametrize(("right", "clips"), [(0, 12), (7, 12), (12, 12), (930, 1000)])
def test_the_interval_of_the_accuracy_is_wilsons_by_its_equation(right, clips):
    low, high = wilson(right / clips, clips)
    for end in {low, high} - {0.0, 1.0}:  # the ends solve |p - end| = z sqrt(end (1 - end) / n)
        assert abs(right / clips - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / clips))
    assert 0 <= low <= right / clips <= high <= 1
    assert high - low > 0


def test_the_interval_of_the_map_is_the_bootstrap_by_sklearn():
    truth = torch.rand(40, 3) < 0.4
    scores = (2 * (torch.randn(40, 3) + truth)).round()
    random = np.random.default_rng(1)
    values = []
    for _ in range(1000):
        draw = random.integers(40, size=40)
        drawn = truth[draw].numpy()
        kept = drawn.any(0)
        values.append(average_precision_score(drawn[:, kept], scores[draw][:, kept], average="macro"))
    low, high = bootstrapped_map(scores, truth)
    assert (low, high) == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.02)  # two draws of 1,000
    assert bootstrapped_map(scores, truth) == (low, high)
    assert all(map(math.isnan, bootstrapped_map(scores, torch.zeros(40, 3, dtype=torch.bool))))


def test_the_table_shows_classes_or_the_worst_of_many_and_says_what_it_leaves_out(make_task):
    logits, targets = torch.eye(80)[torch.arange(79)], torch.arange(79)
    logits[5] = logits[6]
    found = Evaluation.of(make_task(80), logits, targets)
    text = printed(found)
    assert f"x: accuracy {78 / 79:.3f} (95 % interval" in text
    assert "on 79 clips" in text
    notes = " ".join(text.split())
    assert "The 50 worst of 79 classes; per_class has all. Not shown: 1 class without a clip." in notes
    rows = [line.split()[0] for line in text.splitlines() if line.strip().startswith("c[")]
    assert len(rows) == 50
    assert rows[:2] == ["c[5]", "c[6]"]
    assert "c[78]" in printed(found, classes=100)


def test_csv_and_json_hold_every_class_and_no_nan(make_task, tmp_path):
    found = Evaluation.of(make_task(3), torch.eye(3)[[0, 1]], torch.tensor([0, 1]))
    found.to_csv(tmp_path / "classes.csv")
    with open(tmp_path / "classes.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["label"] for row in rows] == ["c[0]", "c[1]", "c[2]"]
    assert (rows[0]["clips"], rows[0]["recall"], rows[2]["recall"]) == ("1", "1.0", "")
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["metrics"]["accuracy"] == 1.0
    assert (content["clips"], content["skipped"], content["per_class"][2]["recall"]) == (2, 0, None)
    assert content["interval"] == list(found.interval)
