"""Training that fails gives the task back; what cannot work is refused by name."""

from __future__ import annotations

import math

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.errors import (
    AdapterBankError,
    ConfigError,
    DatasetError,
    LabelsError,
    TrainingDivergedError,
    UnknownNameError,
    WaveformError,
)
from adapterbank.training.fit import fit
from adapterbank.training.options import Options

LABELS = ["bass", "brass", "organ"]


@pytest.fixture
def bank(small_backbone):
    bank = AdapterBank(small_backbone)
    for name, method in (("families", "aat_ms"), ("probe", "head"), ("other", "joint")):
        bank.add_task(name, method, labels=LABELS)
    return bank


def bits(bank):
    tensors = {f"base.{name}": tensor.clone() for name, tensor in bank.backbone.weights.named()}
    for name, task in bank.tasks.items():
        tensors.update({f"{name}.{key}": tensor.clone() for key, tensor in task.state_dict().items()})
    return tensors


def changed(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


def quick(bank, task, data, val=None, **options):
    return fit(bank, task, data, val, **{"epochs": 2, "batch_size": 6, "progress": False, **options})


@pytest.mark.parametrize("task", ["families", "probe"])
def test_divergence_names_step_and_task_and_gives_the_task_back(task, bank, labelled_clips):
    bank.task(task).metrics, bank.task(task).trained_clip_seconds = {"accuracy": 0.5}, 7.0
    before = bits(bank)
    with pytest.raises(TrainingDivergedError, match=f"training '{task}' .* lr 1e\\+30.* gave .* at step \\d+") as error:
        quick(bank, task, labelled_clips, labelled_clips, lr=1e30, epochs=9, precision="fp32")
    assert "The task is as it was before. Try a lower lr" in str(error.value)
    assert isinstance(error.value, AdapterBankError)
    assert not changed(before, bits(bank))
    assert (bank.task(task).metrics, bank.task(task).trained_clip_seconds) == ({"accuracy": 0.5}, 7.0)
    assert not bank.task(task).training


def test_a_gradient_of_nan_is_caught_before_it_reaches_a_tensor(bank, labelled_clips):
    before = bits(bank)
    weight = bank.task("families").head.linear.weight
    handle = weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingDivergedError, match="gave gradient norm nan at step 0"):
        quick(bank, "families", labelled_clips, precision="fp32")
    handle.remove()
    assert not changed(before, bits(bank))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupt_gives_the_task_back(error, bank, labelled_clips):
    before = bits(bank)

    def stop(epoch, record):
        if epoch == 1:
            raise error

    with pytest.raises(error):
        quick(bank, "families", labelled_clips, epochs=5, on_epoch=stop)
    assert not changed(before, bits(bank))
    assert not bank.task("families").training


@pytest.mark.parametrize(
    ("train", "val", "error", "message"),
    [
        ([], None, DatasetError, "got no clips to train 'families' on, expected .waveform, label. pairs"),
        (iter(()), None, DatasetError, "got no clips to train 'families'"),
        ([(torch.zeros(900), "dog")], None, LabelsError, "label 'dog', which the task 'families' .*Known: bass, brass"),
        ([(torch.zeros(900), 3)], None, LabelsError, "label 3"),
        ([(torch.full((900,), math.nan), 0)], None, WaveformError, "holds NaN or Inf"),
        ([(torch.zeros(20, 900), 0)], None, WaveformError, r"item 0: .*shape \(20, 900\)"),
        ([(torch.zeros(900), 0)], [], DatasetError, "got no clips to evaluate 'families'"),
        ([(torch.zeros(900), 0)], [(torch.zeros(900), "dog")], LabelsError, "label 'dog'"),
    ],
)
@pytest.mark.filterwarnings("ignore::adapterbank.errors.UntrainedClassesWarning")
def test_bad_data_gives_the_task_back(train, val, error, message, bank):
    before = bits(bank)
    with pytest.raises(error, match=message):
        quick(bank, "families", train, val)
    assert not changed(before, bits(bank))


@pytest.mark.filterwarnings("ignore::adapterbank.errors.UntrainedClassesWarning")
def test_a_head_needs_validation_clips_if_asked_for_them(bank, labelled_clips):
    with pytest.raises(DatasetError, match="got no validation clips for 'probe'"):
        quick(bank, "probe", labelled_clips, [])


def test_an_unknown_task_or_option_names_the_known_ones(bank, labelled_clips):
    with pytest.raises(UnknownNameError, match="unknown task 'family'. Did you mean 'families'"):
        quick(bank, "family", labelled_clips)
    with pytest.raises(UnknownNameError, match="unknown option of fit 'learning_rate'.*Known: accumulate, .*warmup"):
        quick(bank, "families", labelled_clips, learning_rate=1e-3)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("epochs", value) for value in (0, -1, 1.5)),
        *(("batch_size", value) for value in (0, "32")),
        *(("steps", value) for value in (0, -1, 2.0)),
        *(("lr", value) for value in (0, -1e-3, math.nan, math.inf, "1e-3")),
        *(("weight_decay", value) for value in (-0.1, math.nan)),
        *(("patience", value) for value in (-1, 1.5)),
        *(("warmup", value) for value in (-0.1, 1, 1000, "0.1")),
        *(("gamma", value) for value in (-1, math.nan)),
        *(("clip_grad", value) for value in (-1, None)),
        *(("crop_seconds", value) for value in (0, -2, math.nan, "2")),
        *(("freq_mask", value) for value in (-1, 2.5)),
        *(("time_mask", value) for value in (0.3, -1)),
    ],
)
def test_an_impossible_option_is_refused_by_name(option, value):
    with pytest.raises(ConfigError, match=f"got {option}="):
        Options(**{option: value})


def test_fp16_gradients_that_never_become_finite_end_the_training(bank, labelled_clips):
    before = bits(bank)
    bank.task("families").head.linear.weight.register_hook(lambda gradient: gradient * math.nan)
    # The loss scale starts at 2^16 and is halved in each step whose gradients are not finite; below 1 that is final.
    with pytest.raises(TrainingDivergedError, match="gradient norm nan at step 17"):
        quick(bank, "families", labelled_clips, epochs=50, precision="fp16")
    assert not changed(before, bits(bank))


@pytest.mark.parametrize(
    ("option", "known"), [("schedule", "constant, cosine"), ("precision", "auto, bf16, fp16, fp32")]
)
def test_an_unknown_schedule_or_precision_names_the_known_ones(option, known):
    with pytest.raises(UnknownNameError, match=f"unknown {option} 'x'. Known: {known}"):
        Options(**{option: "x"})


def test_progress_is_shown_unless_it_is_off(bank, labelled_clips, capsys):
    quick(bank, "probe", labelled_clips, progress=False)
    assert capsys.readouterr().out == ""
    quick(bank, "probe", labelled_clips, progress=True)
    assert "probe (head)" in capsys.readouterr().out
