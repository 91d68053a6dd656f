"""LoRA tasks to peft: equal logits on transformers' AST, equal bits there and back."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import load_file

from adapterbank.errors import (
    ConfigError,
    StorageError,
    UnknownNameError,
)

# peft 0.21 asks transformers 5.23 for a deprecated property.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
KINDS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
SIZES = {"frequency_stride": 16, "time_stride": 16, "num_labels": 3}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own_norm", [False, True])
@pytest.mark.parametrize("layers", ["all", [0]])
def test_peft_opens_what_was_exported_and_answers_alike(
    layers, own_norm, kind, lora_bank, peft_base, hf_model, randomise, clip, tmp_path, heard
):
    peft = pytest.importorskip("peft")
    options = {} if kind == "lora" else {kind: True}
    targets = ("q", "proj", "fc2")
    task = lora_bank.add_task(
        "birds", "lora", labels=["a", "b", "c"], rank=3, targets=targets, layers=layers, normalize=(-6.5, 5.25),
        train_final_norm=own_norm, **options,
    )  # fmt: skip
    randomise(task, scale=0.2)
    lora_bank.export("birds", "peft", tmp_path / "out")
    base = hf_model(**SIZES)  # its classifier is another one: the head must come from the folder
    base.load_state_dict({k: t for k, t in peft_base.state_dict().items() if "classifier" not in k}, strict=False)
    before = base(heard(clip, (-6.5, 5.25))).logits
    wrapped = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    with torch.no_grad():
        logits = wrapped(heard(clip, (-6.5, 5.25))).logits
    torch.testing.assert_close(logits, lora_bank([clip], "birds"), rtol=0, atol=1e-5)
    assert (logits - before).abs().max() > 0.1
    lora = [n for n, _ in wrapped.named_parameters() if n.endswith("lora_A.default.weight")]
    assert len(lora) == 3 * (2 if layers == "all" else 1)


def test_the_exported_extractor_hears_what_the_task_hears(lora_bank, peft_base, randomise, clips, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import ASTFeatureExtractor

    seconds = ((128 - 1) * 160 + 400) / 16_000
    task = lora_bank.add_task("birds", "lora", num_classes=3, normalize=(-6.5, 5.25), clip_seconds=seconds)
    randomise(task, scale=0.2)
    lora_bank.export("birds", "peft", tmp_path / "out")
    extractor = ASTFeatureExtractor.from_pretrained(tmp_path / "out")
    wrapped = peft.PeftModel.from_pretrained(peft_base, tmp_path / "out").eval()
    inputs = extractor(clips[0].numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        logits = wrapped(**inputs).logits
    torch.testing.assert_close(logits, lora_bank(clips[:1], "birds"), rtol=0, atol=1e-4)  # two front ends


@pytest.mark.parametrize("head", [True, False])
def test_there_and_back_is_the_same_task_bit_for_bit(head, lora_bank, randomise, clips, tmp_path):
    task = lora_bank.add_task(
        "birds", "lora", labels=["owl", "ärn ☃"], multilabel=True, normalize=(-6.5, 5.25), clip_seconds=0.7, rank=3,
        dora=True, dropout=0.5, layers=[-1], train_final_norm=True, seed=4,
    )  # fmt: skip
    randomise(task)
    task.metrics = {"map": 0.5}
    lora_bank.export("birds", "peft", tmp_path / "birds", head=head)
    expected, tensors, old = lora_bank(clips, "birds"), task.state_dict(), task.spec
    lora_bank.remove_task("birds")
    again = lora_bank.import_task(tmp_path / "birds", labels=None if head else ["x", "y", "z"])
    for key, tensor in tensors.items():
        if head or not key.startswith("head."):
            assert torch.equal(again.state_dict()[key], tensor)
    for field in ("name", "multilabel", "normalize", "clip_seconds", "train_final_norm", "seed"):
        assert getattr(again.spec, field) == getattr(old, field)
    assert again.adapters.changes[1]["q"].scale == task.adapters.changes[1]["q"].scale
    if head:
        assert again.labels == old.labels
        assert again.metrics == {"map": 0.5}
        assert torch.equal(lora_bank(clips, "birds"), expected)
    else:
        assert again.labels == ("x", "y", "z")
        assert again.metrics == {}


def test_a_head_that_asts_classifier_cannot_be_stays_behind(lora_bank, tmp_path):
    lora_bank.add_task("birds", "lora", num_classes=2, head="linear", pooling="mean")
    with pytest.raises(ConfigError, match="head='linear' and pooling='mean'.*head=False"):
        lora_bank.export("birds", "peft", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    lora_bank.export("birds", "peft", tmp_path / "out", head=False)
    assert not any("classifier" in key for key in load_file(tmp_path / "out" / "adapter_model.safetensors"))
    again = lora_bank.import_task(tmp_path / "out", num_classes=2)
    assert (again.spec.head, again.spec.pooling) == ("linear", "mean")


@pytest.mark.parametrize("method", ["aat_ms", "lora+prompt", "head", "full"])
def test_other_methods_are_refused_by_name(method, lora_bank, tmp_path):
    lora_bank.add_task("birds", method, num_classes=2)
    with pytest.raises(ConfigError, match=rf"the method '{method.replace('+', '.')}'.*'lora' alone.*bank.save"):
        lora_bank.export("birds", "peft", tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == []


def test_unknown_tasks_formats_and_namings_are_refused(lora_bank, tmp_path):
    lora_bank.add_task("birds", "lora", num_classes=2)
    with pytest.raises(UnknownNameError, match="unknown task 'bird'.*Did you mean 'birds'"):
        lora_bank.export("bird", "peft", tmp_path / "out")
    with pytest.raises(UnknownNameError, match="unknown format 'onnx'.*Known: peft"):
        lora_bank.export("birds", "onnx", tmp_path / "out")
    with pytest.raises(UnknownNameError, match="unknown naming '5.9'.*Known: new, old"):
        lora_bank.export("birds", "peft", tmp_path / "out", names="5.9")


def test_a_folder_in_use_is_never_touched(lora_bank, tmp_path):
    lora_bank.add_task("birds", "lora", num_classes=2)
    (tmp_path / "out").mkdir()
    lora_bank.export("birds", "peft", tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    (tmp_path / "file").write_text("mine")
    for place in ("out", "file", "file/inside"):
        with pytest.raises(StorageError, match="no empty folder|cannot write"):
            lora_bank.export("birds", "peft", tmp_path / place)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("failing", range(5))
def test_an_export_that_dies_at_any_moment_leaves_nothing(failing, lora_bank, tmp_path, monkeypatch):
    lora_bank.add_task("birds", "lora", num_classes=2)
    done, real = [], os.replace

    def dying(*arguments):
        done.append(arguments)
        if len(done) > failing:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(os, "replace", dying)  # the disk fills up: no test can wait for that
    with pytest.raises(StorageError, match="No space left.*Nothing was left there"):
        lora_bank.export("birds", "peft", tmp_path / "out", names="new")
    assert sorted(tmp_path.iterdir()) == before
