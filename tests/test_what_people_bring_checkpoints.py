"""Checkpoints as people bring them: every setting of theirs is honoured, or refused with its reason."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterbank import AdapterBank
from adapterbank.backbone.checkpoints import load_backbone
from adapterbank.backbone.checkpoints.huggingface import extractor_config
from adapterbank.errors import BackboneError


def written(folder, **changes):
    """An extractor's settings as transformers saves them, with some changed."""
    geometry = load_backbone(folder).geometry
    content = extractor_config(geometry, -4.2677393, 4.5689974) | changes
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sampling_rate": 32_000},
            "sampling_rate 32000, expected 16000 Hz: the model was trained on other spectrograms",
        ),
        ({"num_mel_bins": 64}, "num_mel_bins 64, expected 128 as its config.json"),
        ({"max_length": 512}, "max_length 512, expected 128 as its config.json"),
        ({"feature_size": 2}, "feature_size 2, expected 1"),
        (
            {"feature_extractor_type": "ClapFeatureExtractor"},
            "of a 'ClapFeatureExtractor', expected 'ASTFeatureExtractor'",
        ),
        ({"do_normalize": "no"}, "do_normalize 'no', expected true or false"),
    ],
)
def test_an_extractor_that_makes_other_spectrograms_is_refused(changes, message, hf_model, hf_folder):
    folder = written(hf_folder(hf_model()), **changes)
    with pytest.raises(BackboneError, match=message):
        load_backbone(folder)


def test_the_extractor_that_transformers_saves_is_accepted(hf_model, hf_folder):
    from transformers import ASTFeatureExtractor

    folder = hf_folder(hf_model())
    ASTFeatureExtractor(max_length=128, mean=-5.0, std=3.0).save_pretrained(folder)
    backbone = load_backbone(folder)
    assert (backbone.mean, backbone.std) == (-5.0, 3.0)


@pytest.mark.parametrize(
    ("classes", "problem", "multilabel"),
    [
        (527, None, True),
        (527, "single_label_classification", False),
        (527, "multi_label_classification", True),
        (4, None, False),
        (4, "multi_label_classification", True),
    ],
)
def test_the_problem_type_is_honoured_whatever_the_number_of_classes(classes, problem, multilabel, hf_model, hf_folder):
    folder = hf_folder(hf_model(num_labels=classes))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": problem}))
    task = AdapterBank.from_pretrained(folder).task("audioset")
    assert task.spec.multilabel is multilabel
    total = sum(task.prediction(torch.zeros(classes)).probabilities)
    assert total == pytest.approx(classes / 2 if multilabel else 1, rel=1e-4)


def test_another_problem_type_is_refused(hf_model, hf_folder):
    folder = hf_folder(hf_model())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": "regression"}))
    with pytest.raises(BackboneError, match="problem_type 'regression', expected one of single_label_classification"):
        load_backbone(folder)


def sharded(folder, suffix="safetensors"):
    """The weights of a folder in three shards with their index, as save_pretrained writes large models."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"{stem}-0000{1 + i % 3}-of-00003.{suffix}" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        part = {name: tensors[name] for name in tensors if places[name] == file}
        if suffix == "safetensors":
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_checkpoint_in_shards_is_the_same_backbone(suffix, hf_model, hf_folder):
    folder = hf_folder(hf_model())
    whole = load_backbone(folder)
    assert load_backbone(sharded(folder, suffix)).fingerprint == whole.fingerprint


def test_what_transformers_itself_saves_in_shards_opens(hf_model, hf_folder, tmp_path):
    model = hf_model()
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    assert load_backbone(tmp_path / "shards").fingerprint == load_backbone(hf_folder(model)).fingerprint


def test_shards_that_are_absent_damaged_or_elsewhere_are_refused(hf_model, hf_folder):
    folder = sharded(hf_folder(hf_model()))
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = min(content["weight_map"])
    file = folder / content["weight_map"][first]
    kept = load_file(file)
    save_file({name: tensor for name, tensor in kept.items() if name != first}, file)
    with pytest.raises(BackboneError, match=f"lacks {first}, which its index names"):
        load_backbone(folder)
    file.unlink()
    with pytest.raises(BackboneError, match=f"lacks 1 of 3 shards: {file.name}. Fetch them too"):
        load_backbone(folder)
    index.write_text(json.dumps({"weight_map": {first: f"../{file.name}"}}))
    with pytest.raises(BackboneError, match="expected a weight_map from tensors to files beside it"):
        load_backbone(folder)
    index.unlink()
    with pytest.raises(BackboneError, match="has no weights.*the index model.safetensors.index.json is missing"):
        load_backbone(folder)


def test_a_variant_is_read_where_nothing_else_is_and_two_are_refused(hf_model, hf_folder):
    folder = hf_folder(hf_model())
    whole = load_backbone(folder)
    halves = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.fp16.safetensors")
    assert load_backbone(folder).fingerprint == whole.fingerprint
    (folder / "model.safetensors").unlink()
    half = load_backbone(folder)
    assert half.weights.embed.cls.dtype == torch.float32
    torch.testing.assert_close(half.weights.embed.cls, whole.weights.embed.cls, rtol=1e-3, atol=1e-3)
    save_file(halves, folder / "model.bf16.safetensors")
    with pytest.raises(
        BackboneError, match=r"several variants of its weights \(model.bf16.*, model.fp16.safetensors\)"
    ):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ast-mnii-2", "ast-mini-2"),
        ("AST_Mini_2", "ast-mini-2"),
        ("MIT/ast-finetuned-audioset-10-10-0.4539", "MIT/ast-finetuned-audioset-10-10-0.4593"),
        ("ast-finetuned-speech-commands-v2", "MIT/ast-finetuned-speech-commands-v2"),
    ],
)
def test_a_mistyped_backbone_suggests_the_nearest(name, meant, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BackboneError, match=f"did you mean '{meant}'"):
        load_backbone(name)


def test_a_mistyped_path_suggests_what_lies_beside(hf_model, hf_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hf_folder(hf_model()).rename(tmp_path / "my-birds")
    with pytest.raises(BackboneError, match="did you mean '.*my-birds'"):
        load_backbone(tmp_path / "my-brids")
    (tmp_path / "audioset_10_10.pth").write_bytes(b"")
    with pytest.raises(BackboneError, match="Did you mean '.*audioset_10_10.pth'"):
        load_backbone(tmp_path / "audioset_1010.pth")


def changed(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"id2label": ["a", "b", "c"]}, ("a", "b", "c")),
        ({"id2label": {"0": None, "1": "b"}}, ("0", "b", "2")),
        ({"id2label": {"0": "", "1": "b", "2": "c"}}, ("0", "b", "c")),
        ({"id2label": None, "label2id": {"a": 2, "b": 1, "c": 0}}, ("c", "b", "a")),
        ({"id2label": {}, "label2id": {"a": "0"}}, ("a", "1", "2")),
    ],
)
def test_names_of_classes_are_read_in_every_form_and_by_their_index(changes, labels, hf_model, hf_folder):
    folder = changed(hf_folder(hf_model(num_labels=3)), **changes)
    assert load_backbone(folder).classifier.labels == labels


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("dog", "has id2label 'dog', expected"),
        ({"dog": 0}, "has id2label .*dog.*, expected"),
        ({str(index): f"class {index}" for index in range(5)}, "names class 3 .*its classifier has 3 classes"),
        ({"-1": "dog"}, "names class -1"),
    ],
)
def test_names_of_other_classes_than_the_classifier_has_are_refused(names, message, hf_model, hf_folder):
    folder = changed(hf_folder(hf_model(num_labels=3)), id2label=names)
    with pytest.raises(BackboneError, match=message):
        load_backbone(folder)


def test_weights_in_integers_are_refused_and_those_in_half_precision_read(hf_model, hf_folder):
    folder = hf_folder(hf_model())
    tensors = load_file(folder / "model.safetensors")
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, folder / "model.safetensors")
        assert load_backbone(folder).geometry.layers > 0
    for dtype in (torch.int8, torch.float8_e4m3fn):
        save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, folder / "model.safetensors")
        with pytest.raises(BackboneError, match="expected fp16, bf16, fp32 or fp64: it was quantized"):
            load_backbone(folder)
    save_file({**tensors, "position_ids": torch.arange(4)}, folder / "model.safetensors")
    with pytest.raises(BackboneError, match="tensors that no AST has: position_ids"):
        load_backbone(folder)
