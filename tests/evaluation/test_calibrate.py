"""Calibration: the temperature and thresholds that are fitted, what they change, and where they are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import f1_score, log_loss

from adapterbank import AdapterBank, fit
from adapterbank.data import demo_tasks, load_folder
from adapterbank.errors import CalibrationWarning, ConfigError, DatasetError, LabelsError, StorageError
from adapterbank.evaluation.calibrate import best_thresholds, fit_temperature
from adapterbank.task.calibration import Calibration

LABELS = ["bass", "brass", "organ"]


@pytest.fixture
def bank(small_bank):
    small_bank.add_task("families", "head", labels=LABELS)
    small_bank.add_task("tags", "head", labels=LABELS, multilabel=True)
    return small_bank


@pytest.fixture
def tagged(labelled_clips):
    return [(wave, {label, "organ"}) for wave, label in labelled_clips]


@pytest.mark.parametrize("scale", [0.3, 1.0, 8.0])
def test_the_temperature_has_the_least_cross_entropy_by_scipy(scale):
    targets = torch.randint(5, (400,))
    logits = scale * (torch.randn(400, 5) + 2 * torch.nn.functional.one_hot(targets, 5))

    def loss(temperature):
        return log_loss(targets, (logits.double() / temperature).softmax(1), labels=range(5))

    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}).x
    assert fit_temperature(logits, targets, multilabel=False) == pytest.approx(best, rel=1e-4)


def test_the_temperature_of_a_multilabel_task_has_the_least_binary_cross_entropy_by_scipy():
    targets = (torch.rand(300, 4) < 0.3).float()
    logits = 3 * (torch.randn(300, 4) + 2 * targets - 1)

    def loss(temperature):
        return log_loss(targets.flatten(), (logits.double() / temperature).sigmoid().flatten())

    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}).x
    assert fit_temperature(logits, targets, multilabel=True) == pytest.approx(best, rel=1e-4)


def test_no_ambient_mode_changes_the_temperature():
    targets = torch.randint(5, (50,))
    logits = torch.randn(50, 5) + torch.nn.functional.one_hot(targets, 5)
    expected = fit_temperature(logits, targets, multilabel=False)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert fit_temperature(logits.clone(), targets, multilabel=False) == expected


def test_clips_that_are_all_right_tell_no_temperature():
    assert fit_temperature(torch.eye(3) * 5, torch.arange(3), multilabel=False) is None


def test_each_threshold_has_the_best_f1_of_all():
    truth = torch.rand(80, 6) < 0.3
    probabilities = ((torch.rand(80, 6) + truth) / 2).mul(20).round() / 20  # many are equal
    found = best_thresholds(probabilities, truth)
    for c, threshold in enumerate(found):
        p, mine = probabilities[:, c].numpy(), truth[:, c].numpy()
        every = [f1_score(mine, p > t, zero_division=0) for t in np.linspace(-0.01, 1, 203)]
        assert f1_score(mine, p > threshold) == pytest.approx(max(every))


def test_labels_that_always_or_never_occur_keep_one_half():
    truth = torch.tensor([[True, False], [True, False]])
    assert best_thresholds(torch.rand(2, 2), truth) == (0.5, 0.5)


def test_the_calibration_error_falls_on_clips_that_were_not_seen():
    dataset = load_folder(demo_tasks()["instruments"])
    clips = [(wave[:6400], label) for wave, label in (dataset[index] for index in range(len(dataset)))]
    train, val, test = clips[::3], clips[1::3], clips[2::3]
    bank = AdapterBank.from_pretrained("ast-mini-2", device="cpu")
    bank.add_task("instruments", "linear", labels=sorted({label for _, label in clips}))
    fit(bank, "instruments", train, epochs=60, lr=1.0, batch_size=64, cache="memory", progress=False)
    before, logits = bank.evaluate("instruments", test), bank([wave for wave, _ in test[:4]], "instruments")
    found = bank.calibrate("instruments", val)
    after = bank.evaluate("instruments", test)
    assert found.temperature > 2  # trained far beyond the end, it is much too sure of itself
    assert after["ece"] < 0.8 * before["ece"]
    assert after["loss"] < before["loss"]
    assert (after["accuracy"], after["macro_f1"]) == (before["accuracy"], before["macro_f1"])
    assert torch.equal(bank([wave for wave, _ in test[:4]], "instruments"), logits)
    expected = (logits[0] / found.temperature).softmax(0).max().item()
    assert bank.predict([test[0][0]], "instruments")[0].confidence == pytest.approx(expected, abs=1e-6)


def test_predictions_follow_thresholds_and_may_be_nothing(bank, clips):
    bank.task("tags").calibration = Calibration(2.0, (0.1, 0.95, 0.4))
    (answer,) = bank.predict(clips[:1], "tags")
    p = (bank(clips[:1], "tags")[0] / 2).sigmoid().tolist()
    above = {label for label, mine, limit in zip(LABELS, p, (0.1, 0.95, 0.4), strict=True) if mine > limit}
    assert set(answer.present) == above
    assert answer.label == (answer.present[0] if above else None)
    assert answer.present == tuple(label for label in answer.labels if label in above)
    (nothing,) = bank.predict(clips[:1], "tags", threshold=1.0)
    assert (nothing.present, nothing.label) == ((), None)
    (everything,) = bank.predict(clips[:1], "tags", threshold={"brass": 0.0, "organ": 0})
    assert set(everything.present) == above | {"brass", "organ"}
    (single,) = bank.predict(clips[:1], "families")
    assert (single.label, single.present) == (single.labels[0], single.labels[:1])
    for threshold, label in [(single.confidence - 1e-4, single.label), (single.confidence, None), ({}, single.label)]:
        assert bank.predict(clips[:1], "families", threshold=threshold)[0].label == label


@pytest.mark.parametrize("threshold", [-0.1, 1.5, "high", True, float("nan"), {"bass": 2}])
def test_what_is_no_probability_is_refused_as_a_threshold(threshold, bank, clips):
    with pytest.raises(ConfigError, match="got the threshold .* expected a probability"):
        bank.predict(clips[:1], "tags", threshold=threshold)


def test_an_unknown_label_is_refused_as_the_key_of_a_threshold(bank, clips):
    with pytest.raises(LookupError, match="unknown label 'bas'. Did you mean 'bass'"):
        bank.predict(clips[:1], "tags", threshold={"bas": 0.5})


def test_an_evaluation_uses_the_thresholds_that_predictions_use(bank, tagged):
    bank.task("tags").calibration = Calibration(1.5, (0.2, 0.6, 0.45))
    found, truth = bank.evaluate("tags", tagged), [labels for _, labels in tagged]
    answers = [set(p.present) for p in bank.predict([wave for wave, _ in tagged], "tags")]
    for row in found.per_class:
        right = [row.label in labels for labels in truth]
        assert row.clips == sum(right)
        if any(row.label in labels for labels in (*truth, *answers)):
            assert row.f1 == pytest.approx(f1_score(right, [row.label in a for a in answers], zero_division=0))


@pytest.mark.filterwarnings("ignore::adapterbank.errors.CalibrationWarning")
def test_a_calibration_survives_saving_renaming_relabelling_and_importing(bank, tagged, tmp_path):
    found = bank.calibrate("tags", tagged)
    assert len(found.thresholds) == 3
    bank.task("families").calibration = Calibration(1.7)
    bank.rename_task("tags", "marks")
    bank.relabel("marks", {"bass": "double bass"})
    bank.save(tmp_path / "bank")
    for resident in (None, 1):
        again = AdapterBank.load(tmp_path / "bank", bank.backbone, resident=resident)
        assert again.task("marks").calibration == found
        assert again.task("families").calibration == Calibration(1.7)
        assert again.task("notes").calibration is None
        assert again.task("marks").labels == ("double bass", "brass", "organ")
    (file,) = (tmp_path / "bank" / "tasks").glob("marks.*")
    assert again.import_task(file, name="third").calibration == found
    assert again.compile_task("marks").prediction(torch.zeros(3)).present == tuple(
        label for label, limit in zip(again.task("marks").labels, found.thresholds, strict=True) if limit < 0.5
    )


def test_a_bank_that_forgets_tasks_keeps_their_calibration(bank, labelled_clips, tmp_path):
    bank.save(tmp_path)
    again = AdapterBank.load(tmp_path, bank.backbone, resident=1)
    again.task("families").calibration = Calibration(1.25)
    for name in again.tasks:
        again(torch.zeros(1, 4000), name)
    assert again.task("families").calibration == Calibration(1.25)


def test_training_forgets_the_calibration_and_a_failed_training_gives_it_back(bank, labelled_clips):
    task = bank.task("families")
    task.calibration = Calibration(2.5)
    with pytest.raises(LabelsError):
        fit(bank, "families", [*labelled_clips, (labelled_clips[0][0], "dog")], epochs=1, progress=False)
    assert task.calibration == Calibration(2.5)
    fit(bank, "families", labelled_clips, epochs=1, progress=False)
    assert task.calibration is None


def test_what_cannot_be_told_is_said_and_nothing_else_changes(bank, labelled_clips, tagged):
    bank.evaluate("families", labelled_clips)
    before = bank.task("families").calibration
    with pytest.raises(DatasetError, match="got no clips"):
        bank.calibrate("families", [])
    with pytest.raises(LabelsError):
        bank.calibrate("families", [(labelled_clips[0][0], "dog")])
    assert bank.task("families").calibration is before
    assert len(bank.task("families").metrics) > 1
    with pytest.warns(CalibrationWarning) as caught:
        found = bank.calibrate("tags", tagged)
    assert found.thresholds[2] == 0.5  # every clip has it
    assert any("1 of the 3 labels of 'tags': organ. Its threshold stays 0.5" in str(one.message) for one in caught)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"temperature": 0.0, "thresholds": None},
        {"temperature": 1.0, "thresholds": [0.5]},
        {"temperature": "1", "thresholds": None},
        {"temperature": 1.0, "thresholds": 3},
        [1],
    ],
)
def test_a_damaged_calibration_in_a_file_is_refused(content):
    with pytest.raises(StorageError):
        Calibration.from_json(content, 3, multilabel=False)
    assert Calibration.from_json(None, 3, multilabel=False) is None
