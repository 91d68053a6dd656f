"""Any Hugging Face AST opens, by old and new names; whatever does not fit is refused with a reason."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterbank.backbone.checkpoints.opening import load_backbone
from adapterbank.bank import AdapterBank
from adapterbank.errors import BackboneError


def test_old_and_new_names_are_the_same_backbone(hf_model, hf_folder):
    model = hf_model()
    old, new = (load_backbone(hf_folder(model, names=names)) for names in ("old", "new"))
    assert old.fingerprint == new.fingerprint
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(old.weights.named(), new.weights.named(), strict=True))


def test_a_file_that_transformers_itself_wrote_opens(hf_model, hf_folder, tmp_path):
    model = hf_model()
    model.save_pretrained(tmp_path / "theirs")
    assert load_backbone(tmp_path / "theirs").fingerprint == load_backbone(hf_folder(model)).fingerprint


def test_a_body_without_classifier_opens_with_bare_names(hf_model, tmp_path):
    model = hf_model()
    model.audio_spectrogram_transformer.save_pretrained(tmp_path / "body")
    backbone = load_backbone(tmp_path / "body")
    assert backbone.classifier is None
    assert list(AdapterBank(backbone).tasks) == []
    assert backbone.num_parameters() == sum(p.numel() for p in model.audio_spectrogram_transformer.parameters())


def test_a_pytorch_file_opens_and_is_the_same_backbone(hf_model, hf_folder):
    model = hf_model()
    pickled = load_backbone(hf_folder(model, file="pytorch_model.bin"))
    assert pickled.fingerprint == load_backbone(hf_folder(model)).fingerprint


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code from a checkpoint ran",))


def test_no_code_in_a_pytorch_file_runs(hf_model, hf_folder, capsys):
    folder = hf_folder(hf_model(), file="pytorch_model.bin")
    torch.save({"x": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="holds more than tensors"):
        load_backbone(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BackboneError):
        load_backbone(folder)
    assert "code from a checkpoint ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"layer_norm_eps": 1e-6}, {"num_attention_heads": 2}],
    ids=["values", "eps", "heads"],
)
def test_the_fingerprint_covers_values_eps_and_sizes(change, hf_model, hf_folder):
    first = load_backbone(hf_folder(hf_model(num_attention_heads=3)))
    other = load_backbone(hf_folder(hf_model(**{"num_attention_heads": 3, **change})))
    assert first.fingerprint != other.fingerprint


def test_the_fingerprint_outlives_a_bf16_base(hf_model, hf_folder, tmp_path, clips):
    folder = hf_folder(hf_model())
    bank = AdapterBank.from_pretrained(folder, device="cpu")
    bank.add_task("notes", "aat_ms", num_classes=3)
    bank.save(tmp_path / "bank")
    half = AdapterBank.load(tmp_path / "bank", device="cpu", base_dtype=torch.bfloat16)
    assert half.backbone.dtype == torch.bfloat16
    assert half.backbone.fingerprint == bank.backbone.fingerprint
    half.save(tmp_path / "bank2")
    again = AdapterBank.load(tmp_path / "bank2", device="cpu")
    assert torch.equal(again(clips, "notes"), bank(clips, "notes"))
    assert (half(clips, "notes") - bank(clips, "notes")).abs().max() < 0.2


def test_the_classifier_becomes_the_task_audioset_and_equals_extractor_and_model(hf_model, hf_folder, clips):
    from transformers import ASTFeatureExtractor

    id2label = {index: f"sound {index}" for index in range(527)}
    model = hf_model(
        max_length=1024, frequency_stride=16, time_stride=16, id2label=id2label, num_labels=527, num_hidden_layers=3
    )
    bank = AdapterBank.from_pretrained(hf_folder(model), device="cpu")
    task = bank.task("audioset")
    assert task.labels == tuple(id2label.values())
    assert task.spec.multilabel

    extractor = ASTFeatureExtractor()
    waveforms = [clips[0], torch.cat([clips[5]] * 10)[: 16_000 * 10]]
    inputs = extractor([w.numpy() for w in waveforms], sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits
    torch.testing.assert_close(bank(waveforms, "audioset"), expected, rtol=0, atol=1e-4)


def test_the_extractors_mean_and_std_are_those_of_the_bank(hf_model, hf_folder, clips):
    from transformers import ASTFeatureExtractor

    model = hf_model(max_length=128, num_labels=4)
    folder = hf_folder(model, preprocessor={"mean": -6.5, "std": 5.25, "max_length": 128})
    bank = AdapterBank.from_pretrained(folder, device="cpu")
    inputs = ASTFeatureExtractor(mean=-6.5, std=5.25, max_length=128)(
        clips[0].numpy(), sampling_rate=16_000, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**inputs).logits
    torch.testing.assert_close(bank(clips[:1], "audioset"), expected, rtol=0, atol=1e-4)
    assert not bank.task("audioset").spec.multilabel


def test_without_normalisation_the_mel_stays_as_it_is(hf_model, hf_folder):
    backbone = load_backbone(hf_folder(hf_model(), preprocessor={"do_normalize": False}))
    assert (backbone.mean, 2 * backbone.std) == (0.0, 1.0)


@pytest.mark.parametrize("numbers", [{"std": 0}, {"std": -1.0}, {"mean": "x"}, {"mean": None}, {"std": [4.5]}])
def test_an_impossible_normalisation_is_refused(numbers, hf_model, hf_folder):
    with pytest.raises(BackboneError, match="expected finite numbers and a positive std"):
        load_backbone(hf_folder(hf_model(), preprocessor=numbers))


def test_a_hub_id_without_internet_says_what_to_put_where(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no test may reach the network
    with pytest.raises(BackboneError, match="no backbone 'nobody/no-such-ast'") as error:
        load_backbone("nobody/no-such-ast")
    for part in ("ast-mini-2", "config.json", "preprocessor_config.json", "model.safetensors", "pass its path"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["no such/id at all", "ast-mimi", "/nowhere/at/all", "a/b/c"])
def test_a_name_that_is_nothing_is_refused(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no test may reach the network
    with pytest.raises(BackboneError, match="no backbone"):
        load_backbone(name)


def test_an_empty_folder_says_what_to_put_there(tmp_path):
    with pytest.raises(BackboneError, match="neither config.json .* nor manifest.json .* Put config.json"):
        load_backbone(tmp_path)


def test_a_configuration_without_weights_is_refused(hf_model, hf_folder):
    folder = hf_folder(hf_model())
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="has no weights, expected model.safetensors or pytorch_model.bin"):
        load_backbone(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("keep", [0, 7, 500, -100])
def test_a_cut_weight_file_is_refused(file, keep, hf_model, hf_folder):
    folder = hf_folder(hf_model(), file=file)
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[:keep] if keep else b"")
    with pytest.raises(BackboneError, match=file):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 51}, r"has shape .* expected .* from its config.json"),
        ({"num_hidden_layers": 3}, r"\(3 layers\): missing blocks.2"),
        ({"num_hidden_layers": 1}, r"\(1 layer\): missing nothing, unexpected blocks.1"),
        ({"max_length": 256}, r"embed.positions has shape .*, expected"),
        ({"qkv_bias": False}, "unexpected blocks.0.k_bias"),
        ({"num_attention_heads": 5}, "width 48 is not a multiple of heads 5"),
        ({"num_attention_heads": 0}, "got heads=0"),
        ({"patch_size": 32}, "embed.patch_weight has shape"),
        ({"patch_size": [16, 8]}, "expected square ones"),
        ({"hidden_act": "relu"}, "activation 'relu', expected 'gelu'"),
        ({"model_type": "vit"}, "is a 'vit' model, expected 'audio-spectrogram-transformer'"),
    ],
)
def test_tensors_that_do_not_fit_the_configuration_are_refused(config, message, hf_model, hf_folder):
    folder = hf_folder(hf_model())
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    with pytest.raises(BackboneError, match=message):
        load_backbone(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '"ast"'])
def test_a_damaged_configuration_is_refused(content, hf_model, hf_folder):
    folder = hf_folder(hf_model())
    (folder / "config.json").write_text(content)
    with pytest.raises(BackboneError, match="config.json"):
        load_backbone(folder)


PREFIX = "audio_spectrogram_transformer."


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (PREFIX + "layernorm.weight", torch.full((48,), float("nan")), "norm.weight holds NaN or Inf"),
        (PREFIX + "layernorm.weight", torch.ones(47), r"norm.weight has shape \(47,\), expected \(48,\)"),
        (PREFIX + "decoder.weight", torch.ones(3), "tensors that no AST has: .*decoder.weight"),
        ("classifier.dense.weight", torch.ones(2, 40), "the classifier has shape"),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(name, tensor, message, hf_model, hf_folder):
    folder = hf_folder(hf_model(), names="new")
    save_file({**load_file(folder / "model.safetensors"), name: tensor}, folder / "model.safetensors")
    with pytest.raises(BackboneError, match=message):
        load_backbone(folder)


def test_a_missing_classifier_tensor_is_refused(hf_model, hf_folder):
    folder = hf_folder(hf_model())
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.dense.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BackboneError, match="incomplete classifier: missing linear.bias"):
        load_backbone(folder)


def test_a_pytorch_file_of_something_else_is_refused(hf_model, hf_folder):
    folder = hf_folder(hf_model(), file="pytorch_model.bin")
    for content in ([torch.zeros(3)], {"epoch": 3}, torch.zeros(3)):
        torch.save(content, folder / "pytorch_model.bin")
        with pytest.raises(BackboneError):
            load_backbone(folder)


def test_a_base_of_another_dtype_lets_go_of_the_file_it_was_read_from(hf_folder, hf_model):
    bank = AdapterBank.from_pretrained(hf_folder(hf_model()), device="cpu")
    mapped = {tensor.untyped_storage().data_ptr() for _, tensor in bank.backbone.weights.named()}
    half = bank.backbone.to(dtype=torch.bfloat16)
    kept = [tensor for _, tensor in half.weights.named()] + list(half.classifier.tensors.values())
    assert not mapped & {tensor.untyped_storage().data_ptr() for tensor in kept}
    assert torch.equal(half.weights.embed.positions, bank.backbone.weights.embed.positions)
    assert half.to(dtype=torch.bfloat16).weights.embed.cls is half.weights.embed.cls
