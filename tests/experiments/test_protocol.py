"""Trials under one protocol: what is written once is not trained again, and never mixed with another protocol."""

import pytest

from adapterbank.bank import AdapterBank
from adapterbank.data import demo_tasks, load_folder, standard_splits
from adapterbank.errors import ConfigError, StorageError, UnknownNameError
from adapterbank.experiments.protocol import ResultLog, gain, train_and_test
from adapterbank.training.defaults import training_defaults
from adapterbank.training.fit import fit


@pytest.fixture
def splits():
    train, val, test = standard_splits(load_folder(demo_tasks()["instruments"]))
    return tuple(part.subset(indices=range(0, len(part), 9)) for part in (train, val, test))


def test_a_trial_is_the_same_twice_and_holds_what_a_table_needs(splits, hf_folder, hf_model):
    backbone = str(hf_folder(hf_model(frequency_stride=16, time_stride=16)))
    options = {"epochs": 1, "batch_size": 8, "crop_seconds": 0.3, "precision": "fp32", "progress": False}
    trials = [train_and_test(backbone, splits, "aat_m", lr=1e-2, seed=1, fit_options=options) for _ in range(2)]
    first, second = ({key: value for key, value in trial.items() if key != "seconds"} for trial in trials)
    assert first == second
    assert first["metric"] == "accuracy"
    assert first["parameters"] > 0
    assert 0 <= first["val"] <= 1
    assert 0 <= first["test"] <= 1
    with pytest.raises(UnknownNameError, match="fp7"):
        train_and_test(backbone, splits, "head", lr=1e-2, seed=0, fit_options=options, test_precision="fp7")


def test_with_nothing_said_a_trial_is_what_fit_gives_with_nothing_said(splits, hf_folder, hf_model):
    backbone = str(hf_folder(hf_model(frequency_stride=16, time_stride=16)))
    short = {"steps": 2, "progress": False}  # so that the test is fast
    found = train_and_test(backbone, splits, "lora", seed=0, fit_options=short)
    train, val, _ = splits
    bank = AdapterBank.from_pretrained(backbone)
    bank.add_task("instruments-lora", "lora", labels=train.labels)
    history = fit(bank, "instruments-lora", train, val, **short)
    assert (found["asked_lr"], found["lr"]) == (None, training_defaults("lora").lr)
    assert found["losses"] == [round(epoch["train/loss"], 4) for epoch in history.epochs]
    assert found["val"] == bank.evaluate("instruments-lora", val)["accuracy"]


def test_top_layers_are_chosen_before_training_and_only_they_are_trained(splits, hf_folder, hf_model):
    backbone = str(hf_folder(hf_model(frequency_stride=16, time_stride=16)))
    fit_options = {"epochs": 1, "batch_size": 8, "crop_seconds": 0.3, "precision": "fp32", "progress": False}
    shared = {"lr": 1e-2, "seed": 0, "fit_options": fit_options}
    whole = train_and_test(backbone, splits, "aat_m", **shared)
    chosen = train_and_test(backbone, splits, "aat_m", **shared, top_layers=1)
    head = train_and_test(backbone, splits, "head", **shared)
    assert len(chosen["options"]["layers"]) == 1
    assert 2 * (chosen["parameters"] - head["parameters"]) == whole["parameters"] - head["parameters"]
    with pytest.raises(ConfigError, match=r"layers=\[0\] and top_layers=1"):
        train_and_test(backbone, splits, "aat_m", **shared, top_layers=1, options={"layers": [0]})
    by_hand = train_and_test(backbone, splits, "aat_m", **shared, options=chosen["options"])
    assert by_hand["losses"] == chosen["losses"]
    assert set(whole["hits"]) <= {"0", "1"}
    assert whole["hits"].count("1") / len(whole["hits"]) == pytest.approx(whole["test"])


def test_a_gain_is_the_paired_difference_with_an_interval_that_narrows_with_agreement():
    better, worse = {"hits": "1" * 60 + "0" * 40}, {"hits": "1" * 50 + "0" * 50}
    mean, low, high = gain([better, better], [worse])
    assert mean == pytest.approx(0.10)
    assert 0.03 < low < 0.10 < high < 0.18  # binomial: 0.10 ± 1.96 sqrt(0.1 x 0.9 / 100)
    shuffled = {"hits": "0" * 40 + "1" * 60}  # the same accuracy, right on other clips
    _, wide_low, wide_high = gain([shuffled], [worse])
    assert wide_high - wide_low > 2 * (high - low)
    with pytest.raises(ConfigError, match="same clips"):
        gain([better], [{"hits": "11"}])
    with pytest.raises(ConfigError, match="sets of labels"):
        gain([better], [{"test": 0.5}])


def test_finished_results_are_found_again_by_their_fields(tmp_path):
    log = ResultLog(tmp_path / "new" / "runs.jsonl", {"epochs": 2, "masks": (1, 2)})
    log.add({"method": "head", "seed": 0, "test": 0.25})
    log.add({"method": "head", "seed": 1, "test": 0.5})
    again = ResultLog(log.file, {"masks": [1, 2], "epochs": 2})
    assert [found["test"] for found in again.find(method="head")] == [0.25, 0.5]
    assert [found["test"] for found in again.find(seed=1)] == [0.5]
    assert not again.find(method="aat_ms")


def test_results_of_two_protocols_never_share_a_file(tmp_path):
    ResultLog(tmp_path / "runs.jsonl", {"epochs": 2}).add({"method": "head"})
    with pytest.raises(ConfigError, match="choose another out="):
        ResultLog(tmp_path / "runs.jsonl", {"epochs": 3})


@pytest.mark.parametrize("line", ["{cut", "[]", '{"method": "head"}'])
def test_a_damaged_line_is_refused_by_file(tmp_path, line):
    (tmp_path / "runs.jsonl").write_text(line + "\n")
    with pytest.raises(StorageError, match=r"runs\.jsonl has a damaged line"):
        ResultLog(tmp_path / "runs.jsonl", {"epochs": 2})
